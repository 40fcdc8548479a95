"""Column generation: solve the master, price its dual values, add what pays, until nothing does."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from solvers.patterns.master import Column, Master, MasterSolution
from solvers.patterns.pricing import Pricer, PricingTask

# Rounds after which the master has to do with the columns it has.
MOST_ROUNDS = 80
# Values within this of a whole number are that number.
INTEGER_TOLERANCE = 1e-6
# A pattern pays that is worth this much more than its GPU.
PAYS = 1e-7


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
    is_cut_short
        Whether the target ended it: there may be patterns that pay, and values that say more.
    """

    solution: MasterSolution
    estimate: float
    prices: NDArray[np.float64]
    is_cut_short: bool = False


def generate(
    master: Master,
    pricers: list[Pricer],
    demand: Demand,
    *,
    most_rounds: int = MOST_ROUNDS,
    num_shakes: int = 0,
    target: float = 0.0,
    smoothing: float = 0.0,
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
    smoothing
        How close to the values with the best estimate so far, in [0, 1), pricing is asked: the master's own jump from
        round to round (Wentges, "Weighted Dantzig-Wolfe decomposition", 1997).

    Raises
    ------
    BudgetSpentError
        When the budget ends during pricing.
    """
    best = Generated(master.solve(demand.adapters, demand.gpus), 0.0, np.zeros(len(demand.adapters)))
    center = _first_center(pricers, demand, best.solution.value) if smoothing else None
    for _ in range(most_rounds):
        num_new = 0
        # Around the center first; where that finds nothing new, the master's own values have the last word.
        for weight in [smoothing, 0.0] if smoothing else [0.0]:
            if num_new:
                break
            solution = best.solution
            prices = solution.prices if center is None else weight * center + (1.0 - weight) * solution.prices
            found = _priced(master, pricers, demand, solution, prices, 0 if weight else num_shakes)
            num_new += sum(master.add(column) for column in found.columns)
            estimate = (
                float(prices @ demand.adapters) / found.excess
                if center is not None
                else (solution.value / found.excess)
            )
            if estimate > best.estimate:
                best = Generated(solution, estimate, prices)
                center = prices if center is not None else None
        if num_new == 0 or best.estimate > target > 0.0:
            break
        best = Generated(master.solve(demand.adapters, demand.gpus), best.estimate, best.prices)
    return replace(best, is_cut_short=best.estimate > target > 0.0)


@dataclass(frozen=True)
class _Priced:
    """Columns that pay at the master's values, and how much more than its cost the best pattern was worth, >= 1."""

    columns: list[Column]
    excess: float


def _priced(  # noqa: PLR0917 - what the master says, and at which prices it is asked about
    master: Master,
    pricers: list[Pricer],
    demand: Demand,
    solution: MasterSolution,
    prices: NDArray[np.float64],
    num_shakes: int,
) -> _Priced:
    """Look for patterns at `prices`, float64 [T]."""
    columns = []
    excess = 1.0
    for gpu_type, pricer in enumerate(pricers):
        cost = float(master.costs[gpu_type] + solution.surcharges[gpu_type])
        patterns = pricer.price(PricingTask(prices, demand.adapters, cost, num_shakes, least=0.0))
        if len(patterns):
            excess = max(excess, float(patterns[0] @ prices) / cost)
        columns += [Column(pattern, gpu_type) for pattern in patterns if pattern @ solution.prices > cost + PAYS]
    return _Priced(columns, excess)


def _first_center(pricers: list[Pricer], demand: Demand, value: float) -> NDArray[np.float64]:
    """Return prices in proportion to the room that adapters take, worth `value` together, float64 [T]."""
    shares = pricers[0].shares
    return np.asarray(shares * (value / float(shares @ demand.adapters)), dtype=np.float64)


def whole(value: float) -> float:
    """Return the smallest whole number that is not below `value`, but for rounding errors."""
    return float(np.ceil(value - INTEGER_TOLERANCE))
