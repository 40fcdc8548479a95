"""The fast engine's decision of one step: tokens per request, preemptions, admissions, adapter loads (compiled).

The rules are those of twin/semantics.md, "Schedule" and "Adapter loads". A step that would be decided like the one
before is not decided again: see `is_settled`.

By these rules every running request gets at least one token in every step, but for those that leave. A request is
admitted only with what those before it in the running list leave of the budget, and none of them ever takes more than
then: chunks of a prompt do not grow and a decode takes one token. `max_model_len` limits nothing, because a request
ends before it gets there. So the step's adapters are those of all running requests that do not leave.
"""

from __future__ import annotations

from twin.kernel_batch import append_running, preempt_last
from twin.kernel_compile import compiled
from twin.kernel_queue import join_adapter, push_back, remove_waiting, visit_adapter
from twin.kernel_sets import list_in_load_order
from twin.kernel_state import (
    ACTIVE,
    ACTIVE_KEY,
    ADMISSION,
    ADMISSION_CLOSED,
    ADMISSION_CLOSED_TO_QUEUE,
    ADMISSION_OPEN,
    BLOCK_PHASE,
    BUDGET,
    COMPUTED,
    FIFO_HEAD,
    FINISH_NS,
    FIRST_OTHER,
    FIRST_SCHEDULED_NS,
    FREE_BLOCKS,
    MEMBERS,
    NEXT,
    NO_KEY,
    NUM_DISTINCT,
    NUM_REENTERED,
    NUM_RUNNING,
    NUM_STEADY,
    NUM_TOKENS,
    NUM_WAITING,
    PROMPT,
    QUEUE_HEAD,
    QUEUE_KEY,
    REQUEST_ADAPTER,
    RUNNING_OF,
    RUNNING_TAIL,
    SET_CHANGED,
    SLOT_LIST,
    STEADY_CONTEXT,
    STEP_CONTEXT,
    STEP_LOAD_NS,
    STEP_PREEMPTIONS,
    STEP_PREFILLS,
    STEP_REQUESTS,
    STEP_SHARE,
    STEP_TOKENS,
    Array,
    Decodes,
    Settings,
)


@compiled
def _serve_steady(decodes: Decodes, c: Array) -> None:
    """Allocate the blocks that the steady requests need, and set the step's counts to theirs."""
    c[FREE_BLOCKS] -= decodes.crossings[c[BLOCK_PHASE]]
    c[STEP_TOKENS] = c[NUM_STEADY]
    c[STEP_REQUESTS] = c[NUM_STEADY]
    c[STEP_CONTEXT] = c[STEADY_CONTEXT]
    for count in range(STEP_PREFILLS, STEP_LOAD_NS + 1):
        c[count] = 0


@compiled
def repeat_step(decodes: Decodes, c: Array) -> bool:
    """Decide a step in which only the steady requests take part; False if there are too few blocks for it."""
    if decodes.crossings[c[BLOCK_PHASE]] > c[FREE_BLOCKS]:
        return False
    _serve_steady(decodes, c)
    c[STEP_PREEMPTIONS] = 0
    return True


@compiled
def _share(threshold: int, requests: Array, c: Array, r: int) -> int:
    """Return how many tokens request `r` gets if there are blocks for them."""
    n = requests[r, NUM_TOKENS] - requests[r, COMPUTED]
    if 0 < threshold < n:
        n = threshold
    return int(min(n, c[BUDGET]))


@compiled
def _give(requests: Array, c: Array, r: int, n: int) -> None:
    """Schedule `n` tokens of `r`, which is not steady."""
    requests[r, STEP_SHARE] = n
    c[BUDGET] -= n
    c[STEP_TOKENS] += n
    c[STEP_REQUESTS] += 1
    c[STEP_CONTEXT] += requests[r, COMPUTED]
    if n > 1 or requests[r, NUM_TOKENS] == requests[r, PROMPT]:
        c[STEP_PREFILLS] += 1


@compiled
def _schedule_others(
    s: Settings, threshold: int, requests: Array, adapters: Array, decodes: Decodes, c: Array, now: int
) -> None:
    """Give tokens to the running requests that are not steady, in list order; preempt from the tail."""
    r = c[FIRST_OTHER]
    while r >= 0:
        if s.async_scheduling and requests[r, FINISH_NS] >= 0:
            r = requests[r, NEXT]
            continue
        n = _share(threshold, requests, c, r)
        computed = requests[r, COMPUTED]
        missing = (computed + n + s.block_size - 1) // s.block_size - (computed + s.block_size - 1) // s.block_size
        while missing > c[FREE_BLOCKS]:
            last = c[RUNNING_TAIL]
            preempt_last(s, requests, adapters, decodes, c, now)
            if last == r:
                return
        c[FREE_BLOCKS] -= missing
        _give(requests, c, r, n)
        r = requests[r, NEXT]


@compiled
def _first_admissible(s: Settings, requests: Array, adapters: Array, c: Array) -> int:
    """Return the first waiting request whose adapter may join the batch, or -1."""
    if s.num_slots == 0 or c[NUM_DISTINCT] < s.num_slots or c[NUM_WAITING] == 0:
        return int(c[QUEUE_HEAD])
    # Requests for the base model need no slot.
    best = adapters.shape[1] - 1
    best_key = requests[adapters[FIFO_HEAD, best], QUEUE_KEY] if adapters[FIFO_HEAD, best] >= 0 else NO_KEY
    for i in range(c[NUM_DISTINCT]):
        if adapters[ACTIVE_KEY, i] < best_key:
            best = adapters[ACTIVE, i]
            best_key = adapters[ACTIVE_KEY, i]
    return int(adapters[FIFO_HEAD, best])


@compiled
def _admit(s: Settings, requests: Array, adapters: Array, c: Array, r: int, n: int, now: int) -> None:
    """Move waiting request `r` to the tail of running with `n` tokens."""
    c[FREE_BLOCKS] -= (n + s.block_size - 1) // s.block_size
    remove_waiting(requests, adapters, c, r)
    a = requests[r, REQUEST_ADAPTER]
    if a < adapters.shape[1] - 1 and s.keeps_all_adapters and adapters[SLOT_LIST, a] < 0:
        visit_adapter(s, adapters, c, a)
    join_adapter(s, requests, adapters, c, a, requests[r, FIRST_SCHEDULED_NS] < 0)
    append_running(requests, c, r)
    if requests[r, FIRST_SCHEDULED_NS] < 0:
        requests[r, FIRST_SCHEDULED_NS] = now
    _give(requests, c, r, n)


@compiled
def _schedule_waiting(s: Settings, threshold: int, requests: Array, adapters: Array, c: Array, now: int) -> None:
    """Admit waiting requests in queue order; those whose adapter finds no slot keep their place."""
    c[ADMISSION] = ADMISSION_OPEN
    while c[BUDGET] > 0:
        if c[NUM_WAITING] > 0 and c[NUM_RUNNING] >= s.max_num_seqs:
            c[ADMISSION] = ADMISSION_CLOSED
            break
        r = _first_admissible(s, requests, adapters, c)
        if r < 0:
            c[ADMISSION] = ADMISSION_CLOSED_TO_QUEUE
            break
        n = _share(threshold, requests, c, r)
        needed = requests[r, NUM_TOKENS] if s.reserve_full else n
        blocks = (needed + s.block_size - 1) // s.block_size
        if c[NUM_RUNNING] > 0:
            blocks += s.watermark_blocks
        if blocks > c[FREE_BLOCKS]:
            c[ADMISSION] = ADMISSION_CLOSED
            break
        _admit(s, requests, adapters, c, r, n, now)


@compiled
def _load_adapters(s: Settings, requests: Array, adapters: Array, scratch: Array, c: Array, step: int) -> None:
    """Visit the step's adapters in load order.

    Visiting the same adapters in the same order again would leave both caches as they are. Where nothing is ever
    evicted, admission has loaded what was missing.
    """
    if c[SET_CHANGED] == 0:
        return
    list_in_load_order(s, requests, adapters, scratch, c, step)
    for i in range(c[NUM_DISTINCT]):
        visit_adapter(s, adapters, c, scratch[MEMBERS, i])


@compiled
def schedule(
    s: Settings, requests: Array, adapters: Array, decodes: Decodes, scratch: Array, c: Array, now: int, step: int
) -> None:
    """Decide one step: tokens per request, admissions, adapter loads."""
    threshold = s.threshold
    if not s.threshold_when_alone and c[NUM_RUNNING] + c[NUM_WAITING] <= 1:
        threshold = 0
    c[STEP_PREEMPTIONS] = 0
    c[NUM_REENTERED] = 0
    # Preempting until the blocks suffice for all that remain takes the same victims as meeting one shortage after the
    # other in list order.
    while decodes.crossings[c[BLOCK_PHASE]] > c[FREE_BLOCKS]:
        preempt_last(s, requests, adapters, decodes, c, now)
    _serve_steady(decodes, c)
    c[BUDGET] = s.max_num_batched_tokens - c[NUM_STEADY]
    if c[FIRST_OTHER] >= 0:
        _schedule_others(s, threshold, requests, adapters, decodes, c, now)
    if c[STEP_PREEMPTIONS] == 0:
        _schedule_waiting(s, threshold, requests, adapters, c, now)
    else:
        c[ADMISSION] = ADMISSION_OPEN
    if s.evicts_adapters:
        _load_adapters(s, requests, adapters, scratch, c, step)
    c[SET_CHANGED] = 0


@compiled
def is_settled(s: Settings, c: Array) -> bool:
    """Return whether the next step can only serve all running requests like the last one, unless blocks run out.

    All of them are steady, nobody who waits can be admitted, and visiting their adapters would leave both caches as
    they are.
    """
    if c[FIRST_OTHER] >= 0 or c[NUM_STEADY] == 0 or c[ADMISSION] == ADMISSION_OPEN:
        return False
    return not s.evicts_adapters or c[SET_CHANGED] == 0


@compiled
def arrive(s: Settings, requests: Array, adapters: Array, c: Array, r: int) -> None:
    """Let request `r` join the queue; if only those before it cannot be admitted, maybe it can."""
    push_back(requests, adapters, c, r)
    if c[ADMISSION] == ADMISSION_CLOSED_TO_QUEUE:
        a = requests[r, REQUEST_ADAPTER]
        has_free_slots = s.num_slots == 0 or c[NUM_DISTINCT] < s.num_slots
        if has_free_slots or a == adapters.shape[1] - 1 or adapters[RUNNING_OF, a] > 0:
            c[ADMISSION] = ADMISSION_OPEN
