"""One run of a solver: its budget, its best placement so far, and the result that it ends with."""

from __future__ import annotations

from predictors.surrogate import Surrogate
from solvers.budget import Budget
from solvers.feasibility import FeasibilityModel
from solvers.interface import Observer
from solvers.objective import evaluate, objective_value
from solvers.placement import Placement
from solvers.problem import Problem
from solvers.result import Bound, Incumbent, Solution, SolveResult, SolveStatistics, Termination

_ENDED = {
    Termination.TIME_LIMIT: "The time was over",
    Termination.ITERATION_LIMIT: "The evaluations were spent",
    Termination.INTERRUPTED: "The search was interrupted",
}


class SolverRun:
    """The state that every solver shares while it searches.

    Attributes
    ----------
    model
        Counts the evaluations of the search.
    incumbent
        The best placement so far; ``None``: none yet.
    budget
        What of it is left.
    num_placed
        Adapters placed by the construction in progress, for the message when it is cut short.
    num_iterations
        Steps of the algorithm, as it counts them.
    notes
        Sentences for the result's message.
    """

    def __init__(self, problem: Problem, surrogate: Surrogate, budget: Budget, observer: Observer | None) -> None:
        self.problem = problem
        self.surrogate = surrogate
        self.model = FeasibilityModel(problem, surrogate)
        self.incumbent: Incumbent | None = None
        self.num_placed = 0
        self.num_iterations = 0
        self.notes: list[str] = []
        self.budget = budget.start()
        self._observer = observer

    def exhausted(self) -> Termination | None:
        """Return why to stop now, or ``None``."""
        return self.budget.exhausted(self.model.num_evaluations)

    def record(self, placement: Placement) -> bool:
        """Evaluate `placement`; keep and report it if feasible and better than the incumbent; return if feasible."""
        evaluation = evaluate(self.problem, placement, self.surrogate)
        if not evaluation.is_feasible:
            return False
        self.budget.improve_from(self.model.num_evaluations)
        value = objective_value(self.problem, evaluation)
        if self.incumbent is None or value < objective_value(self.problem, self.incumbent.evaluation):
            self.incumbent = Incumbent(placement, evaluation, self.model.num_evaluations, self.budget.elapsed_s)
            if self._observer is not None:
                self._observer(self.incumbent)
        return True

    @property
    def statistics(self) -> SolveStatistics:
        """What was asked so far, and how long it took."""
        return SolveStatistics(
            num_evaluations=self.model.num_evaluations,
            num_calls=self.model.num_calls,
            runtime_s=self.budget.elapsed_s,
            num_iterations=self.num_iterations,
        )

    def result(self, termination: Termination, bound: Bound | None = None) -> SolveResult:
        """Return the incumbent, optimal if `bound` proves it, or an honest nothing, with why the search stopped."""
        incumbent = self.incumbent
        solution = Solution.NONE
        if incumbent is not None:
            is_proven = bound is not None and bound.proves(incumbent.evaluation, self.problem.objective)
            solution = Solution.OPTIMAL if is_proven else Solution.FEASIBLE
        if incumbent is None and termination in _ENDED:
            self.notes.append(
                f"{_ENDED[termination]} with {self.num_placed} of {len(self.problem.adapters)} adapters placed"
                f"{'' if self.problem.merging is None else ' (a group that must be together counts as one)'}, "
                f"which is no answer: a plan must place them all.{self._pace(termination)}"
            )
        return SolveResult(
            solution=solution,
            termination=termination,
            placement=None if incumbent is None else incumbent.placement,
            evaluation=None if incumbent is None else incumbent.evaluation,
            bound=bound,
            statistics=self.statistics,
            message=" ".join(self.notes),
        )

    def _pace(self, termination: Termination) -> str:
        """Return how long all adapters would take at the pace so far, where time was short."""
        if termination is not Termination.TIME_LIMIT or not self.num_placed:
            return ""
        needed_s = self.budget.elapsed_s * len(self.problem.adapters) / self.num_placed
        return f" At that pace all of them need {needed_s:,.0f} s, and more GPUs make it slower."
