"""Several solvers one after the other, each from the best placement so far: the default.

Best fit has a placement in milliseconds. Column generation over patterns, where it can run, looks at the problem as a
whole, and local search improves what there is until the budget ends, nothing is found for long, or the bound is met.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from predictors.surrogate import Surrogate
from solvers.bounds import work_bound
from solvers.budget import Budget, RunningBudget
from solvers.constrained_solve import constrained
from solvers.interface import Capability, Observer, Solver
from solvers.local_search.solver import LocalSearchSolver
from solvers.objective import objective_value
from solvers.packing import PackingSolver
from solvers.placement import Placement
from solvers.problem import Problem
from solvers.result import Bound, Incumbent, Solution, SolveResult, SolveStatistics, Termination

PATTERNS = "patterns"


@dataclass(frozen=True)
class Stage:
    """One solver of the portfolio.

    Attributes
    ----------
    share
        Of the budget that is left when it starts, in (0, 1].
    needs_placement
        Whether it only improves what there is.
    """

    solver: Solver
    share: float = 1.0
    needs_placement: bool = False


class PortfolioSolver:
    """Best fit, then patterns where they can run, then local search."""

    name = "portfolio"
    capabilities = frozenset(
        {
            Capability.ANYTIME,
            Capability.WARM_START,
            Capability.MIXED_GPU_TYPES,
            Capability.RANDOMISED,
            Capability.BOUND,
            Capability.CONSTRAINTS,
        }
    )

    def __init__(self, *, stages: Callable[[], tuple[Stage, ...]] | None = None) -> None:
        self._stages = stages or default_stages

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
        """Run the stages; see `solvers.interface.Solver`.

        Raises
        ------
        InputError
            When some adapter fits no GPU alone, or the warm start is not a placement of this problem.
        """
        relay = _Relay(problem, surrogate, budget.start(time.monotonic), observer)
        try:
            for stage in self._stages():
                if relay.is_over or not relay.run(stage, seed=seed, warm_start=warm_start):
                    break
        except KeyboardInterrupt:
            relay.termination = Termination.INTERRUPTED
        return relay.result()


def default_stages() -> tuple[Stage, ...]:
    """Return the stages: best fit, patterns if they can run here, local search."""
    # The registry names this module's solver.
    from solvers.registry import solver_entries  # noqa: PLC0415

    patterns = tuple(
        Stage(entry.make(), share=0.5)
        for entry in solver_entries()
        if entry.name == PATTERNS and entry.availability().is_available
    )
    return (
        Stage(PackingSolver("bfd")),
        *patterns,
        Stage(LocalSearchSolver(builds_first=False), needs_placement=True),
    )


class _Relay:
    """What the stages hand on: the best placement, the best bound, and what is left of the budget."""

    def __init__(
        self, problem: Problem, surrogate: Surrogate, budget: RunningBudget, observer: Observer | None
    ) -> None:
        self.problem = problem
        self.surrogate = surrogate
        self.termination = Termination.COMPLETED
        self._budget = budget
        self._observer = observer
        self._best: Incumbent | None = None
        self._bound: Bound | None = None
        self._used = SolveStatistics(num_evaluations=0, runtime_s=0.0, num_iterations=0)
        # Each with whether the stage that says it had a placement.
        self._messages: list[tuple[bool, str]] = []

    @property
    def is_over(self) -> bool:
        """Whether nothing can be gained any more, or somebody pressed Ctrl-C."""
        return self.termination is Termination.INTERRUPTED or (self._is_proven() and not self._is_tied())

    def run(self, stage: Stage, *, seed: int, warm_start: Placement | None) -> bool:
        """Run a stage that can be run; return whether something is left for the next one."""
        can_mix = Capability.MIXED_GPU_TYPES in stage.solver.capabilities or len(self.problem.gpu_types) == 1
        if not can_mix or (stage.needs_placement and self._best is None):
            return True
        left = self._budget.remaining(self._used.num_evaluations).share(stage.share)
        result = stage.solver.solve(
            self.problem,
            self.surrogate,
            budget=left,
            seed=seed,
            warm_start=warm_start if self._best is None else self._best.placement,
            observer=self._observe,
        )
        self._take_over(result)
        ended = self._budget.exhausted(self._used.num_evaluations)
        # A stage that came to the end of its share of the budget leaves the rest to the next one.
        cut_short = {Termination.TIME_LIMIT, Termination.ITERATION_LIMIT}
        is_share = stage.share < 1.0 and result.termination in cut_short
        self.termination = ended or (Termination.COMPLETED if is_share else result.termination)
        return ended is None and result.termination not in {Termination.INTERRUPTED, *(() if is_share else cut_short)}

    def result(self) -> SolveResult:
        """Return the best placement of all stages, or an honest nothing."""
        best, bound = self._best, self._bound
        is_proven = self._is_proven() and self.termination is not Termination.INTERRUPTED
        solution = Solution.FEASIBLE if best is not None else Solution.NONE
        return SolveResult(
            solution=Solution.OPTIMAL if is_proven else solution,
            termination=Termination.PROVEN if is_proven else self.termination,
            placement=None if best is None else best.placement,
            evaluation=None if best is None else best.evaluation,
            bound=bound,
            statistics=replace(self._used, runtime_s=self._budget.elapsed_s),
            # Why one stage found nothing is of no interest once another one did.
            message=" ".join(
                dict.fromkeys(text for had_placement, text in self._messages if had_placement or not best)
            ),
        )

    def _observe(self, incumbent: Incumbent) -> None:
        """Keep and report what is better than everything before; its numbers are those of the whole solve."""
        if self._best is not None and not self._is_better(incumbent):
            return
        used = self._used.num_evaluations
        self._budget.improve_from(used + incumbent.num_evaluations)
        self._best = replace(
            incumbent, num_evaluations=used + incumbent.num_evaluations, runtime_s=self._budget.elapsed_s
        )
        if self._observer is not None:
            self._observer(self._best)

    def _is_better(self, incumbent: Incumbent) -> bool:
        assert self._best is not None
        before, after = (objective_value(self.problem, it.evaluation) for it in (self._best, incumbent))
        return after < before

    def _take_over(self, result: SolveResult) -> None:
        """Add up what a stage used, and keep its bound and what it says."""
        used, more = self._used, result.statistics
        self._used = SolveStatistics(
            num_evaluations=used.num_evaluations + more.num_evaluations,
            runtime_s=self._budget.elapsed_s,
            num_iterations=used.num_iterations + more.num_iterations,
            num_calls=used.num_calls + more.num_calls,
        )
        if self._best is not None and self._bound is None:
            self._bound = work_bound(self.problem)
        if result.bound is not None and (
            self._bound is None or self._strength(result.bound) > self._strength(self._bound)
        ):
            self._bound = result.bound
        if result.message:
            self._messages.append((result.placement is not None, result.message))

    def _strength(self, bound: Bound) -> tuple[float, float]:
        """Return what a bound says of the objective, then of what breaks ties; larger is stronger."""
        cost = bound.cost_per_hour or 0.0
        return (cost, bound.value) if self.problem.objective == "least_cost" else (bound.value, cost)

    def _is_proven(self) -> bool:
        """Return whether the bound proves the best placement; one above it proves that the surrogate is mistaken."""
        best, bound, objective = self._best, self._bound, self.problem.objective
        if best is None or bound is None or not bound.proves(best.evaluation, objective):
            return False
        return objective == "least_cost" or best.evaluation.num_gpus == bound.value

    def _is_tied(self) -> bool:
        """Return whether placements with the same number of GPUs may differ in cost."""
        prices = {gpu_type.cost_per_hour for gpu_type in self.problem.gpu_types}
        return self.problem.objective == "fewest_gpus" and len(prices) > 1
