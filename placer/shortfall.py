"""How far so many GPUs get when nobody found that they are enough, or proved that they are not."""

from __future__ import annotations

import numpy as np

from placer.surrogates import inflated
from placer.why_not_document import CrowdedGpu, GpuRecord, Shortfall
from predictors.capacity import gpu_demands
from predictors.features import AGGREGATE_NAMES
from predictors.surrogate import Surrogate
from solvers.budget import RunningBudget
from solvers.crowding import crowd
from solvers.feasibility import FeasibilityModel
from solvers.objective import GpuEvaluation, evaluate
from solvers.packing import PackingSolver
from solvers.placement import GpuAssignment, Placement, replica_of_gpu
from solvers.problem import Problem
from solvers.result import Termination
from twin.errors import InputError


def shortfall(
    problem: Problem, surrogate: Surrogate, num_gpus: int, *, placement: Placement | None, budget: RunningBudget
) -> Shortfall | None:
    """Put all adapters on so many GPUs, and find at which share of the rates they would do.

    Parameters
    ----------
    problem, surrogate
        The surrogate with any margin.
    num_gpus
        At least 1.
    placement
        The best that is known, on more GPUs.
    budget
        When to stop; questions about the crowded GPUs are asked in any case.

    Returns
    -------
    ``None`` where some crowded GPU would not even start.
    """
    model = FeasibilityModel(problem, surrogate)
    crowded = crowd(model, num_gpus, placement=placement, budget=budget)
    if crowded is None:
        return None
    position = int(np.argmax(crowded.pressure))
    evaluated = evaluate(problem, crowded.placement, surrogate)
    worst = None
    if evaluated.gpus[position].violations:
        worst = _crowded(problem, crowded.placement.gpus[position], evaluated.gpus[position])
    return Shortfall(
        num_gpus=crowded.placement.num_gpus,
        num_accepted=int(crowded.is_accepted.sum()),
        worst=worst,
        served_share=_served_share(problem, surrogate, num_gpus, budget),
    )


def gpu_record(problem: Problem, gpu: GpuAssignment) -> GpuRecord:
    """Return a GPU by the names of its type and adapters."""
    return GpuRecord(
        gpu_type=problem.gpu_types[gpu.gpu_type].name,
        adapters=tuple(problem.adapters[index].name for index in gpu.adapters),
        max_loras=gpu.max_loras,
        max_lora_rank=gpu.max_lora_rank,
    )


def _crowded(problem: Problem, gpu: GpuAssignment, evaluated: GpuEvaluation) -> CrowdedGpu:
    """Describe a GPU that is refused."""
    replica = replica_of_gpu(problem, gpu)
    row = problem.aggregates[list(gpu.adapters)].sum(axis=0)
    rows = row[np.newaxis, : len(AGGREGATE_NAMES)]
    if problem.scenarios is not None:
        # Those that every GPU must serve, where there is any.
        rows = problem.scenario_rows(row[np.newaxis])
        rows = rows[problem.scenarios.binding] if problem.scenarios.binding else rows
    asked = [gpu_demands(one, replica, kv_tokens=evaluated.kv_tokens) for one in rows]
    demands = max(asked, key=lambda demand: max(demand.values()))
    return CrowdedGpu(
        gpu=gpu_record(problem, gpu),
        violations=evaluated.violations,
        throughput_ratio=evaluated.throughput_ratio,
        starvation_probability=evaluated.starvation_probability,
        demands={name: round(value, 4) for name, value in demands.items()},
        binding=max(demands.items(), key=lambda demand: demand[1])[0],
    )


def _served_share(problem: Problem, surrogate: Surrogate, num_gpus: int, budget: RunningBudget) -> float | None:
    """Return the largest share of all rates, by bisection in percent, at which best fit needs no more GPUs."""
    low, high = 0, 100
    spent = 0
    while high - low > 1 and budget.exhausted(spent) is None:
        middle = (low + high) // 2
        try:
            result = PackingSolver("bfd").solve(
                problem, inflated(surrogate, middle / 100.0), budget=budget.remaining(spent)
            )
        except InputError:
            high = middle
            continue
        if result.termination is Termination.INTERRUPTED:
            raise KeyboardInterrupt
        spent += result.statistics.num_evaluations
        found = result.placement is not None and result.placement.num_gpus <= num_gpus
        low, high = (middle, high) if found else (low, middle)
    return low / 100.0 if low else None
