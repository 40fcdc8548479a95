"""Certificates of a function of sums, by what its author says that it accepts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from predictors.aggregate_oracle import SUM_COLUMNS, AggregateOracle, CertifiesSums
from predictors.features import FEATURE_SCHEMA
from solvers.feasibility import FeasibilityModel
from solvers.patterns.cuts import Cuts

_SLOTS_COLUMN = FEATURE_SCHEMA.index("max_loras")
_RANK_COLUMN = FEATURE_SCHEMA.index("max_lora_rank")


class SumsBoxBound:
    """Certificates in the sums; see `BoxBound`.

    Parameters
    ----------
    oracle
        Who is asked.
    certificates
        What it accepts.
    """

    certificate = "sums"
    asks_surrogate = False
    is_curved = False

    def __init__(self, oracle: AggregateOracle, certificates: CertifiesSums) -> None:
        self._scale = oracle.sum_scale
        self._certificates = certificates
        self.matters = np.zeros(len(FEATURE_SCHEMA.names), dtype=np.bool_)
        self.matters[SUM_COLUMNS] = True

    def cuts(self, lower: NDArray[np.float64], upper: NDArray[np.float64], is_tied: NDArray[np.bool_]) -> Cuts:
        """Return what accepted sets keep; all boxes of the same slots and rank are asked about together."""
        del is_tied
        settings = lower[:, [_SLOTS_COLUMN, _RANK_COLUMN]].astype(np.int64)
        empty = np.empty(0)
        found = [(empty.reshape(0, len(SUM_COLUMNS)), empty)] * len(lower)
        for slots, rank in np.unique(settings, axis=0):
            mine = np.flatnonzero((settings == (slots, rank)).all(axis=1))
            corners = (lower[mine][:, SUM_COLUMNS] * self._scale, upper[mine][:, SUM_COLUMNS] * self._scale)
            gradients, limits = self._certificates.accepted_sums(int(slots), int(rank), *corners)
            for position, index in enumerate(mine):
                found[int(index)] = gradients[position], limits[position]
        most = max((len(limits) for _, limits in found), default=0)
        cuts = Cuts(np.zeros((len(lower), most, lower.shape[1])), np.full((len(lower), most), np.inf))
        for box, (gradients, limits) in enumerate(found):
            own = gradients * self._scale
            cuts.gradients[box, : len(own), SUM_COLUMNS] = own.T
            cuts.slack[box, : len(own)] = limits - own @ lower[box, SUM_COLUMNS]
        return cuts


def sums_bound(model: FeasibilityModel, gpu_type: int) -> SumsBoxBound | None:
    """Return certificates of a function of sums that has some."""
    del gpu_type
    oracle = model.oracle
    return None if oracle is None or oracle.certificates is None else SumsBoxBound(oracle, oracle.certificates)
