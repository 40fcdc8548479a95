"""Secondary objectives, for every solver: what it found is changed while its objective stays as good."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from predictors.surrogate import Surrogate
from solvers.budget import Budget
from solvers.constrained_solve import constrained
from solvers.current import current_fleet
from solvers.interface import Capability, Observer
from solvers.lowest_latency import AnyObjectiveSolver
from solvers.merging import merged_problem
from solvers.moves import require_matcher
from solvers.objective import evaluate, objective_value
from solvers.placement import Placement
from solvers.problem import Problem
from solvers.problem_file import SecondaryName
from solvers.result import (
    COST_TOLERANCE,
    Incumbent,
    Solution,
    SolveResult,
    SolveStatistics,
    Termination,
)
from solvers.run import SolverRun
from solvers.secondary.balance import balance
from solvers.secondary.bring_home import bring_home
from solvers.secondary.search import Gpus, Ranking, Search
from solvers.secondary.starts import from_current, search_down
from twin.errors import InputError

# Of the budget, what the solver itself gets, where there are secondary objectives.
SHARE_OF_THE_SOLVER = 0.75
# Of what is left, for a way from the current placement to an objective as good as the solver's.
SHARE_OF_THE_WAY = 0.4

PHASES = {"moves": bring_home, "headroom": balance}


def secondary_of(problem: Problem) -> tuple[SecondaryName, ...]:
    """Return the secondary objectives of a problem: those that are given, or few moves where something is in place.

    Raises
    ------
    InputError
        When moves are to be few, and nothing is in place.
    """
    names = problem.secondary
    if names is None:
        return ("moves",) if problem.current else ()
    if "moves" in names and not problem.current:
        raise InputError(
            "the secondary objective `moves` needs to know what is in place. There is no current placement.",
            field="secondary",
            value=list(names),
            hint="give the plan that is in place with --current plan.json, or `current` in the problem file",
        )
    return names


class SecondaryObjectivesSolver:
    """A solver whose placements are changed for few moves or much headroom, at an objective that is no worse.

    Parameters
    ----------
    inner
        Asked first; all there is where a problem has no secondary objectives.
    """

    def __init__(self, inner: AnyObjectiveSolver) -> None:
        self.inner = inner

    @property
    def name(self) -> str:
        """Name in the registry."""
        return self.inner.name

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What the inner solver can do; about secondary objectives nothing is proven."""
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
        """Solve for the objective, then for the secondary ones; see `solvers.interface.Solver`.

        Raises
        ------
        InputError
            When some adapter fits no GPU alone, or moves are to be few and there is no current placement; or when
            there is one, and SciPy, which matches GPUs, is not installed.
        """
        if problem.current:
            # What a plan says of moves needs it, too.
            require_matcher()
        if not secondary_of(problem):
            return self.inner.solve(
                problem, surrogate, budget=budget, seed=seed, warm_start=warm_start, observer=observer
            )
        running = budget.start()

        def watch(incumbent: Incumbent) -> None:
            running.improve_from(incumbent.num_evaluations)
            if observer is not None:
                observer(incumbent)

        first = self.inner.solve(
            problem, surrogate, budget=_first_share(budget), seed=seed, warm_start=warm_start, observer=watch
        )
        if first.placement is None or first.termination is Termination.INTERRUPTED:
            return first
        used = first.statistics
        settled = _Settling(self.name, self.capabilities).solve(
            problem,
            surrogate,
            budget=running.remaining(used.num_evaluations),
            seed=seed,
            warm_start=first.placement,
            observer=observer,
        )
        return _together(problem, first, settled, runtime_s=running.elapsed_s)


def _first_share(budget: Budget) -> Budget:
    """Return the solver's own budget: a share of the time, and of the rows once it has a placement."""
    limits = [limit for limit in (budget.max_evaluations, budget.max_improving_evaluations) if limit is not None]
    share = budget.share(SHARE_OF_THE_SOLVER)
    improving = int(min(limits) * SHARE_OF_THE_SOLVER) if limits else None
    return Budget(share.seconds, budget.max_evaluations, improving)


def _together(problem: Problem, first: SolveResult, settled: SolveResult, *, runtime_s: float) -> SolveResult:
    """Return the settled placement with what the solver said about its own, which is no better."""
    assert first.evaluation is not None
    used, more = first.statistics, settled.statistics
    statistics = SolveStatistics(
        num_evaluations=used.num_evaluations + more.num_evaluations,
        num_calls=used.num_calls + more.num_calls,
        num_iterations=used.num_iterations + more.num_iterations,
        runtime_s=runtime_s,
    )
    is_cut_short = settled.termination is Termination.INTERRUPTED or first.termination is Termination.COMPLETED
    result = replace(
        first,
        statistics=statistics,
        termination=settled.termination if is_cut_short else first.termination,
        message=" ".join(text for text in (first.message, settled.message) if text),
    )
    if settled.evaluation is None:
        return result
    found, after = (objective_value(problem, it) for it in (first.evaluation, settled.evaluation))
    assert after <= (found[0] + COST_TOLERANCE, found[1]), (found, after)
    before = None if settled.placement == first.placement else first.placement
    return replace(result, placement=settled.placement, evaluation=settled.evaluation, before_secondary=before)


class _Settling:
    """The search for better secondary values, as a solver that starts from another one's placement."""

    def __init__(self, name: str, capabilities: frozenset[Capability]) -> None:
        self.name = name
        self.capabilities = capabilities

    @constrained
    def solve(
        self,
        problem: Problem,
        surrogate: Surrogate,
        *,
        budget: Budget,
        seed: int,
        warm_start: Placement,
        observer: Observer | None,
    ) -> SolveResult:
        """Return the best placement, or nothing new where the surrogate says something else when asked again."""
        kept = _with_limit_of(problem, warm_start, surrogate)
        run = SolverRun(kept, surrogate, budget, None)
        run.budget.improve_from(0)
        settled = _Settled(run, seed, warm_start.gpus)
        termination = Termination.COMPLETED
        try:
            settled.search()
            termination = run.exhausted() or Termination.COMPLETED
        except KeyboardInterrupt:
            termination = Termination.INTERRUPTED
        placement = Placement(settled.gpus)
        evaluation = evaluate(problem, placement, surrogate)
        if not evaluation.is_feasible:
            run.notes.append("The secondary objectives were dropped: predictions were not the same when asked again.")
            placement, evaluation = warm_start, evaluate(problem, warm_start, surrogate)
        statistics = run.statistics
        if observer is not None and placement != warm_start:
            try:
                observer(Incumbent(placement, evaluation, statistics.num_evaluations, statistics.runtime_s))
            except KeyboardInterrupt:
                termination = Termination.INTERRUPTED
        return SolveResult(
            solution=Solution.FEASIBLE,
            termination=termination,
            placement=placement,
            evaluation=evaluation,
            bound=None,
            statistics=statistics,
            message=" ".join(run.notes),
        )


def settled_gpus(problem: Problem, surrogate: Surrogate, gpus: Gpus, *, budget: Budget, seed: int) -> Gpus:
    """Return GPUs that are better in the secondary objectives, and no worse in the number or cost of GPUs.

    Parameters
    ----------
    problem, surrogate
        The surrogate accepts each GPU that is changed; it need not accept those that stay as they are.
    gpus
        A complete placement; groups that must be together are adapters of a merged problem.
    budget, seed
        Of the search.
    """
    settled = _Settled(SolverRun(problem, surrogate, budget, None), seed, gpus)
    settled.run.budget.improve_from(0)
    settled.search()
    return settled.gpus


class _Settled:
    """The search itself: `gpus` is the best placement at any time."""

    def __init__(self, run: SolverRun, seed: int, gpus: Gpus) -> None:
        self.run = run
        self.seed = seed
        self.gpus = gpus
        self.names = secondary_of(run.problem)
        self.ranking = Ranking(run, self.names, current_fleet(run.problem))
        self.generator = np.random.default_rng(seed)

    def search(self) -> None:
        """Start from the better of what was found and what is in place; then improve one objective after the other."""
        last = len(self.names) - 1
        if "moves" in self.names and self.run.exhausted() is None:
            for start in self._near_current():
                self.gpus = min(self.gpus, start, key=lambda gpus: self.ranking.rank(gpus, last))
        for phase, name in enumerate(self.names):
            if self.run.exhausted() is not None:
                return
            search = Search(self.ranking, phase, self.gpus, self.generator)
            try:
                PHASES[name](search)
            finally:
                self.gpus = search.gpus

    def _near_current(self) -> list[Gpus]:
        """Return placements near the current one; also one with as few GPUs as were found, if there is a way there."""
        run = self.run
        starts = from_current(run, self.ranking.current)
        goal = self.ranking.primary(self.gpus)
        left = run.budget.remaining(run.model.num_evaluations).share(SHARE_OF_THE_WAY)
        if not starts or run.exhausted() is not None or min(map(self.ranking.primary, starts)) <= goal:
            return starts
        found, rows, _ = search_down(run.problem, run.surrogate, starts[-1], goal, budget=left, seed=self.seed)
        run.model.num_evaluations += rows
        return starts if found is None else [*starts, found]


def _with_limit_of(problem: Problem, placement: Placement, surrogate: Surrogate) -> Problem:
    """Return a problem that counts GPUs or costs; where latency is the objective, under the one that was reached."""
    if problem.objective != "lowest_latency":
        return problem
    reached_s, _ = objective_value(problem, evaluate(problem, placement, surrogate))
    limits = problem.limits.model_copy(update={problem.latency_metric: 1000.0 * reached_s})
    limited = replace(problem.unmerged, objective="fewest_gpus", limits=limits)
    return limited if problem.merging is None else merged_problem(limited)
