"""The card of a surrogate as a page: its numbers, its figures, and nothing that a browser would have to fetch."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placer.model_card_figures import distance_figure, latency_figure, reliability_figure, risk_figure
from placer.model_card_report import render_card
from predictors.domain import Domain
from predictors.features import FEATURE_SCHEMA
from predictors.training import FamilyReport, TrainingReport
from tests.placer.test_figures import assert_whole
from twin.errors import InputError
from twin.profile import load_profile

FIGURES = {
    "rows": 1234.0,
    "ratio_mae": 0.0123,
    "ratio_mape": 1.5,
    "starvation_f1": 0.987,
    "brier": 0.04,
    "false_accepts": 0.05,
    "false_rejects": 0.06,
    "itl_mape": 7.0,
    "itl_median_error": 3.0,
    "ttft_mape": 80.0,
    "ttft_median_error": 20.0,
}
BIN = {"rows": 50.0, "load_over_border": 0.9, "ratio_mae": 0.02, "brier": 0.1}
BIN |= {"p5": -0.05, "p25": -0.01, "p50": 0.0, "p75": 0.01, "p95": 0.04}


def _family(name: str, score: float) -> FamilyReport:
    return FamilyReport(
        name=name,
        settings={"depth": 3},
        num_trials=2,
        fit_s=1.0,
        score=score,
        errors=dict.fromkeys(("all", "near_border", "packed"), FIGURES),
        parity={"itl_s": 0.001},
        size_bytes=2048,
        latency_us={1: 20.0, 100: 60.0, 10_000: 4000.0},
    )


def _facts(**changes: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "rows": 12345,
        "scenarios": 600,
        "fitted_rows": 10000,
        "validation_rows": 1111,
        "test_rows": 1234,
        "seed": 0,
        "time_limit_s": 600.0,
        "datasets": [
            {
                "rows": 12345,
                "seed": 4,
                "seeds": 3,
                "horizon_s": 600.0,
                "warmup_s": 100.0,
                "families": ["zipf", "packed"],
                "profile": {"name": "own", "fingerprint": "1"},
                "loads": [14, 8],
            }
        ],
        "kin": [
            {
                "rows": 678,
                "seed": 5,
                "seeds": 1,
                "horizon_s": 500.0,
                "warmup_s": 100.0,
                "families": ["few"],
                "profile": {"name": "kin", "fingerprint": "2"},
                "loads": [9, 7],
            }
        ],
        "recorded": None,
        "family": "boosting",
        "families": [{"name": "boosting", "trials": 3}, {"name": "tree", "trials": 8}],
        "errors": dict.fromkeys(("all", "near_border", "packed"), FIGURES),
        "reliability": [
            {"rows": 900.0, "predicted": 0.02, "starved": 0.01},
            {"rows": 34.0, "predicted": 0.5, "starved": 0.4},
        ],
        "distance": {
            "all": [BIN, BIN | {"load_over_border": 1.0}, BIN | {"load_over_border": 2.5}],
            "packed": [BIN],
        },
        "thresholds": {
            "gpus": 321,
            "took_all": 77,
            "took_none": 2,
            "horizon_s": 1800.0,
            "warmup_s": 300.0,
            "by_risk": {"0.05": 0.0876, "0.1": 0.2345},
            "rejected": [{"threshold": 0.5, "share": 0.45}, {"threshold": 0.1, "share": 0.06}],
            "curve": [
                {"risk": 0.05, "threshold": 0.0876, "seen": 0.04},
                {"risk": 0.1, "threshold": 0.2345, "seen": 0.08},
                {"risk": 0.5, "threshold": 0.5, "seen": 0.45},
            ],
        },
    }
    return facts | changes


def _report(**changes: Any) -> TrainingReport:
    features = np.ones((3, len(FEATURE_SCHEMA.names)), dtype=np.float32)
    return TrainingReport(
        file=Path("mine.onnx"),
        card=Path("mine.md"),
        chosen="boosting",
        families=(_family("boosting", 0.1), _family("tree", 0.2)),
        profile=load_profile("llama-3.1-8b-h100-64gb"),
        domain=Domain.from_rows(features),
        facts=_facts(**changes),
    )


def test_the_page_has_the_numbers_of_the_training() -> None:
    """Data, errors, families with latency and size, thresholds, domain, and the commands that make it again."""
    page = render_card(_report())
    for text in ("12,345 rows", "600 sets", "0.0123", "0.987", "boosting (chosen)", ">20<", ">4.0<", ">2<"):
        assert text in page, text
    for text in (
        "0.0876",
        "0.234",
        "321 GPUs",
        "on 77 the surrogate",
        "sum_kv_token_steps",
        "adapters_per_slot",
        "placer train rows1",
        "--trials 8",
    ):
        assert text in page, text
    assert page.count("<svg") == 4


def test_the_page_refers_to_nothing_outside_of_it() -> None:
    """No scripts, links, images or fonts: what is named by address are namespaces of SVG only."""
    page = render_card(_report())
    outside = re.findall(r"(?:src|href)=\"(?!#)[^\"]*\"|url\((?!#)[^)]*\)|@import|<script|<link", page)
    assert outside == []


def test_the_same_training_gives_the_same_page() -> None:
    """Identifiers in the figures do not change from run to run."""
    assert render_card(_report()) == render_card(_report())


def test_a_training_that_tells_no_threshold_still_has_a_page() -> None:
    """Few GPUs give no curve, or nothing that was seen, and a test without packed sets no line."""
    thresholds = _facts()["thresholds"] | {"curve": [], "by_risk": {}}
    page = render_card(_report(thresholds=thresholds, distance={"all": [BIN], "packed": []}))
    assert "too few" in page
    assert page.count("<svg") == 3
    unseen = [{"risk": 0.1, "threshold": 0.05, "seen": None}]
    thresholds = _facts()["thresholds"] | {"curve": unseen, "by_risk": {"0.1": 0.05}}
    assert render_card(_report(thresholds=thresholds)).count("<svg") == 4


def test_the_counts_of_the_bins_stand_in_the_reliability_plot() -> None:
    """A bin of few rows says little, and shows it."""
    figure = reliability_figure(_facts()["reliability"])
    assert [text.get_text() for text in figure.axes[1].texts] == ["900", "34"]
    assert_whole(figure, 2)


def test_the_border_is_where_loads_are_equal() -> None:
    """Errors are drawn over the logarithm of the load over that at the border, linear near it."""
    figure = distance_figure(_facts()["distance"])
    for axes in figure.axes:
        assert axes.get_xscale() == "symlog"
    line = figure.axes[1].get_lines()[0]
    assert np.asarray(line.get_xdata()).tolist() == pytest.approx(np.log([0.9, 1.0, 2.5]).tolist())
    assert np.asarray(line.get_ydata()).tolist() == [0.02, 0.02, 0.02]
    assert_whole(figure, 5)


def test_the_threshold_is_drawn_on_a_logarithmic_axis() -> None:
    """Shares by threshold as points, the threshold of a risk as a line: none where the surrogate is asked as it is."""
    share, seen = risk_figure(_facts()["thresholds"]).axes
    assert (share.get_xscale(), seen.get_xscale()) == ("log", "log")
    points, line = share.get_lines()
    assert np.asarray(points.get_xydata()).tolist() == [[0.5, 45.0], [0.1, 6.0]]
    assert np.asarray(line.get_xydata()).tolist() == [[0.0876, 5.0], [0.2345, 10.0]]
    assert np.asarray(seen.get_lines()[0].get_xydata()).tolist() == [[5.0, 4.0], [10.0, 8.0], [50.0, 45.0]]


def test_legends_are_whole() -> None:
    """All that is named lies in the picture."""
    assert_whole(risk_figure(_facts()["thresholds"]), 4)
    families = [_family(name, 0.1) for name in ("neural", "boosting", "forest", "tree")]
    assert_whole(latency_figure(families), 4)


def test_names_are_escaped() -> None:
    """A profile's name is a user's text."""
    report = _report()
    profile = report.profile.model_copy(update={"name": "<b>mine</b>"})
    page = render_card(replace(report, profile=profile))
    assert "<b>mine" not in page


def test_without_the_extra_the_message_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is drawn by libraries that the core does without."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError) as caught:
        render_card(_report())
    assert caught.value.hint == "pip install 'lora-placer[report]'"
