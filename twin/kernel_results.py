"""What a step of the fast engine gives: tokens, gaps between them, finished requests (compiled).

The rules are those of twin/semantics.md, "Results of a step".
"""

from __future__ import annotations

import numpy as np

from twin.kernel_compile import compiled
from twin.kernel_queue import leave_adapter
from twin.kernel_state import (
    ACTIVE,
    AT_ADAPTER,
    AT_CAPACITY,
    AT_COMPUTED,
    AT_FINISH,
    AT_LAST_TOKEN_NS,
    AT_REQUEST,
    AT_TOKENS,
    AT_TOTAL,
    FINISH_NS,
    FINISHED_REQUESTS,
    FINISHED_TOKENS,
    FIRST_IMPLIED_ROW,
    FIRST_TOKEN_NS,
    FREE_BLOCKS,
    LAST_TOKEN_NS,
    NUM_DISTINCT,
    NUM_MOVED_ROWS,
    NUM_RUNNING,
    NUM_STEADY,
    NUM_TOKENS,
    RUNNING_OF,
    STEADY_PREFIX,
    Settings,
    State,
)
from twin.replica import ADAPTER_BIN_FACTOR, GAP_DECADES, GAP_LOWEST_NS, NUM_GAP_BINS


@compiled
def _gap_bin(gap_ns: int) -> int:
    position = int(np.floor(np.log10(gap_ns / GAP_LOWEST_NS) * NUM_GAP_BINS / GAP_DECADES))
    return min(max(position, 0), NUM_GAP_BINS - 1)


@compiled
def _advance_steady(state: State, column: int) -> int:
    """Give the steady positions their token, whose gap is the step itself; return how many finish and note where."""
    batch, adapters, c = state.batch, state.adapters, state.counters
    num_steady = c[NUM_STEADY]
    num_finished = 0
    for k in range(np.uint64(num_steady)):
        batch[AT_COMPUTED, k] += 1
        num_finished += batch[AT_COMPUTED, k] + 1 >= batch[AT_FINISH, k]
    base_model = adapters.shape[1] - 1
    for i in range(c[NUM_DISTINCT]):
        a = adapters[ACTIVE, i]
        state.adapter_gaps[a, column] += adapters[RUNNING_OF, a]
    state.adapter_gaps[base_model, column] += adapters[RUNNING_OF, base_model]
    for k in range(num_steady, c[NUM_RUNNING]):
        state.adapter_gaps[batch[AT_ADAPTER, k], column] -= 1
    if num_finished > 0:
        noted = 0
        for k in range(num_steady):
            if batch[AT_COMPUTED, k] + 1 >= batch[AT_FINISH, k]:
                state.finished[noted] = k
                noted += 1
    return num_finished


@compiled
def _advance_others(state: State, now: int, end: int, step_bin: int, num_finished: int) -> tuple[int, int]:
    """Advance the positions beyond the steady ones; return the gaps that equal the step, and all that finish."""
    requests, batch, c = state.requests, state.batch, state.counters
    num_step_gaps = 0
    prefix = c[NUM_RUNNING]
    for k in range(c[NUM_STEADY], c[NUM_RUNNING]):
        computed = batch[AT_COMPUTED, k] + batch[AT_TOKENS, k]
        batch[AT_COMPUTED, k] = computed
        if batch[AT_TOKENS, k] == 0 or computed < batch[AT_TOTAL, k]:
            prefix = min(prefix, k)
            continue
        batch[AT_TOTAL, k] += 1
        last = batch[AT_LAST_TOKEN_NS, k]
        if last == now:
            num_step_gaps += 1
            state.adapter_gaps[batch[AT_ADAPTER, k], step_bin // ADAPTER_BIN_FACTOR] += 1
        elif last >= 0:
            position = _gap_bin(end - last)
            state.gaps[position] += 1
            state.adapter_gaps[batch[AT_ADAPTER, k], position // ADAPTER_BIN_FACTOR] += 1
        else:
            requests[FIRST_TOKEN_NS, batch[AT_REQUEST, k]] = end
        batch[AT_LAST_TOKEN_NS, k] = end
        if batch[AT_TOTAL, k] >= batch[AT_FINISH, k]:
            state.finished[num_finished] = k
            num_finished += 1
    c[STEADY_PREFIX] = prefix
    return num_step_gaps, num_finished


@compiled
def _remove_finished(s: Settings, state: State, end: int, num_finished: int) -> None:
    """Let the noted requests leave and close the ranks of the running list, row by row."""
    requests, batch, c, finished = state.requests, state.batch, state.counters, state.finished
    prefix = c[STEADY_PREFIX]
    for i in range(num_finished):
        k = finished[i]
        r = batch[AT_REQUEST, k]
        # It sampled its last token in this step, so all tokens before that one are computed.
        num_tokens = batch[AT_COMPUTED, k] + 1
        requests[FINISH_NS, r] = end
        requests[NUM_TOKENS, r] = num_tokens
        requests[LAST_TOKEN_NS, r] = end
        c[FREE_BLOCKS] += batch[AT_CAPACITY, k] // s.block_size
        c[FINISHED_REQUESTS] += 1
        c[FINISHED_TOKENS] += num_tokens
        leave_adapter(state.adapters, c, batch[AT_ADAPTER, k])
        if k < prefix:
            c[STEADY_PREFIX] -= 1
    finished[num_finished] = c[NUM_RUNNING]
    for row in range(NUM_MOVED_ROWS):
        for i in range(num_finished):
            # Where totals and times are implied, there is nothing to move. Positions are unsigned because Numba's check
            # for negative indices would keep the loop from being vectorised.
            first = finished[i] + 1 if row < FIRST_IMPLIED_ROW else max(finished[i] + 1, prefix)
            shift = np.uint64(i + 1)
            for k in range(np.uint64(first - i - 1), np.uint64(finished[i + 1] - i - 1)):
                batch[row, k] = batch[row, k + shift]
    c[NUM_RUNNING] -= num_finished


@compiled
def apply_results(s: Settings, state: State, now: int, end: int) -> None:
    """Advance the scheduled requests, sample tokens, let finished requests leave."""
    c = state.counters
    step_bin = _gap_bin(end - now)
    num_finished = 0
    if c[NUM_STEADY] > 0:
        num_finished = _advance_steady(state, step_bin // ADAPTER_BIN_FACTOR)
    num_step_gaps, num_finished = _advance_others(state, now, end, step_bin, num_finished)
    state.gaps[step_bin] += c[NUM_STEADY] + num_step_gaps
    if num_finished > 0:
        _remove_finished(s, state, end, num_finished)
