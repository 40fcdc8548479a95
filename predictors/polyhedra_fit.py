"""Fit polyhedra to what a network says that was fitted to labelled rows.

Needs the extra `neural` (PyTorch). A row's label is the verdict of one traffic; a network that has seen hundreds of
thousands of rows says how often the set starves, and says it of other loads and of mixtures of sets, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from predictors.features import AGGREGATE_NAMES, FEATURE_SCHEMA, inflate
from predictors.neural import RATIO, STARVATION
from predictors.neural_training import batches, one_cycle, repeatable, require_torch
from predictors.polyhedra import NUM_AGGREGATES, SETTING_COLUMNS, SETTING_NAMES, Polyhedra
from predictors.polyhedra_terms import LARGEST_RANK, physical_terms
from predictors.targets import MOST_RATIO, NEAR_WEIGHT, TrainingRows
from twin.engine import SUPPORTED_RANKS

# How far from their own loads rows are asked about: natural logarithms, a standard deviation and two ends; and how much
# the second kind counts, which knows little of the border.
_NEAR = 0.1
_FAR = (np.log(0.3), np.log(4.0))
_FAR_WEIGHT = 0.8
# Of mixtures of two rows' sets: their load, and probabilities beyond which a mixture teaches nothing.
_MIXED = (np.log(0.25), np.log(1.5))
_UNDECIDED = (0.003, 0.999)
_MIXED_WEIGHT = 0.7 * NEAR_WEIGHT
# Loss of the ratio beside that of starvation, and the error from which on it grows linearly only.
_RATIO_WEIGHT = 10.0
_RATIO_LINEAR_FROM = 0.05
_RATIO_PULL = 0.2
# Smooth maxima and minima become sharp: their temperature at first, and the share of the fit after which it is 0.
_TEMPERATURE = 0.7
_SHARP_FROM = 0.6
_LEAST_TEMPERATURE = 0.05
# Logarithms of first values: of what is next to nothing, of planes' floors, and their slopes, of ratio and odds.
_NOTHING = -9.0
_FIRST_FLOOR = -4.0
_FIRST_SLOPES = (-0.3, 2.3)
_FIRST_RATIO = 0.5
# Digits that are kept of each number, and a share of a plane below which a term is left out.
_DIGITS = 6
_NEGLIGIBLE = 1e-7
_LEAST_SETTING = 1e-6


@dataclass(frozen=True)
class PolyhedraSettings:
    """How polyhedra are fitted.

    Attributes
    ----------
    pieces, planes
        Polyhedra in the union, and planes of each.
    ratio_planes
        Planes of the ratio.
    free_terms
        Terms beside those that arithmetic suggests.
    epochs, learning_rate, batch_rows
        Of Adam, with a warm-up and a decay to 0 (one cycle).
    mixtures
        Times that every row's set is mixed with another one's.
    seed
        Of first values, loads, mixtures and the order of the rows.
    """

    pieces: int = 8
    planes: int = 6
    ratio_planes: int = 12
    free_terms: int = 24
    epochs: int = 20
    learning_rate: float = 0.04
    batch_rows: int = 2048
    mixtures: int = 1
    seed: int = 0


class Teacher(Protocol):
    """Who says what rows answer: a network."""

    def raw(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the raw outputs of `features` [N, F] in the order of `predictors.neural`, float64 [N, 5]."""
        ...


@dataclass(frozen=True)
class _Lessons:
    """What is fitted to: features float32 [N, F], ratio and probability of starvation, and weights, float64 [N]."""

    features: NDArray[np.float32]
    ratio: NDArray[np.float64]
    probability: NDArray[np.float64]
    weight: NDArray[np.float64]


def fit_polyhedra(
    rows: TrainingRows, teacher: Teacher, settings: PolyhedraSettings, *, time_limit_s: float = float("inf")
) -> Polyhedra:
    """Fit polyhedra on one thread to what a network says about rows, other loads of them, and mixtures of their sets.

    Parameters
    ----------
    time_limit_s
        The learning rate is brought to 0 by then, whatever the epochs.

    Raises
    ------
    SurrogateError
        When PyTorch is not installed.
    """
    torch = require_torch()
    lessons = _lessons(rows, teacher, settings)
    with repeatable(torch):
        torch.manual_seed(settings.seed)
        model = _Model(torch, lessons, settings)
        _train(torch, model, lessons, settings, time_limit_s)
    return model.polyhedra()


def _lessons(rows: TrainingRows, teacher: Teacher, settings: PolyhedraSettings) -> _Lessons:
    generator = np.random.default_rng(settings.seed)
    count = len(rows)
    near = np.exp(generator.normal(0.0, _NEAR, count))
    far = np.exp(generator.uniform(*_FAR, count))
    parts = [
        (rows.features, rows.weight),
        (inflate(rows.features, near), rows.weight),
        (inflate(rows.features, far), _FAR_WEIGHT * np.ones(count)),
    ]
    for _ in range(settings.mixtures):
        mixed = _mixture(rows.features, generator)
        odds = teacher.raw(mixed)[:, STARVATION]
        taught = np.abs(odds - 0.5 * _log_odds(_UNDECIDED).sum()) <= 0.5 * np.diff(_log_odds(_UNDECIDED))[0]
        parts.append((mixed[taught], np.full(int(taught.sum()), _MIXED_WEIGHT)))
    features = np.concatenate([part for part, _ in parts])
    raw = teacher.raw(features)
    ratio = np.minimum(np.exp(np.minimum(raw[:, RATIO], 0.0)), MOST_RATIO)
    probability = 1.0 / (1.0 + np.exp(-np.clip(raw[:, STARVATION], -50.0, 50.0)))
    return _Lessons(features, ratio, probability, np.concatenate([weight for _, weight in parts]))


def _mixture(features: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
    """Return each row with a part of its own set and the rest of another row's, at another load."""
    share = generator.uniform(size=(len(features), 1)).astype(np.float32)
    others = features[generator.permutation(len(features)), :NUM_AGGREGATES]
    mixed = features.copy()
    mixed[:, :NUM_AGGREGATES] = share * mixed[:, :NUM_AGGREGATES] + (np.float32(1.0) - share) * others
    slots, cached = FEATURE_SCHEMA.index("max_loras"), FEATURE_SCHEMA.index("max_cpu_loras")
    mixed[:, cached] = np.maximum(mixed[:, slots], np.ceil(mixed[:, FEATURE_SCHEMA.index("num_adapters")]))
    return inflate(mixed, np.exp(generator.uniform(*_MIXED, len(features))))


def _log_odds(probabilities: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(probabilities, dtype=np.float64)
    return np.asarray(np.log(values) - np.log(1.0 - values))


class _Model:
    """Polyhedra whose numbers >= 0 are exponentials of parameters; sums are of aggregates in parts of their means."""

    def __init__(self, torch: Any, lessons: _Lessons, settings: PolyhedraSettings) -> None:
        self._torch = torch
        self._settings = settings
        values = lessons.features[:, SETTING_COLUMNS].astype(np.float64)
        is_flag = np.array([name == "reserves_full_sequence" for name in SETTING_NAMES])
        self._scales = np.where(is_flag, np.e - 1.0, 1.0 / np.exp(np.log(np.maximum(values, 1.0)).mean(axis=0)))
        self._offsets = np.where(is_flag, 1.0, _LEAST_SETTING)
        means = lessons.features[:, :NUM_AGGREGATES].astype(np.float64).mean(axis=0)
        self._units = np.where(means > 0.0, means, 1.0)
        of_terms, powers = physical_terms()
        free = settings.free_terms
        num_planes = settings.ratio_planes + settings.pieces * settings.planes
        rates = torch.full((NUM_AGGREGATES, len(of_terms)), _NOTHING)
        rates[of_terms, torch.arange(len(of_terms))] = 0.0
        first = [
            torch.cat([torch.tensor(powers, dtype=torch.float32), 0.4 * torch.randn(len(SETTING_NAMES), free)], dim=1),
            torch.cat([rates, torch.randn(NUM_AGGREGATES, free) - 3.0], dim=1),
            torch.cat([torch.full((len(of_terms),), _NOTHING), torch.full((free,), -3.0)]),
            1.3 * torch.randn(len(of_terms) + free, num_planes),
            torch.full((num_planes,), _FIRST_FLOOR),
            torch.full((num_planes,), _FIRST_SLOPES[1]),
            torch.zeros(num_planes),
        ]
        powers_, rates_, constants_, weights_, _, slopes_, intercepts_ = first
        own = slice(0, settings.ratio_planes)
        slopes_[own], intercepts_[own] = _FIRST_SLOPES[0], _FIRST_RATIO
        # Where it is decided, every term is about 1 at first, and each plane the mean of some.
        undecided = np.flatnonzero(np.abs(_log_odds(np.clip(lessons.probability, 1e-6, 1.0 - 1e-6))) < 3.0)
        aggregates, logs = self.inputs(lessons.features[undecided if len(undecided) else slice(None)])
        terms = torch.exp(logs @ powers_) * (aggregates @ rates_.exp() + constants_.exp())
        rates_ -= terms.mean(dim=0).log()
        constants_ -= terms.mean(dim=0).log()
        weights_ -= torch.logsumexp(weights_, 0) + 0.5
        self.parameters = [torch.nn.Parameter(value) for value in first]

    def inputs(self, features: NDArray[np.float32]) -> tuple[Any, Any]:
        """Return aggregates [N, K] and logarithms of settings [N, S] as tensors."""
        settings = features[:, SETTING_COLUMNS].astype(np.float64)
        logs = np.log(settings * self._scales + self._offsets)
        aggregates = features[:, :NUM_AGGREGATES] / self._units
        tensor = self._torch.tensor
        return tensor(aggregates.astype(np.float32)), tensor(logs.astype(np.float32))

    def answers(self, aggregates: Any, logs: Any, temperature: float) -> tuple[Any, Any]:
        """Return the logarithm of 1 / ratio, not cut off, and log-odds of starvation; smooth above temperature 0."""
        torch = self._torch
        powers, rates, constants, weights, floors, slopes, intercepts = self.parameters
        terms = torch.exp((logs @ powers).clamp(-20.0, 20.0)) * (aggregates @ rates.exp() + constants.exp())
        planes = slopes.exp() * torch.log(terms @ weights.exp() + floors.exp()) + intercepts
        first = self._settings.ratio_planes
        pieces = planes[:, first:].view(-1, self._settings.pieces, self._settings.planes)
        if temperature <= _LEAST_TEMPERATURE:
            return planes[:, :first].max(dim=1)[0], pieces.max(dim=2)[0].min(dim=1)[0]
        ratio = torch.logsumexp(planes[:, :first] / temperature, 1) * temperature
        largest = torch.logsumexp(pieces / temperature, 2) * temperature
        return ratio, -torch.logsumexp(-largest / temperature, 1) * temperature

    def polyhedra(self) -> Polyhedra:
        """Return what was fitted, in the units of the features."""
        powers, *positive, intercepts = [value.detach().double().numpy() for value in self.parameters]
        rates, constants, weights, floors, slopes = (np.exp(value) for value in positive)
        rates = rates / self._units[:, np.newaxis]
        largest = AGGREGATE_NAMES.index(f"num_rank_{LARGEST_RANK}")
        for rank in SUPPORTED_RANKS:
            if rank > LARGEST_RANK:
                rates[AGGREGATE_NAMES.index(f"num_rank_{rank}")] = rates[largest]
        weights = np.where(weights < _NEGLIGIBLE * weights.max(axis=0), 0.0, weights)
        arrays = (self._scales, self._offsets, powers, rates, constants, weights, floors, slopes, intercepts)
        return Polyhedra.of(
            [_rounded(array) for array in arrays],
            num_pieces=self._settings.pieces,
            num_ratio_planes=self._settings.ratio_planes,
        )


def _train(torch: Any, model: _Model, lessons: _Lessons, settings: PolyhedraSettings, time_limit_s: float) -> None:
    functional = torch.nn.functional
    aggregates, logs = model.inputs(lessons.features)
    ratio, probability, weight = (
        torch.tensor(values.astype(np.float32)) for values in (lessons.ratio, lessons.probability, lessons.weight)
    )
    optimizer = torch.optim.Adam(model.parameters, lr=settings.learning_rate)
    for progress, batch in batches(len(lessons.weight), settings, time_limit_s=time_limit_s):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * one_cycle(progress)
        chosen = torch.tensor(batch)
        temperature = _TEMPERATURE * (1.0 - progress / _SHARP_FROM)
        excess, odds = model.answers(aggregates[chosen], logs[chosen], temperature)
        served = functional.smooth_l1_loss(
            torch.exp(-excess.clamp(min=0.0)), ratio[chosen], beta=_RATIO_LINEAR_FROM, reduction="none"
        )
        # Cut off at 1 it would not move where the answer is above 1 and the lesson below.
        served = served + _RATIO_PULL * torch.relu(-excess) * (ratio[chosen] < 1.0)
        starved = functional.binary_cross_entropy_with_logits(odds, probability[chosen], reduction="none")
        loss = ((_RATIO_WEIGHT * served + starved) * weight[chosen]).sum() / weight[chosen].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _rounded(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return numbers with few digits, so that their text in the metadata is short and exact."""
    with np.errstate(divide="ignore"):
        exponents = np.floor(np.log10(np.abs(values, where=values != 0.0, out=np.ones_like(values))))
    unit = 10.0 ** (exponents - _DIGITS + 1)
    return np.asarray(np.round(values / unit) * unit, dtype=np.float32)
