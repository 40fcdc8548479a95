r"""Planes around the physics in front of a network: ``log(C exp(W log(A x + a)))`` over boxes of features.

A logarithm is concave: above its chord, below its tangents; an exponential is convex. As a function of the logarithms
y of the sums, a column ``log(C exp(W y))`` is convex, so below it lies its tangent plane at the middle. Above it, each
product is replaced by the chord of its exponential, or left as it is where only one of its factors varies and has the
power 1.

ONNX Runtime computes in float32. By how much that may be off is bounded beside the planes: sums of n products of
positive numbers by n + 1 units in the last place, in any order; logarithms and exponentials by `FUNCTION_UNITS` units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from predictors.features import FEATURE_SCHEMA, RATE_LINEAR_NAMES
from predictors.physics import PhysicsLayer
from solvers.patterns.planes import Boxes, Planes, chord

Array = NDArray[np.float64]

# Half the distance between 1 and the next float32.
UNIT = 2.0**-24
# By how many units a logarithm or an exponential of ONNX Runtime may be off, relative to its value.
FUNCTION_UNITS = 8.0
# Exponents beyond which float32 may overflow, or lose its precision: nothing is said there.
LARGEST_EXPONENT = 60.0

_ACTIVE_COLUMNS = [FEATURE_SCHEMA.index(name) for name in ("active_10s", "active_40s")]
_NUM_ADAPTERS = FEATURE_SCHEMA.index("num_adapters")
_RATE_LINEAR = [FEATURE_SCHEMA.index(name) for name in RATE_LINEAR_NAMES]
_RATE_SQUARE = FEATURE_SCHEMA.index("sum_rate_sq")


def summing_error(num_terms: int) -> float:
    """Return the relative error of a float32 sum of products, relative to the sum of their sizes; rounded up."""
    return (num_terms + 2) * UNIT * 1.01


def can_be_bounded(layer: PhysicsLayer) -> bool:
    """Return whether the layer is as it is assumed here: sums of positive terms above 0, without floors."""
    return (
        layer.floors is None
        and bool((layer.sums >= 0.0).all())
        and bool((layer.offsets > 0.0).all())
        and bool((layer.coefficients >= 0.0).all())
    )


def inflated_planes(boxes: Boxes, relations: Array, features: Boxes, factor: float) -> Planes:
    """Return planes of the features of an inflated load (`predictors.features.inflate`).

    Parameters
    ----------
    boxes
        Of the coordinates.
    relations
        What each feature is of the coordinates, float64 [B, F, F].
    features
        The features' own bounds.
    factor
        On the rates; 1: the features as they are.
    """
    scale = np.ones(features.lower.shape[1])
    scale[_RATE_LINEAR] = factor
    scale[_RATE_SQUARE] = factor**2
    scale[_ACTIVE_COLUMNS] = factor
    slopes = relations * scale[:, None]
    offsets = (slopes @ boxes.lower[:, :, None])[:, :, 0]
    least, most = features.lower * scale, features.upper * scale
    planes = Planes(slopes, offsets, slopes.copy(), offsets.copy(), least, most)
    if factor > 1.0:
        for column in _ACTIVE_COLUMNS:
            _limit_to_adapters(planes, column)
    return planes.narrowed(boxes)


def _limit_to_adapters(planes: Planes, column: int) -> None:
    """Replace a column by the smaller of itself and the number of adapters, in place."""
    active = (planes.lower_slopes[:, column].copy(), planes.lower_offsets[:, column].copy())
    adapters = (planes.lower_slopes[:, _NUM_ADAPTERS], planes.lower_offsets[:, _NUM_ADAPTERS])
    # The smaller one is n - max(n - a, 0), and that maximum is below its chord.
    gap_least = planes.least[:, _NUM_ADAPTERS] - planes.most[:, column]
    gap_most = planes.most[:, _NUM_ADAPTERS] - planes.least[:, column]
    share = np.clip(
        chord(gap_least, gap_most, np.maximum(gap_least, 0.0), np.maximum(gap_most, 0.0), 0.0 * gap_least), 0.0, 1.0
    )
    share = np.where(gap_least >= 0.0, 1.0, np.where(gap_most <= 0.0, 0.0, share))
    shift = np.where((gap_least < 0.0) & (gap_most > 0.0), share * gap_least, 0.0)
    planes.lower_slopes[:, column] = share[:, None] * active[0] + (1.0 - share)[:, None] * adapters[0]
    planes.lower_offsets[:, column] = share * active[1] + (1.0 - share) * adapters[1] + shift
    takes_active = gap_least + gap_most >= 0.0
    planes.upper_slopes[:, column] = np.where(takes_active[:, None], active[0], adapters[0])
    planes.upper_offsets[:, column] = np.where(takes_active, active[1], adapters[1])
    planes.least[:, column] = np.minimum(planes.least[:, column], planes.least[:, _NUM_ADAPTERS])
    planes.most[:, column] = np.minimum(planes.most[:, column], planes.most[:, _NUM_ADAPTERS])


@dataclass(frozen=True)
class PhysicsPlanes:
    """The physics of a network, ready to be bounded; float64 arrays as `PhysicsLayer` has them.

    Make it with `of`.
    """

    sums: Array
    offsets: Array
    powers: Array
    coefficients: Array

    @classmethod
    def of(cls, layer: PhysicsLayer) -> PhysicsPlanes:
        """Return it for a layer that `can_be_bounded`."""
        assert can_be_bounded(layer)
        arrays = (layer.sums, layer.offsets, layer.powers, layer.coefficients)
        return cls(*(np.asarray(array, dtype=np.float64) for array in arrays))

    def columns(self, boxes: Boxes, features: Planes) -> tuple[Planes, NDArray[np.bool_]]:
        """Return planes of the columns as float32 has them, and of which boxes they say something, bool [B]."""
        bases = self._bases(boxes, features)
        logs, log_error = self._logs(boxes, bases)
        positive, negative = np.maximum(self.powers, 0.0), np.minimum(self.powers, 0.0)
        least = logs.least @ positive + logs.most @ negative
        most = logs.most @ positive + logs.least @ negative
        holds = np.asarray((np.maximum(np.abs(least), np.abs(most)) < LARGEST_EXPONENT).all(axis=1))
        least, most = (np.clip(side, -LARGEST_EXPONENT, LARGEST_EXPONENT) for side in (least, most))
        lower = self._below(logs)
        upper = self._above(bases, logs, least, most)
        ends = tuple(np.log(np.exp(side) @ self.coefficients) for side in (least, most))
        columns = Planes(*lower, *upper, *ends).narrowed(boxes)
        # Errors of the exponents, of the products relative to them, of the sums relative to them, of the columns.
        sizes = np.maximum(np.abs(logs.least), np.abs(logs.most))
        absolute = np.abs(self.powers)
        error = log_error @ absolute + summing_error(len(absolute)) * (sizes @ absolute)
        error = np.expm1(error.max(axis=1, keepdims=True)) + (FUNCTION_UNITS + 1.0) * UNIT
        error = 1.01 * (error + summing_error(len(self.coefficients)))
        size = np.maximum(np.abs(columns.least), np.abs(columns.most))
        return columns.widened(error + FUNCTION_UNITS * UNIT * (size + 1.0)), holds

    def _bases(self, boxes: Boxes, features: Planes) -> Planes:
        weights = self.sums.T
        lower, upper = features.below(weights), features.above(weights)
        return Planes(
            lower[0],
            lower[1] + self.offsets,
            upper[0],
            upper[1] + self.offsets,
            np.maximum(features.least, 0.0) @ self.sums + self.offsets,
            features.most @ self.sums + self.offsets,
        ).narrowed(boxes)

    def _logs(self, boxes: Boxes, bases: Planes) -> tuple[Planes, Array]:
        """Return planes of the logarithms of the sums, and how far off float32 may be, float64 [B, N]."""
        least = np.maximum(bases.least, 0.5 * self.offsets)
        most = np.maximum(bases.most, least)
        ends = np.log(least), np.log(most)
        slope = chord(least, most, ends[0], ends[1], 1.0 / least)
        touch = np.clip(1.0 / slope, least, most)
        # Of the features and their inflation, three roundings; then of the sum.
        inner = 1.01 * (summing_error(len(self.sums)) + 4.0 * UNIT)
        error = inner + FUNCTION_UNITS * UNIT * (np.maximum(np.abs(ends[0]), np.abs(ends[1])) + 1.0)
        logs = Planes(
            slope[:, :, None] * bases.lower_slopes,
            ends[0] + slope * (bases.lower_offsets - least),
            bases.upper_slopes / touch[:, :, None],
            np.log(touch) + (bases.upper_offsets - touch) / touch,
            *ends,
        )
        return logs.narrowed(boxes), error

    def _below(self, logs: Planes) -> tuple[Array, Array]:
        """Return the tangent planes of the columns as convex functions of the logarithms, at the middle."""
        middle = 0.5 * (logs.least + logs.most)
        products = np.exp(middle @ self.powers)
        sums = products @ self.coefficients
        shares = products[:, :, None] * self.coefficients / sums[:, None, :]
        weights = np.swapaxes(self.powers @ shares, 1, 2)
        slopes, offsets = logs.below(weights)
        return slopes, offsets + np.log(sums) - (weights @ middle[:, :, None])[:, :, 0]

    def _above(self, bases: Planes, logs: Planes, least: Array, most: Array) -> tuple[Array, Array]:
        """Return tangents of the logarithm of what is above each sum of products."""
        ends = np.exp(least), np.exp(most)
        slope = chord(least, most, ends[0], ends[1], ends[1])
        varies = logs.most - logs.least > 1e-12
        is_linear, factor = self._linear(varies, logs)
        curved = np.where(is_linear, 0.0, slope)
        constants = np.where(is_linear, 0.0, ends[0] - slope * least)
        # Weights of the logarithms and, where products are linear in one sum, of the sums; [B, D, N] both.
        of_logs = np.swapaxes(self.powers @ (curved[:, :, None] * self.coefficients), 1, 2)
        owner = varies[:, :, None] * np.maximum(self.powers, 0.0)
        of_bases = np.swapaxes(owner @ ((is_linear * factor)[:, :, None] * self.coefficients), 1, 2)
        from_logs, from_bases = logs.above(of_logs), bases.above(of_bases)
        slopes = from_logs[0] + from_bases[0]
        offsets = from_logs[1] + from_bases[1] + constants @ self.coefficients
        low, high = (side @ self.coefficients for side in ends)
        touch = np.clip(1.0 / chord(low, high, np.log(low), np.log(high), 1.0 / low), low, high)
        return slopes / touch[:, :, None], np.log(touch) + (offsets - touch) / touch

    def _linear(self, varies: NDArray[np.bool_], logs: Planes) -> tuple[NDArray[np.bool_], Array]:
        """Return which products vary with one sum alone, linearly, bool [B, M], and the factor of that sum."""
        num_varying = varies @ (self.powers != 0.0).astype(np.float64)
        power = varies @ self.powers
        is_linear = (num_varying == 1.0) & (power == 1.0)
        # Sums that vary by rounding alone are at their largest where that makes products large.
        fixed = np.where(varies, 0.0, logs.most) @ np.maximum(self.powers, 0.0)
        fixed += np.where(varies, 0.0, logs.least) @ np.minimum(self.powers, 0.0)
        return is_linear, np.exp(np.clip(fixed, -LARGEST_EXPONENT, LARGEST_EXPONENT))
