"""The fast engine with asynchronous scheduling: the loop of twin/semantics.md that schedules one step ahead (compiled).

What a step gives is known when it is scheduled, because output lengths are. So its results are applied at once, and
only what the scheduler could not know is held back until the next step is scheduled: requests that have finished still
hold their places and blocks (`kernel_batch.start_leaving`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from twin.kernel_account import account, take_sample, write_log, write_step
from twin.kernel_batch import end_last_steady, release_leaving
from twin.kernel_compile import compiled
from twin.kernel_duration import duration_ns
from twin.kernel_results import apply_results, gap_bin
from twin.kernel_schedule import arrive, is_settled, repeat_step, schedule
from twin.kernel_state import (
    NUM_PREEMPTIONS,
    NUM_RUNNING,
    NUM_STEADY,
    NUM_STEPS,
    NUM_WAITING,
    STATUS,
    STATUS_LOG_FULL,
    STATUS_OK,
    STATUS_STALLED,
    STEP_PREEMPTIONS,
    STEP_TOKENS,
    Settings,
    State,
)


@compiled
def _plan(s: Settings, coefficients: NDArray[np.float64], state: State, start: int) -> int:
    """Decide the step that begins at `start` and write it down; return its duration, or -1.

    There is none if nothing is scheduled, or, see the status, if there is no room to log it.
    """
    decodes, c = state.decodes, state.counters
    if not (is_settled(s, c) and repeat_step(decodes, c)):
        schedule(s, state.requests, state.adapters, decodes, state.scratch, c, start, c[NUM_STEPS])
        if c[STEP_TOKENS] == 0:
            return -1
    duration = duration_ns(s, coefficients, c)
    if (len(state.log_steps) > 0 and not write_log(s, state, start, duration)) or (
        len(state.step_table) > 0 and not write_step(state.step_table, c, start + duration)
    ):
        c[STATUS] = STATUS_LOG_FULL
        return -1
    account(s, c, start, duration)
    return duration


@compiled
def _plan_now(s: Settings, coefficients: NDArray[np.float64], state: State, start: int) -> int:
    """Decide a step that somebody must take part in, as `_plan` does; else the replica is stalled."""
    duration = _plan(s, coefficients, state, start)
    if duration < 0 and state.counters[STATUS] == STATUS_OK:
        state.counters[STATUS] = STATUS_STALLED
    return duration


@compiled
def _plan_ahead(s: Settings, coefficients: NDArray[np.float64], state: State, start: int) -> int:
    """Decide the step that begins at `start`, after the one whose results are applied, and let the finished leave.

    Returns its duration, or -1 if it has to be decided again when they have left, or if `_plan` gives none.
    """
    c = state.counters
    duration = int(np.int64(-1))
    if start < s.horizon_ns:
        duration = _plan(s, coefficients, state, start)
        if duration < 0:
            c[NUM_PREEMPTIONS] += c[STEP_PREEMPTIONS]
    release_leaving(s, state.requests, c)
    return duration


@compiled
def run_asynchronously(s: Settings, coefficients: NDArray[np.float64], state: State) -> None:
    """Run the loop until the horizon; results are written into the arrays. See `kernel._run`."""
    arrivals, requests, adapters, decodes, c = (
        state.arrivals,
        state.requests,
        state.adapters,
        state.decodes,
        state.counters,
    )
    # Typed starts: see `kernel._run`.
    now = int(np.int64(0))
    arrived = int(np.int64(0))
    step_bin = int(np.int64(0))
    ahead = int(np.int64(-1))
    while c[STATUS] == STATUS_OK:
        while arrived < len(arrivals) and arrivals[arrived] <= now:
            arrive(s, requests, adapters, c, arrived)
            arrived += 1
        if now >= s.horizon_ns:
            break
        if c[NUM_RUNNING] == 0 and c[NUM_WAITING] == 0:
            if arrived >= len(arrivals):
                break
            now = min(arrivals[arrived], s.horizon_ns)
            continue
        take_sample(s, c, state.samples, now)
        duration = ahead if ahead >= 0 else _plan_now(s, coefficients, state, now)
        end = now + duration
        if duration < 0 or end > s.horizon_ns:
            break
        if not state.bin_edges[step_bin] <= duration < state.bin_edges[step_bin + 1]:
            step_bin = gap_bin(duration)
        apply_results(s, requests, adapters, decodes, state.gaps, c, now, end, step_bin)
        ahead = _plan_ahead(s, coefficients, state, end)
        now = end
    while c[NUM_STEADY] > 0:
        end_last_steady(s, requests, adapters, decodes, c, now)
