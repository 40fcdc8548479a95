"""Turn a user's own tables into a performance profile: what they do not say stays where the prior has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from twin.calibration.described_fit import CalibrationSources, ProfileFit, fit_described
from twin.calibration.evidence import Evidence
from twin.calibration.measured_folders import require_model, require_one_clock
from twin.calibration.observations import StepObservations
from twin.calibration.prior import coefficient_prior
from twin.calibration.profile_fit import regimes_to_leave_out
from twin.calibration.replica_tables import fit_load_times, fit_memory_table, fit_startup
from twin.calibration.serving_windows import window_observations
from twin.calibration.step_table import TABLE_NAMES, joined, read_steps
from twin.hardware import ModelArchitecture
from twin.profile import PerformanceProfile

MEASURED_KIND = "calibrated"
# What is said about a prior holds as long as no step was measured.
_KEPT = ("kind", "bands", "band_note", "datasheet", "measured_profiles")


def calibrate_tables(
    evidence: Evidence,
    *,
    model: ModelArchitecture,
    prior: PerformanceProfile,
    gpu: str,
    gpu_memory_gib: float,
    name: str,
    sources: CalibrationSources = CalibrationSources(),  # noqa: B008 - frozen
    workers: int | None = None,
    on_iteration: Callable[[int, float], None] | None = None,
) -> ProfileFit:
    """Fit a profile to what was measured, drawn towards a prior.

    Parameters
    ----------
    evidence
        What `twin.calibration.evidence.read_evidence` read: tables, metrics, results of benchmarks.
    model
        What was measured.
    prior
        Profile whose values hold where the tables say nothing.
    gpu, gpu_memory_gib, name
        Of the profile.
    sources
        Serving runs, or a profile that gives the host terms.
    workers, on_iteration
        See `twin.calibration.profile_fit.calibrate`.

    Raises
    ------
    InputError
        When a value in a table cannot be used, or measurements are on different clocks or of another model.
    ProfileError
        When scipy (extra ``train``) is not installed.
    """
    tables = evidence.tables
    clock = require_one_clock(evidence.folders)
    for folder in evidence.folders:
        require_model(folder.model, model, folder.path)
    own = [read_steps(table) for table in tables.get("steps", ())]
    observations = joined(*own, window_observations(evidence.windows))
    sources = replace(sources, runs=(*sources.runs, *evidence.runs))
    load_times, ranks_from_prior = fit_load_times(tables.get("loads", ()), prior)
    memory, memory_report = fit_memory_table(tables.get("memory", ()), model, prior, gpu_memory_gib)
    profile = PerformanceProfile(
        name=name,
        model=model.name,
        gpu=gpu,
        gpu_memory_gib=gpu_memory_gib,
        vllm_version=prior.vllm_version,
        step_time=prior.step_time,
        load_times=load_times,
        memory=memory,
        startup=fit_startup(tables.get("startup", ()), prior),
    )
    described = fit_described(
        *(observations, profile, sources),
        fixed=sources.host_terms(),
        left_out=_left_out_regimes(observations),
        prior=coefficient_prior(prior),
        workers=workers,
        on_iteration=on_iteration,
    )
    method = "non-negative least squares of relative errors, one row per measurement, drawn towards the prior"
    is_measured = len(observations.time_ms) > 0 or bool(sources.runs)
    provenance = {} if is_measured else {key: prior.provenance[key] for key in _KEPT if key in prior.provenance}
    provenance |= {
        "tool": "placer calibrate",
        "sources": dict(evidence.hashes) | dict(sources.hashes),
        "prior": {
            "profile": prior.name,
            "kind": prior.provenance.get("kind", MEASURED_KIND),
            # Step times that runs were fitted to are not the prior's as a whole.
            "tables": [name for name in TABLE_NAMES if name not in tables and not (name == "steps" and is_measured)],
            "values": prior.step_time.model_dump(),
        },
        "step_time": described.report | {"method": method},
    }
    if clock is not None:
        provenance["clock"] = clock
    if evidence.summaries:
        provenance["serving"] = evidence.as_report()
    if "loads" in tables:
        provenance["load_times"] = {"ranks_from_prior": ranks_from_prior}
    if memory_report:
        provenance["memory"] = memory_report
    provenance.setdefault("kind", MEASURED_KIND)
    fitted = profile.model_copy(update={"step_time": described.coefficients, "provenance": provenance})
    return ProfileFit(fitted, observations, described.rows, prior)


def _left_out_regimes(observations: StepObservations) -> dict[str, NDArray[np.bool_]]:
    regimes = regimes_to_leave_out(observations)
    names = sorted(set(observations.regime.tolist()))
    return regimes | {f"regime {name}": observations.regime == name for name in names}
