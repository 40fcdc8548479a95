"""vLLM's configuration and scheduler for a replica of the twin: every setting that `ReplicaInputs` has."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.structured_output import StructuredOutputManager

from twin.replica import ReplicaInputs

# A model of which nothing is loaded: the scheduler reads its longest sequence, the rest must only be consistent.
MODEL_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": 256,
    "max_position_embeddings": 1 << 24,
    "torch_dtype": "bfloat16",
}
# What config/vllm.py reads each time when it is asked which model runner is used.
MODEL_RUNNER_VARIABLE = "VLLM_USE_V2_MODEL_RUNNER"


def make_config(inputs: ReplicaInputs) -> Any:
    """Return vLLM's configuration.

    Raises
    ------
    ValueError, TypeError
        When vLLM does not accept a setting, or does not know it.
    """
    # The CPU platform refuses V2 while it checks the configuration; only then the scheduler is told.
    os.environ.pop(MODEL_RUNNER_VARIABLE, None)
    lora: dict[str, Any] = {"enable_lora": False}
    if inputs.num_slots > 0:
        lora = {
            "enable_lora": True,
            "max_loras": inputs.num_slots,
            "max_cpu_loras": inputs.cpu_capacity,
            "max_lora_rank": inputs.max_lora_rank,
        }
    settings = {
        "block_size": inputs.block_size,
        "max_model_len": inputs.max_model_len,
        "max_num_seqs": inputs.max_num_seqs,
        "max_num_batched_tokens": inputs.max_num_batched_tokens,
        "long_prefill_token_threshold": inputs.long_prefill_token_threshold,
        "scheduler_reserve_full_isl": inputs.reserve_full_isl,
        "watermark": _watermark_share(inputs),
    }
    with tempfile.TemporaryDirectory(prefix="placer-vllm-") as folder:
        (Path(folder) / "config.json").write_text(json.dumps(MODEL_CONFIG), encoding="utf-8")
        config = EngineArgs(
            model=folder,
            tokenizer=folder,
            skip_tokenizer_init=True,
            load_format="dummy",
            kv_cache_memory_bytes=1 << 30,
            enable_prefix_caching=False,
            async_scheduling=False,
            **settings,
            **lora,
        ).create_engine_config()
    _check_settings(config, settings)
    config.cache_config.num_gpu_blocks = inputs.num_blocks
    # The CPU platform turns it off, too.
    config.scheduler_config.async_scheduling = inputs.async_scheduling
    os.environ[MODEL_RUNNER_VARIABLE] = "1" if inputs.use_v2_model_runner else "0"
    return config


def make_scheduler(config: Any, inputs: ReplicaInputs) -> Any:
    """Return vLLM's scheduler (v1/core/sched/scheduler.py or async_scheduler.py) with its KV-cache manager."""
    attention = FullAttentionSpec(block_size=inputs.block_size, num_kv_heads=2, head_size=32, dtype=torch.bfloat16)
    scheduler_class = AsyncScheduler if inputs.async_scheduling else Scheduler
    assert config.max_concurrent_batches == (2 if inputs.async_scheduling else 1)
    scheduler = scheduler_class(
        vllm_config=config,
        block_size=inputs.block_size,
        structured_output_manager=StructuredOutputManager(config),
        kv_cache_config=KVCacheConfig(
            num_blocks=inputs.num_blocks,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], attention)],
        ),
    )
    assert scheduler.kv_cache_manager.watermark_blocks == inputs.watermark_blocks
    assert scheduler.use_v2_model_runner == inputs.use_v2_model_runner
    return scheduler


def _watermark_share(inputs: ReplicaInputs) -> float:
    """Return the smallest share of the blocks that vLLM truncates to the twin's whole number of them."""
    share = inputs.watermark_blocks / inputs.num_blocks
    while int(share * inputs.num_blocks) < inputs.watermark_blocks:
        share = math.nextafter(share, 1.0)
    return share


def _check_settings(config: Any, settings: dict[str, Any]) -> None:
    """Raise ValueError when vLLM has changed a setting."""
    found = {
        "block_size": config.cache_config.block_size,
        "max_model_len": config.model_config.max_model_len,
        **{name: getattr(config.scheduler_config, name) for name in settings.keys() - {"block_size", "max_model_len"}},
    }
    changed = [
        f"{name}={found[name]!r} instead of {value!r}" for name, value in settings.items() if found[name] != value
    ]
    if changed:
        raise ValueError(f"vLLM replaces settings: {', '.join(changed)}")
