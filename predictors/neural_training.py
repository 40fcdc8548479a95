"""Fit one network to targets by gradient descent, repeatably, on one thread.

Needs the extra `neural` (PyTorch).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from predictors.neural import ITL, ITL_MEAN, RATIO, STARVATION, TTFT, NeuralNetwork
from predictors.physics import PhysicsLayer
from predictors.targets import MOST_RATIO, TrainingRows
from twin.errors import SurrogateError

# Weights of the five losses, and the error from which on each grows linearly only: a row of a replica that has been
# hopeless for minutes must not outweigh the many that decide plans.
_LOSS_WEIGHTS = (10.0, 1.0, 0.3, 0.1, 0.3)
_LINEAR_FROM = (0.05, 0.0, 0.2, 0.5, 0.2)
# Largest logarithm of the ratio in a loss: more than arrives completes by chance only.
_MOST_LOG_RATIO = 0.5
# Standard deviations of columns (natural logarithms): below the first a column counts as constant, and below the second
# it is not blown up further.
VARIES = 1e-5
LEAST_SCALE = 0.1
# How much a pair of loads counts in which the heavier one is said to be served better.
_PAIR_WEIGHT = 64.0
# Largest log-odds, up or down, that tell two loads apart: beyond them both are as good as certain.
_CERTAIN_LOG_ODDS = 6.0


@dataclass(frozen=True)
class NeuralSettings:
    """How a network is fitted.

    Attributes
    ----------
    widths
        Units of each hidden layer.
    epochs
        Passes over the rows, unless the time is up.
    teachers, teacher_widths
        Networks that are fitted to the rows first: the one that is returned learns from their mean, at the loads of the
        rows, at others near them, and at heavier ones. It comes close to the error of the mean, which is less than that
        of any network, in the time of one question. No teachers: it is fitted to the rows itself.
    learning_rate, weight_decay, batch_rows
        Of AdamW, with a warm-up and a decay to 0 (one cycle).
    seed
        Of the first weights and of the order of the rows.
    """

    widths: tuple[int, ...] = (96, 96)
    epochs: int = 25
    teachers: int = 5
    teacher_widths: tuple[int, ...] = (192, 192)
    learning_rate: float = 4e-3
    weight_decay: float = 1e-2
    batch_rows: int = 512
    seed: int = 0


@dataclass(frozen=True)
class Targets:
    """What a network is fitted to, for N rows.

    Attributes
    ----------
    values
        float64 [N, 5]: ratio, probability of starvation, and logarithms of the latencies; NaN where unknown.
    weight
        float64 [N], how much a row counts.
    """

    values: NDArray[np.float64]
    weight: NDArray[np.float64]

    @classmethod
    def of_labels(cls, rows: TrainingRows) -> Targets:
        """Return what the twin said."""
        labels = (rows.completed_ratio, rows.starved_share, rows.log_itl, rows.log_ttft, rows.log_itl_mean)
        return cls(np.stack(labels, axis=1), rows.weight)

    @classmethod
    def of_teachers(
        cls, teachers: Sequence[NeuralNetwork], columns: NDArray[np.float32], weight: NDArray[np.float64]
    ) -> Targets:
        """Return what networks say together about physics, float32 [N, D]: the means of their raw outputs."""
        values = np.mean([teacher.raw_of(columns) for teacher in teachers], axis=0)
        values[:, RATIO] = np.minimum(np.exp(values[:, RATIO]), MOST_RATIO)
        values[:, STARVATION] = 1.0 / (1.0 + np.exp(-values[:, STARVATION]))
        return cls(values, weight)

    def followed_by(self, others: Targets) -> Targets:
        """Return these rows and then others."""
        return Targets(np.concatenate([self.values, others.values]), np.concatenate([self.weight, others.weight]))


def fit_to_targets(
    torch: Any,
    layer: PhysicsLayer,
    columns: NDArray[np.float32],
    targets: Targets,
    settings: NeuralSettings,
    *,
    start: NeuralNetwork | None,
    time_limit_s: float,
    pairs: NDArray[np.float32] | None = None,
) -> NeuralNetwork:
    """Return one network fitted to what the physics gives, float32 [N, D], that keeps to the order of `pairs`."""
    mean, spread = columns.mean(axis=0), columns.std(axis=0)
    # Large weights of columns that hardly vary would magnify the rounding of their logarithms; one that does not vary
    # at all in the rows says nothing outside of them either, unless the network began as one that knew more.
    of_constant = np.inf if start is None else LEAST_SCALE
    scale = np.where(spread < VARIES, of_constant, np.maximum(spread, LEAST_SCALE)).astype(np.float32)
    torch.manual_seed(settings.seed)
    modules = _modules(torch, (columns.shape[1], *settings.widths, len(_LOSS_WEIGHTS)))
    if start is not None:
        _begin_as(torch, modules, start, mean, scale)
    ordered = None if pairs is None else (pairs - mean) / scale
    standardised = (columns - mean) / scale
    _train(torch, modules, standardised, targets, settings, time_limit_s=time_limit_s, pairs=ordered)
    weights = [module.weight.detach().numpy().T.copy() for module in modules]
    biases = [module.bias.detach().numpy().copy() for module in modules]
    # Standardisation is part of the first layer.
    biases[0] = biases[0] - (mean / scale) @ weights[0]
    weights[0] = weights[0] / scale[:, np.newaxis]
    return NeuralNetwork(
        layer, tuple(w.astype(np.float32) for w in weights), tuple(b.astype(np.float32) for b in biases)
    )


def _modules(torch: Any, sizes: Sequence[int]) -> list[Any]:
    """Return linear layers with random weights."""
    return [torch.nn.Linear(inputs, outputs) for inputs, outputs in pairwise(sizes)]


def _begin_as(
    torch: Any,
    modules: Sequence[Any],
    network: NeuralNetwork,
    mean: NDArray[np.float32],
    scale: NDArray[np.float32],
) -> None:
    """Give linear layers behind standardised columns the weights of a network, which takes the columns as they are."""
    weights, biases = list(network.weights), list(network.biases)
    biases[0] = biases[0] + mean @ weights[0]
    weights[0] = weights[0] * scale[:, np.newaxis]
    with torch.no_grad():
        for module, weight, bias in zip(modules, weights, biases, strict=True):
            module.weight.copy_(torch.tensor(weight.T.astype(np.float32)))
            module.bias.copy_(torch.tensor(bias.astype(np.float32)))


def _train(
    torch: Any,
    modules: Sequence[Any],
    columns: NDArray[np.float32],
    targets: Targets,
    settings: NeuralSettings,
    *,
    time_limit_s: float,
    pairs: NDArray[np.float32] | None,
) -> None:
    """Fit linear layers, with rectifiers between them, to standardised columns."""
    parts = [part for module in modules[:-1] for part in (module, torch.nn.ReLU())]
    network = torch.nn.Sequential(*parts, modules[-1])
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    inputs = torch.tensor(np.asarray(columns, dtype=np.float32))
    values = torch.tensor(np.nan_to_num(targets.values).astype(np.float32))
    known = torch.tensor((np.isfinite(targets.values) * targets.weight[:, np.newaxis]).astype(np.float32))
    ordered = None if pairs is None else torch.tensor(np.asarray(pairs, dtype=np.float32))
    for progress, batch in batches(len(columns), settings, time_limit_s=time_limit_s):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * one_cycle(progress)
        chosen = torch.tensor(batch)
        loss = _loss(torch, network(inputs[chosen]), values[chosen], known[chosen])
        if ordered is not None:
            # Half as many pairs as rows.
            lighter, heavier = ordered[:, chosen[::2] % ordered.shape[1]]
            loss = loss + _PAIR_WEIGHT * _disorder(network(lighter), network(heavier))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


class Passes(Protocol):
    """How often rows are gone through: settings of a fit."""

    @property
    def epochs(self) -> int:
        """Passes over the rows, unless the time is up."""
        ...

    @property
    def batch_rows(self) -> int:
        """Rows of a step."""
        ...

    @property
    def seed(self) -> int:
        """Of the order of the rows."""
        ...


def batches(num_rows: int, settings: Passes, *, time_limit_s: float) -> Iterator[tuple[float, NDArray[np.int64]]]:
    """Yield the rows of each step of a fit, int64, and before them its progress: 0 at first, and below 1.

    The progress is that of the passes or of the time since the first step, whichever is further.
    """
    started_s = time.monotonic()
    generator = np.random.default_rng(settings.seed)
    count = max(1, num_rows // settings.batch_rows)
    for epoch in range(settings.epochs):
        order = generator.permutation(num_rows)
        for batch in range(count):
            spent = (time.monotonic() - started_s) / time_limit_s
            progress = max((epoch + batch / count) / settings.epochs, spent)
            if progress >= 1.0:
                return
            yield progress, order[batch::count]


def one_cycle(progress: float) -> float:
    """Return the share of the largest learning rate: up in the first fifth, then down to 0 like a cosine."""
    warm_up = 0.2
    if progress < warm_up:
        return 0.05 + 0.95 * progress / warm_up
    return float(0.5 * (1.0 + np.cos(np.pi * (progress - warm_up) / (1.0 - warm_up))))


def _loss(torch: Any, raw: Any, targets: Any, known: Any) -> Any:
    functional = torch.nn.functional
    errors = [
        functional.smooth_l1_loss(
            raw[:, RATIO].clamp(max=_MOST_LOG_RATIO).exp(),
            targets[:, RATIO],
            beta=_LINEAR_FROM[RATIO],
            reduction="none",
        ),
        functional.binary_cross_entropy_with_logits(raw[:, STARVATION], targets[:, STARVATION], reduction="none"),
        *(
            functional.smooth_l1_loss(raw[:, k], targets[:, k], beta=_LINEAR_FROM[k], reduction="none")
            for k in (ITL, TTFT, ITL_MEAN)
        ),
    ]
    means = [(error * known[:, k]).sum() / known[:, k].sum().clamp(min=1.0) for k, error in enumerate(errors)]
    return sum(weight * value for weight, value in zip(_LOSS_WEIGHTS, means, strict=True))


def _disorder(lighter: Any, heavier: Any) -> Any:
    """Return by how much the heavier of two loads is said to be served better, in log-odds and log ratio."""

    def log_odds(raw: Any) -> Any:
        return raw[:, STARVATION].clamp(-_CERTAIN_LOG_ODDS, _CERTAIN_LOG_ODDS)

    relief = (log_odds(lighter) - log_odds(heavier)).relu()
    gain = (heavier[:, RATIO].clamp(max=0.0) - lighter[:, RATIO].clamp(max=0.0)).relu()
    return (relief + gain).mean()


@contextmanager
def repeatable(torch: Any) -> Iterator[None]:
    """Compute on one thread, with random numbers of its own, and without oneDNN.

    Its products of one and the same matrices may differ in the last place.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            # Setting any flag of oneDNN warns that there is no Intel GPU.
            warnings.simplefilter("ignore", UserWarning)
            with torch.backends.mkldnn.flags(enabled=False):
                yield
    finally:
        torch.set_num_threads(threads)


def require_torch() -> Any:
    """Return PyTorch; SurrogateError when it is not installed."""
    try:
        import torch  # noqa: PLC0415 - a heavy optional extra
    except ImportError as error:
        raise SurrogateError(
            f"fitting a neural network needs PyTorch. {error}.",
            hint="pip install 'lora-placer[neural]', or choose another --family",
        ) from error
    return torch
