"""The simplest surrogate in plain Python that is right about something."""

import numpy as np
from numpy.typing import NDArray

from predictors.features import FEATURE_SCHEMA, FeatureSchema, offered_tps
from predictors.surrogate import SurrogateOutput

CAPACITY_TPS = 9000.0


class CapacitySurrogate:
    """A replica with a fixed capacity in tokens/s."""

    @property
    def schema(self) -> FeatureSchema:
        """The columns."""
        return FEATURE_SCHEMA

    def predict(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Serve what fits."""
        offered = offered_tps(features)
        ratio = np.minimum(1.0, CAPACITY_TPS / np.maximum(offered, 1.0)).astype(np.float32)
        starved = (ratio < 0.9).astype(np.float32)
        return SurrogateOutput(ratio, starved, ratio * offered, np.full_like(ratio, 0.02), np.full_like(ratio, 0.5))


class BoundedSurrogate(CapacitySurrogate):
    """The same, fitted on at most 100 adapters."""

    def outside_domain(self, features: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Say which rows have more."""
        return np.asarray(features[:, FEATURE_SCHEMA.index("num_adapters")] > 100)
