"""Samples of a fleet's metrics, kept as far as they tell traffic, and what grew between them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

REQUESTS = "vllm:request_success_total"
PROMPTS, OUTPUTS = "vllm:request_prompt_tokens", "vllm:request_generation_tokens"
LATENCY = "vllm:e2e_request_latency_seconds"
RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
LORA_INFO = "vllm:lora_requests_info"
STARTED = "process_start_time_seconds"
LENGTH_COUNTERS = tuple(f"{name}_{part}" for name in (PROMPTS, OUTPUTS) for part in ("bucket", "sum", "count"))
COUNTERS = frozenset({REQUESTS, *LENGTH_COUNTERS, f"{LATENCY}_sum", f"{LATENCY}_count"})
GAUGES = frozenset({RUNNING, WAITING, LORA_INFO, STARTED})
# Labels by which a collector tells servers apart; the first that a sample has counts.
SERVER_LABELS = ("instance", "pod")
# A series that is first seen this long after its server was not there before.
_SAME_SCRAPE_S = 1.0

Series = list[tuple[float, float]]


@dataclass(frozen=True)
class Presence:
    """Which adapters have requests at a scrape, and when the server wrote that."""

    written_s: float
    adapters: frozenset[str]


@dataclass
class ServerSamples:
    """The samples of one server.

    Attributes
    ----------
    counters
        By metric and labels, in any order.
    in_system
        Requests that run or wait, by the time of the scrape.
    presence
        By the time of the scrape; what the server last wrote, also if it is idle since.
    started
        When the process says that it started, by the time of the scrape.
    """

    counters: dict[tuple[str, tuple[tuple[str, str], ...]], Series] = field(default_factory=lambda: defaultdict(list))
    in_system: dict[float, float] = field(default_factory=lambda: defaultdict(float))
    presence: dict[float, Presence] = field(default_factory=dict)
    started: Series = field(default_factory=list)

    @property
    def times(self) -> list[float]:
        """Times of its scrapes, ascending."""
        return sorted({time_s for series in self.counters.values() for time_s, _ in series} | set(self.in_system))


@dataclass
class TrafficSamples:
    """Takes samples one by one, and keeps those of the counters and gauges above.

    Attributes
    ----------
    request_counter
        The counter of requests: vLLM's, or another one that tells adapters apart.
    servers
        By a name from the origin and the collector's labels.
    """

    request_counter: str = REQUESTS
    servers: dict[str, ServerSamples] = field(default_factory=lambda: defaultdict(ServerSamples))

    def is_read(self, name: str) -> bool:
        """Return whether a metric is kept."""
        return name == self.request_counter or vllm_name(name) in COUNTERS | GAUGES

    def add(self, origin: str, time_s: float, name: str, labels: Mapping[str, str], value: float) -> None:
        """Take a sample; `origin` tells apart servers that have the same labels."""
        name = name if name == self.request_counter else vllm_name(name)
        if not math.isfinite(value) or not (name == self.request_counter or name in COUNTERS | GAUGES):
            return
        if name.endswith("_bucket") and not _is_end(labels.get("le", "")):
            return
        label = next((labels[key] for key in SERVER_LABELS if key in labels), "")
        server = self.servers[" ".join(part for part in (origin, label) if part)]
        time_s = round(time_s, 3)
        if name == LORA_INFO:
            known = server.presence.get(time_s)
            if known is None or value > known.written_s:
                server.presence[time_s] = Presence(value, _adapters(labels))
        elif name == STARTED:
            server.started.append((time_s, value))
        elif name in GAUGES:
            server.in_system[time_s] += value
        else:
            server.counters[name, tuple(sorted(labels.items()))].append((time_s, value))

    def traffic_servers(self) -> dict[str, ServerSamples]:
        """Return the servers that count requests: other processes have a start time, too."""
        return {name: server for name, server in sorted(self.servers.items()) if server.counters}


@dataclass(frozen=True)
class Growth:
    """By how much the counters of a server grew.

    Attributes
    ----------
    begin_s, end_s
        From when to when.
    by_series
        By metric and labels.
    num_resets
        Times at which the server was seen to have started anew: what it counted since the scrape before is lost.
    """

    begin_s: float
    end_s: float
    by_series: Mapping[tuple[str, tuple[tuple[str, str], ...]], float]
    num_resets: int

    def total(self, name: str) -> float:
        """Return the growth of all series of a metric."""
        return sum(value for (metric, _), value in self.by_series.items() if metric == name)

    def by_label(self, name: str, label: str) -> dict[str, float]:
        """Return the growth of a metric for each value of a label; series without it are left out."""
        grown: dict[str, float] = defaultdict(float)
        for (metric, labels), value in self.by_series.items():
            key = dict(labels).get(label)
            if metric == name and key is not None:
                grown[key] += value
        return dict(grown)

    def histogram(self, name: str, *, only: tuple[str, str] | None = None) -> tuple[dict[float, float], float]:
        """Return cumulative buckets by upper end, and the sum, of all series or those with one label's value."""
        buckets: dict[float, float] = defaultdict(float)
        total = 0.0
        for (metric, labels), value in self.by_series.items():
            values = dict(labels)
            if only is not None and values.get(only[0]) != only[1]:
                continue
            if metric == f"{name}_bucket":
                buckets[float(values["le"])] += value
            elif metric == f"{name}_sum":
                total += value
        return dict(buckets), total


def growth_of(server: ServerSamples, *, window_begin_s: float) -> Growth:
    """Return by how much the counters of a server grew between its first and its last scrape.

    A counter that falls, or whose process says that it started anew, was reset: it has grown by what it shows then. A
    series that appears after its server's first scrape began at 0. A process that started after `window_begin_s`, and
    all that it counted, belongs to the window.
    """
    times = server.times
    begin_s, end_s = times[0], times[-1]
    starts = sorted(server.started)
    # Clocks of processes and collectors differ: a server that was there from the start is not new.
    is_new = bool(starts) and starts[0][1] > window_begin_s and begin_s > window_begin_s + _SAME_SCRAPE_S
    restarts = [
        # The clock of the process need not be the collector's: only that its start changed counts.
        (before_s, time_s)
        for (before_s, before), (time_s, started) in pairwise(starts)
        if started > before + _SAME_SCRAPE_S
    ]
    seen_resets = {time_s for _, time_s in restarts}
    grown = {}
    for key, series in server.counters.items():
        ordered = sorted(set(series))
        from_zero = is_new or ordered[0][0] > begin_s + _SAME_SCRAPE_S
        total = ordered[0][1] if from_zero else 0.0
        for (before_s, before), (time_s, value) in pairwise(ordered):
            is_reset = value < before or any(before_s < at <= time_s for at in seen_resets)
            if value < before and not any(before_s < at <= time_s for at in seen_resets):
                seen_resets.add(time_s)
            total += value if is_reset else value - before
        grown[key] = total
    return Growth(min(begin_s, window_begin_s) if is_new else begin_s, end_s, grown, len(seen_resets))


def vllm_name(name: str) -> str:
    """Return a metric's name as vLLM writes it: some collectors allow no colon."""
    return f"vllm:{name.removeprefix('vllm_')}" if name.startswith("vllm_") else name


def _is_end(text: str) -> bool:
    """Return whether a label is the upper end of a bucket."""
    try:
        return not math.isnan(float(text))
    except ValueError:
        return False


def _adapters(labels: Mapping[str, str]) -> frozenset[str]:
    both = f"{labels.get('running_lora_adapters', '')},{labels.get('waiting_lora_adapters', '')}"
    return frozenset(name for name in both.split(",") if name)
