"""From a set that a surrogate refuses to the most general statement about what no GPU can hold.

Of a monotone surrogate, every refusal is first made as small as possible: adapters are left out while the rest is still
refused, then dimensions of the load are, then all that remain are scaled down together. What is left says of a GPU type
that a set must be below it in at least one dimension. Of any other surrogate, a refusal is about that very set.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from predictors.features import AGGREGATE_NAMES
from solvers import acceptance
from solvers.adapter_types import AdapterTypes
from solvers.choices import Settings
from solvers.feasibility import NUM_ADAPTERS_COLUMN, FeasibilityModel
from solvers.load_columns import LoadColumns

# Halvings of the interval in which the smallest refused multiple of a load lies.
SCALING_STEPS = 12


@dataclass(frozen=True)
class LoadCut:
    """A GPU of this type has, in one of these dimensions, at most so many parts."""

    gpu_type: int
    at_most: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class SetCut:
    """A GPU of this type cannot have these counts per adapter type; if `with_more`, nor a set that includes them."""

    gpu_type: int
    counts: tuple[int, ...]
    with_more: bool


Cut = LoadCut | SetCut


class Refusals:
    """Learns cuts by asking.

    Parameters
    ----------
    model
        Who is asked. If the surrogate is not monotone, cuts are about single sets.
    types
        Whose counts sets are.

    Attributes
    ----------
    columns
        In which cuts about loads are expressed.
    """

    def __init__(self, model: FeasibilityModel, types: AdapterTypes) -> None:
        self.model = model
        self.types = types
        self.columns = LoadColumns(types)
        self._by_work = np.array([types.work[list(members)].mean() for members in types.members])

    def first_cuts(self) -> list[LoadCut]:
        """Return what holds whatever is placed: in each dimension alone, how much of it is too much."""
        if not self.model.is_monotone:
            return []
        columns = self.columns
        totals = columns.loads_of(self.types.aggregates(self.types.counts[None]))[0]
        dimensions = [dimension for dimension in columns.loads if dimension not in columns.actives]
        num_types = len(self.model.problem.gpu_types)
        loads = np.zeros((len(dimensions) * num_types, columns.num_dimensions))
        loads[:, 0] = 1.0
        for position, dimension in enumerate(dimensions):
            loads[position * num_types : (position + 1) * num_types, dimension] = totals[dimension]
        gpu_types = np.tile(np.arange(num_types), len(dimensions))
        refused = self._refused(loads, gpu_types)
        loads, gpu_types = loads[refused], gpu_types[refused]
        return self._load_cuts(self._scaled(loads, gpu_types), gpu_types)

    def cuts(self, counts: NDArray[np.int64], gpu_types: NDArray[np.int64]) -> list[Cut]:
        """Return cuts that exclude each of N refused sets, int64 [N, T], on its GPU type, int64 [N]."""
        if not self.model.is_monotone:
            return [self._set_cut(row, gpu_type) for row, gpu_type in zip(counts, gpu_types, strict=True)]
        order = np.argsort(-self._by_work, kind="stable")
        smaller = np.concatenate([self._first_refused(counts, gpu_types, order[::step]) for step in (1, -1)])
        both = np.concatenate([gpu_types, gpu_types])
        loads = self.columns.loads_of(self.types.aggregates(smaller))
        refused = self._refused(loads, both)
        learned_sets = [
            self._set_cut(smaller[index], both[index]) for index in np.flatnonzero(~refused) if self._is_constrained
        ]
        loads, types = loads[refused], both[refused]
        learned = self._load_cuts(self._lowered(loads, types), types)
        missing = [
            self._set_cut(row, gpu_type)
            for row, gpu_type in zip(counts, gpu_types, strict=True)
            if not any(self._excludes(cut, row, int(gpu_type)) for cut in learned)
        ]
        return [*learned, *learned_sets, *missing]

    @property
    def _is_constrained(self) -> bool:
        return self.model.problem.constraint_table is not None

    def _set_cut(self, counts: NDArray[np.int64], gpu_type: int) -> SetCut:
        aggregates = self.types.aggregates(counts[None])
        own = aggregates[:, len(AGGREGATE_NAMES) :]
        # More adapters break no fewer constraints, and limits do not become wider.
        with_more = self.model.is_monotone and bool(
            self._refused(self.columns.loads_of(aggregates), np.array([gpu_type]), own)[0]
        )
        return SetCut(int(gpu_type), tuple(int(count) for count in counts), with_more)

    def _excludes(self, cut: LoadCut, counts: NDArray[np.int64], gpu_type: int) -> bool:
        parts = counts @ self.columns.units
        return cut.gpu_type == gpu_type and all(parts[dimension] > most for dimension, most in cut.at_most)

    def _first_refused(
        self, counts: NDArray[np.int64], gpu_types: NDArray[np.int64], order: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the smallest refused beginning of each set when its adapters are added in an order of types."""
        sequences = [np.repeat(order, row[order]) for row in counts]
        low = np.zeros(len(counts), dtype=np.int64)
        high = counts.sum(axis=1)
        # Invariant: the first `high` adapters are refused, the first `low` are not.
        while (active := np.flatnonzero(high - low > 1)).size:
            middle = (low[active] + high[active]) // 2
            tried = np.array(
                [
                    np.bincount(sequences[index][:length], minlength=self.types.num_types)
                    for index, length in zip(active, middle, strict=True)
                ]
            )
            choices = self.model.best_choice(
                self.types.aggregates(tried), self.types.max_ranks(tried), gpu_types[active]
            )
            high[active[~choices.feasible]] = middle[~choices.feasible]
            low[active[choices.feasible]] = middle[choices.feasible]
        return np.array(
            [
                np.bincount(sequence[:length], minlength=self.types.num_types)
                for sequence, length in zip(sequences, high, strict=True)
            ],
            dtype=np.int64,
        ).reshape(len(counts), self.types.num_types)

    def _lowered(self, loads: NDArray[np.float64], gpu_types: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return loads [N, D] that are nowhere above those given and still refused."""
        columns = self.columns
        loads = loads.copy()
        ranks = list(columns.ranks)
        without_ranks, one_of_rank = loads.copy(), loads.copy()
        without_ranks[:, ranks] = 0.0
        one_of_rank[:, ranks] = np.minimum(loads[:, ranks], 1.0)
        self._take(loads, one_of_rank, gpu_types)
        self._take(loads, without_ranks, gpu_types)
        for dimension in columns.loads:
            without = loads.copy()
            without[:, dimension] = 0.0
            self._take(loads, without, gpu_types)
        loads = self._scaled(loads, gpu_types)
        fewer = loads.copy()
        fewest = np.ceil(loads[:, list(columns.actives)]).max(axis=1, initial=1.0)
        fewer[:, 0] = np.minimum(loads[:, 0], np.maximum(fewest, loads[:, ranks].max(axis=1, initial=1.0)))
        self._take(loads, fewer, gpu_types)
        return loads

    def _take(self, loads: NDArray[np.float64], lower: NDArray[np.float64], gpu_types: NDArray[np.int64]) -> None:
        """Replace, in place, loads by lower ones that are refused too."""
        changed = np.flatnonzero((lower != loads).any(axis=1))
        still = changed[self._refused(lower[changed], gpu_types[changed])]
        loads[still] = lower[still]

    def _scaled(self, loads: NDArray[np.float64], gpu_types: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return refused loads [N, D] with their aggregates scaled down while they are refused."""
        low, high = np.zeros(len(loads)), np.ones(len(loads))
        dimensions = list(self.columns.loads)
        scaled = loads.copy()
        for _ in range(SCALING_STEPS if len(loads) else 0):
            middle = (low + high) / 2.0
            scaled[:, dimensions] = loads[:, dimensions] * middle[:, None]
            refused = self._refused(scaled, gpu_types)
            high = np.where(refused, middle, high)
            low = np.where(refused, low, middle)
        scaled[:, dimensions] = loads[:, dimensions] * high[:, None]
        return scaled

    def _load_cuts(self, loads: NDArray[np.float64], gpu_types: NDArray[np.int64]) -> list[LoadCut]:
        cuts: dict[LoadCut, None] = {}
        for load, gpu_type in zip(loads, gpu_types, strict=True):
            thresholds = self.columns.thresholds(load)
            # One adapter is what every used GPU has, and nothing is below 0.
            needed = (thresholds >= 0) & ~((np.arange(len(load)) == 0) & (load <= 1.0))
            at_most = tuple((int(dimension), int(thresholds[dimension])) for dimension in np.flatnonzero(needed))
            cuts[LoadCut(int(gpu_type), at_most)] = None
        return list(cuts)

    def _refused(
        self, loads: NDArray[np.float64], gpu_types: NDArray[np.int64], own: NDArray[np.float64] | None = None
    ) -> NDArray[np.bool_]:
        """Return which loads [N, D] are refused with any slots that a set at or above them may get, bool [N].

        Whatever the sets' constraints, unless `own`, float64 [N, C], has their columns.
        """
        if not len(loads):
            return np.zeros(0, dtype=np.bool_)
        rows, ranks = self.columns.aggregates_of(loads)
        if own is not None:
            rows = np.hstack([rows, own])
        refused: NDArray[np.bool_] = ~self.model.best_choice(rows, ranks, gpu_types).feasible
        for index in np.flatnonzero(refused):
            slots = self._slots_of_larger_ranks(rows[index], int(ranks[index]), int(gpu_types[index]))
            is_allowed = self.model.allowed(rows[[index]], gpu_types[[index]])
            if slots and (is_allowed is None or is_allowed[0]):
                refused[index] = not self._accepts_any(rows[index], int(ranks[index]), int(gpu_types[index]), slots)
        return refused

    def _slots_of_larger_ranks(self, row: NDArray[np.float64], rank: int, gpu_type: int) -> list[int]:
        """Return slots that only sets with larger ranks try: as many as their memory allows."""
        tables = self.model.slots
        num_adapters = int(row[NUM_ADAPTERS_COLUMN])
        larger = [int(other) for other in np.unique(self.types.ranks) if other > rank]
        limits = {tables.limit(gpu_type, other) for other in larger}
        tried = tables.options(gpu_type, num_adapters, rank)
        return sorted(limit for limit in limits if 0 < limit < num_adapters and limit not in tried)

    def _accepts_any(self, row: NDArray[np.float64], rank: int, gpu_type: int, slots: list[int]) -> bool:
        tables = self.model.slots
        kept_rank = tables.rank_of_slots(rank)
        settings = Settings(
            gpu_type=np.full(len(slots), gpu_type, dtype=np.int64),
            max_loras=np.array(slots, dtype=np.int64),
            max_lora_rank=np.full(len(slots), kept_rank, dtype=np.int64),
            kv_tokens=np.array([tables.kv_tokens(gpu_type, count, kept_rank) for count in slots], dtype=np.int64),
        )
        rows = np.repeat(row[None], len(slots), axis=0)
        return bool(acceptance.accepts(self.model.limits_of(rows), self.model.predict(rows, settings)).any())
