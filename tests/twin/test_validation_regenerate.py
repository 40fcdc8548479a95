"""Traffic that is drawn again from a table's rates and mean lengths."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.lengths import LengthDistribution
from twin.validation.regenerate import OUTPUT_MEAN_SCALE, draw_lengths, regenerate_traffic
from twin.validation.runs import LEAST_PROMPT_TOKENS, MOST_PROMPT_TOKENS, MOST_TOTAL_TOKENS, Traffic

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


def test_long_prompts_have_short_outputs() -> None:
    """Drawn together, running requests hold as much KV as was measured: about 362 tokens in the mean."""
    _, requests = regenerate_traffic(_traffic(), run_id="R1", seed=0, horizon_s=300_000 / sum(RATES))
    prompts, outputs = requests.prompt_tokens.astype(float), requests.output_tokens.astype(float)
    held = (outputs * (prompts + 0.5 * outputs)).sum() / outputs.sum()
    assert 345.0 < held < 362.0
    assert np.corrcoef(prompts, outputs)[0, 1] < -0.25


@pytest.mark.parametrize(("mean", "std"), [(223.0, 247.0), (10.0, 3.0), (1000.0, 400.0), (1024.0, 5.0), (4.0, 0.0)])
def test_drawn_lengths_keep_the_mean_within_the_limits(mean: float, std: float) -> None:
    """Also a spread that no distribution between the limits can have, and a mean at a limit."""
    law = LengthDistribution(mean=mean, std=std, min=4, max=1024)
    drawn, _ = draw_lengths(20_000, law, LengthDistribution.constant(1), np.random.default_rng(0))
    assert int(drawn.min()) >= 4
    assert int(drawn.max()) <= 1024
    assert abs(float(drawn.mean()) - mean) <= 4.0 * max(float(drawn.std()), 0.5) / np.sqrt(len(drawn)) + 0.01
