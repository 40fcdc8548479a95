"""Secondary objectives after the repair: what the twin made the plan change may be served better once more."""

from __future__ import annotations

from placer.repair import Fleet
from placer.verify import TwinVerifier
from predictors.surrogate import Surrogate
from solvers.budget import Budget
from solvers.problem import Problem
from solvers.secondary.solver import settled_gpus

# Of the solver's budget.
SHARE = 0.25


def settle(problem: Problem, surrogate: Surrogate, verifier: TwinVerifier, fleet: Fleet, *, budget: Budget) -> None:
    """Change a fleet for its secondary objectives, if the twin accepts every GPU that is then another one.

    Parameters
    ----------
    problem, surrogate
        What is planned, and who is asked first, with the plan's margin, threshold and uncertain rates.
    verifier
        The twin; a fleet of which it rejects a GPU is left as it is.
    fleet
        Its GPUs are replaced.
    budget
        Of the solver; the search gets a share of it.
    """
    if not all(verifier.accepts(gpu) for gpu in fleet.gpus):
        return
    gpus = settled_gpus(problem, surrogate, fleet.gpus, budget=budget.share(SHARE), seed=verifier.settings.seed)
    if gpus != fleet.gpus and all(verdict.is_accepted for verdict in verifier.verify(gpus)):
        fleet.gpus = gpus
