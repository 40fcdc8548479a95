"""The comparison of arXiv 2602.24044 that fills a GPU up to what it serves without adapters.

Adapters, in the order of the problem, go onto the first GPU whose offered load stays within the throughput of the
backbone alone (17,814 tokens/s for Llama-3.1-8B, 17,940 for Qwen2.5-7B; `solvers.baselines.operating_point` for
others); an adapter with more than that gets a GPU of its own. Slots: as many as adapters, or (``max_backbone_half``,
the starred variant) half as many. It decides the number of GPUs itself, so nothing is searched. It ignores what
adapters cost: their slots' memory, the slower steps, their ranks; so it may have no answer.
"""

from __future__ import annotations

import numpy as np

from solvers.baselines.fleet import FleetTask, Groups
from solvers.baselines.operating_point import backbone_tps


def place(task: FleetTask, num_gpus: int) -> Groups | None:
    """Place by first fit; None when that takes more than `num_gpus` GPUs."""
    return first_fit(task, backbone_tps(task.problem, task.gpu_type), num_gpus)


def first_fit(task: FleetTask, capacity_tps: float, num_gpus: int) -> Groups | None:
    """Place by first fit with at most `capacity_tps` tokens/s on a GPU with several adapters."""
    load_tps = np.zeros(num_gpus)
    groups: Groups = []
    for adapter, own_tps in enumerate(task.offered_tps):
        room = np.flatnonzero(load_tps[: len(groups)] + own_tps <= capacity_tps)
        if len(room):
            gpu = int(room[0])
        elif len(groups) < num_gpus:
            gpu = len(groups)
            groups.append([])
        else:
            return None
        groups[gpu].append(adapter)
        load_tps[gpu] += own_tps
    return groups
