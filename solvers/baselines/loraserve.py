"""LoRAServe (arXiv 2511.22880): GPUs for each rank in proportion to its utilisation, leftovers onto larger ranks.

- Demand of an adapter: its tokens per second. Utilisation: demand over its rank's operating point, the tokens/s that a
  GPU serves with that rank alone (`solvers.baselines.operating_point`: published for two models and ranks 8, 16 and 32,
  derived from the profile for others).
- Each rank gets GPUs in proportion to the utilisation of its adapters, rounded by the largest remainder.
- Within a rank, the largest adapter goes first, onto the least loaded of the rank's GPUs, as long as that GPU stays
  within an equal share of all utilisation. LoRAServe splits an adapter at that border; here an adapter has one replica,
  so that the whole of it is left over.
- Leftovers, larger ranks first, go onto the least loaded GPU whose largest rank is not below theirs; where there is
  none, onto the least loaded of all, which then has their rank.
- LoRAServe last permutes the GPUs so that few adapters move. GPUs of a placement have no identity, so that nothing is
  left of this step.

It ignores slots and the number of adapters on a GPU.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from solvers.baselines.fleet import FleetTask, Groups
from solvers.baselines.operating_point import rank_tps

# An equal share is a rounded quotient.
ROUNDING = 1e-9


def place(task: FleetTask, num_gpus: int) -> Groups:
    """Distribute the adapters over GPUs that are divided among the ranks."""
    ranks = task.problem.ranks
    utilisation = adapter_utilisation(task)
    levels = [int(rank) for rank in np.unique(ranks)[::-1]]
    quotas = np.array([utilisation[ranks == rank].sum() for rank in levels])
    counts = largest_remainder(quotas, num_gpus)
    rank_of_gpu = np.repeat(levels, counts)
    share = float(utilisation.sum()) / num_gpus * (1.0 + ROUNDING)
    groups: Groups = [[] for _ in range(num_gpus)]
    load = np.zeros(num_gpus)
    # Larger ranks first, and within a rank the largest adapter.
    for adapter in np.lexsort((-utilisation, -ranks)):
        own = np.flatnonzero(rank_of_gpu == ranks[adapter])
        _add(groups, load, int(adapter), float(utilisation[adapter]), own, limit=share)
    placed = {adapter for group in groups for adapter in group}
    for adapter in np.lexsort((-utilisation, -ranks)):
        if int(adapter) in placed:
            continue
        allowed = np.flatnonzero(rank_of_gpu >= ranks[adapter])
        if not len(allowed):
            allowed = np.arange(num_gpus)
        gpu = _add(groups, load, int(adapter), float(utilisation[adapter]), allowed, limit=np.inf)
        rank_of_gpu[gpu] = max(rank_of_gpu[gpu], ranks[adapter])
    return groups


def adapter_utilisation(task: FleetTask) -> NDArray[np.float64]:
    """Return the share of a GPU that each adapter uses at its rank's operating point, float64 [A]."""
    ranks = task.problem.ranks
    points = {int(rank): rank_tps(task.problem, task.gpu_type, int(rank)) for rank in np.unique(ranks)}
    return task.offered_tps / np.array([points[int(rank)] for rank in ranks], dtype=np.float64)


def largest_remainder(quotas: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """Divide `total` in proportion to `quotas` (>= 0, [N]): rounded down, the rest to the largest remainders.

    Ties go to the first; where all quotas are 0, they count as equal.
    """
    weights = quotas if quotas.sum() > 0 else np.ones(len(quotas))
    exact = weights / weights.sum() * total
    counts: NDArray[np.int64] = np.floor(exact + ROUNDING).astype(np.int64)
    rest = total - int(counts.sum())
    counts[np.argsort(-(exact - counts), kind="stable")[:rest]] += 1
    return counts


def _add(
    groups: Groups,
    load: NDArray[np.float64],
    adapter: int,
    utilisation: float,
    gpus: NDArray[np.int64],
    *,
    limit: float,
) -> int | None:
    """Put `adapter` on the least loaded of `gpus` unless that passes `limit`; return the GPU, or None."""
    if not len(gpus):
        return None
    gpu = int(gpus[np.argmin(load[gpus])])
    if load[gpu] + utilisation > limit:
        return None
    groups[gpu].append(adapter)
    load[gpu] += utilisation
    return gpu
