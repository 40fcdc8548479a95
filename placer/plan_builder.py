"""Turn the outcome of planning into a plan: names, predictions, verdicts, bound, gap, warnings, provenance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from placer.plan_document import (
    AdapterShare,
    LowerBound,
    Plan,
    PlanConfiguration,
    PlanMoves,
    PlannedGpu,
    Prediction,
    RankCount,
    RepairSummary,
    SolutionName,
    TerminationName,
    Timings,
    Verdict,
    Verification,
)
from placer.provenance import describe_surrogate, plan_inputs, software_versions
from placer.stability import instabilities
from placer.surrogates import SURROGATE_TOLERANCE, parts_of, uses_simulation
from placer.unmeasured import unmeasured_warnings
from placer.verify import TwinSettings
from predictors.onnx_surrogate import OnnxSurrogate
from predictors.provenance import profile_fingerprint
from predictors.surrogate import Surrogate
from solvers.budget import Budget
from solvers.current import Moves, moves_of
from solvers.feasibility import FeasibilityModel
from solvers.headroom import COARSE_FACTORS, FINE_FACTORS, headrooms
from solvers.objective import GpuEvaluation, evaluate
from solvers.placement import GpuAssignment, Placement, replica_of_gpu
from solvers.problem import Problem
from solvers.result import Bound
from solvers.secondary.solver import secondary_of

# An accepted GPU is called overloaded when it misses more than this share of its load and requests wait this long.
OVERLOAD_SHARE = 0.02
OVERLOAD_TTFT_S = 10.0


@dataclass(frozen=True)
class PlanParts:
    """Everything that a plan is built from.

    Attributes
    ----------
    surrogate
        Without margin and threshold.
    gpus
        A complete placement, or nothing.
    known
        Returns the twin's verdict about a GPU, if there is one.
    """

    problem: Problem
    surrogate: Surrogate
    solver: str
    budget: Budget
    margin: float
    risk: float | None
    threshold: float
    settings: TwinSettings
    max_repair_rounds: int
    is_improved: bool
    gpus: tuple[GpuAssignment, ...]
    known: Callable[[GpuAssignment], Verification | None]
    repair: RepairSummary
    solution: SolutionName
    termination: TerminationName
    message: str
    bound: Bound
    solver_evaluations: int
    solver_calls: int
    surrogate_bound: Bound | None = None


def build_plan(parts: PlanParts, timings: Callable[[], Timings]) -> Plan:
    """Return the plan; `timings` is asked last."""
    moves = moves_of(parts.problem, parts.gpus) if parts.problem.current and parts.gpus else None
    gpus = _planned_gpus(parts, moves)
    bound = parts.bound
    cost = sum(parts.problem.gpu_types[gpu.gpu_type].cost_per_hour for gpu in parts.gpus)
    return Plan(
        verdict=_verdict(gpus),
        solution=parts.solution,
        termination=parts.termination,
        message=parts.message,
        num_gpus=len(gpus),
        cost_per_hour=cost,
        lower_bound=_lower_bound(bound),
        surrogate_bound=None if parts.surrogate_bound is None else _lower_bound(parts.surrogate_bound),
        gap=round((len(gpus) - bound.value) / len(gpus), 6) if gpus else None,
        cost_gap=_cost_gap(parts.problem, cost, bound),
        gpus=gpus,
        moves=None if moves is None else _moves(parts.problem, moves),
        repair=parts.repair,
        solver_evaluations=parts.solver_evaluations,
        solver_calls=parts.solver_calls,
        warnings=_warnings(parts, gpus),
        seed=parts.settings.seed,
        configuration=_configuration(parts),
        inputs=plan_inputs(parts.problem, parts.surrogate),
        versions=software_versions(),
        timings=timings(),
    )


def _lower_bound(bound: Bound) -> LowerBound:
    return LowerBound(value=bound.value, proof=bound.proof, model=bound.model, cost_per_hour=bound.cost_per_hour)


def _cost_gap(problem: Problem, cost: float, bound: Bound) -> float | None:
    """Return (cost - bound) / cost of a plan that is to cost little; None without a bound, or where all is free."""
    if problem.objective != "least_cost" or bound.cost_per_hour is None or cost <= 0.0:
        return None
    return round((cost - bound.cost_per_hour) / cost, 6)


def _moves(problem: Problem, moves: Moves) -> PlanMoves:
    return PlanMoves(
        num_gpus_before=len(problem.current),
        num_placed=moves.num_placed,
        num_moved=moves.num_moved,
        share=round(moves.num_moved / moves.num_placed, 6) if moves.num_placed else 0.0,
        num_new=moves.num_new,
        loaded_mib=round(moves.loaded_bytes / 2**20, 3),
    )


def _planned_gpus(parts: PlanParts, moves: Moves | None) -> tuple[PlannedGpu, ...]:
    """Describe the GPUs, by type and by offered load, descending."""
    problem = parts.problem
    if not parts.gpus:
        return ()

    def order(gpu: GpuAssignment) -> tuple[int, float, tuple[int, ...]]:
        return gpu.gpu_type, -sum(problem.adapters[index].offered_tps for index in gpu.adapters), gpu.adapters

    gpus = sorted(parts.gpus, key=order)
    evaluation = evaluate(problem, Placement(tuple(gpus)), parts.surrogate)
    # After Ctrl-C nobody wants to wait for more simulations.
    is_asked = parts.termination != "interrupted" or not uses_simulation(parts.surrogate)
    factors = COARSE_FACTORS if uses_simulation(parts.surrogate) else FINE_FACTORS
    model = FeasibilityModel(problem, parts.surrogate)
    room = headrooms(model, gpus, factors) if is_asked else [None] * len(gpus)
    before = {} if moves is None else dict(zip(parts.gpus, moves.matched, strict=True))
    numbers: Counter[int] = Counter()
    planned = []
    for gpu, predicted, headroom in zip(gpus, evaluation.gpus, room, strict=True):
        name = f"{problem.gpu_types[gpu.gpu_type].name}-{numbers[gpu.gpu_type]}"
        numbers[gpu.gpu_type] += 1
        verification = parts.known(gpu)
        described = _planned_gpu(problem, gpu, name, predicted, headroom=headroom, verification=verification)
        planned.append(described.model_copy(update={"current": _current_name(problem, before.get(gpu))}))
    return tuple(planned)


def _current_name(problem: Problem, position: int | None) -> str | None:
    """Return how a GPU that is in place is called."""
    return None if position is None else problem.current[position].name or f"#{position}"


def _planned_gpu(
    problem: Problem,
    gpu: GpuAssignment,
    name: str,
    predicted: GpuEvaluation,
    *,
    headroom: float | None,
    verification: Verification | None,
) -> PlannedGpu:
    ranks = Counter(problem.adapters[index].rank for index in gpu.adapters)
    return PlannedGpu(
        name=name,
        gpu_type=problem.gpu_types[gpu.gpu_type].name,
        adapters=tuple(problem.told_name(index) for index in gpu.adapters),
        shares=shares_of(problem, gpu.adapters),
        ranks=tuple(RankCount(rank=rank, num_adapters=count) for rank, count in sorted(ranks.items())),
        engine=replica_of_gpu(problem, gpu).engine,
        kv_tokens=predicted.kv_tokens,
        offered_tps=predicted.offered_tps,
        predicted=Prediction(
            throughput_tps=predicted.throughput_tps,
            throughput_ratio=predicted.throughput_ratio,
            starvation_probability=predicted.starvation_probability,
            itl_p95_s=predicted.itl_s,
            ttft_p95_s=predicted.ttft_s,
            is_outside_domain=predicted.is_outside_domain,
        ),
        headroom=headroom,
        verification=verification,
    )


def shares_of(problem: Problem, adapters: Sequence[int]) -> tuple[AdapterShare, ...]:
    """Return what a GPU gets of adapters that are on others, too."""
    shares = problem.shares
    if shares is None:
        return ()
    return tuple(
        AdapterShare(adapter=problem.told_name(index), share=shares.size_of(index), replica=shares.number_of(index))
        for index in adapters
        if shares.size_of(index) < 1.0
    )


def _verdict(gpus: tuple[PlannedGpu, ...]) -> Verdict:
    if not gpus:
        return "none"
    if any(gpu.verification is not None and not gpu.verification.is_accepted for gpu in gpus):
        return "rejected"
    return "unverified" if any(gpu.verification is None for gpu in gpus) else "accepted"


def _configuration(parts: PlanParts) -> PlanConfiguration:
    problem = parts.problem
    return PlanConfiguration(
        model=problem.model.name,
        gpu_types=tuple(gpu_type.name for gpu_type in problem.gpu_types),
        profiles=tuple(profile.name for profile in problem.profiles),
        engine=problem.engine,
        max_num_seqs_options=problem.max_num_seqs_options,
        fixed_max_loras=problem.fixed_max_loras,
        fixed_max_lora_rank=problem.fixed_max_lora_rank,
        objective=problem.objective,
        limits=problem.limits,
        latency_metric=problem.latency_metric,
        uncertainty=problem.uncertainty,
        scenarios=problem.scenarios,
        constraints=problem.constraints,
        secondary=secondary_of(problem),
        replication=problem.told.replication,
        solver=parts.solver,
        surrogate=describe_surrogate(parts.surrogate),
        margin=parts.margin,
        risk=parts.risk,
        threshold=parts.threshold,
        budget_s=parts.budget.seconds,
        max_evaluations=parts.budget.max_evaluations,
        max_improving_evaluations=parts.budget.max_improving_evaluations,
        verification_engine=parts.settings.engine,
        horizon_s=parts.settings.horizon_s,
        warmup_s=parts.settings.warmup_s,
        max_repair_rounds=parts.max_repair_rounds,
        is_improved=parts.is_improved,
    )


def _warnings(parts: PlanParts, gpus: tuple[PlannedGpu, ...]) -> tuple[str, ...]:
    """Return what a reader of the numbers must know."""
    warnings = [*unmeasured_warnings(parts.problem.profiles)]
    outside = [gpu.name for gpu in gpus if gpu.predicted.is_outside_domain]
    if outside:
        warnings.append(
            f"The surrogate was asked outside of what it was fitted on for {', '.join(outside)}: "
            "believe the simulation there, not the prediction."
        )
    problem = parts.problem
    own = [rule.starvation_tolerance for rule in problem.constraints.limits if rule.starvation_tolerance is not None]
    tolerance = min([problem.limits.starvation_tolerance, *own])
    if tolerance != SURROGATE_TOLERANCE and not uses_simulation(parts.surrogate):
        warnings.append(
            f"Surrogates predict starvation for a tolerance of {SURROGATE_TOLERANCE:g}; this problem asks for "
            f"{tolerance:g}, which only the simulation checks."
        )
    pairs = zip(parts_of(parts.surrogate), parts.problem.profiles, strict=False)
    for surrogate, profile in pairs:
        if not isinstance(surrogate, OnnxSurrogate) or surrogate.profile_fingerprint is None:
            continue
        if surrogate.profile_fingerprint != profile_fingerprint(profile):
            warnings.append(
                f"The surrogate was distilled from other numbers of the profile {profile.name!r}: its predictions may "
                "be off; the simulation uses the profile as it is."
            )
    warnings += _given_back(problem)
    warnings += [_overload(gpu.name, verdict) for gpu in gpus if _is_overloaded(verdict := gpu.verification)]
    warnings += instabilities([(gpu.name, gpu.verification) for gpu in gpus], margin=parts.margin)
    unverified = [gpu.name for gpu in gpus if gpu.verification is None]
    if unverified:
        warnings.append(f"Not simulated: {', '.join(unverified)}.")
    return tuple(warnings)


def _given_back(problem: Problem) -> list[str]:
    """Return which GPUs in place are of no type of the problem, if there are any."""
    offered = {gpu_type.name for gpu_type in problem.gpu_types}
    gone = [
        f"{gpu.name or f'#{position}'} ({gpu.gpu_type})"
        for position, gpu in enumerate(problem.current)
        if gpu.gpu_type not in offered
    ]
    if not gone:
        return []
    message = (
        f"In place are GPUs of a type that the problem does not offer: {', '.join(gone)}. The plan gives them back, "
        "and their adapters count as moved."
    )
    return [message]


def _is_overloaded(verdict: Verification | None) -> TypeGuard[Verification]:
    """Return whether an accepted GPU serves less than arrives: the tolerance allows it, and its queue grows."""
    return (
        verdict is not None
        and verdict.is_accepted
        and verdict.throughput_ratio < 1.0 - OVERLOAD_SHARE
        and verdict.ttft_p95_s is not None
        and verdict.ttft_p95_s > OVERLOAD_TTFT_S
    )


def _overload(name: str, verdict: Verification) -> str:
    assert verdict.ttft_p95_s is not None
    return (
        f"{name} serves {verdict.throughput_ratio:.1%} of what arrives, which `starvation_tolerance` allows: its queue "
        f"grows, TTFT p95 is {verdict.ttft_p95_s:,.0f} s. A smaller tolerance, or `ttft_p95_ms`, refuses such a GPU."
    )
