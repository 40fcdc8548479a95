"""The latency objective of arXiv 2602.24044: all G GPUs, each adapter to the least loaded.

Adapters come in the order of the published greedy (`solvers.greedy.alternating_order`); a GPU's load is its offered
tokens per second. Slots: as many as adapters. A fleet is rejected when on some GPU the predicted throughput differs
from the ideal, which is the offered load, by more than 10 %. It ignores ranks when it spreads, and the memory that the
slots take.
"""

from __future__ import annotations

import heapq

import numpy as np

from solvers.baselines.fleet import FleetTask, Groups, one_slot_per_adapter
from solvers.greedy import alternating_order

LARGEST_DEVIATION = 0.1


def place(task: FleetTask, num_gpus: int) -> Groups | None:
    """Spread the adapters; None when a GPU does not start or its predicted throughput is too far from the ideal."""
    groups = least_loaded(task, num_gpus)
    used = [group for group in groups if group]
    slots = one_slot_per_adapter(task, used)
    if task.problem.fixed_max_loras is not None:
        slots = [task.problem.fixed_max_loras] * len(used)
    if any(count > task.slots_limit(group) for group, count in zip(used, slots, strict=True)):
        return None
    ideal_tps = np.array([task.offered_tps[group].sum() for group in used])
    deviation_tps = np.abs(task.predict(used, slots).throughput_tps - ideal_tps)
    return groups if (deviation_tps <= LARGEST_DEVIATION * ideal_tps).all() else None


def least_loaded(task: FleetTask, num_gpus: int) -> Groups:
    """Give each adapter, in the greedy's order, to the GPU with the least offered load; ties: the smallest index."""
    groups: Groups = [[] for _ in range(num_gpus)]
    loads = [(0.0, gpu) for gpu in range(num_gpus)]
    for adapter in alternating_order(task.problem):
        load_tps, gpu = loads[0]
        groups[gpu].append(adapter)
        heapq.heapreplace(loads, (load_tps + float(task.offered_tps[adapter]), gpu))
    return groups
