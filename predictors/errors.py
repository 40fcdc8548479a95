"""How far a surrogate is from the twin: on all rows, where plans are decided, and on sets as packers make them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from predictors.surrogate import STARVED_PROBABILITY, SurrogateOutput
from predictors.targets import TrainingRows

# From this ratio on planning accepts a set, if it is not predicted to starve.
FEASIBLE_RATIO = 0.9
# Kind of scenarios as a packer makes them (predictors/scenarios.py).
PACKED = "packed"
RELIABILITY_BINS = 10
# Edges of the bins of the distance from the border, as load over border.
DISTANCE_EDGES = (0.25, 0.5, 0.7, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.3, 1.5, 2.0)
# Percentiles of the error of the ratio that are told for each bin.
ERROR_PERCENTILES = (5, 25, 50, 75, 95)

Table = dict[str, dict[str, float]]


def is_feasible(output: SurrogateOutput) -> NDArray[np.bool_]:
    """Return which rows planning accepts, bool [N]."""
    accepted = (output.starvation_probability < STARVED_PROBABILITY) & (output.throughput_ratio >= FEASIBLE_RATIO)
    return np.asarray(accepted, dtype=np.bool_)


def error_table(rows: TrainingRows, output: SurrogateOutput) -> Table:
    """Return error figures by subset of the rows: ``all``, ``near_border`` of starvation, ``packed`` near the border.

    Per subset: `rows`; of the throughput ratio `ratio_mae` and `ratio_mape` (percent); of starvation, where most seeds
    decide what is true, `starvation_f1` and `brier` (mean squared error of the probability against the share of seeds);
    `false_accepts` and `false_rejects`, the shares of starved and of healthy rows for which the rule of planning says
    the opposite; `itl_mape`, `ttft_mape`, `itl_median_error`, `ttft_median_error` (percent, 95th percentiles; of rows
    that do not starve).
    """
    near = rows.is_near
    subsets = {"all": np.ones(len(rows), dtype=np.bool_), "near_border": near, "packed": near & (rows.family == PACKED)}
    return {name: _errors(rows.select(mask), select_output(output, mask)) for name, mask in subsets.items()}


def reliability(rows: TrainingRows, output: SurrogateOutput) -> list[dict[str, float]]:
    """Return, for equal bins of the probability of starvation, `rows`, mean `predicted`, and `starved` share.

    Bins without rows are left out.
    """
    bins = np.minimum((output.starvation_probability * RELIABILITY_BINS).astype(int), RELIABILITY_BINS - 1)
    return [
        {
            "rows": float((bins == number).sum()),
            "predicted": round(float(output.starvation_probability[bins == number].mean()), 5),
            "starved": round(float(rows.starved_share[bins == number].mean()), 5),
        }
        for number in np.unique(bins).tolist()
    ]


def error_over_distance(rows: TrainingRows, output: SurrogateOutput) -> dict[str, list[dict[str, float]]]:
    """Return errors by distance from the border, for the subsets ``all`` and ``packed`` of rows with a known border.

    Of each bin between `DISTANCE_EDGES` (bins without rows are left out): `rows`, their mean `load_over_border`
    (geometric), `ratio_mae` and `brier` as in `error_table`, and the percentiles `p5` to `p95` of the predicted minus
    the true throughput ratio.
    """
    known = np.isfinite(rows.log_border)
    subsets = {"all": known, "packed": known & (rows.family == PACKED)}
    return {name: _by_distance(rows.select(mask), select_output(output, mask)) for name, mask in subsets.items()}


def _by_distance(rows: TrainingRows, output: SurrogateOutput) -> list[dict[str, float]]:
    bins = np.searchsorted(np.log(DISTANCE_EDGES), rows.log_border)
    error = output.throughput_ratio.astype(np.float64) - rows.ratio
    brier = (output.starvation_probability.astype(np.float64) - rows.starved_share) ** 2
    table = []
    for number in np.unique(bins).tolist():
        mask = bins == number
        figures = {
            "rows": float(mask.sum()),
            "load_over_border": float(np.exp(rows.log_border[mask].mean())),
            "ratio_mae": _mean(np.abs(error[mask])),
            "brier": _mean(brier[mask]),
        }
        percentiles = np.percentile(error[mask], ERROR_PERCENTILES).tolist()
        figures |= {f"p{level}": value for level, value in zip(ERROR_PERCENTILES, percentiles, strict=True)}
        table.append({name: round(value, 5) for name, value in figures.items()})
    return table


def select_output(output: SurrogateOutput, mask: NDArray[np.bool_]) -> SurrogateOutput:
    """Return the answers of the chosen rows (bool [N])."""
    return SurrogateOutput(**{name: getattr(output, name)[mask] for name in output.__dataclass_fields__})


def _errors(rows: TrainingRows, output: SurrogateOutput) -> dict[str, float]:
    starved = rows.starved_share >= STARVED_PROBABILITY
    predicted = output.throughput_ratio.astype(np.float64)
    probability = output.starvation_probability.astype(np.float64)
    says_starved, refused = probability >= STARVED_PROBABILITY, ~is_feasible(output)
    hits = float(np.sum(starved & says_starved))
    positive = rows.ratio > 0.0
    figures = {
        "rows": float(len(rows)),
        "ratio_mae": _mean(np.abs(predicted - rows.ratio)),
        "ratio_mape": 100.0 * _mean(np.abs(predicted - rows.ratio)[positive] / rows.ratio[positive]),
        "starvation_f1": 2.0 * hits / max(float(starved.sum() + says_starved.sum()), 1.0),
        "brier": _mean((probability - rows.starved_share) ** 2),
        "false_accepts": _mean(~refused[starved]),
        "false_rejects": _mean(refused[~starved]),
    }
    for name, logarithm, values in (("itl", rows.log_itl, output.itl_s), ("ttft", rows.log_ttft, output.ttft_s)):
        known = np.isfinite(logarithm) & ~starved
        errors = np.abs(values[known] / np.exp(logarithm[known]) - 1.0)
        figures[f"{name}_mape"] = 100.0 * _mean(errors)
        figures[f"{name}_median_error"] = 100.0 * float(np.median(errors)) if len(errors) else 0.0
    return {name: round(value, 5) for name, value in figures.items()}


def _mean(values: NDArray[np.float64] | NDArray[np.bool_]) -> float:
    return float(np.mean(values)) if len(values) else 0.0
