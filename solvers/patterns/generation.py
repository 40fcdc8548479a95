"""Column generation: solve the master, price its dual values, add what pays, until nothing does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solvers.patterns.master import Column, Master, MasterSolution
from solvers.patterns.pricing import Pricer, PricingTask

# Rounds after which the master has to do with the columns it has.
MOST_ROUNDS = 80
# Values within this of a whole number are that number.
INTEGER_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Demand:
    """What is still to be placed: adapters of each type, int64 [T], and GPUs of each type, float64 [G]."""

    adapters: NDArray[np.int64]
    gpus: NDArray[np.float64]


@dataclass(frozen=True)
class Generated:
    """What column generation ended with.

    Attributes
    ----------
    solution
        Of the last master.
    estimate
        Farley's bound with the best patterns found in place of the best that exist: proves nothing, but tells how much
        more generation may gain.
    prices
        The dual values with which it was reached, float64 [T].
    """

    solution: MasterSolution
    estimate: float
    prices: NDArray[np.float64]


def generate(
    master: Master,
    pricers: list[Pricer],
    demand: Demand,
    *,
    most_rounds: int = MOST_ROUNDS,
    num_shakes: int = 0,
    target: float = 0.0,
) -> Generated:
    """Add columns to `master` until none is found that pays, or none can matter.

    Parameters
    ----------
    master, pricers
        The columns, and who finds more: one per GPU type.
    demand
        What the mixture must cover.
    most_rounds
        Of pricing.
    num_shakes
        How hard pricing tries when it finds nothing at first (`PricingTask`).
    target
        Stop when the estimate says that the mixture cannot fall below `target`; 0: never.

    Raises
    ------
    BudgetSpentError
        When the budget ends during pricing.
    """
    best = Generated(master.solve(demand.adapters, demand.gpus), 0.0, np.zeros(len(demand.adapters)))
    for _ in range(most_rounds):
        solution = best.solution
        num_new = 0
        # How much more than its cost the best pattern of any type is worth.
        excess = 1.0
        for gpu_type, pricer in enumerate(pricers):
            cost = float(master.costs[gpu_type] + solution.surcharges[gpu_type])
            patterns = pricer.price(PricingTask(solution.prices, demand.adapters, cost, num_shakes))
            if len(patterns):
                excess = max(excess, float(patterns[0] @ solution.prices) / cost)
            num_new += sum(master.add(Column(pattern, gpu_type)) for pattern in patterns)
        estimate = solution.value / excess
        if estimate > best.estimate:
            best = Generated(solution, estimate, solution.prices)
        if num_new == 0 or best.estimate > target > 0.0:
            break
        best = Generated(master.solve(demand.adapters, demand.gpus), best.estimate, best.prices)
    return best


def whole(value: float) -> float:
    """Return the smallest whole number that is not below `value`, but for rounding errors."""
    return float(np.ceil(value - INTEGER_TOLERANCE))
