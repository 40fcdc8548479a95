"""Certificates of a surrogate that is a network: which linear inequalities its accepted rows keep in a box.

A row is accepted when its log-odds of starvation, the logarithm of its ratio and those of limited latencies are on the
right side of theirs. Each is bounded by a plane (`network_bounds`) and what the plane excludes is refused.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from predictors.features import AGGREGATE_NAMES, FEATURE_SCHEMA
from predictors.neural import ITL, MOST, RATIO, STARVATION, TTFT, HasNetwork, NeuralNetwork
from solvers.feasibility import FeasibilityModel
from solvers.patterns.boxes import RANK_COLUMNS
from solvers.patterns.care import care_of
from solvers.patterns.cuts import Cuts
from solvers.patterns.network_bounds import NetworkPlanes
from solvers.patterns.physics_planes import can_be_bounded, inflated_planes
from solvers.patterns.planes import Boxes
from solvers.problem_file import Limits

Array = NDArray[np.float64]

# How far a limit is moved for the float32 function at the end of the graph: of a probability, and of a logarithm.
PROBABILITY_ERROR = 1e-6
LOGARITHM_ERROR = 1e-5
# Boxes that are bounded together: their weights stay in the processor's cache.
BATCH_BOXES = 16
# Columns whose ratio differs by less than this between adapters are one.
SAME_RATIO = 1e-9

_NUM_ADAPTERS = FEATURE_SCHEMA.index("num_adapters")
_SLOTS = FEATURE_SCHEMA.index("max_loras")
_CPU_LORAS = FEATURE_SCHEMA.index("max_cpu_loras")
_NUM_AGGREGATES = len(AGGREGATE_NAMES)


class NetworkBoxBound:
    """Certificates of a network, maybe behind a margin on the rates, maybe with another threshold.

    Parameters
    ----------
    network
        Whose physics can be bounded.
    limits
        Of the problem.
    aggregates
        Of all adapters, float64 [A, K]: sums that are in proportion for all of them are one coordinate.
    factor
        By which the rates are inflated.
    threshold
        Of the probability of starvation.
    """

    certificate = "network"
    asks_surrogate = False
    is_curved = True

    def __init__(
        self, network: NeuralNetwork, limits: Limits, aggregates: Array, *, factor: float, threshold: float
    ) -> None:
        self._planes = NetworkPlanes.of(network)
        self._factor = factor
        self._outputs, self._most = _conditions(limits, threshold)
        self._relations = _relations(aggregates)
        # Nobody adds to a column, or it follows from another one.
        self.matters = self._relations.diagonal() > 0.0
        self.matters[:_NUM_AGGREGATES] &= aggregates.any(axis=0)

    def cuts(self, lower: Array, upper: Array, is_tied: NDArray[np.bool_]) -> Cuts:
        """Return the planes of the conditions; where one excludes its whole box, a negative slack without gradient."""
        parts = [slice(start, start + BATCH_BOXES) for start in range(0, len(lower), BATCH_BOXES)]
        cuts = [self._cuts(lower[part], upper[part], is_tied[part]) for part in parts]
        return Cuts(np.concatenate([it.gradients for it in cuts]), np.concatenate([it.slack for it in cuts]))

    def _cuts(self, lower: Array, upper: Array, is_tied: NDArray[np.bool_]) -> Cuts:
        boxes = Boxes(lower, upper)
        relations = self._relations_of(lower, upper, is_tied)
        features = inflated_planes(boxes, relations, boxes, self._factor)
        slopes, offsets, holds = self._planes.below(boxes, features, self._outputs)
        gradients = slopes.copy()
        # What the settings may contribute at least.
        gradients[:, :, _NUM_AGGREGATES:] = 0.0
        settings = np.where(np.arange(lower.shape[1]) < _NUM_AGGREGATES, 0.0, slopes)
        slack = self._most - boxes.least(settings, offsets)
        is_empty = (self._most < boxes.least(slopes, offsets)) & holds[:, None]
        gradients[is_empty] = 0.0
        slack = np.where(is_empty, -1.0, np.where(holds[:, None], slack, np.inf))
        gradients[~holds] = 0.0
        return Cuts(gradients, slack)

    def _relations_of(self, lower: Array, upper: Array, is_tied: NDArray[np.bool_]) -> Array:
        """Return what each feature is of the coordinates, float64 [B, F, F]."""
        relations = np.repeat(self._relations[None], len(lower), axis=0)
        # Adapters of the largest rank that a box allows are those of no other rank.
        every = np.arange(len(lower))
        largest = np.where(upper[:, RANK_COLUMNS] > 0.0, RANK_COLUMNS, RANK_COLUMNS[0]).max(axis=1)
        of_ranks = relations[:, RANK_COLUMNS]
        relations[every, largest] = relations[:, _NUM_ADAPTERS] - (of_ranks.sum(axis=1) - relations[every, largest])
        relations[is_tied, _SLOTS, _SLOTS] = 0.0
        relations[is_tied, _SLOTS, _NUM_ADAPTERS] = 1.0
        # As many adapters are kept in CPU memory as there are, or as there are slots, unless memory limits them.
        fits = upper[:, _CPU_LORAS] >= upper[:, _NUM_ADAPTERS]
        follows = fits & (is_tied | (lower[:, _NUM_ADAPTERS] >= upper[:, _SLOTS]))
        relations[follows, _CPU_LORAS, _CPU_LORAS] = 0.0
        relations[follows, _CPU_LORAS, _NUM_ADAPTERS] = 1.0
        return relations


def network_bound(model: FeasibilityModel, gpu_type: int) -> NetworkBoxBound | None:
    """Return certificates of the surrogate of a GPU type if it is a network, inside of any margin and a threshold."""
    care = care_of(model.surrogate_of(gpu_type))
    network = care.surrogate.network if care is not None and isinstance(care.surrogate, HasNetwork) else None
    if care is None or network is None or not can_be_bounded(network.layer):
        return None
    problem = model.problem
    # Columns of constraints are none of the network's.
    aggregates = problem.aggregates[:, :_NUM_AGGREGATES]
    return NetworkBoxBound(network, problem.limits, aggregates, factor=care.factor, threshold=care.threshold)


def _conditions(limits: Limits, threshold: float) -> tuple[Array, Array]:
    """Return weights of the raw outputs, float64 [M, 5], and what each sum is at most where a row is accepted, [M]."""
    probability = float(np.float32(threshold)) + PROBABILITY_ERROR
    conditions = [(STARVATION, 1.0, float(np.log(probability / (1.0 - probability))))]
    if limits.starvation_tolerance < 1.0:
        conditions.append((RATIO, -1.0, -float(np.log(1.0 - limits.starvation_tolerance))))
    for output, limit_ms in ((ITL, limits.itl_p95_ms), (TTFT, limits.ttft_p95_ms)):
        if limit_ms is not None:
            conditions.append((output, 1.0, float(np.log(limit_ms / 1000.0))))
    weights = np.zeros((len(conditions), len(MOST)))
    for row, (output, sign, _) in zip(weights, conditions, strict=True):
        row[output] = sign
    return weights, np.array([most for _, _, most in conditions]) + LOGARITHM_ERROR


def _relations(aggregates: Array) -> Array:
    """Return features in proportion to an earlier one as its multiples, float64 [F, F]; the others as themselves."""
    relations = np.eye(len(FEATURE_SCHEMA.names))
    for column in range(1, _NUM_AGGREGATES):
        for earlier in range(column):
            if relations[earlier, earlier] == 0.0 or not (aggregates[:, earlier] > 0.0).all():
                continue
            ratios = aggregates[:, column] / aggregates[:, earlier]
            if ratios.max() - ratios.min() <= SAME_RATIO * ratios.max() and ratios.max() > 0.0:
                relations[column, column] = 0.0
                relations[column, earlier] = float(ratios.mean())
                break
    return relations
