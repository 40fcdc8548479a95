"""The physics in front of a network: posynomials, and columns that say what the derived ones say."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.contract import probe_features
from predictors.features import FEATURE_SCHEMA
from predictors.physics import FLOOR, Posynomial, physics_layer, smooth_physics_layer
from twin.profile import load_profile
from twin.step_time import EXPAND_TILE_TOKENS, LARGE_SPLIT_SHARE, SHRINK_TILE_RANKS, SHRINK_TILE_TOKENS

NAMES = ("x", "y", "z")
POSYNOMIALS = st.dictionaries(
    st.dictionaries(st.sampled_from(NAMES), st.integers(-2, 2).filter(bool), max_size=3).map(
        lambda powers: tuple(sorted(powers.items()))
    ),
    st.floats(0.01, 100.0),
    max_size=4,
).map(Posynomial)
VALUES = st.fixed_dictionaries({name: st.floats(0.1, 10.0) for name in NAMES})


def _value(posynomial: Posynomial, values: dict[str, float]) -> float:
    return math.fsum(
        coefficient * math.prod(values[name] ** power for name, power in monomial)
        for monomial, coefficient in posynomial.terms.items()
    )


@given(POSYNOMIALS, POSYNOMIALS, VALUES)
def test_sums_and_products_are_those_of_the_values(
    one: Posynomial, other: Posynomial, values: dict[str, float]
) -> None:
    """Whatever the exponents: powers that cancel leave a constant."""
    assert _value(one + other, values) == pytest.approx(_value(one, values) + _value(other, values))
    assert _value(one * other, values) == pytest.approx(_value(one, values) * _value(other, values))
    assert _value(one * 2.0 + 1.0, values) == pytest.approx(2.0 * _value(one, values) + 1.0)


def test_the_features_are_columns() -> None:
    """As logarithms, with a floor."""
    layer = physics_layer(load_profile("llama-3.1-8b-h100-64gb"))
    features = probe_features()
    columns = layer.columns(features)
    assert layer.names[: len(FEATURE_SCHEMA.names)] == FEATURE_SCHEMA.names
    expected = np.log(np.maximum(features, FLOOR))
    assert columns[:, : len(FEATURE_SCHEMA.names)] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["llama-3.1-8b-h100-64gb", "qwen2.5-7b-h100-64gb"])
def test_the_utilisation_is_what_the_step_time_says(name: str) -> None:
    """Against the terms of twin/step_time.py, written out: load, steps whose batch is full, adapters in all slots."""
    profile = load_profile(name)
    layer, features = physics_layer(profile), probe_features().astype(np.float64)[:-1]
    c, of = profile.step_time, {key: features[:, index] for index, key in enumerate(FEATURE_SCHEMA.names)}
    columns = dict(
        zip(layer.names, np.exp(layer.columns(features.astype(np.float32)).astype(np.float64)).T, strict=True)
    )
    tokens = of["sum_prompt_tps"] + of["sum_output_tps"]
    tiles = np.maximum(of["max_lora_rank"] / SHRINK_TILE_RANKS, 1.0)
    shrink = LARGE_SPLIT_SHARE * c.shrink_tile_ms * tiles / SHRINK_TILE_TOKENS
    grid = (of["max_loras"] + 1.0) * (c.expand_tile_ms / EXPAND_TILE_TOKENS + shrink)
    load = tokens * (grid + c.token_ms + c.lora_token_ms)
    load += of["sum_output_tps"] * (c.request_ms + c.changed_request_ms)
    load += of["sum_kv_token_steps"] * (c.context_token_ms + c.mixed_context_token_ms)
    adapter = c.adapter_ms + LARGE_SPLIT_SHARE * c.adapter_shrink_ms * tiles + of["num_adapters"] * c.cached_adapter_ms
    step = 0.5 * EXPAND_TILE_TOKENS * grid + c.base_ms + c.lora_base_ms + c.lora_active_ms
    full = step + adapter * of["max_loras"] + of["max_num_seqs"] * of["max_loras"] * c.adapter_request_ms
    expected = 1e-3 * (load + of["sum_output_tps"] / of["max_num_seqs"] * full)
    assert columns["load_utilisation"] == pytest.approx(1e-3 * load, rel=1e-4)
    assert columns["saturated_by_sequences_slots"] == pytest.approx(expected, rel=1e-4)


def test_every_column_is_finite_without_traffic_and_without_costs() -> None:
    """A logarithm of nothing would end every fit."""
    profile = load_profile("llama-3.1-8b-h100-64gb")
    nothing = profile.step_time.model_copy(update=dict.fromkeys(type(profile.step_time).model_fields, 0.0))
    features = np.concatenate([probe_features(), np.zeros((1, len(FEATURE_SCHEMA.names)), dtype=np.float32)])
    features[:, FEATURE_SCHEMA.index("kv_tokens")] += 1.0
    for one in (profile, profile.model_copy(update={"step_time": nothing})):
        assert np.isfinite(physics_layer(one).columns(features)).all()
        assert np.isfinite(smooth_physics_layer(one).columns(features)).all()


def test_networks_see_the_same_but_for_what_is_next_to_nothing() -> None:
    """`FLOOR` is added to each sum; slots of rank 16 or more cost what they cost."""
    profile, features = load_profile("llama-3.1-8b-h100-64gb"), probe_features()
    features[:, FEATURE_SCHEMA.index("max_lora_rank")] = np.maximum(
        features[:, FEATURE_SCHEMA.index("max_lora_rank")], SHRINK_TILE_RANKS
    )
    layer = physics_layer(profile)
    columns = np.exp(layer.columns(features).astype(np.float64))
    smooth = np.exp(smooth_physics_layer(profile).columns(features).astype(np.float64))
    num_features = len(FEATURE_SCHEMA.names)
    assert smooth[:, :num_features] == pytest.approx(features + FLOOR, rel=1e-3, abs=1e-5)
    assert smooth[:, num_features:] == pytest.approx(columns[:, num_features:], rel=0.02)
