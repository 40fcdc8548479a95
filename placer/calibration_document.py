"""The report of a calibration: errors per regime, parameters with intervals and origin, and what was not measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from twin.calibration.coverage import RunCoverage, coverage_warnings, identification_warnings
from twin.calibration.described_fit import ProfileFit
from twin.calibration.observations import StepObservations
from twin.calibration.origins import Origin
from twin.calibration.prior import bands_of, is_prior
from twin.calibration.step_fit import predicted_ms
from twin.profile import PerformanceProfile, StepTimeCoefficients
from twin.step_time import COEFFICIENT_NAMES

# Origins of coefficients about which the measurements should say something.
_JUDGED: frozenset[Origin] = frozenset({"fitted", "at bound", "joint", "no data"})


class _Document(BaseModel):
    """Part of a report: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RegimeScore(_Document):
    """Relative errors (predicted / measured - 1) of one kind of measurements, in percent."""

    regime: str
    num_rows: int
    mape_percent: float
    bias_percent: float
    max_percent: float


class ReadSource(_Document):
    """What came of one kind of source: windows between scrapes of metrics, or results of a benchmark.

    Attributes
    ----------
    read, used
        How many there were, and how many of them the fit has.
    dropped
        The others by reason.
    """

    kind: str
    files: tuple[str, ...]
    read: int
    used: int
    dropped: dict[str, int]


class ServingEvidence(_Document):
    """What metrics and results of benchmarks gave.

    Attributes
    ----------
    assumed
        What they do not tell and had to be assumed.
    unread
        Files beside them that are nothing known.
    windows
        Measurements of a mean step time, alike ones put together.
    """

    sources: tuple[ReadSource, ...]
    assumed: tuple[str, ...]
    unread: tuple[str, ...]
    windows: int


class CalibratedParameter(_Document):
    """A coefficient of the step time.

    Attributes
    ----------
    unit
        Of `value` and the interval.
    meaning
        What it is multiplied by.
    low, high
        95 % interval; of a prior its band; ``None`` where nothing is known about it.
    prior
        Value before the measurements; ``None`` where no prior was used.
    """

    name: str
    unit: str
    meaning: str
    value: float
    low: float | None
    high: float | None
    origin: Origin
    prior: float | None


class CalibrationReport(_Document):
    """How good a profile is, and what it does not know.

    Attributes
    ----------
    kind
        ``prior``: no step time was measured.
    method
        How the step times were found.
    sources
        Tables by name, with their hash.
    from_prior
        Tables that were not there: these parts of the profile are the prior's.
    prior
        Name of the prior; ``None`` where none was used.
    regimes, left_out
        Errors on what was fitted; and on each regime by a fit to all others: the honest guess of the error in a regime
        that was not measured.
    serving_runs
        What the fit to serving runs says about them, if there were any.
    serving
        What metrics and results of benchmarks gave; ``None`` without any.
    warnings
        What is doubtful about the measurements, what was not measured, and what cannot be told from them.
    """

    schema_version: Literal[1] = 1
    name: str
    model: str
    gpu: str
    gpu_memory_gib: float
    vllm_version: str
    kind: Literal["calibrated", "prior"]
    method: str
    sources: dict[str, str]
    from_prior: tuple[str, ...]
    prior: str | None
    num_measurements: int
    regimes: tuple[RegimeScore, ...]
    left_out: tuple[RegimeScore, ...]
    serving_runs: dict[str, Any] | None
    serving: ServingEvidence | None
    parameters: tuple[CalibratedParameter, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class ResidualPoint:
    """One measurement beside its prediction, both in milliseconds; counts are means over its steps."""

    regime: str
    tokens: float
    requests: float
    context_tokens: float
    slots: float
    adapters: float
    measured_ms: float
    predicted_ms: float


def build_report(fit: ProfileFit, doubts: Sequence[str] = ()) -> CalibrationReport:
    """Return the report of a fitted profile; `doubts` about the measurements come first in its warnings."""
    profile, observations = fit.profile, fit.observations
    provenance = profile.provenance
    steps: dict[str, Any] = provenance.get("step_time", {})
    prior: dict[str, Any] = provenance.get("prior", {})
    parameters = tuple(_parameter(name, fit) for name in COEFFICIENT_NAMES)
    unmeasured = is_prior(profile)
    return CalibrationReport(
        name=profile.name,
        model=profile.model,
        gpu=profile.gpu,
        gpu_memory_gib=profile.gpu_memory_gib,
        vllm_version=profile.vllm_version,
        kind="prior" if unmeasured else "calibrated",
        method=str(steps.get("method", provenance.get("method", ""))),
        sources=provenance.get("sources", {}),
        from_prior=tuple(prior.get("tables", ())),
        prior=prior.get("profile"),
        num_measurements=len(observations.time_ms),
        regimes=_scores(steps.get("in_sample_percent", {})),
        left_out=_scores(steps.get("left_out_percent", {})),
        serving_runs=steps.get("serving_runs"),
        serving=provenance.get("serving"),
        parameters=parameters,
        warnings=(*doubts, *_warnings(fit, parameters)),
    )


def residual_points(profile: PerformanceProfile, observations: StepObservations) -> tuple[ResidualPoint, ...]:
    """Return each measurement beside what the profile says."""
    if len(observations.time_ms) == 0:
        return ()
    o = observations.steps
    values = (o.tokens, o.requests, o.context_tokens, o.slots, o.adapters)
    columns = [observations.means(column).tolist() for column in values]
    predicted = predicted_ms(observations, profile.step_time.model_dump()).tolist()
    rows = zip(observations.regime.tolist(), *columns, observations.time_ms.tolist(), predicted, strict=True)
    return tuple(ResidualPoint(*row) for row in rows)


def report_to_json(report: CalibrationReport) -> str:
    """Return a report as JSON: sorted keys, ending in a newline."""
    return json.dumps(report.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def calibration_schema() -> dict[str, Any]:
    """Return the JSON Schema of what `report_to_json` writes."""
    return CalibrationReport.model_json_schema(mode="serialization")


def _parameter(name: str, fit: ProfileFit) -> CalibratedParameter:
    profile = fit.profile
    steps: dict[str, Any] = profile.provenance.get("step_time", {})
    value = float(getattr(profile.step_time, name))
    low, high = steps.get("intervals_95", {}).get(name, (None, None))
    origin: Origin = steps.get("origins", {}).get(name, "prior")
    if is_prior(profile):
        band = bands_of(profile)[name]
        origin, low, high = "prior", value / band, value * band
    if origin == "no data":
        low, high = None, None
    prior_values: dict[str, float] = profile.provenance.get("prior", {}).get("values", {})
    return CalibratedParameter(
        name=name,
        unit="ms",
        meaning=str(StepTimeCoefficients.model_fields[name].description),
        value=value,
        low=low,
        high=high,
        origin=origin,
        prior=prior_values.get(name),
    )


def _scores(table: dict[str, dict[str, float]]) -> tuple[RegimeScore, ...]:
    return tuple(
        RegimeScore(
            regime=regime,
            num_rows=int(row["rows"]),
            mape_percent=row["mape"],
            bias_percent=row["bias"],
            max_percent=row["max"],
        )
        for regime, row in table.items()
    )


def _capacity_warnings(profile: PerformanceProfile) -> list[str]:
    """Return what happened to the rows of a table of KV capacities that cannot all be kept."""
    report: dict[str, int] = profile.provenance.get("memory", {})
    memory, warnings = profile.memory, []
    if report.get("other_settings"):
        warnings.append(
            f"{report['other_settings']} of {report['rows']} measured KV capacities are not of the most frequent "
            f"settings (gpu_memory_utilization {memory.measured_utilization:g}, max_num_seqs "
            f"{memory.measured_max_num_seqs}): they count in the overhead, and capacities of other settings are "
            "computed with it."
        )
    if report.get("contradicting"):
        warnings.append(
            f"{report['contradicting']} measured KV capacities differ although their settings are the same: the least "
            "of each setting is kept."
        )
    return warnings


def _warnings(fit: ProfileFit, parameters: tuple[CalibratedParameter, ...]) -> tuple[str, ...]:
    profile = fit.profile
    warnings = []
    tables = profile.provenance.get("prior", {}).get("tables", ())
    if tables:
        warnings.append(f"Not measured, and the prior's: {', '.join(tables)}.")
    unread = profile.provenance.get("serving", {}).get("unread", ())
    if unread:
        warnings.append(f"Not read, because they are no tables, metrics or results: {', '.join(unread)}.")
    estimated: dict[str, list[int]] = profile.provenance.get("load_times", {}).get("ranks_from_prior", {})
    warnings += [
        f"Loads {kind.replace('_', ' ')} of rank {', '.join(str(rank) for rank in ranks)} were not measured: "
        "the prior's, scaled to those that were."
        for kind, ranks in estimated.items()
        if ranks
    ]
    warnings += _capacity_warnings(profile)
    bounds = {entry.name: (entry.low or 0.0, entry.high or 0.0) for entry in parameters if entry.origin in _JUDGED}
    kept = [entry.name for entry in parameters if entry.origin == "prior"]
    if kept and not is_prior(profile):
        warnings.append(
            f"The measurements do not identify these coefficients, which stay the prior's: {', '.join(kept)}."
        )
    steps: dict[str, Any] = profile.provenance.get("step_time", {})
    runs: dict[str, Any] = steps.get("serving_runs", {})
    coverage = RunCoverage.from_report(runs["coverage"]) if runs else None
    warnings += coverage_warnings(fit.observations, fixed=steps.get("not_fitted", ()), runs=coverage)
    return (*warnings, *identification_warnings(fit.rows, profile.step_time.model_dump(), bounds))
