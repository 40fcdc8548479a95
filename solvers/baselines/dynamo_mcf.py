"""NVIDIA Dynamo's allocator of adapters: a min-cost flow from adapters to workers.

The cost of an adapter on a worker is the worker's rank for that adapter by rendezvous hashing (0 for its first
choice), plus `LOAD_COST` times the adapters that the worker already has, minus a bonus for a worker that already has
the adapter. A flow of k replicas per adapter, at most so many per worker as it has slots, of least total cost is the
allocation.

Here k = 1; nothing is running when a plan is made, so that no bonus is due. A worker takes at most
ceil(adapters / G) adapters: the fewest slots with which G workers hold them all. Dynamo hashes the names of adapters
and workers; the hash here is a 64-bit mix of BLAKE2 digests of both names, the same on every machine. The
solver is OR-Tools' `SimpleMinCostFlow` (extra ``cpsat``); fleets of more than `MAX_PAIRS` adapters x GPUs are not
tried. It ignores rates, lengths and ranks.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from solvers.baselines.fleet import FleetTask, Groups
from twin.errors import SolverError

# Cost of each adapter that a worker already has, in places of the rendezvous order.
LOAD_COST = 1
# Pairs of an adapter and a worker in one flow: beyond, it would take gigabytes and minutes.
MAX_PAIRS = 10_000_000


def place(task: FleetTask, num_gpus: int) -> Groups | None:
    """Allocate the adapters to workers by a min-cost flow; None beyond `MAX_PAIRS`."""
    if task.num_adapters * num_gpus > MAX_PAIRS:
        return None
    names = [adapter.name for adapter in task.problem.adapters]
    cap = math.ceil(len(names) / num_gpus)
    worker_of = min_cost_assignment(rendezvous_ranks(names, num_gpus), cap)
    return [[int(adapter) for adapter in np.flatnonzero(worker_of == worker)] for worker in range(num_gpus)]


def rendezvous_ranks(names: list[str], num_workers: int) -> NDArray[np.int64]:
    """Return each worker's place in each adapter's order of hashes, int64 [A, W]; 0 is the largest hash."""
    adapters = np.array([_digest(name) for name in names], dtype=np.uint64)
    workers = np.array([_digest(f"worker-{worker}") for worker in range(num_workers)], dtype=np.uint64)
    hashes = _mixed(adapters[:, None] ^ workers[None, :])
    order = np.argsort(~hashes, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(num_workers)[None, :], axis=1)
    return ranks.astype(np.int64)


def min_cost_assignment(ranks: NDArray[np.int64], cap: int) -> NDArray[np.int64]:
    """Return the worker of each adapter, int64 [A], with the least sum of ranks and load costs.

    Parameters
    ----------
    ranks
        Cost of each adapter on each worker, int64 [A, W].
    cap
        Most adapters on a worker; W times it is at least A. The n-th of them costs ``LOAD_COST * (n - 1)``.

    Raises
    ------
    SolverError
        When the library fails.
    """
    from ortools.graph.python import min_cost_flow  # noqa: PLC0415 - an optional library, for this rule only

    num_adapters, num_workers = ranks.shape
    adapter, worker = (index.ravel() for index in np.indices(ranks.shape))
    # Nodes: adapters, then workers, then the sink. Convex costs: unit arcs of growing cost from each worker.
    sink = num_adapters + num_workers
    place_of, position = (index.ravel() for index in np.indices((num_workers, cap)))
    tails = np.concatenate([adapter, num_adapters + place_of])
    heads = np.concatenate([num_adapters + worker, np.full(num_workers * cap, sink)])
    costs = np.concatenate([ranks.ravel(), LOAD_COST * position])
    flow = min_cost_flow.SimpleMinCostFlow()
    arcs = flow.add_arcs_with_capacity_and_unit_cost(tails, heads, np.ones(len(tails), dtype=np.int64), costs)
    supplies = np.concatenate([np.ones(num_adapters), np.zeros(num_workers), [-num_adapters]]).astype(np.int64)
    flow.set_nodes_supplies(np.arange(sink + 1), supplies)
    status = flow.solve()
    if status != flow.OPTIMAL:
        raise SolverError(
            f"the min-cost flow of {num_adapters} adapters and {num_workers} workers must have an optimum. "
            f"OR-Tools says {status.name}.",
            field="solver",
            value="dynamo_mcf",
        )
    is_used = flow.flows(arcs[: ranks.size]).reshape(ranks.shape) > 0
    assert (is_used.sum(axis=1) == 1).all()
    return np.asarray(is_used.argmax(axis=1), dtype=np.int64)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return a hash of 64-bit words, uint64 of the same shape: the finaliser of SplitMix64."""
    mixed = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)), dtype=np.uint64)
