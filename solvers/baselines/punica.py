"""Punica (arXiv 2310.18547): the most loaded GPU that has room, so that lightly loaded ones can be freed.

Punica sends each request to the GPU with the largest working set among those below the batch limit and with enough
KV memory. Here adapters, in the order of the problem, are what is sent: an adapter's working set is its expected number
of running requests, output tokens/s times the step time of a saturated GPU (`solvers.baselines.operating_point`), its
memory the KV tokens that they hold. On G GPUs the batch limit is an equal share of all running requests, and
`max_num_seqs` at most: a GPU has room while it is below the limit, and while the KV tokens fit. Where no GPU has room,
Punica's requests would queue: then G GPUs are too few. It ignores ranks, slots and what mixing adapters costs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from solvers.baselines.fleet import FleetTask, Groups
from solvers.baselines.operating_point import saturated_step

# Relative rounding error that a sum of equal shares may have.
ROUNDING = 1e-9


def place(task: FleetTask, num_gpus: int) -> Groups | None:
    """Place every adapter on the most loaded GPU with room; None when there is none."""
    step_s = saturated_step(task.problem, task.gpu_type, int(task.problem.ranks.min())).duration_s
    running = task.column("sum_output_tps") * step_s
    kv_tokens = task.column("sum_kv_token_steps") * step_s
    share = float(running.sum()) / num_gpus * (1.0 + ROUNDING)
    if share > task.problem.engine.max_num_seqs:
        return None
    return most_loaded_with_room(task, running, kv_tokens, running_limit=share, num_gpus=num_gpus)


def most_loaded_with_room(
    task: FleetTask,
    running: NDArray[np.float64],
    kv_tokens: NDArray[np.float64],
    *,
    running_limit: float,
    num_gpus: int,
) -> Groups | None:
    """Place adapters with expected running requests and KV tokens, float64 [A]; ties: the GPU of the smallest index."""
    groups: Groups = [[] for _ in range(num_gpus)]
    load = np.zeros(num_gpus)
    held = np.zeros(num_gpus)
    # An empty GPU has room for anything.
    capacity = task.free_kv_tokens([int(np.argmin(task.problem.ranks))])
    for adapter in range(task.num_adapters):
        has_room = (load == 0.0) | ((load < running_limit) & (held + kv_tokens[adapter] <= capacity))
        if not has_room.any():
            return None
        gpu = int(np.argmax(np.where(has_room, load, -1.0)))
        groups[gpu].append(adapter)
        load[gpu] += running[adapter]
        held[gpu] += kv_tokens[adapter]
    return groups
