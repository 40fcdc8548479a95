"""Whether surrogate and twin agree about an adapter that is alone on a GPU: if not, the surrogate must go."""

from __future__ import annotations

from placer.surrogates import uses_simulation
from placer.verify import TwinVerifier
from predictors.surrogate import Surrogate
from solvers.alone import UnplaceableError
from solvers.bounds import adapter_work, unavoidable_costs
from solvers.placement import GpuAssignment
from solvers.problem import Problem
from twin.errors import SurrogateError

# Unavoidable work of one adapter, in GPUs, about which the twin is not asked: its verdict is clear.
HOPELESS_GPUS = 2.0
ASK_THE_TWIN_HINT = "ask the twin itself, with the surrogate `exact`"
LARGER_RISK_HINT = f"allow a larger risk, or {ASK_THE_TWIN_HINT}"
# The twin disagrees with itself over another horizon.
NEAR_A_LIMIT_HINT = (
    "alone on a GPU it is at a limit, where the margin and the simulated time decide: lower the margin or its rate, "
    "give it a larger GPU, or loosen the limits"
)


def require_agreement(
    error: UnplaceableError, problem: Problem, surrogate: Surrogate, verifier: TwinVerifier, *, risk: float | None
) -> None:
    """Raise SurrogateError if `error` is about an adapter that the surrogate rejects alone and the twin accepts.

    Parameters
    ----------
    error
        What a solver found of the problem.
    problem, surrogate, verifier
        The surrogate without margin and threshold.
    risk
        With which the surrogate was asked.
    """
    adapter = error.adapters[0]
    if problem.merging is not None:
        adapter = int(problem.merging.item_of[adapter])
    if _is_beyond_doubt(problem, adapter):
        return
    rank = problem.fixed_max_lora_rank or problem.adapters[adapter].rank
    alone = [
        GpuAssignment(gpu_type, (adapter,), problem.fixed_max_loras or 1, rank)
        for gpu_type in range(len(problem.gpu_types))
        if problem.may_serve(gpu_type, adapter)
    ]
    if any(verdict.is_accepted for verdict in verifier.verify(alone)):
        raise SurrogateError(
            f"the surrogate must agree with the twin about an adapter that is alone on a GPU. It rejects "
            f"{problem.adapters[adapter].name!r}, which the twin accepts: {error.message}",
            field=error.field,
            value=error.value,
            hint=_hint(surrogate, risk),
        ) from error


def _hint(surrogate: Surrogate, risk: float | None) -> str:
    if uses_simulation(surrogate):
        return NEAR_A_LIMIT_HINT
    return ASK_THE_TWIN_HINT if risk is None else LARGER_RISK_HINT


def _is_beyond_doubt(problem: Problem, adapter: int) -> bool:
    """Return whether an adapter is so far above one GPU that the twin must reject it: simulating it would take long."""
    if problem.workload.phases:
        return False
    types = range(len(problem.gpu_types))
    work = min(float(adapter_work(problem, unavoidable_costs(problem, index))[adapter]) for index in types)
    return work * (1.0 - problem.limits.starvation_tolerance) > HOPELESS_GPUS
