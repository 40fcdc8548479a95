"""Calibrated probabilities and thresholds: what is fitted to known errors gives them back."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit, logit

from predictors.contract import probe_features
from predictors.features import FEATURE_SCHEMA
from predictors.packed_verdicts import THRESHOLDS, PackedVerdicts
from predictors.risk import (
    CURVE_RISKS,
    RISKS,
    Calibration,
    fit_calibration,
    fit_thresholds,
    seen_shares,
    threshold_facts,
)
from predictors.targets import TrainingRows
from twin.judging_window import DEFAULT_HORIZON_S, DEFAULT_WARMUP_S


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
        family=np.full(count, "packed"),
        weight=np.ones(count),
    )


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


# Log-odds of being served at each threshold.
CAUTION = -logit(THRESHOLDS)


def drawn_verdicts(shares: NDArray[np.float64], count: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Return verdicts on `count` GPUs, each threshold's by chance and for itself, rejected with the given shares."""
    return np.asarray(generator.random((count, len(THRESHOLDS))) < shares)


def falling_shares(*, hope: float = 0.0) -> NDArray[np.float64]:
    """Return shares that fall with the threshold: 30 % at one half, and half of it with each unit of the log-odds.

    A surrogate whose log-odds are too hopeful by `hope` packs at a threshold what the other packs at one larger by it.
    """
    return np.asarray(np.minimum(0.3 * 0.5 ** (CAUTION - hope), 1.0))


def test_thresholds_are_where_the_shares_are_known_to_fall_to_the_risk() -> None:
    """Half as many are rejected with each unit of the log-odds: the inverse has a closed form."""
    thresholds = fit_thresholds(drawn_verdicts(falling_shares(), 20_000, np.random.default_rng(0)))
    assert set(thresholds) == set(RISKS)
    for risk, threshold in thresholds.items():
        assert -logit(threshold) == pytest.approx(np.log2(0.3 / risk), abs=0.3)


def test_a_surrogate_that_is_more_hopeful_needs_a_threshold_smaller_by_as_much() -> None:
    """What it packs at log-odds of -1 is what the other packs at one half."""
    fair, hopeful = (
        fit_thresholds(drawn_verdicts(falling_shares(hope=hope), 20_000, np.random.default_rng(1)))
        for hope in (0.0, 1.0)
    )
    for risk in (0.05, 0.1, 0.2):
        assert logit(hopeful[risk]) == pytest.approx(logit(fair[risk]) - 1.0, abs=0.25)


def test_a_risk_above_the_share_at_one_half_leaves_the_surrogate_as_it_is() -> None:
    """Nothing is gained by believing it more than by half, and 0.5 is exactly what planning asks without a risk."""
    thresholds = fit_thresholds(drawn_verdicts(falling_shares(), 2_000, np.random.default_rng(2)), CURVE_RISKS)
    assert {risk: thresholds[risk] for risk in (0.4, 0.5)} == {0.4: 0.5, 0.5: 0.5}
    assert thresholds[0.2] < 0.5


@given(seed=st.integers(0, 10_000), count=st.integers(0, 300), worst=st.floats(0.0, 1.0))
def test_the_curve_of_the_threshold_rises_with_the_risk(seed: int, count: int, worst: float) -> None:
    """More risk never asks for more care, and a risk that has a threshold is followed by larger ones that have one."""
    generator = np.random.default_rng(seed)
    rejected = drawn_verdicts(worst * generator.random(len(THRESHOLDS)), count, generator)
    curve = fit_thresholds(rejected, CURVE_RISKS)
    assert list(curve) == list(CURVE_RISKS[len(CURVE_RISKS) - len(curve) :])
    assert list(curve.values()) == sorted(curve.values())
    assert all(THRESHOLDS[-1] * (1.0 - 1e-9) <= threshold <= 0.5 for threshold in curve.values())


@given(needed=st.lists(st.sampled_from(range(len(THRESHOLDS))), min_size=10, max_size=300))
def test_where_verdicts_never_contradict_each_other_it_is_the_quantile_of_split_conformal(needed: list[int]) -> None:
    """GPUs that need a threshold each: the ceil((n + 1)(1 - risk))-th largest, or between it and the one before."""
    rejected = np.arange(len(THRESHOLDS)) < np.array(needed)[:, np.newaxis]
    thresholds = fit_thresholds(rejected)
    for risk in RISKS:
        rank = math.ceil((len(needed) + 1) * (1.0 - risk) - 1e-9)
        if rank > len(needed):
            assert risk not in thresholds
            continue
        place = sorted(needed)[rank - 1]
        most = THRESHOLDS[max(place - 1, 0)]
        assert THRESHOLDS[place] * (1.0 - 1e-9) <= thresholds[risk] <= most * (1.0 + 1e-9)


def test_between_two_thresholds_log_odds_are_interpolated() -> None:
    """Of 999 GPUs a tenth is rejected at 0.5 and none from 0.4 on: 5 % is half-way, but for the one GPU more."""
    rejected = np.zeros((999, len(THRESHOLDS)), dtype=np.bool_)
    rejected[:100, 0] = True
    way = (0.101 - 0.05) / (0.101 - 0.001)
    assert fit_thresholds(rejected)[0.05] == pytest.approx(float(expit(way * logit(0.4))), rel=1e-12)


def test_the_shares_that_were_seen_are_those_that_were_asked_for() -> None:
    """GPUs that had no part in a threshold are rejected as often as it says, up to chance."""
    generator = np.random.default_rng(3)
    seen = seen_shares(drawn_verdicts(falling_shares(), 4_000, generator))
    assert set(seen) == set(RISKS)
    for risk, share in seen.items():
        assert share == pytest.approx(risk, abs=0.25 * risk + 0.003)


@pytest.mark.parametrize("risk", [0.05, 0.1, 0.2])
def test_the_risk_is_kept_on_average_with_few_gpus(risk: float) -> None:
    """Sixty GPUs give a threshold that is off, but not to one side: on average at most the risk is rejected."""
    generator = np.random.default_rng(5)
    rejected = []
    for _ in range(400):
        (threshold,) = fit_thresholds(drawn_verdicts(falling_shares(), 60, generator), (risk,)).values()
        rejected.append(0.3 * 0.5 ** -logit(threshold))
    assert np.mean(rejected) <= risk


def test_risks_about_which_nothing_can_be_said_have_no_threshold() -> None:
    """Nineteen GPUs that are never rejected say something about 5 %, none anything, and some are always rejected."""
    served = np.zeros((19, len(THRESHOLDS)), dtype=np.bool_)
    assert fit_thresholds(served) == {0.05: 0.5, 0.1: 0.5, 0.2: 0.5}
    assert fit_thresholds(served[:0]) == seen_shares(served[:0]) == {}
    hopeless = np.zeros((200, len(THRESHOLDS)), dtype=np.bool_)
    hopeless[:30] = True
    assert fit_thresholds(hopeless) == {0.2: 0.5}


def test_the_facts_of_a_file_are_json_and_complete() -> None:
    """Thresholds by risk, what was seen, and the shares that they come from."""
    rejected = drawn_verdicts(falling_shares(), 400, np.random.default_rng(4))
    facts = threshold_facts(PackedVerdicts(rejected, took_all=3, took_none=1))
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["gpus"], facts["took_all"], facts["took_none"]) == (400, 3, 1)
    assert (facts["horizon_s"], facts["warmup_s"]) == (DEFAULT_HORIZON_S, DEFAULT_WARMUP_S)
    by_curve = {f"{one['risk']:g}": one["threshold"] for one in facts["curve"]}
    assert facts["by_risk"]
    assert all(by_curve[level] == threshold for level, threshold in facts["by_risk"].items())
    assert [one["threshold"] for one in facts["rejected"]] == list(THRESHOLDS)
    assert facts["rejected"][0]["share"] == pytest.approx(rejected[:, 0].mean(), abs=1e-5)
    empty = threshold_facts(PackedVerdicts(rejected[:0], took_all=0, took_none=0))
    assert (empty["by_risk"], empty["curve"], empty["rejected"]) == ({}, [], [])
