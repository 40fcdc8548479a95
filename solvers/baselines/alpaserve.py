"""AlpaServe (OSDI'23): simulate, and help the model with the most unserved requests.

AlpaServe simulates the placement, gives the model with the most unserved requests to the least loaded group that has
memory for it, and repeats. A model may get several replicas; here an adapter has one:

- Without a replica all requests of an adapter are unserved, so that adapters are first placed by requests per second,
  largest first, each onto the least loaded GPU with memory.
- Then the fleet is simulated, and the adapter with the most unserved requests moves, instead of being copied, to the
  least loaded other GPU. The move is kept, and the next follows, if fewer requests are then unserved; if not, the
  adapter with the second most is tried, and so on (`NUM_CANDIDATES` of them).

"Simulate" is one question to the surrogate, not a run of the twin: unserved are the adapter's requests times the share
that its GPU does not serve, at the best slots. A GPU's load is the GPU-seconds per second that its adapters need at
least (`solvers.bounds.adapter_work`). It ignores ranks, and what a further adapter costs beside its load.
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from solvers.baselines.fleet import FleetTask, Groups

# Requests/s that a move must save.
LEAST_GAIN_RPS = 1e-9
NUM_CANDIDATES = 16


def place(task: FleetTask, num_gpus: int) -> Groups | None:
    """Place by requests per second, then move adapters with unserved requests; None without memory."""
    groups = place_all(task, num_gpus)
    if groups is None:
        return None
    load = np.array([task.work[group].sum() for group in groups])
    unserved = unserved_share(task, groups)
    for _ in range(task.num_adapters):
        task.require_budget()
        moves = candidate_moves(task, groups, load, unserved)
        changed = [_after(groups, move) for move in moves]
        shares = unserved_share(task, [group for pair in changed for group in pair]).reshape(-1, 2)
        for (adapter, *pair), after, left in zip(moves, changed, shares, strict=True):
            before_rps = _unserved_rps(task, [groups[gpu] for gpu in pair], unserved[pair])
            if _unserved_rps(task, after, left) < before_rps - LEAST_GAIN_RPS:
                source, target = pair
                groups[source], groups[target] = after
                unserved[pair] = left
                load[source] -= task.work[adapter]
                load[target] += task.work[adapter]
                break
        else:
            break
    return groups


def place_all(task: FleetTask, num_gpus: int) -> Groups | None:
    """Place by requests per second, largest first, each onto the least loaded GPU with memory for it."""
    groups: Groups = [[] for _ in range(num_gpus)]
    loads = [(0.0, gpu) for gpu in range(num_gpus)]
    for adapter in np.argsort(-task.rates_rps, kind="stable"):
        if task.free_kv_tokens([int(adapter)]) == 0:
            return None
        load, gpu = loads[0]
        groups[gpu].append(int(adapter))
        heapq.heapreplace(loads, (load + float(task.work[adapter]), gpu))
    return groups


def candidate_moves(
    task: FleetTask, groups: Groups, load: NDArray[np.float64], unserved: NDArray[np.float64]
) -> list[tuple[int, int, int]]:
    """Return (adapter, its GPU, the least loaded other GPU) for those with the most unserved requests, most first.

    Parameters
    ----------
    load, unserved
        Of each GPU, float64 [G]: GPU-seconds per second, and the share of its requests that it does not serve.
    """
    if len(groups) < 2:
        return []
    gpu_of = np.empty(task.num_adapters, dtype=np.int64)
    for gpu, group in enumerate(groups):
        gpu_of[group] = gpu
    unserved_rps = task.rates_rps * unserved[gpu_of]
    first, second = (int(gpu) for gpu in np.argsort(load, kind="stable")[:2])
    order = np.argsort(-unserved_rps, kind="stable")[:NUM_CANDIDATES]
    return [
        (int(adapter), int(gpu_of[adapter]), second if gpu_of[adapter] == first else first)
        for adapter in order
        if unserved_rps[adapter] > LEAST_GAIN_RPS
    ]


def unserved_share(task: FleetTask, groups: Groups) -> NDArray[np.float64]:
    """Return the share of its requests that each GPU does not serve, at its best slots, float64 [G]; 0 where empty."""
    shares = np.zeros(len(groups))
    used = [gpu for gpu, group in enumerate(groups) if group]
    if not used:
        return shares
    choices = task.best_choice([groups[gpu] for gpu in used])
    shares[used] = np.maximum(1.0 - choices.throughput_ratio, 0.0)
    return shares


def _after(groups: Groups, move: tuple[int, int, int]) -> Groups:
    """Return what a move leaves on its two GPUs."""
    adapter, source, target = move
    return [[other for other in groups[source] if other != adapter], [*groups[target], adapter]]


def _unserved_rps(task: FleetTask, groups: Groups, shares: NDArray[np.float64]) -> float:
    return sum(float(share * task.rates_rps[group].sum()) for share, group in zip(shares, groups, strict=True))
