"""Certificates of tree ensembles, and of any other graph that intervals can be sent through: which boxes are empty.

A box is empty when in all of it the probability of starvation is too large, the ratio too small, or a limited latency
too long.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from predictors.answer_bounds import AnswerBounds, HasAnswerBounds, Quotients
from predictors.features import AGGREGATE_NAMES, FEATURE_SCHEMA, RATE_LINEAR_NAMES
from predictors.intervals import ROUNDING
from solvers.feasibility import NUM_ADAPTERS_COLUMN, FeasibilityModel
from solvers.patterns.care import care_of
from solvers.patterns.cuts import Cuts
from solvers.problem_file import Limits

Array = NDArray[np.float64]

# How far a threshold is moved for the rounding of shifted odds.
PROBABILITY_ERROR = 1e-6

_SQUARE = FEATURE_SCHEMA.index("sum_rate_sq")
_ACTIVE = [FEATURE_SCHEMA.index(name) for name in ("active_10s", "active_40s")]


class IntervalBoxBound:
    """Certificates of a graph, maybe behind a margin on the rates, maybe with another threshold.

    Parameters
    ----------
    graph
        What the surrogate computes.
    limits
        Of the problem.
    aggregates
        Of all adapters, float64 [A, K].
    factor
        By which the rates are inflated.
    threshold
        Of the probability of starvation.
    """

    certificate = "intervals"
    asks_surrogate = False
    is_curved = False

    def __init__(
        self, graph: AnswerBounds, limits: Limits, aggregates: Array, *, factor: float, threshold: float
    ) -> None:
        self._graph = graph
        self._threshold = float(np.float32(threshold)) + PROBABILITY_ERROR
        self._least_ratio = float(np.float32(1.0 - limits.starvation_tolerance))
        self._most_s = {
            output: float(np.float32(limit_ms / 1000.0))
            for output, limit_ms in (("itl_s", limits.itl_p95_ms), ("ttft_s", limits.ttft_p95_ms))
            if limit_ms is not None
        }
        # What every rate being `factor` times as large makes of each feature; active adapters are limited by all.
        self._factors = np.ones(len(FEATURE_SCHEMA.names))
        self._factors[[FEATURE_SCHEMA.index(name) for name in RATE_LINEAR_NAMES]] = factor
        self._factors[_SQUARE] = factor * factor
        self._factors[_ACTIVE] = factor
        quotients = Quotients.of(self._inflated(aggregates))
        # Of these the sum is limited, not each adapter's part.
        self._quotients = quotients if factor == 1.0 else quotients.without(_ACTIVE)
        self.matters = np.ones(len(FEATURE_SCHEMA.names), dtype=np.bool_)
        self.matters[: len(AGGREGATE_NAMES)] &= aggregates.any(axis=0)

    def cuts(self, lower: Array, upper: Array, is_tied: NDArray[np.bool_]) -> Cuts:
        """Return a negative slack where a box is empty, and nothing elsewhere."""
        del is_tied
        said = self._graph.bounds(self._inflated(lower), self._inflated(upper, 1.0 + ROUNDING), self._quotients)
        is_empty = said["starvation_probability"].lower >= self._threshold
        is_empty |= said["throughput_ratio"].upper < self._least_ratio
        for output, most_s in self._most_s.items():
            is_empty |= said[output].lower > most_s
        slack = np.where(is_empty, -1.0, np.inf)[:, np.newaxis]
        return Cuts(np.zeros((len(lower), 1, lower.shape[1])), slack)

    def _inflated(self, rows: Array, rounding: float = 1.0 - ROUNDING) -> Array:
        """Return rows as if every adapter's rate were so many times as large, float64 [N, any number of features]."""
        inflated = rows * self._factors[: rows.shape[1]]
        inflated[:, _ACTIVE] = np.minimum(inflated[:, _ACTIVE], rows[:, [NUM_ADAPTERS_COLUMN]])
        changed = self._factors[: rows.shape[1]] != 1.0
        # The factor and the product are rounded.
        inflated[:, changed] *= rounding * rounding
        return np.asarray(inflated)


def interval_bound(model: FeasibilityModel, gpu_type: int) -> IntervalBoxBound | None:
    """Return certificates of the surrogate of a GPU type if intervals can be sent through its graph."""
    care = care_of(model.surrogate_of(gpu_type))
    graph = care.surrogate.answer_bounds if care is not None and isinstance(care.surrogate, HasAnswerBounds) else None
    if care is None or graph is None:
        return None
    problem = model.problem
    # Columns of constraints are none of the surrogate's.
    aggregates = problem.aggregates[:, : len(AGGREGATE_NAMES)]
    return IntervalBoxBound(graph, problem.limits, aggregates, factor=care.factor, threshold=care.threshold)
