"""The published greedy with its known weaknesses mended; never worse than it.

The order of adapters, one GPU after the other, and the tests at growing numbers of adapters are those of
`solvers.greedy`. What is mended, one by one:

- A failed test gives back only what does not fit: the pending adapters are halved until the part that fails is one
  adapter, and the rest is committed.
- Closed GPUs are visited again: an adapter that does not fit the open GPU is offered to all closed ones, the fullest
  first, before it goes back to the queue; and once all adapters are placed, the last GPUs are dissolved into the others
  while that succeeds.
- Slots are searched: every test takes the best of all options (`FeasibilityModel.best_choice`), not the current or the
  next.
- Nothing is padded: a tail is tested as it is.
- No GPU ends at 576 adapters: the grid goes on in steps of 64.

Both published variants run first, so that the answer is never worse than theirs; not where there are constraints, which
they do not keep.
"""

from __future__ import annotations

from itertools import chain, count

import numpy as np

from predictors.slots import GRID
from predictors.surrogate import Surrogate
from solvers.alone import feasible_alone
from solvers.best_fit import FIRST_BATCH_GPUS
from solvers.bounds import adapter_work, unavoidable_costs
from solvers.budget import Budget
from solvers.constrained_solve import constrained
from solvers.greedy import GreedyConstruction, PaddingName, alternating_order
from solvers.interface import Capability, Observer
from solvers.open_fleet import OpenFleet
from solvers.placement import Placement
from solvers.problem import Problem
from solvers.result import SolveResult, Termination
from solvers.run import SolverRun

# Beyond the published grid.
GRID_STEP = 64
PADDINGS: tuple[PaddingName, ...] = ("published", "intended")


class RepairedGreedySolver:
    """The repaired greedy; with several GPU types, a fleet of each alone, and the one that the objective prefers."""

    name = "greedy-repaired"
    capabilities = frozenset({Capability.ANYTIME, Capability.CONSTRAINTS})

    @constrained
    def solve(
        self,
        problem: Problem,
        surrogate: Surrogate,
        *,
        budget: Budget,
        seed: int = 0,
        warm_start: Placement | None = None,
        observer: Observer | None = None,
    ) -> SolveResult:
        """Run the published greedy, then the repaired one; see `solvers.interface.Solver`. `seed` changes nothing.

        Raises
        ------
        InputError
            When some adapter fits no GPU alone.
        """
        del seed
        run = SolverRun(problem, surrogate, budget, observer)
        if warm_start is not None:
            run.notes.append(f"The warm start was ignored: {self.name} cannot use one.")
        try:
            # The published greedy asks nothing about constraints.
            termination = (_published(run) if problem.constraint_table is None else None) or _repaired(run)
        except KeyboardInterrupt:
            termination = Termination.INTERRUPTED
        return run.result(termination or Termination.COMPLETED)


def _published(run: SolverRun) -> Termination | None:
    """Record what the published greedy finds; return why it was cut short, if it was. Its notes are not ours."""
    notes = list(run.notes)
    for padding in PADDINGS:
        for gpu_type in range(len(run.problem.gpu_types)):
            built = GreedyConstruction(run, gpu_type, padding).build()
            if isinstance(built, Termination):
                return built
            if built is not None:
                run.record(built)
    run.notes[:] = notes
    return None


def _repaired(run: SolverRun) -> Termination | None:
    """Record what the repaired greedy finds; return why it was cut short, if it was."""
    if (ended := run.exhausted()) is not None:
        return ended
    fits = feasible_alone(run.model)
    for gpu_type, entry in enumerate(run.problem.gpu_types):
        if not fits[gpu_type].all():
            run.notes.append(f"Some adapter fits no GPU of type {entry.name!r} alone.")
            continue
        ended = _RepairedConstruction(run, gpu_type).build()
        if ended is not None:
            return ended
    return None


class _RepairedConstruction:
    """One run of the repaired greedy on GPUs of one type, each of which takes every adapter alone."""

    def __init__(self, run: SolverRun, gpu_type: int) -> None:
        self.run = run
        self.gpu_type = gpu_type
        self.model = run.model
        types = range(len(run.problem.gpu_types))
        self.fleet = OpenFleet(
            run.model, np.array([adapter_work(run.problem, unavoidable_costs(run.problem, index)) for index in types])
        )

    def build(self) -> Termination | None:
        """Place all adapters and record the fleet; return why it was cut short, if it was."""
        queue = alternating_order(self.run.problem)
        limit = self.run.problem.gpu_types[self.gpu_type].max_count
        num_adapters = len(queue)
        while queue:
            self.run.num_placed = max(self.run.num_placed, num_adapters - len(queue))
            if (ended := self.run.exhausted()) is not None:
                return ended
            if limit is not None and self.fleet.num_open >= limit:
                self.run.notes.append(
                    f"No GPU is left: {limit} are full and {len(queue)} adapters are not placed by the repaired greedy."
                )
                return None
            if self.fleet.open(self.gpu_type, queue[0]) is None:
                name = self.run.problem.adapters[queue[0]].name
                self.run.notes.append(f"{name!r} fitted a GPU alone, and did not when asked again.")
                return None
            queue = self._fill(queue[1:])
        self._dissolve_last()
        self.run.record(self.fleet.placement())
        return self.run.exhausted()

    def _fill(self, rest: list[int]) -> list[int]:
        """Commit to the GPU opened last what fits, step by step along the grid; return what is still to be placed."""
        gpu = len(self.fleet.members) - 1
        for size in chain(GRID, count(GRID[-1] + GRID_STEP, GRID_STEP)):
            pending = rest[: size - len(self.fleet.members[gpu])]
            if not pending or self.run.exhausted() is not None:
                break
            self.run.num_iterations += 1
            refused = self._commit(gpu, pending)
            rest = [*self._offer(refused, excluded=gpu), *rest[len(pending) :]]
            if refused:
                break
        return rest

    def _commit(self, gpu: int, pending: list[int]) -> list[int]:
        """Commit the adapters of `pending` that fit together, halving where a test fails; return the others."""
        fleet = self.fleet
        members = tuple(sorted((*fleet.members[gpu], *pending)))
        rank = int(self.run.problem.ranks[list(members)].max())
        choices = self.model.best_choice(
            (fleet.rows[gpu] + self.model.aggregates[pending].sum(axis=0))[None, :],
            np.array([rank]),
            self.gpu_type,
            [members] if self.model.uses_members else None,
        )
        if choices.feasible[0]:
            for adapter in pending:
                fleet.add(gpu, adapter, choices, 0)
            return []
        if len(pending) == 1:
            return list(pending)
        middle = len(pending) // 2
        return [*self._commit(gpu, pending[:middle]), *self._commit(gpu, pending[middle:])]

    def _offer(self, adapters: list[int], *, excluded: int) -> list[int]:
        """Put adapters on closed GPUs that take them, the fullest first; return the others."""
        return [adapter for adapter in adapters if not self._placed_on_closed(self.fleet, adapter, excluded)]

    def _placed_on_closed(self, fleet: OpenFleet, adapter: int, excluded: int) -> bool:
        gpus = fleet.may_hold(fleet.open_gpus, adapter)
        gpus = gpus[gpus != excluded]
        gpus = gpus[np.argsort(-fleet.fullness[gpus], kind="stable")]
        for start in range(0, len(gpus), FIRST_BATCH_GPUS):
            batch = gpus[start : start + FIRST_BATCH_GPUS]
            choices = fleet.ask(batch, adapter)
            accepting = np.flatnonzero(choices.feasible)
            if len(accepting):
                fleet.add(int(batch[accepting[0]]), adapter, choices, int(accepting[0]))
                return True
        return False

    def _dissolve_last(self) -> None:
        """Move all adapters of the last GPU to others, again and again while that succeeds."""
        while self.fleet.num_open > 1 and self.run.exhausted() is None:
            attempt = self.fleet.copy()
            last = int(attempt.open_gpus[-1])
            adapters = sorted(attempt.close(last), key=lambda adapter: -self.fleet.work[self.gpu_type, adapter])
            self.run.num_iterations += 1
            if not all(self._placed_on_closed(attempt, adapter, last) for adapter in adapters):
                return
            self.fleet = attempt
