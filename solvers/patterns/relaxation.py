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
# With more types than this only some are in the program; those that would improve it enter, so many at a time, until
# all others together are worth less than this share, or for so many rounds. The bound holds whichever are missing.
MOST_COLUMNS = 400
ENTERING = 40
SIFTING_TOLERANCE = 1e-5
MOST_SIFTINGS = 12
# What a unit of a missing sum costs, in units of the value of all adapters.
SLACK_PENALTY = 4.0


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
        self._gradients = np.zeros((num_cuts, NUM_AGGREGATES))
        num_rows = NUM_AGGREGATES + num_cuts
        for column in np.eye(NUM_AGGREGATES, num_rows):
            self._program.add_column(0.0, -column, upper=0.0)
        # Where not all types are in the program, what is missing of a sum, or too much, has a price.
        self._is_sifted = len(values) > MOST_COLUMNS
        self._num_other = NUM_AGGREGATES
        if self._is_sifted:
            penalty = SLACK_PENALTY * float(self._values @ self._counts)
            for column in np.eye(NUM_AGGREGATES, num_rows):
                self._program.add_column(penalty, column)
                self._program.add_column(penalty, -column)
            self._num_other += 2 * NUM_AGGREGATES
        # Types in the program, in the order of their columns.
        self._columns = np.empty(0, dtype=np.int64)
        self._upper = np.empty(0)
        first = np.linspace(0, len(values) - 1, min(len(values), MOST_COLUMNS)).astype(np.int64)
        self._enter(np.unique(first))

    def _enter(self, kinds: NDArray[np.int64]) -> None:
        """Add types to the program, int64 [N]."""
        for kind in kinds:
            row = np.append(self._rows[kind], np.zeros(self._num_cuts))
            self._program.add_column(-float(self._values[kind]), row, upper=float(self._counts[kind]))
        self._columns = np.append(self._columns, kinds)
        self._upper = np.append(self._upper, self._counts[kinds])

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
        best = Relaxed(np.inf, np.zeros(NUM_AGGREGATES))
        for _ in range(MOST_SIFTINGS):
            try:
                solution = self._program.solve()
            except SolverError:
                # A bound that is not known is none; the box is divided, or keeps the bound of what it is a part of.
                return best
            if solution is None:
                return Relaxed(-np.inf, np.zeros(NUM_AGGREGATES))
            # HiGHS minimises the negative value; its prices, negated, are what a unit of each sum is worth.
            worth = -solution.row_prices[:NUM_AGGREGATES]
            cut_prices = np.where(np.isfinite(bounds), np.maximum(-solution.row_prices[NUM_AGGREGATES:], 0.0), 0.0)
            pull = worth - cut_prices @ scaled
            # Whatever the prices are, no set in the box is worth more than this (Lagrange).
            surplus = np.where(allowed, np.maximum(self._values - self._rows @ worth, 0.0) * self._counts, 0.0)
            value = (
                float(surplus.sum())
                + float(np.where(pull > 0.0, pull * high, pull * low).sum())
                + float(cut_prices @ np.where(np.isfinite(bounds), bounds, 0.0))
            )
            value += ROUNDING * max(1.0, abs(value))
            if value < best.value:
                best = Relaxed(value, np.abs(pull) / self._scale)
            surplus[self._columns] = 0.0
            if not self._is_sifted or float(surplus.sum()) <= SIFTING_TOLERANCE * abs(value):
                break
            self._enter(np.argsort(-surplus)[: min(ENTERING, int(np.count_nonzero(surplus)))])
            self._limit(allowed)
        return best

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
        self._limit(allowed)

    def _limit(self, allowed: NDArray[np.bool_]) -> None:
        """Let only `allowed` types, bool [T], be in the set."""
        upper = np.where(allowed[self._columns], self._counts[self._columns], 0.0)
        changed = np.flatnonzero(upper != self._upper).astype(np.int32)
        self._program.set_columns(changed + np.int32(self._num_other), np.zeros(len(changed)), upper[changed])
        self._upper = upper
