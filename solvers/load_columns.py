"""The load of a set in as few numbers as say it all, as integers: the space in which exact methods remember refusals.

A surrogate that declares itself monotone (`predictors.surrogate.DeclaresMonotone`) and refuses a load refuses every
load that is nowhere below it. The dimensions of a load are the number of adapters, the aggregates, and for every rank
how many adapters are of that rank or above it. Aggregates that are proportional over all adapters, as those are that
depend on the rate alone when all requests are alike, are one dimension.

Exact methods need integers. A dimension is counted in parts of its total over all adapters (`PARTS_PER_TOTAL`), each
adapter's share rounded down, and a threshold is rounded so that no load below it is lost: a set whose rounded load is
at or above a threshold really is. Numbers of adapters are whole already.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from predictors.features import AGGREGATE_NAMES
from solvers.adapter_types import AdapterTypes

PARTS_PER_TOTAL = 2**20
# Columns whose quotients differ by no more than this are proportional. What they differ by is kept on the safe side.
PROPORTIONAL = 1e-9
# Relative error that a sum of aggregates may have where rows are no exact sums.
ROUNDING = 1e-12

_NUM_ADAPTERS = AGGREGATE_NAMES.index("num_adapters")
_ACTIVE = frozenset(AGGREGATE_NAMES.index(name) for name in AGGREGATE_NAMES if name.startswith("active_"))
_RANK_COLUMNS = {
    int(name.removeprefix("num_rank_")): index
    for index, name in enumerate(AGGREGATE_NAMES)
    if name.startswith("num_rank_")
}
_LOADS = [
    index for index in range(len(AGGREGATE_NAMES)) if index != _NUM_ADAPTERS and index not in _RANK_COLUMNS.values()
]


@dataclass(frozen=True)
class _Group:
    """Proportional columns: the first, and for each by how much it is at least larger than the first."""

    column: int
    factors: dict[int, float]


class LoadColumns:
    """The dimensions of the loads of one problem.

    Dimension 0 is the number of adapters; then come the aggregates (`loads`), then the ranks above the smallest.

    Attributes
    ----------
    num_dimensions
        D.
    loads, ranks
        The dimensions that are aggregates, and those that count adapters of at least a rank.
    actives
        Those of `loads` that are numbers of active adapters.
    units
        What one adapter of each type adds, in parts, rounded down, int64 [T, D].
    """

    def __init__(self, types: AdapterTypes) -> None:
        self._groups = _groups(types.rows)
        self._ranks = sorted({int(rank) for rank in types.ranks})
        first_rank = 1 + len(self._groups)
        self.loads = tuple(range(1, first_rank))
        self.ranks = tuple(range(first_rank, first_rank + len(self._ranks) - 1))
        self.num_dimensions = first_rank + len(self.ranks)
        self.actives = tuple(
            dimension for dimension, group in zip(self.loads, self._groups, strict=True) if _ACTIVE & set(group.factors)
        )
        self._parts = np.ones(self.num_dimensions)
        exact = self._of_rows(types.rows)
        totals = types.counts @ exact
        for dimension in self.loads:
            # A power of two, so that no product with it is rounded.
            self._parts[dimension] = 2.0 ** np.floor(np.log2(PARTS_PER_TOTAL / totals[dimension]))
        self.units: NDArray[np.int64] = np.floor(exact * self._parts).astype(np.int64)

    def loads_of(self, aggregates: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the loads of N aggregates [N, K], float64 [N, D]."""
        return self._of_rows(aggregates)

    def aggregates_of(self, loads: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return aggregates, float64 [N, K], and largest ranks, int64 [N]; no set with such loads [N, D] is below."""
        rows = np.zeros((len(loads), len(AGGREGATE_NAMES)))
        rows[:, _NUM_ADAPTERS] = loads[:, 0]
        for dimension, group in zip(self.loads, self._groups, strict=True):
            for column, factor in group.factors.items():
                rows[:, column] = loads[:, dimension] * factor
        at_least = np.concatenate([loads[:, :1], loads[:, list(self.ranks)], np.zeros((len(loads), 1))], axis=1)
        of_rank = at_least[:, :-1] - at_least[:, 1:]
        for position, rank in enumerate(self._ranks):
            rows[:, _RANK_COLUMNS[rank]] = of_rank[:, position]
        highest = np.count_nonzero(at_least[:, 1:-1] > 0, axis=1)
        return rows, np.array(self._ranks, dtype=np.int64)[highest]

    def thresholds(self, load: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return, in parts, the most that a set may have in each dimension to be surely below `load` [D], int64 [D]."""
        exact = load * self._parts
        exact[list(self.loads)] *= 1.0 + ROUNDING
        return np.ceil(exact).astype(np.int64) - 1

    def _of_rows(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        counts = np.stack([rows[:, _RANK_COLUMNS[rank]] for rank in self._ranks], axis=1)
        at_least = np.cumsum(counts[:, ::-1], axis=1)[:, ::-1][:, 1:]
        columns = [rows[:, _NUM_ADAPTERS], *(rows[:, group.column] for group in self._groups)]
        return np.concatenate([np.stack(columns, axis=1), at_least], axis=1)


def _groups(rows: NDArray[np.float64]) -> list[_Group]:
    """Return the aggregates of types, float64 [T, K], that say something, proportional ones together."""
    groups: list[_Group] = []
    for column in _LOADS:
        if not rows[:, column].any():
            continue
        for group in groups:
            factor = _least_factor(rows[:, group.column], rows[:, column])
            if factor is not None:
                group.factors[column] = factor
                break
        else:
            groups.append(_Group(column, {column: 1.0}))
    return groups


def _least_factor(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    """Return the smallest quotient of two columns when they are proportional."""
    some = first > 0.0
    if second[~some].any():
        return None
    quotients = second[some] / first[some]
    least, largest = float(quotients.min()), float(quotients.max())
    return least if largest <= least * (1.0 + PROPORTIONAL) else None
