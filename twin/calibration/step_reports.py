"""What a fit says about itself in a profile's provenance: errors, intervals, serving runs; plain values for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from twin.calibration.step_fit import RegimeError


def errors_report(errors: Sequence[RegimeError]) -> dict[str, Any]:
    """Return error tables by regime, in percent."""
    return {
        error.regime: {
            "rows": error.num_rows,
            "mape": round(error.mape_percent, 2),
            "bias": round(error.bias_percent, 2),
            "max": round(error.max_percent, 2),
        }
        for error in errors
    }


def intervals_report(bounds: Mapping[str, tuple[float, float]]) -> dict[str, list[float]]:
    """Return intervals by coefficient."""
    return {name: [rounded(low), rounded(high)] for name, (low, high) in bounds.items()}


def runs_report(
    run_ids: Sequence[str], errors_percent: Sequence[float], alone_errors_percent: Sequence[float]
) -> dict[str, Any]:
    """Return which serving runs were fitted, and how far their time per output token is off.

    Parameters
    ----------
    errors_percent, alone_errors_percent
        Per run, predicted / measured - 1 in percent: by the joint fit, and by the fit to the steps alone.
    """
    values, alone = np.array(errors_percent), np.array(alone_errors_percent)
    return {
        "run_ids": list(run_ids),
        "tpot_mape_percent": round(float(np.abs(values).mean()), 2),
        "tpot_median_percent": round(float(np.median(np.abs(values))), 2),
        "tpot_bias_percent": round(float(values.mean()), 2),
        "steps_alone": {
            "tpot_mape_percent": round(float(np.abs(alone).mean()), 2),
            "tpot_median_percent": round(float(np.median(np.abs(alone))), 2),
            "tpot_bias_percent": round(float(alone.mean()), 2),
            "measured_over_predicted": rounded(float(np.median(100.0 / (100.0 + alone)))),
        },
    }


def rounded(value: float) -> float:
    """Return six significant digits: far below the noise, and readable in a file."""
    return float(f"{value:.6g}")
