"""Fit networks: teachers to labelled rows, and a student to what they say together.

Needs the extra `neural` (PyTorch).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from predictors.features import inflate
from predictors.neural import RATIO, STARVATION, NeuralNetwork
from predictors.neural_training import NeuralSettings, Targets, fit_to_targets, repeatable, require_torch
from predictors.physics import smooth_physics_layer
from predictors.targets import KinRows, TrainingRows, columns_to_fit
from twin.profile import PerformanceProfile

# How far from the loads of the rows teachers are asked as well: standard deviation, natural logarithm.
_LESSON_DISTANCE = 0.1
# Multiples of the rows' loads, up to hopeless ones, at which the student is shown that more load never helps, and how
# much such a lesson counts: plans are decided elsewhere.
_HEAVIER = (1.5, 2.2, 3.3, 5.0, 8.0)
_HEAVIER_WEIGHT = 0.3
# Pairs of loads of one row, of which the student must not say that the heavier one is served better: multiples of the
# row's load between which the lighter one lies, and how many times heavier the other is.
_LIGHTER_OF_PAIR = (0.5, 4.0)
_STEP_OF_PAIR = (1.1, 2.0)


def fit_network(
    rows: TrainingRows,
    profile: PerformanceProfile,
    *,
    kin: Sequence[KinRows] = (),
    start: NeuralNetwork | None = None,
    settings: NeuralSettings | None = None,
    time_limit_s: float = float("inf"),
) -> NeuralNetwork:
    """Fit a network to labelled rows on one thread.

    Parameters
    ----------
    kin
        Rows of other profiles and windows that it learns from, too: under its own profile's physics each means the
        same, and how long the window was is a column of its own while teachers are fitted.
    start
        A network of the same profile that the teachers and the student begin as, in place of random weights; all are as
        wide as it, whatever the settings say.
    settings
        ``None``: as they stand in the class.
    time_limit_s
        The learning rates are brought to 0 by then, whatever the epochs.

    Raises
    ------
    SurrogateError
        When PyTorch is not installed.
    """
    torch = require_torch()
    settings = settings or NeuralSettings()
    layer = smooth_physics_layer(profile)
    columns, labelled = columns_to_fit(_physics, rows, profile, kin)
    columns_and_window = np.column_stack([columns, _log_windows(rows, kin)])
    labels = Targets.of_labels(labelled)
    if start is not None:
        widths = tuple(len(biases) for biases in start.biases[:-1])
        settings = replace(settings, widths=widths, teacher_widths=widths)
    start_with_window = None if start is None else _with_window(start)

    def fit_to_labels(chosen: NeuralSettings, limit_s: float) -> NeuralNetwork:
        fitted = fit_to_targets(
            torch, layer, columns_and_window, labels, chosen, start=start_with_window, time_limit_s=limit_s
        )
        return _at_own_window(fitted)

    if not settings.teachers:
        with repeatable(torch):
            return fit_to_labels(settings, time_limit_s)
    # The student sees twice the rows.
    share_s = time_limit_s / (settings.teachers + 2)
    seeds = [settings.seed + number for number in range(settings.teachers + 1)]
    with repeatable(torch):
        *teachers, pupil = (replace(settings, seed=seed) for seed in seeds)
        wide = [replace(teacher, widths=settings.teacher_widths) for teacher in teachers]
        taught = [fit_to_labels(teacher, share_s) for teacher in wide]
        corpus = _Corpus(rows, profile, kin)
        near = np.concatenate([columns, corpus.columns_at(partial(_near_factors, seed=settings.seed))])
        heavy, heavy_lessons = _lessons_under_heavier_loads(taught, corpus, labels.weight, settings.seed)
        lessons = Targets.of_teachers(taught, near, np.tile(labels.weight, 2)).followed_by(heavy_lessons)
        columns, pairs = np.concatenate([near, heavy]), _pairs_of_loads(corpus, settings.seed)
        return fit_to_targets(
            torch, layer, columns, lessons, pupil, start=start, time_limit_s=2.0 * share_s, pairs=pairs
        )


def _log_windows(rows: TrainingRows, kin: Sequence[KinRows]) -> NDArray[np.float32]:
    """Return the natural logarithm of how many times as long as the first ones all rows were measured, float32 [N]."""
    logs = [0.0, *(float(np.log(part.window)) for part in kin)]
    return np.repeat(np.array(logs, dtype=np.float32), [len(rows), *(len(part.rows) for part in kin)])


def _at_own_window(network: NeuralNetwork) -> NeuralNetwork:
    """Return a network without the last column that it was fitted to: the window, which is 0 for its own rows."""
    return replace(network, weights=(network.weights[0][:-1], *network.weights[1:]))


def _with_window(network: NeuralNetwork) -> NeuralNetwork:
    """Return a network with the window as one more column, which changes nothing yet."""
    first = network.weights[0]
    return replace(network, weights=(np.vstack([first, np.zeros_like(first[:1])]), *network.weights[1:]))


def _physics(features: NDArray[np.float32], profile: PerformanceProfile) -> NDArray[np.float32]:
    return smooth_physics_layer(profile).columns(features)


@dataclass(frozen=True)
class _Corpus:
    """Rows of a profile, and those of others."""

    rows: TrainingRows
    profile: PerformanceProfile
    kin: Sequence[KinRows]

    def columns_at(self, factors: Callable[[int], NDArray[np.float64]]) -> NDArray[np.float32]:
        """Return the physics of all rows, those of other profiles last, at `factors` [len] of their loads."""

        def at_loads(part: TrainingRows) -> TrainingRows:
            return replace(part, features=inflate(part.features, factors(len(part))))

        kin = [KinRows(at_loads(part.rows), part.profile) for part in self.kin]
        return columns_to_fit(_physics, at_loads(self.rows), self.profile, kin)[0]


def _near_factors(count: int, seed: int) -> NDArray[np.float64]:
    return np.exp(np.random.default_rng(seed).normal(0.0, _LESSON_DISTANCE, count))


def _lessons_under_heavier_loads(
    teachers: Sequence[NeuralNetwork], corpus: _Corpus, weight: NDArray[np.float64], seed: int
) -> tuple[NDArray[np.float32], Targets]:
    """Return for each row the physics at one heavier load, and what teachers say, made to hold on the way there.

    What they say about loads that no row has may get better with more load. On the way from a row's own load to the
    largest multiple, the ratio is therefore the least one so far and the probability the largest.
    """
    level = np.random.default_rng(seed).integers(len(_HEAVIER), size=len(weight))
    columns = corpus.columns_at(np.ones)
    values = Targets.of_teachers(teachers, columns, weight).values
    ratio, probability = values[:, RATIO].copy(), values[:, STARVATION].copy()
    for position, factor in enumerate(_HEAVIER):
        asked = corpus.columns_at(partial(np.full, fill_value=factor))
        said = Targets.of_teachers(teachers, asked, weight).values
        ratio = said[:, RATIO] = np.minimum(ratio, said[:, RATIO])
        probability = said[:, STARVATION] = np.maximum(probability, said[:, STARVATION])
        chosen = level == position
        columns[chosen], values[chosen] = asked[chosen], said[chosen]
    return columns, Targets(values, _HEAVIER_WEIGHT * weight)


def _pairs_of_loads(corpus: _Corpus, seed: int) -> NDArray[np.float32]:
    """Return the physics of each row at two loads, the heavier one last, float32 [2, N, D]."""

    def factors(count: int, *, is_heavier: bool) -> NDArray[np.float64]:
        generator = np.random.default_rng(seed)
        lighter, step = (
            np.exp(generator.uniform(np.log(least), np.log(most), count))
            for least, most in (_LIGHTER_OF_PAIR, _STEP_OF_PAIR)
        )
        return lighter * step if is_heavier else lighter

    return np.stack([corpus.columns_at(partial(factors, is_heavier=is_heavier)) for is_heavier in (False, True)])
