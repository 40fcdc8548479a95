"""The placement problem: model, GPU types with their profiles, engine settings, limits, and the workload to place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from predictors.features import AGGREGATE_NAMES, adapter_aggregates
from predictors.uncertainty import RateUncertainty
from solvers.constraint_table import ConstraintTable, compile_constraints
from solvers.constraints import UNCONSTRAINED, Constraints
from solvers.current import CurrentGpu
from solvers.merging import Merging
from solvers.problem_checks import check_problem
from solvers.problem_errors import Location, ProblemSource, translate
from solvers.problem_file import LatencyMetric, Limits, ObjectiveName, ProblemFile, SecondaryName, problem_schema
from solvers.rate_scenarios import RateScenarios
from solvers.replication import NOT_REPLICATED, Replication
from solvers.shares import Shares
from twin.engine import EngineConfig
from twin.errors import InputError, ProfileError
from twin.hardware import GpuType, ModelArchitecture, load_model
from twin.memory import adapters_in_cpu_memory
from twin.profile import PerformanceProfile, load_profile, shipped_profiles
from twin.replica import Replica
from twin.workload import Adapter, Workload

__all__ = ["Limits", "ObjectiveName", "Problem", "ProblemFile", "parse_problem", "problem_schema"]

# Bits that a sum of aggregates may take, so that float64 holds every partial sum exactly.
EXACT_SUM_BITS = 50


@dataclass(frozen=True)
class Problem:
    """What to place, on what, within which limits.

    Attributes
    ----------
    gpu_types, profiles
        Parallel tuples, at least one entry.
    engine
        Template of every replica's settings; `replica` fills in slots and rank, and the CPU cache unless it is given.
    fixed_max_loras, fixed_max_lora_rank
        Settings that the user fixes for all GPUs; ``None``: chosen per GPU.
    max_num_seqs_options
        Ascending values of `max_num_seqs` from which one may be chosen for each GPU, that of `engine` among them, which
        is what solvers plan with; empty: that of `engine` is given.
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
    replication
        Which adapters may be on several GPUs, by name; solvers see problems that are divided, if it asks for anything.
    shares
        What the adapters are shares of, where adapters were divided among GPUs (`solvers.shares`).
    merging
        What the adapters stand for, where groups that must share a GPU were merged, after any division
        (`solvers.merging`).
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
    max_num_seqs_options: tuple[int, ...] = ()
    latency_metric: LatencyMetric = "itl_p95_ms"
    uncertainty: RateUncertainty | None = None
    scenarios: RateScenarios | None = None
    constraints: Constraints = UNCONSTRAINED
    secondary: tuple[SecondaryName, ...] | None = None
    current: tuple[CurrentGpu, ...] = ()
    replication: Replication = NOT_REPLICATED
    shares: Shares | None = None
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

    @property
    def constraint_columns(self) -> slice:
        """Where the columns of constraints are in `aggregates`."""
        of_scenarios = len(AGGREGATE_NAMES) * len(self.scenario_workloads)
        return slice(len(AGGREGATE_NAMES), self.aggregates.shape[1] - of_scenarios)

    @property
    def count_columns(self) -> list[int]:
        """Where the numbers of adapters are in `aggregates`: at the problem's rates, and under each scenario."""
        first = self.constraint_columns.stop
        return [0, *(first + len(AGGREGATE_NAMES) * index for index in range(len(self.scenario_workloads)))]

    @cached_property
    def scenario_workloads(self) -> tuple[Workload, ...]:
        """The traffic of the unmerged problem under each scenario; empty: there are none."""
        if self.scenarios is None:
            return ()
        workloads, shares = self.scenarios.workloads(self.told.workload), self.unmerged.shares
        return workloads if shares is None else tuple(shares.divided(workload) for workload in workloads)

    def in_scenario(self, index: int) -> Problem:
        """Return the problem of the adapters that users know, with the rates of one scenario for certain."""
        return replace(self.told, workload=self.told.scenario_workloads[index], scenarios=None)

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
        groups = () if self.shares is None else self.shares.groups
        if not (self.constraints.are_given or groups):
            return None
        return compile_constraints(
            self.constraints,
            adapters=[self.told_name(index) for index in range(len(self.adapters))],
            gpu_types=[gpu_type.name for gpu_type in self.gpu_types],
            limits=self.limits,
            alternatives=groups,
        )

    @property
    def unmerged(self) -> Problem:
        """The problem whose adapters are single ones, or shares of them."""
        return self if self.merging is None else self.merging.origin

    @property
    def told(self) -> Problem:
        """The problem whose adapters are those that users know."""
        problem = self.unmerged
        return problem if problem.shares is None else problem.shares.origin

    def told_index(self, adapter: int) -> int:
        """Return which adapter that users know one of this problem is, or has a share of; of a group, the first."""
        first = self.members_of((adapter,))[0]
        shares = self.unmerged.shares
        return first if shares is None else int(shares.adapter_of[first])

    def told_name(self, adapter: int) -> str:
        """Return the name of the adapter that users know."""
        return self.told.adapters[self.told_index(adapter)].name

    def members_of(self, adapters: Sequence[int]) -> tuple[int, ...]:
        """Return the adapters of the `unmerged` problem for which `adapters` (ascending) stand, ascending."""
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

    def gpus_for(self, adapter: int) -> int | None:
        """Return how many GPUs there are that may serve an adapter; ``None``: any number."""
        counts = [gpu_type.max_count for index, gpu_type in enumerate(self.gpu_types) if self.may_serve(index, adapter)]
        return None if None in counts else sum(count or 0 for count in counts)

    def with_max_num_seqs(self, max_num_seqs: int) -> Self:
        """Return the problem of planning with another of the values of `max_num_seqs`; not of a merged one."""
        assert self.merging is None
        return replace(self, engine=self.engine.model_copy(update={"max_num_seqs": max_num_seqs}))

    def with_given_max_num_seqs(self, max_num_seqs: int) -> Problem:
        """Return the problem with this `max_num_seqs` for all GPUs, and no other to choose."""
        return replace(self.with_max_num_seqs(max_num_seqs), max_num_seqs_options=())

    def most_cpu_loras(self, gpu_type: int, max_lora_rank: int) -> int | None:
        """Return how many adapters of a GPU stay in CPU memory at most; ``None``: all do.

        As many as the user fixed, or as fit the memory of the host if all are of the largest rank.
        """
        if self.engine.max_cpu_loras is not None:
            return self.engine.max_cpu_loras
        return adapters_in_cpu_memory(self.model, self.gpu_types[gpu_type], max_lora_rank)

    @property
    def limits_cpu_memory(self) -> bool:
        """Whether there may be GPUs of which not all adapters stay in CPU memory."""
        return self.engine.max_cpu_loras is not None or any(
            gpu_type.cpu_memory_gib is not None for gpu_type in self.gpu_types
        )

    def replica(
        self,
        gpu_type_index: int,
        max_loras: int,
        max_lora_rank: int,
        num_adapters: int,
        *,
        max_num_seqs: int | None = None,
    ) -> Replica:
        """Return the replica that serves `num_adapters` adapters under these settings.

        All adapters stay in CPU memory, as far as `most_cpu_loras` allows; a `max_cpu_loras` of `engine` stays as it
        is, and so does its `max_num_seqs`, unless another one is given.
        """
        engine = self.engine.with_slots(max_loras, max_lora_rank=max_lora_rank, num_adapters=num_adapters)
        changes: dict[str, int] = {} if max_num_seqs is None else {"max_num_seqs": max_num_seqs}
        most = self.most_cpu_loras(gpu_type_index, max_lora_rank)
        if most is not None:
            changes["max_cpu_loras"] = self.engine.max_cpu_loras or min(most, engine.cpu_capacity)
        engine = engine.model_copy(update=changes)
        return Replica(
            model=self.model, gpu=self.gpu_types[gpu_type_index], engine=engine, profile=self.profiles[gpu_type_index]
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
        engine=content.engine.template(),
        fixed_max_loras=content.engine.max_loras if "max_loras" in given else None,
        fixed_max_lora_rank=content.engine.max_lora_rank if "max_lora_rank" in given else None,
        objective=content.objective,
        limits=content.limits,
        workload=load_workload(content, source, base_directory),
        max_num_seqs_options=content.engine.max_num_seqs_options,
        latency_metric=content.latency_metric,
        uncertainty=content.uncertainty,
        scenarios=content.scenarios,
        constraints=content.constraints,
        secondary=content.secondary,
        current=content.current,
        replication=content.replication,
    )
    check_problem(problem, source)
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
    """Return `profile_of` with the place in the file in its errors."""
    try:
        return profile_of(model, gpu_type, base_directory=base_directory)
    except ProfileError as error:
        location: Location = ("gpu_types", position, "profile")
        located = source.error(error.message, location=location, value=gpu_type.profile, hint=error.hint)
        raise ProfileError(
            located.message, file=error.file or source.file, field=located.field, value=error.value, hint=error.hint
        ) from error
    except InputError as error:
        raise source.error(error.message, location=("gpu_types", position, "profile"), hint=error.hint) from error


def profile_of(model: ModelArchitecture, gpu_type: GpuType, *, base_directory: Path) -> PerformanceProfile:
    """Return the profile that a GPU type names, or the shipped one of this model and GPU.

    Parameters
    ----------
    base_directory
        Folder that a relative path starts from.

    Raises
    ------
    ProfileError
        When the profile is unreadable, or of another model or GPU.
    InputError
        When the GPU type names none, and none is shipped.
    """
    if gpu_type.profile is not None:
        profile = load_profile(gpu_type.profile, base_directory=base_directory)
        profile.require_match(model=model.name, gpu_memory_gib=gpu_type.memory_gib)
        return profile
    for name in (f"{model.name}-{gpu_type.name}", *shipped_profiles()):
        if name in shipped_profiles() and _matches(load_profile(name), model, gpu_type):
            return load_profile(name)
    raise InputError(
        f"a GPU type must have a profile. None is shipped for {model.name!r} with {gpu_type.memory_gib:g} GiB",
        field="profile",
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
