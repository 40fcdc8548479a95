"""The placement problem: model, GPU types with their profiles, engine settings, limits, and the workload to place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from predictors.features import AGGREGATE_NAMES, adapter_aggregates
from predictors.uncertainty import RateUncertainty
from solvers.constraint_checks import check_constraints
from solvers.constraint_table import ConstraintTable, compile_constraints
from solvers.constraints import UNCONSTRAINED, Constraints, LimitsRule
from solvers.current import CurrentGpu
from solvers.merging import Merging
from solvers.problem_errors import Location, ProblemSource, translate
from solvers.problem_file import LatencyMetric, Limits, ObjectiveName, ProblemFile, SecondaryName, problem_schema
from solvers.rate_scenarios import RateScenarios
from solvers.scenario_checks import check_scenarios
from twin.engine import SUPPORTED_RANKS, EngineConfig
from twin.errors import InputError, ProfileError
from twin.hardware import GpuType, ModelArchitecture, load_model
from twin.lengths import LengthDistribution
from twin.memory import MemoryVerdict
from twin.profile import PerformanceProfile, load_profile, shipped_profiles
from twin.replica import Replica
from twin.workload import Adapter, Workload

__all__ = ["Limits", "ObjectiveName", "Problem", "ProblemFile", "parse_problem", "problem_schema"]

# Bits that a sum of aggregates may take, so that float64 holds every partial sum exactly.
EXACT_SUM_BITS = 50
# Standard deviations of an unbounded length's logarithm that must still be shorter than the model's context.
LONGEST_PROMPT_SIGMAS = 5.0


@dataclass(frozen=True)
class Problem:
    """What to place, on what, within which limits.

    Attributes
    ----------
    gpu_types, profiles
        Parallel tuples, at least one entry.
    engine
        Template of every replica's settings; `replica` fills in slots, rank and CPU cache.
    fixed_max_loras, fixed_max_lora_rank
        Settings that the user fixes for all GPUs; ``None``: chosen per GPU.
    latency_metric
        What the objective `lowest_latency` makes small.
    uncertainty
        How far the rates may be from what is given; ``None``: they are what is given.
    scenarios
        Sets of rates under which the placement must do; ``None``: the workload's only.
    constraints
        By the names of adapters and GPU types.
    secondary, current
        What decides between placements with equal objectives, and what is in place now; see `ProblemFile`.
    merging
        What the adapters stand for, where groups that must share a GPU were merged (`solvers.merging`).
    """

    model: ModelArchitecture
    gpu_types: tuple[GpuType, ...]
    profiles: tuple[PerformanceProfile, ...]
    engine: EngineConfig
    fixed_max_loras: int | None
    fixed_max_lora_rank: int | None
    objective: ObjectiveName
    limits: Limits
    workload: Workload
    latency_metric: LatencyMetric = "itl_p95_ms"
    uncertainty: RateUncertainty | None = None
    scenarios: RateScenarios | None = None

    constraints: Constraints = UNCONSTRAINED
    secondary: tuple[SecondaryName, ...] | None = None
    current: tuple[CurrentGpu, ...] = ()
    merging: Merging | None = None

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """The adapters to place."""
        return self.workload.adapters

    @cached_property
    def ranks(self) -> NDArray[np.int64]:
        """Rank of each adapter, int64 [A]; the largest of those that it stands for."""
        if self.merging is not None:
            return self.merging.largest(self.merging.origin.ranks)
        return np.array([adapter.rank for adapter in self.adapters], dtype=np.int64)

    @cached_property
    def aggregates(self) -> NDArray[np.float64]:
        """Each adapter's contribution to its set's features, float64 [A, K], in the order of `AGGREGATE_NAMES`.

        The values are rounded to a power of two per column (a relative 2^-50 of the column's total), so that sums are
        exact: a set has
        the same features whatever the order in which adapters were added and removed. Where there are constraints,
        their columns follow, whole numbers, [A, K + C]: see `ConstraintTable`; last, where there are scenarios, the
        aggregates under each of them, [A, K + C + S * K].
        """
        if self.merging is not None:
            return self.merging.sums(self.merging.origin.aggregates)
        table = self.constraint_table
        columns = [] if table is None else [table.columns]
        under_scenarios = [_exact_sums(workload.adapters) for workload in self.scenario_workloads]
        return np.hstack([_exact_sums(self.adapters), *columns, *under_scenarios])

    @cached_property
    def scenario_workloads(self) -> tuple[Workload, ...]:
        """The traffic of the unmerged problem under each scenario; empty: there are none."""
        return () if self.scenarios is None else self.scenarios.workloads(self.unmerged.workload)

    def in_scenario(self, index: int) -> Problem:
        """Return the unmerged problem with the rates of one scenario for certain."""
        return replace(self.unmerged, workload=self.scenario_workloads[index], scenarios=None)

    def scenario_rows(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the aggregates of N sets, float64 [N, K + C + S * K], under each scenario in turn, [S * N, K]."""
        num_columns = len(AGGREGATE_NAMES) * len(self.scenario_workloads)
        return np.vstack(np.split(rows[:, rows.shape[1] - num_columns :], len(self.scenario_workloads), axis=1))

    @cached_property
    def constraint_table(self) -> ConstraintTable | None:
        """The constraints, compiled; ``None``: nothing is constrained."""
        if self.merging is not None:
            table = self.unmerged.constraint_table
            assert table is not None
            return table.merged(self.merging.sums(table.columns))
        if not self.constraints.are_given:
            return None
        return compile_constraints(
            self.constraints,
            adapters=[adapter.name for adapter in self.adapters],
            gpu_types=[gpu_type.name for gpu_type in self.gpu_types],
            limits=self.limits,
        )

    @property
    def unmerged(self) -> Problem:
        """The problem whose adapters are those that users know."""
        return self if self.merging is None else self.merging.origin

    def members_of(self, adapters: Sequence[int]) -> tuple[int, ...]:
        """Return the adapters of the unmerged problem for which `adapters` (ascending) stand, ascending."""
        return tuple(adapters) if self.merging is None else self.merging.expanded(adapters)

    def traffic_of(self, adapters: Sequence[int], *, scenario: int | None = None) -> Workload:
        """Return what a GPU with `adapters` must withstand: their traffic, at the quantile of uncertain rates.

        That of the workload itself, or of one of the scenarios.
        """
        of_all = self.unmerged.workload if scenario is None else self.scenario_workloads[scenario]
        workload = of_all.subset(list(self.members_of(adapters)))
        if self.uncertainty is None:
            return workload
        rates = np.array([adapter.rate_rps for adapter in workload.adapters])
        (factor,) = self.uncertainty.factor(np.array([rates.sum()]), np.array([(rates**2).sum()]))
        return workload.scaled(float(factor))

    def limits_of(self, adapters: Sequence[int]) -> Limits:
        """Return what a GPU that serves `adapters` must keep: the strictest limits of any of them."""
        table = self.constraint_table
        if table is None or not table.levels:
            return self.limits
        return table.limits_of(self.aggregates[list(adapters)].sum(axis=0)[None], self.limits).of(0)

    def may_serve(self, gpu_type: int, adapter: int) -> bool:
        """Return whether GPUs of a type may serve an adapter."""
        allowed = None if self.constraint_table is None else self.constraint_table.allowed_types
        return allowed is None or bool(allowed[adapter, gpu_type])

    def replica(self, gpu_type_index: int, max_loras: int, max_lora_rank: int, num_adapters: int) -> Replica:
        """Return the replica that serves `num_adapters` adapters under these settings; all stay in CPU memory."""
        return Replica(
            model=self.model,
            gpu=self.gpu_types[gpu_type_index],
            engine=self.engine.with_slots(max_loras, max_lora_rank=max_lora_rank, num_adapters=num_adapters),
            profile=self.profiles[gpu_type_index],
        )


def _exact_sums(adapters: Sequence[Adapter]) -> NDArray[np.float64]:
    """Return the aggregates of adapters, float64 [A, K], rounded such that their sums are exact."""
    exact = adapter_aggregates(adapters)
    totals = np.maximum(np.abs(exact).sum(axis=0), np.finfo(np.float64).tiny * 2.0**EXACT_SUM_BITS)
    quantum = 2.0 ** (np.ceil(np.log2(totals)) - EXACT_SUM_BITS)
    return np.asarray(np.round(exact / quantum) * quantum, dtype=np.float64)


def parse_problem(data: Any, *, file: str, base_directory: Path) -> Problem:
    """Turn the content of a problem file into a `Problem`.

    Parameters
    ----------
    data
        The parsed YAML or JSON: a mapping.
    file
        Path of the file; named in errors, and read again only to find the line of an error.
    base_directory
        Folder that relative paths in the file start from.

    Raises
    ------
    InputError
        On anything that does not hold; the message names field, value, adapter and line.
    ProfileError
        When a profile is unreadable or of another model or GPU.
    """
    source = ProblemSource(data, file)
    if not isinstance(data, dict):
        raise source.error(
            f"a problem must be a mapping of fields such as `model` and `adapters`. Got {type(data).__name__}",
            location=(),
        )
    try:
        content = ProblemFile.model_validate(data)
    except ValidationError as error:
        raise translate(error, source, ProblemFile) from error
    model = _load_model(content, source, base_directory)
    profiles = tuple(
        _load_profile(model, gpu_type, position, source, base_directory)
        for position, gpu_type in enumerate(content.gpu_types)
    )
    given = content.engine.model_fields_set & set(data.get("engine") or {})
    problem = Problem(
        model=model,
        gpu_types=content.gpu_types,
        profiles=profiles,
        engine=content.engine,
        fixed_max_loras=content.engine.max_loras if "max_loras" in given else None,
        fixed_max_lora_rank=content.engine.max_lora_rank if "max_lora_rank" in given else None,
        objective=content.objective,
        limits=content.limits,
        workload=load_workload(content, source, base_directory),
        latency_metric=content.latency_metric,
        uncertainty=content.uncertainty,
        scenarios=content.scenarios,
        constraints=content.constraints,
        secondary=content.secondary,
        current=content.current,
    )
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
    check_scenarios(problem.scenarios, problem.workload, source)
    _check_ranks(problem, source)
    _check_lengths(problem, source)
    return problem


def _load_model(content: ProblemFile, source: ProblemSource, base_directory: Path) -> ModelArchitecture:
    try:
        return load_model(content.model, base_directory=base_directory)
    except InputError as error:
        if error.field != "model":
            raise
        raise source.error(error.message, location=("model",), value=content.model, hint=error.hint) from error


def _load_profile(
    model: ModelArchitecture, gpu_type: GpuType, position: int, source: ProblemSource, base_directory: Path
) -> PerformanceProfile:
    """Return the profile that a GPU type names, or the shipped one of this model and GPU."""
    location: Location = ("gpu_types", position, "profile")
    try:
        if gpu_type.profile is not None:
            profile = load_profile(gpu_type.profile, base_directory=base_directory)
            profile.require_match(model=model.name, gpu_memory_gib=gpu_type.memory_gib)
            return profile
        for name in (f"{model.name}-{gpu_type.name}", *shipped_profiles()):
            if name in shipped_profiles() and _matches(load_profile(name), model, gpu_type):
                return load_profile(name)
    except ProfileError as error:
        located = source.error(error.message, location=location, value=gpu_type.profile, hint=error.hint)
        raise ProfileError(
            located.message, file=error.file or source.file, field=located.field, value=error.value, hint=error.hint
        ) from error
    raise source.error(
        f"a GPU type must have a profile. None is shipped for {model.name!r} with {gpu_type.memory_gib:g} GiB",
        location=location,
        hint=f"shipped: {', '.join(shipped_profiles())}; or give the path of a profile JSON file",
    )


def _matches(profile: PerformanceProfile, model: ModelArchitecture, gpu_type: GpuType) -> bool:
    try:
        profile.require_match(model=model.name, gpu_memory_gib=gpu_type.memory_gib)
    except ProfileError:
        return False
    return True


def load_workload(content: ProblemFile, source: ProblemSource, base_directory: Path) -> Workload:
    """Return the adapters of a problem file with their traffic, or those of its trace (InputError)."""
    if content.trace is not None:
        from solvers.trace_workload import workload_from_trace  # noqa: PLC0415 - loads pandas, for traces only

        try:
            return workload_from_trace(content.trace, content.phases, base_directory=base_directory)
        except InputError as error:
            location: Location = ("trace", *(error.field.split(".") if error.field else ()))
            raise source.error(error.message, location=location, value=error.value, hint=error.hint) from error
    assert content.adapters is not None
    try:
        return Workload(adapters=content.adapters, phases=content.phases)
    except InputError as error:
        parts = tuple(int(part) if part.isdigit() else part for part in (error.field or "").split("."))
        raise source.error(error.message, location=parts, value=error.value, hint=error.hint) from error


def _check_engine(problem: Problem, source: ProblemSource) -> None:
    if not problem.engine.enable_lora:
        raise source.error(
            "`enable_lora` must be true to serve adapters. Got False", location=("engine", "enable_lora"), value=False
        )
    if problem.engine.max_cpu_loras is not None:
        raise source.error(
            "`max_cpu_loras` must be left out: it follows from the placement, all adapters of a GPU stay in CPU. "
            f"Got {problem.engine.max_cpu_loras}",
            location=("engine", "max_cpu_loras"),
            value=problem.engine.max_cpu_loras,
            hint="remove the line",
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
