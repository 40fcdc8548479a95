"""The family of polyhedra: what decides about acceptance are polyhedra, and a network says the latencies.

The polyhedra learn what a network says about the rows (`predictors.polyhedra_fit`); it stays in the graph for the
latencies, about which no proof is made.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictors.fitted_model import FittedModel, Raw, RawNames
from predictors.neural import ITL, MOST, NeuralNetwork
from predictors.neural_fit import fit_network
from predictors.neural_training import NeuralSettings
from predictors.onnx_graph import GraphBuilder
from predictors.polyhedra import METADATA_KEY, Polyhedra
from predictors.polyhedra_fit import PolyhedraSettings, fit_polyhedra
from predictors.polyhedra_graph import add_polyhedra
from predictors.risk import Calibration
from predictors.targets import KinRows, TrainingRows
from twin.profile import PerformanceProfile

# Of the time, what the network gets at most.
_NETWORK_SHARE = 0.6
# Settings that a search may choose; the first ones are tried first.
CHOICES: Mapping[str, tuple[Any, ...]] = {
    "pieces": (8, 12, 4),
    "planes": (6, 5),
    "epochs": (20, 40),
    "learning_rate": (0.04, 0.02),
}


@dataclass(frozen=True)
class PolyhedraModel:
    """Polyhedra and the network that taught them, whose latencies are given."""

    polyhedra: Polyhedra
    network: NeuralNetwork

    def raw(self, features: NDArray[np.float32]) -> Raw:
        """Return what they say about `features`, float32 [N, F]."""
        log_ratio, log_odds = self.polyhedra.answers(features)
        latencies = np.minimum(self.network.raw(features), np.log(MOST.astype(np.float64)))[:, ITL:]
        return Raw(np.exp(log_ratio), log_odds, *latencies.T)

    def add_to(self, builder: GraphBuilder, calibration: Calibration, *, features: str) -> RawNames:
        """Add both to an ONNX graph."""
        outputs, offered = self.network.add_to(builder, features=features)
        ratio, log_odds = add_polyhedra(builder, self._calibrated(calibration), features=features)
        return RawNames(offered, ratio, log_odds, *outputs[ITL:])

    def metadata(self, calibration: Calibration) -> Mapping[str, str]:
        """Return the polyhedra, as the graph has them."""
        return {METADATA_KEY: self._calibrated(calibration).as_json()}

    def _calibrated(self, calibration: Calibration) -> Polyhedra:
        return self.polyhedra.calibrated(calibration.slope, calibration.offset)


def fit_polyhedra_model(
    rows: TrainingRows,
    profile: PerformanceProfile,
    settings: Mapping[str, Any],
    *,
    kin: Sequence[KinRows] = (),
    seed: int,
    time_limit_s: float,
    start: NeuralNetwork | None = None,
) -> FittedModel:
    """Fit polyhedra to what a network says: `start` as it is, or one that is fitted to the rows first."""
    started_s = time.monotonic()
    network = start
    if network is None:
        network = fit_network(
            rows, profile, kin=kin, settings=NeuralSettings(seed=seed), time_limit_s=_NETWORK_SHARE * time_limit_s
        )
    left_s = max(time_limit_s - (time.monotonic() - started_s), 1.0)
    polyhedra = fit_polyhedra(rows, network, PolyhedraSettings(**settings, seed=seed), time_limit_s=left_s)
    return PolyhedraModel(polyhedra, network)
