"""What was measured about a model on a GPU: step times, adapter loads, memory, start-up; with its provenance."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from twin.atomic_write import write_atomically
from twin.bounded_read import parse_json, read_bounded_text
from twin.errors import ProfileError
from twin.step_time import COEFFICIENT_NAMES


class StepTimeCoefficients(BaseModel):
    """Coefficients of `twin.step_time.step_time_ms`, all >= 0, in ms per unit of their term."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    base_ms: float = Field(ge=0, description="one step, whatever is in it")
    token_ms: float = Field(ge=0, description="per scheduled token")
    request_ms: float = Field(ge=0, description="per scheduled request")
    context_token_ms: float = Field(ge=0, description="per KV token read")
    large_batch_ms: float = Field(default=0.0, ge=0, description="a step beyond 512 tokens runs without a CUDA graph")
    large_batch_token_ms: float = Field(default=0.0, ge=0, description="per scheduled token beyond 512")
    mixed_context_token_ms: float = Field(
        default=0.0, ge=0, description="per KV token read when a prefill is in the step"
    )
    changed_request_ms: float = Field(
        default=0.0, ge=0, description="per scheduled request when the batch differs from the step before"
    )
    lora_base_ms: float = Field(default=0.0, ge=0, description="LoRA is enabled")
    lora_active_ms: float = Field(default=0.0, ge=0, description="any adapter is in the batch")
    lora_token_ms: float = Field(default=0.0, ge=0, description="per scheduled token with LoRA")
    expand_tile_ms: float = Field(default=0.0, ge=0, description="per (slots + 1) x tile of 64 tokens")
    shrink_tile_ms: float = Field(
        default=0.0,
        ge=0,
        description="per (slots + 1) x tile of 32 tokens x 16 of max rank; an eighth of it from 128 tokens on",
    )
    adapter_ms: float = Field(default=0.0, ge=0, description="per distinct adapter of the batch")
    adapter_shrink_ms: float = Field(
        default=0.0, ge=0, description="per distinct adapter x 16 of max rank; an eighth of it from 128 tokens on"
    )
    adapter_request_ms: float = Field(default=0.0, ge=0, description="per distinct adapter x scheduled request")
    cached_adapter_ms: float = Field(
        default=0.0, ge=0, description="per distinct adapter x adapter in the CPU cache: the engine lists the cache"
    )
    slot_lookup_ms: float = Field(
        default=0.0,
        ge=0,
        description="per (token + request) x used slot when the batch differs: the engine searches each one's slot",
    )
    blocked_waiting_ms: float = Field(default=0.0, ge=0, description="per waiting request when all slots are taken")

    def as_array(self) -> NDArray[np.float64]:
        """Return the coefficients as float64 [len(COEFFICIENT_NAMES)] in the order of `COEFFICIENT_NAMES`."""
        return np.array([getattr(self, name) for name in COEFFICIENT_NAMES], dtype=np.float64)


class LoadTime(BaseModel):
    """Time to load one adapter of a rank, in milliseconds.

    Attributes
    ----------
    rank
        Of the adapter.
    max_lora_rank
        At which the slots are reserved, at least `rank`; ``None``: it holds for any. A copy into a slot of a larger
        rank than the adapter's takes longer, because vLLM first sets the slot to zero and then writes a part of it.
    cpu_to_gpu_ms, disk_to_cpu_ms
        Copy of the weights into a slot; read of the adapter's files, which does not depend on the slots.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rank: int = Field(ge=1)
    max_lora_rank: int | None = Field(default=None, ge=1)
    cpu_to_gpu_ms: float = Field(ge=0)
    disk_to_cpu_ms: float = Field(ge=0)

    @property
    def slot_ratio(self) -> float | None:
        """How many times the adapter's rank the slots have; ``None``: the time holds for any."""
        return None if self.max_lora_rank is None else self.max_lora_rank / self.rank


class MeasuredKvTokens(BaseModel):
    """KV capacity in tokens with these slots, or ``None`` when the replica started with no context length at all."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_loras: int = Field(ge=1)
    max_lora_rank: int = Field(ge=1)
    kv_tokens: int | None = Field(ge=0)


class MemoryCalibration(BaseModel):
    """What the arithmetic of twin/memory.py needs beyond the model's dimensions.

    Attributes
    ----------
    overhead_gib
        What is used beside weights, slots, KV cache and the activation peak below: allocator slack, LoRA buffers. When
        the two activation terms are 0 it stands for the activation peak, too.
    slot_overhead_mib
        Bytes per slot beyond the formula (extra vocabulary rows and buffers of older engines), in MiB.
    activation_gib
        Peak of the layers in a step of 2048 tokens, proportional to `max_num_batched_tokens`, in GiB. vLLM reserves the
        larger of this peak and that of the sampler.
    sampler_bytes_per_logit
        Bytes per (sequence x vocabulary entry) at the peak of the sampler, which vLLM profiles with `max_num_seqs`
        sequences.
    measured_utilization, measured_max_num_seqs
        `gpu_memory_utilization` and `max_num_seqs` at which `measured` was taken; ``None``: it holds for any number.
    measured
        KV tokens per (max_loras, max_lora_rank), used instead of the formula where GPU, utilization and sequences
        agree.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    overhead_gib: float = Field(ge=0)
    slot_overhead_mib: float = Field(default=0.0, ge=0)
    activation_gib: float = Field(default=0.0, ge=0)
    sampler_bytes_per_logit: float = Field(default=0.0, ge=0)
    measured_utilization: float = Field(default=0.9, gt=0, le=1)
    measured_max_num_seqs: int | None = Field(default=None, ge=1)
    measured: tuple[MeasuredKvTokens, ...] = ()


class Startup(BaseModel):
    """Seconds from launch to ready: ``base_s + per_slot_s * max_loras``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    base_s: float = Field(default=90.0, ge=0)
    per_slot_s: float = Field(default=3.7, ge=0)


class PerformanceProfile(BaseModel):
    """Everything measured about one model on one kind of GPU.

    Attributes
    ----------
    name
        What `GpuType.profile` refers to.
    model, gpu, gpu_memory_gib, vllm_version
        What it was measured on; a profile is refused for another model or another GPU memory (beyond 1 %).
    provenance
        Free-form facts: data source, rows, method, error figures, date, seed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: Literal[1] = 1
    name: str
    model: str
    gpu: str
    gpu_memory_gib: float = Field(gt=0)
    vllm_version: str
    step_time: StepTimeCoefficients
    load_times: tuple[LoadTime, ...] = Field(min_length=1)
    memory: MemoryCalibration
    startup: Startup = Startup()
    provenance: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_load_times(self) -> PerformanceProfile:
        given = [(entry.rank, entry.max_lora_rank) for entry in self.load_times]
        if given != sorted(set(given), key=lambda pair: (pair[0], pair[1] or 0)):
            raise ValueError(
                f"`load_times` must have strictly increasing ranks, and within one strictly increasing "
                f"`max_lora_rank`. Got {given}."
            )
        by_rank: dict[int, list[int | None]] = {}
        for entry in self.load_times:
            by_rank.setdefault(entry.rank, []).append(entry.max_lora_rank)
        for rank, slots in by_rank.items():
            if slots != [None] and any(slot is None or slot < rank for slot in slots):
                raise ValueError(
                    "`load_times` must have, for each rank, one entry without `max_lora_rank`, or entries with one of "
                    f"at least the rank. Got {slots} for rank {rank}."
                )
            if len({entry.disk_to_cpu_ms for entry in self.load_times if entry.rank == rank}) > 1:
                raise ValueError(f"`load_times` must have one `disk_to_cpu_ms` per rank. Rank {rank} has several.")
        return self

    def load_time_ms(self, rank: int, max_lora_rank: int) -> tuple[float, float]:
        """Return (CPU to GPU, disk to CPU) milliseconds to load an adapter into a slot.

        Over ranks: linear between the measured ones; constant below them; beyond them linear, but never below the
        largest rank's. A copy so for each measured ratio of the slot's rank to the adapter's; between ratios it is
        linear in their logarithm, and constant outside of them.

        Parameters
        ----------
        rank
            Of the adapter, >= 1.
        max_lora_rank
            At which the slots are reserved; a smaller one than `rank` counts as `rank`.
        """
        reads = {entry.rank: entry.disk_to_cpu_ms for entry in self.load_times}
        ratios = sorted({entry.slot_ratio or 1.0 for entry in self.load_times})
        copies = []
        for ratio in ratios:
            times = {entry.rank: entry.cpu_to_gpu_ms for entry in self.load_times if entry.slot_ratio in (None, ratio)}
            copies.append(_over_ranks(rank, times))
        wanted = np.log(max(max_lora_rank / rank, 1.0))
        return float(np.interp(wanted, np.log(ratios), copies)), _over_ranks(rank, reads)

    def require_match(self, *, model: str, gpu_memory_gib: float) -> None:
        """Raise ProfileError unless the profile was measured for this model and this GPU memory (within 1 %)."""
        if model != self.model:
            raise ProfileError(
                f"the profile's model must be the planned one, {model!r}. "
                f"Profile {self.name!r} was measured with {self.model!r}.",
                field="profile",
                value=self.name,
                hint="choose a profile of the model, or calibrate one",
            )
        if abs(gpu_memory_gib - self.gpu_memory_gib) > 0.01 * self.gpu_memory_gib:
            raise ProfileError(
                f"the profile's GPU must be the planned one ({gpu_memory_gib:g} GiB). "
                f"Profile {self.name!r} was measured on {self.gpu} with {self.gpu_memory_gib:g} GiB.",
                field="profile",
                value=self.name,
                hint="give memory_gib as the profile has it, or calibrate a profile for this GPU",
            )


def _over_ranks(rank: int, times: Mapping[int, float]) -> float:
    """Return the time at a rank from those by ascending rank: see `PerformanceProfile.load_time_ms`."""
    ranks, values = list(times), list(times.values())
    if rank <= ranks[-1] or len(ranks) == 1:
        return float(np.interp(rank, ranks, values))
    slope = (values[-1] - values[-2]) / (ranks[-1] - ranks[-2])
    return max(values[-1] + slope * (rank - ranks[-1]), values[-1])


def shipped_profiles() -> tuple[str, ...]:
    """Return the names of the shipped profiles, sorted."""
    folder = resources.files("twin") / "profiles"
    return tuple(sorted(entry.name[: -len(".json")] for entry in folder.iterdir() if entry.name.endswith(".json")))


def load_profile(name: str, *, base_directory: Path | None = None) -> PerformanceProfile:
    """Return a shipped profile by name, or read the JSON file at that path.

    Raises
    ------
    ProfileError
        When the name is neither shipped nor a readable, valid profile file; the message names the field.
    """
    if name in shipped_profiles():
        text = (resources.files("twin") / "profiles" / f"{name}.json").read_text(encoding="utf-8")
        return parse_profile(text, file=f"{name}.json")
    path = (base_directory or Path()) / name
    try:
        text = read_bounded_text(path)
    except (OSError, UnicodeDecodeError) as error:
        nearest = difflib.get_close_matches(name, shipped_profiles(), n=1, cutoff=0.5)
        guess = f"did you mean {nearest[0]!r}? Otherwise " if nearest else ""
        reason = "" if isinstance(error, FileNotFoundError) else f": {getattr(error, 'strerror', error)}"
        raise ProfileError(
            f"`profile` must be one of {', '.join(shipped_profiles())} or a readable file. Got {name!r}{reason}.",
            field="profile",
            value=name,
            hint=f"{guess}name one of these, or give the path of a JSON file that `placer calibrate` wrote",
        ) from error
    return parse_profile(text, file=str(path))


def save_profile(profile: PerformanceProfile, path: Path) -> None:
    """Write a profile as JSON with sorted keys, whole or not at all (InputError when the path is not writable)."""
    write_atomically(path, json.dumps(profile.model_dump(mode="json"), indent=2, sort_keys=True) + "\n")


def parse_profile(text: str, *, file: str) -> PerformanceProfile:
    """Parse and validate a profile's JSON `text`; `file` is named in errors (ProfileError)."""
    try:
        return PerformanceProfile.model_validate(parse_json(text))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ProfileError(
            f"a profile must follow its schema. `{field}`: {first['msg']} ({file}).",
            file=file,
            field=field,
            value=first.get("input"),
        ) from error
    except ValueError as error:
        raise ProfileError(f"a profile must be valid JSON. {file}: {error}.", file=file) from error
