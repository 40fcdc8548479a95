"""What every family of models is fitted to: the labels of a data set as arrays, and how much each row counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from predictors.features import FEATURE_SCHEMA
from twin.profile import PerformanceProfile

# Below the resolution of a step, and above what a simulation of some minutes can show.
LATENCY_RANGE_S = (1e-3, 1e4)
# Among few requests, more can complete in a window than arrive: how much more a fit is told.
MOST_RATIO = 1.1
# Rows within this distance of the border (natural logarithm of load over border) decide plans, and count more.
NEAR_BORDER = 0.15
NEAR_WEIGHT = 2.0


@dataclass(frozen=True)
class TrainingRows:
    """N labelled rows.

    Attributes
    ----------
    features
        float32 [N, F], as `predictors.features.FEATURE_SCHEMA` orders them.
    completed_ratio
        float64 [N], throughput over offered load, in [0, `MOST_RATIO`]: above 1 where more completed than arrived. What
        to fit to: cut off at 1, chance would lower the mean of rows near it.
    starved_share
        float64 [N], share of the simulations in which the replica or an adapter starved.
    log_itl, log_ttft, log_itl_mean
        float64 [N], natural logarithms of the 95th percentiles, and of the mean inter-token latency, in seconds; NaN
        where nothing completed.
    log_border
        float64 [N], natural logarithm of the load over the largest one that does not starve; NaN where unknown.
    scenario
        int64 [N], number of the scenario: rows of one are alike, and are held out together.
    family
        str [N], kind of the scenario.
    weight
        float64 [N], > 0.
    """

    features: NDArray[np.float32]
    completed_ratio: NDArray[np.float64]
    starved_share: NDArray[np.float64]
    log_itl: NDArray[np.float64]
    log_ttft: NDArray[np.float64]
    log_itl_mean: NDArray[np.float64]
    log_border: NDArray[np.float64]
    scenario: NDArray[np.int64]
    family: NDArray[np.str_]
    weight: NDArray[np.float64]

    def __len__(self) -> int:
        """Return N."""
        return len(self.completed_ratio)

    @property
    def ratio(self) -> NDArray[np.float64]:
        """Throughput over offered load as surrogates state it, in [0, 1]; float64 [N]."""
        return np.minimum(self.completed_ratio, 1.0)

    @property
    def is_near(self) -> NDArray[np.bool_]:
        """Which rows are near the border, bool [N]."""
        return np.asarray(np.abs(self.log_border) <= NEAR_BORDER, dtype=np.bool_)

    def select(self, mask: NDArray[np.bool_]) -> TrainingRows:
        """Return the chosen rows (bool [N])."""
        return TrainingRows(**{name: getattr(self, name)[mask] for name in self.__dataclass_fields__})


@dataclass(frozen=True)
class KinRows:
    """Rows that are fitted to as well, labelled with another profile or over another window.

    Models that see what a load means under each profile, and how long the window was, learn from them, too.

    Attributes
    ----------
    rows
        Of one data set.
    profile
        That labelled them.
    window
        How many times as long as the surrogate's own rows these were measured, > 0.
    """

    rows: TrainingRows
    profile: PerformanceProfile
    window: float = 1.0


def columns_to_fit(
    columns_of: Callable[[NDArray[np.float32], PerformanceProfile], NDArray[np.float32]],
    rows: TrainingRows,
    profile: PerformanceProfile,
    kin: Sequence[KinRows],
) -> tuple[NDArray[np.float32], TrainingRows]:
    """Return what a model sees of all rows, float32 [N, D], each under its own profile; and the rows, `kin` last."""
    parts = [KinRows(rows, profile), *kin]
    columns = np.concatenate([columns_of(part.rows.features, part.profile) for part in parts])
    every = {
        name: np.concatenate([getattr(part.rows, name) for part in parts]) for name in TrainingRows.__dataclass_fields__
    }
    return columns, TrainingRows(**every)


def training_rows(table: pd.DataFrame) -> TrainingRows:
    """Return the rows of a data set (`predictors.dataset.load_dataset`) that can be fitted to."""
    log_border = table["log_border"].to_numpy(np.float64)
    is_near = np.abs(log_border) <= NEAR_BORDER
    return TrainingRows(
        features=table[list(FEATURE_SCHEMA.names)].to_numpy(np.float32),
        completed_ratio=np.clip(table["throughput_ratio"].to_numpy(np.float64), 0.0, MOST_RATIO),
        starved_share=table["starved_share"].to_numpy(np.float64),
        log_itl=_log_latency(table["itl_p95_s"]),
        log_ttft=_log_latency(table["ttft_p95_s"]),
        log_itl_mean=_log_latency(table["itl_mean_s"]),
        log_border=log_border,
        scenario=table["scenario"].to_numpy(np.int64),
        family=table["family"].to_numpy(np.str_),
        weight=np.where(is_near, NEAR_WEIGHT, 1.0),
    )


def _log_latency(column: pd.Series[float]) -> NDArray[np.float64]:
    values = column.to_numpy(np.float64)
    return np.where(np.isfinite(values), np.log(np.clip(values, *LATENCY_RANGE_S)), np.nan)
