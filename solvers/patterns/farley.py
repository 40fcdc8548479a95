r"""How few GPUs the surrogate's problem needs at least: Farley's bound, from any dual values and a certified pricing.

Give every adapter a value pi >= 0. Each GPU of a placement holds a set that the surrogate accepts; if no accepted set
is worth more than z, a placement needs at least ``sum(pi) / z`` GPUs. With costs c of GPU types and z the largest worth
per cost of any accepted set, it costs at least that much. (Farley, "A note on bounding a class of linear programming
problems", 1990; the values need not be optimal, nor the columns complete.)

z is bounded by best-first search over boxes of the aggregates. Certificates about the surrogate (`box_bounds`) empty a
box or bring inequalities for it; a linear relaxation says what a set inside may be worth at most; what is worth more
than needed is divided. The search may stop at any time: the box with the largest bound has the say. Sets are those with
the slots that planning tries (`solvers.slots`) at the rank of their largest adapter.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
from numpy.typing import NDArray

from solvers.adapter_types import AdapterTypes, exact_types
from solvers.feasibility import NUM_ADAPTERS_COLUMN, FeasibilityModel
from solvers.patterns.box_bounds import BoxBound, HasPieces, box_bound_for
from solvers.patterns.boxes import (
    NUM_AGGREGATES,
    Box,
    Propagation,
    feature_corners,
    root_boxes,
    whole_counts,
)
from solvers.patterns.cuts import Cuts
from solvers.patterns.division import SHORTEST_SIDE, column_to_divide, cut_off, place_to_divide
from solvers.patterns.questions import PatternModel
from solvers.patterns.relaxation import ROUNDING, Relaxation, Relaxed
from solvers.result import Bound

# Boxes that are looked at together.
BATCH_BOXES = 32
# The search ends when so many boxes bring the bound down by less than this share: then whole counts are worth less than
# real ones, which no division changes.
PATIENCE_BOXES = 600
LEAST_PROGRESS = 2e-4
# Bisections by which roots are cut down.
SHRINKING_STEPS = 6
# A side whose bounds have a price is divided before an idle one of the same length; this much weighs its length alone.
IDLE_PULL = 0.1
# Less than this of an aggregate counts as this where sides are compared on a logarithmic scale.
SMALLEST = 1e-3


@dataclass(frozen=True)
class Worth:
    """What is known about accepted sets.

    Attributes
    ----------
    value
        No accepted set is worth more per cost of its GPU.
    num_boxes
        Boxes that were looked at.
    """

    value: float
    num_boxes: int


def farley_bound(
    model: PatternModel,
    prices: NDArray[np.float64],
    *,
    costs: NDArray[np.float64],
    goal: float,
    most_boxes: int,
    time_share: float = 1.0,
    is_least_cost: bool = False,
) -> Bound | None:
    """Return a certified bound on the GPUs, or on the cost, of any placement that the surrogate accepts.

    Parameters
    ----------
    model
        Whose types the prices belong to. The bound itself is about the adapters one by one.
    prices
        What one adapter of each type is worth, >= 0, float64 [T].
    costs
        Of a GPU of each type, in what is bounded, float64 [G], > 0.
    goal
        A bound above this is not looked for.
    most_boxes
        Boxes to look at.
    time_share
        Of the time that the budget still has, in (0, 1].
    is_least_cost
        Whether `costs` are costs per hour, and not 1 each.

    Returns
    -------
    None when some GPU type's surrogate has no certificates, or nothing can be said.
    """
    problem = model.run.problem
    certificates = certificates_of(model.run.model)
    if certificates is None:
        return None
    exact = exact_types(problem)
    # An adapter with more work than the mean of its type is worth more, in proportion: any values will do.
    types = model.types
    means = np.array([types.work[list(chosen)].mean() for chosen in types.members])[types.type_of]
    worth = prices[types.type_of] * np.divide(types.work, means, out=np.ones_like(means), where=means > 0.0)
    values = np.array([worth[chosen[0]] for chosen in exact.members])
    total = float(values @ exact.counts)
    if total <= 0.0 or goal <= 0.0:
        return None
    search = FarleySearch(PatternModel(model.run, exact), certificates, costs)
    budget = model.run.budget
    most_seconds = None if budget.remaining_s is None else budget.elapsed_s + time_share * budget.remaining_s
    most = search.most_worth(values, enough=total / goal, most_boxes=most_boxes, most_seconds=most_seconds)
    least = total / most.value * (1.0 - ROUNDING)
    if is_least_cost:
        return Bound(max(1, ceil(least / float(costs.max()))), "farley", "surrogate", cost_per_hour=least)
    return Bound(max(1, ceil(least)), "farley", "surrogate")


def certificates_of(model: FeasibilityModel) -> tuple[BoxBound, ...] | None:
    """Return certificates of each GPU type's surrogate; None when one of them has none."""
    bounds = [box_bound_for(model, gpu_type) for gpu_type in range(len(model.problem.gpu_types))]
    certificates = tuple(bound for bound in bounds if bound is not None)
    return certificates if len(certificates) == len(bounds) else None


class FarleySearch:
    """The search for the most that an accepted set is worth.

    Parameters
    ----------
    model
        Whose types and budget.
    bounds
        Certificates, one for each GPU type.
    costs
        Of a GPU of each type, float64 [G], > 0.
    """

    def __init__(self, model: PatternModel, bounds: tuple[BoxBound, ...], costs: NDArray[np.float64]) -> None:
        self._model = model
        self._pieces = [tuple(bound.pieces) if isinstance(bound, HasPieces) else (bound,) for bound in bounds]
        self._costs = costs
        self._feasibility: FeasibilityModel = model.run.model
        self._types: AdapterTypes = model.types

    def most_worth(
        self, values: NDArray[np.float64], *, enough: float, most_boxes: int, most_seconds: float | None = None
    ) -> Worth:
        """Bound what accepted sets are worth per cost.

        Parameters
        ----------
        values
            Of one adapter of each type, >= 0, float64 [T].
        enough
            Smaller bounds are of no use.
        most_boxes
            Boxes to look at; the search also ends when the budget does, or when it stalls.
        most_seconds
            On the run's clock from its start; ``None``: as many as the budget has.
        """
        search = _Tree(self, values, enough)
        roots = [
            replace(box, piece=piece)
            for gpu_type, pieces in enumerate(self._pieces)
            for box in root_boxes(self._feasibility, self._types, gpu_type)
            for piece in range(len(pieces))
        ]
        search.look_at(search.shrunken(roots), parent=np.inf)
        best, looked_at = search.top, search.num_boxes
        while search.heap and search.top > enough and search.num_boxes < most_boxes:
            if search.top < best * (1.0 - LEAST_PROGRESS):
                best, looked_at = search.top, search.num_boxes
            has_stalled = search.num_boxes > looked_at + PATIENCE_BOXES
            if has_stalled or self._is_over(most_seconds):
                break
            search.divide()
        return Worth(max(enough, search.top, search.undivided), search.num_boxes)

    def _is_over(self, most_seconds: float | None) -> bool:
        budget = self._model.run.budget
        if most_seconds is not None and budget.elapsed_s >= most_seconds:
            return True
        if any(bound.asks_surrogate for pieces in self._pieces for bound in pieces):
            return self._model.run.exhausted() is not None
        return budget.remaining_s == 0.0

    def is_curved(self, box: Box) -> bool:
        """Return whether cuts of a box are planes beside something curved."""
        return self._pieces[box.gpu_type][box.piece].is_curved

    @property
    def types(self) -> AdapterTypes:
        """Types whose counts are searched."""
        return self._types

    def cost_of(self, box: Box) -> float:
        """Return the cost of the GPU of a box."""
        return float(self._costs[box.gpu_type])

    def matters(self, box: Box) -> NDArray[np.bool_]:
        """Return in which aggregates a narrower box may have better certificates, bool [K]."""
        return self._pieces[box.gpu_type][box.piece].matters[:NUM_AGGREGATES]

    def cuts(self, boxes: list[Box]) -> list[Cuts]:
        """Return the cuts of each box, [1, M, F] each."""
        lower, upper = feature_corners(self._feasibility, boxes)
        found: list[Cuts | None] = [None] * len(boxes)
        owners = np.array([(box.gpu_type, box.piece) for box in boxes])
        is_tied = np.array([box.is_tied for box in boxes])
        for gpu_type, piece in np.unique(owners, axis=0):
            mine = np.flatnonzero((owners == (gpu_type, piece)).all(axis=1))
            cuts = self._pieces[int(gpu_type)][int(piece)].cuts(lower[mine], upper[mine], is_tied[mine])
            for position, index in enumerate(mine):
                part = slice(position, position + 1)
                found[int(index)] = Cuts(cuts.gradients[part], cuts.slack[part])
        return [cuts for cuts in found if cuts is not None]


class _Tree:
    """Boxes that are still open, the largest bound first."""

    def __init__(self, search: FarleySearch, values: NDArray[np.float64], enough: float) -> None:
        self._search = search
        self._values = values
        self._enough = enough
        types = search.types
        # The value is one more sum: sets worth less than enough need not be looked at.
        self._propagation = {
            int(rank): Propagation(np.column_stack([types.loads, values])[types.ranks <= rank])
            for rank in np.unique(types.ranks)
        }
        self._relaxation: Relaxation | None = None
        # What a GPU would hold of each sum if all adapters were spread evenly over as many GPUs as they are worth.
        totals = types.counts @ types.loads
        self._typical = np.where(totals > 0.0, totals, 1.0) / max(float(values @ types.counts), 1.0)
        self.heap: list[tuple[float, int, Box, NDArray[np.float64]]] = []
        self.undivided = -np.inf
        self._order = itertools.count()
        self.num_boxes = 0

    @property
    def top(self) -> float:
        """Largest bound of an open box; -inf without any."""
        return -self.heap[0][0] if self.heap else -np.inf

    def divide(self) -> None:
        """Divide the boxes with the largest bounds, and look at the halves."""
        halves: list[Box] = []
        parent = -np.inf
        while self.heap and len(halves) < BATCH_BOXES and self.top > self._enough:
            bound, _, box, promise = heapq.heappop(self.heap)
            parent = max(parent, -bound)
            is_curved = self._search.is_curved(box)
            matters = self._search.matters(box)
            column = column_to_divide(box, promise, self._typical, matters=matters, is_curved=is_curved)
            if column is None:
                self.undivided = max(self.undivided, -bound)
            else:
                halves.extend(box.halves(column, place_to_divide(box, column, self._typical, is_curved=is_curved)))
        self.look_at(halves, parent=parent)

    def shrunken(self, boxes: list[Box]) -> list[Box]:
        """Return what is left of boxes when upper parts that are certified to be empty are cut off, side by side.

        Roots reach up to the sums of all adapters, a hundred times what a GPU holds. By bisection on a logarithmic
        scale, for all boxes and sides together.
        """
        kept = [box for box in map(self._tightened, boxes) if box is not None]
        sides = [
            (index, int(column))
            for index, box in enumerate(kept)
            for column in np.flatnonzero(self._search.matters(box) & (box.upper > box.lower))
        ]
        low = np.array(
            [max(kept[index].lower[column], SHORTEST_SIDE * self._typical[column]) for index, column in sides]
        )
        high = np.array([kept[index].upper[column] for index, column in sides])
        for _ in range(SHRINKING_STEPS):
            middle = np.sqrt(low * np.maximum(high, low))
            parts = [_above(kept[index], column, at) for (index, column), at in zip(sides, middle, strict=True)]
            empty = self._is_empty(parts)
            high, low = np.where(empty, np.minimum(middle, high), high), np.where(empty, low, middle)
        for (index, column), limit in zip(sides, high, strict=True):
            upper = kept[index].upper.copy()
            upper[column] = min(upper[column], limit)
            kept[index] = replace(kept[index], upper=upper)
        return kept

    def _is_empty(self, boxes: list[Box]) -> NDArray[np.bool_]:
        """Return for each box whether it is certified to hold no accepted set worth more than enough, bool [B]."""
        tightened = [self._tightened(box) for box in boxes]
        empty = np.array([box is None for box in tightened])
        kept = [box for box in tightened if box is not None]
        if kept:
            empty[~empty] = [bool(cuts.is_empty[0]) for cuts in self._search.cuts(kept)]
        return empty

    def look_at(self, boxes: list[Box], *, parent: float) -> None:
        """Bound boxes, and keep those open that may hold a set worth more than enough; `parent` bounds them all."""
        self.num_boxes += len(boxes)
        kept = [box for box in map(self._tightened, boxes) if box is not None]
        if not kept:
            return
        for box, cuts in zip(kept, self._search.cuts(kept), strict=True):
            if cuts.is_empty[0]:
                continue
            relaxed = self._relaxed(box, cuts)
            value = min(relaxed.value / self._search.cost_of(box), parent)
            if value > self._enough:
                heapq.heappush(self.heap, (-value, next(self._order), *self._kept(box, cuts, relaxed)))

    def _kept(self, box: Box, cuts: Cuts, relaxed: Relaxed) -> tuple[Box, NDArray[np.float64]]:
        """Return the part of a box that its cuts leave, and what the division of each side promises, float64 [K]."""
        width = box.upper - box.lower
        gradients = cuts.gradients[0, :, :NUM_AGGREGATES]
        if not self._search.is_curved(box) or not gradients.any():
            return box, width / self._typical * (IDLE_PULL + relaxed.pull * self._typical)
        # Planes come closer to what is curved, mostly on a logarithmic scale, where they rise most over a side.
        lengths = np.log((box.upper + SMALLEST) / (box.lower + SMALLEST))
        return cut_off(box, gradients, cuts.slack[0]), np.abs(gradients).sum(axis=0) * width * lengths

    def _tightened(self, box: Box) -> Box | None:
        """Return the part of a box in which sets may be worth more than enough; None: there is none."""
        rank = max(rank for rank in self._propagation if rank <= box.slot_rank)
        worth = self._enough * self._search.cost_of(box)
        lower, upper = np.append(box.lower, worth)[None], np.append(box.upper, np.inf)[None]
        lower, upper = self._propagation[rank].tightened(lower, upper)
        low, high = whole_counts(lower[0, :NUM_AGGREGATES], upper[0, :NUM_AGGREGATES])
        if (low > high).any():
            return None
        slots = box.slots
        if box.is_tied:
            slots = (int(low[NUM_ADAPTERS_COLUMN]), int(high[NUM_ADAPTERS_COLUMN]))
        return replace(box, lower=low, upper=high, slots=slots)

    def _relaxed(self, box: Box, cuts: Cuts) -> Relaxed:
        gradients, slack = cuts.gradients[0], cuts.slack[0]
        if self._relaxation is None:
            types = self._search.types
            self._relaxation = Relaxation(self._values, types.loads, types.counts, len(slack))
        own = gradients[:, :NUM_AGGREGATES]
        # The gradients' engine settings stay at their lower corner or above it, so that leaving them out is safe only
        # where they are not negative; elsewhere the cut is not used.
        usable = (gradients[:, NUM_AGGREGATES:] >= 0.0).all(axis=1)
        limits = np.where(usable, slack + own @ box.lower, np.inf)
        allowed = self._search.types.ranks <= box.slot_rank
        return self._relaxation.solve(box.lower, box.upper, np.where(usable[:, None], own, 0.0), limits, allowed)


def _above(box: Box, column: int, at: float) -> Box:
    """Return the part of a box with at least ``at`` in a column."""
    lower = box.lower.copy()
    lower[column] = max(lower[column], at)
    return replace(box, lower=lower)
