"""How far a surrogate is from the twin, on all rows and where plans are decided."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from predictors.surrogate import SurrogateOutput

# Rows within this factor of the load at which their replica begins to starve are "near the border".
BORDER_FACTOR = 1.3
STARVATION_TOLERANCE = 0.1


def error_table(table: pd.DataFrame, output: SurrogateOutput) -> dict[str, dict[str, float]]:
    """Return error figures by subset: ``all`` rows, and those ``near_border`` of starvation.

    Per subset: `rows`; `ratio_mape`, `ratio_r2` (throughput ratio; percent, unitless); `starvation_f1`;
    `false_accepts` and `false_rejects`, the shares of starved and of healthy rows for which the rule of planning
    (probability < 0.5 and ratio >= 0.9) says the opposite; `itl_mape`, `ttft_mape`, `itl_median_error`,
    `ttft_median_error` (percent, 95th percentiles; of rows that do not starve).
    """
    near = near_border(table)
    return {
        "all": _errors(table, output, np.ones(len(table), dtype=np.bool_)),
        "near_border": _errors(table, output, near),
    }


def near_border(table: pd.DataFrame) -> NDArray[np.bool_]:
    """Return which rows of a data set lie within `BORDER_FACTOR` of where their search found the border, bool [N]."""
    distance = np.abs(table["log_border"].to_numpy(np.float64))
    return np.asarray(distance <= np.log(BORDER_FACTOR), dtype=np.bool_)


def _errors(table: pd.DataFrame, output: SurrogateOutput, mask: NDArray[np.bool_]) -> dict[str, float]:
    starved = (table["starved_share"].to_numpy() >= 0.5)[mask]
    ratio = np.clip(table["throughput_ratio"].to_numpy(np.float64), 0.0, 1.0)[mask]
    predicted = output.throughput_ratio[mask].astype(np.float64)
    says_starved = output.starvation_probability[mask] >= 0.5
    refused = says_starved | (predicted < 1.0 - STARVATION_TOLERANCE)
    hits = float(np.sum(starved & says_starved))
    figures = {
        "rows": float(mask.sum()),
        "ratio_mape": _mape(predicted, ratio),
        "ratio_r2": 1.0 - float(np.mean((predicted - ratio) ** 2)) / max(float(np.var(ratio)), 1e-12),
        "starvation_f1": 2.0 * hits / max(float(starved.sum() + says_starved.sum()), 1.0),
        "false_accepts": float(np.mean(~refused[starved])) if starved.any() else 0.0,
        "false_rejects": float(np.mean(refused[~starved])) if (~starved).any() else 0.0,
    }
    for name, column, values in (("itl", "itl_p95_s", output.itl_s), ("ttft", "ttft_p95_s", output.ttft_s)):
        actual = table[column].to_numpy(np.float64)[mask]
        known = np.isfinite(actual) & (actual > 0.0) & ~starved
        errors = np.abs(values[mask][known] - actual[known]) / actual[known]
        figures[f"{name}_mape"] = 100.0 * float(np.mean(errors)) if known.any() else 0.0
        figures[f"{name}_median_error"] = 100.0 * float(np.median(errors)) if known.any() else 0.0
    return {name: round(value, 5) for name, value in figures.items()}


def _mape(predicted: NDArray[np.float64], actual: NDArray[np.float64]) -> float:
    positive = actual > 0.0
    if not positive.any():
        return 0.0
    return 100.0 * float(np.mean(np.abs(predicted[positive] - actual[positive]) / actual[positive]))
