"""What a solver answers: what it has, why it stopped, what was proven, and how much work it was."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from solvers.objective import Evaluation
from solvers.placement import Placement
from solvers.problem_file import ObjectiveName

# Costs per hour that differ by less are the same sum, rounded differently.
COST_TOLERANCE = 1e-6


class Solution(Enum):
    """What a solver has."""

    NONE = "none"
    """No placement that the surrogate accepts."""
    FEASIBLE = "feasible"
    """A placement that the surrogate accepts; nothing is said about better ones."""
    OPTIMAL = "optimal"
    """A placement that the surrogate accepts, with a proof that no better one exists in the model of the bound."""


class Termination(Enum):
    """Why a solver stopped."""

    PROVEN = "proven"
    """Optimality or infeasibility was proven."""
    GAP_REACHED = "gap_reached"
    """The requested gap between objective and bound was reached."""
    TIME_LIMIT = "time_limit"
    """The budget's seconds are spent."""
    ITERATION_LIMIT = "iteration_limit"
    """The budget's evaluations or iterations are spent."""
    INTERRUPTED = "interrupted"
    """Ctrl-C."""
    ERROR = "error"
    """A native library failed."""
    COMPLETED = "completed"
    """A heuristic came to its end: it has nothing more to try and proves nothing."""


@dataclass(frozen=True)
class Bound:
    """A proven lower bound.

    Attributes
    ----------
    value
        Fewest GPUs of any placement.
    proof
        What proves it: ``"work"``, ``"farley"``, ...
    model
        Whose problem it bounds: the surrogate's, or the twin's.
    cost_per_hour
        Least cost of any placement; ``None``: nothing was proven about it.
    """

    value: int
    proof: str
    model: Literal["surrogate", "twin"]
    cost_per_hour: float | None = None

    def proves(self, evaluation: Evaluation, objective: ObjectiveName) -> bool:
        """Return whether no placement can be better than `evaluation` in what `objective` minimises."""
        if objective == "lowest_latency":
            return False
        if objective == "least_cost":
            return self.cost_per_hour is not None and evaluation.cost_per_hour <= self.cost_per_hour + COST_TOLERANCE
        return evaluation.num_gpus <= self.value


@dataclass(frozen=True)
class SolveStatistics:
    """How much work a solve was.

    Attributes
    ----------
    num_evaluations
        Rows that the surrogate was asked for while searching.
    runtime_s
        Wall time; the only number here that differs between equal runs.
    num_iterations
        Steps of the algorithm, as it counts them.
    num_calls
        Batches in which the rows were asked for.
    """

    num_evaluations: int
    runtime_s: float
    num_iterations: int
    num_calls: int = 0


@dataclass(frozen=True)
class Incumbent:
    """The best placement so far, as observers see it."""

    placement: Placement
    evaluation: Evaluation
    num_evaluations: int
    runtime_s: float


@dataclass(frozen=True)
class SolveResult:
    """A solver's answer on two axes: what it has, and why it stopped.

    Attributes
    ----------
    placement, evaluation
        Both are there unless `solution` is NONE; the evaluation is the one evaluator's.
    bound
        ``None`` when the solver proved nothing.
    message
        One or two sentences for the user: why there is no placement, or what was ignored. May be empty.
    before_secondary
        What the solver had found before its placement was changed for secondary objectives; ``None``: it was not.
    """

    solution: Solution
    termination: Termination
    placement: Placement | None
    evaluation: Evaluation | None
    bound: Bound | None
    statistics: SolveStatistics
    message: str = ""
    before_secondary: Placement | None = None

    def __post_init__(self) -> None:
        """Assert that the two axes agree with what is given."""
        assert (self.solution is Solution.NONE) == (self.placement is None) == (self.evaluation is None)
        assert self.evaluation is None or self.evaluation.is_feasible
        assert self.solution is not Solution.OPTIMAL or self.bound is not None
