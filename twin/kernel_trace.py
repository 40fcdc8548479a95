"""The trace of a finished run of the fast engine (plain Python over the arrays of twin/kernel_state.py)."""

from __future__ import annotations

import numpy as np

from twin.kernel_state import (
    BLOCKS_INTEGRAL,
    BLOCKS_OVERFLOWS,
    BUSY_NS,
    DISK_LOADS_OF,
    FINISH_NS,
    FIRST_SCHEDULED_NS,
    FIRST_TOKEN_NS,
    GPU_LOADS_OF,
    INTEGRAL_UNIT,
    LAST_TOKEN_NS,
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
    NEXT,
    NUM_PREEMPTIONS,
    NUM_SAMPLES,
    NUM_STEPS,
    NUM_TOKENS,
    PEAK_BLOCKS,
    PEAK_RUNNING,
    PEAK_WAITING,
    PREEMPTIONS,
    PROMPT,
    REQUEST_ADAPTER,
    RUNNING_HEAD,
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
    requests, adapters, c = state.requests, state.adapters, state.counters.tolist()
    num_adapters = adapters.shape[1] - 1
    generated = requests[:, NUM_TOKENS] - requests[:, PROMPT]
    first_token_ns = requests[:, FIRST_TOKEN_NS].copy()
    is_running = np.zeros(len(requests), np.bool_)
    running = c[RUNNING_HEAD]
    while running >= 0:
        is_running[running] = True
        running = requests[running, NEXT]
    # Gaps telescope: their sum over a request is its last minus its first token, preempted or not.
    has_gaps = generated > 1
    owners = requests[has_gaps, REQUEST_ADAPTER]
    gap_sum, gap_count = np.zeros(num_adapters + 1, np.int64), np.zeros(num_adapters + 1, np.int64)
    np.add.at(gap_sum, owners, requests[has_gaps, LAST_TOKEN_NS] - first_token_ns[has_gaps])
    np.add.at(gap_count, owners, generated[has_gaps] - 1)
    return ReplicaTrace(
        first_scheduled_ns=requests[:, FIRST_SCHEDULED_NS].copy(),
        first_token_ns=first_token_ns,
        finish_ns=requests[:, FINISH_NS].copy(),
        generated_tokens=generated.astype(np.int32),
        is_running=is_running,
        request_preemptions=requests[:, PREEMPTIONS].astype(np.int32),
        gap_histogram=state.gaps,
        adapter_gap_histogram=state.decodes.adapter_gaps,
        adapter_gap_sum_ns=gap_sum,
        adapter_gap_count=gap_count,
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
