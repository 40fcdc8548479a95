"""What a trace or a workload amounts to, in a few numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twin.errors import InputError
from twin.trace import Trace, observed_duration_s
from twin.workload import NANOSECONDS, Workload

DEFAULT_HORIZON_S = 3600.0
NUM_TOP_ADAPTERS = 10


@dataclass(frozen=True)
class LengthSummary:
    """Mean, median, 95th percentile and maximum of lengths, in tokens."""

    mean: float
    p50: float
    p95: float
    max: int


@dataclass(frozen=True)
class WorkloadSummary:
    """A workload in numbers.

    Attributes
    ----------
    source
        ``"trace"``: counted in a trace; ``"drawn"``: counted in requests drawn from the adapters' rates.
    num_requests, duration_s
        Requests, and the seconds in which they arrive.
    rate_rps, offered_tps
        Requests, and prompt + output tokens, per second.
    prompt_tokens, output_tokens
        Lengths; ``None`` without requests.
    num_adapters
        ``None``: the trace does not name adapters.
    top_10_share
        Share of the requests for the ten most requested adapters, in [0, 1]; ``None`` without adapters or requests.
    adapters_per_rank
        Pairs of rank and number of adapters, by rank; empty for a trace, which knows no ranks.
    """

    source: str
    num_requests: int
    duration_s: float
    rate_rps: float
    offered_tps: float
    prompt_tokens: LengthSummary | None
    output_tokens: LengthSummary | None
    num_adapters: int | None
    top_10_share: float | None
    adapters_per_rank: tuple[tuple[int, int], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {**asdict(self), "adapters_per_rank": {str(rank): count for rank, count in self.adapters_per_rank}}


def summarise_trace(trace: Trace) -> WorkloadSummary:
    """Return the summary of the requests of `trace`; it must span some time (InputError otherwise)."""
    requests_per_adapter = None
    if trace.adapter is not None:
        requests_per_adapter = np.unique(trace.adapter.astype(str), return_counts=True)[1]
    return _summary(
        "trace",
        trace.known_duration_s,
        trace.prompt_tokens,
        trace.output_tokens,
        requests_per_adapter,
        adapters_per_rank=(),
    )


def summarise_workload(workload: Workload, *, horizon_s: float | None = None, seed: int = 0) -> WorkloadSummary:
    """Return the summary of the requests that `workload` sends in ``[0, horizon_s)``.

    Parameters
    ----------
    workload
        Of a trace (its requests are counted) or not (they are drawn under `seed`).
    horizon_s
        Seconds; ``None``: all of a trace, or one hour.
    seed
        Of the requests that are drawn.
    """
    if horizon_s is None:
        horizon_s = _own_horizon_s(workload)
    if not (np.isfinite(horizon_s) and horizon_s > 0):
        raise InputError(
            f"`horizon_s` must be finite and above 0. Got {horizon_s}.", field="horizon_s", value=horizon_s
        )
    table = workload.requests(horizon_s=horizon_s, seed=seed)
    ranks = Counter(adapter.rank for adapter in workload.adapters)
    return _summary(
        "drawn" if workload.trace is None else "trace",
        horizon_s,
        table.prompt_tokens.astype(np.int64),
        table.output_tokens.astype(np.int64),
        np.bincount(table.adapter[table.adapter >= 0], minlength=len(workload.adapters)),
        adapters_per_rank=tuple(sorted(ranks.items())),
    )


def _own_horizon_s(workload: Workload) -> float:
    if workload.trace is None or len(workload.trace) == 0:
        return DEFAULT_HORIZON_S
    return observed_duration_s(workload.trace.arrival_ns / NANOSECONDS) or DEFAULT_HORIZON_S


def _summary(
    source: str,
    duration_s: float,
    prompt_tokens: NDArray[np.int64],
    output_tokens: NDArray[np.int64],
    requests_per_adapter: NDArray[np.int64] | None,
    *,
    adapters_per_rank: tuple[tuple[int, int], ...],
) -> WorkloadSummary:
    top_10_share = None
    if requests_per_adapter is not None and len(prompt_tokens):
        top = np.sort(requests_per_adapter)[::-1][:NUM_TOP_ADAPTERS]
        top_10_share = float(top.sum() / len(prompt_tokens))
    return WorkloadSummary(
        source=source,
        num_requests=len(prompt_tokens),
        duration_s=duration_s,
        rate_rps=len(prompt_tokens) / duration_s,
        offered_tps=float(prompt_tokens.sum() + output_tokens.sum()) / duration_s,
        prompt_tokens=_lengths(prompt_tokens),
        output_tokens=_lengths(output_tokens),
        num_adapters=None if requests_per_adapter is None else len(requests_per_adapter),
        top_10_share=top_10_share,
        adapters_per_rank=adapters_per_rank,
    )


def _lengths(tokens: NDArray[np.int64]) -> LengthSummary | None:
    if len(tokens) == 0:
        return None
    p50, p95 = np.percentile(tokens, [50, 95])
    return LengthSummary(mean=float(tokens.mean()), p50=float(p50), p95=float(p95), max=int(tokens.max()))
