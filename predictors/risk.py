"""How far a surrogate can be believed: a calibrated probability of starvation, and what of it a risk allows.

Both come from sets that the fit has not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from predictors.packed_verdicts import THRESHOLDS, PackedVerdicts
from predictors.targets import TrainingRows
from twin.judging_window import DEFAULT_HORIZON_S, DEFAULT_WARMUP_S

# Risks between which the curve of the threshold is drawn, and those of them of which a model's file tells it.
CURVE_RISKS = (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
RISKS = (0.01, 0.02, 0.05, 0.1, 0.2)
# Parts of which each is judged with the threshold of the others.
_PARTS = 10
# Of a share of GPUs, as a number.
_ROUNDING = 1e-12


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


def _caution(thresholds: ArrayLike) -> NDArray[np.float64]:
    """Return log-odds of served at these thresholds: 0 at one half, and larger where less is accepted."""
    caution: NDArray[np.float64] = -logit(np.asarray(thresholds, dtype=np.float64))
    return caution


_CAUTION = _caution(THRESHOLDS)


def fit_thresholds(rejected: NDArray[np.bool_], risks: Sequence[float] = RISKS) -> dict[float, float]:
    """Return by risk the largest probability of starvation with which at most that share of packed GPUs is rejected.

    Conformal risk control (Angelopoulos et al., arXiv 2208.02814): among N GPUs, the expected share is at most the risk
    where one more rejected GPU among N + 1 would keep it. Because a larger set may by chance be served where a smaller
    one is not, neighbouring shares are first pooled until they fall with the threshold (isotonic regression); between
    two thresholds they are interpolated in its log-odds.

    Parameters
    ----------
    rejected
        bool [N, len(THRESHOLDS)], as `predictors.packed_verdicts.judge_packed_gpus` returns it.

    Returns
    -------
    Thresholds in (0, 0.5], without the risks that are not kept with the smallest of `THRESHOLDS`, or about which so few
    GPUs say nothing.
    """
    count = len(rejected)
    if not count:
        return {}
    pooled = IsotonicRegression(increasing=False).fit(_CAUTION, rejected.mean(axis=0)).predict(_CAUTION)
    bounds = (count * pooled + 1.0) / (count + 1)
    by_risk = {}
    for risk in risks:
        kept = np.flatnonzero(bounds <= risk + _ROUNDING)
        if len(kept):
            first = int(kept[0])
            pair = slice(max(first - 1, 0), first + 1)
            # Bounds fall, and `interp` wants them to rise.
            by_risk[risk] = float(expit(-np.interp(-risk, -bounds[pair], _CAUTION[pair])))
    return by_risk


def seen_shares(rejected: NDArray[np.bool_], risks: Sequence[float] = RISKS) -> dict[float, float]:
    """Return by risk what share of GPUs was rejected with a threshold that others gave.

    Each tenth of the GPUs is judged with the threshold of the other nine; without the risks for which some of them give
    none.

    Parameters
    ----------
    rejected
        See `fit_thresholds`.
    """
    tenth = np.arange(len(rejected)) % _PARTS
    sums = dict.fromkeys(risks, 0.0)
    for part in np.unique(tenth):
        thresholds = fit_thresholds(rejected[tenth != part], risks)
        own = rejected[tenth == part].sum(axis=0)
        sums = {
            risk: total + float(np.interp(_caution(thresholds[risk]), _CAUTION, own))
            for risk, total in sums.items()
            if risk in thresholds
        }
    return {risk: total / len(rejected) for risk, total in sums.items()} if len(rejected) else {}


def threshold_facts(verdicts: PackedVerdicts) -> dict[str, Any]:
    """Return what a surrogate's metadata say about its thresholds: see docs/training.md."""
    rejected = verdicts.rejected
    curve = fit_thresholds(rejected, CURVE_RISKS)
    seen = seen_shares(rejected, CURVE_RISKS)
    shares = rejected.mean(axis=0).tolist() if len(rejected) else []
    return {
        "gpus": len(rejected),
        "took_all": verdicts.took_all,
        "took_none": verdicts.took_none,
        "horizon_s": DEFAULT_HORIZON_S,
        "warmup_s": DEFAULT_WARMUP_S,
        "by_risk": {f"{risk:g}": round(threshold, 6) for risk, threshold in curve.items() if risk in RISKS},
        "curve": [
            {"risk": risk, "threshold": round(threshold, 6), "seen": round(seen[risk], 5) if risk in seen else None}
            for risk, threshold in curve.items()
        ],
        "rejected": [
            {"threshold": threshold, "share": round(share, 5)}
            for threshold, share in zip(THRESHOLDS, shares, strict=False)
        ],
    }
