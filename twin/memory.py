"""GPU memory of a replica: slot bytes, KV blocks, and the ways in which it does not start.

The formulas are vLLM's (``v1/worker/gpu_worker.py``, ``v1/core/kv_cache_utils.py``, ``lora/layers``). A profile's
measured table of KV tokens per (slots, max rank) overrides them where it has an entry for the same GPU, utilization and
number of sequences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from twin.engine import EngineConfig
from twin.hardware import SUPPORTED_ARCHITECTURES, GpuType, ModelArchitecture
from twin.profile import MeasuredKvTokens, PerformanceProfile

GIB = float(1 << 30)
MIB = float(1 << 20)

# Tokens per step at which `MemoryCalibration.activation_gib` is given.
ACTIVATION_TOKENS = 2048


# Of `gpu_memory_utilization` in advice: 6 MiB of 64 GiB.
UTILIZATION_DECIMALS = 4


class StartFailure(Enum):
    """Why a replica does not start; the values are vLLM's own words, without the numbers in them."""

    SLOTS_DO_NOT_FIT = "torch.OutOfMemoryError: CUDA out of memory while the LoRA slots are allocated"
    NO_CACHE_BLOCKS = "No available memory for the cache blocks"
    CONTEXT_DOES_NOT_FIT = "To serve at least one request with the model's max seq len"
    CPU_CACHE_TOO_SMALL = "max_cpu_loras must be >= max_loras"


@dataclass(frozen=True)
class MemoryVerdict:
    """Whether a replica starts, and with how much KV cache.

    Attributes
    ----------
    kv_tokens
        KV capacity in tokens, null block included (0 when the replica does not start).
    num_blocks
        KV blocks, null block included.
    weights_bytes, slots_bytes, kv_bytes
        What the weights, the LoRA slots and the KV cache take.
    failure
        ``None`` when the replica starts.
    message
        vLLM's wording with the numbers and what to do; empty when the replica starts.
    is_measured
        The capacity comes from a measured table, not from the formula.
    """

    kv_tokens: int
    num_blocks: int
    weights_bytes: int
    slots_bytes: int
    kv_bytes: int
    failure: StartFailure | None
    message: str
    is_measured: bool

    @property
    def starts(self) -> bool:
        """Whether the replica starts."""
        return self.failure is None


def slot_bytes(model: ModelArchitecture, max_lora_rank: int) -> int:
    """Bytes of one LoRA slot reserved at `max_lora_rank` (tensor parallel size 1).

    All supported modules get A and B matrices: qkv, output, gate and up, down; Llama and Mistral also the embedding and
    LM head.
    """
    hidden, inner, query, kv = model.hidden_size, model.intermediate_size, model.query_size, model.kv_size
    per_layer = (3 * hidden + query + 2 * kv) + (query + hidden) + (2 * hidden + 2 * inner) + (inner + hidden)
    embeddings = SUPPORTED_ARCHITECTURES[model.architecture] * (model.vocab_size + hidden)
    return max_lora_rank * model.dtype_bytes * (model.num_layers * per_layer + embeddings)


def adapters_in_cpu_memory(model: ModelArchitecture, gpu: GpuType, rank: int) -> int | None:
    """Return how many adapters of a rank the host's memory for a GPU holds; ``None``: it is not limited.

    An adapter takes as much as its slot: the weights of all modules that can have any. One that leaves modules out,
    such as the embeddings, takes less, so that what is returned always fits.
    """
    if gpu.cpu_memory_gib is None:
        return None
    return int(gpu.cpu_memory_gib * GIB) // slot_bytes(model, rank)


def slots_bytes(model: ModelArchitecture, engine: EngineConfig, profile: PerformanceProfile) -> int:
    """Bytes of all slots of a replica, with what older engines reserve beyond the formula."""
    extra = int(profile.memory.slot_overhead_mib * MIB)
    return engine.num_slots * (slot_bytes(model, engine.max_lora_rank) + extra)


def overhead_bytes(model: ModelArchitecture, engine: EngineConfig, profile: PerformanceProfile) -> float:
    """Bytes beside weights, slots and KV cache: vLLM's profiled peak of one step, and what the allocator keeps.

    The peak is the layers' with `max_num_batched_tokens` tokens or the sampler's with `max_num_seqs` sequences,
    whichever is larger (vLLM ``GPUModelRunner.profile_run`` runs both).
    """
    memory = profile.memory
    layers = memory.activation_gib * GIB * engine.max_num_batched_tokens / ACTIVATION_TOKENS
    sampler = memory.sampler_bytes_per_logit * model.vocab_size * engine.max_num_seqs
    return memory.overhead_gib * GIB + max(layers, sampler)


def check_memory(
    model: ModelArchitecture, gpu: GpuType, engine: EngineConfig, profile: PerformanceProfile
) -> MemoryVerdict:
    """Return whether a replica with these settings starts, and its KV capacity.

    Source: reference formula ``kv = total * gpu_memory_utilization - weights - slots - overhead``; ``num_blocks = kv //
    bytes per block``; the failures in the order in which vLLM meets them. A CPU cache below the slots is refused before
    anything is loaded. The next is met while the slots are allocated or in the profiling step after it, so what must
    fit the whole GPU includes that step's peak.
    """
    weights = model.num_parameters * model.dtype_bytes
    slots = slots_bytes(model, engine, profile)
    total = int(gpu.memory_gib * GIB)
    overhead = overhead_bytes(model, engine, profile)
    available = int(total * engine.gpu_memory_utilization - weights - slots - overhead)
    bytes_per_block = model.kv_bytes_per_token * engine.block_size
    num_blocks = max(available, 0) // bytes_per_block
    measured = _measured(gpu, engine, profile)
    if measured is not None:
        num_blocks = (measured.kv_tokens or 0) // engine.block_size
    kv_tokens = num_blocks * engine.block_size
    max_model_len = engine.max_model_len or model.max_model_len
    failure: StartFailure | None = None
    message = ""
    advice = "Use fewer or smaller slots (max_loras, max_lora_rank), a shorter max_model_len, or a larger GPU."
    if engine.cpu_capacity < engine.num_slots:
        failure = StartFailure.CPU_CACHE_TOO_SMALL
        message = (
            f"max_cpu_loras ({engine.cpu_capacity}) must be >= max_loras ({engine.num_slots}). Use fewer slots, or give"
            " adapters more CPU memory (max_cpu_loras, cpu_memory_gib)."
        )
    elif weights + slots + overhead > total and num_blocks <= 1:
        failure = StartFailure.SLOTS_DO_NOT_FIT
        message = (
            f"{failure.value}: weights {weights / GIB:.2f} GiB + {engine.num_slots} slots of rank "
            f"{engine.max_lora_rank} {slots / GIB:.2f} GiB + activations {overhead / GIB:.2f} GiB do not fit "
            f"{gpu.memory_gib:g} GiB. {advice}"
        )
    elif num_blocks <= 1:
        failure = StartFailure.NO_CACHE_BLOCKS
        message = f"{failure.value} ({available / GIB:.2f} GiB left for the KV cache). {advice}"
    elif kv_tokens < max_model_len:
        failure = StartFailure.CONTEXT_DOES_NOT_FIT
        message = (
            f"{failure.value} ({max_model_len}), {max_model_len * model.kv_bytes_per_token / GIB:.2f} GiB KV cache is "
            f"needed, which is larger than the available KV cache memory "
            f"({kv_tokens * model.kv_bytes_per_token / GIB:.2f} GiB). {advice}"
        )
    starts = failure is None
    return MemoryVerdict(
        kv_tokens=kv_tokens if starts else 0,
        num_blocks=num_blocks if starts else 0,
        weights_bytes=weights,
        slots_bytes=slots,
        kv_bytes=num_blocks * bytes_per_block,
        failure=failure,
        message=message,
        is_measured=measured is not None,
    )


def least_utilization(
    model: ModelArchitecture, gpu: GpuType, engine: EngineConfig, profile: PerformanceProfile, *, num_blocks: int
) -> float:
    """Return the smallest `gpu_memory_utilization`, of `UTILIZATION_DECIMALS`, that leaves room for so many KV blocks.

    By the formula of `check_memory`, whose other settings are those of `engine`; above 1 where the GPU is too small.
    """
    kv_bytes = num_blocks * model.kv_bytes_per_token * engine.block_size
    weights = model.num_parameters * model.dtype_bytes
    needed = weights + slots_bytes(model, engine, profile) + overhead_bytes(model, engine, profile) + kv_bytes
    scale = 10.0**UTILIZATION_DECIMALS
    # One byte more, for what `check_memory` loses where it truncates to whole bytes.
    return math.ceil((needed + 1.0) / int(gpu.memory_gib * GIB) * scale) / scale


def _measured(gpu: GpuType, engine: EngineConfig, profile: PerformanceProfile) -> MeasuredKvTokens | None:
    """Return the measurement of exactly this configuration, or None where the table has none."""
    memory = profile.memory
    if abs(gpu.memory_gib - profile.gpu_memory_gib) > 1e-6 or not engine.enable_lora:
        return None
    if abs(engine.gpu_memory_utilization - memory.measured_utilization) > 1e-9:
        return None
    if memory.measured_max_num_seqs not in {None, engine.max_num_seqs}:
        return None
    for entry in memory.measured:
        if (entry.max_loras, entry.max_lora_rank) == (engine.max_loras, engine.max_lora_rank):
            return entry
    return None
