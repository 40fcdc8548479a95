"""Several surrogates behind one: a surrogate is distilled from one profile, so several GPU types need several."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from predictors.aggregate_oracle import AggregateOracle
from predictors.features import FeatureSchema
from predictors.surrogate import InflatedSurrogate, Surrogate, SurrogateOutput
from twin.errors import SurrogateError


class SurrogatePerGpuType:
    """One surrogate for each GPU type of a problem, in the problem's order; solvers ask the one of the type.

    Parameters
    ----------
    surrogates
        At least one; all with the same schema.
    """

    def __init__(self, surrogates: tuple[Surrogate, ...]) -> None:
        schemas = {surrogate.schema for surrogate in surrogates}
        if len(schemas) != 1:
            raise SurrogateError(
                f"the surrogates of all GPU types must have one feature schema. Got {len(schemas)}.", field="surrogate"
            )
        self.surrogates = surrogates

    @property
    def schema(self) -> FeatureSchema:
        """Columns that the surrogates take."""
        return self.surrogates[0].schema

    def predict(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Predict when there is one type only; features do not say which type they are about."""
        if len(self.surrogates) > 1:
            raise SurrogateError("a surrogate of several GPU types must be asked for one of them. Use for_gpu_type.")
        return self.surrogates[0].predict(features)

    def for_gpu_type(self, index: int) -> Surrogate:
        """Return the surrogate of GPU type `index`."""
        return self.surrogates[index]


def inflated(surrogate: Surrogate, factor: float) -> Surrogate:
    """Return a surrogate that is asked as if all rates were `factor` times as large; itself for the factor 1."""
    if factor == 1.0:
        return surrogate
    if isinstance(surrogate, SurrogatePerGpuType):
        return SurrogatePerGpuType(tuple(InflatedSurrogate(part, factor) for part in surrogate.surrogates))
    if isinstance(surrogate, AggregateOracle):
        return surrogate.scaled(factor)
    return InflatedSurrogate(surrogate, factor)
