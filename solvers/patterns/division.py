"""Where boxes are divided, and what of them is left by what is known: the geometry of the search for a bound.

Certificates of networks are planes beside logarithms of the features. Numbers of adapters of a rank are whole, so that
nothing lies between none and one, where a logarithm changes most; and the middle of a logarithmic scale is where a
division brings both planes closest.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from solvers.feasibility import NUM_ADAPTERS_COLUMN
from solvers.patterns.boxes import RANK_COLUMNS, ROUNDING, WHOLE_COLUMNS, Box

# A side shorter than this share of what a GPU typically holds is not divided.
SHORTEST_SIDE = 1e-4
# Sides of boxes with curved certificates are divided in the middle of a logarithmic scale, which is shifted by this
# share of what a GPU typically holds, but at least this share of the side away from its ends.
LOGARITHMIC_SHIFT = 0.02
SMALLEST_PART = 0.02


def column_to_divide(
    box: Box,
    promise: NDArray[np.float64],
    typical: NDArray[np.float64],
    *,
    matters: NDArray[np.bool_],
    is_curved: bool,
) -> int | None:
    """Return the column whose division promises most; None when no side is long enough.

    Parameters
    ----------
    box
        With K aggregates.
    promise, typical
        What the division of each side promises, and what a GPU typically holds of each sum, float64 [K].
    matters
        In which columns a narrower box may have better certificates, bool [K].
    is_curved
        Whether certificates are planes beside something curved.
    """
    width = box.upper - box.lower
    long_enough = width / typical > SHORTEST_SIDE
    long_enough[WHOLE_COLUMNS] = width[WHOLE_COLUMNS] >= 1.0
    long_enough &= matters | ((np.arange(len(width)) == NUM_ADAPTERS_COLUMN) & box.is_tied)
    if not long_enough.any():
        return None
    if is_curved:
        may_be_absent = RANK_COLUMNS[long_enough[RANK_COLUMNS] & (box.lower[RANK_COLUMNS] == 0.0)]
        if len(may_be_absent):
            return int(may_be_absent[0])
    return int(np.argmax(np.where(long_enough, promise, -1.0)))


def place_to_divide(box: Box, column: int, typical: NDArray[np.float64], *, is_curved: bool) -> float:
    """Return where to divide a side that is long enough, between its ends; see `column_to_divide`."""
    lower, upper = float(box.lower[column]), float(box.upper[column])
    width, usual = upper - lower, float(typical[column])
    if not is_curved:
        # Far beyond what a GPU typically holds, one half is empty: there is no need to come there by halving.
        return lower + min(0.5 * width, usual)
    if column in RANK_COLUMNS and lower == 0.0:
        return 0.0
    shift = LOGARITHMIC_SHIFT * usual
    middle = float(np.sqrt((lower + shift) * (upper + shift))) - shift
    margin = SMALLEST_PART * width
    return min(max(middle, lower + margin), upper - (1.0 if column in WHOLE_COLUMNS else margin))


def cut_off(box: Box, gradients: NDArray[np.float64], slack: NDArray[np.float64]) -> Box:
    """Return the part of a box in which each cut alone can be kept, whatever the other sums are."""
    width = box.upper - box.lower
    least = np.minimum(gradients * width, 0.0)
    rest = slack[:, None] - (least.sum(axis=1, keepdims=True) - least)
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = rest / gradients
    rounding = ROUNDING * (np.abs(box.upper) + 1.0)
    far = np.where((gradients > 0.0) & np.isfinite(rest), reach, np.inf).min(axis=0) + rounding
    near = np.where((gradients < 0.0) & np.isfinite(rest), reach, -np.inf).max(axis=0) - rounding
    return replace(
        box,
        lower=np.clip(box.lower + near, box.lower, box.upper),
        upper=np.clip(box.lower + far, box.lower, box.upper),
    )
