"""Calibrated probabilities and margins: what is fitted to known errors gives them back."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from predictors.contract import probe_features
from predictors.features import FEATURE_SCHEMA, inflate
from predictors.risk import (
    CURVE_RISKS,
    RISKS,
    Calibration,
    border_errors,
    fit_calibration,
    fit_margins,
    shares_beyond,
)
from predictors.targets import TrainingRows

RATE = FEATURE_SCHEMA.index("sum_rate_rps")


def rows_of(
    features: NDArray[np.float32], *, starved_share: NDArray[np.float64], log_border: NDArray[np.float64]
) -> TrainingRows:
    """Return rows of one search each."""
    count = len(features)
    return TrainingRows(
        features=features,
        completed_ratio=np.ones(count),
        starved_share=starved_share,
        log_itl=np.zeros(count),
        log_ttft=np.zeros(count),
        log_itl_mean=np.zeros(count),
        log_border=log_border,
        scenario=np.arange(count),
        search_key=np.arange(count),
        family=np.full(count, "packed"),
        weight=np.ones(count),
    )


def up_to(most: float) -> Callable[[NDArray[np.float32]], NDArray[np.bool_]]:
    """Return a surrogate's verdict that accepts rates up to `most`."""
    return lambda asked: np.asarray(asked[:, RATE] <= most)


def test_calibration_finds_slope_and_offset() -> None:
    """Log-odds that are twice as bold as they may be, and biased."""
    generator = np.random.default_rng(0)
    truth = generator.normal(0.0, 2.0, size=20_000)
    starved = (generator.random(20_000) < 1.0 / (1.0 + np.exp(-truth))).astype(np.float64)
    features = np.zeros((20_000, len(FEATURE_SCHEMA.names)), dtype=np.float32)
    found = fit_calibration(2.0 * truth + 1.0, rows_of(features, starved_share=starved, log_border=np.zeros(20_000)))
    assert found.slope == pytest.approx(0.5, rel=0.05)
    assert found.offset == pytest.approx(-0.5, abs=0.05)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_labels_of_one_kind_calibrate_nothing(share: float) -> None:
    """A probability cannot be learned from what always happens."""
    features = probe_features(10)
    rows = rows_of(features, starved_share=np.full(10, share), log_border=np.zeros(10))
    assert fit_calibration(np.arange(10.0), rows) == Calibration()


def test_the_border_of_a_surrogate_is_found_where_it_is() -> None:
    """A surrogate that accepts up to a rate, and rows whose true border is known: its error is the difference."""
    features = probe_features(40)[:-1]
    limits = features[:, RATE].astype(np.float64)
    # Rows lie at log_border of their true border, so the true border is at rate * exp(-log_border).
    log_border = np.linspace(-0.1, 0.1, len(features))
    optimism = 0.05

    for index in range(0, len(features), 7):
        true_border = limits[index] * np.exp(-log_border[index])
        most = float(true_border * np.exp(optimism))
        one = rows_of(features[[index]], starved_share=np.zeros(1), log_border=log_border[[index]])
        (error,) = border_errors(up_to(most), one)
        # Half a step of the factors that are tried.
        assert error == pytest.approx(optimism, abs=0.0126)


def test_surrogates_without_a_border_are_left_out() -> None:
    """One that accepts all, or nothing, has none within a factor of two."""
    rows = rows_of(probe_features(5), starved_share=np.zeros(5), log_border=np.zeros(5))
    for most in (np.inf, 0.0):
        assert len(border_errors(up_to(most), rows)) == 0


def test_only_the_row_nearest_to_a_border_speaks_for_its_search() -> None:
    """Five loads of one set are one border."""
    features = np.concatenate([inflate(probe_features(2)[:1], factor) for factor in (0.5, 0.9, 1.0, 1.1, 2.0)])
    rows = rows_of(features, starved_share=np.zeros(5), log_border=np.log([0.5, 0.9, 1.0, 1.1, 2.0]))
    rows = TrainingRows(**{**{n: getattr(rows, n) for n in rows.__dataclass_fields__}, "search_key": np.zeros(5, int)})
    border = float(features[2, RATE])
    (error,) = border_errors(up_to(border * 1.001), rows)
    assert error == pytest.approx(0.0, abs=0.0126)


def test_margins_keep_their_risk_on_new_borders() -> None:
    """Split conformal: of other borders of the same law, about the share of the risk lies beyond."""
    generator = np.random.default_rng(1)
    margins = fit_margins(generator.normal(-0.02, 0.05, size=2000))
    fresh = generator.normal(-0.02, 0.05, size=20_000)
    assert set(margins.by_risk) == set(RISKS)
    for risk, margin in margins.by_risk.items():
        beyond = float(np.mean(fresh > np.log1p(margin)))
        assert beyond <= risk * 1.3 + 0.005
    assert margins.median == pytest.approx(-0.02, abs=0.005)


def test_the_curve_of_the_margin_falls_with_the_risk() -> None:
    """More risk never asks for more margin, and of the errors themselves no more than the risk lies beyond."""
    errors = np.random.default_rng(2).normal(0.01, 0.05, size=500)
    curve = fit_margins(errors, CURVE_RISKS).by_risk
    assert list(curve) == list(CURVE_RISKS)
    assert list(curve.values()) == sorted(curve.values(), reverse=True)
    beyond = shares_beyond(curve, errors)
    assert all(beyond[risk] <= risk for risk in CURVE_RISKS)
    assert shares_beyond(curve, np.zeros(0)) == {}


def test_risks_that_few_borders_say_nothing_about_have_no_margin() -> None:
    """The largest of twenty errors bounds a risk of five per cent, and no smaller one."""
    assert set(fit_margins(np.linspace(-0.1, 0.1, 20)).by_risk) == {0.05, 0.1, 0.2}
    assert fit_margins(np.zeros(0)).by_risk == {}
