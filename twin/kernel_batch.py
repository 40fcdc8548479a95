"""The fast engine's running list, and the requests in it that simply decode (compiled).

The running list is linked in order of admission. Its first NUM_STEADY requests are *steady*: each sampled a token in
the last step and gets one token in every step until it finishes or is preempted. A step changes nothing of them one by
one; the number of steps that served them, DECODES, stands for all:

- A steady request's COMPUTED holds its computed tokens minus DECODES, and its NUM_TOKENS and LAST_TOKEN_NS are implied:
  one more than computed, and the end of the last step. STEADY_CONTEXT is the sum of the computed tokens.
- It finishes at a known DECODES: the calendar has a list of requests for each of the next values, a ring.
- It needs a KV block when its computed tokens are a multiple of the block size, that is whenever BLOCK_PHASE, DECODES
  modulo the block size, has a certain value: `crossings` counts the requests for each. The blocks that a running
  request holds are always those of its computed tokens.
- Its gaps are the steps from now on: `column_steps` counts the steps of each column of the adapters' histograms, so
  that its gaps are the difference of the counts between its end and its start.

FIRST_OTHER is the first running request that is not steady (-1: none): from there on they are treated one by one.

With asynchronous scheduling, requests *leave* between the step that gives them their last token and the one that is
scheduled meanwhile: they have finished, but hold their places and blocks until that is done. They are linked from
LEAVING on, and stay where they are in the running list, also among the steady ones.
"""

from __future__ import annotations

import numpy as np

from twin.kernel_compile import compiled
from twin.kernel_queue import append, leave_adapter, order_steady, push_front, queue_first, reorder_steady, unlink
from twin.kernel_state import (
    ADMISSION,
    ADMISSION_CLOSED_TO_QUEUE,
    ADMISSION_OPEN,
    BLOCK_PHASE,
    CALENDAR_NEXT,
    CALENDAR_PREVIOUS,
    COMPUTED,
    DECODES,
    END_COLUMN,
    FINISH_NS,
    FINISH_TOKENS,
    FIRST_COLUMN,
    FIRST_OTHER,
    FREE_BLOCKS,
    LAST_TOKEN_NS,
    LEAVING,
    LEAVING_NEXT,
    NEXT,
    NUM_RUNNING,
    NUM_STEADY,
    NUM_TOKENS,
    NUM_WAITING,
    PREEMPTIONS,
    PREVIOUS,
    QUEUE_HEAD,
    REQUEST_ADAPTER,
    RUNNING_HEAD,
    RUNNING_TAIL,
    STEADY_CONTEXT,
    STEP_PREEMPTIONS,
    STEP_SHARE,
    Array,
    Decodes,
    Settings,
)

# Share of a request that leaves and was preempted.
PREEMPTED = -1


@compiled
def append_running(requests: Array, c: Array, r: int) -> None:
    """Put `r` at the end of the running list, not steady."""
    append(requests, c, RUNNING_HEAD, r)
    if c[FIRST_OTHER] < 0:
        c[FIRST_OTHER] = r
    c[NUM_RUNNING] += 1


@compiled
def remove_running(s: Settings, requests: Array, adapters: Array, c: Array, r: int) -> None:
    """Take `r`, which is not steady (any more), out of the running list; its blocks and its adapter become free."""
    unlink(requests, c, RUNNING_HEAD, r)
    if c[FIRST_OTHER] == r:
        c[FIRST_OTHER] = requests[r, NEXT]
    c[NUM_RUNNING] -= 1
    c[FREE_BLOCKS] += (requests[r, COMPUTED] + s.block_size - 1) // s.block_size
    leave_adapter(s, adapters, c, requests[r, REQUEST_ADAPTER])


@compiled
def start_leaving(s: Settings, requests: Array, adapters: Array, c: Array, r: int) -> None:
    """Let `r`, which has finished, take part in no step any more; its adapter leaves the batch."""
    if c[FIRST_OTHER] == r:
        c[FIRST_OTHER] = requests[r, NEXT]
    requests[r, STEP_SHARE] = 0
    requests[r, LEAVING_NEXT] = c[LEAVING]
    c[LEAVING] = r
    leave_adapter(s, adapters, c, requests[r, REQUEST_ADAPTER])


@compiled
def _give_back(s: Settings, requests: Array, c: Array, r: int) -> None:
    """Take `r`, which leaves, out of the running list; its blocks become free."""
    unlink(requests, c, RUNNING_HEAD, r)
    c[NUM_RUNNING] -= 1
    c[FREE_BLOCKS] += (requests[r, COMPUTED] + s.block_size - 1) // s.block_size


@compiled
def release_leaving(s: Settings, requests: Array, c: Array) -> None:
    """Let go those that leave: from the running list, or from the queue if they were preempted meanwhile."""
    r = c[LEAVING]
    if r < 0:
        return
    while r >= 0:
        if requests[r, STEP_SHARE] == PREEMPTED:
            unlink(requests, c, QUEUE_HEAD, r)
            c[NUM_WAITING] -= 1
        else:
            _give_back(s, requests, c, r)
        r = requests[r, LEAVING_NEXT]
    c[LEAVING] = -1
    c[ADMISSION] = ADMISSION_CLOSED_TO_QUEUE if c[NUM_WAITING] == 0 else ADMISSION_OPEN


@compiled
def start_steady(s: Settings, requests: Array, adapters: Array, decodes: Decodes, c: Array) -> None:
    """Count the first of the others, which sampled a token in the last step, as steady."""
    r = c[FIRST_OTHER]
    c[FIRST_OTHER] = requests[r, NEXT]
    c[NUM_STEADY] += 1
    computed = requests[r, COMPUTED]
    c[STEADY_CONTEXT] += computed
    offset = computed - c[DECODES]
    requests[r, COMPUTED] = offset
    requests[r, STEP_SHARE] = 1
    decodes.crossings[-offset % s.block_size] += 1
    day = (requests[r, FINISH_TOKENS] - 1 - offset) & (len(decodes.calendar) - 1)
    head = decodes.calendar[day]
    requests[r, CALENDAR_NEXT] = head
    requests[r, CALENDAR_PREVIOUS] = -1
    if head >= 0:
        requests[head, CALENDAR_PREVIOUS] = r
    decodes.calendar[day] = r
    a = requests[r, REQUEST_ADAPTER]
    if s.keeps_steady_order:
        order_steady(adapters, c, a, r)
    # Unsigned columns spare the loop Numba's check for negative indices, which would keep it from being vectorised.
    for column in range(np.uint64(c[FIRST_COLUMN]), np.uint64(c[END_COLUMN])):
        decodes.adapter_gaps[a, column] -= decodes.column_steps[column]


@compiled
def end_steady(s: Settings, requests: Array, adapters: Array, decodes: Decodes, c: Array, r: int, now: int) -> None:
    """Write out what is implied for the steady request `r` at the step boundary `now`, and count it no longer."""
    c[NUM_STEADY] -= 1
    offset = requests[r, COMPUTED]
    computed = offset + c[DECODES]
    c[STEADY_CONTEXT] -= computed
    requests[r, COMPUTED] = computed
    requests[r, NUM_TOKENS] = computed + 1
    requests[r, LAST_TOKEN_NS] = now
    decodes.crossings[-offset % s.block_size] -= 1
    before, after = requests[r, CALENDAR_PREVIOUS], requests[r, CALENDAR_NEXT]
    if before >= 0:
        requests[before, CALENDAR_NEXT] = after
    else:
        decodes.calendar[(requests[r, FINISH_TOKENS] - 1 - offset) & (len(decodes.calendar) - 1)] = after
    if after >= 0:
        requests[after, CALENDAR_PREVIOUS] = before
    a = requests[r, REQUEST_ADAPTER]
    if s.keeps_steady_order:
        reorder_steady(requests, adapters, c, a, r)
    for column in range(np.uint64(c[FIRST_COLUMN]), np.uint64(c[END_COLUMN])):
        decodes.adapter_gaps[a, column] += decodes.column_steps[column]


@compiled
def end_last_steady(s: Settings, requests: Array, adapters: Array, decodes: Decodes, c: Array, now: int) -> None:
    """Let the last of the steady requests be the first of the others."""
    r = requests[c[FIRST_OTHER], PREVIOUS] if c[FIRST_OTHER] >= 0 else c[RUNNING_TAIL]
    end_steady(s, requests, adapters, decodes, c, r, now)
    c[FIRST_OTHER] = r


@compiled
def preempt_last(s: Settings, requests: Array, adapters: Array, decodes: Decodes, c: Array, now: int) -> None:
    """Take the last running request out of the batch: free its blocks, recompute it later."""
    r = c[RUNNING_TAIL]
    requests[r, PREEMPTIONS] += 1
    c[STEP_PREEMPTIONS] += 1
    if s.async_scheduling and requests[r, FINISH_NS] >= 0:
        # Its last token is on its way: it waits for it, and for nothing else.
        _give_back(s, requests, c, r)
        requests[r, STEP_SHARE] = PREEMPTED
        queue_first(requests, c, r)
        return
    if c[FIRST_OTHER] < 0:
        end_steady(s, requests, adapters, decodes, c, r, now)
    remove_running(s, requests, adapters, c, r)
    requests[r, COMPUTED] = 0
    push_front(requests, adapters, c, r)


@compiled
def serve_steady(s: Settings, decodes: Decodes, c: Array, column: int) -> None:
    """Give every steady request its token; the gap before it, the step, falls into that column."""
    c[DECODES] += 1
    c[BLOCK_PHASE] = c[BLOCK_PHASE] + 1 if c[BLOCK_PHASE] + 1 < s.block_size else 0
    c[STEADY_CONTEXT] += c[NUM_STEADY]
    if not s.counts_adapter_gaps:
        return
    decodes.column_steps[column] += 1
    c[FIRST_COLUMN] = min(c[FIRST_COLUMN], column)
    c[END_COLUMN] = max(c[END_COLUMN], column + 1)
