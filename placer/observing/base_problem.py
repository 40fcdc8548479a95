"""The problem that an observation starts from: its adapters, and everything in it that cannot be observed."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from placer.files import load_problem, read_document
from placer.workload_builder import (
    DEFAULT_ENGINE,
    DEFAULT_GPU,
    DEFAULT_LIMITS,
    DEFAULT_MODEL,
    DEFAULT_OBJECTIVE,
    SCHEMA_VERSION,
)
from twin.derive import adapters_to_records
from twin.engine import SUPPORTED_RANKS
from twin.errors import InputError
from twin.workload import Adapter

ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class BaseProblem:
    """A problem file without its traffic.

    Attributes
    ----------
    content
        Keys of the file but `adapters` and `trace`, in its order; paths start from where the new file will be.
    adapters, records
        Its adapters, and each as it stands in the file, by name.
    remarks
        What the user should be told.
    """

    content: dict[str, Any]
    adapters: tuple[Adapter, ...]
    records: dict[str, dict[str, Any]]
    remarks: tuple[str, ...] = ()


def no_problem(model: str = DEFAULT_MODEL) -> BaseProblem:
    """Return what is assumed where no problem is given: the shipped profile's GPU, engine and limits."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "model": model,
        "gpu_types": [dict(DEFAULT_GPU)],
        "engine": dict(DEFAULT_ENGINE),
        "objective": DEFAULT_OBJECTIVE,
        "limits": dict(DEFAULT_LIMITS),
    }
    told = f"model {model}, GPU type {DEFAULT_GPU['name']}, engine and limits are the defaults: --problem gives yours"
    return BaseProblem(content, (), {}, (told,))


def read_problem(path: Path, *, folder: Path) -> BaseProblem:
    """Read the problem that is to be updated.

    Parameters
    ----------
    path
        The file.
    folder
        Where the new one will be.

    Raises
    ------
    InputError, ProfileError
        When it is no valid problem.
    """
    problem = load_problem(path)
    data, _ = read_document(path)
    adapters = problem.workload.adapters
    own = {str(record["name"]): dict(record) for record in data.get("adapters") or ()}
    derived = {record["name"]: record for record in adapters_to_records(problem.workload)}
    content = {key: value for key, value in data.items() if key not in {"adapters", "trace"}}
    content["gpu_types"] = [_moved(entry, "profile", path.parent, folder) for entry in content["gpu_types"]]
    content = _moved(content, "model", path.parent, folder)
    remarks = [
        f"`{key}` of {path} stay as they are, on top of what was observed"
        for key in ("phases", "scenarios")
        if content.get(key)
    ]
    return BaseProblem(content, adapters, own or derived, tuple(remarks))


def rank_of(name: str, adapter_folder: Path | None) -> int | None:
    """Return the rank that an adapter's own configuration says, as vLLM will hold it; ``None``: there is none.

    Parameters
    ----------
    name
        Of the adapter.
    adapter_folder
        Has a folder for each adapter by its name, as PEFT writes them.

    Raises
    ------
    InputError
        When the configuration cannot be read, or its rank is more than vLLM takes.
    """
    if adapter_folder is None or Path(name).name != name:
        return None
    path = adapter_folder / name / ADAPTER_CONFIG
    try:
        rank = int(json.loads(path.read_bytes())["r"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"an adapter's configuration must have its rank `r`. {path}: {error}.", file=str(path), field="r"
        ) from error
    for supported in SUPPORTED_RANKS:
        if rank <= supported:
            return supported
    raise InputError(
        f"`r` must be at most {max(SUPPORTED_RANKS)}. Got {rank} ({path}).", file=str(path), field="r", value=rank
    )


def _moved(entry: dict[str, Any], key: str, old: Path, new: Path) -> dict[str, Any]:
    """Return an entry whose path, if it is one, starts from the new folder."""
    value = entry.get(key)
    if not isinstance(value, str) or Path(value).is_absolute() or not (old / value).exists():
        return entry
    return entry | {key: os.path.relpath(old / value, new)}
