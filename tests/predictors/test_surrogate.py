"""The margin as a wrapper, and the domain as an optional ability."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from predictors.contract import probe_features
from predictors.features import FEATURE_SCHEMA, inflate, offered_tps
from predictors.surrogate import (
    InflatedSurrogate,
    MemberSurrogate,
    SurrogateOutput,
    empty_output,
    outside_domain,
    require_domain,
)
from tests.predictors.capacity import BoundedSurrogate, CapacitySurrogate
from twin.errors import SurrogateError


class CountingSurrogate(CapacitySurrogate):
    """The same, told who the members are."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []

    def predict_members(self, members: Sequence[tuple[int, ...]], features: NDArray[np.float32]) -> SurrogateOutput:
        """Remember the members."""
        self.asked.extend(members)
        return self.predict(features)


def test_a_margin_asks_about_the_inflated_load() -> None:
    """Ratio and probability are those of the larger load; the throughput is what the real load would get of it."""
    rows = probe_features()
    inner = CapacitySurrogate().predict(inflate(rows, 1.5))
    outer = InflatedSurrogate(CapacitySurrogate(), 1.5).predict(rows)
    np.testing.assert_array_equal(outer.throughput_ratio, inner.throughput_ratio)
    np.testing.assert_array_equal(outer.starvation_probability, inner.starvation_probability)
    np.testing.assert_allclose(outer.throughput_tps, outer.throughput_ratio * offered_tps(rows), rtol=1e-5)


def test_a_margin_refuses_sets_that_fit_without_it() -> None:
    """More load than there is: that is what the margin is for."""
    rows = probe_features()
    plain = CapacitySurrogate().predict(rows).starvation_probability
    guarded = InflatedSurrogate(CapacitySurrogate(), 3.0).predict(rows).starvation_probability
    assert (guarded >= plain).all()
    assert guarded.sum() > plain.sum()


def test_no_margin_changes_nothing() -> None:
    """A factor of one is the surrogate itself."""
    rows = probe_features()
    expected = CapacitySurrogate().predict(rows)
    actual = InflatedSurrogate(CapacitySurrogate(), 1.0).predict(rows)
    np.testing.assert_array_equal(actual.throughput_tps, expected.throughput_tps)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_margin_must_be_a_positive_number(factor: float) -> None:
    """The message says what no margin is called."""
    with pytest.raises(SurrogateError, match=r"1\.0: no margin"):
        InflatedSurrogate(CapacitySurrogate(), factor)


def test_members_are_forwarded_to_a_surrogate_that_uses_them() -> None:
    """The exact surrogate behind a margin must still simulate the very set."""
    inner = CountingSurrogate()
    output = InflatedSurrogate(inner, 1.1).predict_members([(0, 1), (2,)], probe_features(2))
    assert inner.asked == [(0, 1), (2,)]
    assert len(output) == 2


def test_members_are_ignored_by_a_surrogate_that_knows_features_only() -> None:
    """A solver may always give them."""
    rows = probe_features(2)
    surrogate = InflatedSurrogate(CapacitySurrogate(), 1.1)
    expected = surrogate.predict(rows)
    actual = surrogate.predict_members([(0, 1), (2,)], rows)
    np.testing.assert_array_equal(actual.throughput_ratio, expected.throughput_ratio)
    assert isinstance(surrogate, MemberSurrogate)
    assert not isinstance(CapacitySurrogate(), MemberSurrogate)


def test_a_surrogate_without_a_domain_has_nothing_outside() -> None:
    """The twin itself can be asked anything."""
    assert not outside_domain(CapacitySurrogate(), probe_features()).any()
    require_domain(CapacitySurrogate(), probe_features())


def test_the_domain_is_that_of_the_inflated_load() -> None:
    """What is asked is what has to be inside."""
    rows = probe_features()
    surrogate = InflatedSurrogate(BoundedSurrogate(), 1.2)
    expected = rows[:, FEATURE_SCHEMA.index("num_adapters")] > 100
    assert expected.any()
    np.testing.assert_array_equal(surrogate.outside_domain(rows), expected)
    with pytest.raises(SurrogateError, match="outside its domain"):
        require_domain(surrogate, rows)


def test_an_empty_output_has_no_rows() -> None:
    """It is what every surrogate gives for no question."""
    assert len(empty_output()) == 0
