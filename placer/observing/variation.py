"""How far rates of a window may be from those of the next one: by chance, and by more than chance."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

# Fewer parts say little about their spread, more leave few requests in each.
NUM_PARTS = 12
LEAST_PER_PART = 5.0


def common_variation(arrival_s: NDArray[np.float64], window_s: float) -> float | None:
    """Return by how much the load of parts of a window differs beyond a Poisson process, relative to its mean.

    The counts n of equal parts of a process whose rate has a relative variance v have the variance
    ``mean(n) + v mean(n)**2``; v is solved for, and not negative.

    Parameters
    ----------
    arrival_s
        float64 [N], in ``[0, window_s)``.

    Returns
    -------
    The square root of v; ``None`` where there are too few requests to say.
    """
    if len(arrival_s) < LEAST_PER_PART * NUM_PARTS:
        return None
    counts, _ = np.histogram(arrival_s, bins=NUM_PARTS, range=(0.0, window_s))
    mean = float(counts.mean())
    excess = float(counts.var(ddof=1)) - mean
    return math.sqrt(max(excess, 0.0)) / mean


def pooled_variation(rates: Iterable[tuple[float, float]]) -> float:
    """Return the one relative standard deviation with which rates r vary as much in sum as each by its own variance.

    A problem file has one for all adapters: ``c**2 * sum(r**2) = sum(variance)``.

    Parameters
    ----------
    rates
        Rate and its variance, for each adapter.

    Returns
    -------
    At least 0; 0 without any rate.
    """
    pairs = list(rates)
    squares = sum(rate * rate for rate, _ in pairs)
    return math.sqrt(sum(variance for _, variance in pairs) / squares) if squares > 0.0 else 0.0
