"""The fast engine: the rules of twin/semantics.md compiled with Numba over flat arrays.

What a step costs does not grow with the batch or the queue, but with what happens in it: requests that simply decode
are advanced all at once (twin/kernel_batch.py), the next admissible request is known without a look through the queue
(twin/kernel_queue.py), and a step that would be decided like the one before is not decided again.
"""

from __future__ import annotations

import inspect
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twin import (
    kernel_account,
    kernel_ahead,
    kernel_batch,
    kernel_columns,
    kernel_compile,
    kernel_duration,
    kernel_queue,
    kernel_requests,
    kernel_results,
    kernel_schedule,
    kernel_sets,
    kernel_state,
    replica,
    step_time,
)
from twin.errors import TwinError
from twin.kernel_account import account, take_sample, write_log, write_step
from twin.kernel_ahead import run_asynchronously
from twin.kernel_batch import end_last_steady
from twin.kernel_compile import compiled, compiled_entry, entry_is_cached
from twin.kernel_duration import duration_ns
from twin.kernel_requests import fill_requests, read_requests
from twin.kernel_results import apply_results, gap_bin
from twin.kernel_schedule import arrive, is_settled, repeat_step, schedule
from twin.kernel_state import (
    NUM_RUNNING,
    NUM_STEADY,
    NUM_STEPS,
    NUM_WAITING,
    STATUS,
    STATUS_LOG_FULL,
    STATUS_STALLED,
    STEP_TOKENS,
    Settings,
    State,
    make_settings,
    make_state,
)
from twin.kernel_trace import make_trace
from twin.replica import ReplicaInputs, ReplicaTrace

# Numba erases the signature.
Entry = Any


@compiled
def _run(s: Settings, coefficients: NDArray[np.float64], state: State) -> None:
    """Run the loop of twin/semantics.md until the horizon; results are written into the arrays.

    `kernel_ahead.run_asynchronously` is the same loop with asynchronous scheduling. A function for what both do in a
    step would make this one slower by a quarter: calling it copies the arrays' descriptions.
    """
    arrivals, requests, adapters, decodes, c = (
        state.arrivals,
        state.requests,
        state.adapters,
        state.decodes,
        state.counters,
    )
    keep_log = len(state.log_steps) > 0
    keep_table = len(state.step_table) > 0
    # Typed starts: a plain 0 would be a literal type, for which Numba compiles every function called with it once more.
    now = int(np.int64(0))
    arrived = int(np.int64(0))
    step_bin = int(np.int64(0))
    while True:
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
        if not (is_settled(s, c) and repeat_step(decodes, c)):
            schedule(s, requests, adapters, decodes, state.scratch, c, now, c[NUM_STEPS])
            if c[STEP_TOKENS] == 0:
                c[STATUS] = STATUS_STALLED
                break
        duration = duration_ns(s, coefficients, c)
        if (keep_log and not write_log(s, state, now, duration)) or (
            keep_table and not write_step(state.step_table, c, now + duration)
        ):
            c[STATUS] = STATUS_LOG_FULL
            break
        account(s, c, now, duration)
        end = now + duration
        if end > s.horizon_ns:
            break
        if not state.bin_edges[step_bin] <= duration < state.bin_edges[step_bin + 1]:
            step_bin = gap_bin(duration)
        apply_results(s, requests, adapters, decodes, state.gaps, c, now, end, step_bin)
        now = end
    while c[NUM_STEADY] > 0:
        end_last_steady(s, requests, adapters, decodes, c, now)


def _cached_entries(fingerprint: int) -> tuple[Entry, Entry]:
    """Compile the entry points, synchronous and asynchronous, when they are first called, with an on-disk cache.

    Numba's cache notices a change of this file, but not of the modules whose code is compiled into the entry;
    `fingerprint` is part of the cache's key because it is a closure variable.
    """

    @compiled_entry
    def entry(s: Settings, coefficients: NDArray[np.float64], state: State) -> None:
        if fingerprint >= 0:
            fill_requests(s, state)
            _run(s, coefficients, state)
            read_requests(state)

    @compiled_entry
    def asynchronous_entry(s: Settings, coefficients: NDArray[np.float64], state: State) -> None:
        if fingerprint >= 0:
            fill_requests(s, state)
            run_asynchronously(s, coefficients, state)
            read_requests(state)

    return entry, asynchronous_entry


def _fingerprint() -> int:
    """Return a checksum of the source of every module that decides what is compiled into the entry."""
    return zlib.crc32("".join(inspect.getsource(module) for module in COMPILED_MODULES).encode())


# Also the module whose constants the compiled functions contain.
COMPILED_MODULES = (
    kernel_account,
    kernel_ahead,
    kernel_batch,
    kernel_columns,
    kernel_compile,
    kernel_duration,
    kernel_queue,
    kernel_requests,
    kernel_results,
    kernel_schedule,
    kernel_sets,
    kernel_state,
    replica,
    step_time,
)
_entry, _asynchronous_entry = _cached_entries(_fingerprint())


def kernel_is_cached(*, is_asynchronous: bool = False) -> bool:
    """Return whether the compiled engine is ready, in this process or on disk; if not, its first run compiles it.

    The engine with asynchronous scheduling is another one.
    """
    return entry_is_cached(_asynchronous_entry if is_asynchronous else _entry)


def run_kernel(inputs: ReplicaInputs, *, log_steps: bool = False, keep_step_table: bool = False) -> ReplicaTrace:
    """Simulate one replica with the compiled engine.

    Parameters
    ----------
    inputs
        See `ReplicaInputs`.
    log_steps
        Also return every step (memory grows with steps x queue length: for comparing engines, not for hours of
        traffic).
    keep_step_table
        Also return what every step's time depends on (72 bytes per step).

    Raises
    ------
    TwinError
        When a step schedules nothing although requests run or wait (KV cache smaller than one request).
    """
    settings = make_settings(inputs)
    entry = _asynchronous_entry if inputs.async_scheduling else _entry
    log_capacity = 1024 if log_steps else 0
    table_capacity = 65536 if keep_step_table else 0
    while True:
        state = make_state(inputs, log_capacity=log_capacity, table_capacity=table_capacity)
        entry(settings, inputs.step_coefficients, state)
        if state.counters[STATUS] != STATUS_LOG_FULL:
            break
        log_capacity *= 4
        table_capacity *= 4
    if state.counters[STATUS] == STATUS_STALLED:
        raise TwinError(
            f"a step must schedule at least one token. Step {int(state.counters[NUM_STEPS])} scheduled none with "
            f"{int(state.counters[NUM_RUNNING])} running and {int(state.counters[NUM_WAITING])} waiting requests: "
            "the KV cache or the token budget is smaller than one request needs. "
            "Give more blocks or a smaller max_model_len."
        )
    return make_trace(inputs, state)
