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
        first=np.searchsorted(times_ns, trace.first_scheduled_ns[is_served]),
        beyond=np.where(finish_ns >= 0, np.searchsorted(times_ns, finish_ns), len(times_ns)),
    )


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
