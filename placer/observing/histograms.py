"""Lengths from histograms: what buckets, a sum and a count say about the distribution of token counts."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from twin.lengths import LengthDistribution

# Spreads (of the logarithm of a length) among which the likeliest one is looked for: 3 % apart.
_SIGMAS = np.geomspace(0.01, 3.0, 200)
_IMPOSSIBLE = 1e-300


def lengths_of_histogram(buckets: Mapping[float, float], total_tokens: float) -> LengthDistribution | None:
    """Return the lognormal distribution with the mean of the counted tokens whose spread the buckets make likeliest.

    Parameters
    ----------
    buckets
        Requests of at most so many tokens (cumulative, as Prometheus has them), by the upper end; infinity has all.
    total_tokens
        Sum of the lengths.

    Returns
    -------
    Mean (exact), standard deviation, and the upper end of the highest bucket in use as the maximum (none for the last
    one, which is open). A spread that is too small for the buckets to show is 0. ``None`` without a request.
    """
    ends = sorted(buckets)
    cumulative = np.maximum.accumulate(np.array([buckets[end] for end in ends], dtype=np.float64))
    counts = np.diff(cumulative, prepend=0.0)
    num_requests = float(counts.sum())
    if num_requests <= 0.0:
        return None
    mean = max(total_tokens / num_requests, 1.0)
    used = np.flatnonzero(counts)
    highest = ends[int(used[-1])]
    upper = math.ceil(max(highest, mean)) if math.isfinite(highest) else None
    if len(used) == 1:
        return LengthDistribution(mean=mean, max=upper)
    likelihoods = [_log_likelihood(ends, counts.tolist(), mean, float(sigma)) for sigma in _SIGMAS]
    sigma = float(_SIGMAS[int(np.argmax(likelihoods))])
    return LengthDistribution(mean=mean, std=mean * math.sqrt(math.expm1(sigma * sigma)), max=upper)


def _log_likelihood(ends: list[float], counts: list[float], mean: float, sigma: float) -> float:
    """Return that of bucket counts under a lognormal law, whose values are rounded to whole tokens."""
    location = math.log(mean) - 0.5 * sigma * sigma
    total, below = 0.0, 0.0
    for end, count in zip(ends, counts, strict=True):
        until = 1.0 if math.isinf(end) else 0.5 * math.erfc((location - math.log(end + 0.5)) / (sigma * math.sqrt(2.0)))
        total += count * math.log(max(until - below, _IMPOSSIBLE))
        below = until
    return total
