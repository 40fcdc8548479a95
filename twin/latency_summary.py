"""Latencies in a few numbers: mean and percentiles of durations, and of gaps that were counted in a histogram."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from twin.replica import ADAPTER_BIN_FACTOR, GAP_DECADES, GAP_LOWEST_NS, NUM_GAP_BINS
from twin.workload import NANOSECONDS


class LatencySummary(BaseModel):
    """Mean and percentiles in seconds; all ``None`` when there was nothing to measure."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean_s: float | None = None
    p50_s: float | None = None
    p95_s: float | None = None
    p99_s: float | None = None


def summarise_durations(durations_ns: NDArray[np.int64] | NDArray[np.float64]) -> LatencySummary:
    """Summarise durations in nanoseconds, [N]: mean, and percentiles interpolated linearly."""
    if len(durations_ns) == 0:
        return LatencySummary()
    # Linear interpolation between order statistics, as numpy.percentile: its own overhead is a hundred times the work
    # for the few requests of one adapter, and a replica has hundreds of adapters. Six of them need no sorting.
    positions = np.array([0.50, 0.95, 0.99]) * (len(durations_ns) - 1)
    below = positions.astype(np.int64)
    above = np.minimum(below + 1, len(durations_ns) - 1)
    ordered = np.partition(durations_ns, np.concatenate([below, above]))
    lower_s, upper_s = ordered[below] / NANOSECONDS, ordered[above] / NANOSECONDS
    p50, p95, p99 = (lower_s + (upper_s - lower_s) * (positions - below)).tolist()
    return LatencySummary(mean_s=float(durations_ns.mean()) / NANOSECONDS, p50_s=p50, p95_s=p95, p99_s=p99)


def summarise_gaps(histogram: NDArray[np.int64], sum_ns: int, count: int) -> LatencySummary:
    """Summarise inter-token gaps by their logarithmic histogram: exact mean, percentiles interpolated inside a bin.

    Parameters
    ----------
    histogram
        int64 [NUM_GAP_BINS], or as many for every `ADAPTER_BIN_FACTOR` bins; see `twin.replica.ReplicaTrace`.
    sum_ns, count
        Of the gaps.
    """
    if count == 0:
        return LatencySummary()
    cumulative = np.cumsum(histogram, dtype=np.float64)
    return LatencySummary(
        mean_s=sum_ns / count / NANOSECONDS,
        p50_s=_histogram_quantile(histogram, cumulative, 0.50),
        p95_s=_histogram_quantile(histogram, cumulative, 0.95),
        p99_s=_histogram_quantile(histogram, cumulative, 0.99),
    )


def _histogram_quantile(histogram: NDArray[np.int64], cumulative: NDArray[np.float64], probability: float) -> float:
    target = probability * cumulative[-1]
    index = int(np.searchsorted(cumulative, target, side="left"))
    before = cumulative[index - 1] if index else 0.0
    position = index + (target - before) / float(histogram[index])
    width = 1 if len(histogram) == NUM_GAP_BINS else ADAPTER_BIN_FACTOR
    decades = position * width * GAP_DECADES / NUM_GAP_BINS
    return float(GAP_LOWEST_NS * 10.0**decades / NANOSECONDS)
