"""The one evaluator: what a placement costs, and what the surrogate says about each of its GPUs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from predictors.surrogate import Surrogate
from solvers.acceptance import violations
from solvers.feasibility import FeasibilityModel
from solvers.placement import Placement, validate_placement
from solvers.problem import Problem


@dataclass(frozen=True)
class GpuEvaluation:
    """One GPU of a placement, as predicted.

    Attributes
    ----------
    offered_tps
        Prompt + output tokens per second that arrive.
    kv_tokens
        KV capacity in tokens.
    throughput_ratio, starvation_probability, throughput_tps, itl_s, ttft_s
        The surrogate's predictions; see `SurrogateOutput`.
    is_outside_domain
        The surrogate was asked outside of what it was fitted on: believe the twin only.
    violations
        What is not kept, in words; empty: the GPU is feasible.
    """

    gpu_type: int
    num_adapters: int
    max_loras: int
    max_lora_rank: int
    kv_tokens: int
    offered_tps: float
    throughput_ratio: float
    starvation_probability: float
    throughput_tps: float
    itl_s: float
    ttft_s: float
    is_outside_domain: bool
    violations: tuple[str, ...]


@dataclass(frozen=True)
class Evaluation:
    """A placement, as predicted; `is_feasible`: no GPU has a violation."""

    num_gpus: int
    cost_per_hour: float
    is_feasible: bool
    gpus: tuple[GpuEvaluation, ...]


def evaluate(problem: Problem, placement: Placement, surrogate: Surrogate) -> Evaluation:
    """Evaluate `placement` from scratch: counts, costs, and one batch of questions to `surrogate`.

    Raises
    ------
    InputError
        When the placement is not valid (see `validate_placement`).
    """
    validate_placement(problem, placement)
    model = FeasibilityModel(problem, surrogate)
    gpus = placement.gpus
    rows = np.array([problem.aggregates[list(gpu.adapters)].sum(axis=0) for gpu in gpus])
    settings = model.settings_of(gpus)
    output = model.predict(rows, settings, members=[gpu.adapters for gpu in gpus])
    outside = model.outside_domain(rows, settings)
    broken = violations(model.limits_of(rows), output)
    evaluations = tuple(
        GpuEvaluation(
            gpu_type=gpu.gpu_type,
            num_adapters=len(problem.members_of(gpu.adapters)),
            max_loras=gpu.max_loras,
            max_lora_rank=gpu.max_lora_rank,
            kv_tokens=int(settings.kv_tokens[index]),
            offered_tps=sum(problem.adapters[adapter].offered_tps for adapter in gpu.adapters),
            throughput_ratio=float(output.throughput_ratio[index]),
            starvation_probability=float(output.starvation_probability[index]),
            throughput_tps=float(output.throughput_tps[index]),
            itl_s=float(output.itl_s[index]),
            ttft_s=float(output.ttft_s[index]),
            is_outside_domain=bool(outside[index]),
            violations=broken[index],
        )
        for index, gpu in enumerate(gpus)
    )
    return Evaluation(
        num_gpus=placement.num_gpus,
        cost_per_hour=sum(problem.gpu_types[gpu.gpu_type].cost_per_hour for gpu in gpus),
        is_feasible=all(not gpu.violations for gpu in evaluations),
        gpus=evaluations,
    )


def objective_value(problem: Problem, evaluation: Evaluation) -> tuple[float, float]:
    """Return what the problem's objective minimises, and what breaks ties; smaller is better.

    Numbers of GPUs, costs per hour, or the largest predicted latency of all GPUs in seconds.
    """
    if problem.objective == "lowest_latency":
        by_itl = problem.latency_metric == "itl_p95_ms"
        return max(gpu.itl_s if by_itl else gpu.ttft_s for gpu in evaluation.gpus), float(evaluation.num_gpus)
    if problem.objective == "least_cost":
        return evaluation.cost_per_hour, float(evaluation.num_gpus)
    return float(evaluation.num_gpus), evaluation.cost_per_hour
