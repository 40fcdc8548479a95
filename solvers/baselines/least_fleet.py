"""The least number of GPUs with which a rule for a given number of GPUs works.

The surrogate judges every fleet as a whole. Numbers are doubled until a fleet is accepted, then bisected. More GPUs
are not always better for such rules (another remainder, another hash, another draw), so every smaller number that was
not tried is tried as well, from the top down: the answer is the least number for this rule unless the budget ends.
"""

from __future__ import annotations

from dataclasses import dataclass

from predictors.surrogate import Surrogate
from solvers.alone import feasible_alone
from solvers.baselines.fleet import BudgetSpentError, FleetRule, FleetTask, SlotRule, best_slots
from solvers.budget import Budget
from solvers.constrained_solve import constrained
from solvers.interface import Capability, Observer
from solvers.placement import Placement
from solvers.problem import Problem
from solvers.result import SolveResult, Termination
from solvers.run import SolverRun


@dataclass(frozen=True)
class Baseline:
    """One baseline: a rule for adapters, a rule for slots, and what the registry says about it.

    Attributes
    ----------
    name, summary
        What it is called, and one line about it.
    place
        Distributes the adapters over a number of GPUs.
    choose_slots
        Chooses the slots of each GPU.
    decides_fleet_size
        The rule takes as many GPUs as it needs, so that there is no number to search for.
    is_randomised
        The answer depends on the seed.
    requires, extra
        As in `solvers.registry.SolverEntry`.
    """

    name: str
    summary: str
    place: FleetRule
    choose_slots: SlotRule = best_slots
    decides_fleet_size: bool = False
    is_randomised: bool = False
    requires: tuple[str, ...] = ()
    extra: str | None = None

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What it can do: one GPU type at a time, no warm start, no bound."""
        drawn = {Capability.RANDOMISED} if self.is_randomised else set()
        return frozenset({Capability.ANYTIME} | drawn)


class BaselineSolver:
    """A baseline as a solver: with several GPU types, the fleet of one type that the objective prefers."""

    def __init__(self, baseline: Baseline) -> None:
        self.baseline = baseline
        self.name = baseline.name
        self.capabilities = baseline.capabilities

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
        """Search the least fleet; see `solvers.interface.Solver`.

        Raises
        ------
        InputError
            When some adapter fits no GPU alone.
        """
        clock = budget.start()
        run = SolverRun(problem, surrogate, budget, observer)
        if warm_start is not None:
            run.notes.append(f"The warm start was ignored: {self.name} cannot use one.")
        tasks = [FleetTask(run, gpu_type, seed, clock) for gpu_type in range(len(problem.gpu_types))]
        termination = Termination.COMPLETED
        try:
            self._search(tasks)
        except BudgetSpentError as spent:
            termination = spent.termination
        except KeyboardInterrupt:
            termination = Termination.INTERRUPTED
        if run.incumbent is None and run.num_iterations:
            run.notes.append(f"Fleets tried and refused as a whole: {run.num_iterations}.")
        return run.result(termination)

    def _search(self, tasks: list[FleetTask]) -> None:
        tasks[0].require_budget()
        fits = feasible_alone(tasks[0].model)
        for task in tasks:
            gpu_type = task.problem.gpu_types[task.gpu_type]
            if not fits[task.gpu_type].all():
                task.run.notes.append(f"Some adapter fits no GPU of type {gpu_type.name!r} alone.")
                continue
            most = min(task.num_adapters, gpu_type.max_count or task.num_adapters)
            least = LeastFleet(self.baseline, task).search(most)
            if least is None:
                task.run.notes.append(
                    f"No fleet that {self.name} builds of at most {most} GPUs of type {gpu_type.name!r} keeps the "
                    "limits."
                )


class LeastFleet:
    """The search for one baseline on one GPU type; what it finds is recorded in the task's run.

    Attributes
    ----------
    tried
        Whether the fleet of each number of GPUs tried so far was accepted.
    """

    def __init__(self, baseline: Baseline, task: FleetTask) -> None:
        self.baseline = baseline
        self.task = task
        self.tried: dict[int, bool] = {}

    def search(self, most: int) -> int | None:
        """Return the least number of GPUs up to `most` whose fleet is accepted, or None.

        Raises
        ------
        BudgetSpentError
            When the budget ends first.
        """
        if self.baseline.decides_fleet_size:
            return most if self.accepts(most) else None
        too_few, least = 0, None
        size = 1
        while least is None and too_few < most:
            if self.accepts(size):
                least = size
            else:
                too_few, size = size, min(2 * size, most)
        while least is not None and least - too_few > 1:
            middle = (too_few + least) // 2
            if self.accepts(middle):
                least = middle
            else:
                too_few = middle
        for size in range((least or most + 1) - 1, 0, -1):
            if self.accepts(size):
                least = size
        return least

    def accepts(self, num_gpus: int) -> bool:
        """Return whether the fleet that the rule builds on `num_gpus` GPUs is accepted; build each once."""
        if num_gpus not in self.tried:
            self.tried[num_gpus] = self._try(num_gpus)
        return self.tried[num_gpus]

    def _try(self, num_gpus: int) -> bool:
        task = self.task
        task.require_budget()
        task.run.num_iterations += 1
        placed = self.baseline.place(task, num_gpus)
        if placed is None:
            return False
        groups = [group for group in placed if group]
        slots = self.baseline.choose_slots(task, groups)
        fixed = task.problem.fixed_max_loras
        if fixed is not None:
            slots = [fixed] * len(groups)
        if slots is None:
            return False
        placement = task.accepted(groups, slots)
        return placement is not None and task.run.record(placement)
