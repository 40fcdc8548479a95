"""Features: what they are, that they add up, and that their order never moves silently."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.features import (
    AGGREGATE_NAMES,
    ENGINE_NAMES,
    FEATURE_SCHEMA,
    adapter_aggregates,
    build_features,
    engine_row,
    inflate,
    offered_tps,
)
from tests.predictors.populations import adapter_sets
from twin.engine import SUPPORTED_RANKS, EngineConfig
from twin.lengths import LengthDistribution
from twin.workload import Adapter

ENGINE = engine_row(EngineConfig(max_loras=8, max_lora_rank=32), kv_tokens=200_000)


def test_the_schema_is_frozen() -> None:
    """Shipped models name these columns: whoever changes them has to raise the version and retrain."""
    assert FEATURE_SCHEMA.version == 2
    assert FEATURE_SCHEMA.names == (
        "num_adapters",
        "sum_rate_rps",
        "sum_rate_sq",
        "sum_prompt_tps",
        "sum_output_tps",
        "sum_kv_token_steps",
        "sum_prompt_sq_tps",
        "sum_rate_cv_sq",
        "active_10s",
        "active_40s",
        "num_rank_8",
        "num_rank_16",
        "num_rank_32",
        "num_rank_64",
        "num_rank_128",
        "num_rank_256",
        "num_rank_320",
        "num_rank_512",
        "max_loras",
        "max_lora_rank",
        "max_num_seqs",
        "max_num_batched_tokens",
        "kv_tokens",
        "max_cpu_loras",
        "reserves_full_sequence",
    )
    assert FEATURE_SCHEMA.names == AGGREGATE_NAMES + ENGINE_NAMES
    assert len(FEATURE_SCHEMA.units) == len(FEATURE_SCHEMA.names)


def test_every_rank_of_the_engine_has_a_column() -> None:
    """A rank without a column would make its adapters invisible to the model."""
    assert [name for name in AGGREGATE_NAMES if name.startswith("num_rank_")] == [
        f"num_rank_{rank}" for rank in SUPPORTED_RANKS
    ]


def test_one_adapter_by_hand() -> None:
    """Constant lengths make every sum a product that can be checked on paper."""
    adapter = Adapter(
        name="a",
        rank=16,
        rate_rps=0.5,
        prompt_tokens=LengthDistribution.constant(100),
        output_tokens=LengthDistribution.constant(20),
        gap_cv=1.5,
    )
    value = dict(zip(AGGREGATE_NAMES, adapter_aggregates([adapter])[0].tolist(), strict=True))
    assert value["num_adapters"] == 1.0
    assert value["sum_rate_sq"] == 0.25
    assert value["sum_prompt_tps"] == 50.0
    assert value["sum_output_tps"] == 10.0
    assert value["sum_kv_token_steps"] == 0.5 * (100 * 20 + 20 * 20 / 2)
    assert value["sum_prompt_sq_tps"] == 5000.0
    assert value["sum_rate_cv_sq"] == 0.5 * 1.5**2
    assert value["active_10s"] == pytest.approx(1.0 - math.exp(-5.0))
    assert value["active_40s"] == pytest.approx(1.0 - math.exp(-20.0))
    assert [rank for rank in SUPPORTED_RANKS if value[f"num_rank_{rank}"]] == [16]


@given(adapter_sets(min_size=2), st.data())
def test_aggregates_add_up(adapters: tuple[Adapter, ...], data: st.DataObject) -> None:
    """A set's aggregate is the sum over any partition of it, in any order: that is what makes a move O(1)."""
    order = data.draw(st.permutations(range(len(adapters))))
    cut = data.draw(st.integers(1, len(adapters) - 1))
    rows = adapter_aggregates(adapters)
    parts = rows[order[:cut]].sum(axis=0) + rows[order[cut:]].sum(axis=0)
    np.testing.assert_allclose(parts, rows.sum(axis=0), rtol=1e-12)


@given(adapter_sets(min_size=2), st.data())
def test_adding_and_removing_returns_to_the_start(adapters: tuple[Adapter, ...], data: st.DataObject) -> None:
    """A search adds and removes the same adapter thousands of times."""
    guest = data.draw(st.integers(0, len(adapters) - 1))
    rows = adapter_aggregates(adapters)
    before = rows.sum(axis=0) - rows[guest]
    after = before.copy()
    for _ in range(1000):
        after = after + rows[guest] - rows[guest]
    np.testing.assert_allclose(after, before, rtol=1e-9, atol=1e-6)


@given(adapter_sets())
def test_features_are_the_aggregates_and_the_engine(adapters: tuple[Adapter, ...]) -> None:
    """Columns stand in the order of the schema, as float32."""
    aggregate = adapter_aggregates(adapters).sum(axis=0)
    features = build_features(aggregate[np.newaxis], ENGINE)
    assert features.dtype == np.float32
    assert features.shape == (1, len(FEATURE_SCHEMA.names))
    np.testing.assert_array_equal(features[0], np.concatenate([aggregate, ENGINE]).astype(np.float32))


@given(adapter_sets(), st.floats(0.1, 4.0))
def test_inflating_is_what_larger_rates_give(adapters: tuple[Adapter, ...], factor: float) -> None:
    """A planning margin on features equals one on the adapters, but active adapters are bounded from above."""
    larger = [adapter.model_copy(update={"rate_rps": adapter.rate_rps * factor}) for adapter in adapters]
    expected = build_features(adapter_aggregates(larger).sum(axis=0), ENGINE)
    actual = inflate(build_features(adapter_aggregates(adapters).sum(axis=0), ENGINE), factor)
    active = [FEATURE_SCHEMA.index("active_10s"), FEATURE_SCHEMA.index("active_40s")]
    others = [i for i in range(len(FEATURE_SCHEMA.names)) if i not in active]
    np.testing.assert_allclose(actual[:, others], expected[:, others], rtol=1e-5, atol=1e-12)
    if factor >= 1.0:
        assert (actual[:, active] >= expected[:, active] * (1.0 - 1e-5)).all()
        assert (actual[:, active] <= len(adapters)).all()


def test_the_engine_columns_broadcast_over_rows() -> None:
    """One engine row serves a whole batch of sets."""
    features = build_features(np.zeros((3, len(AGGREGATE_NAMES))), ENGINE)
    np.testing.assert_array_equal(features[:, -len(ENGINE_NAMES) :], np.tile(ENGINE.astype(np.float32), (3, 1)))


def test_the_offered_load_is_prompt_plus_output_tokens() -> None:
    """Throughput is reported against this number."""
    features = np.zeros((1, len(FEATURE_SCHEMA.names)), dtype=np.float32)
    features[0, FEATURE_SCHEMA.index("sum_prompt_tps")] = 30.0
    features[0, FEATURE_SCHEMA.index("sum_output_tps")] = 12.0
    assert offered_tps(features).tolist() == [42.0]


@given(adapter_sets())
def test_poisson_arrivals_are_as_bursty_as_they_are_many(adapters: tuple[Adapter, ...]) -> None:
    """A model can tell bursts from Poisson traffic by one quotient."""
    poisson = [adapter.model_copy(update={"gap_cv": 1.0}) for adapter in adapters]
    value = dict(zip(AGGREGATE_NAMES, adapter_aggregates(poisson).sum(axis=0).tolist(), strict=True))
    assert value["sum_rate_cv_sq"] == value["sum_rate_rps"]


def test_the_engine_columns_are_what_the_engine_does() -> None:
    """Defaults that vLLM fills in are columns with their effective value; the rule versions differ in the last one."""
    new = EngineConfig(max_loras=4, max_lora_rank=8)
    old = EngineConfig(max_loras=4, max_lora_rank=8, max_cpu_loras=9, vllm_version="0.8.5")
    columns = [dict(zip(ENGINE_NAMES, engine_row(engine, kv_tokens=1).tolist(), strict=True)) for engine in (new, old)]
    assert [column["max_cpu_loras"] for column in columns] == [4.0, 9.0]
    assert [column["reserves_full_sequence"] for column in columns] == [1.0, 0.0]
    without = engine_row(EngineConfig(enable_lora=False), kv_tokens=1).tolist()
    assert dict(zip(ENGINE_NAMES, without, strict=True))["max_cpu_loras"] == 0.0
