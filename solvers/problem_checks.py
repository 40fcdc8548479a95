"""Whether a problem can be placed at all: what each field allows by itself, its schema says; this is about the rest."""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from solvers.constraint_checks import check_constraints
from solvers.constraints import LimitsRule
from solvers.limits import Limits
from solvers.problem_errors import Location, ProblemSource
from solvers.replication_checks import check_replication
from solvers.scenario_checks import check_scenarios
from twin.engine import SUPPORTED_RANKS
from twin.lengths import LengthDistribution
from twin.memory import MemoryVerdict

if TYPE_CHECKING:
    from solvers.problem import Problem

# Standard deviations of an unbounded length's logarithm that must still be shorter than the model's context.
LONGEST_PROMPT_SIGMAS = 5.0


def check_problem(problem: Problem, source: ProblemSource) -> None:
    """Raise InputError, with field, value and line, for the first thing in a problem file that cannot hold."""
    _check_engine(problem, source)
    _check_gpu_types(problem, source)
    _check_counts(problem, source)
    _check_limits(problem, source)
    check_constraints(
        problem.constraints,
        adapters=[adapter.name for adapter in problem.adapters],
        gpu_types=[gpu_type.name for gpu_type in problem.gpu_types],
        limits=problem.limits,
        source=source,
    )
    check_replication(
        problem.replication,
        problem.constraints,
        adapters=[adapter.name for adapter in problem.adapters],
        gpus_for=problem.gpus_for,
        source=source,
    )
    check_scenarios(problem.scenarios, problem.workload, source)
    _check_ranks(problem, source)
    _check_lengths(problem, source)


def _check_engine(problem: Problem, source: ProblemSource) -> None:
    if not problem.engine.enable_lora:
        raise source.error(
            "`enable_lora` must be true to serve adapters. Got False", location=("engine", "enable_lora"), value=False
        )
    limited = [gpu_type.name for gpu_type in problem.gpu_types if gpu_type.cpu_memory_gib is not None]
    if problem.engine.max_cpu_loras is not None and limited:
        raise source.error(
            "`max_cpu_loras` must be left out where a GPU type has `cpu_memory_gib`, from which it follows. "
            f"{limited[0]!r} has it. Got {problem.engine.max_cpu_loras}",
            location=("engine", "max_cpu_loras"),
            value=problem.engine.max_cpu_loras,
            hint="remove the one or the other",
        )
    names: dict[str, int] = {}
    for position, gpu_type in enumerate(problem.gpu_types):
        if gpu_type.name in names:
            raise source.error(
                f"GPU type names must be unique. {gpu_type.name!r} names types {names[gpu_type.name]} and {position}",
                location=("gpu_types", position, "name"),
                value=gpu_type.name,
            )
        names[gpu_type.name] = position


def _memory_with_least_slots(problem: Problem, gpu_type: int, rank: int) -> MemoryVerdict:
    return problem.replica(gpu_type, problem.fixed_max_loras or 1, rank, 1).memory()


def _check_gpu_types(problem: Problem, source: ProblemSource) -> None:
    """Refuse GPU types on which no replica starts, with vLLM's words."""
    rank = problem.fixed_max_lora_rank or SUPPORTED_RANKS[0]
    for position, gpu_type in enumerate(problem.gpu_types):
        verdict = _memory_with_least_slots(problem, position, rank)
        if verdict.starts:
            continue
        slots = problem.fixed_max_loras or 1
        raise source.error(
            f"`{problem.model.name}` must fit a GPU of every type. With {slots} LoRA "
            f"{'slot' if slots == 1 else 'slots'} of rank {rank} it does not start on "
            f"{gpu_type.name!r} ({gpu_type.memory_gib:g} GiB): {verdict.message}",
            location=("gpu_types", position, "memory_gib"),
            value=gpu_type.memory_gib,
            hint="use a larger GPU, or a shorter engine.max_model_len",
        )


def _check_counts(problem: Problem, source: ProblemSource) -> None:
    """Refuse the lowest latency of any number of GPUs: that is one GPU for each adapter."""
    if problem.objective != "lowest_latency":
        return
    for position, gpu_type in enumerate(problem.gpu_types):
        if gpu_type.max_count is None:
            raise source.error(
                "a GPU type must have `max_count` where the objective is `lowest_latency`",
                location=("gpu_types", position, "max_count"),
                hint="say how many GPUs of this type there are",
            )


def _check_limits(problem: Problem, source: ProblemSource) -> None:
    """Refuse latency limits that no step can keep: usually seconds where milliseconds are meant."""
    shortest_ms = min(profile.step_time.base_ms + profile.step_time.lora_base_ms for profile in problem.profiles)
    places: list[tuple[Location, Limits | LimitsRule]] = [(("limits",), problem.limits)]
    places += [(("constraints", "limits", position), rule) for position, rule in enumerate(problem.constraints.limits)]
    for (place, limits), field in product(places, ("itl_p95_ms", "ttft_p95_ms")):
        limit = getattr(limits, field)
        if limit is not None and limit < shortest_ms:
            raise source.error(
                f"`{field}` must be at least the {shortest_ms:.3g} ms of an empty step. Got {limit:g}",
                location=(*place, field),
                value=limit,
                hint=f"the unit is milliseconds: write {limit * 1000:g} for {limit:g} s",
            )


def _check_ranks(problem: Problem, source: ProblemSource) -> None:
    """Refuse ranks above the fixed `max_lora_rank`, or above what the memory of every GPU type allows."""
    if problem.fixed_max_lora_rank is not None:
        largest, why = problem.fixed_max_lora_rank, "the max_lora_rank that `engine` fixes"
    else:
        feasible = [
            max(rank for rank in SUPPORTED_RANKS if _memory_with_least_slots(problem, index, rank).starts)
            for index in range(len(problem.gpu_types))
        ]
        largest = max(feasible)
        slots = problem.fixed_max_loras or 1
        name = problem.gpu_types[feasible.index(largest)].name
        why = f"the largest with which a GPU of type {name!r} starts ({slots} {'slot' if slots == 1 else 'slots'})"
    above = np.flatnonzero(problem.ranks > largest)
    if len(above):
        first = int(above[0])
        others = f"; {len(above) - 1} more adapters are above it too" if len(above) > 1 else ""
        rank = int(problem.ranks[first])
        raise source.error(
            f"`rank` must be at most {largest}, {why}. Got {rank}{others}",
            location=_adapter_location(source, first, "rank"),
            value=rank,
            hint="use a larger GPU or fewer fixed slots, or exclude the adapter",
        )


def _check_lengths(problem: Problem, source: ProblemSource) -> None:
    """Refuse prompts that do not fit the context: vLLM would reject such requests."""
    context = problem.engine.max_model_len or problem.model.max_model_len
    longest = {lengths: _longest(lengths) for lengths in {adapter.prompt_tokens for adapter in problem.adapters}}
    for position, adapter in enumerate(problem.adapters):
        tokens = longest[adapter.prompt_tokens]
        if tokens >= context:
            raise source.error(
                f"prompts must be shorter than the longest sequence, {context} tokens. Got up to {tokens:.0f}",
                location=_adapter_location(source, position, "prompt_tokens"),
                value=tokens,
                hint="cap the prompts with `max`, or raise engine.max_model_len",
            )


def _longest(lengths: LengthDistribution) -> float:
    """Return the longest length in tokens that occurs in practice."""
    if lengths.quantiles is not None:
        return lengths.quantiles[-1]
    assert lengths.mean is not None
    variance = math.log1p((lengths.std / lengths.mean) ** 2)
    unbounded = lengths.mean * math.exp(LONGEST_PROMPT_SIGMAS * math.sqrt(variance) - 0.5 * variance)
    return min(unbounded if lengths.std else lengths.mean, math.inf if lengths.max is None else float(lengths.max))


def _adapter_location(source: ProblemSource, position: int, field: str) -> Location:
    """Return where an adapter's field stands: in the file, or behind the trace that the adapters come from."""
    if source.data.get("adapters"):
        return ("adapters", position, field)
    return ("trace", "adapters")
