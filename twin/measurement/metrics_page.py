"""Read pages of metrics as Prometheus clients write them. Needs the extra ``measure`` (prometheus_client)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

# Gauges of vLLM that say their facts in labels (v1/metrics/loggers.py), and our names and types of those of use.
CACHE_INFO = "vllm:cache_config_info"
CACHE_LABELS: dict[str, tuple[str, type]] = {
    "num_gpu_blocks": ("num_gpu_blocks", int),
    "block_size": ("block_size", int),
    "gpu_memory_utilization": ("gpu_memory_utilization", float),
}
LORA_INFO = "vllm:lora_requests_info"
LORA_LABELS: dict[str, tuple[str, type]] = {"max_lora": ("max_loras", int)}


class PageError(Exception):
    """The text is no page of metrics."""


def samples_of(page: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield name, labels and value of each sample (PageError, perhaps after some samples)."""
    try:
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                yield sample.name, dict(sample.labels), float(sample.value)
    except (ValueError, LookupError, TypeError) as error:
        # The parser has no error of its own for text of another kind.
        raise PageError(f"this is no page of metrics: {error}") from error


def engine_facts(page: str) -> dict[str, Any]:
    """Return what vLLM's page says about its settings, by the twin's names; nothing where it does not."""
    facts: dict[str, Any] = {}
    try:
        for name, labels, _ in samples_of(page):
            if name == CACHE_INFO:
                facts |= _numbers(labels, CACHE_LABELS)
            elif name == LORA_INFO:
                facts |= _numbers(labels, LORA_LABELS)
    except PageError:
        return facts
    return facts


def _numbers(labels: dict[str, str], wanted: dict[str, tuple[str, type]]) -> dict[str, Any]:
    numbers = {}
    for label, (name, kind) in wanted.items():
        try:
            numbers[name] = kind(labels[label])
        except (KeyError, ValueError):
            continue
    return numbers
