"""The metrics of vLLM that a calibration reads (vllm/v1/metrics/loggers.py, 0.8.5 to 0.32), and what they count.

``vllm:iteration_tokens_total`` has one observation per step that gave a token: a step that only computed a part of a
prompt, while nothing decoded, is not counted. Its value is the step's generated tokens and, in the step in which a
prompt ends, all of that prompt's computed tokens, those of earlier steps included. ``vllm:inter_token_latency_seconds``
has one observation per generated token but the first of a request: the engine's time since the token before.
"""

from __future__ import annotations

from collections.abc import Mapping

# What is counted since the server's start: the column of a scrape, and its metrics, the preferred one first.
COUNTERS: dict[str, tuple[str, ...]] = {
    "steps": ("vllm:iteration_tokens_total_count",),
    "gap_s": ("vllm:inter_token_latency_seconds_sum", "vllm:time_per_output_token_seconds_sum"),
    "gaps": ("vllm:inter_token_latency_seconds_count", "vllm:time_per_output_token_seconds_count"),
    "generated": ("vllm:generation_tokens_total",),
    "first_tokens": ("vllm:time_to_first_token_seconds_count",),
    "prompt_tokens": ("vllm:prompt_tokens_total",),
    "computed_prompt_tokens": ("vllm:prompt_tokens_by_source_total",),
    "cached_prompt_tokens": ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
    "finished": ("vllm:request_success_total",),
    "preemptions": ("vllm:num_preemptions_total",),
    "drafts": ("vllm:spec_decode_num_drafts_total",),
}
# What holds at the time of a scrape.
GAUGES: dict[str, tuple[str, ...]] = {
    "running": ("vllm:num_requests_running",),
    "waiting": ("vllm:num_requests_waiting",),
    "kv_usage": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    "started_s": ("process_start_time_seconds",),
}
# Without one of these a window says nothing.
REQUIRED = ("steps", "generated", "first_tokens", "prompt_tokens", "running")

# The settings of the KV cache, as labels.
CACHE_INFO = "vllm:cache_config_info"
CACHE_LABELS = ("num_gpu_blocks", "block_size")
# The adapters with requests, as labels; its value is when they changed.
LORA_INFO = "vllm:lora_requests_info"
# Only these labels of a metric count.
ONLY: dict[str, Mapping[str, str]] = {"vllm:prompt_tokens_by_source_total": {"source": "local_compute"}}

COLUMN_OF = {name: column for columns in (COUNTERS, GAUGES) for column, names in columns.items() for name in names}
KNOWN_METRICS = frozenset({*COLUMN_OF, CACHE_INFO, LORA_INFO})
# What the server's process says for all of its engines.
OF_PROCESS = frozenset({"process_start_time_seconds", LORA_INFO})


def vllm_name(name: str) -> str:
    """Return a metric's name as vLLM writes it: some collectors allow no colon, or take ``_total`` off counters."""
    own = f"vllm:{name.removeprefix('vllm_')}" if name.startswith("vllm_") else name
    return f"{own}_total" if f"{own}_total" in KNOWN_METRICS else own
