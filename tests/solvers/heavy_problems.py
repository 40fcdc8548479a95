"""Problems of which a GPU takes some adapters and not all, and random sets of their adapters."""

import numpy as np
from numpy.typing import NDArray

from solvers.choices import Settings
from solvers.feasibility import NUM_ADAPTERS_COLUMN, FeasibilityModel
from solvers.problem import Limits, Problem
from tests.solvers.problems import make_adapter, make_problem


def heavy_problem(seed: int, num_adapters: int, *, rate_rps: float = 3.0, limits: Limits | None = None) -> Problem:
    """Return a problem of random ranks, lengths and rates, of which a GPU takes some adapters and not all."""
    generator = np.random.default_rng(seed)
    is_chat = seed % 2 == 0
    adapters = [
        make_adapter(
            f"a{index}",
            rank=(8, 16, 32)[int(generator.integers(3))],
            rate_rps=float(generator.uniform(0.05, 1.0)) * rate_rps,
            prompt=220.0 if is_chat else float(generator.uniform(50.0, 800.0)),
            output=200.0 if is_chat else float(generator.uniform(50.0, 400.0)),
        )
        for index in range(num_adapters)
    ]
    return make_problem(adapters, limits=limits)


def sums_and_settings(
    problem: Problem, model: FeasibilityModel, generator: np.random.Generator, count: int, *, is_tied: bool
) -> tuple[NDArray[np.float64], Settings]:
    """Return random sets with one number of slots for all, or each with as many as adapters."""
    everybody = len(problem.adapters)
    most = int(generator.integers(1, everybody + 1))
    chosen = generator.uniform(size=(count, everybody)).argsort(axis=1) < generator.integers(1, most + 1, (count, 1))
    rows = chosen.astype(np.float64) @ problem.aggregates
    sizes = rows[:, NUM_ADAPTERS_COLUMN].astype(np.int64)
    slots = sizes if is_tied else np.full(count, int(generator.integers(1, sizes.min() + 1)))
    kv_tokens = model.slots.capacities(0, 32, slots)
    return rows, Settings(np.zeros_like(slots), slots, np.full_like(slots, 32), kv_tokens)
