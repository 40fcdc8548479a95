"""Settings of a vLLM engine, with vLLM's own names and defaults.

Two generations of scheduling rules are expressed as explicit settings (see twin/semantics.md): the default is vLLM
0.32; the preset
``vllm_version="0.8.5"`` gives the April-2025 engine that the papers measured.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

LoraRank = Literal[8, 16, 32, 64, 128, 256, 320, 512]
SUPPORTED_RANKS: tuple[int, ...] = get_args(LoraRank)

# What differs between the generations; a field given explicitly wins over the preset.
VERSION_PRESETS: dict[str, dict[str, Any]] = {
    "0.32": {
        "scheduler_reserve_full_isl": True,
        "keep_last_token_free": True,
        "long_prefill_threshold_when_alone": False,
        "use_v2_model_runner": True,
        "gpu_memory_utilization": 0.92,
    },
    "0.8.5": {
        "scheduler_reserve_full_isl": False,
        "keep_last_token_free": False,
        "long_prefill_threshold_when_alone": True,
        "use_v2_model_runner": False,
        "gpu_memory_utilization": 0.9,
    },
}

# vLLM keeps counts of tokens, requests and adapters in int32.
MOST_COUNT = 2**31 - 1


class EngineConfig(BaseModel):
    """Arguments of one vLLM engine.

    Attributes
    ----------
    vllm_version
        Preset of scheduling rules; only the defaults of the fields in `VERSION_PRESETS` depend on it.
    enable_lora
        Whether adapters can be served at all; without it there are no slots and no LoRA costs.
    max_loras
        Slots: adapters that can be in one batch; each is reserved at `max_lora_rank`. vLLM's default is 1.
    max_lora_rank
        Largest rank a slot can hold.
    max_cpu_loras
        Adapters kept in CPU memory (LRU); ``None``: as many as `max_loras` (vLLM's default).
    max_num_seqs
        Most requests that run at a time.
    max_num_batched_tokens
        Token budget of one step (chunked prefill shares it with decodes).
    max_model_len
        Longest sequence in tokens; ``None``: the model's own.
    block_size
        Tokens per KV block.
    gpu_memory_utilization
        Share of the GPU's memory that vLLM may use, in (0, 1].
    long_prefill_token_threshold
        Most tokens of one request's prefill in one step; 0: no limit.
    watermark
        Share of the KV blocks kept free when a waiting request is admitted while others run, in [0, 1).
    scheduler_reserve_full_isl
        Admit a waiting request only if its full sequence fits the free blocks (0.32), or only its first chunk (0.8.5).
    keep_last_token_free
        Cap a request's computed tokens at ``max_model_len - 1`` (0.32) or ``max_model_len`` (0.8.5).
    long_prefill_threshold_when_alone
        Apply the threshold to the only request of the engine too (0.8.5) or not (0.32).
    lora_load_order
        Order in which a step's adapters are loaded and touched: ``"set"``, that of a Python set of hashed names
        (vLLM's), or ``"batch"``, that of the batch.
    use_v2_model_runner
        Whether vLLM's model runner V2 (0.32 wherever Triton is, so on GPUs) or V1 (0.8.5, and 0.32 on a CPU) executes
        the steps. It decides in which order adapters enter that set, which matters where their hashes collide. vLLM
        reads it from the environment variable VLLM_USE_V2_MODEL_RUNNER.
    async_scheduling
        Whether a step is scheduled while the one before it runs, so that the GPU never waits for the scheduler. It is
        0.32's default on GPUs, but for a few settings that exclude it; 0.8.5 does not have it. Off here by default:
        the shipped profiles were measured without it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vllm_version: Literal["0.32", "0.8.5"] = "0.32"
    enable_lora: bool = True
    max_loras: int = Field(default=1, ge=1, le=MOST_COUNT)
    max_lora_rank: LoraRank = 16
    max_cpu_loras: int | None = Field(default=None, ge=1, le=MOST_COUNT)
    max_num_seqs: int = Field(default=256, ge=1, le=MOST_COUNT)
    max_num_batched_tokens: int = Field(default=2048, ge=1, le=MOST_COUNT)
    max_model_len: int | None = Field(default=None, ge=2, le=MOST_COUNT)
    block_size: int = Field(default=16, ge=1, le=MOST_COUNT)
    gpu_memory_utilization: float = Field(default=0.92, gt=0, le=1, allow_inf_nan=False)
    long_prefill_token_threshold: int = Field(default=0, ge=0, le=MOST_COUNT)
    watermark: float = Field(default=0.0, ge=0, lt=1, allow_inf_nan=False)
    scheduler_reserve_full_isl: bool = True
    keep_last_token_free: bool = True
    long_prefill_threshold_when_alone: bool = False
    lora_load_order: Literal["set", "batch"] = "set"
    use_v2_model_runner: bool = True
    async_scheduling: bool = False

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = dict(data)
        policy = data.pop("scheduling_policy", "fcfs")
        if policy != "fcfs":
            raise ValueError(
                "`scheduling_policy` must be fcfs: the twin serves requests in the order of their arrival. "
                f"Got {policy!r}. Leave it out; what a plan says does not hold for a server that reorders requests."
            )
        preset = VERSION_PRESETS.get(str(data.get("vllm_version", "0.32")), {})
        return {**preset, **data}

    @model_validator(mode="after")
    def _check_caches(self) -> EngineConfig:
        if self.max_cpu_loras is not None and self.max_cpu_loras < self.max_loras:
            raise ValueError(
                f"`max_cpu_loras` must be at least `max_loras` ({self.max_loras}). Got {self.max_cpu_loras}. "
                "Raise max_cpu_loras or leave it out."
            )
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"`max_num_batched_tokens` must be at least `max_num_seqs` ({self.max_num_seqs}), as vLLM demands. "
                f"Got {self.max_num_batched_tokens}. Raise the one or lower the other."
            )
        if self.async_scheduling and not self.keep_last_token_free:
            raise ValueError(
                "`async_scheduling` needs `keep_last_token_free`: versions of vLLM that have the one have the other. "
                "Set async_scheduling to false, or keep_last_token_free to true."
            )
        return self

    def with_slots(self, max_loras: int, *, max_lora_rank: int, num_adapters: int) -> EngineConfig:
        """Return these settings with other slots, and a CPU cache that holds all adapters: a GPU as plans have it."""
        return self.model_copy(
            update={
                "max_loras": max_loras,
                "max_lora_rank": max_lora_rank,
                "max_cpu_loras": max(num_adapters, max_loras),
            }
        )

    @property
    def num_slots(self) -> int:
        """Slots that are allocated: `max_loras`, or 0 without LoRA."""
        return self.max_loras if self.enable_lora else 0

    @property
    def cpu_capacity(self) -> int:
        """Adapters that the CPU cache holds."""
        return self.max_cpu_loras if self.max_cpu_loras is not None else self.max_loras
