"""dLoRA's proactive placement (OSDI'24): the largest minimum burst tolerance.

The burst tolerance of an adapter is the free memory of the GPUs that hold it over its expected arrivals. dLoRA places
the most under-represented adapter first, onto the GPU with the fewest adapters, and keeps a replica if the minimum over
all adapters does not fall. Here an adapter has one replica:

- Adapters without a replica tolerate nothing; of them, the one with the most arrivals is the most under-represented. So
  they are placed by requests per second, largest first, each onto the GPU with the fewest adapters.
- Then the adapter with the least tolerance gets a replica on the other GPU with the fewest adapters, and the old one is
  dropped. This is kept if the minimum rises, and repeated until it does not.

Free memory is the KV capacity that is left when every adapter of the GPU has a slot, as far as slots fit. It ignores
how long requests are and what mixing ranks and adapters costs a step.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from solvers.baselines.fleet import FleetTask, Groups


def place(task: FleetTask, num_gpus: int) -> Groups:
    """Place by arrivals, then move the adapter of least tolerance while that raises the minimum."""
    groups = place_all(task, num_gpus)
    tolerance = np.array([burst_tolerance(task, group) for group in groups])
    while num_gpus > 1:
        task.require_budget()
        source = int(np.argmin(tolerance))
        if not groups[source]:
            break
        adapter = hottest(task, groups[source])
        target = _fewest_adapters(groups, excluded=source)
        changed = [[other for other in groups[source] if other != adapter], [*groups[target], adapter]]
        after = tolerance.copy()
        after[[source, target]] = [burst_tolerance(task, group) for group in changed]
        if after.min() <= tolerance.min():
            break
        groups[source], groups[target] = changed
        tolerance = after
    return groups


def place_all(task: FleetTask, num_gpus: int) -> Groups:
    """Place by requests per second, largest first, each onto the GPU with the fewest adapters: in turn."""
    order = [int(adapter) for adapter in np.argsort(-task.rates_rps, kind="stable")]
    return [order[gpu::num_gpus] for gpu in range(num_gpus)]


def burst_tolerance(task: FleetTask, group: list[int]) -> float:
    """Return the least burst tolerance on a GPU, KV tokens per (request/s); infinite without traffic."""
    if not group:
        return float("inf")
    largest_rps = float(task.rates_rps[group].max())
    return task.free_kv_tokens(group) / largest_rps if largest_rps > 0.0 else float("inf")


def hottest(task: FleetTask, group: list[int]) -> int:
    """Return the adapter of a GPU with the most arrivals: that of least tolerance, as they share the memory."""
    return group[int(np.argmax(task.rates_rps[group]))]


def _fewest_adapters(groups: Groups, *, excluded: int) -> int:
    counts: NDArray[np.int64] = np.array([len(group) for group in groups])
    counts[excluded] = counts.max() + 1
    return int(np.argmin(counts))
