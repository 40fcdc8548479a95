"""The margin as a wrapper, the domain as an optional ability, and the contract suite itself."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from predictors.contract import check_load_monotone, check_surrogate, probe_features
from predictors.features import FEATURE_SCHEMA, FeatureSchema, inflate, offered_tps
from predictors.surrogate import (
    InflatedSurrogate,
    MemberSurrogate,
    SurrogateOutput,
    empty_output,
    outside_domain,
    require_domain,
)
from twin.errors import SurrogateError

CAPACITY_TPS = 9000.0


class CapacitySurrogate:
    """A replica with a fixed capacity in tokens/s: the simplest surrogate that is right about something."""

    @property
    def schema(self) -> FeatureSchema:
        """The columns."""
        return FEATURE_SCHEMA

    def predict(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Serve what fits."""
        offered = offered_tps(features)
        ratio = np.minimum(1.0, CAPACITY_TPS / np.maximum(offered, 1.0)).astype(np.float32)
        starved = (ratio < 0.9).astype(np.float32)
        return SurrogateOutput(ratio, starved, ratio * offered, np.full_like(ratio, 0.02), np.full_like(ratio, 0.5))


class BoundedSurrogate(CapacitySurrogate):
    """The same, fitted on at most 100 adapters."""

    def outside_domain(self, features: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Say which rows have more."""
        return np.asarray(features[:, FEATURE_SCHEMA.index("num_adapters")] > 100)


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


def test_the_contract_accepts_a_right_surrogate() -> None:
    """The suite must not ask for more than the protocol says."""
    check_surrogate(CapacitySurrogate())
    check_surrogate(InflatedSurrogate(CapacitySurrogate(), 1.2))
    check_load_monotone(CapacitySurrogate())


class BatchSurrogate(CapacitySurrogate):
    """Wrong: an answer depends on the other rows."""

    def predict(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Shift everything by the batch's size."""
        output = super().predict(features)
        output.itl_s[:] = len(features)
        return output


class DoubleSurrogate(CapacitySurrogate):
    """Wrong: float64."""

    def predict(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Answer in double precision."""
        output = super().predict(features)
        return SurrogateOutput(*(vars(output)[name].astype(np.float64) for name in vars(output)))


class NanSurrogate(CapacitySurrogate):
    """Wrong: not a number for an idle set."""

    def predict(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Divide by the load."""
        output = super().predict(features)
        output.ttft_s[offered_tps(features) == 0.0] = np.nan
        return output


class WritingSurrogate(CapacitySurrogate):
    """Wrong: the caller's features change."""

    def predict(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Scale in place."""
        output = super().predict(features)
        features *= 2.0
        return output


@pytest.mark.parametrize("surrogate", [BatchSurrogate(), DoubleSurrogate(), NanSurrogate(), WritingSurrogate()])
def test_the_contract_refuses_a_wrong_surrogate(surrogate: CapacitySurrogate) -> None:
    """A suite that accepts everything would be worth nothing."""
    with pytest.raises(AssertionError):
        check_surrogate(surrogate)


class CuringSurrogate(CapacitySurrogate):
    """Wrong: very high load is served again."""

    def predict(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Forget the load above five times the capacity."""
        output = super().predict(features)
        output.throughput_ratio[offered_tps(features) > 5.0 * CAPACITY_TPS] = 1.0
        return output


def test_load_that_cures_is_found() -> None:
    """The sanity check must see a prediction that improves with load."""
    with pytest.raises(AssertionError, match="must not raise the throughput ratio"):
        check_load_monotone(CuringSurrogate())
