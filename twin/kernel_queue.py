"""The fast engine's waiting queue, the adapters of its batch, and its two LRU caches of adapters (compiled)."""

from __future__ import annotations

from twin.kernel_compile import compiled
from twin.kernel_state import (
    ACTIVE,
    ACTIVE_AT,
    ADAPTER_NEXT,
    BACK_KEY,
    CPU_LIST,
    DISK_LOAD_NS,
    DISK_LOADS_OF,
    FIFO_HEAD,
    FIFO_TAIL,
    FRONT_KEY,
    GPU_LOAD_NS,
    GPU_LOADS_OF,
    NEXT,
    NUM_DISTINCT,
    NUM_IN_CPU,
    NUM_IN_SLOTS,
    NUM_WAITING,
    PREVIOUS,
    QUEUE_HEAD,
    QUEUE_KEY,
    QUEUE_TAIL,
    REQUEST_ADAPTER,
    RUNNING_OF,
    SET_CHANGED,
    SLOT_LIST,
    STEP_DISK_LOADS,
    STEP_GPU_LOADS,
    STEP_LOAD_NS,
    Array,
    Settings,
)


@compiled
def push_back(requests: Array, adapters: Array, c: Array, r: int) -> None:
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


@compiled
def push_front(requests: Array, adapters: Array, c: Array, r: int) -> None:
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


@compiled
def remove_waiting(requests: Array, adapters: Array, c: Array, r: int) -> None:
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


@compiled
def join_adapter(adapters: Array, c: Array, a: int) -> None:
    """Count one more running request of `a` (the last column is the base model, which is no adapter)."""
    if adapters[RUNNING_OF, a] == 0 and a < adapters.shape[1] - 1:
        adapters[ACTIVE, c[NUM_DISTINCT]] = a
        adapters[ACTIVE_AT, a] = c[NUM_DISTINCT]
        c[NUM_DISTINCT] += 1
        c[SET_CHANGED] = 1
    adapters[RUNNING_OF, a] += 1


@compiled
def leave_adapter(adapters: Array, c: Array, a: int) -> None:
    """Count one running request of `a` less."""
    adapters[RUNNING_OF, a] -= 1
    if adapters[RUNNING_OF, a] == 0 and a < adapters.shape[1] - 1:
        c[NUM_DISTINCT] -= 1
        moved, position = adapters[ACTIVE, c[NUM_DISTINCT]], adapters[ACTIVE_AT, a]
        adapters[ACTIVE, position] = moved
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
