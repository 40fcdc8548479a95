"""Rates that are not known exactly: a GPU must do for the load that is exceeded only with a small probability.

The chance constraint through the variance aggregate: rates r_i are independent with the standard deviation c * r_i, and
all of them share a factor with the standard deviation s around 1. Then the rate of a set has the mean R = sum r_i and,
to first order, the variance c^2 * sum r_i^2 + s^2 * R^2; both sums are features. Taken as normal, it exceeds
R * (1 + z * std / R) with the probability 1 - p, where z is the normal quantile of p. The surrogate is asked as if all
rates of the set were larger by that factor. What is independent averages out in sets of many adapters, so one hot
adapter needs more room than many cold ones; what is shared does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from predictors.features import FEATURE_SCHEMA, inflate
from predictors.surrogate import MemberSurrogate, Surrogate, SurrogateOutput, SurrogateWrapper, outside_domain

_SUM_RATE = FEATURE_SCHEMA.index("sum_rate_rps")
_SUM_RATE_SQ = FEATURE_SCHEMA.index("sum_rate_sq")


class RateUncertainty(BaseModel):
    """How far the rates may be from what is given, and how sure a plan shall be.

    Attributes
    ----------
    rate_cv
        Standard deviation of each adapter's rate, independently of the others, relative to the rate; >= 0.
    common_cv
        Standard deviation of a factor on the rates of all adapters together; >= 0.
    probability
        With which every GPU, taken alone, keeps its limits; in [0.5, 1).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rate_cv: float = Field(default=0.0, ge=0, le=10, allow_inf_nan=False)
    common_cv: float = Field(default=0.0, ge=0, le=10, allow_inf_nan=False)
    probability: float = Field(default=0.95, ge=0.5, lt=1, allow_inf_nan=False)

    def factor(self, sum_rate: NDArray[np.float64], sum_rate_sq: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return by how much the rates of N sets grow at the quantile, >= 1.

        Parameters
        ----------
        sum_rate, sum_rate_sq
            Of the rates of each set in requests/s, and of their squares; float64 [N], >= 0.

        Returns
        -------
        float64 [N]; 1 for sets without traffic.
        """
        # The share of one adapter's variance: 1 for a set of one, 1/n for n equal ones.
        concentration = np.divide(
            sum_rate_sq, sum_rate * sum_rate, out=np.zeros(len(sum_rate), dtype=np.float64), where=sum_rate > 0.0
        )
        spread = np.sqrt(self.rate_cv**2 * concentration + self.common_cv**2)
        return np.where(sum_rate > 0.0, 1.0 + NormalDist().inv_cdf(self.probability) * spread, 1.0)


class ChanceConstrainedSurrogate(SurrogateWrapper):
    """A surrogate that is asked about the quantile of each set's load; the throughput is scaled back.

    Unlike a margin, the factor is not the same for all sets, and more of one load may lower it: what the inner
    surrogate declares as monotone does not hold for this one.
    """

    keeps_order = False

    def __init__(self, surrogate: Surrogate, uncertainty: RateUncertainty) -> None:
        super().__init__(surrogate)
        self.uncertainty = uncertainty

    def predict(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Return what the inner surrogate predicts at the quantile of the loads."""
        factors = self._factors(features)
        return _deflated(self.surrogate.predict(inflate(features, factors)), factors)

    def predict_members(self, members: Sequence[tuple[int, ...]], features: NDArray[np.float32]) -> SurrogateOutput:
        """Return what the inner surrogate predicts for N sets; by features alone if it ignores members."""
        if not isinstance(self.surrogate, MemberSurrogate):
            return self.predict(features)
        factors = self._factors(features)
        return _deflated(self.surrogate.predict_members(members, inflate(features, factors)), factors)

    def outside_domain(self, features: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return for each row whether the quantile of its load lies outside the inner surrogate's domain, bool [N]."""
        return outside_domain(self.surrogate, inflate(features, self._factors(features)))

    def _factors(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        columns = features[:, [_SUM_RATE, _SUM_RATE_SQ]].astype(np.float64)
        return self.uncertainty.factor(columns[:, 0], columns[:, 1])


def _deflated(output: SurrogateOutput, factors: NDArray[np.float64]) -> SurrogateOutput:
    return replace(output, throughput_tps=(output.throughput_tps / factors).astype(np.float32))
