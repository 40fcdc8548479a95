"""Patterns that are worth more than their GPU: density greedy from many starts at once, then exchanges of types.

Under dual values, a pattern is worth the sum over its adapters. The best one is a knapsack whose capacity only the
surrogate knows. Each start fills a GPU type by type, in the order of value per estimated share of a GPU, with as many
adapters as the surrogate accepts; all starts ask together. Starts differ in the largest rank that they allow (one large
rank makes every slot large), in how shares are estimated, and in random factors. The best patterns are then improved by
exchanges: some adapters of one type for some of another, again many per question.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solvers.patterns.exchanges import best_exchanges
from solvers.patterns.filling import Filling
from solvers.patterns.questions import PatternModel

# Random orders for each rank and estimate.
NUM_PERTURBATIONS = 2
# Standard deviation of the random factors' logarithm.
PERTURBATION = 0.12
# How often shares are estimated anew beside the best patterns, how many of each rank, and which part of them is there.
# They are while no pattern is worth this many times the threshold: others are found easily then.
NUM_REFINEMENTS = 3
PLENTY = 1.02
NUM_CONTEXTS = 2
CONTEXT_PART = 0.8
# Types of each rank beside which shares are estimated from the start.
NUM_EQUALS = 3
# Patterns that are improved by exchanges, exchanges of each that are asked about at once, and how often.
NUM_IMPROVED = 10
NUM_MOVES = 21
NUM_EXCHANGE_ROUNDS = 30
# Patterns of which a random part is filled again at once.
NUM_SHAKEN = 32
# Values that differ less are equal.
VALUE_TOLERANCE = 1e-7


@dataclass(frozen=True)
class PricingTask:
    """What pricing is asked.

    Attributes
    ----------
    values
        What one adapter of each type is worth, >= 0, float64 [T].
    demand
        Most adapters of each type, int64 [T].
    threshold
        What a pattern must be worth more than.
    num_shakes
        How often, while none is found, the best patterns lose a random part and are filled again.
    least
        What a pattern must be worth more than to be returned; ``None``: the threshold.
    """

    values: NDArray[np.float64]
    demand: NDArray[np.int64]
    threshold: float
    num_shakes: int = 0
    least: float | None = None


class Pricer:
    """Finds patterns for one GPU type.

    Parameters
    ----------
    model
        Who is asked.
    gpu_type
        Of the patterns.
    generator
        Of the random factors.
    """

    def __init__(self, model: PatternModel, gpu_type: int, generator: np.random.Generator) -> None:
        self.model = model
        self.gpu_type = gpu_type
        self._generator = generator
        self._ranks = model.types.ranks
        nothing = np.zeros(model.types.num_types)
        # Share of a GPU that one adapter of each type takes, estimated in several ways: float64 [T] each.
        self._shares = [1.0 / model.capacities(nothing, gpu_type)]
        self._filling = Filling(model, gpu_type, self._shares[0])
        # The same beside many adapters of one type, of the small, middle and large ones of each rank: {rank: [T] each}.
        self._shares_of_rank = {int(rank): self._shares_beside_equals(int(rank)) for rank in np.unique(self._ranks)}

    def learn_mixture(self, mixture: NDArray[np.float64]) -> None:
        """Estimate shares also beside half of a typical pattern: real counts, float64 [T]."""
        half = 0.5 * mixture
        shares = self._shares_beside(half)
        total = float(shares @ half)
        if total > 0.0:
            self._shares = [self._shares[0], shares * (0.5 / total)]

    @property
    def shares(self) -> NDArray[np.float64]:
        """Share of a GPU that one adapter of each type is estimated to take, float64 [T], > 0."""
        return self._shares[-1]

    def _shares_beside_equals(self, rank: int) -> list[NDArray[np.float64]]:
        """Return shares beside as many of one type of a rank as leave some room, for a few types."""
        alone = self._shares[0]
        mine = np.flatnonzero(self._ranks == rank)
        by_share = mine[np.argsort(alone[mine], kind="stable")]
        chosen = np.unique(by_share[np.linspace(0, len(by_share) - 1, NUM_EQUALS).astype(np.int64)])
        bases = CONTEXT_PART * np.eye(len(alone))[chosen] / alone[chosen, None]
        return [self._shares_beside(base) for base in bases]

    def _shares_beside(self, base: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what one adapter of each type takes of the room beside `base` (real counts, [T]), float64 [T]."""
        return np.asarray(1.0 / self.model.capacities(base, self.gpu_type), dtype=np.float64)

    def price(self, task: PricingTask) -> NDArray[np.int64]:
        """Return distinct patterns worth more than the least that is asked for, best first, int64 [P, T]."""
        self.model.run.num_iterations += 1
        orders = self._orders(task)
        filled = self._fill(np.zeros_like(orders), orders, task)
        distinct = _best_first(filled, task.values)
        for _ in range(NUM_REFINEMENTS):
            if not len(distinct) or distinct[0] @ task.values > task.threshold * PLENTY:
                break
            local = self._local_orders(distinct, task)
            refined = self._fill(np.zeros_like(local), local, task)
            before = float(distinct[0] @ task.values)
            distinct = _best_first(np.concatenate([refined, distinct]), task.values)
            if distinct[0] @ task.values <= before + VALUE_TOLERANCE:
                break
        improved = self._exchange(self._varied(distinct), task)
        patterns = _best_first(np.concatenate([improved, distinct]), task.values)
        for _ in range(task.num_shakes):
            if not len(patterns) or patterns[0] @ task.values > task.threshold + VALUE_TOLERANCE:
                break
            shaken = _best_first(self._shaken(patterns, orders, task), task.values)
            improved = self._exchange(shaken[:NUM_IMPROVED], task)
            patterns = _best_first(np.concatenate([patterns, improved, shaken]), task.values)
        least = task.threshold if task.least is None else task.least
        is_worth_it: NDArray[np.bool_] = patterns @ task.values > least + VALUE_TOLERANCE
        return np.asarray(patterns[is_worth_it], dtype=np.int64)

    def filled(self, pattern: NDArray[np.int64], task: PricingTask) -> NDArray[np.int64]:
        """Return `pattern`, int64 [T], with what fits beside it of the demand that it leaves, best value first.

        The demand includes what is in the pattern.
        """
        order = np.argsort(-task.values / self._shares[-1], kind="stable")
        return np.asarray(self._fill(pattern[None], order[None], task)[0], dtype=np.int64)

    def _shaken(self, patterns: NDArray[np.int64], orders: NDArray[np.int64], task: PricingTask) -> NDArray[np.int64]:
        """Return the best of `patterns` without random parts of them, filled again in random ones of the orders."""
        best = patterns[np.arange(NUM_SHAKEN) % min(len(patterns), NUM_IMPROVED)]
        kept = self._generator.binomial(best, self._generator.uniform(0.3, 0.9, (NUM_SHAKEN, 1))).astype(np.int64)
        chosen = orders[self._generator.integers(0, len(orders), NUM_SHAKEN)]
        # Each order starts anew at a random place, so that other types are the first to find room.
        first = self._generator.integers(0, max(1, int((chosen >= 0).sum(axis=1).min())), NUM_SHAKEN)
        rotated = np.array([np.concatenate([row[at:], row[:at]]) for row, at in zip(chosen, first, strict=True)])
        padding_last = np.argsort(rotated < 0, axis=1, kind="stable")
        return self._fill(kept, np.take_along_axis(rotated, padding_last, axis=1), task)

    def _orders(self, task: PricingTask) -> NDArray[np.int64]:
        """Return orders of the types that have value and demand, padded with -1, int64 [S, T]."""
        usable = (task.values > 0.0) & (task.demand > 0)
        orders = []
        for max_rank in np.unique(self._ranks[usable]):
            allowed = usable & (self._ranks <= max_rank)
            sigmas = [0.0, *([PERTURBATION] * NUM_PERTURBATIONS)]
            estimates = [(shares, sigmas) for shares in self._shares]
            estimates += [(shares, sigmas[:1]) for shares in self._shares_of_rank[int(max_rank)]]
            for shares, own in estimates:
                for sigma in own:
                    factors = np.exp(self._generator.normal(0.0, sigma, len(shares)))
                    density = np.where(allowed, task.values / shares * factors, -1.0)
                    order = np.argsort(-density, kind="stable")
                    orders.append(np.where(density[order] > 0.0, order, -1))
        return np.array(orders, dtype=np.int64).reshape(len(orders), len(usable))

    def _varied(self, patterns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the best of `patterns`, those of each rank among them, int64 [P, T]."""
        ranks = self.model.types.max_ranks(patterns)
        best_of_ranks = [int(np.argmax(ranks == rank)) for rank in np.unique(ranks)]
        chosen = sorted({*range(min(NUM_IMPROVED, len(patterns))), *best_of_ranks})
        return patterns[chosen]

    def _local_orders(self, patterns: NDArray[np.int64], task: PricingTask) -> NDArray[np.int64]:
        """Return orders by value per share of a GPU beside the best of `patterns` of each rank, int64 [S, T].

        What an adapter takes of a GPU depends on who is there: many cold adapters change what a hot one costs.
        """
        usable = (task.values > 0.0) & (task.demand > 0)
        ranks = self.model.types.max_ranks(patterns)
        orders = [np.empty((0, len(usable)), dtype=np.int64)]
        for rank in np.unique(ranks[ranks > 0]):
            kinds = np.flatnonzero(usable & (self._ranks <= rank))
            for pattern in patterns[ranks == rank][:NUM_CONTEXTS]:
                capacities = self.model.capacities(
                    CONTEXT_PART * pattern, self.gpu_type, kinds=kinds, guesses=1.0 / self._shares[0][kinds]
                )
                order = np.full(len(usable), -1, dtype=np.int64)
                order[: len(kinds)] = kinds[np.argsort(-task.values[kinds] * capacities, kind="stable")]
                orders.append(order[None])
        return np.concatenate(orders)

    def _fill(self, patterns: NDArray[np.int64], orders: NDArray[np.int64], task: PricingTask) -> NDArray[np.int64]:
        """Add to each of S patterns as many of each type as fit, in its order; all ask together."""
        return self._filling.fill(patterns, orders, task.demand, self._shares[-1])

    def _exchange(self, patterns: NDArray[np.int64], task: PricingTask) -> NDArray[np.int64]:
        """Improve each of P patterns by exchanges until none pays; all ask together."""
        patterns = patterns.copy()
        improvable = np.ones(len(patterns), dtype=np.bool_)
        for _ in range(NUM_EXCHANGE_ROUNDS):
            active = np.flatnonzero(improvable)
            if not len(active):
                break
            moves = [
                best_exchanges(
                    patterns[index],
                    values=task.values,
                    shares=self._shares[-1],
                    demand=task.demand,
                    most=NUM_MOVES,
                )
                for index in active
            ]
            owners = np.repeat(active, [len(found) for found in moves])
            candidates = np.concatenate([patterns[:0], *moves])
            fits = self.model.feasible(candidates, self.gpu_type)
            gains = np.where(fits, candidates @ task.values - patterns[owners] @ task.values, -np.inf)
            for index in active:
                mine = np.flatnonzero(owners == index)
                improvable[index] = len(mine) > 0 and bool(np.isfinite(gains[mine].max()))
                if improvable[index]:
                    patterns[index] = candidates[mine[np.argmax(gains[mine])]]
        return patterns


def _best_first(patterns: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the distinct ones of `patterns` [N, T], the one worth most first."""
    distinct = np.unique(patterns, axis=0)
    return distinct[np.argsort(-(distinct @ values), kind="stable")]
