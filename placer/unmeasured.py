"""Say so where simulated times rest on a profile that nobody measured."""

from __future__ import annotations

from collections.abc import Iterable

from twin.calibration.prior import is_prior, step_time_band
from twin.profile import PerformanceProfile


def unmeasured_warnings(profiles: Iterable[PerformanceProfile]) -> tuple[str, ...]:
    """Return one sentence for each profile whose step times are a prior."""
    priors = {profile.name: profile for profile in profiles if is_prior(profile)}
    return tuple(_warning(profile) for profile in priors.values())


def _warning(profile: PerformanceProfile) -> str:
    low, high = step_time_band(profile)
    return (
        f"The step times of the profile {profile.name!r} are a prior, not measured on {profile.gpu}: real ones may be "
        f"{low:.1f} to {high:.1f} times as long. `placer calibrate` makes a profile from measurements."
    )
