"""Requests drawn together follow the same law as those that the twin draws adapter by adapter."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from predictors.traffic import Traffic
from tests.predictors.populations import CHAT_OUTPUT, CHAT_PROMPT, adapter_sets
from twin.lengths import LengthDistribution
from twin.workload import NANOSECONDS, Adapter, RequestTable, Workload

HORIZON_S = 200.0
NUM_SEEDS = 60


def bursty_adapters(gap_cv: float, gap_law: str) -> tuple[Adapter, ...]:
    """Return three adapters with different rates and lengths and one law of the gaps."""
    return tuple(
        Adapter.model_validate(
            {
                "name": f"a{index}",
                "rank": 8,
                "rate_rps": rate,
                "prompt_tokens": prompt,
                "output_tokens": CHAT_OUTPUT,
                "gap_cv": gap_cv,
                "gap_law": gap_law,
            }
        )
        for index, (rate, prompt) in enumerate(
            [(0.02, CHAT_PROMPT), (0.3, LengthDistribution.constant(64)), (1.5, CHAT_PROMPT)]
        )
    )


def window_counts(tables: list[RequestTable], adapter: int) -> NDArray[np.int64]:
    """Return the requests of an adapter in each of ten windows of each table, int64 [tables, 10]."""
    edges = np.linspace(0.0, HORIZON_S * NANOSECONDS, 11)
    return np.array([np.histogram(table.arrival_ns[table.adapter == adapter], edges)[0] for table in tables])


@pytest.mark.parametrize(
    ("gap_cv", "gap_law"),
    [(0.0, "gamma"), (0.5, "gamma"), (1.0, "gamma"), (3.0, "gamma"), (0.6, "lognormal"), (2.5, "lognormal")],
)
def test_counts_have_the_moments_of_the_twins(gap_cv: float, gap_law: str) -> None:
    """Mean and variance of the requests in windows, from the first window on, for rare and for frequent adapters."""
    adapters = bursty_adapters(gap_cv, gap_law)
    workload, traffic = Workload(adapters=adapters), Traffic.of(adapters)
    theirs = [workload.requests(horizon_s=HORIZON_S, seed=seed) for seed in range(NUM_SEEDS)]
    ours = [
        traffic.draw(scale=1.0, horizon_s=HORIZON_S, generator=np.random.default_rng(seed)) for seed in range(NUM_SEEDS)
    ]
    for index, adapter in enumerate(adapters):
        expected = adapter.rate_rps * HORIZON_S / 10
        their_counts, our_counts = window_counts(theirs, index), window_counts(ours, index)
        # Five standard errors of the mean over all windows; the counts of bursty traffic spread by about cv^2.
        slack = 5.0 * np.sqrt(max(gap_cv**2, 0.05) * expected / our_counts.size) + 0.02 * expected
        assert our_counts.mean() == pytest.approx(expected, abs=slack)
        # Nobody begins to watch at a request: the first window is like the others.
        assert our_counts[:, 0].mean() == pytest.approx(expected, abs=4.0 * slack)
        if expected > 1.0:
            assert our_counts.var() == pytest.approx(their_counts.var(), rel=0.35, abs=0.3)


def test_gaps_and_lengths_are_distributed_as_the_twins() -> None:
    """The whole distributions, not only moments: largest distance between the empirical ones (Kolmogorov-Smirnov)."""
    adapters = bursty_adapters(2.0, "gamma")
    horizon_s = 6000.0
    theirs = Workload(adapters=adapters).requests(horizon_s=horizon_s, seed=3)
    ours = Traffic.of(adapters).draw(scale=1.0, horizon_s=horizon_s, generator=np.random.default_rng(3))
    for name in ("prompt_tokens", "output_tokens"):
        assert _largest_distance(getattr(theirs, name), getattr(ours, name)) < 0.035
    busy = [np.diff(table.arrival_ns[table.adapter == 2]) for table in (theirs, ours)]
    assert _largest_distance(*busy) < 0.035


def _largest_distance(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    values = np.sort(np.concatenate([first, second]))
    ranks = [np.searchsorted(np.sort(sample), values, side="right") / len(sample) for sample in (first, second)]
    return float(np.abs(ranks[0] - ranks[1]).max())


@given(adapter_sets(), st.floats(0.1, 3.0), st.integers(0, 5))
def test_requests_are_sorted_and_within_the_horizon(adapters: tuple[Adapter, ...], scale: float, seed: int) -> None:
    """A request table checks itself; idle adapters ask for nothing, and the same seed draws the same requests."""
    traffic = Traffic.of(adapters)
    first, second = (traffic.draw(scale=scale, horizon_s=50.0, generator=np.random.default_rng(seed)) for _ in range(2))
    assert len(first) == 0 or first.arrival_ns[-1] <= 50.0 * NANOSECONDS
    assert all(adapters[index].rate_rps > 0.0 for index in np.unique(first.adapter))
    np.testing.assert_array_equal(first.arrival_ns, second.arrival_ns)
    np.testing.assert_array_equal(first.output_tokens, second.output_tokens)


def test_the_scale_multiplies_the_rates() -> None:
    """Three times the load is three times the requests, whatever the law of the gaps."""
    for gap_cv in (0.0, 1.0, 2.0):
        traffic = Traffic.of(bursty_adapters(gap_cv, "gamma"))
        table = traffic.draw(scale=3.0, horizon_s=4000.0, generator=np.random.default_rng(1))
        assert len(table) == pytest.approx(3.0 * 1.82 * 4000.0, rel=0.08)
