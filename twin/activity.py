"""How many requests and adapters a simulated replica served at given times."""

from __future__ import annotations

from dataclasses import dataclass

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
    running
        int64 [M], requests.
    active_adapters
        int64 [M], distinct adapters of these requests.
    """

    running: NDArray[np.int64]
    active_adapters: NDArray[np.int64]


def activity_at(inputs: ReplicaInputs, trace: ReplicaTrace, times_ns: NDArray[np.int64]) -> Activity:
    """Return what was being served at `times_ns` (int64 [M], sorted).

    Each time falls on the step that contains it; a step's results are seen at its end.
    """
    is_served = trace.first_scheduled_ns >= 0
    adapter = inputs.adapter[is_served].astype(np.int64)
    finish_ns = trace.finish_ns[is_served]
    # A request is served at the times with positions in [first, beyond).
    first = np.searchsorted(times_ns, trace.first_scheduled_ns[is_served])
    beyond = np.where(finish_ns >= 0, np.searchsorted(times_ns, finish_ns), len(times_ns))
    has_adapter = adapter >= 0
    return Activity(
        running=_count(first, beyond, len(times_ns)),
        active_adapters=_count(*_unite(adapter[has_adapter], first[has_adapter], beyond[has_adapter]), len(times_ns)),
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
