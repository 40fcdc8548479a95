"""GPUs that the twin was asked about while plans were made, kept in a folder: what surrogates are corrected with.

One file per GPU, named by its content: planning again adds nothing twice, several commands may write into one folder,
and what was recorded before an interruption stays. Names of adapters are not kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from predictors.provenance import profile_identity
from twin.atomic_write import write_atomically
from twin.bounded_read import read_bounded
from twin.engine import EngineConfig, LoraRank
from twin.errors import InputError
from twin.lengths import LengthDistribution
from twin.replica import Replica
from twin.workload import Adapter, Workload

_FILE = re.compile(r"gpu-[0-9a-f]+\.json")
_KEY_DIGITS = 24


class _Document(BaseModel):
    """Part of a record: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RecordedAdapter(_Document):
    """An adapter without its name; see `twin.workload.Adapter`."""

    rank: LoraRank
    rate_rps: float = Field(ge=0, allow_inf_nan=False)
    prompt_tokens: LengthDistribution
    output_tokens: LengthDistribution
    gap_cv: float = Field(default=1.0, ge=0, le=20, allow_inf_nan=False)
    gap_law: Literal["gamma", "lognormal"] = "gamma"

    @classmethod
    def of(cls, adapter: Adapter) -> RecordedAdapter:
        """Return what is kept of an adapter."""
        return cls.model_validate(adapter.model_dump(exclude={"name"}))


class TwinVerdict(_Document):
    """What the twin said when the plan was made; labels are simulated anew, as those of the data set are.

    Attributes
    ----------
    engine, horizon_s, warmup_s, seed
        Of the simulation.
    verdict
        Rejected also for a latency limit of the problem.
    """

    engine: str
    horizon_s: float
    warmup_s: float
    seed: int
    throughput_ratio: float
    num_starved_adapters: int
    verdict: Literal["accepted", "rejected"]


class RecordedGpu(_Document):
    """A GPU with the settings and adapters that the twin was asked about.

    Attributes
    ----------
    profile
        Name and fingerprint of the performance profile that the twin used.
    workload
        Hash of all adapters of the problem: GPUs of one workload are alike, and are held out together.
    memory_gib
        Of the GPU.
    engine
        All of vLLM's settings.
    adapters
        Sorted; at least one of them has a rate above 0.
    verdict
        Of the first time.
    """

    schema_version: Literal[1] = 1
    profile: dict[str, str]
    workload: str
    memory_gib: float = Field(gt=0, allow_inf_nan=False)
    engine: EngineConfig
    adapters: tuple[RecordedAdapter, ...]
    verdict: TwinVerdict

    @model_validator(mode="after")
    def _check_traffic(self) -> RecordedGpu:
        if not any(adapter.rate_rps > 0.0 for adapter in self.adapters):
            raise ValueError("at least one adapter must have a `rate_rps` above 0")
        return self

    @cached_property
    def key(self) -> str:
        """Hash of what was simulated: not of the verdict, nor of the other adapters of the problem."""
        return _hash_of(self.model_dump(mode="json", exclude={"verdict", "workload"}))

    @classmethod
    def of(cls, adapters: Iterable[Adapter], replica: Replica, *, workload: str, verdict: TwinVerdict) -> RecordedGpu:
        """Return the record of a replica that serves `adapters`, in any order."""
        return cls(
            profile=profile_identity(replica.profile),
            workload=workload,
            memory_gib=replica.gpu.memory_gib,
            engine=replica.engine,
            adapters=tuple(sorted(map(RecordedAdapter.of, adapters), key=_order)),
            verdict=verdict,
        )


def workload_key(workload: Workload) -> str:
    """Return the hash of a problem's adapters, whatever their names and order."""
    adapters = sorted(map(RecordedAdapter.of, workload.adapters), key=_order)
    return _hash_of([adapter.model_dump(mode="json") for adapter in adapters])


def prepare_folder(folder: Path, *, option: str) -> None:
    """Create the folder of records, where there is none.

    Raises
    ------
    InputError
        When it cannot be written; `option` is named in the message.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(folder, os.W_OK | os.X_OK) else "no permission to write"
    except OSError as error:
        reason = error.strerror
    if reason is not None:
        raise InputError(
            f"`{option}` must be a folder that can be written. {folder}: {reason}.",
            file=str(folder),
            field=option.removeprefix("--"),
            value=str(folder),
            hint="give another folder",
        )


def write_recorded(folder: Path, gpu: RecordedGpu) -> bool:
    """Write a record whole or not at all, unless the folder has it; return whether it was new.

    Raises
    ------
    InputError
        When the file cannot be written.
    """
    path = folder / f"gpu-{gpu.key}.json"
    if path.is_file():
        return False
    write_atomically(path, json.dumps(gpu.model_dump(mode="json", exclude_none=True), sort_keys=True) + "\n")
    return True


def read_recorded(folder: Path) -> Mapping[str, RecordedGpu]:
    """Return the records of a folder by their key, in its order; other files are passed over.

    Raises
    ------
    InputError
        When there is no such folder, or a record cannot be read.
    """
    if not folder.is_dir():
        raise InputError(
            f"recorded GPUs must be in a folder. {folder} is none.",
            file=str(folder),
            field="from-rejections",
            value=str(folder),
            hint="record some with `placer solve PROBLEM --record-rejections FOLDER`",
        )
    paths = sorted(path for path in folder.iterdir() if _FILE.fullmatch(path.name))
    records = {record.key: record for record in map(_read, paths)}
    return dict(sorted(records.items()))


def _read(path: Path) -> RecordedGpu:
    try:
        return RecordedGpu.model_validate_json(read_bounded(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or None
        reason = f"{field or 'it'}: {first['msg']}"
    except OSError as error:
        field, reason = None, error.strerror or str(error)
    raise InputError(
        f"a recorded GPU must be a complete record of this version. {path}: {reason}.",
        file=str(path),
        field=field,
        hint="delete the file; the next plan that needs such a GPU records it again",
    )


def _hash_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:_KEY_DIGITS]


def _order(adapter: RecordedAdapter) -> str:
    return json.dumps(adapter.model_dump(mode="json"), sort_keys=True)
