"""Compare what `placer measure` recorded with what the twin says of the same requests, quantity by quantity."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from placer.events import PhaseStarted, PlanObserver, announce_compilation, ignore
from placer.unmeasured import unmeasured_warnings
from twin.calibration.measured_folders import measured_model, require_model
from twin.engine import EngineConfig
from twin.errors import InputError
from twin.hardware import SHIPPED_MODELS, ModelArchitecture, load_model
from twin.latency_summary import LatencySummary
from twin.measurement.folder import open_folder
from twin.measurement.manifest import Manifest
from twin.measurement.records import FAILURES
from twin.profile import PerformanceProfile, load_profile
from twin.validation.measurement_replay import Engine, ReplayedMeasurement, Served, replay_measurement

MILLISECONDS = 1000.0


class _Document(BaseModel):
    """Part of a document: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ComparedQuantity(_Document):
    """One quantity on both sides.

    Attributes
    ----------
    measured, predicted
        ``None`` where there is no value: over HTTP, nobody saw what the engine did.
    error_percent
        100 * (predicted - measured) / measured; ``None`` without both, or where nothing was measured.
    """

    name: str
    unit: str
    measured: float | None
    predicted: float | None
    error_percent: float | None


class MeasurementValidation(_Document):
    """How well a profile predicts a measurement.

    Attributes
    ----------
    folder
        Its name.
    clock
        What its times are counted by.
    num_requests, measured_s
        That were sent, and the seconds before the workload's horizon that were measured.
    warnings
        What to know before the errors are believed.
    """

    schema_version: Literal[1] = 1
    folder: str
    kind: Literal["in_process", "endpoint"]
    clock: str
    profile: str
    model: str
    num_requests: int
    measured_s: float
    quantities: tuple[ComparedQuantity, ...]
    warnings: tuple[str, ...]


def validate_measurement(
    path: Path, *, profile: str, model: str | None = None, observer: PlanObserver = ignore
) -> MeasurementValidation:
    """Replay a measurement in the twin, and compare.

    Parameters
    ----------
    path
        Folder that `placer measure` wrote.
    profile
        A shipped name or a file.
    model
        A shipped name or a config.json; ``None``: the profile's if it is shipped, else what was measured in process.
    observer
        Told about progress.

    Raises
    ------
    InputError
        When the folder or the model cannot be read, or the server's settings are not known.
    ProfileError
        When the profile is unreadable.
    TwinError
        When the replica does not start in the twin.
    """
    observer(PhaseStarted("load", f"measurement in {path}"))
    folder, fitted = open_folder(path), load_profile(profile)
    manifest = folder.manifest
    engine = _engine(manifest, path)
    architecture = _model(manifest, path, fitted, model)
    announce_compilation(observer, (engine,))
    observer(PhaseStarted("verify", f"{manifest.workload.num_requests} requests with {fitted.name}"))
    replayed = replay_measurement(folder, fitted, architecture, engine)
    return MeasurementValidation(
        folder=path.resolve().name,
        kind=manifest.settings.kind,
        clock=manifest.clock,
        profile=fitted.name,
        model=architecture.name,
        num_requests=replayed.requests,
        measured_s=replayed.measured_s,
        quantities=tuple(_quantities(replayed)),
        warnings=(*_warnings(manifest), *_clock_warnings(manifest, fitted), *unmeasured_warnings([fitted])),
    )


def measurement_validation_to_json(validation: MeasurementValidation) -> str:
    """Return it as JSON: sorted keys, ending in a newline."""
    return json.dumps(validation.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def measurement_validation_schema() -> dict[str, Any]:
    """Return the JSON Schema of what `measurement_validation_to_json` writes."""
    return MeasurementValidation.model_json_schema(mode="serialization")


def _engine(manifest: Manifest, path: Path) -> EngineConfig:
    if manifest.server.engine is None:
        raise InputError(
            f"the server's settings must be known to replay a measurement. {path} does not have them.",
            file=str(path),
            field="server.engine",
            # They are noted when the engine is ready: this one never was, or nobody declared the server's.
            hint="declare `engine` in the workload file, or --max-loras and the like, when you measure over HTTP"
            if manifest.status == "complete"
            else f"go on with `placer measure --resume {path}`: they are there when the engine is ready",
        )
    return manifest.server.engine


def _measured(model: ModelArchitecture, manifest: Manifest, path: Path) -> ModelArchitecture:
    """Return `model` if it is what was measured, as far as that is known (InputError)."""
    require_model(measured_model(manifest), model, path)
    return model


def _model(manifest: Manifest, path: Path, profile: PerformanceProfile, given: str | None) -> ModelArchitecture:
    if given is not None:
        return _measured(load_model(given), manifest, path)
    if profile.model in SHIPPED_MODELS:
        return _measured(load_model(profile.model), manifest, path)
    if manifest.settings.kind != "in_process":
        raise InputError(
            f"the model must be shipped, or its config.json given. The profile's is {profile.model!r}, and neither.",
            field="model",
            value=profile.model,
            hint="give the path of the model's config.json with --model",
        )
    return load_model(manifest.settings.model)


def _quantities(replayed: ReplayedMeasurement) -> list[ComparedQuantity]:
    pairs = [*_of_requests(replayed)]
    if replayed.engine_measured is not None:
        pairs += _of_engines(replayed, replayed.engine_measured)
    return [
        ComparedQuantity(
            name=name,
            unit=unit,
            measured=measured,
            predicted=predicted,
            error_percent=100.0 * (predicted - measured) / measured if measured and predicted is not None else None,
        )
        for name, unit, measured, predicted in pairs
    ]


_Pair = tuple[str, str, float | None, float | None]


def _of_requests(replayed: ReplayedMeasurement) -> list[_Pair]:
    one, other, seconds = replayed.measured, replayed.simulated, max(replayed.measured_s, 1e-9)
    pairs: list[_Pair] = [
        ("throughput", "tok/s", one.finished_tokens / seconds, other.finished_tokens / seconds),
        ("finished in time", "requests", one.finished, other.finished),
    ]
    pairs += [
        (f"{label} {statistic}", "ms", _ms(one, field, statistic), _ms(other, field, statistic))
        for label, field in (("ITL", "itl"), ("TPOT", "tpot"), ("TTFT", "ttft"))
        for statistic in ("mean", "p50", "p95")
    ]
    return pairs


def _of_engines(replayed: ReplayedMeasurement, measured: Engine) -> list[_Pair]:
    total_s = max(replayed.total_s, 1e-9)
    values: dict[tuple[str, str], Callable[[Engine], float]] = {
        ("steps", ""): lambda side: side.steps,
        ("step mean", "ms"): lambda side: MILLISECONDS * (side.busy_s - side.load_s) / max(side.steps, 1),
        ("busy", "s"): lambda side: side.busy_s,
        ("running mean", "requests"): lambda side: side.running_s / total_s,
        ("preemptions", ""): lambda side: side.preemptions,
        ("copies into slots", ""): lambda side: side.gpu_loads,
        ("reads from disk", ""): lambda side: side.disk_loads,
        ("time of loads", "s"): lambda side: side.load_s,
    }
    return [(name, unit, of(measured), of(replayed.engine_simulated)) for (name, unit), of in values.items()]


def _ms(side: Served, field: str, statistic: str) -> float | None:
    summary: LatencySummary = getattr(side, field)
    value_s: float | None = getattr(summary, f"{statistic}_s")
    return None if value_s is None else MILLISECONDS * value_s


def _clock_warnings(manifest: Manifest, profile: PerformanceProfile) -> list[str]:
    """Say when the profile's times are counted by another clock than the measurement's."""
    clock = str(profile.provenance.get("clock", manifest.clock))
    if clock == manifest.clock:
        return []
    warning = f"The profile was fitted to times on the clock `{clock}`, the measurement is on `{manifest.clock}`"
    return [f"{warning}: the errors are those of the clocks, too."]


def _warnings(manifest: Manifest) -> list[str]:
    warnings = []
    if manifest.status != "complete":
        reason = (manifest.reason or "nothing says why").rstrip(".")
        warnings.append(f"The measurement is {manifest.status}: {reason}.")
    if manifest.settings.kind == "endpoint":
        warnings.append("Latencies were measured by a client: those of the server and the network are in them.")
    counts = {} if manifest.summary is None else manifest.summary.requests
    failed = sum(count for status, count in counts.items() if status in FAILURES)
    if failed:
        warnings.append(f"{failed} requests failed: those that the server took are replayed, too.")
    return warnings
