"""Sampled scenarios: within their limits, as their number says, and with replicas that start."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors.features import ENGINE_NAMES, adapter_aggregates
from predictors.labelling import LabelSettings, scenario_of
from predictors.populations import (
    MAX_ADAPTERS,
    MAX_GAP_CV,
    MAX_OUTPUT_TOKENS,
    MAX_PROMPT_TOKENS,
    RATE_LAWS,
    draw_adapters,
)
from predictors.scenarios import (
    BATCHED_TOKENS,
    FAMILIES,
    FAMILY_SHARES,
    GPU_MEMORY_GIB,
    MAX_SLOTS,
    NUM_REPLICAS,
    NUM_SEQS,
    Scenario,
)
from twin.profile import PerformanceProfile, load_profile

PROFILE = load_profile("llama-3.1-8b-h100-64gb")
NUMBERS = st.integers(0, 10**6)


def drawn(number: int, *, seed: int = 0, profile: PerformanceProfile = PROFILE) -> Scenario:
    """Return a scenario of the data set with `seed`."""
    return scenario_of(profile, number, LabelSettings(seed=seed))


@settings(max_examples=60)
@given(NUMBERS, st.sampled_from(["llama-3.1-8b-h100-64gb", "qwen2.5-7b-h100-64gb"]))
def test_the_limits_hold(number: int, profile_name: str) -> None:
    """Adapters, lengths, slots, caches, batch and memory stay within what the documentation says."""
    scenario = drawn(number, profile=load_profile(profile_name))
    adapters = scenario.population.adapters
    assert 1 <= len(adapters) <= MAX_ADAPTERS
    assert scenario.family != "few" or len(adapters) <= 8
    for adapter in adapters[:20]:
        assert adapter.rank <= 128
        assert adapter.rate_rps > 0.0
        assert 0.0 <= adapter.gap_cv <= MAX_GAP_CV
        assert (adapter.prompt_tokens.max or adapter.prompt_tokens.effective_mean) <= MAX_PROMPT_TOKENS
        assert (adapter.output_tokens.max or adapter.output_tokens.effective_mean) <= MAX_OUTPUT_TOKENS
    assert len(scenario.replicas) == NUM_REPLICAS
    for replica in scenario.replicas:
        engine = replica.engine
        assert replica.memory().starts
        assert scenario.population.max_rank <= engine.max_lora_rank <= 128
        assert 1 <= engine.max_loras <= MAX_SLOTS
        assert engine.max_loras <= engine.cpu_capacity <= max(len(adapters), engine.max_loras)
        assert NUM_SEQS[0] <= engine.max_num_seqs <= NUM_SEQS[-1]
        assert BATCHED_TOKENS[0] <= engine.max_num_batched_tokens <= BATCHED_TOKENS[-1]
        assert GPU_MEMORY_GIB[0] <= replica.gpu.memory_gib <= GPU_MEMORY_GIB[-1]
    assert scenario.unstartable is None or not scenario.unstartable.memory().starts


@settings(max_examples=30)
@given(NUMBERS, st.integers(0, 100))
def test_a_number_gives_the_same_scenario(number: int, seed: int) -> None:
    """A data set can be continued on another machine, and any shard can be made alone."""
    first, second = drawn(number, seed=seed), drawn(number, seed=seed)
    assert first.family == second.family
    assert first.population.adapters == second.population.adapters
    assert first.replicas == second.replicas


def test_other_numbers_and_seeds_give_other_scenarios() -> None:
    """Nothing is sampled twice."""
    scenarios = [drawn(number, seed=seed) for seed in range(3) for number in range(12)]
    assert len({scenario.population.adapters for scenario in scenarios}) == len(scenarios)


def test_families_come_in_their_shares() -> None:
    """The documentation states the shares; a family alone can be asked for."""
    counts = dict.fromkeys(FAMILIES, 0)
    for number in range(300):
        counts[drawn(number).family] += 1
    for family, share in FAMILY_SHARES.items():
        assert counts[family] / 300 == pytest.approx(share, abs=4.0 * np.sqrt(share * (1.0 - share) / 300))
    assert sum(FAMILY_SHARES.values()) == pytest.approx(1.0)
    only = [scenario_of(PROFILE, number, LabelSettings(families=("zipf",))).family for number in range(10)]
    assert set(only) == {"zipf"}


def test_the_scenarios_are_diverse() -> None:
    """What planners may set or meet occurs: bursts, other memory, both rule versions, small CPU caches, many slots."""
    scenarios = [drawn(number) for number in range(300)]
    replicas = [replica for scenario in scenarios for replica in scenario.replicas]
    engines = [replica.engine for replica in replicas]
    assert {engine.vllm_version for engine in engines} == {"0.32", "0.8.5"}
    assert {engine.max_num_seqs for engine in engines} == set(NUM_SEQS)
    assert 0.3 < np.mean([replica.gpu.memory_gib != PROFILE.gpu_memory_gib for replica in replicas]) < 0.6
    assert min(engine.max_loras for engine in engines) <= 2
    assert max(engine.max_loras for engine in engines) >= 300
    is_bursty = [any(adapter.gap_cv != 1.0 for adapter in scenario.population.adapters) for scenario in scenarios]
    assert 0.15 < np.mean(is_bursty) < 0.4
    evicts = [
        replica.engine.cpu_capacity < len(scenario.population.adapters)
        for scenario in scenarios
        for replica in scenario.replicas
    ]
    assert 0.02 < np.mean(evicts) < 0.25
    assert 0.0 < np.mean([scenario.unstartable is not None for scenario in scenarios]) < 0.4


@settings(max_examples=40)
@given(NUMBERS, st.floats(0.01, 50.0))
def test_a_population_has_the_aggregate_of_its_adapters(number: int, load_rps: float) -> None:
    """The shortcut that scales the sums must equal the definition on scaled adapters."""
    population = drawn(number).population
    scale = load_rps / population.total_rps
    scaled = [adapter.model_copy(update={"rate_rps": adapter.rate_rps * scale}) for adapter in population.adapters]
    expected = adapter_aggregates(scaled).sum(axis=0)
    np.testing.assert_allclose(population.aggregate(load_rps), expected, rtol=1e-9, atol=1e-12)


@settings(max_examples=30)
@given(NUMBERS, st.floats(0.0, 1.0))
def test_a_packed_set_can_end_anywhere(number: int, position: float) -> None:
    """Its engines follow: no more slots than adapters, all of them in CPU memory or a share, and they start."""
    scenario = scenario_of(PROFILE, number, LabelSettings(families=("packed",)))
    count = 1 + int(position * (len(scenario.population.adapters) - 1))
    smaller = scenario.first(count)
    assert smaller.population.adapters == scenario.population.adapters[:count]
    for replica in smaller.replicas:
        assert replica.memory().starts
        assert replica.engine.max_lora_rank >= smaller.population.max_rank
        columns = dict(zip(ENGINE_NAMES, smaller.engine_columns(replica).tolist(), strict=True))
        assert columns["max_loras"] == replica.engine.max_loras
        assert columns["kv_tokens"] == replica.memory().kv_tokens
        assert columns["max_cpu_loras"] >= columns["max_loras"]


def test_a_packer_takes_the_largest_first() -> None:
    """Most packed sets are in the order of their load within a rank; none is shuffled."""
    scenarios = [scenario_of(PROFILE, number, LabelSettings(families=("packed",))) for number in range(60)]
    descending = []
    for scenario in scenarios:
        adapters = scenario.population.adapters
        loads = [adapter.offered_tps for adapter in adapters if adapter.rank == adapters[0].rank]
        descending.append(loads == sorted(loads, reverse=True))
    assert np.mean(descending) > 0.5


@pytest.mark.parametrize("law", RATE_LAWS)
def test_rates_sum_to_one_and_none_is_zero(law: str) -> None:
    """Every law spreads one request per second over all adapters."""
    columns = draw_adapters(200, law, max_tokens=8192, generator=np.random.default_rng(4))
    assert columns.rates_rps.sum() == pytest.approx(1.0)
    assert columns.rates_rps.min() > 0.0
    assert (len(np.unique(columns.rates_rps)) == 1) == (law == "equal")
