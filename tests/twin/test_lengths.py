"""Length distributions: what is drawn has the mean that was asked for, within its bounds."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from twin.lengths import LengthDistribution, clipped_moment

NUM_SAMPLES = 40_000


def _generator() -> np.random.Generator:
    return np.random.default_rng(20240229)


def _assert_mean(samples: np.ndarray, expected: float) -> None:
    """Assert that the mean of `samples` is `expected` within six standard errors of at least one token's spread."""
    error = max(float(samples.std()), 1.0) / math.sqrt(len(samples))
    assert abs(float(samples.mean()) - expected) < 6 * error


@st.composite
def _lognormals(draw: st.DrawFn) -> LengthDistribution:
    """Draw distributions with mean, spread and bounds as in traces, and stranger ones."""
    lower = draw(st.integers(1, 50))
    width = draw(st.integers(0, 20_000))
    mean = draw(st.floats(lower, lower + width))
    std = draw(st.floats(0.01, 2.0)) * mean
    upper = draw(st.one_of(st.none(), st.just(lower + width)))
    # Without an upper bound, a wide law's mean hangs on events too rare to sample.
    assume(upper is not None or std < mean)
    return LengthDistribution(mean=mean, std=std, min=lower, max=upper)


@given(lengths=_lognormals())
def test_the_mean_is_kept_under_the_bounds(lengths: LengthDistribution) -> None:
    """Cutting a lognormal moves its mean; what is drawn must have the one that was asked for all the same."""
    samples = lengths.sample(NUM_SAMPLES, _generator())
    assert samples.dtype == np.int32
    assert samples.min() >= lengths.min
    assert lengths.max is None or samples.max() <= lengths.max
    _assert_mean(samples, lengths.effective_mean)


@given(lengths=_lognormals())
def test_the_second_moment_is_that_of_what_is_drawn(lengths: LengthDistribution) -> None:
    """Rounding to whole tokens adds at most a quarter of a squared token."""
    assert lengths.mean is not None
    # The squares of a wider law hang on events too rare to sample.
    assume(lengths.std <= lengths.mean)
    squares = lengths.sample(NUM_SAMPLES, _generator()).astype(np.float64) ** 2
    error = 6 * max(float(squares.std()), 1.0) / math.sqrt(NUM_SAMPLES)
    assert abs(float(squares.mean()) - lengths.effective_second_moment) < error + 0.25


@pytest.mark.parametrize("mean", [1.0, 1.25, 1.4, 7.5, 223.5, 1000.0])
def test_a_constant_between_two_integers_keeps_its_mean(mean: float) -> None:
    """Lengths are whole; rounding all of them the same way would change the load by up to a third."""
    samples = LengthDistribution(mean=mean).sample(NUM_SAMPLES, _generator())
    assert set(samples.tolist()) == {math.floor(mean), math.ceil(mean)}
    _assert_mean(samples, mean)


def test_a_short_spread_keeps_its_mean() -> None:
    """Next to the lower bound, rounding to the nearest would lose several percent."""
    _assert_mean(LengthDistribution(mean=1.4, std=0.5, max=3).sample(NUM_SAMPLES, _generator()), 1.4)


def test_an_unbounded_lognormal_has_its_spread() -> None:
    """Far from the bounds, mean and standard deviation are both as asked."""
    lengths = LengthDistribution(mean=500.0, std=200.0)
    samples = lengths.sample(200_000, _generator()).astype(np.float64)
    assert samples.std() == pytest.approx(200.0, rel=0.02)
    assert lengths.effective_second_moment == pytest.approx(500.0**2 + 200.0**2, rel=1e-6)


def test_a_mean_on_a_bound_is_reached() -> None:
    """The only law with its mean on a bound is the bound itself."""
    at_lower = LengthDistribution(mean=4.0, std=3.0, min=4, max=9).sample(1000, _generator())
    at_upper = LengthDistribution(mean=9.0, std=3.0, min=4, max=9).sample(1000, _generator())
    assert set(at_lower.tolist()) == {4}
    assert set(at_upper.tolist()) == {9}


@given(
    power=st.sampled_from([1, 2]),
    location=st.floats(-2.0, 9.0),
    sigma=st.floats(0.05, 2.0),
    lower=st.floats(1.0, 50.0),
    width=st.one_of(st.floats(0.5, 20_000.0), st.just(math.inf)),
)
def test_clipped_moments_agree_with_numeric_integration(
    power: int, location: float, sigma: float, lower: float, width: float
) -> None:
    """The closed form against a fine sum over the normal density."""
    normal = np.linspace(-14.0, 14.0, 200_001)
    density = np.exp(-0.5 * normal**2) / math.sqrt(2.0 * math.pi)
    clipped = np.clip(np.exp(location + sigma * normal), lower, lower + width)
    expected = float(np.trapezoid(clipped**power * density, normal))
    assert clipped_moment(power, location, sigma, lower, lower + width) == pytest.approx(expected, rel=1e-5)


@given(values=st.lists(st.integers(1, 5000), min_size=2, max_size=400))
def test_an_empirical_law_is_close_to_its_samples(values: list[int]) -> None:
    """Its mean is theirs; draws stay between the smallest and the largest, and have the law's moments."""
    lengths = LengthDistribution.from_samples(values)
    assert lengths.effective_mean == pytest.approx(float(np.mean(values)))
    samples = lengths.sample(NUM_SAMPLES, _generator())
    assert min(values) <= samples.min()
    assert samples.max() <= max(values)
    _assert_mean(samples, lengths.effective_mean)
    squares = samples.astype(np.float64) ** 2
    error = 6 * max(float(squares.std()), 1.0) / math.sqrt(NUM_SAMPLES)
    assert abs(float(squares.mean()) - lengths.effective_second_moment) < error + 0.25


def test_an_empirical_law_of_many_samples_has_their_mean() -> None:
    """The long straight line from the last percentile to the maximum must not add load."""
    values = np.round(_generator().gamma(2.0, 300.0, 50_000)).astype(np.int64) + 1
    lengths = LengthDistribution.from_samples(values)
    assert lengths.effective_mean == pytest.approx(values.mean(), rel=1e-9)


def test_quantiles_are_interpolated_between_equal_steps() -> None:
    """Three quantiles: half of the draws lie on either side of the middle one."""
    lengths = LengthDistribution(quantiles=(1.0, 101.0, 1001.0))
    samples = lengths.sample(NUM_SAMPLES, _generator())
    assert np.mean(samples <= 101) == pytest.approx(0.5, abs=0.02)
    assert lengths.effective_mean == pytest.approx((51.0 + 551.0) / 2)


def test_a_constant_is_always_drawn() -> None:
    """The shorthand for one length."""
    lengths = LengthDistribution.constant(17)
    assert lengths.sample(5, _generator()).tolist() == [17] * 5
    assert lengths.effective_second_moment == 289.0


@pytest.mark.parametrize(
    "lengths",
    [
        LengthDistribution(mean=5.5),
        LengthDistribution(mean=5.5, std=1.0, min=2, max=9),
        LengthDistribution(quantiles=(1.0, 2.0)),
    ],
)
def test_a_distribution_survives_being_written_and_read(lengths: LengthDistribution) -> None:
    """Plans are stored with every field, defaults included."""
    assert LengthDistribution.model_validate_json(lengths.model_dump_json()) == lengths


@pytest.mark.parametrize(
    "lengths",
    [LengthDistribution(mean=5e9), LengthDistribution(mean=1e8, std=1e9), LengthDistribution(quantiles=(1.0, 1e12))],
)
def test_lengths_beyond_the_columns_are_their_largest_value(lengths: LengthDistribution) -> None:
    """They stay too long for any replica, rather than wrap around to a negative number."""
    drawn = lengths.sample(2000, np.random.default_rng(0))
    assert int(drawn.min()) >= 1
    assert int(drawn.max()) == np.iinfo(np.int32).max


def test_no_samples_are_an_empty_array() -> None:
    """An adapter without requests draws nothing."""
    for lengths in (LengthDistribution(mean=5.0, std=2.0), LengthDistribution(quantiles=(1.0, 2.0))):
        assert lengths.sample(0, _generator()).shape == (0,)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({}, "exactly one of `mean` and `quantiles`"),
        ({"mean": 5.0, "quantiles": (1.0, 2.0)}, "exactly one of `mean` and `quantiles`"),
        ({"mean": 0.5}, "greater than or equal to 1"),
        ({"mean": math.nan}, "finite"),
        ({"mean": math.inf}, "finite"),
        ({"mean": 5.0, "std": -1.0}, "greater than or equal to 0"),
        ({"mean": 5.0, "std": math.inf}, "finite"),
        ({"mean": 5.0, "max": 4}, "between `min` and `max`"),
        ({"mean": 5.0, "min": 6}, "between `min` and `max`"),
        ({"mean": 5.0, "min": 0}, "greater than or equal to 1"),
        ({"mean": 5.0, "maximum": 9}, "Extra inputs"),
        ({"quantiles": (3.0,)}, "two or more"),
        ({"quantiles": (3.0, 2.0)}, "non-decreasing"),
        ({"quantiles": (0.0, 2.0)}, "at least 1"),
        ({"quantiles": (1.0, math.nan)}, "finite"),
        ({"quantiles": (1.0, 9.0), "max": 5}, "go with `mean` only"),
        ({"quantiles": (1.0, 9.0), "std": 5.0}, "go with `mean` only"),
    ],
)
def test_what_is_no_distribution_is_refused(fields: dict[str, object], rule: str) -> None:
    """Each with the rule that it breaks."""
    with pytest.raises(ValidationError, match=rule):
        LengthDistribution.model_validate(fields)


def test_a_distribution_cannot_be_changed() -> None:
    """Adapters share distributions; variants are made by copying."""
    lengths = LengthDistribution(mean=5.0)
    with pytest.raises(ValidationError, match="frozen"):
        lengths.mean = 6.0  # type: ignore[misc]
