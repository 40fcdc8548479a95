"""A profile for a model and a GPU that nobody has measured: rooflines from datasheets, the rest from measured profiles.

What physics gives a number for follows from bytes, operations and the GPU's rates, with the shares of these rates that
kernels usually reach: weights and KV cache are read, tokens are multiplied. The LoRA kernels and the engine's Python
code have no such number. Their terms are means over the measured profiles (`REFERENCE_PROFILES`), scaled by how the
work grows: blocks of the kernels' grids per layer over multiprocessors x clock, adapter widths. Host terms are taken
over.

Every coefficient has a band, a factor up and down. It is wide on purpose: a prior is there to start with, and to hold
what a calibration does not see.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twin.calibration.datasheets import GpuDatasheet, datasheet_of
from twin.calibration.observations import Steps
from twin.calibration.step_fit import CoefficientPrior, step_terms
from twin.errors import ProfileError
from twin.hardware import SHIPPED_MODELS, ModelArchitecture
from twin.memory import slot_bytes
from twin.profile import LoadTime, MemoryCalibration, PerformanceProfile, Startup, StepTimeCoefficients, load_profile
from twin.step_time import COEFFICIENT_NAMES, LARGE_BATCH_TOKENS

PRIOR_KIND = "prior"
REFERENCE_PROFILES = ("llama-3.1-8b-h100-64gb", "qwen2.5-7b-h100-64gb")
REFERENCE_VLLM_VERSION = "0.8.5"

# Shares of the datasheet's rates that kernels usually reach: streaming weights, attention over paged KV blocks, dense
# matrix products of large batches, copies from pageable host memory.
WEIGHTS_SHARE = 0.85
CONTEXT_SHARE = 0.65
COMPUTE_SHARE = 0.7
PCIE_SHARE = 0.4
# Elements that a token writes and reads between the matrix products of a layer, per unit of width.
HIDDEN_PASSES, QUERY_KV_PASSES, INNER_PASSES = 8, 2, 6
# A step of this many tokens gives the slope of large batches.
TOKENS_PER_STEP = 2048
# LoRA wraps qkv (3 slices), the output, gate and up (2), and down.
SLICES_PER_LAYER = 7
# Of an adapter load: Python around the copies, and reading safetensors from a local disk.
LOAD_FIXED_MS, DISK_FIXED_MS, DISK_GB_PER_S = 3.0, 10.0, 2.0
LOAD_RANKS = (8, 16, 32, 64, 128)
# Peak of the layers, in widths of gate and up per token; the LoRA buffers and the allocator's slack come on top.
ACTIVATION_WIDTHS = 4.0
GIB, MS_PER_S = float(1 << 30), 1000.0
# A band reaches two standard deviations up.
DEVIATIONS_PER_BAND = 2.0
# A coefficient that is 0 in the measured profiles is not certain to be 0: it may add this share of an empty step to a
# step that has everything in it (`_FULL_STEP`).
LEAST_DEVIATION_SHARE = 0.02

# By how much a coefficient may be larger or smaller than its prior.
BANDS: dict[str, float] = {
    "base_ms": 1.6,
    "token_ms": 2.5,
    "request_ms": 6.0,
    "context_token_ms": 2.0,
    "large_batch_ms": 4.0,
    "large_batch_token_ms": 3.0,
    "mixed_context_token_ms": 8.0,
    "changed_request_ms": 6.0,
    "lora_base_ms": 4.0,
    "lora_active_ms": 4.0,
    "lora_token_ms": 8.0,
    "expand_tile_ms": 3.0,
    "shrink_tile_ms": 3.0,
    "adapter_ms": 3.0,
    "adapter_shrink_ms": 3.0,
    "adapter_request_ms": 6.0,
    "cached_adapter_ms": 6.0,
    "slot_lookup_ms": 6.0,
    "blocked_waiting_ms": 4.0,
}
LOAD_BAND = 4.0

# Grid of typical batches: slots, their rank, distinct adapters if there are as many requests; KV tokens per request.
LORA_SETTINGS = ((0, 0, 0), (16, 8, 0), (16, 8, 8), (64, 16, 32), (128, 16, 100), (256, 8, 150), (384, 32, 200))
TYPICAL_CONTEXT_TOKENS = 360.0

_FULL_STEP = Steps(
    tokens=np.array([1024.0]),
    requests=np.array([128.0]),
    context_tokens=np.array([50_000.0]),
    adapters=np.array([64.0]),
    prefill=np.array([1.0]),
    changed=np.array([1.0]),
    waiting=np.array([1000.0]),
    slots=np.array([64]),
    max_rank=np.array([16]),
    cached_adapters=np.array([256.0]),
)

_HOST = "host: taken over from the measured profiles"
_ROOFLINE = "roofline"
_SOURCES: dict[str, str] = {
    "base_ms": f"{_ROOFLINE}: weights / bandwidth; plus the measured profiles' host time",
    "token_ms": f"{_ROOFLINE}: operations that weights do not hide, and activations / bandwidth",
    "context_token_ms": f"{_ROOFLINE}: KV bytes / bandwidth",
    "large_batch_token_ms": f"{_ROOFLINE}: operations",
    "mixed_context_token_ms": "share of context_token_ms in the measured profiles",
    "lora_base_ms": "measured profiles, by layers / clock",
    "lora_active_ms": "measured profiles, by layers / clock",
    "lora_token_ms": "measured profiles, by activation bytes / bandwidth",
    "expand_tile_ms": "measured profiles, by output widths / (multiprocessors x clock)",
    "shrink_tile_ms": "measured profiles, by slices / (multiprocessors x clock)",
    "adapter_ms": "measured profiles, by adapter widths / (multiprocessors x clock)",
    "adapter_shrink_ms": "measured profiles, by adapter widths / (multiprocessors x clock)",
}


@dataclass(frozen=True)
class _Measured:
    """A measured profile, with what it was measured on."""

    profile: PerformanceProfile
    model: ModelArchitecture
    gpu: GpuDatasheet

    def coefficient(self, name: str) -> float:
        value: float = getattr(self.profile.step_time, name)
        return value


def reference_profiles() -> tuple[PerformanceProfile, ...]:
    """Return the measured profiles that give what physics does not."""
    return tuple(load_profile(name) for name in REFERENCE_PROFILES)


def prior_profile(
    model: ModelArchitecture,
    gpu: str,
    *,
    gpu_memory_gib: float | None = None,
    name: str | None = None,
    references: Sequence[PerformanceProfile] | None = None,
) -> PerformanceProfile:
    """Return a profile made without any measurement of the model on the GPU.

    Parameters
    ----------
    model
        Any architecture that the memory formulas cover.
    gpu
        Name of a datasheet (`twin.calibration.datasheets.DATASHEETS`).
    gpu_memory_gib
        What an engine sees; ``None``: the datasheet's.
    name
        Of the profile; ``None``: "MODEL-GPU-prior".
    references
        Measured profiles of shipped models; ``None``: `reference_profiles`.

    Raises
    ------
    InputError
        When there is no datasheet of that name.
    """
    sheet = datasheet_of(gpu)
    chosen = reference_profiles() if references is None else tuple(references)
    measured = [_Measured(one, SHIPPED_MODELS[one.model], datasheet_of(one.gpu)) for one in chosen]
    step_time = _step_time(model, sheet, measured)
    memory = _memory(model, measured)
    startups = [one.profile.startup for one in measured]
    return PerformanceProfile(
        name=name or f"{model.name}-{gpu}-prior",
        model=model.name,
        gpu=gpu,
        gpu_memory_gib=gpu_memory_gib or sheet.memory_gib,
        vllm_version=REFERENCE_VLLM_VERSION,
        step_time=step_time,
        load_times=_load_times(model, sheet),
        memory=memory,
        startup=Startup(
            base_s=round(float(np.mean([one.base_s for one in startups])), 1),
            per_slot_s=round(float(np.mean([one.per_slot_s for one in startups])), 2),
        ),
        provenance={
            "kind": PRIOR_KIND,
            "tool": "placer calibrate",
            "method": "rooflines of datasheet rates; LoRA and host terms from measured profiles",
            "datasheet": sheet.source,
            "measured_profiles": [one.name for one in chosen],
            "bands": {name: BANDS[name] for name in COEFFICIENT_NAMES},
            "band_note": "each coefficient is expected between its value / band and its value x band",
            "sources": {name: _SOURCES.get(name, _HOST) for name in COEFFICIENT_NAMES},
            "load_times": {"band": LOAD_BAND, "cpu_to_gpu": "bytes / PCIe rate", "disk_to_cpu": "bytes / 2 GB/s"},
            "shares_of_datasheet_rates": {
                "weights": WEIGHTS_SHARE,
                "context": CONTEXT_SHARE,
                "compute": COMPUTE_SHARE,
                "pcie": PCIE_SHARE,
            },
        },
    )


def is_prior(profile: PerformanceProfile) -> bool:
    """Return whether nothing of the profile's step times was measured on its model and GPU."""
    return profile.provenance.get("kind") == PRIOR_KIND


def bands_of(profile: PerformanceProfile) -> dict[str, float]:
    """Return the band of every coefficient: what the profile states, else `BANDS`.

    Raises
    ------
    ProfileError
        When a stated band is no number of at least 1.
    """
    stated = profile.provenance.get("bands", {})
    bands = BANDS | (stated if isinstance(stated, dict) else {"bands": stated})
    for name, band in bands.items():
        if name not in BANDS or not isinstance(band, int | float) or not 1.0 <= band < math.inf:
            raise ProfileError(
                f"a band must be a factor of at least 1 of a coefficient. Got {name!r}: {band!r} "
                f"(profile {profile.name!r}).",
                field="provenance.bands",
                value=band,
                hint="correct the profile, or make it again with `placer calibrate --prior-only`",
            )
    return {name: float(band) for name, band in bands.items()}


def coefficient_prior(profile: PerformanceProfile) -> CoefficientPrior:
    """Return what a profile says about the coefficients: its values, with their bands (ProfileError)."""
    bands = bands_of(profile)
    factors = np.array([bands[name] for name in COEFFICIENT_NAMES])
    values = profile.step_time.as_array()
    least = LEAST_DEVIATION_SHARE * profile.step_time.base_ms / step_terms(_FULL_STEP)[0]
    return CoefficientPrior(values, np.maximum(values * (factors - 1.0) / DEVIATIONS_PER_BAND, least))


def band_arrays(
    profile: PerformanceProfile, *, terms: Collection[str] = COEFFICIENT_NAMES
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the coefficients at the lower and at the upper end of their bands, float64 [len(COEFFICIENT_NAMES)].

    Coefficients that are not among the `terms` keep their values.
    """
    bands = bands_of(profile)
    factors = np.array([bands[name] if name in terms else 1.0 for name in COEFFICIENT_NAMES])
    values = profile.step_time.as_array()
    return values / factors, values * factors


def step_time_band(profile: PerformanceProfile, *, terms: Collection[str] = COEFFICIENT_NAMES) -> tuple[float, float]:
    """Return the factors between which the step times of typical batches lie, if all `terms` err the same way."""
    low, high = band_arrays(profile, terms=terms)
    matrix = step_terms(typical_steps())
    times = matrix @ profile.step_time.as_array()
    return float((matrix @ low / times).min()), float((matrix @ high / times).max())


def typical_steps() -> Steps:
    """Return a grid of batches: decodes and mixed steps of few and many requests, with and without adapters."""
    rows = [
        (tokens, requests, min(adapters, requests), slots, rank)
        for requests in (1, 16, 64, 128, 256, 400)
        for tokens in (requests, 512, 2048)
        for slots, rank, adapters in LORA_SETTINGS
    ]
    tokens, requests, adapters, slots, ranks = np.array(rows).T
    has_prefill = (tokens > requests).astype(np.float64)
    return Steps(
        tokens=tokens.astype(np.float64),
        requests=requests.astype(np.float64),
        context_tokens=TYPICAL_CONTEXT_TOKENS * requests,
        adapters=adapters.astype(np.float64),
        prefill=has_prefill,
        changed=has_prefill,
        waiting=np.zeros(len(rows)),
        slots=slots,
        max_rank=ranks,
        cached_adapters=2.0 * slots,
    )


def _step_time(model: ModelArchitecture, gpu: GpuDatasheet, measured: Sequence[_Measured]) -> StepTimeCoefficients:
    host_ms = _mean([max(one.coefficient("base_ms") - weights_reading_ms(one.model, one.gpu), 0.0) for one in measured])
    weights_ms = weights_reading_ms(model, gpu)
    small_ms, large_ms = (_products_ms(model, gpu, tokens) for tokens in (LARGE_BATCH_TOKENS, TOKENS_PER_STEP))
    product_ms = (small_ms - weights_ms) / LARGE_BATCH_TOKENS
    context_ms = model.kv_bytes_per_token / (gpu.bandwidth_gb_per_s * 1e9 * CONTEXT_SHARE) * MS_PER_S
    mixed_share = _mean(
        [one.coefficient("mixed_context_token_ms") / one.coefficient("context_token_ms") for one in measured]
    )
    values = {
        "base_ms": weights_ms + host_ms,
        "token_ms": product_ms + _activation_ms(model, gpu),
        "context_token_ms": context_ms,
        "large_batch_token_ms": (large_ms - small_ms) / (TOKENS_PER_STEP - LARGE_BATCH_TOKENS) - product_ms,
        "mixed_context_token_ms": mixed_share * context_ms,
    }
    for name in COEFFICIENT_NAMES:
        if name not in values:
            work = _work(name, model, gpu)
            values[name] = _mean([one.coefficient(name) / _work(name, one.model, one.gpu) for one in measured]) * work
    return StepTimeCoefficients(**{name: float(f"{max(value, 0.0):.4g}") for name, value in values.items()})


def _work(name: str, model: ModelArchitecture, gpu: GpuDatasheet) -> float:
    """Return what a LoRA term grows with, in any unit; 1 for host terms."""
    query_kv = model.query_size + 2 * model.kv_size
    outputs = query_kv + 2 * model.hidden_size + 2 * model.intermediate_size
    inputs = 3 * model.hidden_size + model.query_size + 2 * model.hidden_size + model.intermediate_size
    blocks_per_s = gpu.num_sms * gpu.boost_ghz
    if name in {"lora_base_ms", "lora_active_ms"}:
        return model.num_layers / gpu.boost_ghz
    if name == "lora_token_ms":
        return model.num_layers * (inputs + 2 * outputs) * model.dtype_bytes / gpu.bandwidth_gb_per_s
    if name == "expand_tile_ms":
        return model.num_layers * outputs / blocks_per_s
    if name == "shrink_tile_ms":
        return model.num_layers * SLICES_PER_LAYER / blocks_per_s
    if name in {"adapter_ms", "adapter_shrink_ms"}:
        return model.num_layers * (inputs + outputs) / blocks_per_s
    return 1.0


def weights_reading_ms(model: ModelArchitecture, gpu: GpuDatasheet) -> float:
    """Return the time to read the weights once; of the input embedding only the rows of the tokens are read."""
    embedding = 0 if model.tie_word_embeddings else model.vocab_size * model.hidden_size
    num_bytes = (model.num_parameters - embedding) * model.dtype_bytes
    return num_bytes / (gpu.bandwidth_gb_per_s * 1e9 * WEIGHTS_SHARE) * MS_PER_S


def _products_ms(model: ModelArchitecture, gpu: GpuDatasheet, num_tokens: int) -> float:
    """Return the time of the matrix products: reading and computing overlap, though not fully (root of squares)."""
    num_embeddings = 1 if model.tie_word_embeddings else 2
    weights = model.num_parameters - num_embeddings * model.vocab_size * model.hidden_size
    compute_ms = 2.0 * weights * num_tokens / (gpu.dense_tflops * 1e12 * COMPUTE_SHARE) * MS_PER_S
    return math.hypot(weights_reading_ms(model, gpu), compute_ms)


def _activation_ms(model: ModelArchitecture, gpu: GpuDatasheet) -> float:
    """Return the time per token of what passes through memory between the matrix products."""
    query_kv = model.query_size + 2 * model.kv_size
    elements = (
        HIDDEN_PASSES * model.hidden_size
        + QUERY_KV_PASSES * (query_kv + model.query_size)
        + INNER_PASSES * model.intermediate_size
    )
    num_bytes = model.num_layers * elements * model.dtype_bytes
    return num_bytes / (gpu.bandwidth_gb_per_s * 1e9 * WEIGHTS_SHARE) * MS_PER_S


def _load_times(model: ModelArchitecture, gpu: GpuDatasheet) -> tuple[LoadTime, ...]:
    return tuple(
        LoadTime(
            rank=rank,
            cpu_to_gpu_ms=round(LOAD_FIXED_MS + num_bytes / (gpu.pcie_gb_per_s * 1e9 * PCIE_SHARE) * MS_PER_S, 2),
            disk_to_cpu_ms=round(DISK_FIXED_MS + num_bytes / (DISK_GB_PER_S * 1e9) * MS_PER_S, 2),
        )
        for rank in LOAD_RANKS
        for num_bytes in (slot_bytes(model, rank),)
    )


def _memory(model: ModelArchitecture, measured: Sequence[_Measured]) -> MemoryCalibration:
    """Return what the memory arithmetic needs: the layers' peak by their width, the rest as measured elsewhere."""
    memories = [one.profile.memory for one in measured]
    activation_bytes = ACTIVATION_WIDTHS * 2 * model.intermediate_size * model.dtype_bytes * TOKENS_PER_STEP
    return MemoryCalibration(
        overhead_gib=round(_mean([memory.overhead_gib for memory in memories]), 3),
        slot_overhead_mib=round(_mean([memory.slot_overhead_mib for memory in memories]), 3),
        activation_gib=round(activation_bytes / GIB, 4),
        sampler_bytes_per_logit=round(_mean([memory.sampler_bytes_per_logit for memory in memories]), 2),
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
