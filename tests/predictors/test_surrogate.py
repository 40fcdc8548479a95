"""Margin and threshold as wrappers, and the domain as an optional ability."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import logit

from predictors.contract import probe_features
from predictors.features import FEATURE_SCHEMA, inflate, offered_tps
from predictors.surrogate import (
    OUTPUT_NAMES,
    STARVED_PROBABILITY,
    InflatedSurrogate,
    MemberSurrogate,
    Surrogate,
    SurrogateOutput,
    ThresholdSurrogate,
    empty_output,
    outside_domain,
    require_domain,
    unwrapped,
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


class GivenProbabilities(CapacitySurrogate):
    """The same, but the probabilities are those given."""

    def __init__(self, probabilities: NDArray[np.float32]) -> None:
        self.probabilities = probabilities

    def predict(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Predict the probability of each row."""
        return replace(super().predict(features), starvation_probability=self.probabilities)


ROWS = probe_features(50)
PROBABILITIES = st.floats(0.0, 1.0, width=32)
THRESHOLDS = st.floats(0.0, 0.5, exclude_min=True, width=32)


def shifted(probabilities: Sequence[float], threshold: float) -> NDArray[np.float32]:
    """Return what probabilities become behind a threshold."""
    values = np.array(probabilities, dtype=np.float32)
    surrogate = ThresholdSurrogate(GivenProbabilities(values), threshold)
    return surrogate.predict(ROWS[np.arange(len(values)) % len(ROWS)]).starvation_probability


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


@given(threshold=THRESHOLDS)
def test_the_threshold_becomes_one_half(threshold: float) -> None:
    """Exactly, and so is what lies next to it on its side; what is certain stays certain."""
    at = np.float32(threshold)
    below, above = np.nextafter(at, np.array([0.0, 1.0], dtype=np.float32)).tolist()
    actual = shifted([0.0, below, float(at), above, 1.0], threshold)
    assert actual.dtype == np.float32
    assert (actual[0], actual[2], actual[4]) == (0.0, STARVED_PROBABILITY, 1.0)
    assert actual[1] < STARVED_PROBABILITY <= actual[3]


@given(probabilities=st.lists(PROBABILITIES, min_size=2, max_size=30), threshold=THRESHOLDS)
def test_a_threshold_keeps_the_order_and_the_range(probabilities: list[float], threshold: float) -> None:
    """A set that is likelier to starve stays likelier, or as likely; what is below the threshold is below one half."""
    ordered = np.array(sorted(probabilities), dtype=np.float32)
    actual = shifted(ordered.tolist(), threshold)
    assert ((actual >= 0.0) & (actual <= 1.0)).all()
    assert (np.diff(actual) >= 0.0).all()
    np.testing.assert_array_equal(actual < STARVED_PROBABILITY, ordered < np.float32(threshold))
    assert (actual >= ordered).all()


@given(
    probabilities=st.lists(st.floats(1 / 1024, 1023 / 1024, width=32), min_size=1, max_size=30),
    threshold=st.floats(1 / 1024, 0.5, width=32),
)
def test_a_threshold_shifts_the_log_odds(probabilities: list[float], threshold: float) -> None:
    """By its own, whatever the probability."""
    expected = logit(np.array(probabilities)) - logit(threshold)
    actual = logit(shifted(probabilities, threshold).astype(np.float64))
    # Near 1, float32 tells odds apart to a few percent only.
    well_told = expected < 6.0
    np.testing.assert_allclose(actual[well_told], expected[well_told], atol=1e-3)


@given(threshold=THRESHOLDS)
def test_a_threshold_leaves_certainty_and_all_other_outputs(threshold: float) -> None:
    """The twin says 0 or 1, and is asked for a risk as it is."""
    expected, actual = (
        surrogate.predict(ROWS)
        for surrogate in (CapacitySurrogate(), ThresholdSurrogate(CapacitySurrogate(), threshold))
    )
    assert set(expected.starvation_probability.tolist()) == {0.0, 1.0}
    for name in OUTPUT_NAMES:
        np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name))


@given(probabilities=st.lists(PROBABILITIES, min_size=1, max_size=30))
def test_one_half_as_threshold_changes_no_verdict(probabilities: list[float]) -> None:
    """It is what planning asks without a risk."""
    values = np.array(probabilities, dtype=np.float32)
    np.testing.assert_allclose(shifted(probabilities, 0.5), values, rtol=1e-6)
    np.testing.assert_array_equal(shifted(probabilities, 0.5) < 0.5, values < 0.5)


@pytest.mark.parametrize("threshold", [0.0, -0.1, 0.500001, 1.0, float("nan"), float("inf"), 1e-60, 1e300])
def test_a_threshold_must_be_a_probability_up_to_one_half(threshold: float) -> None:
    """Also one that float32 rounds to nothing is refused: it would accept nothing."""
    with pytest.raises(SurrogateError, match=r"must be in \(0, 0\.5\]") as caught:
        ThresholdSurrogate(CapacitySurrogate(), threshold)
    assert caught.value.field == "threshold"


class Graded(CapacitySurrogate):
    """The same, whose probability grows with the load."""

    def predict(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Predict odds of starvation that are the square of the load over a tenth of the capacity."""
        odds = (offered_tps(features) / np.float32(900.0)) ** 2
        return replace(super().predict(features), starvation_probability=odds / (odds + np.float32(1.0)))


@given(threshold=st.floats(1 / 1024, 0.5, width=32), factor=st.floats(0.5, 2.0))
def test_margin_and_threshold_commute(threshold: float, factor: float) -> None:
    """The emptying of GPUs asks with less load a surrogate that has a threshold."""
    one: Surrogate = InflatedSurrogate(ThresholdSurrogate(Graded(), threshold), factor)
    other: Surrogate = ThresholdSurrogate(InflatedSurrogate(Graded(), factor), threshold)
    for name in OUTPUT_NAMES:
        np.testing.assert_array_equal(getattr(one.predict(ROWS), name), getattr(other.predict(ROWS), name))
    assert isinstance(unwrapped(one), Graded)
    assert isinstance(unwrapped(other), Graded)


def test_members_and_domain_are_seen_through_a_threshold() -> None:
    """Who needs to know the very set is told it, also inside of a margin, and nobody else is."""
    inner = CountingSurrogate()
    ThresholdSurrogate(InflatedSurrogate(inner, 1.1), 0.1).predict_members([(0, 1), (2,)], probe_features(2))
    assert inner.asked == [(0, 1), (2,)]
    rows = probe_features()
    expected = ThresholdSurrogate(Graded(), 0.1).predict(rows)
    actual = ThresholdSurrogate(Graded(), 0.1).predict_members([(0,)] * len(rows), rows)
    np.testing.assert_array_equal(actual.starvation_probability, expected.starvation_probability)
    bounded = ThresholdSurrogate(BoundedSurrogate(), 0.1)
    assert bounded.schema == FEATURE_SCHEMA
    np.testing.assert_array_equal(bounded.outside_domain(rows), BoundedSurrogate().outside_domain(rows))


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
