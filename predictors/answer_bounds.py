"""What a surrogate answers in whole boxes of its features, where it can say so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from predictors.features import FEATURE_SCHEMA
from predictors.intervals import Intervals

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Quotients:
    """Between which numbers the quotient of two sums lies, of every set of adapters; float64 [F, F] both.

    Of features above (rows) and below (columns) the line; 0 and infinity where nothing is known.
    """

    lower: Array
    upper: Array

    @classmethod
    def unknown(cls) -> Quotients:
        """Return that nothing is known."""
        size = len(FEATURE_SCHEMA.names)
        return cls(np.zeros((size, size)), np.full((size, size), np.inf))

    @classmethod
    def of(cls, aggregates: Array) -> Quotients:
        """Return those of sets of adapters that add `aggregates` [A, K], >= 0, A >= 1, to the first K features."""
        count = aggregates.shape[1]
        everything = cls.unknown()
        lower, upper = everything.lower, everything.upper
        with np.errstate(divide="ignore", invalid="ignore"):
            each = aggregates[:, :, np.newaxis] / aggregates[:, np.newaxis, :]
        # An adapter that adds nothing to either sum moves no quotient.
        lower[:count, :count] = np.where(np.isnan(each), np.inf, each).min(axis=0)
        upper[:count, :count] = np.where(np.isnan(each), 0.0, each).max(axis=0)
        return cls(np.where(np.isfinite(lower), lower, 0.0), upper)

    def without(self, columns: Sequence[int]) -> Quotients:
        """Return the same with nothing known about some features."""
        lower, upper = self.lower.copy(), self.upper.copy()
        lower[columns], upper[columns] = 0.0, np.inf
        lower[:, columns], upper[:, columns] = 0.0, np.inf
        return Quotients(lower, upper)


class AnswerBounds(Protocol):
    """Bounds answers."""

    def bounds(self, lower: Array, upper: Array, quotients: Quotients) -> Mapping[str, Intervals]:
        """Return between which ends each answer lies, in float32 arithmetic, for features in boxes.

        Parameters
        ----------
        lower, upper
            Corners of B boxes, float64 [B, F] in the order of `FEATURE_SCHEMA`, before they are rounded to float32.
        quotients
            Of the sets of adapters that are asked about.

        Returns
        -------
        By name, of each of `OUTPUT_NAMES`, [B]; maybe of other values as well.
        """
        ...


@runtime_checkable
class HasAnswerBounds(Protocol):
    """A surrogate that may be able to bound its answers: proofs about it can be made."""

    @property
    def answer_bounds(self) -> AnswerBounds | None:
        """What bounds them; None when nothing is known."""
        ...
