"""Where a surrogate was fitted: what its rows span is inside, what lies beyond is not."""

import numpy as np
import pytest
from pydantic import ValidationError

from predictors.contract import probe_features
from predictors.domain import Domain
from predictors.features import FEATURE_SCHEMA, inflate

NAMES = FEATURE_SCHEMA.names


def test_the_training_rows_are_inside() -> None:
    """Rounding to float32 must not put a model's own data outside of its domain."""
    rows = probe_features(60)
    assert not Domain.from_rows(rows).outside(rows, NAMES).any()


def test_a_domain_survives_its_file() -> None:
    """What is written into the metadata is what is read back."""
    domain = Domain.from_rows(probe_features(60))
    assert Domain.parse(domain.model_dump_json(), schema=FEATURE_SCHEMA, file="m.onnx") == domain


def test_domains_joined_hold_the_rows_of_both() -> None:
    """And nothing of them shrinks: each holds itself and the other."""
    rows = probe_features(60)
    light, heavy = Domain.from_rows(rows[:20]), Domain.from_rows(inflate(rows[20:], 2.0))
    joined = light.joined(heavy)
    assert joined == heavy.joined(light)
    assert not joined.outside(np.concatenate([rows[:20], inflate(rows[20:], 2.0)]), NAMES).any()
    assert light.joined(light) == light


def test_smaller_sets_are_inside() -> None:
    """A planner asks about few adapters first: less load than was ever sampled is no reason for distrust."""
    rows = probe_features(60)
    domain = Domain.from_rows(rows)
    assert not domain.outside(inflate(rows, 0.01), NAMES).any()


@pytest.mark.parametrize("name", ["num_adapters", "sum_rate_rps", "kv_tokens", "max_loras", "num_rank_64"])
def test_a_row_beyond_a_bound_is_outside(name: str) -> None:
    """Every feature has its bound, also one that never varied."""
    rows = probe_features(60)
    beyond = rows[:1].copy()
    beyond[0, NAMES.index(name)] = rows[:, NAMES.index(name)].max() * 1.01 + 1.0
    assert Domain.from_rows(rows).outside(beyond, NAMES).tolist() == [True]


def test_a_row_inside_the_box_can_be_outside_the_hull() -> None:
    """Large prompts at the highest rate: each was seen, never together."""
    rows = probe_features(60)
    domain = Domain.from_rows(rows)
    mixed = rows[:1].copy()
    rate, prompt = NAMES.index("sum_rate_rps"), NAMES.index("sum_prompt_tps")
    mixed[0, rate] = rows[:, rate][rows[:, rate] > 0].min()
    mixed[0, prompt] = rows[:, prompt].max()
    box_only = domain.model_copy(update={"ratios": ()})
    assert box_only.outside(mixed, NAMES).tolist() == [False]
    assert domain.outside(mixed, NAMES).tolist() == [True]


def test_no_rows_have_nothing_outside() -> None:
    """An empty batch has an empty mask."""
    domain = Domain.from_rows(probe_features(60))
    assert domain.outside(np.empty((0, len(NAMES)), dtype=np.float32), NAMES).shape == (0,)


def test_bounds_must_be_in_order() -> None:
    """A minimum above its maximum would make every row an outsider."""
    with pytest.raises(ValidationError, match=r"must be \[min, max\]"):
        Domain(features={"a": (1.0, 0.0)})


def test_ratios_must_name_features() -> None:
    """A rule about an unknown column cannot be applied."""
    content = {
        "features": {"a": (0.0, 1.0)},
        "ratios": [{"name": "r", "numerator": ["a"], "denominator": ["b"], "min": 0.0, "max": 1.0}],
    }
    with pytest.raises(ValidationError, match="must name features of the domain"):
        Domain.model_validate(content)
