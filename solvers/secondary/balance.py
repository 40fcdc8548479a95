"""More headroom on the GPU that has the least: other slots, or adapters that leave it, alone or in exchange."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from solvers.headroom import LoadedModel
from solvers.secondary.rebuild import rebuilt
from solvers.secondary.search import Change, Search, accepted_gpus
from solvers.secondary.transfers import Transfer, ask_transfers

# Transfers in one question; a surrogate that looks at the members may simulate each GPU.
TRANSFERS_PER_QUESTION = 128
TRANSFERS_IF_SIMULATED = 4
# Adapters of the worst GPU that are looked at, and other GPUs, those with the most room first.
MOST_ADAPTERS, MOST_GPUS = 32, 12
# Partners of an adapter on one other GPU.
PARTNERS = 4
# Rebuilt groups of GPUs without success after which the search ends, and most GPUs in one beside the worst.
VAIN_REBUILDS = 40
MOST_FURTHER_GPUS = 3


def balance(search: Search) -> None:
    """Change the GPUs of a search for more headroom until nothing helps, or the budget ends."""
    failures = 0
    while failures < VAIN_REBUILDS and not search.is_over:
        rooms = search.ranking.rooms(search.gpus)
        worst = int(np.argmin(rooms))
        # What is accepted at the next factor that is looked at has more headroom.
        larger = search.ranking.factors[search.ranking.factors > 1.0 + rooms[worst] + 1e-6]
        if not len(larger):
            return
        model = LoadedModel(search.run.model, float(larger[0]))
        if failures == 0 and (_choose_slots(search, model, worst) or _transfer(search, model, worst, rooms)):
            continue
        failures = 0 if _rebuild(search, model, worst) else failures + 1


def _choose_slots(search: Search, model: LoadedModel, worst: int) -> bool:
    """Give the worst GPU the slots that are best at a larger load; return whether that helps."""
    gpu = search.gpus[worst]
    (changed,) = accepted_gpus(model, [(gpu.gpu_type, gpu.adapters)])
    return changed is not None and search.take({worst: changed})


def _transfer(search: Search, model: LoadedModel, worst: int, rooms: Sequence[float]) -> bool:
    """Move an adapter off the worst GPU, or exchange it for a smaller one; return whether one does."""
    transfers = _transfers(search, worst, rooms)
    size = TRANSFERS_IF_SIMULATED if model.uses_members else TRANSFERS_PER_QUESTION
    for start in range(0, len(transfers), size):
        if search.is_over:
            return False
        changes = ask_transfers(model, search.gpus, transfers[start : start + size])
        if any(search.take(change) for change in changes if change is not None):
            return True
    return False


def _transfers(search: Search, worst: int, rooms: Sequence[float]) -> list[Transfer]:
    """Return what is tried: moves first, then exchanges; the smallest change of the worst GPU first."""
    size = search.size
    own = sorted(search.gpus[worst].adapters, key=lambda adapter: (size[adapter], adapter))
    if len(own) > MOST_ADAPTERS:
        own = [own[index] for index in np.linspace(0, len(own) - 1, MOST_ADAPTERS).astype(int)]
    others = [index for index in np.argsort([-room for room in rooms], kind="stable").tolist() if index != worst]
    others = others[:MOST_GPUS]
    moves = [Transfer(worst, other, adapter) for adapter in own for other in others]
    exchanges = []
    for other in others:
        for adapter in own:
            smaller = [it for it in search.gpus[other].adapters if size[it] <= size[adapter]]
            smaller.sort(key=lambda it: (-size[it], it))
            chosen = smaller if len(smaller) <= PARTNERS else smaller[:: len(smaller) // PARTNERS][:PARTNERS]
            exchanges += [Transfer(worst, other, adapter, partner) for partner in chosen]
    return moves + exchanges


def _rebuild(search: Search, model: LoadedModel, worst: int) -> bool:
    """Fill the worst GPU and others again under a larger load; return whether that helps."""
    others = np.delete(np.arange(len(search.gpus)), worst)
    if not len(others):
        return False
    count = min(int(search.generator.integers(1, MOST_FURTHER_GPUS + 1)), len(others))
    positions = [worst, *(int(index) for index in search.generator.choice(others, size=count, replace=False))]
    change: Change | None = rebuilt(search, model, positions, _kept(search, positions))
    return change is not None and search.take(change)


def _kept(search: Search, positions: Sequence[int]) -> list[list[int]]:
    """Return who is offered each GPU first: nobody, or, where moves count more, who is there already."""
    if "moves" in search.ranking.names[: search.phase]:
        return [list(search.gpus[position].adapters) for position in positions]
    return [[] for _ in positions]
