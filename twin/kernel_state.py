"""The memory layout of the fast engine: which row of which array holds what, and how it starts.

Each table is one C-contiguous array with a row or a column per quantity: the compiled functions then pass a handful of
arrays instead of fifty.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from twin.kernel_columns import Asked, Outcome, copy_asked, make_outcome
from twin.replica import (
    ADAPTER_BIN_FACTOR,
    GAP_DECADES,
    GAP_LOWEST_NS,
    NUM_GAP_BINS,
    SAMPLE_COLUMNS,
    STEP_TABLE_COLUMNS,
    ReplicaInputs,
    num_cached_adapters,
)

Array = NDArray[np.int64]

# Columns of `requests`, int64 [N, .]: 128 bytes, two cache lines, per request. NEXT and PREVIOUS link the waiting queue
# or the running list, whichever the request is in. While it waits, QUEUE_KEY orders the queue and ADAPTER_NEXT links
# the FIFO of its adapter. STEP_SHARE: tokens that the step gives a running request. Of a steady one COMPUTED is
# relative, NUM_TOKENS and LAST_TOKEN_NS are implied, and CALENDAR_NEXT and CALENDAR_PREVIOUS link those that finish
# together (twin/kernel_batch.py). LEAVING_NEXT links those that leave.
(
    REQUEST_ADAPTER,
    PROMPT,
    FINISH_TOKENS,
    NUM_TOKENS,
    COMPUTED,
    STEP_SHARE,
    NEXT,
    PREVIOUS,
    QUEUE_KEY,
    ADAPTER_NEXT,
    CALENDAR_PREVIOUS,
    FIRST_SCHEDULED_NS,
    FIRST_TOKEN_NS,
    LAST_TOKEN_NS,
    FINISH_NS,
    PREEMPTIONS,
) = range(16)
CALENDAR_NEXT = ADAPTER_NEXT
LEAVING_NEXT = CALENDAR_PREVIOUS
NUM_REQUEST_COLUMNS = 16

# Rows of `adapters`, int64 [., A + 1], the base model last. ACTIVE and ACTIVE_KEY are lists of NUM_DISTINCT entries:
# the adapters of the running requests, and the queue key of the first that waits for each (NO_KEY: none); ACTIVE_AT is
# an adapter's position there. They are in order of entry where that decides the load order, else in none. ORDER and
# ORDER_AT are a list of NUM_ORDERED entries and the positions there: the adapters of the steady requests in the order
# of their first ones, FIRST_STEADY; STEADY_OF is how many there are. CPU_LIST and SLOT_LIST start two rows each: the
# next and the previous links of a circular LRU list whose sentinel is the last column; a next link of -1 means absent.
(
    RUNNING_OF,
    FIFO_HEAD,
    FIFO_TAIL,
    VISITED,
    ACTIVE,
    ACTIVE_KEY,
    ACTIVE_AT,
    GPU_LOAD_NS,
    DISK_LOAD_NS,
    GPU_LOADS_OF,
    DISK_LOADS_OF,
    HASH,
    STEADY_OF,
    FIRST_STEADY,
    ORDER,
    ORDER_AT,
    CPU_LIST,
) = range(17)
SLOT_LIST = CPU_LIST + 2
NUM_ADAPTER_ROWS = SLOT_LIST + 2
NO_KEY = 1 << 62

# Rows of `scratch`, int64 [., .]: the adapters to visit in a step, and two tables of a set, which grows from one into
# the other.
MEMBERS, TABLES = 0, 1
NUM_TABLE_ROWS = 2
SMALLEST_TABLE = 8

# Indices into the counters: the mutable scalars of a run, int64 [NUM_COUNTERS]. An integral is its counter plus
# INTEGRAL_UNIT times the counter of its overflows, three further on: within days a queue length times nanoseconds
# exceeds 64 bits.
(
    FREE_BLOCKS,
    NUM_RUNNING,
    RUNNING_HEAD,
    RUNNING_TAIL,
    FIRST_OTHER,
    LEAVING,
    NUM_STEADY,
    STEADY_CONTEXT,
    DECODES,
    BLOCK_PHASE,
    FIRST_COLUMN,
    END_COLUMN,
    NUM_WAITING,
    QUEUE_HEAD,
    QUEUE_TAIL,
    FRONT_KEY,
    BACK_KEY,
    ADMISSION,
    NUM_DISTINCT,
    NUM_REENTERED,
    NUM_ORDERED,
    SET_CHANGED,
    BUDGET,
    STEP_PREEMPTIONS,
    STEP_TOKENS,
    STEP_REQUESTS,
    STEP_CONTEXT,
    STEP_PREFILLS,
    STEP_GPU_LOADS,
    STEP_DISK_LOADS,
    STEP_LOAD_NS,
    IS_BATCH_CHANGED,
    LAST_PREFILLS,
    LAST_REQUESTS,
    NUM_IN_CPU,
    NUM_IN_SLOTS,
    NUM_STEPS,
    BUSY_NS,
    LOAD_NS,
    SCHEDULED_TOKENS,
    RUNNING_INTEGRAL,
    WAITING_INTEGRAL,
    BLOCKS_INTEGRAL,
    RUNNING_OVERFLOWS,
    WAITING_OVERFLOWS,
    BLOCKS_OVERFLOWS,
    NUM_PREEMPTIONS,
    PEAK_BLOCKS,
    PEAK_RUNNING,
    PEAK_WAITING,
    FINISHED_REQUESTS,
    FINISHED_TOKENS,
    GPU_LOADS,
    NUM_SAMPLES,
    NEXT_SAMPLE_NS,
    STATUS,
) = range(56)
NUM_COUNTERS = 56
INTEGRAL_UNIT = 1 << 62

STATUS_OK, STATUS_STALLED, STATUS_LOG_FULL = 0, 1, 2

# What is known about admission while no running request ends: somebody who waits may have to be admitted; nobody who
# waits or arrives can be; nobody who waits can be, but an arrival could.
ADMISSION_OPEN, ADMISSION_CLOSED, ADMISSION_CLOSED_TO_QUEUE = 0, 1, 2

# Columns of `log_steps`, int64 [steps, .]: the ends are those of the step's rows in the other logs.
(
    LOG_START,
    LOG_DURATION,
    LOG_FREE,
    LOG_RUNNING_END,
    LOG_WAITING_END,
    LOG_SLOTS_END,
    LOG_CACHED_END,
    LOG_GPU_LOADS,
    LOG_DISK_LOADS,
    LOG_PREEMPTIONS,
) = range(10)
NUM_LOG_COLUMNS = 10


class Settings(NamedTuple):
    """Scalars of `ReplicaInputs` that the compiled functions read.

    `keeps_all_adapters`: slots and CPU cache hold all adapters, so nothing is ever evicted and no LRU order matters;
    `evicts_adapters`: there are slots, but not for all; `touches_cpu_cache`: the CPU cache cannot hold all, so its LRU
    order matters; `keeps_entry_order`: adapters go into a set in the order in which they entered the batch;
    `keeps_steady_order`: in the order of the batch, which is kept for the steady requests.
    """

    num_blocks: int
    block_size: int
    watermark_blocks: int
    num_slots: int
    cpu_capacity: int
    max_lora_rank: int
    num_cached_adapters: int
    max_num_seqs: int
    max_num_batched_tokens: int
    threshold: int
    reserve_full: bool
    threshold_when_alone: bool
    load_in_set_order: bool
    keeps_all_adapters: bool
    evicts_adapters: bool
    touches_cpu_cache: bool
    keeps_entry_order: bool
    keeps_steady_order: bool
    async_scheduling: bool
    horizon_ns: int
    sample_interval_ns: int
    max_model_len: int
    counts_adapter_gaps: bool


class Decodes(NamedTuple):
    """The sums and lists over the steady requests; twin/kernel_batch.py explains them.

    `calendar` is int64 [a power of two] (first request that finishes at that number of decodes, -1: none), `crossings`
    int64 [block_size] (requests that need a block at that phase), `column_steps` int64 [columns] (steps whose duration
    falls into that column of the adapters' histograms), `adapter_gaps` int64 [A + 1, columns], those histograms.
    """

    calendar: Array
    crossings: Array
    column_steps: Array
    adapter_gaps: Array


class State(NamedTuple):
    """All arrays of one run.

    `arrivals` is int64 [N], `scratch` int64 [1 + NUM_TABLE_ROWS, largest table], `gaps` int64 [NUM_GAP_BINS],
    `bin_edges` as `gap_bin_edges` returns them, `samples` int64 [., len(SAMPLE_COLUMNS)], `log_running` int64 [., 2]
    (request, tokens), `log_waiting`, `log_slots` and `log_cached` int64 [.], `step_table` int64 [.,
    len(STEP_TABLE_COLUMNS)].
    """

    arrivals: Array
    asked: Asked
    requests: Array
    outcome: Outcome
    adapters: Array
    decodes: Decodes
    counters: Array
    scratch: Array
    gaps: Array
    bin_edges: Array
    samples: Array
    log_steps: Array
    log_running: Array
    log_waiting: Array
    log_slots: Array
    log_cached: Array
    step_table: Array


def make_settings(inputs: ReplicaInputs) -> Settings:
    """Return the scalars of `inputs`, each with one fixed type."""
    num_adapters = len(inputs.gpu_load_ns)
    keeps_all_adapters = min(inputs.num_slots, inputs.cpu_capacity) >= num_adapters
    has_set_to_order = inputs.evicts_adapters and inputs.load_in_set_order
    return Settings(
        num_blocks=int(inputs.num_blocks),
        block_size=int(inputs.block_size),
        watermark_blocks=int(inputs.watermark_blocks),
        num_slots=int(inputs.num_slots),
        cpu_capacity=int(inputs.cpu_capacity),
        max_lora_rank=int(inputs.max_lora_rank),
        num_cached_adapters=num_cached_adapters(inputs),
        max_num_seqs=int(inputs.max_num_seqs),
        max_num_batched_tokens=int(inputs.max_num_batched_tokens),
        threshold=int(inputs.long_prefill_token_threshold),
        reserve_full=bool(inputs.reserve_full_isl),
        threshold_when_alone=bool(inputs.threshold_when_alone),
        load_in_set_order=bool(inputs.load_in_set_order),
        keeps_all_adapters=keeps_all_adapters,
        evicts_adapters=inputs.evicts_adapters,
        touches_cpu_cache=inputs.evicts_cached_adapters,
        keeps_entry_order=bool(has_set_to_order and not inputs.use_v2_model_runner),
        keeps_steady_order=bool(has_set_to_order and inputs.use_v2_model_runner),
        async_scheduling=bool(inputs.async_scheduling),
        horizon_ns=int(inputs.horizon_ns),
        sample_interval_ns=int(inputs.sample_interval_ns),
        max_model_len=int(inputs.max_model_len),
        counts_adapter_gaps=bool(inputs.counts_adapter_gaps),
    )


def make_state(inputs: ReplicaInputs, *, log_capacity: int, table_capacity: int) -> State:
    """Return the arrays of an empty replica with room for so many steps in the log and in the table (0: none)."""
    num_adapters = len(inputs.gpu_load_ns)
    counters = np.zeros(NUM_COUNTERS, np.int64)
    counters[FREE_BLOCKS] = inputs.num_blocks - 1
    counters[[RUNNING_HEAD, RUNNING_TAIL, FIRST_OTHER, LEAVING, QUEUE_HEAD, QUEUE_TAIL, FRONT_KEY]] = -1
    counters[FIRST_COLUMN] = NUM_GAP_BINS // ADAPTER_BIN_FACTOR
    interval = inputs.sample_interval_ns
    num_samples = inputs.horizon_ns // interval + 2 if interval else 0
    num_requests = len(inputs.arrival_ns)
    return State(
        arrivals=np.array(inputs.arrival_ns, np.int64),
        asked=copy_asked(inputs),
        requests=np.empty((num_requests, NUM_REQUEST_COLUMNS), np.int64),
        outcome=make_outcome(num_requests, num_adapters),
        adapters=_make_adapters(inputs, num_adapters),
        decodes=_make_decodes(inputs, num_adapters),
        counters=counters,
        scratch=make_scratch(min(inputs.num_slots, num_adapters)),
        gaps=np.zeros(NUM_GAP_BINS, np.int64),
        bin_edges=gap_bin_edges(),
        samples=np.zeros((num_samples, len(SAMPLE_COLUMNS)), np.int64),
        log_steps=np.zeros((log_capacity, NUM_LOG_COLUMNS), np.int64),
        log_running=np.zeros((16 * log_capacity, 2), np.int64),
        log_waiting=np.zeros(64 * log_capacity, np.int64),
        log_slots=np.zeros(16 * log_capacity, np.int64),
        log_cached=np.zeros(16 * log_capacity, np.int64),
        step_table=np.zeros((table_capacity, len(STEP_TABLE_COLUMNS)), np.int64),
    )


def must_grow(num_members: int, mask: int) -> bool:
    """Return whether a set of that many members needs a larger table than one of ``mask + 1`` entries."""
    return num_members * 5 >= mask * 3


def grown_table(num_members: int) -> int:
    """Return the size of the table that a set of that many members grows into."""
    least = num_members * (2 if num_members > 50_000 else 4)
    size = SMALLEST_TABLE
    while size <= least:
        size <<= 1
    return size


def make_scratch(num_members: int) -> Array:
    """Return scratch rows that have room for a set of that many members (its members are fewer than its entries)."""
    size = SMALLEST_TABLE
    for members in range(1, num_members + 1):
        if must_grow(members, size - 1):
            size = grown_table(members)
    return np.zeros((1 + NUM_TABLE_ROWS, size), np.int64)


def _make_decodes(inputs: ReplicaInputs, num_adapters: int) -> Decodes:
    # A request is steady for fewer steps than it has output tokens, and ends at `max_model_len`.
    longest = min(int(inputs.output_tokens.max(initial=0)), max(0, inputs.max_model_len))
    num_columns = NUM_GAP_BINS // ADAPTER_BIN_FACTOR
    return Decodes(
        calendar=np.full(1 << longest.bit_length(), -1, np.int64),
        crossings=np.zeros(inputs.block_size, np.int64),
        column_steps=np.zeros(num_columns, np.int64),
        adapter_gaps=np.zeros((num_adapters + 1, num_columns), np.int64),
    )


@functools.cache
def gap_bin_edges() -> Array:
    """Return int64 [NUM_GAP_BINS + 1]: the smallest gap in ns of each bin, below the first and above the last none.

    The bins grow with the gap, so the engine computes a logarithm only where a gap leaves the bin of the one before.
    """
    position = np.arange(1, NUM_GAP_BINS)
    nearest = np.rint(GAP_LOWEST_NS * 10.0 ** (position * GAP_DECADES / NUM_GAP_BINS)).astype(np.int64)
    candidates = nearest[:, None] + np.arange(-2, 3)
    bins = np.floor(np.log10(candidates / GAP_LOWEST_NS) * NUM_GAP_BINS / GAP_DECADES)
    edges = candidates[:, 0] + (bins < position[:, None]).sum(axis=1)
    extremes = np.iinfo(np.int64)
    return np.concatenate([[extremes.min], edges, [extremes.max]])


def _make_adapters(inputs: ReplicaInputs, num_adapters: int) -> Array:
    adapters = np.zeros((NUM_ADAPTER_ROWS, num_adapters + 1), np.int64)
    adapters[[FIFO_HEAD, FIFO_TAIL, VISITED, FIRST_STEADY]] = -1
    adapters[GPU_LOAD_NS, :num_adapters] = inputs.gpu_load_ns
    adapters[DISK_LOAD_NS, :num_adapters] = inputs.disk_load_ns
    adapters[HASH, :num_adapters] = inputs.adapter_hash.astype(np.uint64).view(np.int64)
    adapters[CPU_LIST:, :num_adapters] = -1
    adapters[CPU_LIST:, num_adapters] = num_adapters
    return adapters
