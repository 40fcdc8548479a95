"""Rates as a finite set of scenarios, such as day and night: a GPU must do under each of them, or under nearly all.

The sums over a set's adapters are kept for every scenario (`Problem.aggregates`), so that the surrogate is asked about
all scenarios of a set in one batch; what it says about the worst of those that count is the answer for the set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from predictors.surrogate import SurrogateOutput
from solvers.acceptance import judge
from solvers.constraints import matching_adapters
from solvers.limits import Limits, RowLimits
from twin.workload import Workload

# Relative rounding error of sums of weights.
ROUNDING = 1e-9


class RateScenario(BaseModel):
    """One set of rates that may be.

    Attributes
    ----------
    weight
        Its probability, relative to those of the others; > 0.
    factor
        On the rates of all adapters, >= 0.
    factors
        Further factors, by the names of adapters or patterns as in `constraints`; all that match are multiplied.
    rates_rps
        Rates in requests/s instead, by names or patterns; the last that matches holds, and no factor applies to it. In
        a problem file, an adapter is in one of both only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    factor: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    factors: dict[str, float] = Field(default_factory=dict)
    rates_rps: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_values(self) -> RateScenario:
        for field in ("factors", "rates_rps"):
            for pattern, value in getattr(self, field).items():
                if not (np.isfinite(value) and value >= 0.0):
                    raise ValueError(f"`{field}` must be finite and at least 0. Got {value} for {pattern!r}.")
        return self

    @property
    def is_common(self) -> bool:
        """Whether all rates have the same factor."""
        return not self.factors and not self.rates_rps

    def rates(self, adapters: Sequence[str], given_rps: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the rates of adapters with these names that have the rates `given_rps`, float64 [A]."""
        rates = given_rps * self.factor
        for pattern, factor in self.factors.items():
            rates[matching_adapters([pattern], adapters)] *= factor
        for pattern, rate in self.rates_rps.items():
            rates[matching_adapters([pattern], adapters)] = rate
        return rates


class RateScenarios(BaseModel):
    """The scenarios of a problem.

    Attributes
    ----------
    cases
        At least one; names are unique. The rates of the problem itself are not one of them unless one says so, by a
        factor of 1.
    risk
        Share of the weight of scenarios under which a GPU may be refused, in [0, 1).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cases: tuple[RateScenario, ...] = Field(min_length=1)
    risk: float = Field(default=0.0, ge=0, lt=1, allow_inf_nan=False)

    @model_validator(mode="after")
    def _check_names(self) -> RateScenarios:
        names = [case.name for case in self.cases]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"names of scenarios must be unique. Two are called {name!r}.")
        return self

    @property
    def weights(self) -> NDArray[np.float64]:
        """Share of the weight of each scenario, float64 [S]; their sum is 1."""
        weights = np.array([case.weight for case in self.cases])
        return np.asarray(weights / weights.sum())

    @property
    def binding(self) -> list[int]:
        """Scenarios under which every GPU must be accepted, because the others do not weigh enough without them."""
        return [index for index, weight in enumerate(self.weights) if weight > self.risk + ROUNDING]

    def workloads(self, workload: Workload) -> tuple[Workload, ...]:
        """Return the traffic under each scenario; a trace is replayed faster or slower, and has common factors only."""
        names = [adapter.name for adapter in workload.adapters]
        given = np.array([adapter.rate_rps for adapter in workload.adapters])
        return tuple(
            workload.scaled(case.factor)
            if workload.trace is not None
            else replace(
                workload,
                adapters=tuple(
                    adapter.model_copy(update={"rate_rps": float(rate)})
                    for adapter, rate in zip(workload.adapters, case.rates(names, given.copy()), strict=True)
                ),
            )
            for case in self.cases
        )

    def kept(self, accepted: NDArray[np.bool_], pressure: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which scenarios count for each of N sets: the least demanding ones that weigh enough, bool [S, N].

        Parameters
        ----------
        accepted, pressure
            Whether a set is accepted under each scenario, and how close it is to its limits; [S, N].
        """
        order = np.lexsort((pressure, ~accepted), axis=0)
        weights = self.weights[order]
        # Those before have not got enough weight together.
        needed = np.cumsum(weights, axis=0) - weights < 1.0 - self.risk - ROUNDING
        kept = np.zeros(accepted.shape, dtype=np.bool_)
        np.put_along_axis(kept, order, needed, axis=0)
        return kept

    def worst(
        self, output: SurrogateOutput, limits: Limits | RowLimits, offered_tps: NDArray[np.float64]
    ) -> SurrogateOutput:
        """Return one prediction for each of N sets: in everything the worst of the scenarios that count.

        It keeps limits exactly where the set is accepted under scenarios that weigh at least ``1 - risk``.

        Parameters
        ----------
        output
            S * N predictions, all sets under the first scenario first.
        limits
            Of all sets, or of each of N.
        offered_tps
            Tokens per second of each set at the problem's own rates, float64 [N]; the throughput is told for those.
        """
        shape = (len(self.cases), len(offered_tps))
        repeated = limits
        if isinstance(limits, RowLimits):
            repeated = limits.take(np.tile(np.arange(shape[1]), shape[0]))
        accepted, pressure = judge(repeated, output)
        kept = self.kept(accepted.reshape(shape), pressure.reshape(shape))

        def largest(values: NDArray[np.float32]) -> NDArray[np.float32]:
            return np.asarray(np.where(kept, values.reshape(shape), -np.inf).max(axis=0), dtype=np.float32)

        ratio = -largest(-output.throughput_ratio)
        return SurrogateOutput(
            throughput_ratio=ratio,
            starvation_probability=largest(output.starvation_probability),
            throughput_tps=(ratio * offered_tps).astype(np.float32),
            itl_s=largest(output.itl_s),
            ttft_s=largest(output.ttft_s),
        )
