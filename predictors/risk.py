"""How far a surrogate can be believed: a calibrated probability of starvation, and the margin that a risk asks for.

Both come from scenarios that the fit has not seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from predictors.features import inflate
from predictors.targets import TrainingRows

# Risks of which a model's file tells the margin.
RISKS = (0.01, 0.02, 0.05, 0.1, 0.2)
# Risks between which the curve of the margin is drawn.
CURVE_RISKS = (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
# Factors on the rates between which a surrogate's own border is looked for.
_FACTORS = np.exp(np.linspace(-0.7, 0.7, 57))


@dataclass(frozen=True)
class Calibration:
    """Turns a model's log-odds into those that hold on average: ``slope * log_odds + offset`` (Platt scaling)."""

    slope: float = 1.0
    offset: float = 0.0

    def probability(self, log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the calibrated probability, float64 of the shape of `log_odds`."""
        probability: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-(self.slope * log_odds + self.offset)))
        return probability


def fit_calibration(log_odds: NDArray[np.float64], rows: TrainingRows) -> Calibration:
    """Return the calibration of a model's log-odds on rows that it was not fitted to, float64 [N]."""
    share = np.concatenate([rows.starved_share, 1.0 - rows.starved_share])
    is_starved = np.repeat([True, False], len(rows))
    counts = share > 0.0
    if is_starved[counts].all() or not is_starved[counts].any():
        return Calibration()
    line = LogisticRegression(C=1e6).fit(
        np.tile(log_odds, 2)[counts, np.newaxis], is_starved[counts], sample_weight=share[counts]
    )
    # A negative slope would turn monotone constraints around; it can only come from a hopeless fit.
    return Calibration(max(float(line.coef_[0, 0]), 1e-3), float(line.intercept_[0]))


@dataclass(frozen=True)
class Margins:
    """By what factor rates must be inflated so that at most a share `risk` of the sets that just fit starve.

    Attributes
    ----------
    num_borders
        Borders of searches, of scenarios that the fit has not seen, that the margins come from.
    by_risk
        Margin for each risk: 0.05 asks as if all rates were 5 % higher.
    median
        Half of the borders lie above this (log) error: what the surrogate is off by without risk or caution.
    """

    num_borders: int
    by_risk: dict[float, float]
    median: float


def border_errors(
    is_feasible: Callable[[NDArray[np.float32]], NDArray[np.bool_]], rows: TrainingRows
) -> NDArray[np.float64]:
    """Return by how much a surrogate places the border of starvation too high, natural logarithm, one per search.

    Of each search one row is asked under all factors on its rates; the largest load below all that the surrogate
    refuses is its border. Searches without a known border, or without one of the surrogate's, are left out.

    Parameters
    ----------
    is_feasible
        Says for float32 [N, F] which rows planning would accept, bool [N].
    """
    nearest = _rows_nearest_to_borders(rows)
    errors = []
    for index in nearest.tolist():
        features = np.concatenate([inflate(rows.features[[index]], float(factor)) for factor in _FACTORS])
        accepted = is_feasible(features)
        if accepted.all() or not accepted[0]:
            continue
        border = 0.5 * (math.log(_FACTORS[int(np.argmin(accepted)) - 1]) + math.log(_FACTORS[int(np.argmin(accepted))]))
        errors.append(border + float(rows.log_border[index]))
    return np.array(errors)


def _rows_nearest_to_borders(rows: TrainingRows) -> NDArray[np.int64]:
    """Return the index of the row of each search that is nearest to its border; int64."""
    known = np.flatnonzero(np.isfinite(rows.log_border))
    order = known[np.argsort(np.abs(rows.log_border[known]), kind="stable")]
    _, first = np.unique(rows.search_key[order], return_index=True)
    return np.sort(order[first])


def fit_margins(errors: NDArray[np.float64], risks: Sequence[float] = RISKS) -> Margins:
    """Return the margins for `risks` from `border_errors` (split conformal: the ceil((n + 1)(1 - risk))-th smallest).

    Risks that so few borders say nothing about are left out.
    """
    ordered = np.sort(errors)
    by_risk = {}
    for risk in risks:
        rank = math.ceil((len(ordered) + 1) * (1.0 - risk))
        if rank <= len(ordered):
            by_risk[risk] = max(0.0, math.expm1(float(ordered[rank - 1])))
    return Margins(len(ordered), by_risk, float(np.median(ordered)) if len(ordered) else 0.0)


def shares_beyond(margins: Mapping[float, float], errors: NDArray[np.float64]) -> dict[float, float]:
    """Return what share of `border_errors` of other sets lies beyond the margin of each risk; empty without errors."""
    if not len(errors):
        return {}
    return {risk: float(np.mean(errors > np.log1p(margin))) for risk, margin in margins.items()}
