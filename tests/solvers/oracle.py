"""The optimum by brute force: all partitions of a few adapters, for tests."""

from itertools import combinations

import numpy as np

from predictors.surrogate import Surrogate
from solvers.feasibility import FeasibilityModel
from solvers.problem import Problem


def least_objective(problem: Problem, surrogate: Surrogate, *, max_gpus: int = 3) -> float | None:
    """Return the least number of GPUs (or cost) of any placement on at most `max_gpus` GPUs; None: there is none.

    Every subset is asked once, on every GPU type, with every slot option; the best partition follows by dynamic
    programming over subsets. `max_count` of GPU types is not considered.
    """
    num_adapters = len(problem.adapters)
    assert num_adapters <= 8
    subsets = [members for size in range(1, num_adapters + 1) for members in combinations(range(num_adapters), size)]
    model = FeasibilityModel(problem, surrogate)
    rows = np.array([problem.aggregates[list(members)].sum(axis=0) for members in subsets])
    ranks = np.array([problem.ranks[list(members)].max() for members in subsets])
    cost_of: dict[int, float] = {}
    for index, gpu_type in enumerate(problem.gpu_types):
        cost = gpu_type.cost_per_hour if problem.objective == "least_cost" else 1.0
        feasible = model.best_choice(rows, ranks, index, subsets).feasible
        for members, holds in zip(subsets, feasible, strict=True):
            mask = sum(1 << member for member in members)
            if holds:
                cost_of[mask] = min(cost, cost_of.get(mask, np.inf))
    everything = (1 << num_adapters) - 1
    reached: dict[int, float] = {0: 0.0}
    for _ in range(max_gpus):
        grown = dict(reached)
        for mask, cost in reached.items():
            lowest = ~mask & (mask + 1)
            for block, block_cost in cost_of.items():
                if block & lowest and not block & mask:
                    total = cost + block_cost
                    grown[mask | block] = min(total, grown.get(mask | block, np.inf))
        reached = grown
    return reached.get(everything)
