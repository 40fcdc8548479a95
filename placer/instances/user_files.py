"""Instances of users: one JSON file each, with an array per property of the adapters (docs/compare.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from placer.instances.instance import PROFILE, Instance, safe_name
from solvers.problem import Problem, parse_problem
from solvers.problem_file import Limits, ObjectiveName
from twin.bounded_read import parse_json, read_bounded
from twin.engine import EngineConfig, LoraRank
from twin.errors import InputError
from twin.hardware import GpuType
from twin.profile import load_profile

FAMILY = "user"
SUFFIX = ".json"
# Arrays with one value per adapter.
_ARRAYS = ("rank", "rate_rps", "prompt_tokens", "output_tokens")


class InstanceFile(BaseModel):
    """An instance as it stands in a JSON file; keys that are not listed are ignored, with a warning.

    Attributes
    ----------
    name
        ``None``: that of the file, without its suffix.
    rank, rate_rps, prompt_tokens, output_tokens
        One value per adapter: LoRA rank, mean requests per second, mean tokens of a prompt and of an answer.
    adapter_names
        ``None``: ``a0``, ``a1``, ...
    lower_bound
        Fewest GPUs, as somebody has proven.
    planted_gpus
        GPUs that are known to be enough.
    model, gpu_types, engine, limits, objective
        As in a problem file; by default Llama-3.1-8B on GPUs of one type with 63.43 GiB and vLLM's own settings.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int = Field(default=1, ge=1, le=1)
    name: str | None = Field(default=None, min_length=1)
    rank: tuple[LoraRank, ...] = Field(min_length=1)
    rate_rps: tuple[float, ...]
    prompt_tokens: tuple[float, ...]
    output_tokens: tuple[float, ...]
    adapter_names: tuple[str, ...] | None = None
    lower_bound: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    planted_gpus: int | None = Field(default=None, ge=1)
    model: str = Field(default="llama-3.1-8b", min_length=1)
    gpu_types: tuple[GpuType, ...] | None = Field(default=None, min_length=1)
    engine: EngineConfig = EngineConfig()
    limits: Limits = Limits()
    objective: ObjectiveName = "fewest_gpus"

    @model_validator(mode="after")
    def _check_arrays(self) -> InstanceFile:
        lengths = {name: len(getattr(self, name)) for name in _ARRAYS}
        if self.adapter_names is not None:
            lengths["adapter_names"] = len(self.adapter_names)
        if len(set(lengths.values())) != 1:
            given = ", ".join(f"`{name}` has {count}" for name, count in lengths.items())
            raise ValueError(f"all arrays must have one value per adapter. {given}")
        for name, least in (("rate_rps", 0.0), ("prompt_tokens", 1.0), ("output_tokens", 1.0)):
            for position, value in enumerate(getattr(self, name)):
                if not (math.isfinite(value) and value >= least):
                    raise ValueError(f"`{name}[{position}]` must be finite and at least {least:g}. Got {value}")
        return self


@dataclass(frozen=True)
class UserInstances:
    """What a folder holds, and sentences about keys that were ignored."""

    instances: tuple[Instance, ...]
    warnings: tuple[str, ...]


def read_instances(folder: str | Path) -> UserInstances:
    """Read every ``*.json`` of a folder as an instance, in the order of the file names; or one such file.

    Raises
    ------
    InputError
        When there is none, or one is no instance; the message names file, field and value.
    """
    path = Path(folder)
    files = [path] if path.is_file() else sorted(path.glob(f"*{SUFFIX}"))
    if not files:
        raise InputError(
            f"`--instances` must be a folder with at least one {SUFFIX} file. {path} has none.",
            file=str(path),
            field="instances",
            value=str(path),
            hint="docs/compare.md describes the files",
        )
    instances, warnings = [], []
    for file in files:
        instance, ignored = read_instance(file)
        instances.append(instance)
        if ignored:
            warnings.append(f"{file}: ignored {', '.join(f'`{key}`' for key in ignored)}")
    return UserInstances(tuple(instances), tuple(warnings))


def read_instance(file: Path) -> tuple[Instance, tuple[str, ...]]:
    """Return the instance of a JSON file, and the keys that were ignored (InputError)."""
    data = _read(file)
    ignored = tuple(sorted(set(data) - set(InstanceFile.model_fields)))
    try:
        content = InstanceFile.model_validate(data)
    except ValidationError as error:
        raise _translated(error, file) from error
    name = safe_name(content.name or file.name.removesuffix(SUFFIX))
    instance = Instance(
        name=name,
        family=FAMILY,
        what=str(file.name),
        problem=_problem_of(content, data, file),
        lower_bound=None if not content.lower_bound else math.ceil(content.lower_bound - 1e-9),
        planted_gpus=content.planted_gpus,
    )
    return instance, ignored


def _read(file: Path) -> dict[str, Any]:
    try:
        data = parse_json(read_bounded(file))
    except OSError as error:
        raise InputError(
            f"an instance must be a readable file. {file}: {error.strerror}.", file=str(file), hint="check the path"
        ) from error
    except ValueError as error:
        raise InputError(f"an instance must be JSON. {file}: {error}.", file=str(file)) from error
    if not isinstance(data, dict):
        raise InputError(
            f"an instance must be a JSON object with {', '.join(_ARRAYS)}. {file} holds a {type(data).__name__}.",
            file=str(file),
        )
    return data


def _problem_of(content: InstanceFile, data: dict[str, Any], file: Path) -> Problem:
    """Return the problem, checked as that of a problem file is."""
    names: Sequence[str] = content.adapter_names or [f"a{index}" for index in range(len(content.rank))]
    adapters = [
        {
            "name": name,
            "rank": rank,
            "rate_rps": rate,
            "prompt_tokens": {"mean": prompt},
            "output_tokens": {"mean": output},
        }
        for name, rank, rate, prompt, output in zip(
            names, content.rank, content.rate_rps, content.prompt_tokens, content.output_tokens, strict=True
        )
    ]
    if content.gpu_types is None:
        profile = load_profile(PROFILE)
        gpu_types: Any = [{"name": profile.gpu, "memory_gib": profile.gpu_memory_gib, "profile": PROFILE}]
    else:
        gpu_types = data["gpu_types"]
    document = {
        "model": content.model,
        "gpu_types": gpu_types,
        "engine": data.get("engine", {}),
        "limits": data.get("limits", {}),
        "objective": content.objective,
        "adapters": adapters,
    }
    return parse_problem(document, file=str(file), base_directory=file.parent)


def _translated(error: ValidationError, file: Path) -> InputError:
    """Return the first finding as an error that names file, field and value."""
    first = error.errors(include_url=False)[0]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).removeprefix(".")
    others = error.error_count() - 1
    more = f" And {others} more." if others else ""
    reason = first["msg"].removeprefix("Value error, ")
    is_missing = first["type"] == "missing"
    value = None if is_missing or not path else first.get("input")
    got = f" Got {value!r}." if path and not is_missing else ""
    return InputError(
        f"an instance must follow its schema. {f'`{path}`: ' if path else ''}{reason}.{got}{more} ({file})",
        file=str(file),
        field=".".join(str(part) for part in first["loc"]) or None,
        value=value,
        hint="docs/compare.md describes the file",
    )
