"""Turn a user's own tables into a performance profile: what they do not say stays where the prior has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twin.calibration.evidence import Evidence, file_hash, read_evidence
from twin.calibration.observations import StepObservations
from twin.calibration.prior import coefficient_prior
from twin.calibration.profile_fit import HOST_TERMS, CalibrationSources, regimes_to_leave_out
from twin.calibration.replica_tables import fit_load_times, fit_memory_table, fit_startup
from twin.calibration.serving_windows import window_observations
from twin.calibration.step_fit import (
    CoefficientPrior,
    StepFit,
    data_shares,
    fit_step_time,
    intervals,
    leave_one_out,
    relative_design,
)
from twin.calibration.step_reports import errors_report, intervals_report, rounded, runs_report
from twin.calibration.step_table import TABLE_NAMES, joined, no_steps, read_steps
from twin.hardware import ModelArchitecture
from twin.profile import PerformanceProfile, StepTimeCoefficients
from twin.validation.front_end import FrontEnd

MEASURED_KIND = "calibrated"
# Below this share of its prior variance that the data remove, a coefficient is the prior's, not theirs.
LEAST_DATA_SHARE = 0.2
# What is said about a prior holds as long as no step was measured.
_KEPT = ("kind", "bands", "band_note", "datasheet", "measured_profiles")


@dataclass(frozen=True)
class TableCalibration:
    """A profile and what it was fitted to.

    Attributes
    ----------
    observations
        The measured steps; none without a table of steps.
    rows
        float64 [rows, len(COEFFICIENT_NAMES)], what the step times were fitted to: `relative_design` of the steps, then
        the rows of serving runs (`twin.calibration.serving_fit.ServingFit`) where some were given.
    """

    profile: PerformanceProfile
    observations: StepObservations
    rows: NDArray[np.float64]


def calibrate_tables(
    data: Path,
    *,
    model: ModelArchitecture,
    prior: PerformanceProfile,
    gpu: str,
    gpu_memory_gib: float,
    name: str,
    sources: CalibrationSources = CalibrationSources(),  # noqa: B008 - frozen
    evidence: Evidence | None = None,
    workers: int | None = None,
    on_iteration: Callable[[int, float], None] | None = None,
) -> TableCalibration:
    """Fit a profile to the tables in `data` (see twin/calibration/step_table.py), drawn towards a prior.

    Parameters
    ----------
    data
        Folder with any of the tables, or the table of steps; or metrics of a server, or results of
        ``vllm bench serve`` (see twin/calibration/evidence_files.py), in a folder with each other or with tables.
    model
        What was measured.
    prior
        Profile whose values hold where the tables say nothing.
    gpu, gpu_memory_gib, name
        Of the profile.
    sources
        Serving runs, or a profile that gives the host terms.
    evidence
        What `data` holds; ``None``: it is read, without settings of the server.
    workers, on_iteration
        See `twin.calibration.profile_fit.calibrate`.

    Raises
    ------
    InputError
        When a file cannot be read, a value in it cannot be used, or a setting of the server is not given.
    ProfileError
        When scipy (extra ``train``) is not installed.
    """
    evidence = read_evidence(data, model=model.name) if evidence is None else evidence
    tables = evidence.tables
    own = read_steps(tables["steps"]) if "steps" in tables else no_steps()
    observations = joined(own, window_observations(evidence.windows))
    sources = replace(sources, runs=(*sources.runs, *evidence.runs))
    fixed = {}
    if sources.host_profile is not None:
        fixed = {term: getattr(sources.host_profile.step_time, term) for term in HOST_TERMS}
    believed = coefficient_prior(prior)
    load_times, ranks_from_prior = fit_load_times(tables.get("loads"), prior)
    profile = PerformanceProfile(
        name=name,
        model=model.name,
        gpu=gpu,
        gpu_memory_gib=gpu_memory_gib,
        vllm_version=prior.vllm_version,
        step_time=prior.step_time,
        load_times=load_times,
        memory=fit_memory_table(tables.get("memory"), model, prior, gpu_memory_gib),
        startup=fit_startup(tables.get("startup"), prior),
    )
    report, fit, rows = _fit_steps(
        observations, profile, believed, sources=sources, fixed=fixed, workers=workers, on_iteration=on_iteration
    )
    is_measured = len(observations.time_ms) > 0 or bool(sources.runs)
    provenance = {} if is_measured else {key: prior.provenance[key] for key in _KEPT if key in prior.provenance}
    provenance |= {
        "tool": "placer calibrate",
        "sources": {Path(table.file).name: file_hash(Path(table.file)) for table in tables.values()}
        | dict(evidence.hashes),
        "prior": {
            "profile": prior.name,
            "kind": prior.provenance.get("kind", MEASURED_KIND),
            # Step times that runs were fitted to are not the prior's as a whole.
            "tables": [name for name in TABLE_NAMES if name not in tables and not (name == "steps" and is_measured)],
            "values": prior.step_time.model_dump(),
        },
        "step_time": report,
    }
    if evidence.summaries:
        provenance["serving"] = evidence.as_report()
    if "loads" in tables:
        provenance["load_times"] = {"ranks_from_prior": ranks_from_prior}
    provenance.setdefault("kind", MEASURED_KIND)
    return TableCalibration(
        profile.model_copy(update={"step_time": _coefficients(fit), "provenance": provenance}), observations, rows
    )


def _fit_steps(
    observations: StepObservations,
    profile: PerformanceProfile,
    prior: CoefficientPrior,
    *,
    sources: CalibrationSources,
    fixed: Mapping[str, float],
    workers: int | None,
    on_iteration: Callable[[int, float], None] | None,
) -> tuple[dict[str, Any], StepFit, NDArray[np.float64]]:
    """Return what is to be said about the step times, their fit, and its rows; `profile` gives memory and loads."""
    report: dict[str, Any] = {
        "method": "non-negative least squares of relative errors, one row per measurement, drawn towards the prior",
    }
    if sources.host_profile is not None:
        report["taken_over"] = {"profile": sources.host_profile.name, "terms": list(HOST_TERMS)}
    if sources.runs:
        # The engines are compiled code; without runs nothing is simulated.
        from twin.calibration.serving_fit import fit_with_runs  # noqa: PLC0415

        joint = fit_with_runs(
            *(observations, sources.runs, profile, FrontEnd()),
            fixed=fixed,
            prior=prior,
            workers=workers,
            on_iteration=on_iteration,
        )
        fit, bounds, rows = joint.fit, joint.intervals, joint.rows
        report["serving_runs"] = runs_report(joint.run_ids, joint.tpot_error_percent)
        report["serving_runs"]["coverage"] = joint.coverage.as_report()
    else:
        fit = fit_step_time(observations, fixed=fixed, prior=prior)
        bounds, rows = intervals(observations, fixed=fixed, prior=prior), relative_design(observations)
    shares = data_shares(rows, prior, fixed=fixed)
    left_out = leave_one_out(observations, _left_out_regimes(observations), fixed=fixed, prior=prior)
    report |= {
        "data_shares": {term: round(share, 4) for term, share in shares.items()},
        "from_prior": sorted(term for term, share in shares.items() if share < LEAST_DATA_SHARE),
        "intervals_95": intervals_report(bounds),
        "not_fitted": sorted(fit.fixed),
        "in_sample_percent": errors_report(fit.errors),
        "left_out_percent": errors_report(left_out),
    }
    return report, fit, rows


def _left_out_regimes(observations: StepObservations) -> dict[str, NDArray[np.bool_]]:
    regimes = regimes_to_leave_out(observations)
    names = sorted(set(observations.regime.tolist()))
    return regimes | {f"regime {name}": observations.regime == name for name in names}


def _coefficients(fit: StepFit) -> StepTimeCoefficients:
    return StepTimeCoefficients(**{term: rounded(value) for term, value in fit.coefficients.items()})
