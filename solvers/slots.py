"""How many slots memory allows on a GPU type, which numbers are worth a question, and the KV capacity they leave.

The verdicts of `twin.memory.check_memory` are looked up once per (GPU type, slots, max rank).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solvers.problem import Problem

# Numbers of adapters at which the published greedy tests, and its candidate slots (arXiv 2602.24044).
GRID: tuple[int, ...] = (8, 16, 32, 64, 96, 128, 160, 192, 256, 320, 384, 448, 512, 576)
UNKNOWN = -1


@dataclass(frozen=True)
class _SlotTable:
    """One GPU type and max rank: slots up to `limit` start; `kv_tokens` is int64 [limit + 1], UNKNOWN at first."""

    limit: int
    grid: NDArray[np.int64]
    padded_grid: NDArray[np.int64]
    kv_tokens: NDArray[np.int64]


class SlotTables:
    """What memory allows on each GPU type of a problem."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._tables: dict[tuple[int, int], _SlotTable] = {}

    def rank_of_slots(self, max_rank: int) -> int:
        """Return the `max_lora_rank` of a GPU whose largest adapter rank is `max_rank`."""
        return self.problem.fixed_max_lora_rank or max_rank

    def limit(self, gpu_type: int, max_rank: int) -> int:
        """Return the most slots with which a replica starts; 0: none.

        Not searched beyond the number of adapters (or 8). With fixed slots: those, or 0.
        """
        return self._table(gpu_type, self.rank_of_slots(max_rank)).limit

    def options(self, gpu_type: int, num_adapters: int, max_rank: int) -> tuple[int, ...]:
        """Return the slots to try for a set: the grid below its size, and its size; or the fixed ones."""
        _, slots, _ = self.all_options(gpu_type, max_rank, np.array([num_adapters]))
        return tuple(int(value) for value in slots)

    def all_options(
        self, gpu_type: int, max_rank: int, sizes: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return (position in `sizes`, slots, KV tokens) of every option of N sets with `sizes` int64 [N] adapters."""
        rank = self.rank_of_slots(max_rank)
        table = self._table(gpu_type, rank)
        positions = np.arange(len(sizes), dtype=np.int64)
        if table.limit == 0:
            return positions[:0], positions[:0], positions[:0]
        if self.problem.fixed_max_loras is not None:
            slots = np.full(len(sizes), table.limit, dtype=np.int64)
            return positions, slots, self._capacities(gpu_type, rank, slots)
        most = np.minimum(sizes, table.limit)
        num_options = np.searchsorted(table.grid, most, side="left") + 1
        owner = np.repeat(positions, num_options)
        last = np.cumsum(num_options) - 1
        within = np.arange(len(owner), dtype=np.int64) - np.repeat(last - num_options + 1, num_options)
        slots = table.padded_grid[within]
        slots[last] = most
        return owner, slots, self._capacities(gpu_type, rank, slots)

    def kv_tokens(self, gpu_type: int, max_loras: int, max_lora_rank: int) -> int:
        """Return the KV capacity of a replica with these slots, in tokens; 0 when it does not start."""
        table = self._table(gpu_type, max_lora_rank)
        if max_loras > table.limit:
            return self._look_up(gpu_type, max_loras, max_lora_rank)
        if table.kv_tokens[max_loras] == UNKNOWN:
            table.kv_tokens[max_loras] = self._look_up(gpu_type, max_loras, max_lora_rank)
        return int(table.kv_tokens[max_loras])

    def _capacities(self, gpu_type: int, rank: int, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        table = self._table(gpu_type, rank)
        capacities = table.kv_tokens[slots]
        unknown = capacities == UNKNOWN
        if unknown.any():
            for missing in np.unique(slots[unknown]):
                self.kv_tokens(gpu_type, int(missing), rank)
            capacities = table.kv_tokens[slots]
        return capacities

    def _table(self, gpu_type: int, rank: int) -> _SlotTable:
        key = (gpu_type, rank)
        if key not in self._tables:
            limit = self._find_limit(gpu_type, rank)
            grid = np.array([value for value in GRID if value <= limit], dtype=np.int64)
            self._tables[key] = _SlotTable(limit, grid, np.append(grid, 0), np.full(limit + 1, UNKNOWN, dtype=np.int64))
        return self._tables[key]

    def _find_limit(self, gpu_type: int, rank: int) -> int:
        """Find the most slots that start: along the grid, where measured capacities lie, then by bisection."""
        fixed = self.problem.fixed_max_loras
        if fixed is not None:
            return fixed if self._look_up(gpu_type, fixed, rank) > 0 else 0
        # The published greedy starts with 8 slots whatever the number of adapters.
        most = max(len(self.problem.adapters), GRID[0])
        low, high = 0, most + 1
        for slots in sorted({1, most, *(value for value in GRID if value < most)}):
            if self._look_up(gpu_type, slots, rank) == 0:
                high = slots
                break
            low = slots
        while high - low > 1:
            middle = (low + high) // 2
            if self._look_up(gpu_type, middle, rank) > 0:
                low = middle
            else:
                high = middle
        return low

    def _look_up(self, gpu_type: int, slots: int, rank: int) -> int:
        return self.problem.replica(gpu_type, slots, rank, slots).memory().kv_tokens
