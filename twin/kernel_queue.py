"""The fast engine's waiting queue, the adapters of its batch, and its two LRU caches of adapters (compiled).

Waiting requests form one list in queue order plus a FIFO per adapter: when all slots are taken, the next admissible
request is the earliest head among the FIFOs of the batch's adapters, so that no step scans the queue.
"""

from __future__ import annotations

from twin.kernel_compile import compiled
from twin.kernel_state import (
    ACTIVE,
    ACTIVE_AT,
    ACTIVE_KEY,
    ADAPTER_NEXT,
    BACK_KEY,
    CPU_LIST,
    DISK_LOAD_NS,
    DISK_LOADS_OF,
    FIFO_HEAD,
    FIFO_TAIL,
    FINISH_NS,
    FIRST_STEADY,
    FRONT_KEY,
    GPU_LOAD_NS,
    GPU_LOADS_OF,
    NEXT,
    NO_KEY,
    NUM_DISTINCT,
    NUM_IN_CPU,
    NUM_IN_SLOTS,
    NUM_ORDERED,
    NUM_REENTERED,
    NUM_WAITING,
    ORDER,
    ORDER_AT,
    PREVIOUS,
    QUEUE_HEAD,
    QUEUE_KEY,
    QUEUE_TAIL,
    REQUEST_ADAPTER,
    RUNNING_OF,
    SET_CHANGED,
    SLOT_LIST,
    STEADY_OF,
    STEP_DISK_LOADS,
    STEP_GPU_LOADS,
    STEP_LOAD_NS,
    Array,
    Settings,
)


@compiled
def _note_head(requests: Array, adapters: Array, a: int) -> None:
    """Keep the key of the first that waits for `a` at hand if `a` is in the batch."""
    if adapters[RUNNING_OF, a] > 0 and a < adapters.shape[1] - 1:
        head = adapters[FIFO_HEAD, a]
        adapters[ACTIVE_KEY, adapters[ACTIVE_AT, a]] = requests[head, QUEUE_KEY] if head >= 0 else NO_KEY


@compiled
def append(requests: Array, c: Array, ends: int, r: int) -> None:
    """Put `r` at the end of the list whose first and last request are the counters `ends` and `ends + 1`."""
    last = c[ends + 1]
    requests[r, PREVIOUS] = last
    requests[r, NEXT] = -1
    if last >= 0:
        requests[last, NEXT] = r
    else:
        c[ends] = r
    c[ends + 1] = r


@compiled
def unlink(requests: Array, c: Array, ends: int, r: int) -> None:
    """Take `r` out of the list whose first and last request are the counters `ends` and `ends + 1`."""
    before, after = requests[r, PREVIOUS], requests[r, NEXT]
    if before >= 0:
        requests[before, NEXT] = after
    else:
        c[ends] = after
    if after >= 0:
        requests[after, PREVIOUS] = before
    else:
        c[ends + 1] = before


@compiled
def push_back(requests: Array, adapters: Array, c: Array, r: int) -> None:
    """Append request `r` to the queue and to its adapter's FIFO."""
    requests[r, QUEUE_KEY] = c[BACK_KEY]
    c[BACK_KEY] += 1
    append(requests, c, QUEUE_HEAD, r)
    a = requests[r, REQUEST_ADAPTER]
    requests[r, ADAPTER_NEXT] = -1
    if adapters[FIFO_TAIL, a] >= 0:
        requests[adapters[FIFO_TAIL, a], ADAPTER_NEXT] = r
        adapters[FIFO_TAIL, a] = r
    else:
        adapters[FIFO_HEAD, a] = r
        adapters[FIFO_TAIL, a] = r
        _note_head(requests, adapters, a)
    c[NUM_WAITING] += 1


@compiled
def queue_first(requests: Array, c: Array, r: int) -> None:
    """Put a request at the head of the queue, but into no FIFO."""
    head = c[QUEUE_HEAD]
    requests[r, NEXT] = head
    requests[r, PREVIOUS] = -1
    if head >= 0:
        requests[head, PREVIOUS] = r
    else:
        c[QUEUE_TAIL] = r
    c[QUEUE_HEAD] = r
    c[NUM_WAITING] += 1


@compiled
def push_front(requests: Array, adapters: Array, c: Array, r: int) -> None:
    """Put a preempted request at the head of the queue and of its adapter's FIFO."""
    requests[r, QUEUE_KEY] = c[FRONT_KEY]
    c[FRONT_KEY] -= 1
    queue_first(requests, c, r)
    a = requests[r, REQUEST_ADAPTER]
    requests[r, ADAPTER_NEXT] = adapters[FIFO_HEAD, a]
    adapters[FIFO_HEAD, a] = r
    if adapters[FIFO_TAIL, a] < 0:
        adapters[FIFO_TAIL, a] = r
    _note_head(requests, adapters, a)


@compiled
def remove_waiting(requests: Array, adapters: Array, c: Array, r: int) -> None:
    """Take `r`, the head of its adapter's FIFO, out of the queue."""
    unlink(requests, c, QUEUE_HEAD, r)
    a = requests[r, REQUEST_ADAPTER]
    adapters[FIFO_HEAD, a] = requests[r, ADAPTER_NEXT]
    if adapters[FIFO_HEAD, a] < 0:
        adapters[FIFO_TAIL, a] = -1
    _note_head(requests, adapters, a)
    c[NUM_WAITING] -= 1


@compiled
def _move_active(adapters: Array, position: int, to: int) -> None:
    """Move an entry of the lists ACTIVE and ACTIVE_KEY; those between move by one, their order stays."""
    a, key = adapters[ACTIVE, position], adapters[ACTIVE_KEY, position]
    direction = 1 if to > position else -1
    while position != to:
        moved = adapters[ACTIVE, position + direction]
        adapters[ACTIVE, position] = moved
        adapters[ACTIVE_KEY, position] = adapters[ACTIVE_KEY, position + direction]
        adapters[ACTIVE_AT, moved] = position
        position += direction
    adapters[ACTIVE, to] = a
    adapters[ACTIVE_KEY, to] = key
    adapters[ACTIVE_AT, a] = to


@compiled
def order_steady(adapters: Array, c: Array, a: int, r: int) -> None:
    """Count `r`, which is now the last of the steady requests, for its adapter `a`; the first one gives it a place."""
    if a == adapters.shape[1] - 1:
        return
    adapters[STEADY_OF, a] += 1
    if adapters[STEADY_OF, a] == 1:
        adapters[FIRST_STEADY, a] = r
        adapters[ORDER, c[NUM_ORDERED]] = a
        adapters[ORDER_AT, a] = c[NUM_ORDERED]
        c[NUM_ORDERED] += 1
        c[SET_CHANGED] = 1


@compiled
def reorder_steady(requests: Array, adapters: Array, c: Array, a: int, r: int) -> None:
    """Count `r`, still in the running list, no longer for its adapter `a`, whose place is now that of its next one.

    On the way to that one its adapter falls behind those whose first steady requests it passes.
    """
    if a == adapters.shape[1] - 1:
        return
    adapters[STEADY_OF, a] -= 1
    if adapters[FIRST_STEADY, a] != r:
        return
    position = adapters[ORDER_AT, a]
    if adapters[STEADY_OF, a] > 0:
        to = position
        r = requests[r, NEXT]
        while requests[r, REQUEST_ADAPTER] != a or requests[r, FINISH_NS] >= 0:
            if adapters[FIRST_STEADY, requests[r, REQUEST_ADAPTER]] == r:
                to += 1
            r = requests[r, NEXT]
        adapters[FIRST_STEADY, a] = r
    else:
        adapters[FIRST_STEADY, a] = -1
        c[NUM_ORDERED] -= 1
        to = c[NUM_ORDERED]
    while position < to:
        moved = adapters[ORDER, position + 1]
        adapters[ORDER, position] = moved
        adapters[ORDER_AT, moved] = position
        position += 1
    adapters[ORDER, to] = a
    adapters[ORDER_AT, a] = to
    c[SET_CHANGED] = 1


@compiled
def _enter(adapters: Array, c: Array, a: int, is_first: bool, is_new: bool) -> None:
    """Keep the order of entry after a request of `a` was admitted, the first one or not.

    Requests that run for the first time enter the batch before those that ran before and were preempted, whichever was
    admitted first. The last NUM_REENTERED adapters are those that entered in this step by such a request.
    """
    if not is_new:
        c[NUM_REENTERED] += 1 if is_first else 0
        return
    others = c[NUM_REENTERED] - (0 if is_first else 1)
    if c[NUM_REENTERED] > 0 and adapters[ACTIVE_AT, a] >= c[NUM_DISTINCT] - 1 - others:
        _move_active(adapters, adapters[ACTIVE_AT, a], c[NUM_DISTINCT] - 1 - others)
        c[NUM_REENTERED] = others


@compiled
def join_adapter(s: Settings, requests: Array, adapters: Array, c: Array, a: int, is_new: bool) -> None:
    """Count one more running request of `a` (the last column is the base model, which is no adapter).

    `is_new`: the request runs for the first time.
    """
    if a == adapters.shape[1] - 1:
        return
    adapters[RUNNING_OF, a] += 1
    is_first = adapters[RUNNING_OF, a] == 1
    if is_first:
        adapters[ACTIVE, c[NUM_DISTINCT]] = a
        adapters[ACTIVE_AT, a] = c[NUM_DISTINCT]
        c[NUM_DISTINCT] += 1
        c[SET_CHANGED] = 1
        _note_head(requests, adapters, a)
    if s.keeps_entry_order:
        _enter(adapters, c, a, is_first, is_new)


@compiled
def leave_adapter(s: Settings, adapters: Array, c: Array, a: int) -> None:
    """Count one running request of `a` less."""
    if a == adapters.shape[1] - 1:
        return
    adapters[RUNNING_OF, a] -= 1
    if adapters[RUNNING_OF, a] == 0:
        c[NUM_DISTINCT] -= 1
        if s.keeps_entry_order:
            _move_active(adapters, adapters[ACTIVE_AT, a], c[NUM_DISTINCT])
        else:
            moved, position = adapters[ACTIVE, c[NUM_DISTINCT]], adapters[ACTIVE_AT, a]
            adapters[ACTIVE, position] = moved
            adapters[ACTIVE_KEY, position] = adapters[ACTIVE_KEY, c[NUM_DISTINCT]]
            adapters[ACTIVE_AT, moved] = position
        c[SET_CHANGED] = 1


@compiled
def _unlink(adapters: Array, lru: int, a: int) -> None:
    """Take `a` out of the list whose next and previous links are the rows `lru` and `lru + 1`."""
    following, preceding = adapters[lru, a], adapters[lru + 1, a]
    adapters[lru, preceding] = following
    adapters[lru + 1, following] = preceding
    adapters[lru, a] = -1


@compiled
def _link_last(adapters: Array, lru: int, a: int) -> None:
    """Insert `a` at the most recently used end of a list."""
    sentinel = adapters.shape[1] - 1
    last = adapters[lru + 1, sentinel]
    adapters[lru, last] = a
    adapters[lru + 1, a] = last
    adapters[lru, a] = sentinel
    adapters[lru + 1, sentinel] = a


@compiled
def visit_adapter(s: Settings, adapters: Array, c: Array, a: int) -> None:
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
