"""Boxes of aggregates with the settings that their sets would have: where a bound is looked for, and how it divides.

A set on a GPU type has a number of slots from the grid (with at least as many adapters), or, up to the most that memory
allows, as many as adapters. Each choice of (GPU type, rank of the slots, slots) is the root of boxes of its own; slots
that equal the number of adapters are an interval that is divided with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from predictors.features import AGGREGATE_NAMES, ENGINE_NAMES
from predictors.slots import GRID
from solvers.adapter_types import AdapterTypes
from solvers.feasibility import NUM_ADAPTERS_COLUMN, FeasibilityModel
from twin.engine import SUPPORTED_RANKS

NUM_AGGREGATES = len(AGGREGATE_NAMES)
# Adapters of each rank; these and their sum, the number of adapters, are whole.
RANK_COLUMNS = np.array([AGGREGATE_NAMES.index(f"num_rank_{rank}") for rank in SUPPORTED_RANKS])
WHOLE_COLUMNS = np.append(NUM_ADAPTERS_COLUMN, RANK_COLUMNS)
# Aggregates are compared with this relative slack: sums of rounded products are not exact for mean rows.
ROUNDING = 1e-9
# Whole numbers are found within this of a bound.
WHOLE_TOLERANCE = 1e-6
# Slots that one root box has at most where they follow the number of adapters.
WIDEST_SLOTS = 32


@dataclass(frozen=True)
class Box:
    """Sets with aggregates between two corners, on a GPU type with certain slots.

    Attributes
    ----------
    gpu_type, slot_rank
        Of the GPU; no adapter has a larger rank.
    slots
        Fewest and most slots; with `is_tied` a set has as many as adapters.
    is_tied
        Whether the slots follow the number of adapters.
    lower, upper
        Of the aggregates, float64 [K].
    piece
        Of the union that is accepted; see `solvers.patterns.box_bounds.HasPieces`.
    """

    gpu_type: int
    slot_rank: int
    slots: tuple[int, int]
    is_tied: bool
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    piece: int = 0

    def halves(self, column: int, at: float) -> tuple[Box, Box]:
        """Return the box below and above ``at`` in a column of the aggregates; between whole numbers of adapters."""
        below_upper, above_lower = self.upper.copy(), self.lower.copy()
        is_whole = column in WHOLE_COLUMNS
        below_upper[column] = np.floor(at) if is_whole else at
        above_lower[column] = np.floor(at) + 1.0 if is_whole else at
        below, above = replace(self, upper=below_upper), replace(self, lower=above_lower)
        if column != NUM_ADAPTERS_COLUMN or not self.is_tied:
            return below, above
        fewest, most = self.slots
        return replace(below, slots=(fewest, int(np.floor(at)))), replace(above, slots=(int(np.floor(at)) + 1, most))


def root_boxes(model: FeasibilityModel, types: AdapterTypes, gpu_type: int) -> list[Box]:
    """Return boxes that together hold every set of adapters that a GPU of a type can be given, with its settings."""
    problem, slots = model.problem, model.slots
    fixed_rank, fixed_slots = problem.fixed_max_lora_rank, problem.fixed_max_loras
    boxes: list[Box] = []
    for slot_rank in sorted({fixed_rank} if fixed_rank else {int(rank) for rank in types.ranks}):
        limit = slots.limit(gpu_type, slot_rank)
        allowed = types.ranks <= slot_rank
        most = int(types.counts[allowed].sum())
        if limit == 0 or most == 0:
            continue
        totals = (types.counts[allowed, None] * types.loads[allowed]).sum(axis=0)
        lower = np.zeros(NUM_AGGREGATES)
        if fixed_rank is None:
            # Slots have the rank of the largest adapter, which is there.
            lower[AGGREGATE_NAMES.index(f"num_rank_{slot_rank}")] = 1.0
        everything = Box(gpu_type, slot_rank, (limit, limit), is_tied=False, lower=lower, upper=totals)
        if model.oracle is not None:
            # It decides about the slots itself, whatever the number of adapters.
            boxes.extend(
                _with_sizes(everything, 1, most, (count, count)) for count in sorted(set(model.oracle.slot_options))
            )
            continue
        if fixed_slots is not None:
            boxes.append(_with_sizes(everything, 1, most, (fixed_slots, fixed_slots)))
            continue
        boxes.extend(
            _with_sizes(everything, count, most, (count, count))
            for count in {*GRID, limit}
            if count <= min(limit, most)
        )
        fewest = 1
        while fewest <= min(limit, most):
            largest = min(limit, most, fewest + min(fewest, WIDEST_SLOTS) - 1)
            boxes.append(replace(_with_sizes(everything, fewest, largest, (fewest, largest)), is_tied=True))
            fewest = largest + 1
    return boxes


def feature_corners(model: FeasibilityModel, boxes: list[Box]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the corners of B boxes in the features, float64 [B, F] both: aggregates, then engine settings."""
    engine = model.problem.engine
    corners = []
    for side in range(2):
        rows = np.empty((len(boxes), NUM_AGGREGATES + len(ENGINE_NAMES)))
        for row, box in zip(rows, boxes, strict=True):
            sizes = (box.lower[NUM_ADAPTERS_COLUMN], box.upper[NUM_ADAPTERS_COLUMN])
            capacities = _capacities(model, box)
            most_cpu_loras = model.problem.most_cpu_loras(box.gpu_type, box.slot_rank)
            row[:NUM_AGGREGATES] = (box.lower, box.upper)[side]
            settings = {
                "max_loras": box.slots[side],
                "max_lora_rank": box.slot_rank,
                "max_num_seqs": engine.max_num_seqs,
                "max_num_batched_tokens": engine.max_num_batched_tokens,
                "kv_tokens": (min(capacities), max(capacities))[side],
                "max_cpu_loras": min(
                    max(sizes[side], box.slots[side]), math.inf if most_cpu_loras is None else most_cpu_loras
                ),
                "reserves_full_sequence": int(engine.scheduler_reserve_full_isl),
            }
            row[NUM_AGGREGATES:] = [settings[name] for name in ENGINE_NAMES]
        corners.append(rows)
    return corners[0], corners[1]


def whole_counts(
    lower: NDArray[np.float64], upper: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return bounds of the aggregates, float64 [K] both, that also keep the numbers of adapters whole.

    The adapters are those of all ranks together, so that bounds of the one bound the others. A lower bound above the
    upper one says that there is no such set.
    """
    low, high = lower.copy(), upper.copy()
    low[WHOLE_COLUMNS] = np.ceil(low[WHOLE_COLUMNS] - WHOLE_TOLERANCE)
    high[WHOLE_COLUMNS] = np.floor(high[WHOLE_COLUMNS] + WHOLE_TOLERANCE)
    low[NUM_ADAPTERS_COLUMN] = max(low[NUM_ADAPTERS_COLUMN], low[RANK_COLUMNS].sum())
    high[NUM_ADAPTERS_COLUMN] = min(high[NUM_ADAPTERS_COLUMN], high[RANK_COLUMNS].sum())
    fewest, most = low[RANK_COLUMNS], high[RANK_COLUMNS]
    low[RANK_COLUMNS] = np.maximum(fewest, low[NUM_ADAPTERS_COLUMN] - (most.sum() - most))
    high[RANK_COLUMNS] = np.minimum(most, high[NUM_ADAPTERS_COLUMN] - (fewest.sum() - fewest))
    return low, high


class Propagation:
    """What the bounds of one sum imply for the others, because every adapter has its own ratios of the two.

    Parameters
    ----------
    rows
        What one adapter of each type adds to each sum, float64 [T, K], >= 0.
    """

    def __init__(self, rows: NDArray[np.float64]) -> None:
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = rows[:, None, :] / rows[:, :, None]
        # Nobody adds to a sum without adding at least (most) this much to the other one.
        least = np.where(np.isnan(ratios), np.inf, ratios).min(axis=0)
        self._least = np.where(np.isfinite(least), least, 0.0)
        self._most = np.where(np.isnan(ratios), 0.0, ratios).max(axis=0)

    def tightened(
        self, lower: NDArray[np.float64], upper: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return bounds of all sums, float64 [B, K] both, that sets within the given bounds keep as well."""
        implied_lower = (lower[:, :, None] * self._least).max(axis=1)
        with np.errstate(invalid="ignore"):
            # A sum to which nobody adds is 0 whatever bounds the others, also where these are unbounded.
            products = np.where(self._most == 0.0, 0.0, upper[:, :, None] * self._most)
        implied_upper = np.where(np.isnan(products), np.inf, products).min(axis=1)
        return (
            np.maximum(lower, implied_lower * (1.0 - ROUNDING)),
            np.minimum(upper, implied_upper * (1.0 + ROUNDING)),
        )


def _with_sizes(box: Box, fewest: int, most: int, slots: tuple[int, int]) -> Box:
    lower, upper = box.lower.copy(), box.upper.copy()
    lower[NUM_ADAPTERS_COLUMN], upper[NUM_ADAPTERS_COLUMN] = fewest, most
    return replace(box, slots=slots, lower=lower, upper=upper)


def _capacities(model: FeasibilityModel, box: Box) -> list[int]:
    """Return the KV tokens with each of the slots of a box; all of them, because measured ones need not be monotone."""
    fewest, most = box.slots
    return [model.slots.kv_tokens(box.gpu_type, slots, box.slot_rank) for slots in range(fewest, most + 1)]
