"""Populations made from features have the features they were made from."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.canonical import canonical_adapters, canonical_rates
from predictors.features import AGGREGATE_NAMES, adapter_aggregates
from tests.predictors.populations import CHAT_OUTPUT, CHAT_PROMPT
from twin.workload import Adapter


@st.composite
def like_adapters(draw: st.DrawFn) -> tuple[Adapter, ...]:
    """Draw adapters with chat lengths and different rates and ranks."""
    rates = draw(st.lists(st.floats(0.01, 3.0), min_size=1, max_size=20))
    ranks = draw(st.lists(st.sampled_from([8, 16, 32]), min_size=len(rates), max_size=len(rates)))
    gap_cv = draw(st.sampled_from([0.0, 0.5, 1.0, 3.0]))
    return tuple(
        Adapter.model_validate(
            {
                "name": f"a{i}",
                "rank": rank,
                "rate_rps": rate,
                "prompt_tokens": CHAT_PROMPT,
                "output_tokens": CHAT_OUTPUT,
                "gap_cv": gap_cv,
            }
        )
        for i, (rate, rank) in enumerate(zip(rates, ranks, strict=True))
    )


@given(like_adapters())
def test_the_sums_are_met(adapters: tuple[Adapter, ...]) -> None:
    """Numbers per rank, rates and mean lengths exactly; squares of the rates never beyond what was asked."""
    wanted = dict(zip(AGGREGATE_NAMES, adapter_aggregates(adapters).sum(axis=0).tolist(), strict=True))
    made = canonical_adapters(np.array(list(wanted.values())), max_model_len=131_072)
    actual = dict(zip(AGGREGATE_NAMES, adapter_aggregates(made).sum(axis=0).tolist(), strict=True))
    for name in ("num_adapters", "sum_rate_rps", "sum_prompt_tps", "sum_output_tps", "num_rank_8", "num_rank_32"):
        assert actual[name] == pytest.approx(wanted[name], rel=1e-6), name
    for name in ("sum_kv_token_steps", "sum_prompt_sq_tps"):
        assert actual[name] == pytest.approx(wanted[name], rel=0.02), name
    assert actual["sum_rate_cv_sq"] == pytest.approx(wanted["sum_rate_cv_sq"], rel=3e-3)
    assert actual["sum_rate_sq"] <= wanted["sum_rate_sq"] * (1.0 + 1e-6)


@given(st.integers(2, 200), st.floats(0.01, 100.0), st.floats(1.0, 1.9))
def test_rates_meet_sum_and_spread(count: int, total: float, spread: float) -> None:
    """A moderate spread can be had by any number of adapters."""
    squares = min(spread, 0.5 * count) * total**2 / count
    squares = max(squares, total**2 / count)
    rates = canonical_rates(count, total, squares)
    assert rates.sum() == pytest.approx(total)
    assert np.sum(rates**2) == pytest.approx(squares, rel=1e-3)


def test_no_traffic_gives_idle_adapters() -> None:
    """Zero is a rate, too."""
    assert canonical_rates(3, 0.0, 0.0).tolist() == [0.0, 0.0, 0.0]
    aggregate = np.zeros(len(AGGREGATE_NAMES))
    aggregate[[AGGREGATE_NAMES.index("num_adapters"), AGGREGATE_NAMES.index("num_rank_16")]] = 2.0
    made = canonical_adapters(aggregate, max_model_len=4096)
    assert [(adapter.rank, adapter.rate_rps) for adapter in made] == [(16, 0.0), (16, 0.0)]


def test_prompts_stay_below_the_context() -> None:
    """A request longer than the context would be refused by the engine."""
    aggregate = adapter_aggregates(
        [Adapter(name="a", rank=8, rate_rps=1.0, prompt_tokens=CHAT_PROMPT, output_tokens=CHAT_OUTPUT)]
    )
    adapter = canonical_adapters(aggregate[0], max_model_len=512)[0]
    assert adapter.prompt_tokens.max == 256
