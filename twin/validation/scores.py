"""Errors of predictions against measurements, by group of runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from twin.validation.predictions import RunPrediction
from twin.validation.quantities import SCORED_QUANTITIES
from twin.validation.regimes import REGIME_RULES, regime_of, slot_range_of

Floats = NDArray[np.float64]

# Quantities whose worst runs are listed, and how many of each.
LISTED_QUANTITIES = ("tok_per_s", "itl_mean_ms", "tpot_mean_ms", "ttft_p50_ms", "running_mean")
NUM_WORST = 3


class Score(BaseModel):
    """Part of a result: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ErrorSummary(Score):
    """Errors of one quantity over the runs that have it measured and predicted; ``None`` where there is no such run.

    Attributes
    ----------
    half_smape_percent, smape_percent
        100 * mean(|p - m| / (|p| + |m|)), and twice that.
    bias_percent
        100 * mean((p - m) / m), over the runs with m > 0.
    median_percent
        Median over the runs of 100 * |p - m| / (|p| + |m|).
    seed_spread_percent
        Half-SMAPE between the seeds of the predictions.
    """

    num_rows: int
    half_smape_percent: float | None = None
    smape_percent: float | None = None
    bias_percent: float | None = None
    median_percent: float | None = None
    seed_spread_percent: float | None = None


class StarvationScore(Score):
    """How well starved runs are told apart; a starved run is a positive.

    Attributes
    ----------
    precision, recall, f1
        ``None`` where they are 0 / 0.
    agreement
        Share of the runs with the right verdict.
    goodput_error
        Mean |predicted - measured goodput ratio|.
    """

    num_rows: int
    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int
    precision: float | None
    recall: float | None
    f1: float | None
    agreement: float | None
    goodput_error: float | None


class MemoryScore(Score):
    """Runs by whether the server started (``ok``) or lacked memory (``oom``): measured, then predicted."""

    ok_predicted_ok: int
    ok_predicted_oom: int
    oom_predicted_oom: int
    oom_predicted_ok: int


class GroupScore(Score):
    """Errors in one group of runs.

    Attributes
    ----------
    dimension, name
        What the runs are grouped by, and the group.
    num_rows, num_headline_rows
        Runs that served, and those of them that are informative and whose client kept up: the errors are theirs.
    num_metastable
        Headline runs whose seeds disagree.
    errors
        By quantity (`SCORED_QUANTITIES`).
    starvation, starvation_all
        Of the headline runs, and of all runs that served.
    """

    dimension: str
    name: str
    num_rows: int
    num_headline_rows: int
    num_metastable: int
    errors: dict[str, ErrorSummary]
    starvation: StarvationScore
    starvation_all: StarvationScore


class WorstRun(Score):
    """A run, and the relative error of one quantity of it: half-SMAPE, and (p - m) / m."""

    run_id: str
    measured: float
    predicted: float
    half_smape_percent: float
    bias_percent: float | None


class WorstRuns(Score):
    """The headline runs of a regime in which a quantity is predicted worst, the worst first."""

    regime: str
    quantity: str
    runs: tuple[WorstRun, ...]


def summarise_errors(measured: Floats, predicted: Floats, spread_percent: Floats | None = None) -> ErrorSummary:
    """Return the errors of `predicted` against `measured`.

    Parameters
    ----------
    measured, predicted
        float64 [N], >= 0; NaN where there is no value.
    spread_percent
        float64 [N], half-SMAPE between seeds.
    """
    known = np.isfinite(measured) & np.isfinite(predicted)
    if not known.any():
        return ErrorSummary(num_rows=0)
    errors = _half_smape_percent(measured[known], predicted[known])
    positive = known & (measured > 0)
    biases = 100.0 * (predicted[positive] - measured[positive]) / measured[positive]
    spreads = np.empty(0) if spread_percent is None else spread_percent[known & np.isfinite(spread_percent)]
    return ErrorSummary(
        num_rows=int(known.sum()),
        half_smape_percent=float(errors.mean()),
        smape_percent=2.0 * float(errors.mean()),
        bias_percent=float(biases.mean()) if len(biases) else None,
        median_percent=float(np.median(errors)),
        seed_spread_percent=float(spreads.mean()) if len(spreads) else None,
    )


def score_starvation(
    verdicts: Sequence[tuple[bool | None, bool | None]], goodputs: Sequence[tuple[float | None, float | None]]
) -> StarvationScore:
    """Return the score of (measured, predicted) verdicts and goodput ratios; pairs with a ``None`` do not count."""
    known = [(bool(measured), bool(said)) for measured, said in verdicts if measured is not None and said is not None]
    hits, false_alarms = known.count((True, True)), known.count((False, True))
    misses, rejections = known.count((True, False)), known.count((False, False))
    distances = [abs(said - measured) for measured, said in goodputs if measured is not None and said is not None]
    return StarvationScore(
        num_rows=len(known),
        true_positives=hits,
        false_positives=false_alarms,
        false_negatives=misses,
        true_negatives=rejections,
        precision=_ratio(hits, hits + false_alarms),
        recall=_ratio(hits, hits + misses),
        f1=_ratio(2 * hits, 2 * hits + false_alarms + misses),
        agreement=_ratio(hits + rejections, len(known)),
        goodput_error=float(np.mean(distances)) if distances else None,
    )


def as_floats(values: Sequence[float | None]) -> Floats:
    """Return values as float64 [N], NaN where there is none."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def score_quantity(predictions: Sequence[RunPrediction], quantity: str) -> ErrorSummary:
    """Return the errors of one of `SCORED_QUANTITIES` over runs."""
    return summarise_errors(
        as_floats([prediction.run.measured.value(quantity) for prediction in predictions]),
        as_floats([prediction.quantities.value(quantity) for prediction in predictions]),
        as_floats([prediction.seed_spread_percent[quantity] for prediction in predictions]),
    )


def score_verdicts(predictions: Sequence[RunPrediction]) -> StarvationScore:
    """Return how well starved runs are told apart."""
    return score_starvation(
        [(prediction.run.is_starved, prediction.is_starved) for prediction in predictions],
        [(prediction.run.measured.goodput_ratio, prediction.quantities.goodput_ratio) for prediction in predictions],
    )


def score_memory(predictions: Sequence[RunPrediction]) -> MemoryScore:
    """Return the confusion matrix of memory errors."""
    pairs = [(prediction.run.status, prediction.status) for prediction in predictions]
    return MemoryScore(
        ok_predicted_ok=pairs.count(("ok", "ok")),
        ok_predicted_oom=pairs.count(("ok", "oom")),
        oom_predicted_oom=pairs.count(("oom", "oom")),
        oom_predicted_ok=pairs.count(("oom", "ok")),
    )


def score_groups(predictions: Sequence[RunPrediction]) -> tuple[GroupScore, ...]:
    """Return the errors over all runs that served (first), then per split, model, slots, max rank and regime."""
    served = [prediction for prediction in predictions if prediction.run.status == "ok"]
    scores = [_score_group("all", "all", served)]
    for dimension, (key, order) in _DIMENSIONS.items():
        groups: dict[str, list[RunPrediction]] = {}
        for prediction in sorted(served, key=order):
            groups.setdefault(key(prediction), []).append(prediction)
        scores += [_score_group(dimension, name, members) for name, members in groups.items()]
    return tuple(scores)


def worst_runs(predictions: Sequence[RunPrediction]) -> tuple[WorstRuns, ...]:
    """Return the headline runs that are predicted worst, per regime and quantity (`LISTED_QUANTITIES`)."""
    result = []
    for regime in REGIME_RULES:
        members = [
            prediction
            for prediction in predictions
            if prediction.run.is_headline and regime_of(prediction.run) == regime
        ]
        for quantity in LISTED_QUANTITIES:
            known = [entry for prediction in members if (entry := _worst_run(prediction, quantity)) is not None]
            known.sort(key=lambda entry: entry.half_smape_percent, reverse=True)
            if known:
                result.append(WorstRuns(regime=regime, quantity=quantity, runs=tuple(known[:NUM_WORST])))
    return tuple(result)


def _score_group(dimension: str, name: str, served: Sequence[RunPrediction]) -> GroupScore:
    headline = [prediction for prediction in served if prediction.run.is_headline]
    return GroupScore(
        dimension=dimension,
        name=name,
        num_rows=len(served),
        num_headline_rows=len(headline),
        num_metastable=sum(prediction.is_metastable for prediction in headline),
        errors={quantity: score_quantity(headline, quantity) for quantity in SCORED_QUANTITIES},
        starvation=score_verdicts(headline),
        starvation_all=score_verdicts(served),
    )


def _worst_run(prediction: RunPrediction, quantity: str) -> WorstRun | None:
    measured, predicted = prediction.run.measured.value(quantity), prediction.quantities.value(quantity)
    if measured is None or predicted is None:
        return None
    return WorstRun(
        run_id=prediction.run.run_id,
        measured=measured,
        predicted=predicted,
        half_smape_percent=float(_half_smape_percent(np.array([measured]), np.array([predicted]))[0]),
        bias_percent=100.0 * (predicted - measured) / measured if measured > 0 else None,
    )


def _half_smape_percent(measured: Floats, predicted: Floats) -> Floats:
    """Return 100 * |p - m| / (|p| + |m|) of each pair; two zeros agree."""
    total = np.abs(predicted) + np.abs(measured)
    distance = np.abs(predicted - measured)
    shares: Floats = np.divide(distance, total, out=np.zeros_like(total), where=total > 0)
    return 100.0 * shares


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


Key = Callable[[RunPrediction], str]
Order = Callable[[RunPrediction], int]

# What runs are grouped by, and in which order the groups stand.
_DIMENSIONS: dict[str, tuple[Key, Order]] = {
    "split": (lambda prediction: prediction.run.split or "none", lambda _: 0),
    "model": (lambda prediction: prediction.run.model, lambda _: 0),
    "slots": (
        lambda prediction: slot_range_of(prediction.run.engine.max_loras),
        lambda prediction: prediction.run.engine.max_loras,
    ),
    "max rank": (
        lambda prediction: str(prediction.run.engine.max_lora_rank),
        lambda prediction: prediction.run.engine.max_lora_rank,
    ),
    "regime": (
        lambda prediction: regime_of(prediction.run),
        lambda prediction: list(REGIME_RULES).index(regime_of(prediction.run)),
    ),
}
