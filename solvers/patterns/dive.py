"""Price and dive: fix the most promising patterns of the mixture, price again for what is left, until nothing is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solvers.patterns.generation import INTEGER_TOLERANCE, Demand, generate
from solvers.patterns.master import Column, Master, MasterSolution
from solvers.patterns.pricing import Pricer, PricingTask

# Rounds of pricing after each fixing.
ROUNDS_PER_FIXING = 4
# Part of a column's copies that a random number may add when the next one to fix is chosen, in all dives but the first.
RANDOM_SHARE = 0.3


@dataclass(frozen=True)
class Patterns:
    """A part of a fleet as patterns.

    Attributes
    ----------
    counts, gpu_types
        Of N GPUs, int64 [N, T] and [N]; no pattern is empty.
    left
        Adapters of each type that are on none of them, int64 [T].
    """

    counts: NDArray[np.int64]
    gpu_types: NDArray[np.int64]
    left: NDArray[np.int64]


def dive(
    master: Master, pricers: list[Pricer], demand: Demand, generator: np.random.Generator | None = None
) -> Iterator[Patterns]:
    """Yield a growing part of a fleet: after the first fixing, whenever what is left has halved, and at the end.

    What is left may be placed by best fit at each of these points: sometimes that is better early, sometimes late. The
    end is when nothing is left, or when the GPUs are used up.

    Parameters
    ----------
    master, pricers
        The columns, and who finds more.
    demand
        What to place.
    generator
        Of random choices; ``None``: the column with most copies is fixed first.

    Raises
    ------
    BudgetSpentError
        When the budget ends during pricing.
    """
    left = Demand(demand.adapters.copy(), demand.gpus.copy())
    fixed: list[Column] = []
    solution = master.solve(left.adapters, left.gpus)
    next_value = solution.value
    while left.adapters.any() and (copies := _copies_to_fix(solution, generator)).any():
        for index in np.flatnonzero(copies):
            for _ in range(int(copies[index])):
                fixed.extend(_fix(master.columns[index], left, pricers, solution))
        solution = generate(master, pricers, left, most_rounds=ROUNDS_PER_FIXING).solution
        if left.adapters.any() and solution.value <= next_value:
            yield _patterns(fixed, left)
            next_value = 0.5 * solution.value
    yield _patterns(fixed, left)


def _patterns(fixed: list[Column], left: Demand) -> Patterns:
    return Patterns(
        counts=np.array([column.pattern for column in fixed], dtype=np.int64).reshape(-1, len(left.adapters)),
        gpu_types=np.array([column.gpu_type for column in fixed], dtype=np.int64),
        left=left.adapters.copy(),
    )


def _copies_to_fix(solution: MasterSolution, generator: np.random.Generator | None) -> NDArray[np.int64]:
    """Return how many copies of each column to fix: the whole ones, or one of a column with a large fraction."""
    whole = np.floor(solution.amounts + INTEGER_TOLERANCE).astype(np.int64)
    if whole.any() or not solution.amounts.any():
        return whole
    amounts = solution.amounts
    if generator is not None:
        amounts = amounts * (1.0 + RANDOM_SHARE * generator.standard_normal(len(amounts)))
    whole[int(np.argmax(amounts))] = 1
    return whole


def _fix(column: Column, left: Demand, pricers: list[Pricer], solution: MasterSolution) -> list[Column]:
    """Take a GPU with what is left of a column's adapters, and more in place of the others, out of `left`.

    Returns
    -------
    The column that it became; none when nothing is left of it.
    """
    pattern = np.minimum(column.pattern, left.adapters)
    if not pattern.any() or left.gpus[column.gpu_type] < 1.0:
        return []
    if not np.array_equal(pattern, column.pattern):
        task = PricingTask(solution.prices, left.adapters, 0.0)
        pattern = pricers[column.gpu_type].filled(pattern, task)
    left.adapters[:] -= pattern
    left.gpus[column.gpu_type] -= 1.0
    return [Column(pattern, column.gpu_type)]
