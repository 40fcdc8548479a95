"""Read what is to be measured: a problem file without need of GPU types, or one GPU of a plan."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from placer.files import load_plan, load_problem, read_document, sha256_of
from placer.recheck import select_gpus
from placer.simulation import replica_for
from solvers.problem import load_workload
from solvers.problem_errors import ProblemSource, translate
from solvers.problem_file import ProblemFile
from twin.engine import EngineConfig
from twin.errors import InputError
from twin.hardware import GpuType, ModelArchitecture, load_model
from twin.measurement.preparation import ENGINE_ARGUMENTS
from twin.workload import Workload

ADAPTER_FOLDER = "adapters"


class MeasuredFile(ProblemFile):
    """A problem file for measuring: what is placed on which GPUs is not asked."""

    gpu_types: tuple[GpuType, ...] = ()


@dataclass(frozen=True)
class MeasuredWorkload:
    """What is to be measured.

    Attributes
    ----------
    workload
        Adapters and their traffic.
    engine, given
        Settings, and which of them were chosen by the file or the plan.
    model, folder
        The model as the file names it, and the folder that relative paths in it start from.
    file, sha256
        Where it comes from.
    """

    workload: Workload
    engine: EngineConfig
    given: frozenset[str]
    model: str
    folder: Path
    file: Path
    sha256: str

    @property
    def architecture(self) -> ModelArchitecture | None:
        """The model's dimensions; ``None`` where nothing here knows them."""
        try:
            return load_model(self.model, base_directory=self.folder)
        except InputError:
            return None

    @property
    def model_folder(self) -> Path | None:
        """The folder of the model, where the file names one or its config.json."""
        path = self.folder / self.model
        return path.parent if path.is_file() else path if path.is_dir() else None

    @property
    def adapter_folder(self) -> Path | None:
        """The folder ``adapters`` beside the file, if there is one."""
        path = self.folder / ADAPTER_FOLDER
        return path if path.is_dir() else None


def load_measured_workload(path: Path, *, plan: Path | None = None, gpu: str | None = None) -> MeasuredWorkload:
    """Read a workload.

    Parameters
    ----------
    path
        A problem file; `gpu_types`, `objective` and `limits` may be left out.
    plan, gpu
        A plan.json and the name of one of its GPUs: its adapters and its settings only.

    Raises
    ------
    InputError
        When a file cannot be used, or does not have what is asked for.
    """
    data, content = read_document(path)
    if plan is not None:
        workload, replica = replica_for(load_problem(path), plan=plan, gpu=gpu, max_loras=None, max_lora_rank=None)
        workload = _with_names(workload, plan, gpu)
        engine = replica.engine
        given = frozenset(name for name in ENGINE_ARGUMENTS if getattr(engine, name) is not None)
    else:
        if gpu is not None:
            raise InputError(
                f"`--gpu` must come with --plan. Got {gpu!r} alone.", field="gpu", value=gpu, hint="give the plan.json"
            )
        parsed, source = _parse(data, path)
        workload, engine = load_workload(parsed, source, path.parent), parsed.engine
        given = frozenset(engine.model_fields_set & set(data.get("engine") or {}))
    return MeasuredWorkload(
        workload=workload,
        engine=engine,
        given=given,
        model=str(data["model"]),
        folder=path.parent,
        file=path,
        sha256=sha256_of(content),
    )


def _with_names(workload: Workload, plan: Path, gpu: str | None) -> Workload:
    """Return the workload of a plan's GPU with the names of its adapters, which a server knows, also for shares."""
    (planned,) = select_gpus(load_plan(plan), () if gpu is None else (gpu,))
    named = zip(workload.adapters, planned.adapters, strict=True)
    return replace(workload, adapters=tuple(adapter.model_copy(update={"name": name}) for adapter, name in named))


def parse_engine_arguments(given: Sequence[str]) -> dict[str, Any]:
    """Return ``NAME=VALUE`` texts by vLLM's names; values are JSON where they can be (InputError)."""
    arguments: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if not (equals and name.isidentifier()):
            raise InputError(
                f"an engine argument must be NAME=VALUE. Got {text!r}.",
                field="engine-argument",
                value=text,
                hint="such as --engine-argument max_num_seqs=64",
            )
        if name in arguments:
            raise InputError(
                f"an engine argument must be given once. Got `{name}` again.", field="engine-argument", value=text
            )
        try:
            arguments[name] = json.loads(value)
        except ValueError:
            # vLLM takes words such as bfloat16.
            arguments[name] = value
    return arguments


def declared_settings(content: MeasuredWorkload, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known about a server that was started by somebody else, by vLLM's names."""
    return {name: getattr(content.engine, name) for name in sorted(content.given)} | dict(extra)


def _parse(data: Any, path: Path) -> tuple[MeasuredFile, ProblemSource]:
    source = ProblemSource(data, str(path))
    if not isinstance(data, dict):
        raise source.error(
            f"a workload must be a mapping of fields such as `model` and `adapters`. Got {type(data).__name__}",
            location=(),
        )
    try:
        return MeasuredFile.model_validate(data), source
    except ValidationError as error:
        raise translate(error, source, MeasuredFile) from error
