"""Fill GPUs one after the other with a list of adapters, in few questions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from solvers.open_fleet import OpenFleet
from solvers.run import SolverRun

# Times that a GPU is offered what may still fit, after it has refused something larger.
MOST_OFFERS = 6


def refill(run: SolverRun, fleet: OpenFleet, order: NDArray[np.int64], types: Sequence[int]) -> bool:
    """Put adapters on GPUs: first on open ones that may have room, then on new ones, each filled before the next.

    Parameters
    ----------
    run
        Whose budget it is.
    fleet
        Changed, also when it returns False.
    order
        Adapters that are not in the fleet, int64 [N]; a GPU gets as many of the first ones as it takes, then of those
        that follow and are smaller than the one that it refused.
    types
        GPU types to open, in the order in which they are tried.

    Returns
    -------
    Whether all found a place before the budget ended.
    """
    waiting = _top_up_open(run, fleet, order)
    while len(waiting) and run.exhausted() is None:
        gpu = _open(fleet, int(waiting[0]), types)
        if gpu is None:
            return False
        waiting = _top_up(run, fleet, gpu, waiting[1:])
    return not len(waiting)


def _top_up_open(run: SolverRun, fleet: OpenFleet, waiting: NDArray[np.int64]) -> NDArray[np.int64]:
    """Top up the open GPUs that take the smallest adapter, the fullest first; return who is left."""
    while len(waiting) and run.exhausted() is None:
        smallest = int(waiting[np.argmin(fleet.work[0, waiting])])
        gpus = fleet.may_hold(fleet.open_gpus, smallest)
        if not len(gpus):
            break
        choices = fleet.ask(gpus, smallest)
        accepting = gpus[choices.feasible]
        if not len(accepting):
            break
        left = len(waiting)
        for gpu in accepting[np.argsort(-fleet.fullness[accepting], kind="stable")]:
            waiting = _top_up(run, fleet, int(gpu), waiting)
            if smallest not in waiting:
                break
        if len(waiting) == left:
            break
    return waiting


def _top_up(run: SolverRun, fleet: OpenFleet, gpu: int, waiting: NDArray[np.int64]) -> NDArray[np.int64]:
    """Add to one GPU what it takes of `waiting`; return who is left."""
    forgets = run.problem.constraint_table is not None
    refused: list[int] = []
    for _ in range(MOST_OFFERS):
        candidates = np.flatnonzero(fleet.may_take(gpu, waiting))
        if refused:
            candidates = candidates[~np.isin(waiting[candidates], refused)]
        if not len(candidates) or run.exhausted() is not None:
            break
        taken = fleet.add_longest_prefix(gpu, waiting[candidates])
        run.num_iterations += taken
        # The fleet does not remember who was refused for limits of its own.
        refused += waiting[candidates[taken : taken + 1]].tolist() if forgets else []
        waiting = np.delete(waiting, candidates[:taken])
    return waiting


def _open(fleet: OpenFleet, adapter: int, types: Sequence[int]) -> int | None:
    """Open a GPU with `adapter` on it and return it, or None where no type has one left that takes it."""
    for gpu_type in types:
        limit = fleet.model.problem.gpu_types[gpu_type].max_count
        if limit is None or fleet.count_of_type(gpu_type) < limit:
            gpu = fleet.open(gpu_type, adapter)
            if gpu is not None:
                return gpu
    return None
