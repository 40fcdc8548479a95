"""Rows of a made-up replica whose truth is known, and settings of families that are fitted to them quickly."""

import importlib.util
from typing import Any

import numpy as np
import pytest

from predictors.contract import probe_features
from predictors.features import offered_tps
from predictors.targets import TrainingRows

NEEDS_TORCH = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch (extra `neural`) is not installed"
)
SMALL: dict[str, dict[str, Any]] = {
    "neural": {"widths": (16,), "epochs": 40, "batch_rows": 64, "teachers": 1, "teacher_widths": (24,)},
    "boosting": {"max_iter": 20},
    "forest": {"n_estimators": 5, "max_depth": 6},
    "tree": {"max_depth": 6},
}


def known_rows(count: int = 1500, *, seed: int = 0) -> TrainingRows:
    """Return rows of a made-up replica that serves 8,000 tokens/s and is slower the more it serves."""
    features = probe_features(count + 1, seed=seed)[:-1]
    offered = offered_tps(features).astype(np.float64)
    ratio = np.minimum(1.0, 8000.0 / offered)
    return TrainingRows(
        features=features,
        completed_ratio=ratio,
        starved_share=(ratio < 0.9).astype(np.float64),
        log_itl=np.log(0.02 + 1e-6 * offered),
        log_ttft=np.where(ratio < 0.2, np.nan, np.log(0.1 + 1e-5 * offered)),
        log_itl_mean=np.where(ratio < 0.2, np.nan, np.log(0.005 + 1e-6 * offered)),
        log_border=np.log(offered / (8000.0 / 0.9)),
        scenario=np.arange(count) // 5,
        family=np.where(np.arange(count) % 2 == 0, "packed", "zipf"),
        weight=np.ones(count),
    )
