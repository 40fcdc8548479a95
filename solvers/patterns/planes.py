"""Functions over boxes between two linear ones: what bounds of a network are made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Boxes:
    """B boxes of F coordinates; coordinates are measured from the lower corner.

    Attributes
    ----------
    lower, upper
        float64 [B, F].
    """

    lower: Array
    upper: Array

    @property
    def width(self) -> Array:
        """Sides, float64 [B, F]."""
        return self.upper - self.lower

    def least(self, slopes: Array, offsets: Array) -> Array:
        """Return the least values of linear functions, [B, N, F] and [B, N], over the boxes, float64 [B, N]."""
        return np.asarray(offsets + (np.minimum(slopes, 0.0) @ self.width[:, :, None])[:, :, 0])

    def most(self, slopes: Array, offsets: Array) -> Array:
        """Return the largest values, float64 [B, N]."""
        return np.asarray(offsets + (np.maximum(slopes, 0.0) @ self.width[:, :, None])[:, :, 0])


@dataclass(frozen=True)
class Planes:
    """N functions over each of B boxes: each is nowhere below its lower plane and nowhere above its upper one.

    A plane is ``offset + slopes @ (x - lower corner)``; every function is also between `least` and `most`.

    Attributes
    ----------
    lower_slopes, upper_slopes
        float64 [B, N, F].
    lower_offsets, upper_offsets, least, most
        float64 [B, N].
    """

    lower_slopes: Array
    lower_offsets: Array
    upper_slopes: Array
    upper_offsets: Array
    least: Array
    most: Array

    def narrowed(self, boxes: Boxes) -> Planes:
        """Return the same with `least` and `most` as the planes have them, where those say more."""
        return Planes(
            self.lower_slopes,
            self.lower_offsets,
            self.upper_slopes,
            self.upper_offsets,
            np.maximum(self.least, boxes.least(self.lower_slopes, self.lower_offsets)),
            np.minimum(self.most, boxes.most(self.upper_slopes, self.upper_offsets)),
        )

    def widened(self, error: Array) -> Planes:
        """Return planes of functions that differ from these by at most `error`, float64 [B, N]."""
        return Planes(
            self.lower_slopes,
            self.lower_offsets - error,
            self.upper_slopes,
            self.upper_offsets + error,
            self.least - error,
            self.most + error,
        )

    def below(self, weights: Array) -> tuple[Array, Array]:
        """Return planes nowhere above ``weights @ functions``, weights [B, M, N] or [M, N]: [B, M, F] and [B, M]."""
        positive, negative = np.maximum(weights, 0.0), np.minimum(weights, 0.0)
        slopes = positive @ self.lower_slopes + negative @ self.upper_slopes
        offsets = positive @ self.lower_offsets[:, :, None] + negative @ self.upper_offsets[:, :, None]
        return slopes, offsets[:, :, 0]

    def above(self, weights: Array) -> tuple[Array, Array]:
        """Return planes nowhere below ``weights @ functions``, as `below` has them."""
        slopes, offsets = self.below(-weights)
        return -slopes, -offsets


def chord(least: Array, most: Array, at_least: Array, at_most: Array, fallback: Array) -> Array:
    """Return the slopes between the ends of intervals; `fallback` where an interval is a point."""
    width = most - least
    is_wide = width > 1e-12 * np.maximum(np.abs(most), 1e-300)
    return np.where(is_wide, np.divide(at_most - at_least, width, out=np.zeros_like(width), where=is_wide), fallback)
