"""Functions of a set's sums as surrogates: asked one by one or with arrays, exactly, and checked."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from predictors.aggregate_oracle import AggregateOracle, largest_ranks
from predictors.features import AGGREGATE_NAMES, adapter_aggregates, build_features, engine_row
from tests.solvers.problems import make_adapter
from twin.engine import EngineConfig, LoraRank
from twin.errors import SurrogateError

COLUMN = {name: index for index, name in enumerate(AGGREGATE_NAMES)}


def by_branches(  # noqa: PLR0917 - the signature that users write
    n: int, sum_rate: float, sum_rate_sq: float, sum_rate_prompt: float, sum_rate_output: float, max_rank: int
) -> tuple[bool, int]:
    """Decide with branches, which arrays cannot take."""
    del sum_rate_sq
    for slots in (8, 16, 32):
        if sum_rate_prompt + 2.0 * sum_rate_output + 10.0 * max(0, n - slots) + slots * max_rank < 4000.0 * sum_rate**0:
            return True, slots
    return False, -1


def by_arrays(  # noqa: PLR0917 - the signature that users write
    n: Any, sum_rate: Any, sum_rate_sq: Any, sum_rate_prompt: Any, sum_rate_output: Any, max_rank: Any
) -> tuple[Any, Any]:
    """Decide with arithmetic that works for numbers and for arrays."""
    load = sum_rate_prompt + 2.0 * sum_rate_output + sum_rate + sum_rate_sq
    return load + 3.0 * n + max_rank < 3000.0, 8 + n - n % 8


def random_rows(seed: int, count: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return aggregates of random sets and their largest ranks."""
    generator = np.random.default_rng(seed)
    ranks: list[LoraRank] = [8, 16, 64]
    adapters = [
        make_adapter(f"a{index}", rank=ranks[int(generator.integers(3))], rate_rps=float(generator.uniform(0.01, 2.0)))
        for index in range(20)
    ]
    each = adapter_aggregates(adapters)
    sets = [generator.permutation(20)[: int(generator.integers(1, 20))] for _ in range(count)]
    rows = np.array([each[members].sum(axis=0) for members in sets])
    return rows, largest_ranks(rows)


@pytest.mark.parametrize("feasible", [by_branches, by_arrays])
@given(seed=st.integers(0, 10_000), count=st.integers(1, 90))
def test_a_batch_is_answered_as_the_function_answers_each_set(feasible: Any, seed: int, count: int) -> None:
    """Whether it is asked with numbers or with arrays does not show."""
    rows, ranks = random_rows(seed, count)
    oracle = AggregateOracle(feasible)
    for _ in range(2):
        accepted, slots = oracle.decide(rows, ranks)
        for row, rank, holds, chosen in zip(rows, ranks, accepted, slots, strict=True):
            names = ("num_adapters", "sum_rate_rps", "sum_rate_sq", "sum_prompt_tps", "sum_output_tps")
            expected = feasible(*(float(row[COLUMN[name]]) for name in names), int(rank))
            assert (bool(holds), int(chosen)) == (bool(expected[0]), int(expected[1]) if expected[0] else 0)


def test_a_function_that_takes_arrays_is_asked_once_per_batch() -> None:
    """10,000 adapters are millions of questions: one call for many is what makes that fast."""
    calls = []

    def counting(*arguments: Any) -> tuple[Any, Any]:
        calls.append(np.shape(arguments[0]))
        return by_arrays(*arguments)

    oracle = AggregateOracle(counting)
    rows, ranks = random_rows(0, 50)
    oracle.decide(rows, ranks)
    calls.clear()
    oracle.decide(rows, ranks)
    assert calls == [(50,)]


def test_an_answer_is_remembered() -> None:
    """A function that takes numbers only is not asked the same question twice."""
    calls = []

    def counting(n: int, *others: float) -> tuple[bool, int]:
        calls.append(n)
        return by_branches(n, *others)  # type: ignore[arg-type]  # the last one is the rank

    oracle = AggregateOracle(counting)
    rows, ranks = random_rows(1, 1)
    oracle.decide(rows, ranks)
    oracle.decide(rows, ranks)
    assert len(calls) == 1


def test_sums_reach_the_function_with_all_their_digits() -> None:
    """Features are float32; what decides at a limit must not be rounded by us."""
    seen: list[float] = []

    def watch(n: int, sum_rate: float, *others: float) -> tuple[bool, int]:
        del n, others
        seen.append(sum_rate)
        return True, 1

    row = adapter_aggregates([make_adapter("a", rate_rps=0.1), make_adapter("b", rate_rps=0.2)]).sum(axis=0)
    AggregateOracle(watch).decide(row[np.newaxis], np.array([16]))
    assert seen == [0.1 + 0.2]


def test_a_factor_scales_what_follows_from_rates() -> None:
    """Rates and loads grow with the factor, squared rates with its square, the number of adapters not at all."""
    seen: list[tuple[float, ...]] = []

    def watch(*arguments: float) -> tuple[bool, int]:
        seen.append(arguments)
        return True, 1

    row = adapter_aggregates([make_adapter("a", rate_rps=0.5, prompt=100.0, output=10.0)])
    AggregateOracle(watch).scaled(2.0).scaled(1.5).decide(row, np.array([16]))
    assert seen == [(1, 1.5, 2.25, 150.0, 15.0, 16)]


@pytest.mark.parametrize("answer", [True, (True,), (True, 0), (True, "many"), (True, None), None])
def test_an_answer_of_another_form_is_refused(answer: Any) -> None:
    """With what was answered, so that the author sees it."""
    rows, ranks = random_rows(2, 1)
    with pytest.raises(SurrogateError, match=r"`feasible` must return \(bool, slots\)"):
        AggregateOracle(lambda *_: answer).decide(rows, ranks)


def test_what_is_not_feasible_needs_no_slots() -> None:
    """A function may say anything, or nothing, about the slots of a set that it refuses."""
    rows, ranks = random_rows(3, 1)
    accepted, slots = AggregateOracle(lambda *_: (False, None)).decide(rows, ranks)
    assert (accepted.tolist(), slots.tolist()) == ([False], [0])


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_factor_that_is_none_is_refused(factor: float) -> None:
    """Rates cannot vanish or turn negative."""
    with pytest.raises(SurrogateError, match="factor"):
        AggregateOracle(by_arrays, rate_factor=factor)


def test_features_are_answered_like_sums() -> None:
    """Whoever asks with features hears the same; all of the load is served, or none."""
    rows, ranks = random_rows(4, 40)
    engine = engine_row(EngineConfig(max_loras=8, max_lora_rank=8), kv_tokens=100_000)
    features = build_features(rows, engine)
    oracle = AggregateOracle(by_branches)
    output = oracle.predict(features)
    accepted, _ = oracle.decide(features[:, : len(AGGREGATE_NAMES)].astype(np.float64), ranks)
    assert output.throughput_ratio.tolist() == accepted.astype(float).tolist()
    assert output.starvation_probability.tolist() == (~accepted).astype(float).tolist()
    assert oracle.predict(features[:0]).throughput_ratio.shape == (0,)
