"""The objective in integers, for methods that count exactly: one weight per GPU type.

A placement's weight is the sum of its GPUs' weights, and smaller weights are better objectives, ties included: the
weight of a GPU is ``primary * factor + secondary``, with a factor that no sum of secondary terms reaches. Costs are
counted in billionths of the currency unit, rounded to the nearest, and then divided by what they have in common.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solvers.placement import Placement
from solvers.problem import Problem
from solvers.result import Bound

UNITS_PER_COST = 10**9


@dataclass(frozen=True)
class IntegerObjective:
    """Weights of a problem's GPU types.

    Attributes
    ----------
    primary, secondary
        What a GPU of each type adds to the objective and to what breaks ties, int64 [T].
    factor
        Larger than the secondary terms of all GPUs together.
    cost_unit
        Cost per hour that one primary unit stands for; 0 where GPUs are counted.
    largest_cost
        Cost per hour of the dearest GPU type.
    """

    primary: NDArray[np.int64]
    secondary: NDArray[np.int64]
    factor: int
    cost_unit: float
    largest_cost: float

    @property
    def weights(self) -> list[int]:
        """Weight of a GPU of each type."""
        pairs = zip(self.primary, self.secondary, strict=True)
        return [int(primary) * self.factor + int(secondary) for primary, secondary in pairs]

    def weight(self, placement: Placement) -> int:
        """Return the weight of a placement."""
        return sum(self.weights[gpu.gpu_type] for gpu in placement.gpus)

    def bound(self, weight: int, proof: str) -> Bound:
        """Return what it means, for the surrogate's problem, that no placement weighs less than `weight`."""
        primary = weight // self.factor
        if not self.cost_unit:
            return Bound(value=max(1, primary), proof=proof, model="surrogate")
        cost = primary * self.cost_unit
        # Whatever the types, so many GPUs are needed to cost that much.
        num_gpus = math.ceil(cost / self.largest_cost - 1e-9) if self.largest_cost else 1
        return Bound(value=max(1, num_gpus), proof=proof, model="surrogate", cost_per_hour=cost)


def integer_objective(problem: Problem) -> IntegerObjective:
    """Return the weights of a problem's GPU types."""
    prices = [gpu_type.cost_per_hour for gpu_type in problem.gpu_types]
    costs = [round(price * UNITS_PER_COST) for price in prices]
    common = math.gcd(*costs) or 1
    cost_units = np.array([cost // common for cost in costs], dtype=np.int64)
    ones = np.ones(len(prices), dtype=np.int64)
    is_cost = problem.objective == "least_cost"
    primary, secondary = (cost_units, ones) if is_cost else (ones, cost_units)
    return IntegerObjective(
        primary=primary,
        secondary=secondary,
        factor=len(problem.adapters) * int(secondary.max()) + 1,
        cost_unit=common / UNITS_PER_COST if is_cost else 0.0,
        largest_cost=max(prices),
    )
