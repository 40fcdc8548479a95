"""The objective `lowest_latency`, for every solver: a search for the tightest latency limit that it still keeps.

How slow the slowest GPU is, with at most so many GPUs, is a question about limits: a fleet whose largest 95th
percentile is at most L exists exactly when the problem has a placement under the limit L. So a solver that knows
nothing of latency is asked whether it finds a placement under a limit, and the limits are bisected. What it finds is
evaluated: the next limit is looked for below what was reached.
"""

from __future__ import annotations

from dataclasses import replace

from predictors.surrogate import Surrogate
from solvers.budget import Budget
from solvers.interface import Capability, Observer, Solver
from solvers.merging import merged_problem
from solvers.objective import objective_value
from solvers.placement import Placement
from solvers.problem import Problem
from solvers.result import Incumbent, Solution, SolveResult, SolveStatistics, Termination
from solvers.run import SolverRun
from twin.errors import InputError

# Relative width at which the search for the limit ends.
PRECISION = 0.005
# Of the budget that is left, for one limit.
SHARE_OF_A_LIMIT = 1.0 / 3.0


class AnyObjectiveSolver:
    """A solver that minimises numbers and costs of GPUs, and through a search for limits the latency.

    Parameters
    ----------
    inner
        Asked as it is unless the objective is `lowest_latency`.
    """

    def __init__(self, inner: Solver) -> None:
        self.inner = inner

    @property
    def name(self) -> str:
        """Name in the registry."""
        return self.inner.name

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What the inner solver can do; about latencies it proves nothing."""
        return self.inner.capabilities

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
        """Solve for the problem's objective; see `solvers.interface.Solver`.

        Raises
        ------
        InputError
            When some adapter fits no GPU alone.
        """
        if problem.objective != "lowest_latency":
            return self.inner.solve(
                problem, surrogate, budget=budget, seed=seed, warm_start=warm_start, observer=observer
            )
        search = _LimitSearch(self.inner, SolverRun(problem, surrogate, budget, observer), seed)
        if warm_start is not None and Capability.WARM_START in self.capabilities:
            search.run.record(warm_start)
        return search.result()


class _LimitSearch:
    """One search: `low` is a limit that was not kept, the incumbent's latency one that was; both in seconds."""

    def __init__(self, solver: Solver, run: SolverRun, seed: int) -> None:
        self.solver = solver
        self.run = run
        self.seed = seed
        self.low = 0.0
        self.num_evaluations = 0
        self.num_calls = 0
        # A placement under a tighter limit costs about as many, with the margin of twice that.
        self.rows_of_the_first = 0
        self._is_enough = False

    def result(self) -> SolveResult:
        """Search, and return the best placement; where there is none, what the solver says about that."""
        termination: Termination | None = None
        try:
            if self.run.incumbent is None:
                first = self._ask(None)
                if first.solution is Solution.NONE:
                    return replace(first, bound=None, statistics=self._statistics())
                if self._is_interrupted(first):
                    termination = Termination.INTERRUPTED
            while termination is None and not self._is_narrow():
                termination = self._next_limit()
        except KeyboardInterrupt:
            termination = Termination.INTERRUPTED
        ended = self.run.result(termination or Termination.COMPLETED)
        return replace(ended, statistics=self._statistics())

    def _next_limit(self) -> Termination | None:
        """Ask about the limit in the middle; return why the search is over, or ``None``."""
        exhausted = self.run.budget.exhausted(self.num_evaluations)
        if exhausted is not None:
            return exhausted
        rows = self._left().max_evaluations
        if rows is not None and rows < self.rows_of_the_first:
            return Termination.ITERATION_LIMIT
        before, middle = self._latency_s(), 0.5 * (self.low + self._latency_s())
        try:
            answer = self._ask(middle)
        except InputError:
            # An adapter does not keep the limit even alone.
            self.low = middle
            return None
        if self._is_interrupted(answer):
            return Termination.INTERRUPTED
        if self._latency_s() >= before:
            self.low = middle
        return None

    def _left(self) -> Budget:
        """Return what is left of the budget; once there is a placement, all rows are for improving it."""
        left = self.run.budget.remaining(self.num_evaluations)
        limits = [limit for limit in (left.max_evaluations, left.max_improving_evaluations) if limit is not None]
        return left if self.run.incumbent is None else Budget(left.seconds, min(limits, default=None))

    def _share(self) -> Budget:
        """Return the budget for one limit: all of it for the first placement, then a share, enough for another one."""
        left = self._left()
        if self.run.incumbent is None:
            return left
        share = left.share(SHARE_OF_A_LIMIT)
        if share.max_evaluations is None or left.max_evaluations is None:
            return share
        return replace(
            share, max_evaluations=min(max(share.max_evaluations, self.rows_of_the_first), left.max_evaluations)
        )

    def _ask(self, limit_s: float | None) -> SolveResult:
        """Let the solver look for a placement under a limit (``None``: the problem's own), until it has one."""
        problem = self.run.problem
        tighter: dict[str, float] = {} if limit_s is None else {problem.latency_metric: 1000.0 * limit_s}
        limits = problem.limits.model_copy(update=tighter)
        limited = replace(problem.unmerged, objective="fewest_gpus", limits=limits)
        self._is_enough = False
        answer = self.solver.solve(
            limited if problem.merging is None else merged_problem(limited),
            self.run.surrogate,
            budget=self._share(),
            seed=self.seed,
            observer=self._stop_at_the_first,
        )
        self.num_evaluations += answer.statistics.num_evaluations
        self.num_calls += answer.statistics.num_calls
        self.run.num_iterations += 1
        if answer.placement is not None:
            if self.run.incumbent is None:
                self.rows_of_the_first = 2 * answer.statistics.num_evaluations
            self.run.record(answer.placement)
        return answer

    def _stop_at_the_first(self, _incumbent: Incumbent) -> None:
        """End the solver as Ctrl-C would: fewer GPUs under the same limit are not what is looked for."""
        self._is_enough = True
        raise KeyboardInterrupt

    def _is_interrupted(self, answer: SolveResult) -> bool:
        return answer.termination is Termination.INTERRUPTED and not self._is_enough

    def _is_narrow(self) -> bool:
        return self._latency_s() - self.low <= PRECISION * self._latency_s()

    def _latency_s(self) -> float:
        assert self.run.incumbent is not None
        return objective_value(self.run.problem, self.run.incumbent.evaluation)[0]

    def _statistics(self) -> SolveStatistics:
        return SolveStatistics(
            num_evaluations=self.num_evaluations,
            num_calls=self.num_calls,
            runtime_s=self.run.budget.elapsed_s,
            num_iterations=self.run.num_iterations,
        )
