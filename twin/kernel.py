"""The fast engine: the rules of twin/semantics.md compiled with Numba over flat arrays.

Per-request state that every step touches lives in an array indexed by position in the running list, so that the two loops of a step read
memory in order. Waiting requests form one linked list in queue order plus a FIFO per adapter: when all slots are taken, the next admissible
request is the earliest head among the FIFOs of the batch's adapters, and a queue of 100,000 costs no more than one of 100.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numba
import numpy as np
from numpy.typing import NDArray

from twin import kernel_state
from twin.errors import TwinError
from twin.kernel_state import (
    ACTIVE,
    ACTIVE_AT,
    ADAPTER_NEXT,
    ALL_SCHEDULED,
    ARRIVAL_NS,
    AT_ADAPTER,
    AT_CAPACITY,
    AT_COMPUTED,
    AT_FINISH,
    AT_LAST_TOKEN_NS,
    AT_PROMPT,
    AT_REQUEST,
    AT_TOKENS,
    AT_TOTAL,
    BACK_KEY,
    BLOCKS_INTEGRAL,
    BUDGET,
    BUSY_NS,
    CPU_LIST,
    DISK_LOAD_NS,
    DISK_LOADS_OF,
    FIFO_HEAD,
    FIFO_TAIL,
    FINISH_NS,
    FINISH_TOKENS,
    FINISHED_REQUESTS,
    FINISHED_TOKENS,
    FIRST_SCHEDULED_NS,
    FIRST_TOKEN_NS,
    FREE_BLOCKS,
    FRONT_KEY,
    GPU_LOAD_NS,
    GPU_LOADS,
    GPU_LOADS_OF,
    LAST_TOKEN_NS,
    LOAD_NS,
    LOG_DISK_LOADS,
    LOG_DURATION,
    LOG_FREE,
    LOG_GPU_LOADS,
    LOG_PREEMPTIONS,
    LOG_RUNNING_END,
    LOG_START,
    LOG_WAITING_END,
    NEXT,
    NUM_BATCH_ROWS,
    NUM_DISTINCT,
    NUM_IN_CPU,
    NUM_IN_SLOTS,
    NUM_PREEMPTIONS,
    NUM_RUNNING,
    NUM_SAMPLES,
    NUM_STEADY,
    NUM_STEPS,
    NUM_TOKENS,
    NUM_WAITING,
    PEAK_BLOCKS,
    PEAK_RUNNING,
    PEAK_WAITING,
    PREEMPTIONS,
    PREVIOUS,
    PROMPT,
    QUEUE_HEAD,
    QUEUE_KEY,
    QUEUE_TAIL,
    REQUEST_ADAPTER,
    RUNNING_INTEGRAL,
    RUNNING_OF,
    SCHEDULED_TOKENS,
    SET_CHANGED,
    SET_TABLE_LIMITS,
    SLOT_LIST,
    STAMP,
    STATUS,
    STATUS_LOG_FULL,
    STATUS_STALLED,
    STEADY_PREFIX,
    STEP_ADAPTERS,
    STEP_CONTEXT,
    STEP_DISK_LOADS,
    STEP_GPU_LOADS,
    STEP_HAS_PREFILL,
    STEP_LOAD_NS,
    STEP_PREEMPTIONS,
    STEP_REQUESTS,
    STEP_TOKENS,
    VISITED,
    WAITING_INTEGRAL,
    Array,
    Settings,
    State,
    make_settings,
    make_state,
    make_trace,
)
from twin.replica import ADAPTER_BIN_FACTOR, GAP_DECADES, GAP_LOWEST_NS, NUM_GAP_BINS, ReplicaInputs, ReplicaTrace
from twin.step_time import step_time_ms

_step_time_ms = numba.njit(nogil=True, error_model="numpy")(step_time_ms)


@numba.njit(nogil=True)
def _gap_bin(gap_ns: int) -> int:
    position = int(np.floor(np.log10(gap_ns / GAP_LOWEST_NS) * NUM_GAP_BINS / GAP_DECADES))
    return min(max(position, 0), NUM_GAP_BINS - 1)


@numba.njit(nogil=True)
def _push_back(requests: Array, adapters: Array, c: Array, r: int) -> None:
    """Append request `r` to the queue and to its adapter's FIFO."""
    requests[QUEUE_KEY, r] = c[BACK_KEY]
    c[BACK_KEY] += 1
    tail = c[QUEUE_TAIL]
    requests[PREVIOUS, r] = tail
    requests[NEXT, r] = -1
    if tail >= 0:
        requests[NEXT, tail] = r
    else:
        c[QUEUE_HEAD] = r
    c[QUEUE_TAIL] = r
    a = requests[REQUEST_ADAPTER, r]
    requests[ADAPTER_NEXT, r] = -1
    if adapters[FIFO_TAIL, a] >= 0:
        requests[ADAPTER_NEXT, adapters[FIFO_TAIL, a]] = r
    else:
        adapters[FIFO_HEAD, a] = r
    adapters[FIFO_TAIL, a] = r
    c[NUM_WAITING] += 1


@numba.njit(nogil=True)
def _push_front(requests: Array, adapters: Array, c: Array, r: int) -> None:
    """Put a preempted request at the head of the queue and of its adapter's FIFO."""
    requests[QUEUE_KEY, r] = c[FRONT_KEY]
    c[FRONT_KEY] -= 1
    head = c[QUEUE_HEAD]
    requests[NEXT, r] = head
    requests[PREVIOUS, r] = -1
    if head >= 0:
        requests[PREVIOUS, head] = r
    else:
        c[QUEUE_TAIL] = r
    c[QUEUE_HEAD] = r
    a = requests[REQUEST_ADAPTER, r]
    requests[ADAPTER_NEXT, r] = adapters[FIFO_HEAD, a]
    adapters[FIFO_HEAD, a] = r
    if adapters[FIFO_TAIL, a] < 0:
        adapters[FIFO_TAIL, a] = r
    c[NUM_WAITING] += 1


@numba.njit(nogil=True)
def _remove_waiting(requests: Array, adapters: Array, c: Array, r: int) -> None:
    """Take `r`, the head of its adapter's FIFO, out of the queue."""
    before, after = requests[PREVIOUS, r], requests[NEXT, r]
    if before >= 0:
        requests[NEXT, before] = after
    else:
        c[QUEUE_HEAD] = after
    if after >= 0:
        requests[PREVIOUS, after] = before
    else:
        c[QUEUE_TAIL] = before
    a = requests[REQUEST_ADAPTER, r]
    adapters[FIFO_HEAD, a] = requests[ADAPTER_NEXT, r]
    if adapters[FIFO_HEAD, a] < 0:
        adapters[FIFO_TAIL, a] = -1
    c[NUM_WAITING] -= 1


@numba.njit(nogil=True)
def _join_adapter(adapters: Array, c: Array, a: int) -> None:
    """Count one more running request of `a` (the last column is the base model, which is no adapter)."""
    if adapters[RUNNING_OF, a] == 0 and a < adapters.shape[1] - 1:
        adapters[ACTIVE, c[NUM_DISTINCT]] = a
        adapters[ACTIVE_AT, a] = c[NUM_DISTINCT]
        c[NUM_DISTINCT] += 1
        c[SET_CHANGED] = 1
    adapters[RUNNING_OF, a] += 1


@numba.njit(nogil=True)
def _leave_adapter(adapters: Array, c: Array, a: int) -> None:
    """Count one running request of `a` less."""
    adapters[RUNNING_OF, a] -= 1
    if adapters[RUNNING_OF, a] == 0 and a < adapters.shape[1] - 1:
        c[NUM_DISTINCT] -= 1
        moved, position = adapters[ACTIVE, c[NUM_DISTINCT]], adapters[ACTIVE_AT, a]
        adapters[ACTIVE, position] = moved
        adapters[ACTIVE_AT, moved] = position
        c[SET_CHANGED] = 1


@numba.njit(nogil=True)
def _preempt_last(s: Settings, requests: Array, batch: Array, adapters: Array, c: Array) -> None:
    """Take the last running request out of the batch: free its blocks, recompute it later."""
    k = c[NUM_RUNNING] - 1
    r = batch[AT_REQUEST, k]
    c[NUM_RUNNING] = k
    c[FREE_BLOCKS] += batch[AT_CAPACITY, k] // s.block_size
    requests[NUM_TOKENS, r] = batch[AT_TOTAL, k]
    requests[LAST_TOKEN_NS, r] = batch[AT_LAST_TOKEN_NS, k]
    requests[PREEMPTIONS, r] += 1
    c[STEP_PREEMPTIONS] += 1
    _leave_adapter(adapters, c, batch[AT_ADAPTER, k])
    _push_front(requests, adapters, c, r)


@numba.njit(nogil=True)
def _schedule_steady(s: Settings, batch: Array, c: Array) -> None:
    """Give the first running requests, all decoding, their one token each, if neither budget nor blocks run out among them.

    The common case of `_schedule_running` without its branches; changes nothing but NUM_STEADY = 0 where it does not apply.
    """
    num_steady = c[STEADY_PREFIX]
    c[NUM_STEADY] = 0
    c[STEP_CONTEXT] = 0
    if num_steady > s.max_num_batched_tokens:
        return
    context = 0
    missing = 0
    for k in range(num_steady):
        context += batch[AT_COMPUTED, k]
        missing += batch[AT_COMPUTED, k] >= batch[AT_CAPACITY, k]
    if missing > c[FREE_BLOCKS]:
        return
    if missing > 0:
        for k in range(num_steady):
            batch[AT_CAPACITY, k] += s.block_size * (batch[AT_COMPUTED, k] >= batch[AT_CAPACITY, k])
        c[FREE_BLOCKS] -= missing
    for k in range(num_steady):
        batch[AT_TOKENS, k] = 1
    c[NUM_STEADY] = num_steady
    c[STEP_CONTEXT] = context


@numba.njit(nogil=True)
def _schedule_running(s: Settings, threshold: int, requests: Array, batch: Array, adapters: Array, c: Array) -> None:
    """Give tokens to running requests in list order; preempt from the tail when blocks run out."""
    _schedule_steady(s, batch, c)
    cap = s.max_model_len - 1 if s.keep_last_token_free else s.max_model_len
    k = c[NUM_STEADY]
    budget = s.max_num_batched_tokens - k
    num_tokens, num_requests, context = k, k, c[STEP_CONTEXT]
    has_prefill, all_scheduled = False, True
    while k < c[NUM_RUNNING] and budget > 0:
        computed = batch[AT_COMPUTED, k]
        total = batch[AT_TOTAL, k]
        n = total - computed
        if 0 < threshold < n:
            n = threshold
        n = min(n, budget, cap - computed)
        if n <= 0:
            batch[AT_TOKENS, k] = 0
            all_scheduled = False
            k += 1
            continue
        if computed + n > batch[AT_CAPACITY, k]:
            missing = (computed + n + s.block_size - 1) // s.block_size - batch[AT_CAPACITY, k] // s.block_size
            while missing > c[FREE_BLOCKS] and c[NUM_RUNNING] > k:
                _preempt_last(s, requests, batch, adapters, c)
            if c[NUM_RUNNING] == k:
                break
            c[FREE_BLOCKS] -= missing
            batch[AT_CAPACITY, k] += missing * s.block_size
        batch[AT_TOKENS, k] = n
        budget -= n
        num_tokens += n
        num_requests += 1
        context += computed
        if n > 1 or total == batch[AT_PROMPT, k]:
            has_prefill = True
        k += 1
    if k < c[NUM_RUNNING]:
        all_scheduled = False
        for unscheduled in range(k, c[NUM_RUNNING]):
            batch[AT_TOKENS, unscheduled] = 0
    c[BUDGET] = budget
    c[STEP_TOKENS] = num_tokens
    c[STEP_REQUESTS] = num_requests
    c[STEP_CONTEXT] = context
    c[STEP_HAS_PREFILL] = 1 if has_prefill else 0
    c[ALL_SCHEDULED] = 1 if all_scheduled else 0


@numba.njit(nogil=True)
def _collect_adapters(batch: Array, adapters: Array, c: Array, step: int) -> None:
    """Count the distinct adapters of the scheduled running requests; stamp them when not every running request was scheduled."""
    if c[ALL_SCHEDULED] == 1:
        c[STEP_ADAPTERS] = c[NUM_DISTINCT]
        return
    distinct = 0
    num_adapters = adapters.shape[1] - 1
    for k in range(c[NUM_RUNNING]):
        a = batch[AT_ADAPTER, k]
        if batch[AT_TOKENS, k] > 0 and a < num_adapters and adapters[STAMP, a] != step:
            adapters[STAMP, a] = step
            distinct += 1
    c[STEP_ADAPTERS] = distinct
    c[SET_CHANGED] = 1


@numba.njit(nogil=True)
def _is_member(adapters: Array, c: Array, a: int, step: int) -> bool:
    """Whether adapter `a` is among those of the requests scheduled in this step."""
    if c[ALL_SCHEDULED] == 1:
        return bool(adapters[RUNNING_OF, a] > 0)
    return bool(adapters[STAMP, a] == step)


@numba.njit(nogil=True)
def _first_admissible(s: Settings, requests: Array, adapters: Array, c: Array, step: int) -> int:
    """Return the first waiting request whose adapter may join the batch, or -1."""
    if s.num_slots == 0 or c[STEP_ADAPTERS] < s.num_slots:
        return int(c[QUEUE_HEAD])
    best = adapters[FIFO_HEAD, adapters.shape[1] - 1]
    for i in range(c[NUM_DISTINCT]):
        a = adapters[ACTIVE, i]
        r = adapters[FIFO_HEAD, a]
        if (
            r >= 0
            and _is_member(adapters, c, a, step)
            and (best < 0 or requests[QUEUE_KEY, r] < requests[QUEUE_KEY, best])
        ):
            best = r
    return int(best)


@numba.njit(nogil=True)
def _unlink(adapters: Array, lru: int, a: int) -> None:
    """Take `a` out of the list whose next and previous links are the rows `lru` and `lru + 1`."""
    following, preceding = adapters[lru, a], adapters[lru + 1, a]
    adapters[lru, preceding] = following
    adapters[lru + 1, following] = preceding
    adapters[lru, a] = -1


@numba.njit(nogil=True)
def _link_last(adapters: Array, lru: int, a: int) -> None:
    """Insert `a` at the most recently used end of a list."""
    sentinel = adapters.shape[1] - 1
    last = adapters[lru + 1, sentinel]
    adapters[lru, last] = a
    adapters[lru + 1, a] = last
    adapters[lru, a] = sentinel
    adapters[lru + 1, sentinel] = a


@numba.njit(nogil=True)
def _visit_adapter(s: Settings, adapters: Array, c: Array, a: int) -> None:
    """Make adapter `a` resident in the CPU cache and in a slot, and the most recently used of both."""
    sentinel = adapters.shape[1] - 1
    if adapters[CPU_LIST, a] < 0:
        if c[NUM_IN_CPU] >= s.cpu_capacity:
            oldest = adapters[CPU_LIST, sentinel]
            _unlink(adapters, CPU_LIST, oldest)
            c[NUM_IN_CPU] -= 1
            if adapters[SLOT_LIST, oldest] >= 0:
                _unlink(adapters, SLOT_LIST, oldest)
                c[NUM_IN_SLOTS] -= 1
        c[NUM_IN_CPU] += 1
        c[STEP_DISK_LOADS] += 1
        c[STEP_LOAD_NS] += adapters[DISK_LOAD_NS, a]
        adapters[DISK_LOADS_OF, a] += 1
        _link_last(adapters, CPU_LIST, a)
    elif s.touches_cpu_cache:
        _unlink(adapters, CPU_LIST, a)
        _link_last(adapters, CPU_LIST, a)
    if adapters[SLOT_LIST, a] >= 0:
        _unlink(adapters, SLOT_LIST, a)
    else:
        if c[NUM_IN_SLOTS] >= s.num_slots:
            _unlink(adapters, SLOT_LIST, adapters[SLOT_LIST, sentinel])
            c[NUM_IN_SLOTS] -= 1
        c[NUM_IN_SLOTS] += 1
        c[STEP_GPU_LOADS] += 1
        c[STEP_LOAD_NS] += adapters[GPU_LOAD_NS, a]
        adapters[GPU_LOADS_OF, a] += 1
    _link_last(adapters, SLOT_LIST, a)


@numba.njit(nogil=True)
def _admit(
    s: Settings, requests: Array, batch: Array, adapters: Array, c: Array, r: int, n: int, now: int, step: int
) -> None:
    """Move waiting request `r` to the tail of running with `n` tokens."""
    num_adapters = adapters.shape[1] - 1
    blocks = (n + s.block_size - 1) // s.block_size
    c[FREE_BLOCKS] -= blocks
    _remove_waiting(requests, adapters, c, r)
    a = requests[REQUEST_ADAPTER, r]
    if a < num_adapters:
        if not _is_member(adapters, c, a, step):
            c[STEP_ADAPTERS] += 1
        adapters[STAMP, a] = step
        if s.keeps_all_adapters and adapters[SLOT_LIST, a] < 0:
            _visit_adapter(s, adapters, c, a)
    _join_adapter(adapters, c, a)
    k = c[NUM_RUNNING]
    c[NUM_RUNNING] = k + 1
    batch[AT_REQUEST, k] = r
    batch[AT_TOKENS, k] = n
    batch[AT_COMPUTED, k] = 0
    batch[AT_TOTAL, k] = requests[NUM_TOKENS, r]
    batch[AT_PROMPT, k] = requests[PROMPT, r]
    batch[AT_CAPACITY, k] = blocks * s.block_size
    batch[AT_FINISH, k] = requests[FINISH_TOKENS, r]
    batch[AT_ADAPTER, k] = a
    batch[AT_LAST_TOKEN_NS, k] = requests[LAST_TOKEN_NS, r]
    if requests[FIRST_SCHEDULED_NS, r] < 0:
        requests[FIRST_SCHEDULED_NS, r] = now
    c[BUDGET] -= n
    c[STEP_TOKENS] += n
    c[STEP_REQUESTS] += 1
    if n > 1 or requests[NUM_TOKENS, r] == requests[PROMPT, r]:
        c[STEP_HAS_PREFILL] = 1


@numba.njit(nogil=True)
def _schedule_waiting(
    s: Settings, threshold: int, requests: Array, batch: Array, adapters: Array, c: Array, now: int, step: int
) -> None:
    """Admit waiting requests in queue order; those whose adapter finds no slot keep their place."""
    while c[BUDGET] > 0 and c[NUM_WAITING] > 0 and c[NUM_RUNNING] < s.max_num_seqs:
        r = _first_admissible(s, requests, adapters, c, step)
        if r < 0:
            break
        total = int(requests[NUM_TOKENS, r])
        n = total
        if 0 < threshold < n:
            n = threshold
        n = min(n, c[BUDGET])
        needed = total if s.reserve_full else n
        blocks = (needed + s.block_size - 1) // s.block_size
        if c[NUM_RUNNING] > 0:
            blocks += s.watermark_blocks
        if blocks > c[FREE_BLOCKS]:
            break
        _admit(s, requests, batch, adapters, c, r, n, now, step)


@numba.njit(nogil=True)
def _load_adapters(s: Settings, state: State, step: int) -> None:
    """Visit the step's adapters in load order.

    In set order an unchanged set leaves both caches as they are. Where nothing is ever evicted, admission has loaded what was missing.
    """
    batch, adapters, c = state.batch, state.adapters, state.counters
    num_adapters = adapters.shape[1] - 1
    if s.num_slots == 0 or s.keeps_all_adapters:
        return
    if s.load_in_set_order:
        if c[SET_CHANGED] == 0:
            return
        level = 0
        while level < len(SET_TABLE_LIMITS) and c[STEP_ADAPTERS] >= SET_TABLE_LIMITS[level]:
            level += 1
        for i in range(num_adapters):
            a = state.orders[level, i]
            if _is_member(adapters, c, a, step):
                _visit_adapter(s, adapters, c, a)
        return
    for k in range(c[NUM_RUNNING]):
        a = batch[AT_ADAPTER, k]
        if batch[AT_TOKENS, k] > 0 and a < num_adapters and adapters[VISITED, a] != step:
            adapters[VISITED, a] = step
            _visit_adapter(s, adapters, c, a)


@numba.njit(nogil=True)
def _advance_steady(state: State, end: int, column: int) -> int:
    """Give the steady positions their token, whose gap is the step itself; return how many finish and note where."""
    batch, adapters, c = state.batch, state.adapters, state.counters
    num_steady = c[NUM_STEADY]
    num_finished = 0
    for k in range(num_steady):
        batch[AT_COMPUTED, k] += 1
        batch[AT_TOTAL, k] += 1
        batch[AT_LAST_TOKEN_NS, k] = end
        num_finished += batch[AT_TOTAL, k] >= batch[AT_FINISH, k]
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
            if batch[AT_TOTAL, k] >= batch[AT_FINISH, k]:
                state.finished[noted] = k
                noted += 1
    return num_finished


@numba.njit(nogil=True)
def _advance_others(state: State, now: int, end: int, step_bin: int, num_finished: int) -> tuple[int, int]:
    """Advance the positions beyond the steady ones; return how many gaps equal the step, and how many requests finish in all."""
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


@numba.njit(nogil=True)
def _remove_finished(s: Settings, state: State, end: int, num_finished: int) -> None:
    """Let the noted requests leave and close the ranks of the running list, row by row."""
    requests, batch, c, finished = state.requests, state.batch, state.counters, state.finished
    prefix = c[STEADY_PREFIX]
    for i in range(num_finished):
        k = finished[i]
        r = batch[AT_REQUEST, k]
        requests[FINISH_NS, r] = end
        requests[NUM_TOKENS, r] = batch[AT_TOTAL, k]
        requests[LAST_TOKEN_NS, r] = end
        c[FREE_BLOCKS] += batch[AT_CAPACITY, k] // s.block_size
        c[FINISHED_REQUESTS] += 1
        c[FINISHED_TOKENS] += batch[AT_TOTAL, k]
        _leave_adapter(state.adapters, c, batch[AT_ADAPTER, k])
        if k < prefix:
            c[STEADY_PREFIX] -= 1
    finished[num_finished] = c[NUM_RUNNING]
    for row in range(NUM_BATCH_ROWS):
        for i in range(num_finished):
            shift = i + 1
            for k in range(finished[i] + 1, finished[i + 1]):
                batch[row, k - shift] = batch[row, k]
    c[NUM_RUNNING] -= num_finished


@numba.njit(nogil=True)
def _apply_results(s: Settings, state: State, now: int, end: int) -> None:
    """Advance the scheduled requests, sample tokens, let finished requests leave."""
    c = state.counters
    step_bin = _gap_bin(end - now)
    num_finished = 0
    if c[NUM_STEADY] > 0:
        num_finished = _advance_steady(state, end, step_bin // ADAPTER_BIN_FACTOR)
    num_step_gaps, num_finished = _advance_others(state, now, end, step_bin, num_finished)
    state.gaps[step_bin] += c[NUM_STEADY] + num_step_gaps
    if num_finished > 0:
        _remove_finished(s, state, end, num_finished)


@numba.njit(nogil=True)
def _write_log(state: State, now: int, duration: int) -> bool:
    """Append the step; False when a buffer is full."""
    batch, c = state.batch, state.counters
    i = c[NUM_STEPS]
    if i >= len(state.log_steps):
        return False
    running_end = state.log_steps[i - 1, LOG_RUNNING_END] if i > 0 else 0
    waiting_end = state.log_steps[i - 1, LOG_WAITING_END] if i > 0 else 0
    if running_end + c[NUM_RUNNING] > len(state.log_running) or waiting_end + c[NUM_WAITING] > len(state.log_waiting):
        return False
    for k in range(c[NUM_RUNNING]):
        state.log_running[running_end, 0] = batch[AT_REQUEST, k]
        state.log_running[running_end, 1] = batch[AT_TOKENS, k]
        running_end += 1
    r = c[QUEUE_HEAD]
    while r >= 0:
        state.log_waiting[waiting_end] = r
        waiting_end += 1
        r = state.requests[NEXT, r]
    row = state.log_steps[i]
    row[LOG_START] = now
    row[LOG_DURATION] = duration
    row[LOG_FREE] = c[FREE_BLOCKS]
    row[LOG_RUNNING_END] = running_end
    row[LOG_WAITING_END] = waiting_end
    row[LOG_GPU_LOADS] = c[STEP_GPU_LOADS]
    row[LOG_DISK_LOADS] = c[STEP_DISK_LOADS]
    row[LOG_PREEMPTIONS] = c[STEP_PREEMPTIONS]
    return True


@numba.njit(nogil=True)
def _account(s: Settings, c: Array, now: int, duration: int) -> None:
    """Add the scheduled step to the totals."""
    inside = min(duration, s.horizon_ns - now)
    used = s.num_blocks - 1 - c[FREE_BLOCKS]
    c[NUM_STEPS] += 1
    c[BUSY_NS] += inside
    c[LOAD_NS] += c[STEP_LOAD_NS]
    c[SCHEDULED_TOKENS] += c[STEP_TOKENS]
    c[RUNNING_INTEGRAL] += c[NUM_RUNNING] * inside
    c[WAITING_INTEGRAL] += c[NUM_WAITING] * inside
    c[BLOCKS_INTEGRAL] += used * inside
    c[NUM_PREEMPTIONS] += c[STEP_PREEMPTIONS]
    c[GPU_LOADS] += c[STEP_GPU_LOADS]
    c[PEAK_BLOCKS] = max(c[PEAK_BLOCKS], used)
    c[PEAK_RUNNING] = max(c[PEAK_RUNNING], c[NUM_RUNNING])
    c[PEAK_WAITING] = max(c[PEAK_WAITING], c[NUM_WAITING])


@numba.njit(nogil=True)
def _take_sample(s: Settings, c: Array, samples: Array, now: int) -> None:
    row = samples[c[NUM_SAMPLES]]
    row[0] = now
    row[1] = c[NUM_RUNNING]
    row[2] = c[NUM_WAITING]
    row[3] = s.num_blocks - 1 - c[FREE_BLOCKS]
    row[4] = c[FINISHED_REQUESTS]
    row[5] = c[FINISHED_TOKENS]
    row[6] = c[NUM_PREEMPTIONS]
    row[7] = c[GPU_LOADS]
    c[NUM_SAMPLES] += 1


@numba.njit(nogil=True)
def _schedule(s: Settings, state: State, now: int, step: int) -> None:
    """Decide one step: tokens per request, admissions, adapter loads."""
    requests, batch, adapters, c = state.requests, state.batch, state.adapters, state.counters
    was_partial = c[ALL_SCHEDULED] == 0
    threshold = s.threshold
    if not s.threshold_when_alone and c[NUM_RUNNING] + c[NUM_WAITING] <= 1:
        threshold = 0
    c[STEP_PREEMPTIONS] = 0
    c[STEP_GPU_LOADS] = 0
    c[STEP_DISK_LOADS] = 0
    c[STEP_LOAD_NS] = 0
    _schedule_running(s, threshold, requests, batch, adapters, c)
    if was_partial:
        c[SET_CHANGED] = 1
    _collect_adapters(batch, adapters, c, step)
    if c[STEP_PREEMPTIONS] == 0:
        _schedule_waiting(s, threshold, requests, batch, adapters, c, now, step)
    _load_adapters(s, state, step)
    c[SET_CHANGED] = 0


@numba.njit(nogil=True)
def _run(s: Settings, coefficients: NDArray[np.float64], state: State) -> None:
    """Run the loop of twin/semantics.md until the horizon; results are written into the arrays."""
    requests, batch, adapters, c = state.requests, state.batch, state.adapters, state.counters
    num_requests = requests.shape[1]
    keep_log = len(state.log_steps) > 0
    now = 0
    arrived = 0
    next_sample = 0
    while True:
        while arrived < num_requests and requests[ARRIVAL_NS, arrived] <= now:
            _push_back(requests, adapters, c, arrived)
            arrived += 1
        if now >= s.horizon_ns:
            break
        if c[NUM_RUNNING] == 0 and c[NUM_WAITING] == 0:
            if arrived >= num_requests:
                break
            now = min(requests[ARRIVAL_NS, arrived], s.horizon_ns)
            continue
        if s.sample_interval_ns > 0 and now >= next_sample:
            _take_sample(s, c, state.samples, now)
            next_sample = (now // s.sample_interval_ns + 1) * s.sample_interval_ns
        _schedule(s, state, now, c[NUM_STEPS])
        if c[STEP_TOKENS] == 0:
            c[STATUS] = STATUS_STALLED
            break
        blocked = c[NUM_WAITING] if s.num_slots > 0 and c[STEP_ADAPTERS] == s.num_slots else 0
        milliseconds = _step_time_ms(
            coefficients,
            c[STEP_TOKENS],
            c[STEP_REQUESTS],
            c[STEP_CONTEXT],
            c[STEP_ADAPTERS],
            c[STEP_HAS_PREFILL] == 1,
            blocked,
            s.num_slots,
            s.max_lora_rank,
        )
        duration = int(np.floor(milliseconds * 1e6 + 0.5)) + c[STEP_LOAD_NS]
        if keep_log and not _write_log(state, now, duration):
            c[STATUS] = STATUS_LOG_FULL
            break
        _account(s, c, now, duration)
        end = now + duration
        if end > s.horizon_ns:
            break
        _apply_results(s, state, now, end)
        now = end
    for k in range(c[NUM_RUNNING]):
        requests[NUM_TOKENS, batch[AT_REQUEST, k]] = batch[AT_TOTAL, k]
        requests[LAST_TOKEN_NS, batch[AT_REQUEST, k]] = batch[AT_LAST_TOKEN_NS, k]


def _cached_entry(fingerprint: int) -> Callable[..., None]:
    """Compile the entry point with an on-disk cache.

    Numba's cache notices a change of this file, but not of the two modules whose code or constants are compiled in; `fingerprint` is part
    of the cache key because it is a closure variable.
    """

    @numba.njit(nogil=True, cache=True, error_model="numpy")
    def entry(s: Settings, coefficients: NDArray[np.float64], state: State) -> None:
        if fingerprint >= 0:
            _run(s, coefficients, state)

    return entry


def _fingerprint() -> int:
    code = step_time_ms.__code__
    return zlib.crc32(
        code.co_code + repr(code.co_consts).encode() + repr(sorted(vars(kernel_state).items(), key=str)).encode()
    )


_entry = _cached_entry(_fingerprint())


def run_kernel(inputs: ReplicaInputs, *, log_steps: bool = False) -> ReplicaTrace:
    """Simulate one replica with the compiled engine.

    Parameters
    ----------
    inputs
        See `ReplicaInputs`.
    log_steps
        Also return every step (memory grows with steps x queue length: for comparing engines, not for hours of traffic).

    Raises
    ------
    TwinError
        When a step schedules nothing although requests run or wait (KV cache smaller than one request).
    """
    settings = make_settings(inputs)
    log_capacity = 1024 if log_steps else 0
    while True:
        state = make_state(inputs, log_capacity=log_capacity)
        _entry(settings, inputs.step_coefficients, state)
        if state.counters[STATUS] != STATUS_LOG_FULL:
            break
        log_capacity *= 4
    if state.counters[STATUS] == STATUS_STALLED:
        raise TwinError(
            f"a step must schedule at least one token. Step {int(state.counters[NUM_STEPS])} scheduled none with "
            f"{int(state.counters[NUM_RUNNING])} running and {int(state.counters[NUM_WAITING])} waiting requests: "
            "the KV cache or the token budget is smaller than one request needs. Give more blocks or a smaller max_model_len."
        )
    return make_trace(inputs, state)
