"""What a simulated replica did: throughput, latencies, waiting, loads, starvation - per replica and per adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from twin.latency_summary import LatencySummary, summarise_durations, summarise_gaps
from twin.replica import SAMPLE_COLUMNS, ReplicaInputs, ReplicaTrace
from twin.stability_report import StabilityReport
from twin.workload import NANOSECONDS, Workload

# A request that waits for less than this at the end of the simulation is not yet counted as unserved: it may merely
# have just arrived.
WAITING_GRACE_S = 5.0


class AdapterReport(BaseModel):
    """One adapter on a replica, over the measured window.

    Attributes
    ----------
    offered_tps, throughput_tps
        Prompt + output tokens per second that arrived, and of completed requests; output beyond `max_model_len`, which
        the engine cuts off, counts in neither.
    served_ratio
        1 - (tokens of its requests that still wait at the end, for longer than a grace) / (its offered tokens, with
        those of requests that wait since the warm-up).
    is_starved
        ``served_ratio < 1 - starvation_tolerance``.
    ttft, itl
        Time to first token of requests that got one in the window; time between tokens of the whole simulation.
    gpu_loads, disk_loads
        Copies into a slot and reads from disk in the whole simulation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    rank: int
    requests_arrived: int
    requests_finished: int
    offered_tps: float
    throughput_tps: float
    served_ratio: float
    is_starved: bool
    ttft: LatencySummary
    itl: LatencySummary
    gpu_loads: int
    disk_loads: int


class TimeSeries(BaseModel):
    """State of the replica at the first step boundary of each interval; none where it idles (see `SAMPLE_COLUMNS`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    time_s: tuple[float, ...] = ()
    running: tuple[int, ...] = ()
    waiting: tuple[int, ...] = ()
    used_blocks: tuple[int, ...] = ()
    finished_requests: tuple[int, ...] = ()
    finished_tokens: tuple[int, ...] = ()
    preemptions: tuple[int, ...] = ()
    gpu_loads: tuple[int, ...] = ()


class SimulationReport(BaseModel):
    """One simulated replica over the window ``[warmup_s, horizon_s]``.

    Attributes
    ----------
    engine
        Which engine simulated it.
    offered_tps, throughput_tps, offered_rps, completed_rps
        Arrived and completed prompt + output tokens (requests) per second; output beyond `max_model_len` counts in
        neither.
    throughput_ratio
        throughput / offered; 1 when nothing was offered.
    requests_overdue
        Requests that still wait at the end, for longer than a grace.
    is_starved
        ``throughput_ratio < 1 - starvation_tolerance``, the papers' test of a replica, while some request is overdue.
        Where none is, what is missing was in service when the window ended: much of what few requests offer.
    starved_adapters
        Names of the adapters that starve by their own ratio.
    ttft, itl, tpot
        Time to first token; time between tokens (all requests' gaps, whole simulation); per completed request
        (finish - first token) / (output tokens - 1).
    running_mean, waiting_mean, kv_usage_mean
        Time means over the horizon; KV usage in [0, 1].
    busy_fraction
        Share of the horizon in which steps ran.
    load_time_s
        Time spent loading adapters.
    stability
        Whether other seeds say the same, where that was asked; see `twin.stability.assess_stability`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    engine: str
    seed: int
    horizon_s: float
    warmup_s: float
    starvation_tolerance: float
    kv_tokens: int
    requests_arrived: int
    requests_finished: int
    offered_tps: float
    throughput_tps: float
    throughput_ratio: float
    offered_rps: float
    completed_rps: float
    requests_overdue: int
    is_starved: bool
    starved_adapters: tuple[str, ...]
    ttft: LatencySummary
    itl: LatencySummary
    tpot: LatencySummary
    running_mean: float
    running_max: int
    waiting_mean: float
    waiting_max: int
    kv_usage_mean: float
    kv_usage_max: float
    num_steps: int
    step_mean_s: float | None
    busy_fraction: float
    num_preemptions: int
    gpu_loads: int
    disk_loads: int
    load_time_s: float
    adapters: tuple[AdapterReport, ...]
    time_series: TimeSeries = TimeSeries()
    stability: StabilityReport | None = None

    @property
    def served_ratio(self) -> float:
        """`throughput_ratio`, and at least 1 where no request is overdue."""
        return self.throughput_ratio if self.requests_overdue else max(self.throughput_ratio, 1.0)

    @property
    def has_starvation(self) -> bool:
        """Whether the replica or any of its adapters starves."""
        return self.is_starved or bool(self.starved_adapters)


def build_report(
    workload: Workload,
    inputs: ReplicaInputs,
    trace: ReplicaTrace,
    *,
    engine: str,
    seed: int,
    warmup_s: float,
    starvation_tolerance: float,
    with_adapters: bool = True,
    with_adapter_latencies: bool = True,
) -> SimulationReport:
    """Turn an engine's raw outcome into a report; shapes as in `ReplicaTrace`.

    Without `with_adapters`, the report of each adapter is left out; which ones starve is not. Without
    `with_adapter_latencies`, only the latencies of each adapter are.
    """
    horizon_s = trace.end_ns / NANOSECONDS
    window_s = horizon_s - warmup_s
    warmup_ns = round(warmup_s * NANOSECONDS)
    # A request ends at `max_model_len`, whatever it asked for.
    tokens = np.minimum(inputs.prompt_tokens.astype(np.int64) + inputs.output_tokens, inputs.max_model_len)
    arrived = inputs.arrival_ns >= warmup_ns
    finished = trace.finish_ns >= warmup_ns
    has_first_token = trace.first_token_ns >= warmup_ns
    offered_tokens, finished_tokens = int(tokens[arrived].sum()), int(tokens[finished].sum())
    ratio = finished_tokens / offered_tokens if offered_tokens else 1.0
    usable_blocks = inputs.num_blocks - 1
    overdue = _overdue(inputs, trace)
    num_overdue = int(overdue.sum())
    columns = _adapter_columns(
        workload, inputs, tokens=tokens, arrived=arrived, finished=finished, overdue=overdue, window_s=window_s
    )
    is_starved = columns.served_ratio < 1.0 - starvation_tolerance
    adapters: tuple[AdapterReport, ...] = ()
    if with_adapters:
        latencies = (
            _adapter_latencies(inputs, trace, len(workload.adapters), has_first_token)
            if with_adapter_latencies
            else [(LatencySummary(), LatencySummary())] * len(workload.adapters)
        )
        adapters = _adapter_reports(workload, trace, columns, latencies, is_starved=is_starved)
    return SimulationReport(
        engine=engine,
        seed=seed,
        horizon_s=horizon_s,
        warmup_s=warmup_s,
        starvation_tolerance=starvation_tolerance,
        kv_tokens=inputs.num_blocks * inputs.block_size,
        requests_arrived=int(arrived.sum()),
        requests_finished=int(finished.sum()),
        offered_tps=offered_tokens / window_s,
        throughput_tps=finished_tokens / window_s,
        throughput_ratio=ratio,
        offered_rps=int(arrived.sum()) / window_s,
        completed_rps=int(finished.sum()) / window_s,
        requests_overdue=num_overdue,
        is_starved=num_overdue > 0 and ratio < 1.0 - starvation_tolerance,
        starved_adapters=tuple(workload.adapters[index].name for index in np.flatnonzero(is_starved).tolist()),
        ttft=summarise_durations((trace.first_token_ns - inputs.arrival_ns)[has_first_token]),
        itl=summarise_gaps(
            trace.gap_histogram, int(trace.adapter_gap_sum_ns.sum()), int(trace.adapter_gap_count.sum())
        ),
        tpot=summarise_durations(_time_per_output_token(trace, finished)),
        running_mean=trace.running_integral / trace.end_ns,
        running_max=trace.peak_running,
        waiting_mean=trace.waiting_integral / trace.end_ns,
        waiting_max=trace.peak_waiting,
        kv_usage_mean=trace.used_blocks_integral / trace.end_ns / usable_blocks,
        kv_usage_max=trace.peak_used_blocks / usable_blocks,
        num_steps=trace.num_steps,
        step_mean_s=trace.busy_ns / trace.num_steps / NANOSECONDS if trace.num_steps else None,
        busy_fraction=trace.busy_ns / trace.end_ns,
        num_preemptions=trace.num_preemptions,
        gpu_loads=int(trace.adapter_gpu_loads.sum()),
        disk_loads=int(trace.adapter_disk_loads.sum()),
        load_time_s=trace.load_ns / NANOSECONDS,
        adapters=adapters,
        time_series=_time_series(trace),
    )


@dataclass(frozen=True)
class _AdapterColumns:
    """What each of A adapters asked for and got in the window; arrays [A]."""

    num_arrived: NDArray[np.float64]
    num_finished: NDArray[np.float64]
    offered_tps: NDArray[np.float64]
    throughput_tps: NDArray[np.float64]
    served_ratio: NDArray[np.float64]


def _adapter_columns(
    workload: Workload,
    inputs: ReplicaInputs,
    *,
    tokens: NDArray[np.int64],
    arrived: NDArray[np.bool_],
    finished: NDArray[np.bool_],
    overdue: NDArray[np.bool_],
    window_s: float,
) -> _AdapterColumns:
    count = len(workload.adapters)
    owner = _owners(inputs, count)

    def per_adapter(mask: NDArray[np.bool_], weights: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        chosen = None if weights is None else weights[mask]
        return np.bincount(owner[mask], weights=chosen, minlength=count + 1).astype(np.float64)[:count]

    waiting, wanted = per_adapter(overdue, tokens), per_adapter(arrived | overdue, tokens)
    return _AdapterColumns(
        num_arrived=per_adapter(arrived),
        num_finished=per_adapter(finished),
        offered_tps=per_adapter(arrived, tokens) / window_s,
        throughput_tps=per_adapter(finished, tokens) / window_s,
        served_ratio=1.0 - np.divide(waiting, wanted, out=np.zeros_like(waiting), where=wanted > 0),
    )


def _adapter_reports(
    workload: Workload,
    trace: ReplicaTrace,
    columns: _AdapterColumns,
    latencies: Sequence[tuple[LatencySummary, LatencySummary]],
    *,
    is_starved: NDArray[np.bool_],
) -> tuple[AdapterReport, ...]:
    """Return the report of each adapter; `latencies` are its times to first token and between tokens."""
    return tuple(
        AdapterReport(
            name=adapter.name,
            rank=adapter.rank,
            requests_arrived=int(columns.num_arrived[index]),
            requests_finished=int(columns.num_finished[index]),
            offered_tps=float(columns.offered_tps[index]),
            throughput_tps=float(columns.throughput_tps[index]),
            served_ratio=float(columns.served_ratio[index]),
            is_starved=bool(is_starved[index]),
            ttft=latencies[index][0],
            itl=latencies[index][1],
            gpu_loads=int(trace.adapter_gpu_loads[index]),
            disk_loads=int(trace.adapter_disk_loads[index]),
        )
        for index, adapter in enumerate(workload.adapters)
    )


def _adapter_latencies(
    inputs: ReplicaInputs, trace: ReplicaTrace, count: int, has_first_token: NDArray[np.bool_]
) -> list[tuple[LatencySummary, LatencySummary]]:
    """Return the times to first token and between tokens of each of `count` adapters."""
    first_tokens = _group_first_tokens(inputs, trace, has_first_token, _owners(inputs, count), count)
    return [
        (
            summarise_durations(first_tokens[index]),
            summarise_gaps(
                trace.adapter_gap_histogram[index],
                int(trace.adapter_gap_sum_ns[index]),
                int(trace.adapter_gap_count[index]),
            ),
        )
        for index in range(count)
    ]


def _owners(inputs: ReplicaInputs, count: int) -> NDArray[np.int64]:
    """Return the adapter of each request, int64 [N]; requests of the base model get the number `count`."""
    return np.where(inputs.adapter >= 0, inputs.adapter, count)


def _overdue(inputs: ReplicaInputs, trace: ReplicaTrace) -> NDArray[np.bool_]:
    """Return which requests still wait at the end, for longer than the grace."""
    latest_ns = trace.end_ns - round(WAITING_GRACE_S * NANOSECONDS)
    return (trace.finish_ns < 0) & ~trace.is_running & (inputs.arrival_ns < latest_ns)


def _group_first_tokens(
    inputs: ReplicaInputs, trace: ReplicaTrace, has_token: NDArray[np.bool_], owner: NDArray[np.int64], count: int
) -> list[NDArray[np.int64]]:
    """Return each adapter's times to first token (ns), of the requests where `has_token` holds, adapters in order."""
    order = np.argsort(owner[has_token], kind="stable")
    waits = (trace.first_token_ns - inputs.arrival_ns)[has_token][order]
    ends = np.searchsorted(owner[has_token][order], np.arange(count + 1))
    return [waits[ends[index] : ends[index + 1]] for index in range(count)]


def _time_per_output_token(trace: ReplicaTrace, finished: NDArray[np.bool_]) -> NDArray[np.float64]:
    several = finished & (trace.generated_tokens > 1)
    spans = (trace.finish_ns - trace.first_token_ns)[several]
    return spans / (trace.generated_tokens[several] - 1)


def _time_series(trace: ReplicaTrace) -> TimeSeries:
    if len(trace.samples) == 0:
        return TimeSeries()
    columns = dict(zip(SAMPLE_COLUMNS, trace.samples.T.tolist(), strict=True))
    times = tuple(value / NANOSECONDS for value in columns.pop("time_ns"))
    return TimeSeries(time_s=times, **{name: tuple(values) for name, values in columns.items()})
