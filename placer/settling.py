"""Secondary objectives after the repair: what the twin made the plan change may be served better once more."""

from __future__ import annotations

from collections.abc import Sequence

from placer.repair import Fleet
from placer.verify import TwinVerifier
from predictors.surrogate import Surrogate
from solvers.budget import Budget
from solvers.problem import Problem
from solvers.secondary.solver import settled_gpus

# Of the solver's budget, for each of the surrogates.
SHARE = 0.25
# Surrogates that are asked at most: every one may cost a simulation for each GPU.
STEPS_TRIED = 3


def settle(
    problem: Problem, surrogates: Sequence[Surrogate], verifier: TwinVerifier, fleet: Fleet, *, budget: Budget
) -> None:
    """Change a fleet for its secondary objectives, if the twin accepts every GPU that is then another one.

    Parameters
    ----------
    problem, surrogates
        What is planned, and who is asked before the twin: each accepts less than the one before, and is asked where the
        twin has rejected a GPU that the one before accepts.
    verifier
        The twin; a fleet of which it rejects a GPU is left as it is.
    fleet
        Its GPUs are replaced.
    budget
        Of the solver; the search gets a share of it.
    """
    if not all(verifier.accepts(gpu) for gpu in fleet.gpus):
        return
    for surrogate in surrogates[:STEPS_TRIED]:
        gpus = settled_gpus(problem, surrogate, fleet.gpus, budget=budget.share(SHARE), seed=verifier.settings.seed)
        if all(verdict.is_accepted for verdict in verifier.verify(gpus)):
            fleet.gpus = gpus
            return
