"""Where each coefficient of a fitted profile comes from."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from twin.calibration.step_fit import CoefficientPrior, StepFit, data_shares
from twin.step_time import COEFFICIENT_NAMES

Origin = Literal["fitted", "at bound", "joint", "taken over", "other table", "prior", "no data"]

# What the words mean.
ORIGINS: dict[Origin, str] = {
    "fitted": "the measurements decide",
    "at bound": "the measurements decide: 0, because none may be negative",
    "joint": "serving runs decide, by their mean time per token; the steps alone do not",
    "taken over": "of another profile",
    "other table": "fitted to measurements other than step times",
    "prior": "the measurements say little or nothing about it: what was believed before (`--prior`)",
    "no data": "nothing measured depends on it, and there is no prior: 0",
}
# Below this share of its prior variance that the data remove, a coefficient is the prior's, not theirs.
LEAST_DATA_SHARE = 0.2


def coefficient_origins(
    fit: StepFit,
    rows: NDArray[np.float64],
    *,
    num_steps: int,
    prior: CoefficientPrior | None,
    taken_over: Collection[str] = (),
) -> dict[str, Origin]:
    """Return the origin of every coefficient.

    Parameters
    ----------
    rows
        float64 [rows, len(COEFFICIENT_NAMES)], what was fitted (`twin.calibration.described_fit.ProfileFit`).
    num_steps
        How many of the rows are measured steps; the others are serving runs.
    prior
        What was believed before; ``None``: nothing.
    taken_over
        The fixed coefficients that come from another profile.
    """
    decided, by_steps = _decided(rows, fit, prior), _decided(rows[:num_steps], fit, prior)
    believed = dict.fromkeys(COEFFICIENT_NAMES, 0.0)
    if prior is not None:
        believed = dict(zip(COEFFICIENT_NAMES, prior.values.tolist(), strict=True))

    def origin(name: str) -> Origin:
        if name in fit.fixed:
            return "taken over" if name in taken_over else "other table"
        # What little the data say may still be enough to push a believed value to 0.
        if name in fit.at_bound and (name in decided or believed[name] > 0):
            return "at bound"
        if name not in decided:
            return "no data" if prior is None else "prior"
        return "fitted" if name in by_steps else "joint"

    return {name: origin(name) for name in COEFFICIENT_NAMES}


def _decided(rows: NDArray[np.float64], fit: StepFit, prior: CoefficientPrior | None) -> set[str]:
    """Return the coefficients that rows say more about than the prior; without one, those that they depend on."""
    if prior is not None:
        shares = data_shares(rows, prior, fixed=fit.fixed)
        return {name for name, share in shares.items() if share >= LEAST_DATA_SHARE}
    shown: NDArray[np.bool_] = np.any(rows != 0.0, axis=0)
    return {name for name, is_shown in zip(COEFFICIENT_NAMES, shown.tolist(), strict=True) if is_shown}
