"""The trace of a finished run of the fast engine (plain Python over the arrays of twin/kernel_state.py)."""

from __future__ import annotations

import numpy as np

from twin.kernel_state import (
    BLOCKS_INTEGRAL,
    BLOCKS_OVERFLOWS,
    BUSY_NS,
    DISK_LOADS_OF,
    GPU_LOADS_OF,
    INTEGRAL_UNIT,
    LOAD_NS,
    LOG_CACHED_END,
    LOG_DISK_LOADS,
    LOG_DURATION,
    LOG_FREE,
    LOG_GPU_LOADS,
    LOG_PREEMPTIONS,
    LOG_RUNNING_END,
    LOG_SLOTS_END,
    LOG_START,
    LOG_WAITING_END,
    NUM_PREEMPTIONS,
    NUM_SAMPLES,
    NUM_STEPS,
    PEAK_BLOCKS,
    PEAK_RUNNING,
    PEAK_WAITING,
    RUNNING_INTEGRAL,
    RUNNING_OVERFLOWS,
    SCHEDULED_TOKENS,
    WAITING_INTEGRAL,
    WAITING_OVERFLOWS,
    State,
)
from twin.replica import ReplicaInputs, ReplicaTrace, StepLog


def make_trace(inputs: ReplicaInputs, state: State) -> ReplicaTrace:
    """Collect the arrays of a finished run."""
    outcome, adapters, c = state.outcome, state.adapters, state.counters.tolist()
    num_adapters = adapters.shape[1] - 1
    return ReplicaTrace(
        first_scheduled_ns=outcome.first_scheduled_ns,
        first_token_ns=outcome.first_token_ns,
        finish_ns=outcome.finish_ns,
        generated_tokens=outcome.generated_tokens,
        is_running=outcome.is_running,
        request_preemptions=outcome.preemptions,
        gap_histogram=state.gaps,
        adapter_gap_histogram=state.decodes.adapter_gaps,
        adapter_gap_sum_ns=outcome.gap_sum_ns,
        adapter_gap_count=outcome.gap_count,
        adapter_gpu_loads=adapters[GPU_LOADS_OF, :num_adapters].astype(np.int32),
        adapter_disk_loads=adapters[DISK_LOADS_OF, :num_adapters].astype(np.int32),
        num_steps=c[NUM_STEPS],
        busy_ns=c[BUSY_NS],
        load_ns=c[LOAD_NS],
        scheduled_tokens=c[SCHEDULED_TOKENS],
        running_integral=float(c[RUNNING_OVERFLOWS] * INTEGRAL_UNIT + c[RUNNING_INTEGRAL]),
        waiting_integral=float(c[WAITING_OVERFLOWS] * INTEGRAL_UNIT + c[WAITING_INTEGRAL]),
        used_blocks_integral=float(c[BLOCKS_OVERFLOWS] * INTEGRAL_UNIT + c[BLOCKS_INTEGRAL]),
        num_preemptions=c[NUM_PREEMPTIONS],
        peak_used_blocks=c[PEAK_BLOCKS],
        peak_running=c[PEAK_RUNNING],
        peak_waiting=c[PEAK_WAITING],
        samples=state.samples[: c[NUM_SAMPLES]].copy(),
        end_ns=int(inputs.horizon_ns),
        step_log=_make_step_log(state, c[NUM_STEPS]) if len(state.log_steps) else None,
        step_table=state.step_table[: c[NUM_STEPS]].copy() if len(state.step_table) else None,
    )


def _make_step_log(state: State, num_steps: int) -> StepLog:
    steps = state.log_steps[:num_steps]
    running_end, waiting_end, slots_end, cached_end = (
        np.concatenate([[0], steps[:, column]])
        for column in (LOG_RUNNING_END, LOG_WAITING_END, LOG_SLOTS_END, LOG_CACHED_END)
    )
    running = state.log_running[: running_end[-1]].astype(np.int32)
    return StepLog(
        start_ns=steps[:, LOG_START].copy(),
        duration_ns=steps[:, LOG_DURATION].copy(),
        free_blocks=steps[:, LOG_FREE].astype(np.int32),
        running_offset=running_end,
        running_request=running[:, 0].copy(),
        running_tokens=running[:, 1].copy(),
        waiting_offset=waiting_end,
        waiting_request=state.log_waiting[: waiting_end[-1]].astype(np.int32),
        slot_offset=slots_end,
        slot_adapter=state.log_slots[: slots_end[-1]].astype(np.int32),
        cached_offset=cached_end,
        cached_adapter=state.log_cached[: cached_end[-1]].astype(np.int32),
        gpu_loads=steps[:, LOG_GPU_LOADS].astype(np.int32),
        disk_loads=steps[:, LOG_DISK_LOADS].astype(np.int32),
        preemptions=steps[:, LOG_PREEMPTIONS].astype(np.int32),
    )
