"""Fit step times to whatever was measured, with what a profile's provenance says about the fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twin.calibration.observations import StepObservations
from twin.calibration.origins import coefficient_origins
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
from twin.profile import PerformanceProfile, StepTimeCoefficients
from twin.validation.front_end import FrontEnd
from twin.validation.runs import MeasuredRun

# What the engine's Python code does in a step: it depends on the host and on vLLM, not on the model or the GPU. Closed
# loops of equal requests hardly show it, so it may be taken over from a profile that was fitted to serving runs.
HOST_TERMS = (
    "changed_request_ms",
    "adapter_request_ms",
    "cached_adapter_ms",
    "slot_lookup_ms",
    "blocked_waiting_ms",
)


@dataclass(frozen=True)
class CalibrationSources:
    """What a profile is fitted to besides tables of measured steps, loads and memory.

    Attributes
    ----------
    runs
        Serving runs of the model on the GPU, none of them kept for judging.
    host_profile
        A profile fitted to serving runs of another model on the same host: gives the `HOST_TERMS`.
    hashes
        SHA-256 of the files that the runs were read from, by name, for the profile's provenance.
    """

    runs: tuple[MeasuredRun, ...] = ()
    host_profile: PerformanceProfile | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)

    def host_terms(self) -> dict[str, float]:
        """Return the coefficients that are taken over, in ms; none without a `host_profile`."""
        if self.host_profile is None:
            return {}
        return {term: getattr(self.host_profile.step_time, term) for term in HOST_TERMS}


@dataclass(frozen=True)
class ProfileFit:
    """A profile and what it was fitted to.

    Attributes
    ----------
    observations
        The measured steps; none where only serving runs were measured, or nothing.
    rows
        float64 [rows, len(COEFFICIENT_NAMES)], what the step times were fitted to: `relative_design` of the steps, then
        the rows of serving runs (`twin.calibration.serving_fit.ServingFit`) where some were given.
    prior
        What the fit was drawn towards; ``None``: nothing.
    """

    profile: PerformanceProfile
    observations: StepObservations
    rows: NDArray[np.float64]
    prior: PerformanceProfile | None = None


@dataclass(frozen=True)
class DescribedFit:
    """Fitted coefficients.

    Attributes
    ----------
    rows
        See `ProfileFit`.
    report
        Plain values for the provenance.
    """

    fit: StepFit
    rows: NDArray[np.float64]
    report: dict[str, Any]

    @property
    def coefficients(self) -> StepTimeCoefficients:
        """The coefficients to six digits."""
        return StepTimeCoefficients(**{term: rounded(value) for term, value in self.fit.coefficients.items()})


def fit_described(
    observations: StepObservations,
    profile: PerformanceProfile,
    sources: CalibrationSources,
    *,
    fixed: Mapping[str, float],
    left_out: Mapping[str, NDArray[np.bool_]],
    prior: CoefficientPrior | None = None,
    workers: int | None = None,
    on_iteration: Callable[[int, float], None] | None = None,
) -> DescribedFit:
    """Fit the step times to measured steps, and to serving runs if there are any.

    Parameters
    ----------
    profile
        Memory and load times of the runs' replicas; its step times are not used.
    fixed
        Coefficients that keep the given value.
    left_out
        Regimes, bool [N], on each of which a fit to all other steps is judged.
    prior
        What is believed about the coefficients; ``None``: nothing.
    workers, on_iteration
        See `twin.calibration.serving_fit.fit_with_runs`.

    Raises
    ------
    InputError
        When there are runs, and none can be used or one cannot be replayed.
    ProfileError
        When scipy (extra ``train``) is not installed.
    """
    report: dict[str, Any] = {}
    if sources.host_profile is not None:
        reason = "host terms do not depend on the model"
        report["taken_over"] = {"profile": sources.host_profile.name, "terms": list(HOST_TERMS), "reason": reason}
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
        report["serving_runs"] = runs_report(joint.run_ids, joint.tpot_error_percent, joint.alone_error_percent)
        report["serving_runs"]["coverage"] = joint.coverage.as_report()
        report["serving_runs"]["polled"] = sum(run.is_polled for run in sources.runs)
    else:
        fit = fit_step_time(observations, fixed=fixed, prior=prior)
        bounds, rows = intervals(observations, fixed=fixed, prior=prior), relative_design(observations)
    if prior is not None:
        shares = data_shares(rows, prior, fixed=fit.fixed)
        report["data_shares"] = {term: round(share, 4) for term, share in shares.items()}
    taken_over = () if sources.host_profile is None else HOST_TERMS
    origins = coefficient_origins(fit, rows, num_steps=len(observations.time_ms), prior=prior, taken_over=taken_over)
    judged = leave_one_out(observations, left_out, fixed=fixed, prior=prior)
    report |= {
        "origins": origins,
        "from_prior": sorted(term for term, origin in origins.items() if origin == "prior"),
        "intervals_95": intervals_report(bounds),
        "not_fitted": sorted(fit.fixed),
        "in_sample_percent": errors_report(fit.errors),
        "left_out_percent": errors_report(judged),
    }
    return DescribedFit(fit, rows, report)
