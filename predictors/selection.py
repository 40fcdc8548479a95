"""Choose a model: the same search and the same time for each family, judged where plans are decided."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictors.errors import PACKED
from predictors.families import Family
from predictors.fitted_model import FittedModel, Raw
from predictors.risk import Calibration, fit_calibration
from predictors.targets import KinRows, TrainingRows
from twin.profile import PerformanceProfile


@dataclass(frozen=True)
class Trial:
    """One fit of a search.

    Attributes
    ----------
    family, settings
        What was fitted.
    score
        See `score_of`; smaller is better.
    seconds
        Wall time of the fit.
    """

    family: str
    settings: Mapping[str, Any]
    score: float
    seconds: float


@dataclass(frozen=True)
class Searched:
    """The outcome for a family: its best model, calibrated, and all trials in order."""

    family: Family
    model: FittedModel
    calibration: Calibration
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """The trial of the model."""
        return min(self.trials, key=lambda trial: trial.score)


def score_of(raw: Raw, calibration: Calibration, rows: TrainingRows) -> float:
    """Return the error that selection minimises: mean error of the ratio + mean squared error of the probability.

    Over the rows near the border; packed sets, which are what solvers ask about, count as much as all others together.
    """
    probability = calibration.probability(raw.log_odds)
    error = np.abs(raw.ratio - rows.ratio) + (probability - rows.starved_share) ** 2
    is_packed = rows.family == PACKED
    groups = [rows.is_near & is_packed, rows.is_near & ~is_packed]
    means = [float(error[group].mean()) for group in groups if group.any()]
    return float(np.mean(means)) if means else float(error.mean())


def search_family(
    family: Family,
    rows: TrainingRows,
    validation: TrainingRows,
    profile: PerformanceProfile,
    *,
    kin: Sequence[KinRows] = (),
    seed: int,
    time_limit_s: float,
    max_trials: int,
    on_trial: Callable[[Trial], None] = lambda trial: None,  # noqa: ARG005 - nobody watches
) -> Searched:
    """Fit a family with different settings until the time is up, and return the best one.

    The first trial has the family's usual settings; the others are drawn. A fit that is running is not cut off, but an
    iterative one gets no more than what is left (the first one: all) of the time.

    Parameters
    ----------
    rows, validation
        To fit to, and to judge and calibrate on.
    kin
        Rows of other profiles, to fit to as well.
    time_limit_s
        Wall time.
    """
    started_s = time.monotonic()
    best: tuple[float, FittedModel, Calibration] | None = None
    trials: list[Trial] = []
    for settings in itertools.islice(draw_settings(family, seed=seed), max_trials):
        begun_s = time.monotonic()
        left_s = time_limit_s - (begun_s - started_s)
        # Another fit is begun if it can be expected to end in time.
        if trials and left_s < max(trial.seconds for trial in trials):
            break
        model = family.fit(rows, profile, settings, kin=kin, seed=seed, time_limit_s=left_s)
        raw = model.raw(validation.features)
        calibration = fit_calibration(raw.log_odds, validation)
        score = score_of(raw, calibration, validation)
        trials.append(Trial(family.name, settings, score, time.monotonic() - begun_s))
        on_trial(trials[-1])
        if best is None or score < best[0]:
            best = (score, model, calibration)
    assert best is not None
    return Searched(family, best[1], best[2], tuple(trials))


def draw_settings(family: Family, *, seed: int) -> Iterator[dict[str, Any]]:
    """Yield settings of a family: the first choice of each, then all other combinations in random order."""
    names = tuple(family.choices)
    every = list(itertools.product(*family.choices.values()))
    yield dict(zip(names, every[0], strict=True))
    for index in np.random.default_rng(seed).permutation(len(every) - 1).tolist():
        yield dict(zip(names, every[1 + index], strict=True))


def split_scenarios(
    scenarios: NDArray[np.int64], *, seed: int, shares: Sequence[float] = (0.8, 0.1, 0.1)
) -> tuple[NDArray[np.bool_], ...]:
    """Return which rows are in each part, bool [N] each: whole scenarios, because the rows of one are alike."""
    distinct = np.unique(scenarios)
    order = np.random.default_rng(seed).permutation(distinct)
    ends = np.round(np.cumsum(shares) * len(distinct)).astype(int)
    return tuple(
        np.isin(scenarios, order[start:end]) for start, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)
    )
