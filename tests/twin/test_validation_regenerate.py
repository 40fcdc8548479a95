"""Traffic that is drawn again from a table's rates and mean lengths."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from twin.validation.regenerate import (
    LEAST_PROMPT_TOKENS,
    MOST_PROMPT_TOKENS,
    MOST_TOTAL_TOKENS,
    OUTPUT_MEAN_SCALE,
    regenerate_traffic,
)
from twin.validation.runs import Traffic

RATES = (0.1, 0.05, 0.05, 0.025, 0.025, 0.025)


def _traffic(rates_rps: tuple[float, ...] = RATES, ranks: tuple[int, ...] = (8, 16)) -> Traffic:
    return Traffic(rates_rps=rates_rps, ranks=ranks, mean_prompt_tokens=222.7, mean_output_tokens=196.1)


@given(
    rates=st.lists(st.sampled_from([0.0, 0.01, 0.2]), min_size=1, max_size=12),
    ranks=st.lists(st.sampled_from([8, 16, 32]), min_size=1, max_size=3),
    seed=st.integers(0, 5),
)
def test_adapters_keep_the_rates_and_the_cycled_ranks(rates: list[float], ranks: list[int], seed: int) -> None:
    """One adapter per rate; each rank as often as cycling gives it, whatever the order."""
    workload, requests = regenerate_traffic(_traffic(tuple(rates), tuple(ranks)), run_id="R1", seed=seed, horizon_s=60)
    assert [adapter.rate_rps for adapter in workload.adapters] == rates
    cycled = [ranks[index % len(ranks)] for index in range(len(rates))]
    assert Counter(adapter.rank for adapter in workload.adapters) == Counter(cycled)
    assert set(requests.adapter.tolist()) <= {index for index, rate in enumerate(rates) if rate > 0}


def test_ranks_do_not_follow_the_rates() -> None:
    """Under another seed the same rates meet other ranks."""
    dealt = {
        tuple(
            adapter.rank for adapter in regenerate_traffic(_traffic(), run_id="R1", seed=seed, horizon_s=1)[0].adapters
        )
        for seed in range(8)
    }
    assert len(dealt) > 1


def test_a_seed_draws_the_same_requests_again() -> None:
    """Of the same run; another seed and another run draw others."""
    _, first = regenerate_traffic(_traffic(), run_id="R1", seed=3, horizon_s=600)
    _, again = regenerate_traffic(_traffic(), run_id="R1", seed=3, horizon_s=600)
    for column in ("arrival_ns", "adapter", "prompt_tokens", "output_tokens"):
        assert np.array_equal(getattr(first, column), getattr(again, column))
    for run_id, seed in (("R1", 4), ("R2", 3)):
        _, other = regenerate_traffic(_traffic(), run_id=run_id, seed=seed, horizon_s=600)
        assert not np.array_equal(first.arrival_ns, other.arrival_ns)


def test_requests_have_the_rates_and_mean_lengths_of_the_run() -> None:
    """Within four standard errors, over 200,000 expected requests."""
    horizon_s = 200_000 / sum(RATES)
    _, requests = regenerate_traffic(_traffic(), run_id="R1", seed=0, horizon_s=horizon_s)
    counts = np.bincount(requests.adapter, minlength=len(RATES))
    expected = np.array(RATES) * horizon_s
    assert np.all(np.abs(counts - expected) < 4.0 * np.sqrt(expected))
    for drawn, mean in ((requests.prompt_tokens, 222.7), (requests.output_tokens, OUTPUT_MEAN_SCALE * 196.1)):
        error = float(drawn.std()) / np.sqrt(len(drawn))
        # Cutting the sum of both lengths takes a little off the mean.
        assert abs(float(drawn.mean()) - mean) < 4.0 * error + 0.005 * mean


def test_lengths_stay_within_the_limits_of_the_client() -> None:
    """Prompts of 4 to 1024 tokens, 2048 with the output."""
    _, requests = regenerate_traffic(_traffic(), run_id="R1", seed=0, horizon_s=400_000)
    assert int(requests.prompt_tokens.min()) >= LEAST_PROMPT_TOKENS
    assert int(requests.prompt_tokens.max()) <= MOST_PROMPT_TOKENS
    assert int(requests.output_tokens.min()) >= 1
    assert int((requests.prompt_tokens + requests.output_tokens).max()) <= MOST_TOTAL_TOKENS
