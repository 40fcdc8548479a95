"""Which share of a GPU an adapter takes: one over the number of its like that a GPU serves.

Unavoidable work is a poor measure of it where adapters are cold: those take slots, and hold up others, rather than
work. The number is asked of the surrogate for a few adapters of each rank, and drawn through them for the others.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from solvers.feasibility import FeasibilityModel
from solvers.run import SolverRun

# Adapters of one rank that are asked about, at most.
REPRESENTATIVES_PER_RANK = 10
# Numbers of adapters of one kind that are tried at first, and then between the last accepted and the first refused.
FIRST_COUNTS = np.unique(np.round(np.geomspace(1, 2048, 6)).astype(np.int64))
FURTHER_COUNTS = 4
FURTHER_QUESTIONS = 3


def gpu_shares(run: SolverRun, work: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of a GPU of each type that each adapter takes, float64 [T, A], in (0, 1].

    Parameters
    ----------
    run
        Who is asked, with sets of copies, while its budget lasts. A surrogate that looks at members knows no copies: it
        is not asked. What is not asked about has its work as share.
    work
        Of each adapter on each type, float64 [T, A]; within a rank, the share is a function of it.
    """
    model = run.model
    shares = np.clip(work, 1.0 / FIRST_COUNTS[-1], 1.0)
    ranks = model.problem.ranks
    for gpu_type in range(len(work)):
        for rank in np.unique(ranks):
            if model.uses_members or run.exhausted() is not None:
                return shares
            mine = np.flatnonzero(ranks == rank)
            chosen = _representatives(mine, work[gpu_type])
            served = _most_copies(model, gpu_type, chosen)
            levels = work[gpu_type, chosen]
            # Both are drawn on a logarithmic scale: shares and work span orders of magnitude.
            shares[gpu_type, mine] = np.exp(
                np.interp(_logarithm(work[gpu_type, mine]), _logarithm(levels), -np.log(served))
            )
    return shares


def _logarithm(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.log(np.maximum(values, np.finfo(np.float64).tiny)))


def _representatives(adapters: NDArray[np.int64], work: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return adapters at quantiles of the different amounts of work, by work, ascending."""
    levels, first = np.unique(work[adapters], return_index=True)
    count = min(len(levels), REPRESENTATIVES_PER_RANK)
    return adapters[first[np.unique(np.linspace(0, len(levels) - 1, count).round().astype(np.int64))]]


def _most_copies(model: FeasibilityModel, gpu_type: int, adapters: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return how many copies of each adapter one GPU serves, at least 1, float64 [N]."""
    low, high = _bracket(model, gpu_type, adapters, np.tile(FIRST_COUNTS, (len(adapters), 1)))
    steps = np.arange(FURTHER_COUNTS + 2) / (FURTHER_COUNTS + 1)
    for _ in range(FURTHER_QUESTIONS):
        between = np.floor(low[:, np.newaxis] + (high - low)[:, np.newaxis] * steps).astype(np.int64)
        low, high = _bracket(model, gpu_type, adapters, between)
    return np.asarray(low, dtype=np.float64)


def _bracket(
    model: FeasibilityModel, gpu_type: int, adapters: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return for each adapter the last of its ascending counts [N, C] before a refusal, and the first refused one."""
    num_counts = counts.shape[1]
    owners = np.repeat(adapters, num_counts)
    choices = model.best_choice(model.aggregates[owners] * counts.reshape(-1, 1), model.problem.ranks[owners], gpu_type)
    is_refused = ~choices.feasible.reshape(counts.shape)
    first = np.where(is_refused.any(axis=1), is_refused.argmax(axis=1), num_counts)
    rows = np.arange(len(adapters))
    low = counts[rows, np.maximum(first - 1, 0)]
    high = counts[rows, np.minimum(first, num_counts - 1)]
    return low, high
