"""The memory layout of the fast engine: which row of which array holds what, and how it starts and ends.

Each table is one C-contiguous array with a row per quantity: the compiled functions then pass a handful of arrays
instead of fifty.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from twin.replica import ADAPTER_BIN_FACTOR, NUM_GAP_BINS, SAMPLE_COLUMNS, ReplicaInputs, ReplicaTrace, StepLog

Array = NDArray[np.int64]

# Table sizes of CPython sets and the number of members from which the next larger one is used (Objects/setobject.c:
# grow to the first power of two above 4 x used when fill * 5 >= mask * 3).
SET_TABLE_SIZES = (8, 32, 128, 512, 2048, 8192)
SET_TABLE_LIMITS = (5, 19, 77, 307, 1229)

# Rows of `requests`, int64 [., N]. NEXT and PREVIOUS link the waiting queue, ADAPTER_NEXT the FIFO of the adapter;
# QUEUE_KEY orders the queue.
(
    ARRIVAL_NS,
    REQUEST_ADAPTER,
    PROMPT,
    FINISH_TOKENS,
    NUM_TOKENS,
    FIRST_SCHEDULED_NS,
    FIRST_TOKEN_NS,
    LAST_TOKEN_NS,
    FINISH_NS,
    PREEMPTIONS,
    QUEUE_KEY,
    NEXT,
    PREVIOUS,
    ADAPTER_NEXT,
) = range(14)
NUM_REQUEST_ROWS = 14

# Rows of `batch`, int64 [., positions of the running list]. AT_CAPACITY: tokens that the held blocks can store. For
# the first STEADY_PREFIX positions AT_TOTAL and AT_LAST_TOKEN_NS are implied, not stored: computed + 1, and the end
# of the last step; for the first NUM_STEADY positions AT_TOKENS is implied to be 1.
(
    AT_REQUEST,
    AT_COMPUTED,
    AT_PROMPT,
    AT_CAPACITY,
    AT_FINISH,
    AT_ADAPTER,
    AT_TOTAL,
    AT_LAST_TOKEN_NS,
    AT_TOKENS,
) = range(9)
FIRST_IMPLIED_ROW = AT_TOTAL
NUM_MOVED_ROWS = AT_TOKENS
NUM_BATCH_ROWS = 9

# Rows of `adapters`, int64 [., A + 1], the base model last. CPU_LIST and SLOT_LIST start two rows each: the next and
# the previous links of a circular LRU list whose sentinel is the last column; a next link of -1 means absent.
(
    RUNNING_OF,
    FIFO_HEAD,
    FIFO_TAIL,
    STAMP,
    VISITED,
    ACTIVE,
    ACTIVE_AT,
    GPU_LOAD_NS,
    DISK_LOAD_NS,
    GPU_LOADS_OF,
    DISK_LOADS_OF,
    CPU_LIST,
) = range(12)
SLOT_LIST = CPU_LIST + 2
NUM_ADAPTER_ROWS = SLOT_LIST + 2

# Indices into the counters: the mutable scalars of a run, int64 [NUM_COUNTERS]. STEADY_PREFIX: so many first
# positions of the running list sampled a token in the last step; NUM_STEADY: so many of them this step serves as
# plain decodes. An integral is its counter plus INTEGRAL_UNIT times the counter of its overflows, three further on:
# within days a queue length times nanoseconds exceeds 64 bits.
(
    FREE_BLOCKS,
    NUM_RUNNING,
    NUM_WAITING,
    QUEUE_HEAD,
    QUEUE_TAIL,
    FRONT_KEY,
    BACK_KEY,
    NUM_DISTINCT,
    SET_CHANGED,
    NUM_STEADY,
    STEADY_PREFIX,
    ALL_SCHEDULED,
    BUDGET,
    STEP_TOKENS,
    STEP_REQUESTS,
    STEP_CONTEXT,
    STEP_ADAPTERS,
    STEP_PREFILLS,
    STEP_PREFILL_TOKENS,
    STEP_PREFILL_CONTEXT,
    STEP_PREFILL_ATTENTION,
    STEP_PREEMPTIONS,
    STEP_GPU_LOADS,
    STEP_DISK_LOADS,
    STEP_LOAD_NS,
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
    STATUS,
) = range(46)
NUM_COUNTERS = 46
INTEGRAL_UNIT = 1 << 62

STATUS_OK, STATUS_STALLED, STATUS_LOG_FULL = 0, 1, 2

# Columns of `log_steps`, int64 [steps, .]: the offsets are the ends of the step's rows in the running and the waiting
# log.
LOG_START, LOG_DURATION, LOG_FREE, LOG_RUNNING_END, LOG_WAITING_END, LOG_GPU_LOADS, LOG_DISK_LOADS, LOG_PREEMPTIONS = (
    range(8)
)
NUM_LOG_COLUMNS = 8


class Settings(NamedTuple):
    """Scalars of `ReplicaInputs` that the compiled functions read.

    `keeps_all_adapters`: slots and CPU cache hold all adapters, so nothing is ever evicted and no LRU order matters;
    `touches_cpu_cache`: the CPU cache cannot hold all, so its LRU order matters.
    """

    num_blocks: int
    block_size: int
    watermark_blocks: int
    num_slots: int
    cpu_capacity: int
    max_lora_rank: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    threshold: int
    reserve_full: bool
    keep_last_token_free: bool
    threshold_when_alone: bool
    load_in_set_order: bool
    keeps_all_adapters: bool
    touches_cpu_cache: bool
    horizon_ns: int
    sample_interval_ns: int


class State(NamedTuple):
    """All arrays of one run.

    `orders` is int64 [table sizes, A] (the adapters in set order for each table size), `adapter_gaps` int64 [A + 1,
    bins], `gaps` int64 [NUM_GAP_BINS], `finished` the positions that finish in the step, `samples` int64 [.,
    len(SAMPLE_COLUMNS)], `log_running` int64 [., 2] (request, tokens), `log_waiting` int64 [.].
    """

    requests: Array
    batch: Array
    adapters: Array
    orders: Array
    counters: Array
    gaps: Array
    adapter_gaps: Array
    finished: Array
    samples: Array
    log_steps: Array
    log_running: Array
    log_waiting: Array


def make_settings(inputs: ReplicaInputs) -> Settings:
    """Return the scalars of `inputs`, each with one fixed type."""
    return Settings(
        num_blocks=int(inputs.num_blocks),
        block_size=int(inputs.block_size),
        watermark_blocks=int(inputs.watermark_blocks),
        num_slots=int(inputs.num_slots),
        cpu_capacity=int(inputs.cpu_capacity),
        max_lora_rank=int(inputs.max_lora_rank),
        max_num_seqs=int(inputs.max_num_seqs),
        max_num_batched_tokens=int(inputs.max_num_batched_tokens),
        max_model_len=int(inputs.max_model_len),
        threshold=int(inputs.long_prefill_token_threshold),
        reserve_full=bool(inputs.reserve_full_isl),
        keep_last_token_free=bool(inputs.keep_last_token_free),
        threshold_when_alone=bool(inputs.threshold_when_alone),
        load_in_set_order=bool(inputs.load_in_set_order),
        keeps_all_adapters=min(inputs.num_slots, inputs.cpu_capacity) >= len(inputs.gpu_load_ns),
        touches_cpu_cache=inputs.cpu_capacity < len(inputs.gpu_load_ns),
        horizon_ns=int(inputs.horizon_ns),
        sample_interval_ns=int(inputs.sample_interval_ns),
    )


def make_state(inputs: ReplicaInputs, *, log_capacity: int) -> State:
    """Return the arrays of an empty replica; `log_capacity` steps can be logged (0: none)."""
    num_requests, num_adapters = len(inputs.arrival_ns), len(inputs.gpu_load_ns)
    counters = np.zeros(NUM_COUNTERS, np.int64)
    counters[FREE_BLOCKS] = inputs.num_blocks - 1
    counters[[QUEUE_HEAD, QUEUE_TAIL, FRONT_KEY]] = -1
    counters[ALL_SCHEDULED] = 1
    interval = inputs.sample_interval_ns
    num_samples = inputs.horizon_ns // interval + 2 if interval else 0
    return State(
        requests=_make_requests(inputs, num_adapters),
        batch=np.zeros((NUM_BATCH_ROWS, min(inputs.max_num_seqs, num_requests) + 1), np.int64),
        adapters=_make_adapters(inputs, num_adapters),
        orders=set_orders(inputs.adapter_hash),
        counters=counters,
        gaps=np.zeros(NUM_GAP_BINS, np.int64),
        adapter_gaps=np.zeros((num_adapters + 1, NUM_GAP_BINS // ADAPTER_BIN_FACTOR), np.int64),
        finished=np.zeros(min(inputs.max_num_seqs, num_requests) + 2, np.int64),
        samples=np.zeros((num_samples, len(SAMPLE_COLUMNS)), np.int64),
        log_steps=np.zeros((log_capacity, NUM_LOG_COLUMNS), np.int64),
        log_running=np.zeros((16 * log_capacity, 2), np.int64),
        log_waiting=np.zeros(64 * log_capacity, np.int64),
    )


def set_orders(hashes: NDArray[np.uint64]) -> Array:
    """Return int64 [table sizes, A]: the adapters by (hash & mask, index) for each table size of a CPython set."""
    index = np.arange(len(hashes))
    return np.array([np.lexsort((index, hashes & np.uint64(size - 1))) for size in SET_TABLE_SIZES], dtype=np.int64)


def _make_requests(inputs: ReplicaInputs, num_adapters: int) -> Array:
    requests = np.full((NUM_REQUEST_ROWS, len(inputs.arrival_ns)), -1, np.int64)
    requests[ARRIVAL_NS] = inputs.arrival_ns
    requests[REQUEST_ADAPTER] = np.where(inputs.adapter >= 0, inputs.adapter, num_adapters)
    requests[PROMPT] = inputs.prompt_tokens
    requests[NUM_TOKENS] = inputs.prompt_tokens
    requests[FINISH_TOKENS] = np.minimum(requests[PROMPT] + inputs.output_tokens, inputs.max_model_len)
    requests[PREEMPTIONS] = 0
    return requests


def _make_adapters(inputs: ReplicaInputs, num_adapters: int) -> Array:
    adapters = np.zeros((NUM_ADAPTER_ROWS, num_adapters + 1), np.int64)
    adapters[[FIFO_HEAD, FIFO_TAIL, STAMP, VISITED]] = -1
    adapters[GPU_LOAD_NS, :num_adapters] = inputs.gpu_load_ns
    adapters[DISK_LOAD_NS, :num_adapters] = inputs.disk_load_ns
    adapters[CPU_LIST:, :num_adapters] = -1
    adapters[CPU_LIST:, num_adapters] = num_adapters
    return adapters


def make_trace(inputs: ReplicaInputs, state: State) -> ReplicaTrace:
    """Collect the arrays of a finished run."""
    requests, adapters, c = state.requests, state.adapters, state.counters.tolist()
    num_adapters = adapters.shape[1] - 1
    generated = requests[NUM_TOKENS] - requests[PROMPT]
    is_running = np.zeros(requests.shape[1], np.bool_)
    is_running[state.batch[AT_REQUEST, : c[NUM_RUNNING]]] = True
    # Gaps telescope: their sum over a request is its last minus its first token, preempted or not.
    has_gaps = generated > 1
    owners = requests[REQUEST_ADAPTER, has_gaps]
    gap_sum, gap_count = np.zeros(num_adapters + 1, np.int64), np.zeros(num_adapters + 1, np.int64)
    np.add.at(gap_sum, owners, (requests[LAST_TOKEN_NS] - requests[FIRST_TOKEN_NS])[has_gaps])
    np.add.at(gap_count, owners, generated[has_gaps] - 1)
    return ReplicaTrace(
        first_scheduled_ns=requests[FIRST_SCHEDULED_NS].copy(),
        first_token_ns=requests[FIRST_TOKEN_NS].copy(),
        finish_ns=requests[FINISH_NS].copy(),
        generated_tokens=generated.astype(np.int32),
        is_running=is_running,
        request_preemptions=requests[PREEMPTIONS].astype(np.int32),
        gap_histogram=state.gaps,
        adapter_gap_histogram=state.adapter_gaps,
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
    )


def _make_step_log(state: State, num_steps: int) -> StepLog:
    steps = state.log_steps[:num_steps]
    running_end = np.concatenate([[0], steps[:, LOG_RUNNING_END]])
    waiting_end = np.concatenate([[0], steps[:, LOG_WAITING_END]])
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
        gpu_loads=steps[:, LOG_GPU_LOADS].astype(np.int32),
        disk_loads=steps[:, LOG_DISK_LOADS].astype(np.int32),
        preemptions=steps[:, LOG_PREEMPTIONS].astype(np.int32),
    )
