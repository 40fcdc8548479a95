"""AlpaServe (OSDI'23, algorithm 1, the fast variant): simulate, and help the model with the most unserved requests.

AlpaServe simulates the placement, gives the model with the most unserved requests to the least loaded group that has
memory for it, and repeats. A model may get several replicas; here an adapter has one:

- Without a replica all requests of an adapter are unserved, so that adapters are first placed by requests per second,
  largest first, each onto the least loaded GPU with memory.
- Then the fleet is simulated, and the adapter with the most unserved requests moves, instead of being copied, to the
  least loaded other GPU with memory. A move is kept, and the next follows, if fewer requests are unserved.

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


def place(task: FleetTask, num_gpus: int) -> Groups | None:
    """Place by requests per second, then move adapters with unserved requests; None without memory."""
    groups = place_all(task, num_gpus)
    if groups is None:
        return None
    load = np.array([task.work[group].sum() for group in groups])
    unserved = unserved_share(task, groups)
    for _ in range(task.num_adapters):
        task.require_budget()
        move = next_move(task, groups, load, unserved)
        if move is None:
            break
        adapter, source, target = move
        changed = [[other for other in groups[source] if other != adapter], [*groups[target], adapter]]
        shares = unserved_share(task, changed)
        before = _unserved_rps(task, groups, unserved, (source, target))
        if _unserved_rps(task, changed, shares, (0, 1)) > before - LEAST_GAIN_RPS:
            break
        groups[source], groups[target] = changed
        unserved[[source, target]] = shares
        load[source] -= task.work[adapter]
        load[target] += task.work[adapter]
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


def next_move(
    task: FleetTask, groups: Groups, load: NDArray[np.float64], unserved: NDArray[np.float64]
) -> tuple[int, int, int] | None:
    """Return (adapter, its GPU, the least loaded other GPU) for the adapter with the most unserved requests, if any.

    Parameters
    ----------
    load, unserved
        Of each GPU, float64 [G]: GPU-seconds per second, and the share of its requests that it does not serve.
    """
    requests = [unserved[gpu] * task.rates_rps[group].max() if group else 0.0 for gpu, group in enumerate(groups)]
    source = int(np.argmax(requests))
    if requests[source] <= LEAST_GAIN_RPS or len(groups) < 2:
        return None
    adapter = groups[source][int(np.argmax(task.rates_rps[groups[source]]))]
    others = np.where(np.arange(len(groups)) == source, np.inf, load)
    return adapter, source, int(np.argmin(others))


def unserved_share(task: FleetTask, groups: Groups) -> NDArray[np.float64]:
    """Return the share of its requests that each GPU does not serve, at its best slots, float64 [G]; 0 where empty."""
    shares = np.zeros(len(groups))
    used = [gpu for gpu, group in enumerate(groups) if group]
    choices = task.best_choice([groups[gpu] for gpu in used])
    shares[used] = np.maximum(1.0 - choices.throughput_ratio, 0.0)
    return shares


def _unserved_rps(task: FleetTask, groups: Groups, shares: NDArray[np.float64], gpus: tuple[int, ...]) -> float:
    return sum(float(shares[gpu] * task.rates_rps[groups[gpu]].sum()) for gpu in gpus)
