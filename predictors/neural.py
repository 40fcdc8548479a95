"""A small neural network behind the physics of `predictors.physics`: the fastest family, and a smooth one.

Needs the extra `neural` (PyTorch) to be fitted; an exported network runs in ONNX Runtime alone.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from predictors.physics import PhysicsLayer, physics_layer
from predictors.targets import KinRows, TrainingRows, columns_to_fit
from twin.errors import SurrogateError
from twin.profile import PerformanceProfile

if TYPE_CHECKING:
    from predictors.onnx_graph import GraphBuilder

# Order of the network's raw outputs.
RATIO, STARVATION, ITL, TTFT, ITL_MEAN = range(5)
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


@dataclass(frozen=True)
class NeuralSettings:
    """How a network is fitted.

    Attributes
    ----------
    widths
        Units of each hidden layer.
    epochs
        Passes over the rows, unless the time is up.
    learning_rate, weight_decay, batch_rows
        Of AdamW, with a warm-up and a decay to 0 (one cycle).
    seed
        Of the first weights and of the order of the rows.
    """

    widths: tuple[int, ...] = (128, 128)
    epochs: int = 40
    learning_rate: float = 4e-3
    weight_decay: float = 1e-2
    batch_rows: int = 512
    seed: int = 0


@dataclass(frozen=True)
class NeuralNetwork:
    """A fitted network.

    Attributes
    ----------
    layer
        The physics in front of it.
    weights, biases
        Of each layer, float32 [in, out] and [out]; the first takes the physics as it is, the last gives the raw outputs
        (natural logarithm of the ratio, which may come out above 0; log-odds of starvation; natural logarithms of the
        latencies in seconds).
    """

    layer: PhysicsLayer
    weights: tuple[NDArray[np.float32], ...]
    biases: tuple[NDArray[np.float32], ...]

    def raw(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the raw outputs of `features` [N, F], float64 [N, 5]."""
        values = self.layer.columns(features)
        for weights, biases in zip(self.weights[:-1], self.biases[:-1], strict=True):
            values = np.maximum(values @ weights + biases, 0.0)
        outputs: NDArray[np.float64] = (values @ self.weights[-1] + self.biases[-1]).astype(np.float64)
        return outputs

    def calibrated(self, slope: float, offset: float) -> NeuralNetwork:
        """Return the same network with ``slope * log_odds + offset`` for the log-odds of starvation."""
        weights, biases = self.weights[-1].copy(), self.biases[-1].copy()
        weights[:, STARVATION] *= slope
        biases[STARVATION] = slope * biases[STARVATION] + offset
        return replace(self, weights=(*self.weights[:-1], weights), biases=(*self.biases[:-1], biases))

    def add_to(self, builder: GraphBuilder, *, features: str) -> list[str]:
        """Add the nodes to an ONNX graph; return the names of the five raw outputs, float32 [N] each."""
        layer = self.layer
        bases = builder.gemm(features, layer.sums, layer.offsets)
        logs = builder.node("Log", builder.largest(bases, builder.tensor(layer.floors)))
        products = builder.node("Exp", builder.matrix_product(logs, layer.powers))
        values = builder.node("Log", builder.matrix_product(products, layer.coefficients))
        *inner, (last_weights, last_biases) = zip(self.weights[:-1], self.biases[:-1], strict=True)
        for weights, biases in inner:
            values = builder.node("Relu", builder.gemm(values, weights, biases))
        # One more unit, which is always 1, has the heads' biases as weights. A product with a vector is [N]: no column
        # has to be cut out of a matrix. Each node saved is a microsecond of a question about one row.
        widened = np.pad(last_weights, ((0, 0), (0, 1)))
        values = builder.node("Relu", builder.gemm(values, widened, np.append(last_biases, np.float32(1.0))))
        heads = np.vstack([self.weights[-1], self.biases[-1]])
        return [builder.matrix_product(values, column) for column in np.ascontiguousarray(heads.T)]


def fit_network(
    rows: TrainingRows,
    profile: PerformanceProfile,
    *,
    kin: Sequence[KinRows] = (),
    settings: NeuralSettings = NeuralSettings(),
    time_limit_s: float = float("inf"),
) -> NeuralNetwork:
    """Fit a network to labelled rows on one thread.

    Parameters
    ----------
    kin
        Rows of other profiles that it learns from, too: under its own profile's physics each means the same.
    time_limit_s
        The learning rate is brought to 0 by then, whatever the epochs.

    Raises
    ------
    SurrogateError
        When PyTorch is not installed.
    """
    torch = _torch()
    layer = physics_layer(profile)
    columns, rows = columns_to_fit(lambda features, of: physics_layer(of).columns(features), rows, profile, kin)
    mean, spread = columns.mean(axis=0), columns.std(axis=0)
    # Large weights of columns that hardly vary would magnify the rounding of their logarithms; one that does not vary
    # at all in the rows says nothing outside of them either.
    scale = np.where(spread < VARIES, np.inf, np.maximum(spread, LEAST_SCALE)).astype(np.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), _repeatable(torch):
            torch.manual_seed(settings.seed)
            modules = _train(torch, (columns - mean) / scale, rows, settings, time_limit_s)
    finally:
        torch.set_num_threads(threads)
    weights = [module.weight.detach().numpy().T.copy() for module in modules]
    biases = [module.bias.detach().numpy().copy() for module in modules]
    # Standardisation is part of the first layer.
    biases[0] = biases[0] - (mean / scale) @ weights[0]
    weights[0] = weights[0] / scale[:, np.newaxis]
    return NeuralNetwork(
        layer, tuple(w.astype(np.float32) for w in weights), tuple(b.astype(np.float32) for b in biases)
    )


def _train(
    torch: Any,
    columns: NDArray[np.float32],
    rows: TrainingRows,
    settings: NeuralSettings,
    time_limit_s: float,
) -> list[Any]:
    """Return the linear layers of a network fitted to standardised columns."""
    started_s = time.monotonic()
    sizes = (columns.shape[1], *settings.widths, len(_LOSS_WEIGHTS))
    modules = [torch.nn.Linear(inputs, outputs) for inputs, outputs in pairwise(sizes)]
    parts = [part for module in modules[:-1] for part in (module, torch.nn.ReLU())]
    network = torch.nn.Sequential(*parts, modules[-1])
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    inputs = torch.tensor(np.asarray(columns, dtype=np.float32))
    labels = np.stack(
        [rows.completed_ratio, rows.starved_share, rows.log_itl, rows.log_ttft, rows.log_itl_mean], axis=1
    )
    targets = torch.tensor(np.nan_to_num(labels).astype(np.float32))
    known = torch.tensor((np.isfinite(labels) * rows.weight[:, np.newaxis]).astype(np.float32))
    generator = np.random.default_rng(settings.seed)
    batches = max(1, len(rows) // settings.batch_rows)
    for epoch in range(settings.epochs):
        order = torch.tensor(generator.permutation(len(rows)))
        for batch in range(batches):
            spent = (time.monotonic() - started_s) / time_limit_s
            progress = max((epoch + batch / batches) / settings.epochs, spent)
            if progress >= 1.0:
                return modules
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * _one_cycle(progress)
            chosen = order[batch::batches]
            loss = _loss(torch, network(inputs[chosen]), targets[chosen], known[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return modules


def _one_cycle(progress: float) -> float:
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


@contextmanager
def _repeatable(torch: Any) -> Iterator[None]:
    """Compute without oneDNN, whose products of one and the same matrices may differ in the last place."""
    with warnings.catch_warnings():
        # Setting any flag of oneDNN warns that there is no Intel GPU.
        warnings.simplefilter("ignore", UserWarning)
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def _torch() -> Any:
    try:
        import torch  # noqa: PLC0415 - a heavy optional extra
    except ImportError as error:
        raise SurrogateError(
            f"fitting a neural network needs PyTorch. {error}.",
            hint="pip install 'lora-placer[neural]', or choose another --family",
        ) from error
    return torch
