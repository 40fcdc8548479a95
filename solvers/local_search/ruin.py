"""Which GPUs to empty, and in which order their adapters are placed again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from solvers.best_fit import runs
from solvers.open_fleet import OpenFleet

# GPUs that are emptied at once.
FEWEST_EMPTIED, MOST_EMPTIED = 2, 4
# Share of the draws in which the emptier half of the GPUs is preferred, the more the emptier they are.
EMPTIER_SHARE = 0.7
# Standard deviations of the logarithm by which an adapter's work is disturbed before it is sorted by it.
DISTURBANCES = (0.0, 0.1, 0.5, 2.0)
# Share of the draws in which adapters of all ranks are mixed.
MIXED_RANKS_SHARE = 0.3


def draw_gpus(fleet: OpenFleet, generator: np.random.Generator) -> NDArray[np.int64]:
    """Return a few GPUs to empty, rather emptier ones, int64, ascending."""
    gpus = fleet.open_gpus
    by_load = gpus[np.argsort(fleet.load[gpus], kind="stable")]
    count = min(int(generator.integers(FEWEST_EMPTIED, MOST_EMPTIED + 1)), len(gpus))
    if generator.random() < EMPTIER_SHARE:
        weights = 1.0 / (1.0 + np.arange(len(gpus)))
        chosen = generator.choice(by_load, size=count, replace=False, p=weights / weights.sum())
    else:
        chosen = generator.choice(by_load, size=count, replace=False)
    return np.sort(chosen)


def draw_order(
    adapters: NDArray[np.int64],
    ranks: NDArray[np.int64],
    work: NDArray[np.float64],
    generator: np.random.Generator,
) -> NDArray[np.int64]:
    """Return `adapters` by rank and work, descending, with disturbed work; about equal ones stay together.

    Parameters
    ----------
    adapters
        int64 [N].
    ranks, work
        Of all adapters: int64 [A], float64 [T, A].
    """
    ordered = adapters[np.lexsort((adapters, -work[0, adapters], -ranks[adapters]))]
    parts: list[NDArray[np.int64]] = []
    for run in runs(ranks, work, ordered):
        cuts = np.sort(generator.integers(0, len(run) + 1, size=2)) if len(run) > 1 else ()
        parts += [part for part in np.split(run, cuts) if len(part)]
    sigma = float(generator.choice(DISTURBANCES))
    noise = generator.normal(0.0, sigma, size=len(parts)) if sigma else np.zeros(len(parts))
    keys = np.array([work[0, part[0]] for part in parts]) * np.exp(noise)
    first_ranks = np.array([ranks[part[0]] for part in parts])
    if generator.random() < MIXED_RANKS_SHARE:
        first_ranks = np.zeros_like(first_ranks)
    return np.concatenate([adapters[:0], *(parts[index] for index in np.lexsort((-keys, -first_ranks)))])
