"""Types of adapters: who is grouped with whom, which row stands for a group, and how patterns become GPUs again."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from predictors.features import AGGREGATE_NAMES
from solvers.adapter_types import (
    AdapterTypes,
    cluster_types,
    exact_types,
    expand_patterns,
    placement_of_patterns,
)
from solvers.placement import validate_placement
from solvers.problem import Problem
from tests.solvers.problems import make_adapter, make_problem, random_problem
from twin.engine import LoraRank

RATE = AGGREGATE_NAMES.index("sum_rate_rps")
RANKS: list[LoraRank] = [8, 16, 64]

discrete_adapters = st.lists(
    st.tuples(st.sampled_from(RANKS), st.sampled_from([0.0, 0.1, 0.2, 1.6]), st.sampled_from([50.0, 200.0])),
    min_size=1,
    max_size=30,
)
continuous_adapters = st.lists(
    st.tuples(st.sampled_from(RANKS), st.floats(0.0, 10.0), st.floats(10.0, 500.0)), min_size=1, max_size=60
)


def problem_of(adapters: list[tuple[LoraRank, float, float]]) -> Problem:
    """Return a problem with these ranks, rates and outputs."""
    return make_problem(
        [
            make_adapter(f"a{index}", rank=rank, rate_rps=rate, output=output)
            for index, (rank, rate, output) in enumerate(adapters)
        ]
    )


def random_patterns(types: AdapterTypes, num_gpus: int, seed: int) -> NDArray[np.int64]:
    """Return patterns of `num_gpus` GPUs that use every adapter once, int64 [G, T]; some may be empty."""
    generator = np.random.default_rng(seed)
    columns = [generator.multinomial(count, np.full(num_gpus, 1 / num_gpus)) for count in types.counts]
    return np.array(columns, dtype=np.int64).T


@given(adapters=continuous_adapters, levels=st.integers(1, 20))
def test_every_adapter_is_in_one_type_of_its_rank(adapters: list[tuple[LoraRank, float, float]], levels: int) -> None:
    """Types are a partition, and all their columns agree with each other."""
    problem = problem_of(adapters)
    for types in (exact_types(problem), cluster_types(problem, levels=levels)):
        assert sorted(index for members in types.members for index in members) == list(range(len(adapters)))
        assert types.counts.tolist() == [len(members) for members in types.members]
        assert types.rates_rps.tolist() == types.rows[:, RATE].tolist()
        for index, members in enumerate(types.members):
            assert types.type_of[list(members)].tolist() == [index] * len(members)
            assert set(problem.ranks[list(members)]) == {types.ranks[index]}
            assert types.work[list(members)].tolist() == sorted(types.work[list(members)], reverse=True)


@given(adapters=discrete_adapters)
def test_adapters_are_of_one_exact_type_if_and_only_if_their_features_are_equal(
    adapters: list[tuple[LoraRank, float, float]],
) -> None:
    """What a surrogate cannot tell apart is one type, and nothing else is."""
    problem = problem_of(adapters)
    types = exact_types(problem)
    assert types.is_exact
    assert np.array_equal(types.rows[types.type_of], problem.aggregates)
    assert len(np.unique(types.rows, axis=0)) == types.num_types


@given(adapters=discrete_adapters)
def test_clusters_of_few_distinct_values_are_the_exact_types(adapters: list[tuple[LoraRank, float, float]]) -> None:
    """Discrete rates lose nothing by clustering."""
    problem = problem_of(adapters)
    assert cluster_types(problem).members == exact_types(problem).members
    assert cluster_types(problem).is_exact


@given(adapters=continuous_adapters, levels=st.integers(1, 20))
def test_types_are_at_most_the_levels_of_each_rank_and_shape(
    adapters: list[tuple[LoraRank, float, float]], levels: int
) -> None:
    """Apart from the level of adapters without traffic."""
    problem = problem_of([(rank, rate, 100.0) for rank, rate, _ in adapters])
    types = cluster_types(problem, levels=levels)
    assert types.num_types <= len(set(problem.ranks)) * (levels + 1)


@given(adapters=continuous_adapters, seed=st.integers(0, 100))
def test_heavy_and_light_rows_enclose_every_set(adapters: list[tuple[LoraRank, float, float]], seed: int) -> None:
    """What a monotone surrogate says of the heaviest (lightest) rows errs on the safe (optimistic) side."""
    problem = problem_of(adapters)
    heavy = cluster_types(problem, levels=3, representative="heaviest")
    light = cluster_types(problem, levels=3, representative="lightest")
    patterns = random_patterns(heavy, 3, seed)
    assert heavy.members == light.members
    real = np.array([problem.aggregates[list(chosen)].sum(axis=0) for chosen in expand_patterns(heavy, patterns)])
    assert np.all(heavy.aggregates(patterns) >= real * (1 - 1e-12))
    assert np.all(light.aggregates(patterns) <= real * (1 + 1e-12))


@given(adapters=continuous_adapters)
def test_mean_rows_keep_the_sums_of_all_adapters(adapters: list[tuple[LoraRank, float, float]]) -> None:
    """Mean clusters neither add nor lose load on the whole."""
    problem = problem_of(adapters)
    types = cluster_types(problem, levels=3)
    assert types.aggregates(types.counts[None]) == pytest.approx(problem.aggregates.sum(axis=0)[None], rel=1e-9)


@given(adapters=discrete_adapters, num_gpus=st.integers(1, 4), seed=st.integers(0, 100))
def test_expanded_patterns_hold_what_they_say(
    adapters: list[tuple[LoraRank, float, float]], num_gpus: int, seed: int
) -> None:
    """Counts, aggregates and ranks of a pattern are, to the bit, those of the adapters that it becomes."""
    problem = problem_of(adapters)
    types = exact_types(problem)
    patterns = random_patterns(types, num_gpus, seed)
    chosen = expand_patterns(types, patterns)
    assert sorted(index for members in chosen for index in members) == list(range(len(adapters)))
    assert [types.pattern_of(members).tolist() for members in chosen] == patterns.tolist()
    sums = [problem.aggregates[list(members)].sum(axis=0).tolist() for members in chosen]
    assert types.aggregates(patterns).tolist() == sums
    assert types.max_ranks(patterns).tolist() == [max(problem.ranks[list(members)], default=0) for members in chosen]


def test_members_are_dealt_so_that_equal_patterns_get_equal_work() -> None:
    """Four GPUs with equal patterns of 200 unequal adapters differ by less than one small adapter."""
    problem = random_problem(0, 200, load_gpus=4.0)
    types = cluster_types(problem, levels=1, shape_levels=1)
    rest = types.counts % 4
    patterns = np.tile(types.counts // 4, (4, 1))
    patterns[0] += rest
    work = [types.work[list(members)].sum() for members in expand_patterns(types, patterns)]
    means = np.array([types.work[list(members)].mean() for members in types.members])
    excess = np.array(work) - patterns @ means
    assert np.ptp(excess) < np.quantile(types.work, 0.25)


def test_patterns_with_settings_are_a_placement() -> None:
    """Each GPU keeps its type, slots and rank."""
    problem = problem_of([(8, 0.1, 50.0), (8, 0.1, 50.0), (16, 0.1, 50.0)])
    types = exact_types(problem)
    placement = placement_of_patterns(
        types,
        np.array([[1, 0], [0, 2]]),
        gpu_types=np.array([0, 0]),
        max_loras=np.array([1, 2]),
        max_lora_ranks=np.array([16, 8]),
    )
    validate_placement(problem, placement)
    assert [(gpu.adapters, gpu.max_loras, gpu.max_lora_rank) for gpu in placement.gpus] == [
        ((2,), 1, 16),
        ((0, 1), 2, 8),
    ]
