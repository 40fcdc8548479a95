"""The fast engine's books: totals, samples, the step log (compiled)."""

from __future__ import annotations

from twin.kernel_compile import compiled
from twin.kernel_state import (
    BLOCKS_INTEGRAL,
    BUSY_NS,
    CPU_LIST,
    FINISHED_REQUESTS,
    FINISHED_TOKENS,
    FREE_BLOCKS,
    GPU_LOADS,
    INTEGRAL_UNIT,
    IS_BATCH_CHANGED,
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
    NEXT_SAMPLE_NS,
    NUM_DISTINCT,
    NUM_PREEMPTIONS,
    NUM_RUNNING,
    NUM_SAMPLES,
    NUM_STEPS,
    NUM_WAITING,
    PEAK_BLOCKS,
    PEAK_RUNNING,
    PEAK_WAITING,
    QUEUE_HEAD,
    RUNNING_HEAD,
    RUNNING_INTEGRAL,
    RUNNING_OVERFLOWS,
    SCHEDULED_TOKENS,
    SLOT_LIST,
    STEP_CONTEXT,
    STEP_DISK_LOADS,
    STEP_GPU_LOADS,
    STEP_LOAD_NS,
    STEP_PREEMPTIONS,
    STEP_PREFILLS,
    STEP_REQUESTS,
    STEP_SHARE,
    STEP_TOKENS,
    WAITING_INTEGRAL,
    Array,
    Settings,
    State,
)


@compiled
def _write_recency(log: Array, end: int, adapters: Array, lru: int) -> int:
    """Append an LRU list, least recently used first; return the log's new end, -1 when it is full."""
    sentinel = adapters.shape[1] - 1
    a = adapters[lru, sentinel]
    while a != sentinel:
        if end >= len(log):
            return -1
        log[end] = a
        end += 1
        a = adapters[lru, a]
    return end


@compiled
def write_log(s: Settings, state: State, now: int, duration: int) -> bool:
    """Append the step; False when a buffer is full."""
    requests, c = state.requests, state.counters
    i = c[NUM_STEPS]
    if i >= len(state.log_steps):
        return False
    running_end = state.log_steps[i - 1, LOG_RUNNING_END] if i > 0 else 0
    waiting_end = state.log_steps[i - 1, LOG_WAITING_END] if i > 0 else 0
    slots_end = state.log_steps[i - 1, LOG_SLOTS_END] if i > 0 else 0
    cached_end = state.log_steps[i - 1, LOG_CACHED_END] if i > 0 else 0
    if running_end + c[NUM_RUNNING] > len(state.log_running) or waiting_end + c[NUM_WAITING] > len(state.log_waiting):
        return False
    r = c[RUNNING_HEAD]
    while r >= 0:
        state.log_running[running_end, 0] = r
        state.log_running[running_end, 1] = requests[r, STEP_SHARE]
        running_end += 1
        r = requests[r, NEXT]
    r = c[QUEUE_HEAD]
    while r >= 0:
        state.log_waiting[waiting_end] = r
        waiting_end += 1
        r = requests[r, NEXT]
    if s.evicts_adapters:
        slots_end = _write_recency(state.log_slots, slots_end, state.adapters, SLOT_LIST)
    if s.touches_cpu_cache:
        cached_end = _write_recency(state.log_cached, cached_end, state.adapters, CPU_LIST)
    if slots_end < 0 or cached_end < 0:
        return False
    row = state.log_steps[i]
    row[LOG_START] = now
    row[LOG_DURATION] = duration
    row[LOG_FREE] = c[FREE_BLOCKS]
    row[LOG_RUNNING_END] = running_end
    row[LOG_WAITING_END] = waiting_end
    row[LOG_SLOTS_END] = slots_end
    row[LOG_CACHED_END] = cached_end
    row[LOG_GPU_LOADS] = c[STEP_GPU_LOADS]
    row[LOG_DISK_LOADS] = c[STEP_DISK_LOADS]
    row[LOG_PREEMPTIONS] = c[STEP_PREEMPTIONS]
    return True


@compiled
def write_step(table: Array, c: Array, end: int) -> bool:
    """Write what the step's time depends on (columns: twin.replica.STEP_TABLE_COLUMNS); False when there is no room."""
    i = c[NUM_STEPS]
    if i >= len(table):
        return False
    row = table[i]
    row[0] = end
    row[1] = c[STEP_TOKENS]
    row[2] = c[STEP_REQUESTS]
    row[3] = c[STEP_CONTEXT]
    row[4] = c[NUM_DISTINCT]
    row[5] = 1 if c[STEP_PREFILLS] > 0 else 0
    row[6] = c[IS_BATCH_CHANGED]
    row[7] = c[NUM_WAITING]
    row[8] = c[STEP_LOAD_NS]
    return True


@compiled
def _integrate(c: Array, integral: int, amount: int) -> None:
    """Add `amount`, below `INTEGRAL_UNIT`, to an integral and count its overflow."""
    c[integral] += amount
    if c[integral] >= INTEGRAL_UNIT:
        c[integral] -= INTEGRAL_UNIT
        c[integral + RUNNING_OVERFLOWS - RUNNING_INTEGRAL] += 1


@compiled
def account(s: Settings, c: Array, now: int, duration: int) -> None:
    """Add the scheduled step to the totals."""
    inside = min(duration, s.horizon_ns - now)
    used = s.num_blocks - 1 - c[FREE_BLOCKS]
    c[NUM_STEPS] += 1
    c[BUSY_NS] += inside
    c[LOAD_NS] += c[STEP_LOAD_NS]
    c[SCHEDULED_TOKENS] += c[STEP_TOKENS]
    _integrate(c, RUNNING_INTEGRAL, c[NUM_RUNNING] * inside)
    _integrate(c, WAITING_INTEGRAL, c[NUM_WAITING] * inside)
    _integrate(c, BLOCKS_INTEGRAL, used * inside)
    c[NUM_PREEMPTIONS] += c[STEP_PREEMPTIONS]
    c[GPU_LOADS] += c[STEP_GPU_LOADS]
    c[PEAK_BLOCKS] = max(c[PEAK_BLOCKS], used)
    c[PEAK_RUNNING] = max(c[PEAK_RUNNING], c[NUM_RUNNING])
    c[PEAK_WAITING] = max(c[PEAK_WAITING], c[NUM_WAITING])


@compiled
def take_sample(s: Settings, c: Array, samples: Array, now: int) -> None:
    """Write the state into the next row of the time series if one is due (columns: twin.replica.SAMPLE_COLUMNS)."""
    if s.sample_interval_ns == 0 or now < c[NEXT_SAMPLE_NS]:
        return
    c[NEXT_SAMPLE_NS] = (now // s.sample_interval_ns + 1) * s.sample_interval_ns
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
