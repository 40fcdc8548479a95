"""Random: every adapter on a GPU drawn uniformly, with random slots.

The comparison of arXiv 2602.24044 that knows nothing. The slots are drawn uniformly from the published greedy's grid
(8, 16, ..., 576), as far as memory allows them at the GPU's largest rank; where it allows less than 8, they are what it
allows. One draw per number of GPUs, from (seed, number of GPUs). It ignores load, ranks and slots.
"""

from __future__ import annotations

import numpy as np

from predictors.slots import GRID
from solvers.baselines.fleet import FleetTask, Groups

ADAPTERS_STREAM, SLOTS_STREAM = 0, 1


def place(task: FleetTask, num_gpus: int) -> Groups:
    """Draw a GPU for every adapter."""
    generator = np.random.default_rng([task.seed, num_gpus, ADAPTERS_STREAM])
    gpus = generator.integers(num_gpus, size=task.num_adapters)
    return [[int(adapter) for adapter in np.flatnonzero(gpus == gpu)] for gpu in range(num_gpus)]


def choose_slots(task: FleetTask, groups: Groups) -> list[int]:
    """Draw slots for every group from the grid, as far as memory goes."""
    generator = np.random.default_rng([task.seed, len(groups), SLOTS_STREAM])
    slots = []
    for group in groups:
        limit = task.slots_limit(group)
        options = [value for value in GRID if value <= limit] or [max(limit, 1)]
        slots.append(int(generator.choice(options)))
    return slots
