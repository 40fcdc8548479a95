"""Interval arithmetic of arrays that is safe for what float32 makes of each operation.

Every operation takes intervals that hold its float32 arguments and gives one that holds its float32 result: the exact
image, widened by the rounding (Moore, "Interval Analysis", 1966). A product of unknown infinities holds everything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# One operation is off by at most half a unit in the last place: this is two of them.
ROUNDING = 2.0**-23
# Below the smallest normal number the error is absolute.
SMALLEST = 2.0**-126
# Elementary functions are assumed, not proven, to be off by at most 8 units in the last place.
FUNCTION_ROUNDING = 8.0 * 2.0**-23
# So much is taken off a sigmoid, which ONNX Runtime approximates.
SIGMOID_ERROR = 1e-6


@dataclass(frozen=True)
class Intervals:
    """Lower and upper ends, float64 of one shape, lower <= upper; infinite where nothing is known."""

    lower: Array
    upper: Array

    @classmethod
    def exactly(cls, values: NDArray[np.generic]) -> Intervals:
        """Return intervals of one value each."""
        exact = np.asarray(values, dtype=np.float64)
        return cls(exact, exact)

    def each(self, function: Callable[[Array], Array]) -> Intervals:
        """Return what a function that only moves values makes of both ends."""
        return Intervals(function(self.lower), function(self.upper))

    def rising(self, function: Callable[[Array], Array], rounding: float = 0.0, error: float = 0.0) -> Intervals:
        """Return the image under a function that never falls, widened."""
        with np.errstate(all="ignore"):
            return Intervals(function(self.lower), function(self.upper)).widened(rounding, error)

    def widened(self, rounding: float = ROUNDING, error: float = SMALLEST) -> Intervals:
        """Return intervals that are wider by a share of their ends and an absolute error; without numbers, all."""
        with np.errstate(invalid="ignore", over="ignore"):
            lower = self.lower - rounding * np.abs(self.lower) - error
            upper = self.upper + rounding * np.abs(self.upper) + error
        return Intervals(np.where(np.isnan(lower), -np.inf, lower), np.where(np.isnan(upper), np.inf, upper))

    def __add__(self, other: Intervals) -> Intervals:
        with np.errstate(invalid="ignore"):
            return Intervals(self.lower + other.lower, self.upper + other.upper).widened()

    def __sub__(self, other: Intervals) -> Intervals:
        with np.errstate(invalid="ignore"):
            return Intervals(self.lower - other.upper, self.upper - other.lower).widened()

    def __mul__(self, other: Intervals) -> Intervals:
        with np.errstate(invalid="ignore"):
            corners = [mine * others for mine in (self.lower, self.upper) for others in (other.lower, other.upper)]
        # NaN of an infinity times 0 stays, and becomes everything.
        return Intervals(np.minimum.reduce(corners), np.maximum.reduce(corners)).widened()

    def __truediv__(self, other: Intervals) -> Intervals:
        """Return the quotients; everything where the divisor may be 0."""
        with np.errstate(all="ignore"):
            corners = [mine / others for mine in (self.lower, self.upper) for others in (other.lower, other.upper)]
        has_zero = (other.lower <= 0.0) & (other.upper >= 0.0)
        lower = np.where(has_zero, -np.inf, np.minimum.reduce(corners))
        upper = np.where(has_zero, np.inf, np.maximum.reduce(corners))
        return Intervals(lower, upper).widened()

    def __matmul__(self, weights: Array) -> Intervals:
        """Return sums of products with known weights, in any order of summation."""
        above, below = np.maximum(weights, 0.0), np.minimum(weights, 0.0)
        if not (np.isfinite(self.lower).all() and np.isfinite(self.upper).all()):
            # An infinity times a weight of 0 would be no number.
            shape = (self.lower @ weights).shape
            return Intervals(np.full(shape, -np.inf), np.full(shape, np.inf))
        magnitude = np.maximum(np.abs(self.lower), np.abs(self.upper)) @ np.abs(weights)
        error = ROUNDING * (len(weights) + 1) * magnitude + SMALLEST
        return Intervals(
            self.lower @ above + self.upper @ below - error, self.upper @ above + self.lower @ below + error
        )


def smallest(values: list[Intervals]) -> Intervals:
    """Return the elementwise minimum: no rounding."""
    return Intervals(
        np.minimum.reduce(np.broadcast_arrays(*(value.lower for value in values))),
        np.minimum.reduce(np.broadcast_arrays(*(value.upper for value in values))),
    )


def largest(values: list[Intervals]) -> Intervals:
    """Return the elementwise maximum: no rounding."""
    return Intervals(
        np.maximum.reduce(np.broadcast_arrays(*(value.lower for value in values))),
        np.maximum.reduce(np.broadcast_arrays(*(value.upper for value in values))),
    )


def sigmoid(values: Intervals) -> Intervals:
    """Return the logistic function, which stays in [0, 1]."""
    image = values.rising(_logistic, error=SIGMOID_ERROR)
    return Intervals(np.clip(image.lower, 0.0, 1.0), np.clip(image.upper, 0.0, 1.0))


def exponential(values: Intervals) -> Intervals:
    """Return the exponential function."""
    image = values.rising(np.exp, FUNCTION_ROUNDING, SMALLEST)
    return Intervals(np.maximum(image.lower, 0.0), image.upper)


def logarithm(values: Intervals) -> Intervals:
    """Return the natural logarithm; nothing is known where the argument may be 0 or less."""
    image = values.rising(np.log, FUNCTION_ROUNDING, FUNCTION_ROUNDING)
    return Intervals(np.where(values.lower > 0.0, image.lower, -np.inf), image.upper)


def _logistic(values: Array) -> Array:
    return np.asarray(1.0 / (1.0 + np.exp(-values)))
