"""Empty a few GPUs and fill them again: first with who is at home there, then with the others by best fit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from solvers.best_fit import BestFit
from solvers.feasibility import FeasibilityModel
from solvers.local_search.ruin import draw_order
from solvers.open_fleet import OpenFleet
from solvers.placement import GpuAssignment
from solvers.secondary.search import Change, Search

# Shares of the adapters at home that are left out at first, so that those which fit badly can go elsewhere.
LEFT_OUT_SHARES = (0.0, 0.0, 0.1, 0.4)


def rebuilt(
    search: Search,
    model: FeasibilityModel,
    positions: Sequence[int],
    at_home: Sequence[Sequence[int]],
) -> Change | None:
    """Return what some GPUs may become, or ``None`` where that leaves an adapter without a place.

    Parameters
    ----------
    search
        Whose GPUs, whose randomness, and whose budget these are.
    model
        Whom to ask; perhaps about a larger load than that of the search.
    positions
        Of the GPUs that are emptied.
    at_home
        For each of them, which of all their adapters it is offered first.
    """
    pool = np.array([adapter for position in positions for adapter in search.gpus[position].adapters], dtype=np.int64)
    fleet = OpenFleet(model, search.work)
    left_out = float(search.generator.choice(LEFT_OUT_SHARES))
    opened: list[int] = []
    for index in search.generator.permutation(len(positions)):
        own = _ordered(search, np.array(at_home[index], dtype=np.int64))
        own = own[search.generator.random(len(own)) >= left_out]
        if len(own) and fleet.open(search.gpus[positions[index]].gpu_type, int(own[0])) is not None:
            opened.append(int(positions[index]))
            if len(own) > 1:
                fleet.add_longest_prefix(len(opened) - 1, own[1:])
    placed = [adapter for members in fleet.members for adapter in members]
    waiting = _ordered(search, pool[~np.isin(pool, placed)])
    for position in positions:
        if position in opened or not len(waiting):
            continue
        if fleet.open(search.gpus[position].gpu_type, int(waiting[0])) is None:
            return None
        opened.append(int(position))
        waiting = waiting[1:]
    if search.is_over or not _insert(search, fleet, waiting):
        return None
    emptied: dict[int, GpuAssignment | None] = dict.fromkeys((int(position) for position in positions), None)
    return emptied | dict(zip(opened, fleet.placement().gpus, strict=True))


def _ordered(search: Search, adapters: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return adapters in a disturbed order, the largest first."""
    if not len(adapters):
        return adapters
    return draw_order(adapters, search.problem.ranks, search.work, search.generator)


def _insert(search: Search, fleet: OpenFleet, waiting: NDArray[np.int64]) -> bool:
    """Put adapters on the GPUs of a fleet, opening none; return whether all found a place."""
    if not len(waiting):
        return True
    fits_alone = np.zeros(search.work.shape, dtype=np.bool_)
    return BestFit(search.run, fits_alone).insert(fleet, waiting) == len(waiting)
