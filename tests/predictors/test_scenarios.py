"""Sampled scenarios: they start, and their features and traffic are those of their adapters."""

import numpy as np
import pytest

from predictors.features import AGGREGATE_NAMES, adapter_aggregates
from predictors.scenarios import MAX_ADAPTERS, draw_population, draw_scenario
from twin.hardware import GpuType, ModelArchitecture
from twin.profile import PerformanceProfile
from twin.workload import NANOSECONDS


@pytest.mark.parametrize("seed", range(8))
def test_a_population_has_the_aggregate_of_its_adapters(seed: int) -> None:
    """The shortcut that scales the sums must equal the definition on scaled adapters."""
    population = draw_population(np.random.default_rng(seed))
    assert 1 <= len(population.adapters) <= MAX_ADAPTERS
    scaled = [adapter.model_copy(update={"rate_rps": adapter.rate_rps * 7.5}) for adapter in population.adapters]
    expected = adapter_aggregates(scaled).sum(axis=0)
    np.testing.assert_allclose(population.aggregate(7.5), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_traffic_has_the_offered_load(seed: int) -> None:
    """Requests drawn together must come at the rates and lengths that the features claim."""
    generator = np.random.default_rng(seed)
    population = draw_population(generator)
    horizon_s, total_rps = 2000.0, 10.0
    trace = population.workload(total_rps, horizon_s=horizon_s, generator=generator).trace
    assert trace is not None
    assert len(trace) == pytest.approx(total_rps * horizon_s, rel=0.03)
    assert 0 <= trace.arrival_ns[0] <= trace.arrival_ns[-1] < horizon_s * NANOSECONDS
    aggregate = dict(zip(AGGREGATE_NAMES, population.aggregate(total_rps).tolist(), strict=True))
    assert trace.prompt_tokens.sum() / horizon_s == pytest.approx(aggregate["sum_prompt_tps"], rel=0.06)
    assert trace.output_tokens.sum() / horizon_s == pytest.approx(aggregate["sum_output_tps"], rel=0.06)
    shares = np.bincount(trace.adapter, minlength=len(population.adapters)) / len(trace)
    wanted = np.array([adapter.rate_rps for adapter in population.adapters])
    assert np.abs(shares - wanted).max() < 0.02


@pytest.mark.parametrize("seed", range(8))
def test_every_replica_of_a_scenario_can_be_simulated(
    seed: int, model: ModelArchitecture, gpu: GpuType, profile: PerformanceProfile
) -> None:
    """What does not start has no label."""
    scenario = draw_scenario(model, gpu, profile, generator=np.random.default_rng(seed))
    assert len(scenario.replicas) == 2
    for index, replica in enumerate(scenario.replicas):
        assert replica.memory().starts
        assert replica.engine.max_lora_rank >= scenario.population.max_rank
        columns = scenario.engine_columns(index).tolist()
        assert columns[:2] == [replica.engine.max_loras, replica.engine.max_lora_rank]
        assert columns[4] == replica.memory().kv_tokens


def test_a_seed_gives_the_same_scenario(model: ModelArchitecture, gpu: GpuType, profile: PerformanceProfile) -> None:
    """A data set can be continued on another machine."""
    first, second = (draw_scenario(model, gpu, profile, generator=np.random.default_rng(3)) for _ in range(2))
    assert first.population.adapters == second.population.adapters
    assert first.replicas == second.replicas
