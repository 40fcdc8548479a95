"""Say so where simulated times rest on a profile, or on terms of one, that nobody measured."""

from __future__ import annotations

from collections.abc import Iterable

from twin.calibration.prior import is_prior, step_time_band
from twin.profile import PerformanceProfile
from twin.step_time import COEFFICIENT_NAMES

# Step times that are off by less do not decide whether a replica serves nine tenths of its load.
MOST_BAND = 1.1


def unmeasured_warnings(profiles: Iterable[PerformanceProfile]) -> tuple[str, ...]:
    """Return one sentence for each profile whose step times, or a large part of them, are a prior."""
    warnings = (_warning(profile) for profile in profiles)
    return tuple(dict.fromkeys(text for text in warnings if text is not None))


def _warning(profile: PerformanceProfile) -> str | None:
    if is_prior(profile):
        low, high = step_time_band(profile)
        return (
            f"The step times of the profile {profile.name!r} are a prior, not measured on {profile.gpu}: real ones may "
            f"be {low:.1f} to {high:.1f} times as long. `placer calibrate` makes a profile from measurements."
        )
    terms = _prior_terms(profile)
    low, high = step_time_band(profile, terms=terms)
    if low >= 1.0 / MOST_BAND and high <= MOST_BAND:
        return None
    return (
        f"In the profile {profile.name!r}, {', '.join(terms)} are a prior's, not measured on {profile.gpu}: real step "
        f"times may be {low:.1f} to {high:.1f} times as long. `placer calibrate` says which measurements are missing."
    )


def _prior_terms(profile: PerformanceProfile) -> list[str]:
    """Return the coefficients that a calibration left to its prior."""
    steps = profile.provenance.get("step_time", {})
    stated = steps.get("from_prior", ()) if isinstance(steps, dict) else ()
    return [name for name in COEFFICIENT_NAMES if name in stated]
