"""What exact methods say at their end: the optimum with its bound, or why there is no proof."""

from __future__ import annotations

from solvers.integer_objective import integer_objective
from solvers.placement import Placement
from solvers.result import Bound, Termination
from solvers.run import SolverRun

NO_PLACEMENT = "No placement exists: the GPUs that `max_count` allows cannot hold all adapters."
UNREPEATABLE = "Nothing was proven: the surrogate's predictions were not the same when asked again."
UNPLANNED_SLOTS = "Nothing was proven: the best placement uses slots that planning does not try by itself."


def proven(run: SolverRun, placement: Placement, proof: str) -> tuple[Termination, Bound | None]:
    """Record what an exact method found to be the optimum; return why the search ended and what is proven about it.

    Nothing is proven when the evaluator does not agree, or knows something better.
    """
    objective = integer_objective(run.problem)
    if not run.record(placement):
        run.notes.append(UNREPEATABLE)
        return Termination.COMPLETED, None
    assert run.incumbent is not None
    if objective.weight(run.incumbent.placement) < objective.weight(placement):
        run.notes.append(UNPLANNED_SLOTS)
        return Termination.COMPLETED, None
    return Termination.PROVEN, objective.bound(objective.weight(placement), proof)
