"""The restricted master: the cheapest mixture of the known patterns that covers the demand, and its dual values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solvers.linear_program import LinearProgram

# What an adapter that no pattern covers costs, in units of the dearest GPU: more than a GPU of its own.
UNCOVERED_COST = 10.0


@dataclass(frozen=True)
class Column:
    """A pattern as a column: counts, int64 [T], that fit a GPU of a type."""

    pattern: NDArray[np.int64]
    gpu_type: int


@dataclass(frozen=True)
class MasterSolution:
    """An optimal mixture.

    Attributes
    ----------
    value
        GPUs (or cost) of the mixture.
    amounts
        Copies of each column, float64 [C].
    uncovered
        Adapters of each type that no pattern covers, float64 [T].
    prices
        What one adapter of each type is worth, >= 0, float64 [T].
    surcharges
        What a GPU of each type costs more because there are only so many, >= 0, float64 [G].
    """

    value: float
    amounts: NDArray[np.float64]
    uncovered: NDArray[np.float64]
    prices: NDArray[np.float64]
    surcharges: NDArray[np.float64]


class Master:
    """The linear program over the patterns known so far.

    Parameters
    ----------
    costs
        Of a GPU of each type, float64 [G], > 0.
    limits
        Most GPUs of each type, float64 [G]; infinite: as many as one likes.
    num_types
        Types of adapters.
    """

    def __init__(self, costs: NDArray[np.float64], limits: NDArray[np.float64], num_types: int) -> None:
        self.costs = costs
        self.columns: list[Column] = []
        self._num_types = num_types
        self._known: set[tuple[int, bytes]] = set()
        no_demand = np.zeros(num_types)
        self._program = LinearProgram(
            np.concatenate([no_demand, np.full(len(costs), -np.inf)]),
            np.concatenate([np.full(num_types, np.inf), limits]),
        )
        for coefficients in np.eye(num_types, num_types + len(costs)):
            self._program.add_column(UNCOVERED_COST * float(costs.max()), coefficients)

    def add(self, column: Column) -> bool:
        """Add a column; return False when it is known."""
        key = (column.gpu_type, column.pattern.tobytes())
        if key in self._known:
            return False
        self._known.add(key)
        self.columns.append(column)
        coefficients = np.zeros(self._num_types + len(self.costs))
        coefficients[: self._num_types] = column.pattern
        coefficients[self._num_types + column.gpu_type] = 1.0
        self._program.add_column(float(self.costs[column.gpu_type]), coefficients)
        return True

    def solve(self, demand: NDArray[np.int64], limits: NDArray[np.float64]) -> MasterSolution:
        """Return the cheapest mixture that covers `demand`, int64 [T], with at most `limits` GPUs of each type."""
        for index, count in enumerate(demand):
            self._program.set_row(index, float(count), np.inf)
        for index, limit in enumerate(limits):
            self._program.set_row(self._num_types + index, -np.inf, float(limit))
        solution = self._program.solve()
        assert solution is not None, "uncovered demand makes every master feasible"
        return MasterSolution(
            value=solution.value,
            amounts=solution.columns[self._num_types :],
            uncovered=solution.columns[: self._num_types],
            prices=np.maximum(solution.row_prices[: self._num_types], 0.0),
            surcharges=np.maximum(-solution.row_prices[self._num_types :], 0.0),
        )
