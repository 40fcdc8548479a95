"""Check what a measurement is to be made with before anything is started: adapters, settings, lengths."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from twin.bounded_read import parse_json, read_bounded
from twin.engine import EngineConfig
from twin.errors import InputError
from twin.workload import RequestTable, Workload

MODEL_CONFIGS = ("config.json", "params.json")
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
# As huggingface_hub reads its variables (huggingface_hub/constants.py).
TRUE_WORDS = ("1", "ON", "YES", "TRUE")
ADAPTER_CONFIG = "adapter_config.json"
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt")
# Slots unless they are given: enough to see batches of several adapters, few enough to see loads.
DEFAULT_SLOTS = 8

# The settings of ours that are arguments of vLLM's engine; the others choose rules that vLLM does not let one choose.
ENGINE_ARGUMENTS = (
    "max_loras",
    "max_lora_rank",
    "max_cpu_loras",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_model_len",
    "block_size",
    "gpu_memory_utilization",
    "long_prefill_token_threshold",
    "watermark",
    "scheduler_reserve_full_isl",
)
# What would make the records wrong, with the reason.
UNMEASURABLE_ARGUMENTS: dict[str, tuple[Collection[Any], str]] = {
    "async_scheduling": ((True,), "a step's records would belong to another step"),
    "enable_prefix_caching": ((True,), "the twin has no prefix cache"),
    "speculative_config": ((), "the twin gives each request one token a step"),
    "skip_tokenizer_init": ((False,), "prompts are token ids"),
    "enable_lora": ((False, True), "it follows from the adapters"),
    "model": ((), "it is given with --model"),
    "seed": ((), "outputs have no meaning here"),
}
SINGLE_PROCESS_ARGUMENTS = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")


def engine_arguments(
    engine: EngineConfig, given: Collection[str], workload: Workload, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments for vLLM's engine; what is not given is vLLM's choice, but for the slots.

    Parameters
    ----------
    engine, given
        Settings of a problem file, and which of them stand there.
    workload
        Its adapters decide slots, rank and CPU cache that are not given.
    extra
        Further arguments of `vllm.EngineArgs`, which win.

    Raises
    ------
    InputError
        When an argument would make the records wrong, slots or their rank are no integers, or an adapter's rank exceeds
        `max_lora_rank`.
    """
    for name, value in extra.items():
        refused, why = UNMEASURABLE_ARGUMENTS.get(name, ((), ""))
        if why and (not refused or value in refused):
            raise InputError(
                f"`{name}` must be left to this program: {why}. Got {value!r}.", field=name, value=value, hint="omit it"
            )
        if name in SINGLE_PROCESS_ARGUMENTS and value != 1:
            raise InputError(
                f"`{name}` must be 1 in process. Got {value!r}.",
                field=name,
                value=value,
                hint="start a server with it, and measure that over HTTP: --endpoint",
            )
    ranks = [adapter.rank for adapter in workload.adapters]
    count = len(ranks)
    chosen: dict[str, Any] = {"max_loras": min(count, DEFAULT_SLOTS), "max_lora_rank": max(ranks)}
    chosen |= {name: getattr(engine, name) for name in ENGINE_ARGUMENTS if name in given}
    chosen |= extra
    for name in ("max_loras", "max_lora_rank"):
        if not isinstance(chosen[name], int) or isinstance(chosen[name], bool):
            raise InputError(f"`{name}` must be an integer. Got {chosen[name]!r}.", field=name, value=chosen[name])
    chosen.setdefault("max_cpu_loras", max(count, chosen["max_loras"]))
    largest = int(np.argmax(ranks))
    if ranks[largest] > chosen["max_lora_rank"]:
        raise InputError(
            f"`rank` must be at most `max_lora_rank` ({chosen['max_lora_rank']}). Got {ranks[largest]} "
            f"(adapter {workload.adapters[largest].name!r}).",
            field="rank",
            value=ranks[largest],
            hint="raise engine.max_lora_rank, or leave the adapter out",
        )
    return chosen


def require_model(model: str, environment: Mapping[str, str]) -> None:
    """Raise InputError unless vLLM can find the model.

    Parameters
    ----------
    model
        A folder; or a name on the Hub, which must be in the local cache where nothing may be downloaded. Names that
        only vLLM understands, such as ``s3://...``, are left to it.
    environment
        Of the engine's process, besides the present one.
    """
    folder = Path(model)
    if folder.is_dir():
        if any((folder / name).is_file() for name in MODEL_CONFIGS):
            return
        raise InputError(
            f"the model must be a folder with config.json. It has no config.json: {model}.",
            file=model,
            field="model",
            value=model,
            hint="give the folder that has config.json and the weights with --model",
        )
    if ":" in model:
        return
    variables = os.environ | dict(environment)
    is_name, is_offline = HUB_NAME.fullmatch(model) is not None, _is_true(variables.get("HF_HUB_OFFLINE"))
    is_elsewhere = not is_offline or _is_true(variables.get("VLLM_USE_MODELSCOPE"))
    if is_name and (is_elsewhere or _is_cached(model, variables)):
        return
    hint = "give the folder with --model"
    if is_name:
        hint += f", or fetch {model} into the cache before. HF_HUB_OFFLINE=1 is set for vLLM, so that it downloads "
        hint += "nothing: HF_HUB_OFFLINE=0 lets it"
    raise InputError(
        f"the model must be a folder with config.json, or in the local Hugging Face cache. Got {model!r}, which is "
        "neither.",
        field="model",
        value=model,
        hint=hint,
    )


def require_adapters(folder: Path, workload: Workload) -> None:
    """Raise InputError unless the folder has every adapter of the workload, in PEFT format and of the rank given."""
    for adapter in workload.adapters:
        path = folder / adapter.name
        config = path / ADAPTER_CONFIG
        if not config.is_file() or not any((path / name).is_file() for name in WEIGHT_FILES):
            raise InputError(
                f"every adapter must have a folder in PEFT format: {ADAPTER_CONFIG} and weights. Adapter "
                f"{adapter.name!r} has none at {path}.",
                file=str(path),
                field="adapter_directory",
                value=adapter.name,
                hint="name the folder that holds one folder per adapter: --adapter-directory",
            )
        try:
            rank = parse_json(read_bounded(config))["r"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise InputError(
                f"{ADAPTER_CONFIG} must be a JSON object with the rank `r`. {config} is not: {error!r}.",
                file=str(config),
                field="r",
                hint="save the adapter again with PEFT",
            ) from error
        if rank != adapter.rank:
            raise InputError(
                f"`rank` must be that of the adapter's folder. Got {adapter.rank} for {adapter.name!r}, and {config} "
                f"says {rank}.",
                file=str(config),
                field="rank",
                value=adapter.rank,
                hint="correct the rank in the problem file",
            )


def require_lengths(requests: RequestTable, max_model_len: int | None) -> None:
    """Raise InputError where a prompt leaves no room for a token: vLLM refuses such requests."""
    if max_model_len is None or len(requests) == 0:
        return
    longest = int(requests.prompt_tokens.max())
    if longest >= max_model_len:
        count = int((requests.prompt_tokens >= max_model_len).sum())
        raise InputError(
            f"prompts must be shorter than `max_model_len` ({max_model_len} tokens). Got up to {longest} in {count} "
            f"of {len(requests)} requests.",
            field="prompt_tokens",
            value=longest,
            hint="cap the prompts with `max`, or raise engine.max_model_len",
        )


def _is_true(value: str | None) -> bool:
    return (value or "").upper() in TRUE_WORDS


def _is_cached(name: str, variables: Mapping[str, str]) -> bool:
    """Return whether the local Hugging Face cache has a model: ``models--OWNER--NAME/snapshots/*/config.json``."""
    caches = variables.get("XDG_CACHE_HOME") or "~/.cache"
    home = variables.get("HF_HOME") or f"{caches}/huggingface"
    cache = variables.get("HF_HUB_CACHE") or variables.get("HUGGINGFACE_HUB_CACHE") or f"{home}/hub"
    snapshots = Path(cache).expanduser() / f"models--{name.replace('/', '--')}" / "snapshots"
    return any(file.is_file() for config in MODEL_CONFIGS for file in snapshots.glob(f"*/{config}"))
