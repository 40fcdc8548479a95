"""A small neural network behind the physics of `predictors.physics`: the fastest family, and a smooth one.

How it is fitted is in `predictors.neural_fit`; an exported network runs in ONNX Runtime alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from predictors.physics import PhysicsLayer

if TYPE_CHECKING:
    from predictors.onnx_graph import GraphBuilder

# Order of the network's raw outputs.
RATIO, STARVATION, ITL, TTFT, ITL_MEAN = range(5)
# Largest value of each output that is a power, in that order: no more completes than arrives in the long run, and far
# outside of the rows a latency must still be a number. What is told of starvation is no power.
MOST = np.array([1.0, np.finfo(np.float32).max, 1e6, 1e6, 1e6], dtype=np.float32)


@runtime_checkable
class HasNetwork(Protocol):
    """A surrogate that may be a network, and then shows it: proofs about it can be made."""

    @property
    def network(self) -> NeuralNetwork | None:
        """What it computes, in float32 in any order of summation; None when it is no such network."""
        ...


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
        return self.raw_of(self.layer.columns(features))

    def raw_of(self, columns: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the raw outputs for what the physics gives, float32 [N, D]; float64 [N, 5]."""
        values = columns
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

    def add_to(self, builder: GraphBuilder, *, features: str) -> tuple[list[str], str]:
        """Add the nodes to an ONNX graph; return the names of the outputs and of the offered load, float32 [N] each.

        Outputs are the raw ones, exponentiated and cut off at `MOST` but for the log-odds; the load is in tokens/s.
        Each node saved is half a microsecond of a question about one row, and a product with a vector in place of a
        column of a matrix costs twice that.
        """
        layer = self.layer
        bases = builder.gemm(features, layer.sums, layer.offsets)
        if layer.floors is not None:
            bases = builder.largest(bases, builder.tensor(layer.floors))
        offered = builder.column(bases, layer.offered)
        logs = builder.node("Log", bases)
        products = builder.node("Exp", builder.matrix_product(logs, layer.powers))
        values = builder.node("Log", builder.matrix_product(products, layer.coefficients))
        for weights, biases in zip(self.weights[:-1], self.biases[:-1], strict=True):
            values = builder.node("Relu", builder.gemm(values, weights, biases))
        raw = builder.gemm(values, self.weights[-1], self.biases[-1])
        powers = builder.node("Min", builder.node("Exp", raw), builder.tensor(MOST))
        matrices = [raw if index == STARVATION else powers for index in range(len(self.biases[-1]))]
        return [builder.column(matrix, index) for index, matrix in enumerate(matrices)], offered
