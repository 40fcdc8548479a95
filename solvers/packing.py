"""Rank-grouped first-fit and best-fit decreasing, and a last pass that tries to empty GPUs into the others.

Adapters are placed by rank descending, because one adapter of a large rank makes every slot of its GPU that large, and
by work descending within a rank; before all others those with stricter limits of their own. First fit takes the first
open GPU that the surrogate accepts; best fit the one that is then fullest (`solvers.best_fit`).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from predictors.surrogate import Surrogate
from solvers.alone import feasible_alone
from solvers.best_fit import BestFit
from solvers.bounds import adapter_work, unavoidable_costs
from solvers.budget import Budget
from solvers.constrained_solve import constrained
from solvers.interface import Capability, Observer
from solvers.open_fleet import OpenFleet
from solvers.placement import Placement, validate_placement
from solvers.problem import Problem
from solvers.result import SolveResult, Termination
from solvers.run import SolverRun

# Of the least loaded GPUs, how many are tried in vain before the last pass gives up.
EMPTYING_ATTEMPTS = 100
# The first ones forget what GPUs refused adapters with about as much work: they are the most promising.
FRESH_ATTEMPTS = 8

PackingName = Literal["ffd", "bfd"]


class PackingSolver:
    """First-fit (``ffd``) or best-fit (``bfd``) decreasing, grouped by rank.

    With several GPU types, one fleet is built per type (others of its GPUs are used where that type cannot help), and
    the one that the objective prefers is returned.
    """

    capabilities = frozenset(
        {Capability.ANYTIME, Capability.WARM_START, Capability.MIXED_GPU_TYPES, Capability.CONSTRAINTS}
    )

    def __init__(self, name: PackingName) -> None:
        self.name: PackingName = name

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
        """Pack the adapters; see `solvers.interface.Solver`. The answer does not depend on `seed`.

        Raises
        ------
        InputError
            When some adapter fits no GPU alone, or the warm start is not a placement of this problem.
        """
        del seed
        run = SolverRun(problem, surrogate, budget, observer)
        try:
            termination = Packing(run, is_best_fit=self.name == "bfd").search(warm_start)
        except KeyboardInterrupt:
            termination = Termination.INTERRUPTED
        return run.result(termination)


class Packing:
    """One search; everything that it finds is recorded in its run."""

    def __init__(self, run: SolverRun, *, is_best_fit: bool) -> None:
        self.run = run
        self.problem = run.problem
        types = range(len(self.problem.gpu_types))
        self.work = np.array(
            [adapter_work(self.problem, unavoidable_costs(self.problem, gpu_type)) for gpu_type in types]
        )
        # Nothing is opened before it is known who fits a GPU alone.
        self.best_fit = BestFit(run, np.zeros(self.work.shape, dtype=np.bool_), is_best_fit=is_best_fit)

    def search(self, warm_start: Placement | None) -> Termination:
        """Improve the warm start, then build and improve a fleet per GPU type; return why the search ended."""
        if warm_start is not None:
            validate_placement(self.problem, warm_start)
            if self.run.record(warm_start):
                fleet = OpenFleet(self.run.model, self.work)
                fleet.load_placement(warm_start)
                self.improve(fleet)
            else:
                self.run.notes.append("The warm start is not feasible and was ignored.")
        self.best_fit.fits_alone = feasible_alone(self.run.model)
        for preferred in range(len(self.problem.gpu_types)):
            if (ended := self.run.exhausted()) is not None:
                return ended
            built = self._build(preferred)
            if isinstance(built, Termination):
                return built
            if built is None:
                continue
            if not self.run.record(built.placement()):
                self.run.notes.append("A fleet was dropped: its predictions were not the same when asked again.")
                continue
            self.improve(built)
        return self.run.exhausted() or Termination.COMPLETED

    def _build(self, preferred: int) -> OpenFleet | Termination | None:
        """Place all adapters; return why it was cut short instead, or None when the GPUs of all types are used up."""
        fleet = OpenFleet(self.run.model, self.work)
        order = np.lexsort((-self.work[preferred], -self.problem.ranks, self._is_lax()))
        costs = [gpu_type.cost_per_hour for gpu_type in self.problem.gpu_types]
        types = sorted(range(len(costs)), key=lambda index: (index != preferred, costs[index], index))
        placed = self.best_fit.insert(fleet, order, types=types)
        if placed == len(order):
            return fleet
        if (ended := self.run.exhausted()) is not None:
            return ended
        name = self.problem.adapters[int(order[placed])].name
        self.run.notes.append(
            f"All GPUs that `max_count` allows were filled with {placed} of {len(order)} adapters placed; "
            f"the next was {name!r}. Allow more GPUs."
        )
        return None

    def _is_lax(self) -> NDArray[np.bool_]:
        """Return which adapters have no limits of their own: the last ones, so that few GPUs keep stricter limits."""
        table = self.problem.constraint_table
        return np.zeros(len(self.problem.adapters), dtype=np.bool_) if table is None else ~table.has_own_limit

    def improve(self, fleet: OpenFleet) -> None:
        """Empty GPUs into others while that succeeds, recording each success; then use cheaper types."""
        fleet, failures = fleet.copy(), 0
        while failures < EMPTYING_ATTEMPTS:
            gpus = fleet.open_gpus
            by_load = gpus[np.argsort(fleet.load[gpus], kind="stable")]
            if len(gpus) < 2 or failures >= len(gpus):
                break
            emptied = self._emptied(fleet, int(by_load[failures]), asks_again=failures < FRESH_ATTEMPTS)
            if self.run.exhausted() is not None:
                return
            if emptied is None or not self.run.record(emptied.placement()):
                failures += 1
                continue
            fleet, failures = emptied, 0
        if len(self.problem.gpu_types) > 1:
            self._use_cheaper_types(fleet)

    def _emptied(self, fleet: OpenFleet, gpu: int, *, asks_again: bool) -> OpenFleet | None:
        """Return a fleet with the adapters of `gpu` on other GPUs, or None.

        What the others refuse is remembered; if it `asks_again`, they are also asked what they refused before.
        """
        attempt = fleet.copy(keeps_refusals=not asks_again)
        adapters = np.array(attempt.close(gpu), dtype=np.int64)
        order = adapters[np.lexsort((adapters, -self.work[fleet.gpu_type[gpu], adapters]))]
        if self.best_fit.insert(attempt, order) == len(order):
            return attempt
        fleet.learn_refusals(attempt)
        return None

    def _use_cheaper_types(self, fleet: OpenFleet) -> None:
        """Move the sets of whole GPUs to cheaper types that hold them."""
        types = self.problem.gpu_types
        for gpu_type in sorted(range(len(types)), key=lambda index: (types[index].cost_per_hour, index)):
            gpus = np.array(
                [gpu for gpu in fleet.open_gpus if self._cost_of(fleet, gpu) > types[gpu_type].cost_per_hour],
                dtype=np.int64,
            )
            if not len(gpus) or self.run.exhausted() is not None:
                continue
            members = [tuple(sorted(fleet.members[int(gpu)])) for gpu in gpus]
            model = self.run.model
            choices = model.best_choice(fleet.rows[gpus], fleet.max_rank[gpus], gpu_type, members)
            moved = np.flatnonzero(choices.feasible)
            limit = types[gpu_type].max_count
            if limit is not None:
                moved = moved[: max(0, limit - fleet.count_of_type(gpu_type))]
            fleet.set_type(gpus, moved, gpu_type, choices)
        self.run.record(fleet.placement())

    def _cost_of(self, fleet: OpenFleet, gpu: int) -> float:
        return self.problem.gpu_types[int(fleet.gpu_type[gpu])].cost_per_hour
