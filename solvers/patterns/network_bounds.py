r"""Certificates of a network behind physics, by linear bounds through its layers (CROWN; DeepPoly).

Each rectified unit whose sign is not certain lies between two linear functions of what it takes: below the line
between its ends, above 0 or above itself. Weights of the outputs are carried backwards through the layers, each time to
the side of a unit that keeps the sum below, down to planes around the physics (`physics_planes`). What is left is
linear in the features. (Zhang et al., "Efficient neural network robustness certification", 2018; Singh et al., "An
abstract domain for certifying neural networks", 2019.)

Everything is about what ONNX Runtime computes in float32, in any order of summation: each layer's rounding is bounded
and taken off where the weights pass it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from predictors.neural import NeuralNetwork
from solvers.patterns.physics_planes import UNIT, PhysicsPlanes, summing_error
from solvers.patterns.planes import Boxes, Planes

Array = NDArray[np.float64]


@dataclass(frozen=True)
class _Rectified:
    """Units of a layer for B boxes: ``least_slope * z <= max(z, 0) <= most_slope * z + most_offset``; [B, N] each."""

    least_slope: Array
    most_slope: Array
    most_offset: Array
    largest: Array


@dataclass(frozen=True)
class NetworkPlanes:
    """The layers of a network behind its physics, float64; make it with `of`."""

    physics: PhysicsPlanes
    weights: tuple[Array, ...]
    biases: tuple[Array, ...]

    @classmethod
    def of(cls, network: NeuralNetwork) -> NetworkPlanes:
        """Return it for a network whose physics can be bounded."""
        weights, biases = (
            tuple(np.asarray(array, dtype=np.float64) for array in arrays)
            for arrays in (network.weights, network.biases)
        )
        return cls(PhysicsPlanes.of(network.layer), weights, biases)

    def below(self, boxes: Boxes, features: Planes, outputs: Array) -> tuple[Array, Array, NDArray[np.bool_]]:
        """Return planes nowhere above combinations of the raw outputs.

        Parameters
        ----------
        boxes, features
            The coordinates, and planes of the features.
        outputs
            Weights of the raw outputs, float64 [M, 5].

        Returns
        -------
        Slopes [B, M, F], offsets [B, M], and of which boxes they say something, bool [B].
        """
        columns, holds = self.physics.columns(boxes, features)
        inputs = np.maximum(np.abs(columns.least), np.abs(columns.most))
        errors: list[Array] = []
        units: list[_Rectified] = []
        for index in range(len(self.weights)):
            errors.append(self._rounding(index, inputs))
            if index == len(self.weights) - 1:
                break
            least, most = self._ends(index, boxes, columns, units, errors)
            units.append(_rectified(least, most))
            inputs = units[-1].largest
        slopes, offsets = self._carried(outputs, len(self.weights) - 1, columns, units, errors)
        return slopes, offsets, holds

    def _rounding(self, index: int, inputs: Array) -> Array:
        """Return how far off the float32 sums of a layer may be, given the sizes of what it takes, [B, N]."""
        weights, biases = np.abs(self.weights[index]), np.abs(self.biases[index])
        return np.asarray(summing_error(len(weights) + 1) * (inputs @ weights + biases) + UNIT)

    def _ends(
        self, index: int, boxes: Boxes, columns: Planes, units: list[_Rectified], errors: list[Array]
    ) -> tuple[Array, Array]:
        """Return bounds of what the units of a layer take, float64 [B, N] each."""
        identity = np.eye(self.weights[index].shape[1])
        both = np.concatenate([identity, -identity])
        slopes, offsets = self._carried(both, index, columns, units, errors)
        values = boxes.least(slopes, offsets)
        least, most = values[:, : len(identity)], -values[:, len(identity) :]
        if index == 0:
            positive, negative = np.maximum(self.weights[0], 0.0), np.minimum(self.weights[0], 0.0)
            plain = self.biases[0]
            least = np.maximum(least, columns.least @ positive + columns.most @ negative + plain - errors[0])
            most = np.minimum(most, columns.most @ positive + columns.least @ negative + plain + errors[0])
        return least, np.maximum(most, least)

    def _carried(
        self, weights: Array, index: int, columns: Planes, units: list[_Rectified], errors: list[Array]
    ) -> tuple[Array, Array]:
        """Return planes below ``weights @ z`` for what the units of layer `index` take; weights [M, N]."""
        carried = np.broadcast_to(weights, (len(columns.least), *weights.shape))
        offsets = np.zeros(carried.shape[:2])
        for layer in range(index, -1, -1):
            offsets = offsets + carried @ self.biases[layer] - (np.abs(carried) @ errors[layer][:, :, None])[:, :, 0]
            carried = carried @ self.weights[layer].T
            if layer:
                unit = units[layer - 1]
                positive, negative = np.maximum(carried, 0.0), np.minimum(carried, 0.0)
                offsets = offsets + (negative @ unit.most_offset[:, :, None])[:, :, 0]
                carried = positive * unit.least_slope[:, None, :] + negative * unit.most_slope[:, None, :]
        slopes, more = columns.below(carried)
        return slopes, offsets + more


def _rectified(least: Array, most: Array) -> _Rectified:
    is_on, is_off = least >= 0.0, most <= 0.0
    slope = np.divide(most, most - least, out=np.zeros_like(most), where=most > least)
    most_slope = np.where(is_on, 1.0, np.where(is_off, 0.0, slope))
    most_offset = np.where(is_on | is_off, 0.0, -slope * least)
    least_slope = np.where(is_on, 1.0, np.where(is_off, 0.0, (most > -least).astype(np.float64)))
    return _Rectified(least_slope, most_slope, most_offset, np.maximum(most, 0.0))
