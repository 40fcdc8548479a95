"""What a client of vLLM's API server sees of a replica: the server stalls while it writes its metrics.

The load generator of the measured runs asks for ``/metrics`` two seconds after each answer. vLLM 0.8.5 exports the
adapters that wait and run as the labels of one gauge (``vllm:lora_requests_info``), so that every new combination of
names adds a line to that page for ever, and rendering it blocks the server's only event loop longer and longer: up to
a second in the runs with hundreds of adapters. While it lasts, no request reaches the engine and no token the clients;
the engine goes on. Afterwards the tokens of the stall arrive together: merged into one chunk per request when a step's
outputs are handled in one slice (VLLM_V1_OUTPUT_PROC_CHUNK_SIZE, 128 requests), for then the handler takes queued
outputs without letting the streams run; one by one, in quick succession, when there are more.

Number of distinct combinations and length of their names follow from the simulated run. The times per line and per
name are fitted to the polling intervals (`n_samples`) of the runs with ``split=calib``; ``benchmarks.front_end_stalls``
shows how well they and a new fit to the same runs agree with the measured intervals.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from twin.replica import GAP_DECADES, GAP_LOWEST_NS, NUM_GAP_BINS, ReplicaInputs, ReplicaTrace
from twin.workload import NANOSECONDS

# Grid on which the number of adapter names in the labels is followed.
NAMES_INTERVAL_NS = 10 * NANOSECONDS
MILLISECONDS = 1000.0


@dataclass(frozen=True)
class FrontEnd:
    """Settings and speed of the API server and of what polls it.

    Attributes
    ----------
    poll_interval_s
        From one answer of ``/metrics`` to the next question.
    label_s, label_name_s
        Seconds to render the line of one combination of adapters, and of each name in it.
    outputs_per_slice
        Requests whose tokens are handled without a break.
    overhead_s
        Between client and engine and back, for the first token.
    """

    poll_interval_s: float = 1.985
    label_s: float = 11.5e-6
    label_name_s: float = 0.155e-6
    outputs_per_slice: int = 128
    overhead_s: float = 0.0055


@dataclass(frozen=True)
class Stalls:
    """Times at which the server does nothing else: float64 [M] each, in seconds, in order and without overlap."""

    start_s: NDArray[np.float64]
    duration_s: NDArray[np.float64]

    def delayed_ns(self, times_ns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return int64 [N]: the times, those within a stall moved to its end."""
        index = np.searchsorted(self.start_s, times_ns / NANOSECONDS, side="right") - 1
        ends_ns = np.ceil((self.start_s + self.duration_s) * NANOSECONDS).astype(np.int64)
        return np.where(index >= 0, np.maximum(times_ns, ends_ns[index]), times_ns)


@dataclass(frozen=True)
class ClientView:
    """Latencies as a client measures them, in milliseconds; ``None`` where there is nothing to measure."""

    itl_mean_ms: float | None
    itl_p50_ms: float | None
    ttft_p50_ms: float | None


@dataclass(frozen=True)
class PageGrowth:
    """How the page of metrics of a simulated run grows, on a grid of `NAMES_INTERVAL_NS`.

    Attributes
    ----------
    horizon_ns
        Length of the run; the grid goes from 0 to at least there.
    grid_ns
        int64 [G], the times.
    new_lines
        int64 [G], combinations of adapters that were first seen between the time before and this one.
    names
        int64 [G], adapter names in a line that is written at that time.
    """

    horizon_ns: int
    grid_ns: NDArray[np.int64]
    new_lines: NDArray[np.int64]
    names: NDArray[np.int64]


def predict_stalls(inputs: ReplicaInputs, trace: ReplicaTrace, front_end: FrontEnd) -> Stalls:
    """Return the stalls of a simulated run."""
    return poll_page(page_growth(inputs, trace), front_end)


def page_growth(inputs: ReplicaInputs, trace: ReplicaTrace) -> PageGrowth:
    """Return how the page of a simulated run grows.

    An adapter's name is in the waiting label from its requests' arrival to their first token, and in the running label
    from there to their end.
    """
    horizon_ns = int(inputs.horizon_ns)
    first_ns = np.where(trace.first_token_ns >= 0, trace.first_token_ns, horizon_ns)
    finish_ns = np.where(trace.finish_ns >= 0, trace.finish_ns, horizon_ns)
    has_run = first_ns < horizon_ns
    waiting = _name_changes(inputs.adapter, inputs.arrival_ns, first_ns)
    running = _name_changes(inputs.adapter[has_run], first_ns[has_run], finish_ns[has_run])
    num_adapters = len(inputs.gpu_load_ns)
    times_ns = np.concatenate([waiting.times_ns, running.times_ns])
    order = np.argsort(times_ns, kind="stable")
    times_ns = times_ns[order]
    # A combination is the exclusive or of its names' random keys: equal combinations have equal keys.
    keys = np.random.default_rng(0).integers(1, np.iinfo(np.int64).max, 2 * num_adapters)
    names = np.concatenate([waiting.adapter, running.adapter + num_adapters])[order]
    combinations = np.bitwise_xor.accumulate(keys[names]) if len(names) else np.empty(0, np.int64)
    counts = np.cumsum(np.concatenate([waiting.change, running.change])[order])
    # The server sees what has changed when the outputs of a step arrive.
    seen = [trace.finish_ns[trace.finish_ns >= 0], trace.first_token_ns[has_run]]
    seen_ns = np.unique(np.concatenate([*seen, trace.first_scheduled_ns[trace.first_scheduled_ns >= 0]]))
    position = np.searchsorted(times_ns, seen_ns, side="right") - 1
    seen_ns, position = seen_ns[position >= 0], position[position >= 0]
    _, first = np.unique(combinations[position], return_index=True)
    first.sort()
    grid_ns = np.arange(0, horizon_ns + NAMES_INTERVAL_NS, NAMES_INTERVAL_NS)
    at_grid = np.searchsorted(times_ns, grid_ns, side="right") - 1
    names_on_grid = np.where(at_grid >= 0, counts[at_grid], 0) if len(counts) else np.zeros(len(grid_ns), np.int64)
    new_lines = np.diff(np.searchsorted(seen_ns[first], grid_ns, side="right"), prepend=0)
    return PageGrowth(horizon_ns, grid_ns, new_lines, names_on_grid)


def poll_page(growth: PageGrowth, front_end: FrontEnd) -> Stalls:
    """Return the stalls of a server whose page grows so: one per poll, the next one `poll_interval_s` after its end."""
    horizon_s, grid_s = growth.horizon_ns / NANOSECONDS, growth.grid_ns / NANOSECONDS
    cost_s = np.cumsum(growth.new_lines * (front_end.label_s + front_end.label_name_s * growth.names))
    starts, durations, now = [], [], 0.0
    while now < horizon_s:
        duration = float(np.interp(now, grid_s, cost_s))
        starts.append(now)
        durations.append(duration)
        now += front_end.poll_interval_s + duration
    return Stalls(np.array(starts), np.array(durations))


def through_stalls(inputs: ReplicaInputs, stalls: Stalls) -> ReplicaInputs:
    """Return the inputs with each request arriving at the engine when the server lets it through."""
    return replace(inputs, arrival_ns=stalls.delayed_ns(inputs.arrival_ns))


def client_view(trace: ReplicaTrace, sent_ns: NDArray[np.int64], stalls: Stalls, front_end: FrontEnd) -> ClientView:
    """Return the latencies that clients see.

    Parameters
    ----------
    trace
        Of a simulation whose requests came `through_stalls`.
    sent_ns
        int64 [N], when the clients sent them.
    """
    completed = trace.finish_ns >= 0
    ttft_p50_ms = None
    if completed.any():
        waits_ns = stalls.delayed_ns(trace.first_token_ns[completed]) - sent_ns[completed]
        ttft_p50_ms = (float(np.median(waits_ns)) / NANOSECONDS + front_end.overhead_s) * MILLISECONDS
    num_gaps = int(trace.gap_histogram.sum())
    if num_gaps == 0:
        return ClientView(None, None, ttft_p50_ms)
    gap_s = float(trace.adapter_gap_sum_ns.sum()) / num_gaps / NANOSECONDS
    merged, quick, long = _gap_shares(trace, stalls, front_end, gap_s)
    # Of the chunks that remain, the quick ones are the shortest and those that span a stall the longest.
    level = (0.5 * (1.0 - merged) - quick) / max(1.0 - merged - quick - long, 1e-9)
    return ClientView(
        itl_mean_ms=gap_s / (1.0 - merged) * MILLISECONDS,
        itl_p50_ms=_gap_quantile_s(trace, min(max(level, 0.0), 1.0)) * MILLISECONDS,
        ttft_p50_ms=ttft_p50_ms,
    )


def _gap_shares(trace: ReplicaTrace, stalls: Stalls, front_end: FrontEnd, gap_s: float) -> tuple[float, float, float]:
    """Return the shares of the gaps between tokens that are merged away, that are quick, and that span a stall."""
    first_ns, finish_ns = (
        np.sort(trace.first_token_ns[trace.first_token_ns >= 0]),
        np.sort(trace.finish_ns[trace.finish_ns >= 0]),
    )
    starts_ns = stalls.start_s * NANOSECONDS
    running = np.searchsorted(first_ns, starts_ns, side="right") - np.searchsorted(finish_ns, starts_ns, side="right")
    lost_s = np.maximum(stalls.duration_s - gap_s, 0.0)
    is_merged = running <= front_end.outputs_per_slice
    total = float((running * (stalls.duration_s + front_end.poll_interval_s)).sum())
    if total == 0.0:
        return 0.0, 0.0, 0.0
    merged = float((running * lost_s * is_merged).sum()) / total
    quick = float((running * lost_s * ~is_merged).sum()) / total
    long = float((running * (lost_s > 0.0) * gap_s).sum()) / total
    return merged, quick, long


def _gap_quantile_s(trace: ReplicaTrace, level: float) -> float:
    """Return the quantile of the gaps between tokens, at the middle of its bin (1.6 % wide)."""
    cumulative = np.cumsum(trace.gap_histogram)
    position = min(int(np.searchsorted(cumulative, level * cumulative[-1])), NUM_GAP_BINS - 1)
    return float(GAP_LOWEST_NS * 10.0 ** (GAP_DECADES * (position + 0.5) / NUM_GAP_BINS)) / NANOSECONDS


@dataclass(frozen=True)
class _NameChanges:
    """When an adapter's name joins (+1) or leaves (-1) a label: int64 [M] each, times in ns, in no order."""

    times_ns: NDArray[np.int64]
    adapter: NDArray[np.int64]
    change: NDArray[np.int64]


def _name_changes(adapter: NDArray[np.int32], start_ns: NDArray[np.int64], end_ns: NDArray[np.int64]) -> _NameChanges:
    """Return when adapters go from no open interval ``[start, end)`` to one, and back."""
    owners = np.concatenate([adapter, adapter]).astype(np.int64)
    times_ns = np.concatenate([start_ns, end_ns])
    change = np.repeat(np.array([1, -1]), len(adapter))
    # Base-model requests have no name. Starts come before ends of the same time: a name that stays does not flicker.
    kept = owners >= 0
    order = np.lexsort((-change[kept], times_ns[kept], owners[kept]))
    owners, times_ns, change = owners[kept][order], times_ns[kept][order], change[kept][order]
    # Every interval closes, so that the running sum is 0 again where the next adapter begins.
    num_open = np.cumsum(change)
    matters = ((change == 1) & (num_open == 1)) | ((change == -1) & (num_open == 0))
    return _NameChanges(times_ns[matters], owners[matters], change[matters])
