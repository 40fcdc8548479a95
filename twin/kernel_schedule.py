"""The fast engine's decision of one step: tokens per request, preemptions, admissions, adapter loads (compiled).

The rules are those of twin/semantics.md, "Schedule" and "Adapter loads".
"""

from __future__ import annotations

import numpy as np

from twin.kernel_compile import compiled
from twin.kernel_queue import join_adapter, leave_adapter, push_front, remove_waiting, visit_adapter
from twin.kernel_state import (
    ACTIVE,
    ALL_SCHEDULED,
    AT_ADAPTER,
    AT_CAPACITY,
    AT_COMPUTED,
    AT_FINISH,
    AT_LAST_TOKEN_NS,
    AT_PROMPT,
    AT_REQUEST,
    AT_TOKENS,
    AT_TOTAL,
    BUDGET,
    FIFO_HEAD,
    FINISH_TOKENS,
    FIRST_SCHEDULED_NS,
    FREE_BLOCKS,
    LAST_TOKEN_NS,
    NUM_DISTINCT,
    NUM_RUNNING,
    NUM_STEADY,
    NUM_TOKENS,
    NUM_WAITING,
    PREEMPTIONS,
    PROMPT,
    QUEUE_HEAD,
    QUEUE_KEY,
    REQUEST_ADAPTER,
    RUNNING_OF,
    SET_CHANGED,
    SET_TABLE_LIMITS,
    SLOT_LIST,
    STAMP,
    STEADY_PREFIX,
    STEP_ADAPTERS,
    STEP_CONTEXT,
    STEP_DISK_LOADS,
    STEP_GPU_LOADS,
    STEP_LOAD_NS,
    STEP_PREEMPTIONS,
    STEP_PREFILL_ATTENTION,
    STEP_PREFILL_CONTEXT,
    STEP_PREFILL_TOKENS,
    STEP_PREFILLS,
    STEP_REQUESTS,
    STEP_TOKENS,
    VISITED,
    Array,
    Settings,
    State,
)


@compiled
def _preempt_last(s: Settings, requests: Array, batch: Array, adapters: Array, c: Array, now: int) -> None:
    """Take the last running request out of the batch: free its blocks, recompute it later."""
    k = c[NUM_RUNNING] - 1
    r = batch[AT_REQUEST, k]
    is_steady = k < c[STEADY_PREFIX]
    c[NUM_RUNNING] = k
    c[FREE_BLOCKS] += batch[AT_CAPACITY, k] // s.block_size
    requests[NUM_TOKENS, r] = batch[AT_COMPUTED, k] + 1 if is_steady else batch[AT_TOTAL, k]
    requests[LAST_TOKEN_NS, r] = now if is_steady else batch[AT_LAST_TOKEN_NS, k]
    requests[PREEMPTIONS, r] += 1
    c[STEP_PREEMPTIONS] += 1
    leave_adapter(adapters, c, batch[AT_ADAPTER, k])
    push_front(requests, adapters, c, r)


@compiled
def _schedule_steady(s: Settings, requests: Array, batch: Array, adapters: Array, c: Array, now: int) -> None:
    """Give the first running requests, all decoding, their one token each; preempt from the tail when blocks run out.

    The common case of `_schedule_running` without its branches. Preempting until the blocks suffice for all that remain
    takes the same victims as meeting one shortage after the other in list order. Where the budget does not suffice,
    the values that are implied for these positions are written out: the general case treats them like all others.
    """
    num_steady = c[STEADY_PREFIX]
    if num_steady > s.max_num_batched_tokens:
        for k in range(num_steady):
            batch[AT_TOTAL, k] = batch[AT_COMPUTED, k] + 1
            batch[AT_LAST_TOKEN_NS, k] = now
        num_steady = 0
    context = 0
    missing = 0
    # Unsigned positions spare the loops Numba's check for negative indices.
    for k in range(np.uint64(num_steady)):
        context += batch[AT_COMPUTED, k]
        missing += batch[AT_COMPUTED, k] >= batch[AT_CAPACITY, k]
    while missing > c[FREE_BLOCKS]:
        last = c[NUM_RUNNING] - 1
        if last < num_steady:
            num_steady = last
            context -= batch[AT_COMPUTED, last]
            missing -= batch[AT_COMPUTED, last] >= batch[AT_CAPACITY, last]
        _preempt_last(s, requests, batch, adapters, c, now)
    if missing > 0:
        for k in range(np.uint64(num_steady)):
            batch[AT_CAPACITY, k] += s.block_size * (batch[AT_COMPUTED, k] >= batch[AT_CAPACITY, k])
        c[FREE_BLOCKS] -= missing
    c[STEADY_PREFIX] = num_steady
    c[NUM_STEADY] = num_steady
    c[STEP_CONTEXT] = context


@compiled
def _count_prefill(c: Array, n: int, computed: int) -> None:
    """Add a request that gets `n` prefill tokens after `computed` ones to the step's sums."""
    c[STEP_PREFILLS] += 1
    c[STEP_PREFILL_TOKENS] += n
    c[STEP_PREFILL_CONTEXT] += computed
    c[STEP_PREFILL_ATTENTION] += n * computed + n * (n + 1) // 2


@compiled
def _schedule_running(
    s: Settings, threshold: int, requests: Array, batch: Array, adapters: Array, c: Array, now: int
) -> None:
    """Give tokens to running requests in list order; preempt from the tail when blocks run out."""
    _schedule_steady(s, requests, batch, adapters, c, now)
    cap = s.max_model_len - 1 if s.keep_last_token_free else s.max_model_len
    k = c[NUM_STEADY]
    budget = s.max_num_batched_tokens - k
    num_tokens, num_requests, context = k, k, c[STEP_CONTEXT]
    all_scheduled = True
    for count in range(STEP_PREFILLS, STEP_PREFILL_ATTENTION + 1):
        c[count] = 0
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
                _preempt_last(s, requests, batch, adapters, c, now)
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
            _count_prefill(c, n, computed)
        k += 1
    if k < c[NUM_RUNNING]:
        all_scheduled = False
        for unscheduled in range(k, c[NUM_RUNNING]):
            batch[AT_TOKENS, unscheduled] = 0
    c[BUDGET] = budget
    c[STEP_TOKENS] = num_tokens
    c[STEP_REQUESTS] = num_requests
    c[STEP_CONTEXT] = context
    c[ALL_SCHEDULED] = 1 if all_scheduled else 0


@compiled
def _collect_adapters(batch: Array, adapters: Array, c: Array, step: int) -> None:
    """Count the distinct adapters of the scheduled running requests; stamp them if some running request was not."""
    if c[ALL_SCHEDULED] == 1:
        c[STEP_ADAPTERS] = c[NUM_DISTINCT]
        return
    distinct = 0
    num_adapters = adapters.shape[1] - 1
    for k in range(c[NUM_RUNNING]):
        a = batch[AT_ADAPTER, k]
        if (k < c[NUM_STEADY] or batch[AT_TOKENS, k] > 0) and a < num_adapters and adapters[STAMP, a] != step:
            adapters[STAMP, a] = step
            distinct += 1
    c[STEP_ADAPTERS] = distinct
    c[SET_CHANGED] = 1


@compiled
def _is_member(adapters: Array, c: Array, a: int, step: int) -> bool:
    """Whether adapter `a` is among those of the requests scheduled in this step."""
    if c[ALL_SCHEDULED] == 1:
        return bool(adapters[RUNNING_OF, a] > 0)
    return bool(adapters[STAMP, a] == step)


@compiled
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


@compiled
def _admit(
    s: Settings, requests: Array, batch: Array, adapters: Array, c: Array, r: int, n: int, now: int, step: int
) -> None:
    """Move waiting request `r` to the tail of running with `n` tokens."""
    num_adapters = adapters.shape[1] - 1
    blocks = (n + s.block_size - 1) // s.block_size
    c[FREE_BLOCKS] -= blocks
    remove_waiting(requests, adapters, c, r)
    a = requests[REQUEST_ADAPTER, r]
    if a < num_adapters:
        if not _is_member(adapters, c, a, step):
            c[STEP_ADAPTERS] += 1
        adapters[STAMP, a] = step
        if s.keeps_all_adapters and adapters[SLOT_LIST, a] < 0:
            visit_adapter(s, adapters, c, a)
    join_adapter(adapters, c, a)
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
        _count_prefill(c, n, 0)


@compiled
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


@compiled
def _load_adapters(s: Settings, state: State, step: int) -> None:
    """Visit the step's adapters in load order.

    In set order an unchanged set leaves both caches as they are. Where nothing is ever evicted, admission has loaded
    what was missing.
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
        row, oldest_member = (RUNNING_OF, 1) if c[ALL_SCHEDULED] == 1 else (STAMP, step)
        for i in range(num_adapters):
            a = state.orders[level, i]
            if adapters[row, a] >= oldest_member:
                visit_adapter(s, adapters, c, a)
        return
    for k in range(c[NUM_RUNNING]):
        a = batch[AT_ADAPTER, k]
        if (k < c[NUM_STEADY] or batch[AT_TOKENS, k] > 0) and a < num_adapters and adapters[VISITED, a] != step:
            adapters[VISITED, a] = step
            visit_adapter(s, adapters, c, a)


@compiled
def schedule(s: Settings, state: State, now: int, step: int) -> None:
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
    _schedule_running(s, threshold, requests, batch, adapters, c, now)
    if was_partial:
        c[SET_CHANGED] = 1
    _collect_adapters(batch, adapters, c, step)
    if c[STEP_PREEMPTIONS] == 0:
        _schedule_waiting(s, threshold, requests, batch, adapters, c, now, step)
    _load_adapters(s, state, step)
    c[SET_CHANGED] = 0
