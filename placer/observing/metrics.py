"""From samples of vLLM's metrics to what they say about the traffic of its adapters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from placer.observing.evidence import AdapterTraffic, Observation, RateBasis, Remarks
from placer.observing.histograms import lengths_of_histogram
from placer.observing.presence import shares_from_presence
from placer.observing.samples import (
    LATENCY,
    OUTPUTS,
    PROMPTS,
    REQUESTS,
    STARTED,
    Growth,
    ServerSamples,
    TrafficSamples,
    growth_of,
)
from twin.errors import InputError
from twin.lengths import LengthDistribution

# The label with which vLLM names the served model; some gateways name the adapter in it.
MODEL_LABEL = "model_name"
# Of the window, without which a server's own span counts and the user is told.
_LEAST_COVERAGE = 0.9
# A server's clock that is ahead of its collector's by more than a scrape takes.
_SKEW_S = 5.0

PER_ADAPTER = (
    "vLLM does not count requests by adapter: the label model_name is the served model's for all of them, and "
    "vllm:lora_requests_info only lists which adapters have a request at a scrape"
)
LENGTHS_OF_ALL = "lengths of each adapter: vLLM's histograms are of all requests of a server"


@dataclass(frozen=True)
class _Server:
    """A server's samples, and what they say."""

    name: str
    samples: ServerSamples
    growth: Growth
    num_requests: float


def observe_metrics(
    samples: TrafficSamples,
    *,
    names: tuple[str, ...],
    adapter_label: str = MODEL_LABEL,
    known_adapters: Collection[str] = (),
    base_models: Collection[str] = (),
    told: Sequence[str] = (),
) -> Observation:
    """Return what metrics say.

    Requests of an adapter are counted if the counter has its name in the label, which vLLM's has not; else estimated
    (`placer.observing.presence`).

    Parameters
    ----------
    samples
        Of all servers, on one clock.
    names
        Files or addresses, for messages.
    adapter_label
        Label of the counter of requests with the adapter's name.
    known_adapters
        Names by which vLLM's own counter is seen to tell adapters apart.
    base_models
        Values of the label that are no adapters.
    told
        Warnings of who took the samples.

    Raises
    ------
    InputError
        When there is no counter of requests, it was sampled once only, or nothing finished.
    """
    servers, window = _servers(samples, names)
    remarks = Remarks(warnings=list(told))
    window_s = window[1] - window[0]
    _check_coverage(servers, window, remarks)
    counted = _counted(
        servers,
        remarks,
        counter=samples.request_counter,
        label=adapter_label,
        known_adapters=known_adapters,
        base_models=base_models,
    )
    adapters: dict[str, AdapterTraffic] = counted
    basis: RateBasis = "counted"
    if not counted:
        adapters, basis = _by_presence(servers, remarks)
    num_requests = sum(traffic.num_requests for traffic in adapters.values()) or sum(s.num_requests for s in servers)
    if num_requests <= 0.0:
        raise InputError(
            f"the window must have requests. The counters of {_listed(names)} did not grow in {window_s:g} s.",
            field="window",
            value=window_s,
            hint="watch while the fleet is used, or give a longer --window",
        )
    prompts, outputs = (_lengths(servers, name) for name in (PROMPTS, OUTPUTS))
    remarks.known.append(
        f"{num_requests:,.0f} requests of {len(servers)} servers in {window_s:,.0f} s, by their counters"
    )
    if prompts is not None and outputs is not None:
        remarks.known.append(
            f"lengths of all requests, by histograms: {prompts.effective_mean:.4g} prompt and "
            f"{outputs.effective_mean:.4g} output tokens in the mean, which is exact"
        )
        remarks.assumed.append("lengths are lognormal, with the spread that the buckets of the histograms allow")
    return Observation(
        kind="metrics",
        names=names,
        window_s=window_s,
        begin_s=window[0],
        num_requests=num_requests,
        adapters=adapters,
        basis=basis,
        prompt_tokens=prompts,
        output_tokens=outputs,
        known=tuple(remarks.known),
        unknown=tuple(remarks.unknown),
        assumed=tuple(remarks.assumed),
        warnings=tuple(remarks.warnings),
    )


def _servers(samples: TrafficSamples, names: tuple[str, ...]) -> tuple[list[_Server], tuple[float, float]]:
    """Return the servers, and when the window begins and ends."""
    found = samples.traffic_servers()
    counting = {
        name: server
        for name, server in found.items()
        if any(metric == samples.request_counter for metric, _ in server.counters)
    }
    if not counting:
        raise InputError(
            f"the samples must have the counter of requests {samples.request_counter}. {_listed(names)} lacks it.",
            field=samples.request_counter,
            hint="give the metrics of a vLLM server, or name another counter by --request-counter",
        )
    times = [time_s for server in counting.values() for time_s in server.times]
    begin_s, end_s = min(times), max(times)
    if end_s <= begin_s:
        raise InputError(
            f"counters must be sampled twice: rates are differences. {_listed(names)} has one scrape.",
            field="samples",
            value=1,
            hint="save a second page later, give a longer --window, or the address to watch: http://SERVER:8000/metrics",
        )
    servers = []
    for name, server in counting.items():
        growth = growth_of(server, window_begin_s=begin_s)
        finished = growth.total(samples.request_counter)
        servers.append(_Server(name, server, growth, max(finished + _arrived_more(server, growth), 0.0)))
    return servers, (begin_s, end_s)


def _arrived_more(server: ServerSamples, growth: Growth) -> float:
    """Return by how much more requests there are in the server at the end: they arrived and did not end."""
    if growth.num_resets or len(server.in_system) < 2:
        return 0.0
    return server.in_system[max(server.in_system)] - server.in_system[min(server.in_system)]


def _check_coverage(servers: list[_Server], window: tuple[float, float], remarks: Remarks) -> None:
    window_s = window[1] - window[0]
    for server in servers:
        if server.growth.num_resets:
            remarks.warnings.append(
                f"{server.name or 'the server'} started anew ({server.growth.num_resets}): what it counted between its "
                "last scrape and that is lost"
            )
        covered_s = server.growth.end_s - server.growth.begin_s
        if covered_s < _LEAST_COVERAGE * window_s:
            remarks.warnings.append(
                f"{server.name or 'the server'} was seen in {covered_s:,.0f} of {window_s:,.0f} s; its requests at "
                "other times are not counted"
            )
        ahead_s = max((state.written_s - time_s for time_s, state in server.samples.presence.items()), default=0.0)
        if ahead_s > _SKEW_S:
            remarks.warnings.append(
                f"the clock of {server.name or 'the server'} is {ahead_s:,.0f} s ahead of its collector's; the "
                "collector's counts here"
            )
        if not server.samples.started:
            remarks.assumed.append(
                f"{server.name or 'the server'} did not restart unseen: {STARTED} is not among the samples"
            )


def _counted(
    servers: list[_Server],
    remarks: Remarks,
    *,
    counter: str,
    label: str,
    known_adapters: Collection[str],
    base_models: Collection[str],
) -> dict[str, AdapterTraffic]:
    """Return the requests that the counter has by adapter; empty: it does not tell adapters apart."""
    grown: dict[str, float] = defaultdict(float)
    for server in servers:
        for name, value in server.growth.by_label(counter, label).items():
            grown[name] += value
    listed = {name for server in servers for look in server.samples.presence.values() for name in look.adapters}
    adapters = {name: value for name, value in grown.items() if name not in base_models}
    is_own = counter != REQUESTS
    if not adapters or not (is_own or set(adapters) & (set(known_adapters) | listed)):
        if is_own:
            raise InputError(
                f"the counter {counter} must have the label {label} with the adapter's name. It has none.",
                field="adapter_label",
                value=label,
                hint="name the label by --adapter-label",
            )
        return {}
    if not is_own:
        base = sorted(set(adapters) - set(known_adapters) - listed)
        adapters = {name: value for name, value in adapters.items() if name not in base}
        if base:
            remarks.assumed.append(f"{_listed(base)} in the label {label}: no adapters, left out")
    remarks.known.append(f"requests of each adapter, by the label {label} of {counter}")
    return {
        name: AdapterTraffic(
            num_requests=value,
            variance=value,
            prompt_tokens=_lengths(servers, PROMPTS, only=(label, name)),
            output_tokens=_lengths(servers, OUTPUTS, only=(label, name)),
        )
        for name, value in adapters.items()
    }


def _by_presence(servers: list[_Server], remarks: Remarks) -> tuple[dict[str, AdapterTraffic], RateBasis]:
    remarks.unknown += [f"requests of each adapter: {PER_ADAPTER}", LENGTHS_OF_ALL]
    expected: dict[str, float] = defaultdict(float)
    variance: dict[str, float] = defaultdict(float)
    num_looks, missed = 0.0, []
    for server in servers:
        looks = _looks(server.samples)
        stays = server.growth.total(f"{LATENCY}_count")
        stay_s = server.growth.total(f"{LATENCY}_sum") / stays if stays > 0.0 else None
        found = shares_from_presence(looks, span_s=server.growth.end_s - server.growth.begin_s, stay_s=stay_s)
        if not found.shares:
            if server.num_requests > 0.0:
                missed.append(
                    f"no scrape of {server.name or 'the server'} met an adapter with a request: whose its "
                    f"{server.num_requests:,.0f} requests are is not known, and they are left out"
                )
            continue
        num_looks += found.num_looks
        for name, share in found.shares.items():
            requests = share * server.num_requests
            expected[name] += requests
            variance[name] += requests + (requests * found.variation[name]) ** 2
    if not expected:
        # The total stands, and is divided otherwise.
        return {}, "shared evenly"
    remarks.warnings += missed
    remarks.assumed += [
        (
            f"shares of the adapters follow from how often scrapes meet them with a request (about {num_looks:,.0f} "
            "independent looks): Poisson arrivals, and the same mean time in the server for all"
        ),
        "requests to the base model are none: they would be counted as the adapters'",
    ]
    remarks.unknown.append("adapters that no scrape met with a request")
    return {name: AdapterTraffic(value, variance[name]) for name, value in expected.items()}, "presence"


def _looks(server: ServerSamples) -> list[frozenset[str]]:
    """Return the adapters with requests at each scrape; none while the server is idle, whatever it wrote last."""
    looks = []
    for time_s in sorted(set(server.presence) | set(server.in_system)):
        state = server.presence.get(time_s)
        is_idle = server.in_system.get(time_s, 1.0) <= 0.0
        looks.append(frozenset() if state is None or is_idle else state.adapters)
    return looks


def _lengths(servers: list[_Server], name: str, *, only: tuple[str, str] | None = None) -> LengthDistribution | None:
    buckets: dict[float, float] = defaultdict(float)
    total = 0.0
    for server in servers:
        own, tokens = server.growth.histogram(name, only=only)
        total += tokens
        for end, count in own.items():
            buckets[end] += count
    return lengths_of_histogram(buckets, total)


def _listed(names: Collection[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")
