"""How many slots a GPU may have, and which of them planning takes: what solvers and the calibration for a risk share.

The verdicts of `twin.memory.check_memory` are looked up once per (slots, max rank).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from predictors.surrogate import SurrogateOutput

# Numbers of adapters at which the published greedy tests, and its candidate slots (arXiv 2602.24044).
GRID: tuple[int, ...] = (8, 16, 32, 64, 96, 128, 160, 192, 256, 320, 384, 448, 512, 576)
UNKNOWN = -1


@dataclass(frozen=True)
class _SlotTable:
    """One max rank: slots up to `limit` start; `kv_tokens` is int64 [limit + 1], UNKNOWN at first."""

    limit: int
    grid: NDArray[np.int64]
    padded_grid: NDArray[np.int64]
    kv_tokens: NDArray[np.int64]


class SlotOptions:
    """What memory allows on a GPU.

    Parameters
    ----------
    kv_tokens_of
        KV capacity in tokens of a replica with these slots of this rank; 0: it does not start.
    num_adapters
        Adapters that there are: more slots are not searched (but 8 are).
    fixed_max_loras
        The only slots that are tried; ``None``: the grid below the size of a set, and its size.
    """

    def __init__(
        self, kv_tokens_of: Callable[[int, int], int], *, num_adapters: int, fixed_max_loras: int | None = None
    ) -> None:
        self._look_up = kv_tokens_of
        self._num_adapters = num_adapters
        self._fixed_max_loras = fixed_max_loras
        self._tables: dict[int, _SlotTable] = {}

    def limit(self, rank: int) -> int:
        """Return the most slots of `rank` with which a replica starts; 0: none. With fixed slots: those, or 0."""
        return self._table(rank).limit

    def all_options(
        self, rank: int, sizes: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return (position in `sizes`, slots, KV tokens) of every option of N sets with `sizes` int64 [N] adapters."""
        table = self._table(rank)
        positions = np.arange(len(sizes), dtype=np.int64)
        if table.limit == 0:
            return positions[:0], positions[:0], positions[:0]
        if self._fixed_max_loras is not None:
            slots = np.full(len(sizes), table.limit, dtype=np.int64)
            return positions, slots, self._capacities(rank, slots)
        most = np.minimum(sizes, table.limit)
        num_options = np.searchsorted(table.grid, most, side="left") + 1
        owner = np.repeat(positions, num_options)
        last = np.cumsum(num_options) - 1
        within = np.arange(len(owner), dtype=np.int64) - np.repeat(last - num_options + 1, num_options)
        slots = table.padded_grid[within]
        slots[last] = most
        return owner, slots, self._capacities(rank, slots)

    def kv_tokens(self, max_loras: int, rank: int) -> int:
        """Return the KV capacity of a replica with these slots, in tokens; 0 when it does not start."""
        table = self._table(rank)
        if max_loras > table.limit:
            return self._look_up(max_loras, rank)
        if table.kv_tokens[max_loras] == UNKNOWN:
            table.kv_tokens[max_loras] = self._look_up(max_loras, rank)
        return int(table.kv_tokens[max_loras])

    def capacities(self, rank: int, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the KV capacity in tokens with each of `slots` of a rank, int64 [N]; 0 where it does not start."""
        starts = slots <= self.limit(rank)
        capacities = np.zeros(len(slots), dtype=np.int64)
        if starts.any():
            capacities[starts] = self._capacities(rank, slots[starts])
        return capacities

    def _capacities(self, rank: int, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        table = self._table(rank)
        capacities = table.kv_tokens[slots]
        unknown = capacities == UNKNOWN
        if unknown.any():
            for missing in np.unique(slots[unknown]):
                self.kv_tokens(int(missing), rank)
            capacities = table.kv_tokens[slots]
        return capacities

    def _table(self, rank: int) -> _SlotTable:
        if rank not in self._tables:
            limit = self._find_limit(rank)
            grid = np.array([value for value in GRID if value <= limit], dtype=np.int64)
            known = np.full(limit + 1, UNKNOWN, dtype=np.int64)
            self._tables[rank] = _SlotTable(limit, grid, np.append(grid, 0), known)
        return self._tables[rank]

    def _find_limit(self, rank: int) -> int:
        """Find the most slots that start: along the grid, where measured capacities lie, then by bisection."""
        fixed = self._fixed_max_loras
        if fixed is not None:
            return fixed if self._look_up(fixed, rank) > 0 else 0
        # The published greedy starts with 8 slots whatever the number of adapters.
        most = max(self._num_adapters, GRID[0])
        low, high = 0, most + 1
        for slots in sorted({1, most, *(value for value in GRID if value < most)}):
            if self._look_up(slots, rank) == 0:
                high = slots
                break
            low = slots
        while high - low > 1:
            middle = (low + high) // 2
            if self._look_up(middle, rank) > 0:
                low = middle
            else:
                high = middle
        return low


def best_options(
    owner: NDArray[np.int64],
    max_loras: NDArray[np.int64],
    accepted: NDArray[np.bool_],
    output: SurrogateOutput,
) -> NDArray[np.int64]:
    """Return for each set the row of its best option: accepted, then largest ratio, smallest probability, fewest slots.

    Parameters
    ----------
    owner, max_loras, accepted, output
        Of R options: whose each is, its slots (int64 [R] both), whether it is accepted (bool [R]), and the predictions.

    Returns
    -------
    int64, one row for each set that has options, in the order of the sets.
    """
    order = np.lexsort((max_loras, output.starvation_probability, -output.throughput_ratio, ~accepted, owner))
    sorted_owner = owner[order]
    is_first = np.empty(len(order), dtype=np.bool_)
    is_first[:1] = True
    np.not_equal(sorted_owner[1:], sorted_owner[:-1], out=is_first[1:])
    best: NDArray[np.int64] = order[is_first]
    return best
