"""What is compared between a measured run and its replay, under one name and unit on both sides."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

# A replica is starved when it serves less than this share of the offered tokens.
LEAST_GOODPUT_RATIO = 0.9

# Quantities that are scored by their relative error, with what a table calls them.
SCORED_QUANTITIES = {
    "tok_per_s": "throughput",
    "itl_mean_ms": "ITL mean",
    "itl_p50_ms": "ITL p50",
    "tpot_mean_ms": "TPOT mean",
    "ttft_p50_ms": "TTFT p50",
    "running_mean": "running",
    "kv_usage_mean": "KV use",
}


class Quantities(BaseModel):
    """What one run did, measured or simulated; ``None`` where there is no value.

    Attributes
    ----------
    tok_per_s
        Prompt + output tokens per second of completed requests.
    itl_mean_ms, itl_p50_ms
        Of all gaps between tokens.
    tpot_mean_ms
        Mean over completed requests of (latency - time to first token) / (output tokens - 1).
    ttft_p50_ms
        Median time to first token of completed requests.
    running_mean, waiting_mean, kv_usage_mean
        Time means from the start to the end of the run, no warm-up; KV usage in [0, 1].
    goodput_ratio
        `tok_per_s` / offered prompt + output tokens per second.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    tok_per_s: float | None = None
    itl_mean_ms: float | None = None
    itl_p50_ms: float | None = None
    tpot_mean_ms: float | None = None
    ttft_p50_ms: float | None = None
    running_mean: float | None = None
    waiting_mean: float | None = None
    kv_usage_mean: float | None = None
    goodput_ratio: float | None = None

    def value(self, name: str) -> float | None:
        """Return the quantity of that name."""
        number: float | None = getattr(self, name)
        return number

    @property
    def is_starved(self) -> bool | None:
        """Whether less than `LEAST_GOODPUT_RATIO` of the offered load was served."""
        return None if self.goodput_ratio is None else self.goodput_ratio < LEAST_GOODPUT_RATIO


def mean_quantities(samples: Sequence[Quantities]) -> Quantities:
    """Return the mean of every quantity over the samples that have it."""
    means: dict[str, float | None] = {}
    for name in Quantities.model_fields:
        values = [number for sample in samples if (number := sample.value(name)) is not None]
        means[name] = statistics.fmean(values) if values else None
    return Quantities(**means)
