"""Which adapter goes on which GPU, under which vLLM settings."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from solvers.problem import Problem
from twin.engine import SUPPORTED_RANKS
from twin.errors import InputError
from twin.replica import Replica


@dataclass(frozen=True)
class GpuAssignment:
    """One GPU of a placement.

    Attributes
    ----------
    gpu_type
        Index into the problem's GPU types.
    adapters
        Indices into the problem's adapters, sorted, at least one.
    max_loras
        Slots.
    max_lora_rank
        Rank at which every slot is reserved.
    max_num_seqs
        One of the problem's `max_num_seqs_options`; ``None``: that of its `engine`.
    """

    gpu_type: int
    adapters: tuple[int, ...]
    max_loras: int
    max_lora_rank: int
    max_num_seqs: int | None = None


@dataclass(frozen=True)
class Placement:
    """The GPUs that are used, each with its adapters and settings."""

    gpus: tuple[GpuAssignment, ...]

    @property
    def num_gpus(self) -> int:
        """GPUs that are used."""
        return len(self.gpus)


def replica_of_gpu(problem: Problem, gpu: GpuAssignment) -> Replica:
    """Return the replica that a GPU of a problem's placement runs."""
    return problem.replica(
        gpu.gpu_type,
        gpu.max_loras,
        gpu.max_lora_rank,
        len(problem.members_of(gpu.adapters)),
        max_num_seqs=gpu.max_num_seqs,
    )


def validate_placement(problem: Problem, placement: Placement) -> None:
    """Raise unless `placement` can be started as it is.

    Every adapter is on exactly one GPU, ranks fit the slots, settings that the problem fixes are kept, no GPU type is
    used more often
    than there are GPUs of it, the problem's constraints are kept, and every replica starts.

    Raises
    ------
    InputError
        With the dotted field (``gpus.2.max_lora_rank``) and value of the first offence.
    """
    owner: dict[int, int] = {}
    for position, gpu in enumerate(placement.gpus):
        _check_settings(problem, position, gpu)
        for adapter in gpu.adapters:
            _check_adapter(problem, position, gpu, adapter)
            if adapter in owner:
                raise InputError(
                    f"an adapter must be placed once. {problem.adapters[adapter].name!r} is on GPU {owner[adapter]} "
                    f"and on GPU {position}.",
                    field=f"gpus.{position}.adapters",
                    value=adapter,
                )
            owner[adapter] = position
    missing = [adapter.name for index, adapter in enumerate(problem.adapters) if index not in owner]
    if missing:
        raise InputError(
            f"every adapter must be placed. {len(missing)} are not, the first is {missing[0]!r}.",
            field="gpus",
            value=missing[0],
        )
    _check_counts(problem, placement)
    require_constraints(problem, placement)
    for position, gpu in enumerate(placement.gpus):
        verdict = replica_of_gpu(problem, gpu).memory()
        if not verdict.starts:
            raise InputError(
                f"every replica must start. GPU {position} does not: {verdict.message}",
                field=f"gpus.{position}.max_loras",
                value=gpu.max_loras,
            )


def _check_settings(problem: Problem, position: int, gpu: GpuAssignment) -> None:
    def require(*, holds: bool, field: str, value: object, rule: str) -> None:
        if not holds:
            raise InputError(
                f"`{field}` of GPU {position} must be {rule}. Got {value!r}.",
                field=f"gpus.{position}.{field}",
                value=value,
            )

    types = len(problem.gpu_types)
    require(holds=0 <= gpu.gpu_type < types, field="gpu_type", value=gpu.gpu_type, rule=f"in 0..{types - 1}")
    require(holds=bool(gpu.adapters), field="adapters", value=gpu.adapters, rule="at least one adapter")
    ordered = tuple(sorted(gpu.adapters))
    require(holds=gpu.adapters == ordered, field="adapters", value=gpu.adapters, rule="in ascending order")
    require(holds=gpu.max_loras >= 1, field="max_loras", value=gpu.max_loras, rule="at least 1")
    ranks = ", ".join(str(rank) for rank in SUPPORTED_RANKS)
    supported = gpu.max_lora_rank in SUPPORTED_RANKS
    require(holds=supported, field="max_lora_rank", value=gpu.max_lora_rank, rule=f"one of {ranks}")
    options = problem.max_num_seqs_options
    own = gpu.max_num_seqs in {None, *options}
    rule = f"one of {', '.join(map(str, options))}" if options else "that of `engine`"
    require(holds=own, field="max_num_seqs", value=gpu.max_num_seqs, rule=rule)
    for field, value, fixed in (
        ("max_loras", gpu.max_loras, problem.fixed_max_loras),
        ("max_lora_rank", gpu.max_lora_rank, problem.fixed_max_lora_rank),
    ):
        require(holds=fixed in {None, value}, field=field, value=value, rule=f"{fixed}, as the problem fixes it")


def _check_adapter(problem: Problem, position: int, gpu: GpuAssignment, adapter: int) -> None:
    if not 0 <= adapter < len(problem.adapters):
        raise InputError(
            f"adapters of a placement must be indices below {len(problem.adapters)}. Got {adapter} (GPU {position}).",
            field=f"gpus.{position}.adapters",
            value=adapter,
        )
    rank = problem.adapters[adapter].rank
    if rank > gpu.max_lora_rank:
        raise InputError(
            f"`max_lora_rank` of a GPU must be at least the ranks of its adapters. Got {gpu.max_lora_rank} for "
            f"{problem.adapters[adapter].name!r} of rank {rank} (GPU {position}).",
            field=f"gpus.{position}.max_lora_rank",
            value=gpu.max_lora_rank,
        )


def require_constraints(problem: Problem, placement: Placement) -> None:
    """Raise InputError where GPUs of `placement`, which need not be complete, break the problem's constraints."""
    table = problem.constraint_table
    if table is None:
        return
    gpus = placement.gpus
    owner = {adapter: position for position, gpu in enumerate(gpus) for adapter in gpu.adapters}
    for group in table.together:
        homes = {adapter: owner[adapter] for adapter in group if adapter in owner}
        if len(set(homes.values())) > 1:
            first, other = next((one, two) for one, two in pairwise(homes) if homes[one] != homes[two])
            raise InputError(
                f"adapters that must be together must be on one GPU. {problem.adapters[first].name!r} is on GPU "
                f"{homes[first]}, and {problem.adapters[other].name!r} on GPU {homes[other]}.",
                field=f"gpus.{homes[other]}.adapters",
                value=other,
            )
    rows = np.array([problem.aggregates[list(gpu.adapters)].sum(axis=0) for gpu in gpus])
    types = np.array([gpu.gpu_type for gpu in gpus], dtype=np.int64)
    allowed = table.allows(rows, types) if gpus else np.ones(0, dtype=np.bool_)
    for position in np.flatnonzero(~allowed):
        gpu = gpus[int(position)]
        names = [problem.adapters[index].name for index in gpu.adapters if not problem.may_serve(gpu.gpu_type, index)]
        if names:
            raise InputError(
                f"adapters must be on GPUs of the types that `constraints` allow. GPU {position} is of type "
                f"{problem.gpu_types[gpu.gpu_type].name!r}, which must not serve {names[0]!r}.",
                field=f"gpus.{position}.gpu_type",
                value=gpu.gpu_type,
            )
        told = [problem.told_name(index) for index in gpu.adapters]
        twice = [name for name, count in Counter(told).items() if count > 1]
        if twice:
            raise InputError(
                f"the replicas of an adapter must be on different GPUs. GPU {position} has several shares of "
                f"{twice[0]!r}.",
                field=f"gpus.{position}.adapters",
                value=gpu.adapters,
            )
        raise InputError(
            f"adapters that `constraints` keep apart must be on different GPUs. GPU {position} has too many of them.",
            field=f"gpus.{position}.adapters",
            value=gpu.adapters,
        )


def _check_counts(problem: Problem, placement: Placement) -> None:
    for index, gpu_type in enumerate(problem.gpu_types):
        used = sum(1 for gpu in placement.gpus if gpu.gpu_type == index)
        if gpu_type.max_count is not None and used > gpu_type.max_count:
            raise InputError(
                f"at most {gpu_type.max_count} GPUs of type {gpu_type.name!r} may be used. The placement uses {used}.",
                field="gpus",
                value=used,
            )
