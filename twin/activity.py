"""How many requests and adapters a simulated replica served at given times."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from twin.replica import ReplicaInputs, ReplicaTrace


@dataclass(frozen=True)
class Activity:
    """What was being served at M times.

    A request is served from the start of the first step that schedules it to the end of its last, also while it waits
    again because it was preempted.

    Attributes
    ----------
    num_times
        M.
    adapter, first, beyond
        int64 [N] of the N requests that were served at all: their adapters, and the positions [first, beyond) of the
        times at which they were.
    """

    num_times: int
    adapter: NDArray[np.int64]
    first: NDArray[np.int64]
    beyond: NDArray[np.int64]

    @cached_property
    def running(self) -> NDArray[np.int64]:
        """How many requests were served at each time, int64 [M]."""
        return _count(self.first, self.beyond, self.num_times)

    @cached_property
    def active_adapters(self) -> NDArray[np.int64]:
        """How many distinct adapters these requests had, int64 [M]."""
        asks = self.adapter >= 0
        united = _unite(self.adapter[asks], self.first[asks], self.beyond[asks])
        return _count(*united, self.num_times)


def activity_at(inputs: ReplicaInputs, trace: ReplicaTrace, times_ns: NDArray[np.int64]) -> Activity:
    """Return what was being served at `times_ns` (int64 [M], sorted).

    Each time falls on the step that contains it; a step's results are seen at its end.
    """
    is_served = trace.first_scheduled_ns >= 0
    finish_ns = trace.finish_ns[is_served]
    return Activity(
        num_times=len(times_ns),
        adapter=inputs.adapter[is_served].astype(np.int64),
        first=num_before(times_ns, trace.first_scheduled_ns[is_served]),
        beyond=np.where(finish_ns >= 0, num_before(times_ns, finish_ns), len(times_ns)),
    )


def num_before(times_ns: NDArray[np.int64], values_ns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many of M sorted times are before each value, int64 [N]: what ``np.searchsorted`` does.

    Where the times are evenly spaced, the spacing tells that, and each answer is checked; only the others are searched.
    """
    num_times = len(times_ns)
    if num_times < 2 or times_ns[-1] == times_ns[0]:
        return np.searchsorted(times_ns, values_ns).astype(np.int64)
    spacing_ns = (times_ns[-1] - times_ns[0]) / (num_times - 1)
    guess = np.ceil((values_ns - times_ns[0]) * (1.0 / spacing_ns))
    found: NDArray[np.int64] = np.minimum(np.maximum(guess, 0), num_times).astype(np.int64)
    extremes = np.iinfo(np.int64)
    bounds_ns = np.concatenate([[extremes.min], times_ns, [extremes.max]])
    is_wrong = (bounds_ns[found] >= values_ns) | (bounds_ns[found + 1] < values_ns)
    if is_wrong.any():
        found[is_wrong] = np.searchsorted(times_ns, values_ns[is_wrong])
    return found


def _count(first: NDArray[np.int64], beyond: NDArray[np.int64], num_times: int) -> NDArray[np.int64]:
    """Return how many intervals [first, beyond) hold each position below `num_times`."""
    changes = np.bincount(first, minlength=num_times + 1) - np.bincount(beyond, minlength=num_times + 1)
    return np.cumsum(changes)[:num_times].astype(np.int64)


def _unite(
    adapter: NDArray[np.int64], first: NDArray[np.int64], beyond: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return first and beyond of the fewest intervals that cover the same positions, for each adapter on its own."""
    if len(first) == 0:
        return first, beyond
    # Adapters one after the other on one axis, so that one sweep does them all.
    stride = int(beyond.max()) + 1
    order = np.argsort(adapter * stride + first, kind="stable")
    begins, ends = (adapter * stride + first)[order], np.maximum.accumulate((adapter * stride + beyond)[order])
    is_new = np.ones(len(order), dtype=np.bool_)
    is_new[1:] = begins[1:] > ends[:-1]
    last = np.append(np.flatnonzero(is_new)[1:] - 1, len(order) - 1)
    return begins[is_new] % stride, ends[last] % stride
