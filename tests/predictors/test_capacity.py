"""What arithmetic says a GPU serves: in order with the load, the slots and the memory, and near the twin."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.adapter_sequence import AdapterSequence
from predictors.capacity import LIMITS, Capacity, estimate_capacity, slots_that_start
from predictors.optimum import SearchSettings, find_optimum
from predictors.scenarios import SLOT_GRID
from tests.predictors.populations import chat_adapters
from twin.engine import EngineConfig
from twin.hardware import GpuType, load_model
from twin.profile import load_profile
from twin.replica import Replica

PROFILE = load_profile("llama-3.1-8b-h100-64gb")
MOST = 1_000


def _replica(rank: int = 8, *, max_num_seqs: int = 256) -> Replica:
    engine = EngineConfig.model_validate({"max_num_seqs": max_num_seqs, "max_lora_rank": rank, "max_model_len": 8192})
    return Replica(
        load_model(PROFILE.model), GpuType(name=PROFILE.gpu, memory_gib=PROFILE.gpu_memory_gib), engine, PROFILE
    )


def _estimate(rate_rps: float, *, rank: int = 8, max_num_seqs: int = 256) -> Capacity:
    replica = _replica(rank, max_num_seqs=max_num_seqs)
    return estimate_capacity(
        AdapterSequence(chat_adapters(6, rate_rps=rate_rps, rank=rank)),
        replica,
        kv_tokens=slots_that_start(replica, SLOT_GRID),
        most_adapters=MOST,
    )


@given(rate=st.floats(0.002, 3.0), factor=st.floats(1.1, 5.0), rank=st.sampled_from([8, 16, 32, 64]))
def test_larger_adapters_are_never_served_in_larger_numbers(rate: float, factor: float, rank: int) -> None:
    """The estimate falls with the rate, stays in its range, and names one of the limits."""
    small, large = _estimate(rate, rank=rank), _estimate(rate * factor, rank=rank)
    assert 1 <= large.num_adapters <= small.num_adapters <= MOST
    assert large.max_loras in (*SLOT_GRID, large.num_adapters)
    assert large.max_loras <= large.num_adapters
    assert large.limit in LIMITS
    # Only one adapter is served whatever it needs.
    assert large.num_adapters == 1 or max(large.demands.values()) <= 1.0


def test_fewer_sequences_serve_fewer_and_are_named_as_the_limit() -> None:
    """A batch of sixteen is what holds a GPU back."""
    narrow, wide = _estimate(0.2, max_num_seqs=16), _estimate(0.2, max_num_seqs=1024)
    assert narrow.num_adapters < wide.num_adapters
    assert narrow.limit == "sequences"


def test_slots_that_do_not_start_are_left_out() -> None:
    """With the KV tokens of those that do."""
    tokens = slots_that_start(_replica(128), SLOT_GRID)
    assert 0 < len(tokens) < len(SLOT_GRID)
    assert sorted(tokens.values(), reverse=True) == list(tokens.values())


@pytest.mark.parametrize("rate_rps", [0.05, 0.4])
def test_arithmetic_is_near_the_twin(rate_rps: float) -> None:
    """Within a third, for chat adapters of one kind: what a model is left to correct."""
    settings = SearchSettings(num_seeds=1, horizon_s=300.0, warmup_s=50.0)
    best = find_optimum(chat_adapters(6, rate_rps=rate_rps), _replica(), settings).best
    assert best is not None
    assert _estimate(rate_rps).num_adapters == pytest.approx(best.num_adapters, rel=0.33)
