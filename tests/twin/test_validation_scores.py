"""Errors of predictions against measurements: formulas, groups, flags and files."""

import csv
import io
import itertools
import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.engine import EngineConfig
from twin.validation.predictions import PREDICTION_COLUMNS, RunPrediction, predict_run, predictions_to_csv
from twin.validation.published import PublishedOutput, compare_published
from twin.validation.quantities import SCORED_QUANTITIES, Quantities, mean_quantities
from twin.validation.regimes import Regime, regime_of, slot_range_of
from twin.validation.replay import Replay
from twin.validation.runs import MeasuredRun
from twin.validation.scores import (
    score_groups,
    score_memory,
    score_starvation,
    summarise_errors,
    worst_runs,
)

VALUES = st.floats(1e-6, 1e6) | st.sampled_from([0.0, math.nan])
SAID = Quantities(
    tok_per_s=1450.0,
    itl_mean_ms=17.0,
    itl_p50_ms=15.0,
    tpot_mean_ms=16.5,
    ttft_p50_ms=40.0,
    running_mean=11.0,
    waiting_mean=0.0,
    kv_usage_mean=0.01,
    goodput_ratio=0.97,
)
ONE_RUN = MeasuredRun(
    run_id="R1",
    model="llama-3.1-8b",
    status="ok",
    engine=EngineConfig(vllm_version="0.8.5", max_loras=2, max_cpu_loras=4),
    num_adapters=4,
    traffic=None,
    total_time_s=60.0,
    split="valid",
    is_informative=True,
    has_client_collapsed=False,
    measured=SAID,
    is_starved=False,
    offered_tps=1500.0,
)


REFUSED = Replay(does_start=False, quantities=Quantities(), wall_s=0.0, cpu_s=0.0)


def _replay(**changes: float | None) -> Replay:
    return Replay(does_start=True, quantities=SAID.model_copy(update=changes), wall_s=0.2, cpu_s=0.1)


def _prediction(run: MeasuredRun, **changes: float | None) -> RunPrediction:
    return predict_run(run, [_replay(**changes)])


def _measured(run: MeasuredRun, run_id: str, **changes: float | None) -> MeasuredRun:
    """Return a run with other measurements; whether it starved follows from its goodput."""
    measured = run.measured.model_copy(update=changes)
    return replace(run, run_id=run_id, measured=measured, is_starved=measured.is_starved)


@given(st.lists(st.tuples(VALUES, VALUES), max_size=20))
def test_errors_are_those_of_their_definitions(pairs: list[tuple[float, float]]) -> None:
    """Against the formulas word by word, over the pairs of which both are known."""
    known = [(m, p) for m, p in pairs if not math.isnan(m) and not math.isnan(p)]
    errors = [100.0 * abs(p - m) / (abs(p) + abs(m)) if p != m else 0.0 for m, p in known]
    biases = [100.0 * (p - m) / m for m, p in known if m > 0]
    summary = summarise_errors(np.array([m for m, _ in pairs]), np.array([p for _, p in pairs]))
    assert summary.num_rows == len(known)
    if not known:
        assert summary.half_smape_percent is None
        return
    assert summary.half_smape_percent == pytest.approx(statistics.fmean(errors))
    assert summary.smape_percent == pytest.approx(
        statistics.fmean(100.0 * abs(p - m) / ((abs(p) + abs(m)) / 2) if p != m else 0.0 for m, p in known)
    )
    assert summary.median_percent == pytest.approx(statistics.median(errors))
    assert (summary.bias_percent is None) == (not biases)
    if biases:
        assert summary.bias_percent == pytest.approx(statistics.fmean(biases))


@given(st.lists(st.tuples(st.booleans() | st.none(), st.booleans() | st.none()), max_size=20))
def test_starvation_is_scored_as_a_search_for_starved_runs(verdicts: list[tuple[bool | None, bool | None]]) -> None:
    """Precision, recall and their harmonic mean, by counting."""
    known = [(m, p) for m, p in verdicts if m is not None and p is not None]
    found = [m for m, p in known if p]
    starved = [p for m, p in known if m]
    score = score_starvation(verdicts, [])
    assert score.num_rows == len(known)
    assert score.precision == (sum(found) / len(found) if found else None)
    assert score.recall == (sum(starved) / len(starved) if starved else None)
    assert score.agreement == (sum(m == p for m, p in known) / len(known) if known else None)
    if score.precision and score.recall:
        assert score.f1 == pytest.approx(2 / (1 / score.precision + 1 / score.recall))
    assert score.goodput_error is None


def test_the_goodput_error_is_the_mean_distance() -> None:
    """Pairs without a value do not count."""
    score = score_starvation([], [(0.9, 0.8), (0.5, 0.8), (None, 0.1), (0.3, None)])
    assert score.goodput_error == pytest.approx(0.2)


def test_a_prediction_is_the_mean_over_seeds() -> None:
    """The verdict is that of the mean goodput; what a seed lacks, the others give."""
    replays = [_replay(goodput_ratio=0.95, ttft_p50_ms=None), _replay(goodput_ratio=0.83), _replay(goodput_ratio=0.86)]
    prediction = predict_run(ONE_RUN, replays)
    assert prediction.quantities.goodput_ratio == pytest.approx(0.88)
    assert prediction.quantities.ttft_p50_ms == 40.0
    assert (prediction.status, prediction.is_starved, prediction.is_metastable) == ("ok", True, True)
    assert (prediction.wall_s, prediction.cpu_s) == pytest.approx((0.2, 0.1))


@given(st.lists(st.floats(0.001, 1e3), min_size=1, max_size=5))
def test_the_seed_spread_is_the_half_smape_of_all_pairs(values: list[float]) -> None:
    """With one seed there is no pair, and no spread."""
    samples = [_replay(itl_mean_ms=value) for value in values]
    pairs = [100.0 * abs(a - b) / (a + b) for a, b in itertools.combinations(values, 2)]
    assert mean_quantities([sample.quantities for sample in samples]).itl_mean_ms == pytest.approx(
        statistics.fmean(values)
    )
    spread = predict_run(ONE_RUN, samples).seed_spread_percent["itl_mean_ms"]
    assert spread == (pytest.approx(statistics.fmean(pairs)) if pairs else None)


@pytest.mark.parametrize(
    ("changes", "is_metastable"),
    [
        ({}, False),
        ({"goodput_ratio": 0.93}, False),
        ({"goodput_ratio": 0.92}, True),
        ({"running_mean": 13.7}, False),
        ({"running_mean": 13.8}, True),
        ({"tok_per_s": 1600.0}, False),
    ],
)
def test_runs_about_which_seeds_disagree_are_metastable(changes: dict[str, float], *, is_metastable: bool) -> None:
    """Goodput apart by more than 5 % or running requests by more than 25 %; more traffic alone is no disagreement."""
    assert predict_run(ONE_RUN, [_replay(), _replay(**changes)]).is_metastable is is_metastable


def test_verdicts_that_flip_are_metastable() -> None:
    """However close the seeds are to each other."""
    assert predict_run(ONE_RUN, [_replay(goodput_ratio=0.901), _replay(goodput_ratio=0.899)]).is_metastable


@pytest.mark.parametrize(
    ("changes", "slots", "has_collapsed", "regime"),
    [
        ({"waiting_mean": 0.99, "kv_usage_mean": 0.99}, 2, False, "unsaturated"),
        ({"waiting_mean": 1.0, "kv_usage_mean": 0.89}, 2, False, "slots-bound"),
        ({"waiting_mean": 1.0, "kv_usage_mean": 0.9}, 2, False, "KV-bound"),
        ({"waiting_mean": 1.0, "kv_usage_mean": 0.5}, 4, False, "KV-bound"),
        ({"waiting_mean": 1.0, "kv_usage_mean": None}, 4, False, "not measured"),
        ({"waiting_mean": 0.0}, 2, True, "collapsed"),
    ],
)
def test_the_regime_follows_from_what_was_measured(
    changes: dict[str, float | None], slots: int, regime: Regime, *, has_collapsed: bool
) -> None:
    """The rules that the report prints, at their limits; four adapters are served."""
    engine = ONE_RUN.engine.model_copy(update={"max_loras": slots})
    changed = replace(_measured(ONE_RUN, "R1", **changes), engine=engine, has_client_collapsed=has_collapsed)
    assert regime_of(changed) == regime
    assert regime_of(replace(changed, status="oom")) == "not started"


@pytest.mark.parametrize(
    ("slots", "name"),
    [(1, "1-7"), (8, "8-16"), (16, "8-16"), (17, "17-64"), (128, "65-128"), (192, "129-192"), (193, ">192")],
)
def test_slots_fall_into_ranges(slots: int, name: str) -> None:
    """Both ends of a range belong to it."""
    assert slot_range_of(slots) == name


def test_errors_count_headline_runs_and_starvation_counts_all() -> None:
    """A run whose client collapsed, and one that is not informative, are scored by their verdict only."""
    predictions = [
        _prediction(ONE_RUN, tok_per_s=1450.0 * 3),
        _prediction(replace(ONE_RUN, run_id="R2", is_informative=False), tok_per_s=1.0),
        _prediction(replace(ONE_RUN, run_id="R3", has_client_collapsed=True, is_starved=True), goodput_ratio=0.5),
        predict_run(replace(ONE_RUN, run_id="R4", status="oom"), [REFUSED]),
    ]
    everything = score_groups(predictions)[0]
    assert (everything.num_rows, everything.num_headline_rows) == (3, 1)
    assert everything.errors["tok_per_s"].half_smape_percent == pytest.approx(50.0)
    assert everything.errors["tok_per_s"].bias_percent == pytest.approx(200.0)
    assert everything.errors["itl_mean_ms"].half_smape_percent == 0.0
    assert (everything.starvation.num_rows, everything.starvation_all.num_rows) == (1, 3)
    assert (everything.starvation.f1, everything.starvation_all.f1) == (None, 1.0)


def test_groups_partition_the_runs_that_served() -> None:
    """In every dimension each of them is in exactly one group; ranges of slots stand in their order."""
    engines = [
        ONE_RUN.engine.model_copy(update={"max_loras": slots, "max_cpu_loras": 256}) for slots in (192, 8, 64, 16)
    ]
    predictions = [_prediction(replace(ONE_RUN, run_id=f"R{k}", engine=entry)) for k, entry in enumerate(engines)]
    groups = score_groups(predictions)
    for dimension in ("split", "model", "slots", "max rank", "regime"):
        assert sum(group.num_rows for group in groups if group.dimension == dimension) == len(predictions)
    assert [group.name for group in groups if group.dimension == "slots"] == ["8-16", "17-64", "129-192"]


def test_a_run_that_wrongly_does_not_start_is_a_memory_error_only() -> None:
    """It has no predictions to be scored by, and the confusion matrix shows it."""
    refused = predict_run(ONE_RUN, [REFUSED])
    assert (refused.status, refused.is_starved) == ("oom", None)
    assert score_groups([refused])[0].errors["tok_per_s"].num_rows == 0
    failed = replace(ONE_RUN, run_id="R2", status="oom")
    predictions = [refused, _prediction(ONE_RUN), _prediction(failed), predict_run(failed, [REFUSED])]
    assert score_memory([*predictions, _prediction(ONE_RUN)]).model_dump() == {
        "ok_predicted_ok": 2,
        "ok_predicted_oom": 1,
        "oom_predicted_ok": 1,
        "oom_predicted_oom": 1,
    }


def test_the_worst_runs_are_listed_per_regime_and_quantity() -> None:
    """Three at most, the worst first, with their signed errors."""
    predictions = [_prediction(replace(ONE_RUN, run_id=f"R{k}"), tpot_mean_ms=16.5 * k) for k in (1, 4, 2, 3)]
    worst = {(entry.regime, entry.quantity): entry.runs for entry in worst_runs(predictions)}
    assert {regime for regime, _ in worst} == {"unsaturated"}
    entries = worst["unsaturated", "tpot_mean_ms"]
    assert [entry.run_id for entry in entries] == ["R4", "R3", "R2"]
    assert [entry.bias_percent for entry in entries] == pytest.approx([300.0, 200.0, 100.0])


def test_another_twin_is_scored_on_the_runs_that_both_have() -> None:
    """Here it is exact where we are wrong; a collapsed run counts for starvation only."""
    collapsed = replace(_measured(ONE_RUN, "R2", goodput_ratio=0.5), has_client_collapsed=True)
    predictions = [
        _prediction(ONE_RUN, tok_per_s=1450.0 * 3),
        _prediction(collapsed),
        _prediction(replace(ONE_RUN, run_id="R3")),
    ]
    published = {
        "R1": PublishedOutput(1450.0, 17.0),
        "R2": PublishedOutput(750.0, 1.0),
        "R9": PublishedOutput(1.0, 1.0),
    }
    headline, everything = compare_published(predictions, published)
    assert (headline.num_rows, everything.num_rows) == (1, 2)
    for comparison in (headline, everything):
        assert comparison.published.throughput.half_smape_percent == 0.0
        assert comparison.ours.throughput.half_smape_percent == pytest.approx(50.0)
        assert (comparison.ours.throughput.num_rows, comparison.published.itl_mean.num_rows) == (1, 1)
    assert (everything.published.starvation.f1, everything.ours.starvation.f1) == (1.0, 0.0)


def test_without_common_runs_there_is_no_comparison() -> None:
    """Rather than a table of dashes."""
    assert compare_published([_prediction(ONE_RUN)], {"R9": PublishedOutput(1.0, 1.0)}) == ()


def test_predictions_are_written_one_row_per_run() -> None:
    """The columns begin as promised; a run that does not start has a status and no numbers."""
    predictions = [
        predict_run(ONE_RUN, [_replay(), _replay(goodput_ratio=0.5)]),
        predict_run(replace(ONE_RUN, run_id="R2"), [REFUSED]),
    ]
    first, second = csv.DictReader(io.StringIO(predictions_to_csv(predictions)))
    assert tuple(first)[: len(PREDICTION_COLUMNS)] == PREDICTION_COLUMNS
    assert (first["run_id"], first["status"], first["starved"], first["metastable"]) == ("R1", "ok", "1", "1")
    for name in SCORED_QUANTITIES:
        assert float(first[name]) == SAID.value(name)
    assert float(first["goodput_ratio"]) == pytest.approx(0.735)
    assert (second["run_id"], second["status"], second["metastable"]) == ("R2", "oom", "0")
    assert {second[name] for name in PREDICTION_COLUMNS[2:]} == {""}
