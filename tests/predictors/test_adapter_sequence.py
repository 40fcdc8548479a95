"""Populations as sequences: beginnings that resemble the whole, and requests whoever else is served."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.adapter_sequence import AdapterSequence, NestedTraffic
from predictors.features import adapter_aggregates
from twin.lengths import LengthDistribution
from twin.workload import Adapter

HORIZON_S = 50.0


def _adapters(rates: list[float]) -> list[Adapter]:
    length = LengthDistribution(mean=100.0, std=30.0)
    return [
        Adapter(name=f"a{index}", rank=(8, 16)[index % 2], rate_rps=rate, prompt_tokens=length, output_tokens=length)
        for index, rate in enumerate(rates)
    ]


RATES = st.lists(st.floats(0.01, 5.0), min_size=1, max_size=40)


@given(RATES)
def test_a_round_has_every_adapter_once(rates: list[float]) -> None:
    """And the next round has copies of them under other names."""
    adapters = _adapters(rates)
    sequence = AdapterSequence(adapters)
    first, second = sequence.between(0, len(rates)), sequence.between(len(rates), 2 * len(rates))
    assert sorted(adapter.name for adapter in first) == sorted(adapter.name for adapter in adapters)
    assert [adapter.name for adapter in second] == [f"{adapter.name}#2" for adapter in first]
    assert [adapter.rate_rps for adapter in second] == [adapter.rate_rps for adapter in first]


@given(RATES, st.integers(0, 120))
def test_aggregates_and_load_are_those_of_the_first_adapters(rates: list[float], count: int) -> None:
    """Whatever the number of rounds."""
    sequence = AdapterSequence(_adapters(rates))
    expected = adapter_aggregates(sequence.between(0, count)).sum(axis=0)
    assert sequence.aggregates(np.array([count]))[0] == pytest.approx(expected)
    assert sequence.offered_tps(count) == pytest.approx(float(expected[[3, 4]].sum()))


def test_the_order_of_the_file_does_not_matter() -> None:
    """The population is a set."""
    adapters = _adapters([0.1, 0.2, 0.3, 0.4, 0.5])
    assert AdapterSequence(adapters).between(0, 9) == AdapterSequence(adapters[::-1]).between(0, 9)


def test_beginnings_resemble_the_whole() -> None:
    """A quarter of an uneven population has about a quarter of its load."""
    sequence = AdapterSequence(_adapters(list(np.geomspace(0.01, 5.0, 64))))
    assert sequence.offered_tps(16) == pytest.approx(sequence.offered_tps(64) / 4, rel=0.2)


@given(RATES, st.integers(1, 60), st.integers(1, 60))
def test_an_adapter_has_the_same_requests_whoever_else_is_served(rates: list[float], one: int, other: int) -> None:
    """The requests of fewer adapters are those of more without the others', whichever was asked for first."""
    few, many = min(one, other), max(one, other)
    sequence = AdapterSequence(_adapters(rates))
    traffic = NestedTraffic(sequence, horizon_s=HORIZON_S, seed=3, index=0)
    asked = {count: traffic.requests(count) for count in (one, other)}
    kept = asked[many].adapter < few
    for name in ("arrival_ns", "adapter", "prompt_tokens", "output_tokens"):
        assert getattr(asked[many], name)[kept].tolist() == getattr(asked[few], name).tolist()
    again = NestedTraffic(sequence, horizon_s=HORIZON_S, seed=3, index=0)
    assert again.requests(few).arrival_ns.tolist() == asked[few].arrival_ns.tolist()


def test_seeds_and_indices_give_other_requests() -> None:
    """Of as many adapters, at the rates that they have."""
    sequence = AdapterSequence(_adapters([2.0, 3.0]))
    tables = [
        NestedTraffic(sequence, horizon_s=1_000.0, seed=seed, index=index).requests(2)
        for seed, index in ((0, 0), (0, 1), (1, 0))
    ]
    assert len({tuple(table.arrival_ns[:10].tolist()) for table in tables}) == 3
    for table in tables:
        assert len(table) == pytest.approx(5_000, rel=0.06)
