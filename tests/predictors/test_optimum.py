"""The best configuration in the twin: against trying everything, and what must hold whatever the population."""

from dataclasses import replace

import pytest

from predictors.adapter_sequence import AdapterSequence
from predictors.configuration_search import Configuration, best_of
from predictors.optimum import SearchSettings, TwinProbe, find_optimum, outward
from tests.predictors.populations import chat_adapters
from twin.engine import EngineConfig
from twin.errors import InputError
from twin.hardware import GpuType, load_model
from twin.profile import load_profile
from twin.replica import Replica
from twin.workload import Adapter

PROFILE = load_profile("llama-3.1-8b-h100-64gb")
# Sixteen sequences: a GPU that a few adapters fill, simulated in milliseconds.
SETTINGS = SearchSettings(num_seeds=1, horizon_s=120.0, warmup_s=20.0, most_adapters=24, slot_options=(1, 2, 4, 8, 16))


def _replica(*, rank: int = 8, **engine: int) -> Replica:
    settings = {"max_num_seqs": 16, "max_lora_rank": rank, "max_model_len": 4096, **engine}
    gpu = GpuType(name=PROFILE.gpu, memory_gib=PROFILE.gpu_memory_gib)
    return Replica(load_model(PROFILE.model), gpu, EngineConfig.model_validate(settings), PROFILE)


def _mixed() -> tuple[Adapter, ...]:
    fast, slow = chat_adapters(3, rate_rps=0.9), chat_adapters(5, rate_rps=0.05, rank=16)
    return fast + tuple(adapter.model_copy(update={"name": f"slow-{adapter.name}"}) for adapter in slow)


@pytest.mark.parametrize(
    ("adapters", "rank"),
    [
        pytest.param(chat_adapters(4, rate_rps=0.5), 8, id="equal"),
        pytest.param(chat_adapters(2, rate_rps=2.5), 8, id="large"),
        pytest.param(_mixed(), 16, id="mixed"),
    ],
)
def test_the_search_is_as_good_as_trying_everything(adapters: tuple[Adapter, ...], rank: int) -> None:
    """Within the tie and the resolution, with far fewer simulations."""
    replica = _replica(rank=rank)
    found = find_optimum(adapters, replica, SETTINGS)
    probe = TwinProbe(AdapterSequence(adapters), replica, SETTINGS)
    tried = {
        (count, slots): probe.verdict(count, slots, "adapter")
        for count in range(1, SETTINGS.most_adapters + 1)
        for slots in SETTINGS.slot_options
    }
    served = [
        Configuration(count, slots, verdict.throughput_tps)
        for (count, slots), verdict in tried.items()
        if not verdict.starves
    ]
    best = best_of(served)
    assert best is not None
    assert found.best is not None
    assert found.best.throughput_tps >= 0.97 * max(entry.throughput_tps for entry in served)
    assert abs(found.best.num_adapters - best.num_adapters) <= 1
    assert found.num_simulations < len(tried) / 2


def test_the_same_settings_give_the_same_answer() -> None:
    """The traffic follows from the seed, and the file's order does not matter."""
    adapters = _mixed()
    replica = _replica(rank=16)
    assert find_optimum(adapters, replica, SETTINGS) == find_optimum(adapters[::-1], replica, SETTINGS)


def test_smaller_adapters_are_served_in_larger_numbers() -> None:
    """Half the rate, about twice the adapters, for about the same throughput."""
    settings = replace(SETTINGS, most_adapters=60)
    large = find_optimum(chat_adapters(4, rate_rps=0.4), _replica(), settings).best
    small = find_optimum(chat_adapters(4, rate_rps=0.2), _replica(), settings).best
    assert large is not None
    assert small is not None
    assert small.num_adapters == pytest.approx(2 * large.num_adapters, rel=0.25)
    assert small.throughput_tps == pytest.approx(large.throughput_tps, rel=0.15)


def test_an_adapter_too_large_for_the_gpu_has_no_configuration() -> None:
    """Not one is served, whatever the slots."""
    found = find_optimum(chat_adapters(2, rate_rps=40.0), _replica(), SETTINGS)
    assert found.best is None
    assert found.by_slots == ()
    assert not found.is_at_limit


def test_idle_adapters_are_served_up_to_the_limit_with_few_slots() -> None:
    """All that may be tried are served; slots beyond what is needed are not taken."""
    found = find_optimum(chat_adapters(4, rate_rps=0.001), _replica(), SETTINGS)
    assert found.best is not None
    assert (found.best.num_adapters, found.best.max_loras) == (24, 1)
    assert found.is_at_limit


def test_no_slots_are_spare() -> None:
    """Where two adapters fill the GPU, it has two slots, though only 16 were tried with all of them."""
    settings = replace(SETTINGS, slot_options=(8, 16))
    found = find_optimum(chat_adapters(2, rate_rps=2.0), _replica(), settings)
    assert found.best is not None
    assert found.best.num_adapters < 8
    assert found.best.max_loras == found.best.num_adapters


def test_slots_that_do_not_start_are_not_tried() -> None:
    """A memory error is no configuration: of rank 128, hundreds of slots do not fit."""
    settings = replace(SETTINGS, slot_options=(4, 320, 576))
    found = find_optimum(chat_adapters(4, rate_rps=0.3, rank=128), _replica(rank=128), settings)
    assert [configuration.max_loras for configuration in found.by_slots] == [4]


def test_a_looser_test_of_starvation_never_serves_fewer() -> None:
    """The papers' test looks at the replica alone."""
    strict = find_optimum(_mixed(), _replica(rank=16), SETTINGS).best
    loose = find_optimum(_mixed(), _replica(rank=16), replace(SETTINGS, starvation_test="replica")).best
    assert strict is not None
    assert loose is not None
    assert loose.throughput_tps >= 0.99 * strict.throughput_tps


def test_adapters_that_the_slots_cannot_hold_are_an_input_error() -> None:
    """A rank above that of the slots is refused before anything is simulated."""
    with pytest.raises(InputError, match="rank"):
        find_optimum(chat_adapters(2, rate_rps=0.5, rank=32), _replica(rank=16), SETTINGS)


def test_slots_are_looked_at_from_the_centre_on() -> None:
    """By ratio; the smaller one first where two are as far."""
    assert outward((1, 2, 4, 8, 16), 4.0) == [4, 2, 8, 1, 16]
    assert outward((1, 2, 4), 0.0) == [1, 2, 4]
