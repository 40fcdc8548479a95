"""Calibrated probabilities and margins: what is fitted to known errors gives them back."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from predictors.contract import probe_features
from predictors.features import FEATURE_SCHEMA
from predictors.packed_margin import MARGINS, PackedVerdicts
from predictors.risk import (
    CURVE_RISKS,
    RISKS,
    Calibration,
    fit_calibration,
    fit_margins,
    margin_facts,
    seen_shares,
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


def drawn_verdicts(shares: NDArray[np.float64], count: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Return verdicts on `count` GPUs, each margin's by chance and for itself, rejected with the given shares."""
    return np.asarray(generator.random((count, len(MARGINS))) < shares)


def falling_shares(*, optimism: float = 0.0) -> NDArray[np.float64]:
    """Return shares that fall with the margin: 30 % without any, and by half with each 2 %; of a surrogate too hopeful.

    One that claims `optimism` more capacity packs with a margin what the other packs with that much less.
    """
    margins = np.maximum((1.0 + np.array(MARGINS)) / (1.0 + optimism) - 1.0, -0.1)
    return np.minimum(0.3 * 0.5 ** (margins / 0.02), 1.0)


def test_margins_are_where_the_shares_are_known_to_fall_to_the_risk() -> None:
    """Half as many are rejected with each 2 % of margin: the inverse has a closed form."""
    margins = fit_margins(drawn_verdicts(falling_shares(), 20_000, np.random.default_rng(0)))
    assert set(margins) == set(RISKS)
    for risk, margin in margins.items():
        assert margin == pytest.approx(0.02 * np.log2(0.3 / risk), abs=0.006)


def test_a_surrogate_that_claims_a_tenth_more_needs_ten_points_more() -> None:
    """What it packs with a margin of 10 % is what the other packs with none."""
    margins, hopeful = (
        fit_margins(drawn_verdicts(falling_shares(optimism=optimism), 5_000, np.random.default_rng(1)))
        for optimism in (0.0, 0.1)
    )
    for risk in (0.05, 0.1, 0.2):
        assert hopeful[risk] == pytest.approx(1.1 * (1.0 + margins[risk]) - 1.0, abs=0.015)


@given(seed=st.integers(0, 10_000), count=st.integers(0, 300), worst=st.floats(0.0, 1.0))
def test_the_curve_of_the_margin_falls_with_the_risk(seed: int, count: int, worst: float) -> None:
    """More risk never asks for more margin, and a risk that has one is followed by larger ones that have one."""
    generator = np.random.default_rng(seed)
    rejected = drawn_verdicts(worst * generator.random(len(MARGINS)), count, generator)
    curve = fit_margins(rejected, CURVE_RISKS)
    assert list(curve) == list(CURVE_RISKS[len(CURVE_RISKS) - len(curve) :])
    assert list(curve.values()) == sorted(curve.values(), reverse=True)
    assert all(0.0 <= margin <= MARGINS[-1] for margin in curve.values())


@given(needed=st.lists(st.sampled_from(range(len(MARGINS))), min_size=10, max_size=300))
def test_where_verdicts_never_contradict_each_other_it_is_the_quantile_of_split_conformal(needed: list[int]) -> None:
    """GPUs that need a margin each: the ceil((n + 1)(1 - risk))-th smallest, or between it and the margin before."""
    rejected = np.arange(len(MARGINS)) < np.array(needed)[:, np.newaxis]
    margins = fit_margins(rejected)
    for risk in RISKS:
        rank = math.ceil((len(needed) + 1) * (1.0 - risk) - 1e-9)
        if rank > len(needed):
            assert risk not in margins
            continue
        place = sorted(needed)[rank - 1]
        assert MARGINS[max(place - 1, 0)] <= margins[risk] <= MARGINS[place]


def test_the_shares_that_were_seen_are_those_that_were_asked_for() -> None:
    """GPUs that had no part in a margin are rejected as often as it says, up to chance."""
    generator = np.random.default_rng(3)
    seen = seen_shares(drawn_verdicts(falling_shares(), 4_000, generator))
    assert set(seen) == set(RISKS)
    for risk, share in seen.items():
        assert share == pytest.approx(risk, abs=0.25 * risk + 0.003)


def test_risks_about_which_nothing_can_be_said_have_no_margin() -> None:
    """Nineteen GPUs that are never rejected say something about 5 %, none anything, and some are always rejected."""
    served = np.zeros((19, len(MARGINS)), dtype=np.bool_)
    assert fit_margins(served) == {0.05: 0.0, 0.1: 0.0, 0.2: 0.0}
    assert fit_margins(served[:0]) == seen_shares(served[:0]) == {}
    hopeless = np.zeros((200, len(MARGINS)), dtype=np.bool_)
    hopeless[:30] = True
    assert fit_margins(hopeless) == {0.2: 0.0}


def test_the_facts_of_a_file_are_json_and_complete() -> None:
    """Margins by risk, what was seen, and the shares that they come from."""
    rejected = drawn_verdicts(falling_shares(), 400, np.random.default_rng(4))
    facts = margin_facts(PackedVerdicts(rejected, took_all=3, took_none=1))
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["gpus"], facts["took_all"], facts["took_none"]) == (400, 3, 1)
    assert (facts["horizon_s"], facts["warmup_s"]) == (DEFAULT_HORIZON_S, DEFAULT_WARMUP_S)
    by_curve = {f"{one['risk']:g}": one["margin"] for one in facts["curve"]}
    assert facts["by_risk"]
    assert all(by_curve[level] == margin for level, margin in facts["by_risk"].items())
    assert [one["margin"] for one in facts["rejected"]] == list(MARGINS)
    assert facts["rejected"][0]["share"] == pytest.approx(rejected[:, 0].mean(), abs=1e-5)
    empty = margin_facts(PackedVerdicts(rejected[:0], took_all=0, took_none=0))
    assert (empty["by_risk"], empty["curve"], empty["rejected"]) == ({}, [], [])
