"""Certificates of a surrogate that accepts a union of polyhedra: their planes, exact where settings are fixed.

Accepted rows are in some piece and keep its planes, and those of the ratio. Limits on latencies are none of the
polyhedra's: they only make fewer rows accepted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from predictors.features import FEATURE_SCHEMA, RATE_LINEAR_NAMES
from predictors.polyhedra import FLOAT32_ROUNDING, NUM_AGGREGATES, SETTING_COLUMNS, HasPolyhedra, Polyhedra
from solvers.feasibility import FeasibilityModel
from solvers.patterns.care import care_of
from solvers.patterns.cuts import Cuts
from solvers.problem_file import Limits

Array = NDArray[np.float64]

# How far a limit is moved for the float32 function at the end of the graph: of a probability, and of a logarithm.
PROBABILITY_ERROR = 1e-6
LOGARITHM_ERROR = 1e-6
# Aggregates are rounded to float32, and so are the factor of a margin and its products.
_AGGREGATE_ROUNDING = 4.0 * FLOAT32_ROUNDING

_SQUARE = FEATURE_SCHEMA.index("sum_rate_sq")
_ACTIVE = [FEATURE_SCHEMA.index(name) for name in ("active_10s", "active_40s")]


class PieceBoxBound:
    """Certificates of one piece of the union.

    Parameters
    ----------
    polyhedra
        What the surrogate computes.
    piece
        Which piece.
    limits
        Of the problem.
    factor
        By which the rates are inflated.
    threshold
        Of the probability of starvation.
    """

    certificate = "polyhedra"
    asks_surrogate = False
    is_curved = False

    def __init__(self, polyhedra: Polyhedra, piece: int, limits: Limits, *, factor: float, threshold: float) -> None:
        self._polyhedra = polyhedra
        probability = float(np.float32(threshold)) + PROBABILITY_ERROR
        starved = float(np.log(probability) - np.log1p(-probability)) + LOGARITHM_ERROR
        self._planes = np.r_[polyhedra.planes_of(piece)]
        self._most = polyhedra.most_sums(polyhedra.planes_of(piece), starved)
        if limits.starvation_tolerance < 1.0:
            of_ratio = slice(0, polyhedra.num_ratio_planes)
            unserved = -float(np.log1p(-limits.starvation_tolerance)) + LOGARITHM_ERROR
            self._planes = np.append(self._planes, np.r_[of_ratio])
            self._most = np.append(self._most, polyhedra.most_sums(of_ratio, unserved))
        # What every rate being `factor` times as large makes of each aggregate, at least: the active adapters are
        # limited by all of them.
        self._factors = np.ones(NUM_AGGREGATES)
        self._factors[[FEATURE_SCHEMA.index(name) for name in RATE_LINEAR_NAMES]] = factor
        self._factors[_SQUARE] = factor * factor
        self._factors[_ACTIVE] = min(factor, 1.0)
        self._factors *= 1.0 - _AGGREGATE_ROUNDING
        # Only slots that follow the number of adapters make planes of narrower boxes better.
        self.matters = np.zeros(len(FEATURE_SCHEMA.names), dtype=np.bool_)

    def cuts(self, lower: Array, upper: Array, is_tied: NDArray[np.bool_]) -> Cuts:
        """Return the planes of the piece and of the ratio."""
        del is_tied
        weights, constants = self._polyhedra.least_sums(lower[:, SETTING_COLUMNS], upper[:, SETTING_COLUMNS])
        cuts = Cuts(
            np.zeros((len(lower), len(self._planes), lower.shape[1])), np.zeros((len(lower), len(self._planes)))
        )
        own = weights[:, self._planes] * self._factors
        cuts.gradients[:, :, :NUM_AGGREGATES] = own
        cuts.slack[:] = self._most - constants[:, self._planes]
        cuts.slack[:] -= np.einsum("bpk,bk->bp", own, lower[:, :NUM_AGGREGATES])
        return cuts


class PolyhedraBoxBound(PieceBoxBound):
    """Certificates of the union: a box that no piece reaches is empty, and what a single one reaches keeps its planes.

    Attributes
    ----------
    pieces
        Certificates of each piece: together they hold all accepted rows, so that each may be searched alone.
    """

    def __init__(self, polyhedra: Polyhedra, limits: Limits, *, factor: float, threshold: float) -> None:
        super().__init__(polyhedra, 0, limits, factor=factor, threshold=threshold)
        self.pieces = tuple(
            PieceBoxBound(polyhedra, piece, limits, factor=factor, threshold=threshold)
            for piece in range(polyhedra.num_pieces)
        )

    def cuts(self, lower: Array, upper: Array, is_tied: NDArray[np.bool_]) -> Cuts:
        """Return what rows keep whichever piece they are in."""
        of_pieces = [piece.cuts(lower, upper, is_tied) for piece in self.pieces]
        is_reached = ~np.array([cuts.is_empty for cuts in of_pieces])
        count = is_reached.sum(axis=0)
        union = of_pieces[0]
        for index, cuts in enumerate(of_pieces):
            mine = is_reached[index] & (count == 1)
            union.gradients[mine], union.slack[mine] = cuts.gradients[mine], cuts.slack[mine]
        # Where several reach the box, only what is said of the ratio holds for all.
        union.slack[count > 1, : self._polyhedra.planes_per_piece] = np.inf
        return union


def polyhedra_bound(model: FeasibilityModel, gpu_type: int) -> PolyhedraBoxBound | None:
    """Return certificates of the surrogate of a GPU type if it accepts polyhedra, maybe behind a margin."""
    care = care_of(model.surrogate_of(gpu_type))
    polyhedra = care.surrogate.polyhedra if care is not None and isinstance(care.surrogate, HasPolyhedra) else None
    if care is None or polyhedra is None:
        return None
    return PolyhedraBoxBound(polyhedra, model.problem.limits, factor=care.factor, threshold=care.threshold)
