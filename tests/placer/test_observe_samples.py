"""What grew between samples of metrics: resets, new series, new servers, histograms, adapters met at scrapes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placer.observing.builder import count_interval
from placer.observing.histograms import lengths_of_histogram
from placer.observing.metrics import observe_metrics
from placer.observing.presence import shares_from_presence
from placer.observing.samples import LORA_INFO, PROMPTS, REQUESTS, RUNNING, STARTED, TrafficSamples, growth_of
from placer.observing.variation import common_variation, pooled_variation
from twin.errors import InputError

EDGES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, math.inf)


def _samples(points: list[tuple[float, float]], *, name: str = REQUESTS, **labels: str) -> TrafficSamples:
    samples = TrafficSamples()
    for time_s, value in points:
        samples.add("server", time_s, name, labels, value)
    return samples


@given(
    lives=st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=6), min_size=1, max_size=4),
    tells_start=st.booleans(),
)
def test_growth_is_all_that_was_counted_but_what_a_restart_hides(*, lives: list[list[int]], tells_start: bool) -> None:
    """Every life of a process counts from 0: its last value is what it counted, and nothing else is known."""
    samples, time_s = TrafficSamples(), 0.0
    for number, steps in enumerate(lives):
        value = 0.0
        for step in steps:
            value += step
            time_s += 10.0
            samples.add("s", time_s, REQUESTS, {}, value)
            if tells_start:
                samples.add("s", time_s, STARTED, {}, 1000.0 * number)
    counted = float(sum(map(sum, lives)) - lives[0][0])
    grown = growth_of(samples.servers["s"], window_begin_s=10.0)
    if tells_start:
        assert grown.total(REQUESTS) == counted
        assert grown.num_resets == len(lives) - 1
    else:
        # A new life that has already counted more than the old one looks like one life.
        assert 0.0 <= grown.total(REQUESTS) <= counted


def test_a_series_that_appears_later_began_at_zero() -> None:
    """A reason of finishing that a server had not yet seen has no series before."""
    samples = _samples([(0.0, 5.0), (10.0, 7.0)], finished_reason="stop")
    samples.add("server", 10.0, REQUESTS, {"finished_reason": "length"}, 3.0)
    assert growth_of(samples.servers["server"], window_begin_s=0.0).total(REQUESTS) == 2.0 + 3.0


def test_a_server_that_starts_in_the_window_brings_all_its_requests() -> None:
    """Its first scrape shows what it served since it started, which belongs to the window."""
    samples = _samples([(50.0, 8.0), (60.0, 9.0)])
    samples.add("server", 50.0, STARTED, {}, 45.0)
    assert growth_of(samples.servers["server"], window_begin_s=0.0).total(REQUESTS) == 9.0
    assert growth_of(samples.servers["server"], window_begin_s=50.0).total(REQUESTS) == 1.0


@given(st.lists(st.integers(1, 500), min_size=1, max_size=300))
def test_lengths_of_a_histogram_keep_mean_and_bounds(lengths: list[int]) -> None:
    """The mean is exact, and no length is beyond the maximum."""
    buckets = {edge: float(sum(length <= edge for length in lengths)) for edge in EDGES}
    found = lengths_of_histogram(buckets, float(sum(lengths)))
    assert found is not None
    assert found.effective_mean == pytest.approx(np.mean(lengths), rel=1e-9)
    assert found.max is not None
    assert max(lengths) <= found.max


def test_the_spread_of_a_histogram_is_near_that_of_the_samples() -> None:
    """For lengths as services have them, the spread is known within a few percent."""
    lengths = np.clip(np.random.default_rng(0).lognormal(4.0, 0.7, 20000).astype(int), 1, 500)
    buckets = {edge: float((lengths <= edge).sum()) for edge in EDGES}
    found = lengths_of_histogram(buckets, float(lengths.sum()))
    assert found is not None
    assert found.std == pytest.approx(lengths.std(), rel=0.05)


@pytest.mark.parametrize("labels", [{}, {"le": "many"}, {"le": "NaN"}])
def test_a_bucket_without_an_end_is_not_counted(labels: dict[str, str]) -> None:
    """A collector that lost or changed the label does not end the reading."""
    samples = TrafficSamples()
    for time_s, count in ((0.0, 0.0), (60.0, 10.0)):
        samples.add("", time_s, REQUESTS, {}, count)
        samples.add("", time_s, f"{PROMPTS}_bucket", {"le": "+Inf"}, count)
        samples.add("", time_s, f"{PROMPTS}_bucket", labels, 7.0 * count)
        samples.add("", time_s, f"{PROMPTS}_sum", {}, 20.0 * count)
    seen = observe_metrics(samples, names=("page",))
    assert seen.prompt_tokens is not None
    assert seen.prompt_tokens.effective_mean == 20.0


def test_a_total_that_is_divided_otherwise_is_not_called_left_out() -> None:
    """Only requests of a server beside others that met adapters are lost."""
    samples = TrafficSamples()
    for time_s in range(0, 61, 15):
        samples.add("one", time_s, REQUESTS, {}, float(time_s))
    alone = observe_metrics(samples, names=("page",))
    assert alone.num_requests == 60.0
    assert not [text for text in alone.warnings if "left out" in text]
    for time_s in range(0, 61, 15):
        samples.add("two", time_s, REQUESTS, {}, float(time_s))
        samples.add("two", time_s, LORA_INFO, {"running_lora_adapters": "a0"}, float(time_s))
        samples.add("two", time_s, RUNNING, {}, 1.0)
    both = observe_metrics(samples, names=("page",))
    assert [text for text in both.warnings if "60 requests are is not known" in text and "left out" in text]


def test_a_histogram_without_requests_has_no_lengths() -> None:
    """Nothing is not a length of 0."""
    assert lengths_of_histogram(dict.fromkeys(EDGES, 0.0), 0.0) is None


def test_presence_recovers_the_shares_of_a_simulated_server() -> None:
    """Poisson requests with drawn stays, looked at every second: shares are met within their stated uncertainty."""
    generator = np.random.default_rng(1)
    rates, horizon_s = {"a": 2.0, "b": 0.5, "c": 0.1}, 4000.0
    looks: list[set[str]] = [set() for _ in range(int(horizon_s))]
    for name, rate in rates.items():
        for start in generator.random(generator.poisson(rate * horizon_s)) * horizon_s:
            for look in range(math.ceil(start), min(math.ceil(start + generator.exponential(0.5)), len(looks))):
                looks[look].add(name)
    found = shares_from_presence([frozenset(look) for look in looks], span_s=horizon_s, stay_s=0.5)
    for name, rate in rates.items():
        share = rate / sum(rates.values())
        assert abs(found.shares[name] - share) < 3.0 * found.variation[name] * share + 0.01
    assert sum(found.shares.values()) == pytest.approx(1.0)


def test_an_idle_server_that_still_lists_adapters_has_none() -> None:
    """The last list stays in place when the last request of vLLM ends."""
    samples = TrafficSamples()
    for number in range(40):
        time_s, is_busy = float(number), number % 4 == 0
        samples.add("s", time_s, REQUESTS, {}, float(number))
        samples.add("s", time_s, RUNNING, {}, 1.0 if is_busy else 0.0)
        name = "a" if number < 20 else "b"
        samples.add("s", time_s, LORA_INFO, {"running_lora_adapters": name}, time_s)
        # An older list stays on the page beside it.
        samples.add("s", time_s, LORA_INFO, {"running_lora_adapters": "a,b,c"}, -1.0)
    seen = observe_metrics(samples, names=("s",))
    assert set(seen.adapters) == {"a", "b"}
    assert seen.basis == "presence"
    assert seen.adapters["a"].num_requests == pytest.approx(seen.adapters["b"].num_requests)
    assert sum(traffic.num_requests for traffic in seen.adapters.values()) == pytest.approx(39.0, abs=1.0)


def test_a_counter_by_adapter_is_counted_and_the_base_model_left_out() -> None:
    """A gateway's counter, or a vLLM whose label names the adapter."""
    samples = TrafficSamples(request_counter="gateway_requests_total")
    for time_s in (0.0, 100.0):
        for name, rate in (("a", 2.0), ("b", 0.5), ("base", 9.0)):
            samples.add("g", time_s, "gateway_requests_total", {"model": name}, rate * time_s)
    seen = observe_metrics(samples, names=("g",), adapter_label="model", base_models=["base"])
    assert {name: traffic.num_requests for name, traffic in seen.adapters.items()} == {"a": 200.0, "b": 50.0}
    assert (seen.basis, seen.window_s, seen.num_requests) == ("counted", 100.0, 250.0)
    with pytest.raises(InputError, match="must have the label lora"):
        observe_metrics(samples, names=("g",), adapter_label="lora")


def test_requests_that_arrived_and_did_not_end_count() -> None:
    """A queue that grows hides demand from counters of what ended."""
    samples = _samples([(0.0, 0.0), (100.0, 50.0)])
    for time_s, waiting in ((0.0, 0.0), (100.0, 30.0)):
        samples.add("server", time_s, "vllm:num_requests_waiting", {}, waiting)
        samples.add("server", time_s, LORA_INFO, {"running_lora_adapters": "a"}, time_s)
    seen = observe_metrics(samples, names=("s",))
    assert seen.num_requests == pytest.approx(80.0)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([(0.0, 5.0)], "must be sampled twice"),
        ([(0.0, 5.0), (60.0, 5.0)], "did not grow in 60 s"),
    ],
)
def test_an_empty_window_is_refused(points: list[tuple[float, float]], message: str) -> None:
    """Rates of nothing are no rates."""
    with pytest.raises(InputError, match=message):
        observe_metrics(_samples(points), names=("s",))


def test_a_missing_counter_is_named() -> None:
    """Such as a page of another program."""
    samples = TrafficSamples()
    samples.add("s", 0.0, RUNNING, {}, 1.0)
    with pytest.raises(InputError, match=REQUESTS):
        observe_metrics(samples, names=("s",))


def test_a_restart_a_gap_and_a_clock_that_is_ahead_are_told() -> None:
    """What is lost, what was not seen, and whose clock counts."""
    samples = _samples([(0.0, 50.0), (50.0, 60.0), (100.0, 4.0)])
    for time_s in (0.0, 50.0):
        samples.add("late", time_s, REQUESTS, {}, time_s)
    samples.add("server", 50.0, LORA_INFO, {"running_lora_adapters": "a"}, 50.0 + 90.0)
    warnings = " ".join(observe_metrics(samples, names=("s",)).warnings)
    assert "server started anew (1)" in warnings
    assert "late was seen in 50 of 100 s" in warnings
    assert "the clock of server is 90 s ahead" in warnings


@given(num_requests=st.integers(0, 10**6), factor=st.floats(1.0, 50.0))
def test_the_interval_of_a_count_solves_its_inequality(num_requests: int, factor: float) -> None:
    """Both ends m satisfy (n - m)^2 = z^2 m in units of independent events."""
    low, high = count_interval(num_requests, num_requests * factor)
    unit = factor if num_requests else 1.0
    for end in (low, high):
        assert (num_requests - end) ** 2 == pytest.approx(1.96**2 * end * unit, rel=1e-3, abs=1e-6 * high**2)
    assert low <= num_requests <= high


def test_variation_beyond_chance_is_found_and_chance_is_not() -> None:
    """A rate that is three times as high in half of the window has a relative deviation of one half."""
    generator = np.random.default_rng(0)
    even = np.sort(generator.random(6000)) * 100.0
    uneven = np.sort(np.concatenate([generator.random(4500) * 50.0, 50.0 + generator.random(1500) * 50.0]))
    assert common_variation(even, 100.0) == pytest.approx(0.0, abs=0.03)
    assert common_variation(uneven, 100.0) == pytest.approx(0.5, abs=0.05)
    assert common_variation(even[:20], 100.0) is None


@given(st.lists(st.tuples(st.floats(0.01, 100.0), st.floats(0.0, 100.0)), min_size=1, max_size=20))
def test_the_pooled_variation_gives_the_sum_its_variance(rates: list[tuple[float, float]]) -> None:
    """So that the load of the fleet is as uncertain as the counts leave it."""
    cv = pooled_variation(rates)
    assert cv**2 * sum(rate**2 for rate, _ in rates) == pytest.approx(sum(variance for _, variance in rates))
