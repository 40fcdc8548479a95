"""AIBrix's bin-packing of adapters (arXiv 2504.03648): fill the fullest pod up to a fixed number of adapters.

AIBrix counts adapters only: of the pods that have fewer than the cap, the one with the most gets the next adapter.
On G GPUs the cap is the least with which all adapters find a place, ceil(adapters / G). Adapters come in the order of
the problem. It ignores load, ranks and slots.
"""

from __future__ import annotations

import math

from solvers.baselines.fleet import FleetTask, Groups


def place(task: FleetTask, num_gpus: int) -> Groups:
    """Give each adapter to the fullest GPU below the cap."""
    cap = math.ceil(task.num_adapters / num_gpus)
    groups: Groups = [[] for _ in range(num_gpus)]
    fullest = 0
    for adapter in range(task.num_adapters):
        # Below the cap, at most one GPU has adapters; the others are empty, so that it stays the fullest.
        if len(groups[fullest]) == cap:
            fullest += 1
        groups[fullest].append(adapter)
    return groups
