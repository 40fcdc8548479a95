"""The most that a set of adapters inside a box may be worth: a linear program, and a bound from its prices alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solvers.linear_program import LinearProgram
from solvers.patterns.boxes import NUM_AGGREGATES
from twin.errors import SolverError

# What a bound from prices may have lost to rounding, relative.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Relaxed:
    """The relaxed problem of a box.

    Attributes
    ----------
    value
        No set in the box is worth more; -inf: the box holds no set; inf: HiGHS gave up.
    pull
        By how much the value falls per unit by which a sum's bound moves inwards, >= 0, float64 [K].
    """

    value: float
    pull: NDArray[np.float64]


class Relaxation:
    """Real counts for whole ones: maximise the value over counts and their sums, which stay in a box.

    Parameters
    ----------
    values
        Of one adapter of each type, >= 0, float64 [T].
    rows, counts
        Aggregates of one adapter of each type, float64 [T, K], and how many there are, int64 [T].
    num_cuts
        Inequalities that each box brings.
    """

    def __init__(
        self, values: NDArray[np.float64], rows: NDArray[np.float64], counts: NDArray[np.int64], num_cuts: int
    ) -> None:
        self._values = values
        self._counts = counts.astype(np.float64)
        # Sums are measured in parts of what all adapters add up to.
        totals = self._counts @ rows
        self._scale = np.where(totals > 0.0, totals, 1.0)
        self._rows = rows / self._scale
        self._num_cuts = num_cuts
        equal = np.zeros(NUM_AGGREGATES)
        self._program = LinearProgram(
            np.concatenate([equal, np.full(num_cuts, -np.inf)]), np.concatenate([equal, np.full(num_cuts, np.inf)])
        )
        self._allowed = np.ones(len(values), dtype=np.bool_)
        self._gradients = np.zeros((num_cuts, NUM_AGGREGATES))
        num_rows = NUM_AGGREGATES + num_cuts
        for column in np.eye(NUM_AGGREGATES, num_rows):
            self._program.add_column(0.0, -column, upper=0.0)
        for value, row, count in zip(values, self._rows, self._counts, strict=True):
            self._program.add_column(-float(value), np.append(row, np.zeros(num_cuts)), upper=float(count))

    def solve(
        self,
        lower: NDArray[np.float64],
        upper: NDArray[np.float64],
        gradients: NDArray[np.float64],
        limits: NDArray[np.float64],
        allowed: NDArray[np.bool_],
    ) -> Relaxed:
        """Bound the value of the sets with sums in a box that keep some cuts.

        Parameters
        ----------
        lower, upper
            Of the sums, float64 [K].
        gradients, limits
            Sums y keep ``gradients @ y <= limits``; float64 [M, K] and [M].
        allowed
            Types that may be in the set, bool [T].
        """
        if (lower > upper).any():
            return Relaxed(-np.inf, np.zeros(NUM_AGGREGATES))
        low, high = lower / self._scale, upper / self._scale
        # Divided by its largest part, each cut is of the size of the sums.
        scaled = gradients * self._scale
        sizes = np.abs(scaled).max(axis=1, initial=0.0)
        sizes = np.where((sizes > 0.0) & np.isfinite(limits), sizes, 1.0)
        scaled, bounds = scaled / sizes[:, None], limits / sizes
        self._change(low, high, scaled, bounds, allowed)
        try:
            solution = self._program.solve()
        except SolverError:
            # A bound that is not known is none; the box is divided, or keeps the bound of what it is a part of.
            return Relaxed(np.inf, np.zeros(NUM_AGGREGATES))
        if solution is None:
            return Relaxed(-np.inf, np.zeros(NUM_AGGREGATES))
        # HiGHS minimises the negative value; its prices, negated, are what a unit of each sum is worth.
        worth = -solution.row_prices[:NUM_AGGREGATES]
        cut_prices = np.where(np.isfinite(bounds), np.maximum(-solution.row_prices[NUM_AGGREGATES:], 0.0), 0.0)
        pull = worth - cut_prices @ scaled
        # Whatever the prices are, no set in the box is worth more than this (Lagrange).
        surplus = np.maximum(self._values - self._rows @ worth, 0.0) * self._counts
        value = (
            float(surplus[allowed].sum())
            + float(np.where(pull > 0.0, pull * high, pull * low).sum())
            + float(cut_prices @ np.where(np.isfinite(bounds), bounds, 0.0))
        )
        return Relaxed(value + ROUNDING * max(1.0, abs(value)), np.abs(pull) / self._scale)

    def _change(
        self,
        low: NDArray[np.float64],
        high: NDArray[np.float64],
        gradients: NDArray[np.float64],
        bounds: NDArray[np.float64],
        allowed: NDArray[np.bool_],
    ) -> None:
        program = self._program
        program.set_columns(np.arange(NUM_AGGREGATES, dtype=np.int32), low, high)
        for cut in range(self._num_cuts):
            row = NUM_AGGREGATES + cut
            program.set_row(row, -np.inf, float(bounds[cut]))
            for column in np.flatnonzero(gradients[cut] != self._gradients[cut]):
                program.set_coefficient(row, int(column), float(gradients[cut, column]))
        self._gradients = gradients
        changed = np.flatnonzero(allowed != self._allowed).astype(np.int32)
        upper = np.where(allowed[changed], self._counts[changed], 0.0)
        program.set_columns(changed + np.int32(NUM_AGGREGATES), np.zeros(len(changed)), upper)
        self._allowed = allowed.copy()
