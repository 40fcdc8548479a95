"""A first placement for solvers that improve or prove: that of best fit."""

from __future__ import annotations

from solvers.budget import Budget
from solvers.packing import PackingSolver
from solvers.placement import Placement
from solvers.result import Incumbent, Termination
from solvers.run import SolverRun


def seed_with_best_fit(run: SolverRun, budget: Budget, warm_start: Placement | None) -> Termination | None:
    """Let best fit record its placements, and the warm start's, in `run`; return why there is nothing left to spend.

    Parameters
    ----------
    run
        Has spent nothing yet.
    budget
        Of the whole run.
    warm_start
        Where best fit may begin.

    Raises
    ------
    InputError
        When some adapter fits no GPU alone, or the warm start is not a placement of this problem.
    """

    def record(incumbent: Incumbent) -> None:
        run.model.num_evaluations = incumbent.num_evaluations
        run.record(incumbent.placement)

    result = PackingSolver("bfd").solve(
        run.problem, run.surrogate, budget=budget, warm_start=warm_start, observer=record
    )
    run.model.num_evaluations = result.statistics.num_evaluations
    run.num_iterations += result.statistics.num_iterations
    if result.message and (result.placement is not None or result.termination is Termination.COMPLETED):
        run.notes.append(result.message)
    return None if result.termination is Termination.COMPLETED else result.termination
