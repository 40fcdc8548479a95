"""Measure a real vLLM into a folder, go on with a measurement that was interrupted, or finish its tables."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from placer.measure_workload import MeasuredWorkload, declared_settings
from twin.errors import InputError, TwinError
from twin.measurement.folder import MeasurementFolder, create_folder, open_folder
from twin.measurement.in_process import InProcessDriver, engine_environment
from twin.measurement.interrupts import StopRequest, signals_stop
from twin.measurement.machine import client_versions, machine_facts
from twin.measurement.manifest import EndpointSettings, InProcessSettings, Manifest, WorkloadFacts
from twin.measurement.preparation import engine_arguments, require_adapters, require_lengths, require_model
from twin.measurement.session import Driver, Progress, complete_without_rest, run_segment, settle, unsent_rows
from twin.vllm_python import find_vllm_python, require_supported
from twin.workload import RequestTable

Settings = InProcessSettings | EndpointSettings


@dataclass(frozen=True)
class MeasurementOutcome:
    """A measurement as it is now; `cause` says what ended it early just now, ``None``: nothing did."""

    path: Path
    manifest: Manifest
    cause: Literal["interrupted", "failed"] | None


def in_process_settings(
    content: MeasuredWorkload,
    *,
    model: str | None,
    adapter_directory: Path | None,
    engine: dict[str, Any],
    seed: int,
    options: dict[str, Any],
) -> InProcessSettings:
    """Return how an engine is to be run in process, checked as far as it can be without starting it.

    Parameters
    ----------
    content
        What is to be measured.
    model, adapter_directory
        Instead of what the workload file names or has beside it.
    engine
        Arguments of vLLM's engine that win over those of the file.
    seed
        Of the measurement.
    options
        Other fields of `InProcessSettings`.

    Raises
    ------
    InputError
        When no model is named, an adapter is not there, an option is out of range, or a setting would make the records
        wrong.
    """
    adapters = adapter_directory or content.adapter_folder
    if adapters is None:
        raise InputError(
            "the folder that holds a folder per adapter must be given. There is no folder `adapters` beside "
            f"{content.file}.",
            field="adapter-directory",
            hint="give it with --adapter-directory",
        )
    require_adapters(adapters, content.workload)
    try:
        return InProcessSettings(
            model=_model(content, model),
            adapter_directory=str(adapters.resolve()),
            engine=engine_arguments(content.engine, content.given, content.workload, engine),
            environment=engine_environment(seed),
            **options,
        )
    except ValidationError as error:
        raise _bad_setting(error) from error


def endpoint_settings(
    content: MeasuredWorkload, *, url: str, engine: dict[str, Any], options: dict[str, Any]
) -> EndpointSettings:
    """Return how a server is to be asked.

    Parameters
    ----------
    content
        What is to be measured.
    url
        Of the server, with or without ``/v1``.
    engine
        Settings that the server was started with, besides those of the workload file.
    options
        Other fields of `EndpointSettings`.

    Raises
    ------
    InputError
        When the URL is none, or an option is out of range.
    """
    if not url.startswith(("http://", "https://")):
        raise InputError(
            f"`--endpoint` must be the URL of a server. Got {url!r}.",
            field="endpoint",
            value=url,
            hint="such as http://localhost:8000",
        )
    base = url.rstrip("/").removesuffix("/v1").rstrip("/")
    fields: dict[str, Any] = {"metrics_url": f"{base}/metrics"}
    if content.architecture is not None:
        fields["vocab_size"] = content.architecture.vocab_size
    try:
        return EndpointSettings(url=base, engine=declared_settings(content, engine), **(fields | options))
    except ValidationError as error:
        raise _bad_setting(error) from error


def start_measurement(
    output: Path,
    content: MeasuredWorkload,
    settings: Settings,
    *,
    horizon_s: float,
    seed: int,
    on_progress: Callable[[Progress], None],
) -> MeasurementOutcome:
    """Measure a workload into a new folder.

    Raises
    ------
    InputError
        When the folder is not empty, or the workload or a setting cannot be used.
    TwinError
        When vLLM or a library is missing, or the engine or the server does not start or answer.
    """
    workload = content.workload
    horizon_s = min(horizon_s, workload.longest_horizon_s)
    if not 0 <= horizon_s < math.inf:
        raise InputError(
            f"the horizon must be a number of seconds. Got {horizon_s:g}.",
            field="horizon",
            value=horizon_s,
            hint="such as --horizon 60",
        )
    requests = workload.requests(horizon_s=horizon_s, seed=seed)
    require_requests(requests, horizon_s)
    require_lengths(requests, _max_model_len(content, settings))
    # What is missing must be known before there is a folder.
    driver = driver_of(settings)
    folder = create_folder(output, _manifest(content, settings, requests, horizon_s, seed), requests, workload)
    with folder.lock():
        return _run(folder, driver, on_progress)


def resume_measurement(path: Path, on_progress: Callable[[Progress], None]) -> MeasurementOutcome:
    """Send what a measurement has not sent yet; one that has sent everything is complete (errors as for a new one)."""
    with open_folder(path).lock():
        # The other process may have changed it before it let go.
        folder = open_folder(path)
        settle(folder)
        if folder.manifest.status == "complete":
            return MeasurementOutcome(path, folder.manifest, None)
        if len(unsent_rows(folder, folder.schedule())) == 0:
            return MeasurementOutcome(path, complete_without_rest(folder), None)
        return _run(folder, driver_of(folder.manifest.settings), on_progress)


def finish_measurement(path: Path) -> MeasurementOutcome:
    """Make the tables of everything that was recorded, of a measurement that was killed (InputError, TwinError)."""
    with open_folder(path).lock():
        folder = open_folder(path)
        manifest = settle(folder)
    return MeasurementOutcome(path, manifest, None)


def driver_of(settings: Settings) -> Driver:
    """Return what runs the segments of a measurement.

    Raises
    ------
    InputError
        When the model is not there.
    TwinError
        When vLLM or a library is not installed.
    """
    if isinstance(settings, InProcessSettings):
        require_model(settings.model, settings.environment)
        python = find_vllm_python()
        require_supported(python)
        return InProcessDriver(settings, python)
    try:
        from twin.measurement.endpoint import EndpointDriver  # noqa: PLC0415 - an optional library
    except ImportError as error:
        library = (error.name or "aiohttp").partition(".")[0]
        raise TwinError(
            f"{library} must be installed to measure over HTTP. It is not.",
            field=library,
            hint="install the extra: pip install 'lora-placer[measure]'",
        ) from error
    return EndpointDriver(settings)


def require_requests(requests: RequestTable, horizon_s: float) -> None:
    """Raise InputError when there is nothing to measure."""
    if len(requests) == 0:
        raise InputError(
            f"at least one request must arrive. None does in {horizon_s:g} s.",
            field="horizon",
            value=horizon_s,
            hint="give a longer --horizon, or higher rates",
        )


def _bad_setting(error: ValidationError) -> InputError:
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    return InputError(
        f"`{name}` is out of range: {first['msg']}. Got {first.get('input')!r}.", field=name, value=first.get("input")
    )


def _run(folder: MeasurementFolder, driver: Driver, on_progress: Callable[[Progress], None]) -> MeasurementOutcome:
    stop = StopRequest()
    with signals_stop(stop):
        outcome = run_segment(folder, driver, stop, on_progress)
    return MeasurementOutcome(folder.path, folder.manifest, outcome.cause)


def _manifest(
    content: MeasuredWorkload, settings: Settings, requests: RequestTable, horizon_s: float, seed: int
) -> Manifest:
    return Manifest(
        workload=WorkloadFacts(
            file=content.file.name,
            sha256=content.sha256,
            adapters=content.workload.adapters,
            num_requests=len(requests),
            horizon_s=horizon_s,
            seed=seed,
        ),
        settings=settings,
        versions=client_versions(),
        machine=machine_facts(),
    )


def _model(content: MeasuredWorkload, given: str | None) -> str:
    """Return the folder of the model, or its name in the local cache."""
    if given is not None:
        path = Path(given)
        return str((path.parent if path.is_file() else path).resolve()) if path.exists() else given
    folder = content.model_folder
    if folder is None:
        raise InputError(
            f"in process, the model must be a folder with its weights. {content.file} names {content.model!r}, which "
            "is none.",
            field="model",
            value=content.model,
            hint="give the folder, or the model's name in the local Hugging Face cache, with --model",
        )
    return str(folder.resolve())


def _max_model_len(content: MeasuredWorkload, settings: Settings) -> int | None:
    longest = settings.engine.get("max_model_len")
    if isinstance(longest, int):
        return longest
    architecture = content.architecture
    # A server is asked for its own.
    if architecture is None or isinstance(settings, EndpointSettings):
        return None
    return architecture.max_model_len
