"""A replica as the engines see it: flat arrays in, raw records out.

Both engines (twin/kernel.py and twin/reference.py) take `ReplicaInputs` and return `ReplicaTrace`, so that they can
be compared field by field and reported by the same code.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twin.engine import EngineConfig
from twin.errors import InputError, TwinError
from twin.hardware import GpuType, ModelArchitecture
from twin.memory import MemoryVerdict, check_memory
from twin.name_hash import NUM_HASH_SEEDS, adapter_name_hashes
from twin.profile import PerformanceProfile
from twin.workload import NANOSECONDS, RequestTable, Workload

# Inter-token gaps are counted in logarithmic bins: 1024 from 0.1 ms to 1000 s (1.6 % wide) for the replica, and 256
# of the same range (6.5 % wide, interpolated) per adapter.
GAP_LOWEST_NS = 100_000.0
GAP_DECADES = 7.0
NUM_GAP_BINS = 1024
ADAPTER_BIN_FACTOR = 4

# Columns of ReplicaTrace.samples.
SAMPLE_COLUMNS = (
    "time_ns",
    "running",
    "waiting",
    "used_blocks",
    "finished_requests",
    "finished_tokens",
    "preemptions",
    "gpu_loads",
)

# Columns of ReplicaTrace.step_table: what a step's time depends on, when it ended, and how long its loads took.
STEP_TABLE_COLUMNS = (
    "end_ns",
    "tokens",
    "requests",
    "context_tokens",
    "adapters",
    "has_prefill",
    "is_batch_changed",
    "waiting",
    "load_ns",
)


@dataclass(frozen=True)
class Replica:
    """One vLLM engine on one GPU: model, hardware, settings and what was measured about them."""

    model: ModelArchitecture
    gpu: GpuType
    engine: EngineConfig
    profile: PerformanceProfile

    def memory(self) -> MemoryVerdict:
        """Return whether the replica starts, and its KV capacity."""
        return check_memory(self.model, self.gpu, self.engine, self.profile)


@dataclass(frozen=True)
class ReplicaInputs:
    """What an engine needs, as scalars and arrays (N requests, A adapters).

    Attributes
    ----------
    arrival_ns, adapter, prompt_tokens, output_tokens
        int64 / int32 / int32 / int32 [N]; see `RequestTable`.
    adapter_hash
        uint64 [A], CPython's hash of the adapter's name under a hash seed (never 2**64 - 1, which is its error value).
    gpu_load_ns, disk_load_ns
        int64 [A], time to copy an adapter from CPU to a slot, and to read it from disk into the CPU cache.
    num_blocks
        KV blocks, null block included (usable: one less).
    watermark_blocks
        Blocks kept free when a waiting request is admitted while others run.
    other scalars
        vLLM's settings, see `EngineConfig`; `num_slots` is `max_loras` (0: LoRA off, all adapter indices are -1).
    step_coefficients
        float64, see twin/step_time.py.
    horizon_ns
        No step starts at or after it.
    sample_interval_ns
        Interval of the time series; 0: none.
    adapter_names, hash_seed
        What `adapter_hash` follows from. The engine that runs vLLM has its hashes from CPython; empty: it cannot run.
    counts_adapter_gaps
        Whether the gaps of each adapter are wanted: without, the compiled engine leaves its histograms empty.
    """

    arrival_ns: NDArray[np.int64]
    adapter: NDArray[np.int32]
    prompt_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]
    adapter_hash: NDArray[np.uint64]
    gpu_load_ns: NDArray[np.int64]
    disk_load_ns: NDArray[np.int64]
    step_coefficients: NDArray[np.float64]
    num_blocks: int
    block_size: int
    watermark_blocks: int
    num_slots: int
    cpu_capacity: int
    max_lora_rank: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    long_prefill_token_threshold: int
    reserve_full_isl: bool
    keep_last_token_free: bool
    threshold_when_alone: bool
    load_in_set_order: bool
    use_v2_model_runner: bool
    horizon_ns: int
    sample_interval_ns: int
    async_scheduling: bool = False
    adapter_names: tuple[str, ...] = ()
    hash_seed: int = 0
    counts_adapter_gaps: bool = True

    @property
    def evicts_adapters(self) -> bool:
        """Whether slots or CPU memory cannot hold all adapters, so that the order of the visits matters."""
        return self.num_slots > 0 and min(self.num_slots, self.cpu_capacity) < len(self.gpu_load_ns)

    @property
    def evicts_cached_adapters(self) -> bool:
        """Whether CPU memory cannot hold all adapters."""
        return self.num_slots > 0 and self.cpu_capacity < len(self.gpu_load_ns)


@dataclass(frozen=True)
class StepLog:
    """Every step, for comparing engines (K steps; the flat arrays are split by the offsets, [K + 1]).

    Attributes
    ----------
    start_ns, duration_ns
        int64 [K].
    free_blocks
        int32 [K], free blocks after scheduling (before finished requests give theirs back).
    running_offset, running_request, running_tokens
        The running list in its order at the end of scheduling, and the tokens scheduled for each (0 if none in this
        step).
    waiting_offset, waiting_request
        The waiting queue in its order at the end of scheduling.
    slot_offset, slot_adapter
        The adapters in slots after the step's loads, least recently used first. Empty where none is ever evicted.
    cached_offset, cached_adapter
        Those in CPU memory, likewise.
    gpu_loads, disk_loads, preemptions
        int32 [K].
    """

    start_ns: NDArray[np.int64]
    duration_ns: NDArray[np.int64]
    free_blocks: NDArray[np.int32]
    running_offset: NDArray[np.int64]
    running_request: NDArray[np.int32]
    running_tokens: NDArray[np.int32]
    waiting_offset: NDArray[np.int64]
    waiting_request: NDArray[np.int32]
    slot_offset: NDArray[np.int64]
    slot_adapter: NDArray[np.int32]
    cached_offset: NDArray[np.int64]
    cached_adapter: NDArray[np.int32]
    gpu_loads: NDArray[np.int32]
    disk_loads: NDArray[np.int32]
    preemptions: NDArray[np.int32]


@dataclass(frozen=True)
class ReplicaTrace:
    """Raw outcome of one simulated replica (N requests, A adapters).

    Attributes
    ----------
    first_scheduled_ns, first_token_ns, finish_ns
        int64 [N]; -1: not (yet). `first_scheduled_ns` is the start of the first step that scheduled the request, the
        two others are ends of steps. All are <= `end_ns`: what a step that ends after the horizon would give is not
        counted.
    generated_tokens
        int32 [N], output tokens sampled by the end.
    is_running
        bool [N], in the running list at the end.
    request_preemptions
        int32 [N].
    gap_histogram
        int64 [NUM_GAP_BINS], inter-token gaps of all requests.
    adapter_gap_histogram
        int64 [A + 1, NUM_GAP_BINS // ADAPTER_BIN_FACTOR]; the last row is the base model's. Empty where the inputs do
        not ask for it (`ReplicaInputs.counts_adapter_gaps`).
    adapter_gap_sum_ns, adapter_gap_count
        int64 [A + 1].
    adapter_gpu_loads, adapter_disk_loads
        int32 [A].
    num_steps, busy_ns, load_ns, scheduled_tokens
        Steps; their total time; the share of it spent loading adapters; tokens scheduled in them.
    running_integral, waiting_integral, used_blocks_integral
        Sums of value x step duration (ns), plus waiting while idle is 0; divided by the horizon they are time means.
    num_preemptions
        Over all requests.
    peak_used_blocks, peak_running, peak_waiting
        Largest values at the end of scheduling.
    samples
        int64 [M, len(SAMPLE_COLUMNS)], state at the first step boundary at or after each multiple of the interval.
    end_ns
        Horizon.
    step_log
        Only when asked for.
    step_table
        int64 [num_steps, len(STEP_TABLE_COLUMNS)], arguments of `twin.step_time.step_time_ms` of every scheduled step;
        only when asked for.
    """

    first_scheduled_ns: NDArray[np.int64]
    first_token_ns: NDArray[np.int64]
    finish_ns: NDArray[np.int64]
    generated_tokens: NDArray[np.int32]
    is_running: NDArray[np.bool_]
    request_preemptions: NDArray[np.int32]
    gap_histogram: NDArray[np.int64]
    adapter_gap_histogram: NDArray[np.int64]
    adapter_gap_sum_ns: NDArray[np.int64]
    adapter_gap_count: NDArray[np.int64]
    adapter_gpu_loads: NDArray[np.int32]
    adapter_disk_loads: NDArray[np.int32]
    num_steps: int
    busy_ns: int
    load_ns: int
    scheduled_tokens: int
    running_integral: float
    waiting_integral: float
    used_blocks_integral: float
    num_preemptions: int
    peak_used_blocks: int
    peak_running: int
    peak_waiting: int
    samples: NDArray[np.int64]
    end_ns: int
    step_log: StepLog | None
    step_table: NDArray[np.int64] | None


def num_cached_adapters(inputs: ReplicaInputs) -> int:
    """Return how many adapters the CPU cache holds once all have been used."""
    return int(min(inputs.cpu_capacity, len(inputs.gpu_load_ns)))


def build_inputs(
    workload: Workload,
    requests: RequestTable,
    replica: Replica,
    *,
    horizon_s: float,
    sample_interval_s: float = 0.0,
    hash_seed: int = 0,
    counts_adapter_gaps: bool = True,
) -> ReplicaInputs:
    """Turn a replica and its requests into what the engines take.

    `hash_seed` is the PYTHONHASHSEED of the replica's process, modulo 2**32; `counts_adapter_gaps` as in
    `ReplicaInputs`.

    Raises
    ------
    TwinError
        When the replica does not start (the message is vLLM's).
    InputError
        When an adapter's rank is above `max_lora_rank`, or a prompt is not shorter than `max_model_len`.
    """
    verdict = replica.memory()
    if not verdict.starts:
        raise TwinError(f"a replica must start before it can be simulated. {verdict.message}")
    engine = replica.engine
    max_model_len = engine.max_model_len or replica.model.max_model_len
    _check_requests(workload, requests, engine, max_model_len)
    by_rank = {
        rank: replica.profile.load_time_ms(rank, engine.max_lora_rank)
        for rank in {adapter.rank for adapter in workload.adapters}
    }
    loads = np.array([by_rank[adapter.rank] for adapter in workload.adapters], dtype=np.float64)
    nanoseconds = np.round(loads * 1e6).astype(np.int64)
    names = tuple(adapter.name for adapter in workload.adapters)
    return ReplicaInputs(
        arrival_ns=requests.arrival_ns,
        adapter=requests.adapter if engine.enable_lora else np.full_like(requests.adapter, -1),
        prompt_tokens=requests.prompt_tokens,
        output_tokens=requests.output_tokens,
        adapter_hash=adapter_name_hashes(names, hash_seed),
        gpu_load_ns=np.ascontiguousarray(nanoseconds[:, 0]),
        disk_load_ns=np.ascontiguousarray(nanoseconds[:, 1]),
        step_coefficients=replica.profile.step_time.as_array(),
        num_blocks=verdict.num_blocks,
        block_size=engine.block_size,
        watermark_blocks=int(engine.watermark * verdict.num_blocks),
        num_slots=engine.num_slots,
        cpu_capacity=engine.cpu_capacity,
        max_lora_rank=engine.max_lora_rank,
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        max_model_len=max_model_len,
        long_prefill_token_threshold=engine.long_prefill_token_threshold,
        reserve_full_isl=engine.scheduler_reserve_full_isl,
        keep_last_token_free=engine.keep_last_token_free,
        threshold_when_alone=engine.long_prefill_threshold_when_alone,
        load_in_set_order=engine.lora_load_order == "set",
        use_v2_model_runner=engine.use_v2_model_runner,
        async_scheduling=engine.async_scheduling,
        horizon_ns=round(horizon_s * NANOSECONDS),
        sample_interval_ns=round(sample_interval_s * NANOSECONDS),
        adapter_names=names,
        hash_seed=hash_seed % NUM_HASH_SEEDS,
        counts_adapter_gaps=counts_adapter_gaps,
    )


def _check_requests(workload: Workload, requests: RequestTable, engine: EngineConfig, max_model_len: int) -> None:
    if engine.enable_lora:
        for position, adapter in enumerate(workload.adapters):
            if adapter.rank > engine.max_lora_rank:
                raise InputError(
                    f"an adapter's rank must be at most `max_lora_rank` ({engine.max_lora_rank}). "
                    f"Got {adapter.rank} (adapter {adapter.name!r}).",
                    field=f"adapters.{position}.rank",
                    value=adapter.rank,
                    hint="raise max_lora_rank or place the adapter on another replica",
                )
    if len(requests) and int(requests.prompt_tokens.max()) >= max_model_len:
        row = int(requests.prompt_tokens.argmax())
        raise InputError(
            f"prompts must be shorter than `max_model_len` ({max_model_len}). "
            f"Got {int(requests.prompt_tokens[row])} tokens (request {row}).",
            field="prompt_tokens",
            value=int(requests.prompt_tokens[row]),
            hint="raise max_model_len, or cap the prompt lengths with `max`",
        )
