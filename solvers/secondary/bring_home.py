"""Fewer moves: adapters go back to the GPU that they are on now, alone or in exchange for others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from solvers.placement import GpuAssignment
from solvers.secondary.rebuild import rebuilt
from solvers.secondary.search import Change, Search
from solvers.secondary.transfers import Transfer, ask_transfers

# Transfers in one question; a surrogate that looks at the members may simulate each GPU.
TRANSFERS_PER_QUESTION = 64
TRANSFERS_IF_SIMULATED = 4
# Adapters of about the same size that one is exchanged with.
PARTNERS = 6
# Rebuilt groups of GPUs without success after which the search ends, and how many GPUs are emptied beside two.
VAIN_REBUILDS = 60
MOST_FURTHER_GPUS = 2
# Share of the rebuilds in which the GPUs stand for others of now than before.
OTHER_NAMES_SHARE = 0.3


def bring_home(search: Search) -> None:
    """Change the GPUs of a search for fewer moves until nothing helps, or the budget ends."""
    while not search.is_over and _pass(search):
        pass
    failures = 0
    while failures < VAIN_REBUILDS and not search.is_over:
        homes = _Homes(search)
        if not len(homes.moved):
            return
        positions = _drawn_positions(search, homes)
        change = rebuilt(search, search.run.model, positions, _at_home(search, homes, positions))
        failures = 0 if change is not None and search.take(change) else failures + 1


class _Homes:
    """Where the adapters of a search belong, while the GPUs stand for those of now as they do.

    Attributes
    ----------
    owner, home
        GPU on which each adapter is, and the one where most of what it stands for would stay, int64 [A]; -1: nowhere.
    gain
        What stays there instead of where it is, int64 [A].
    away
        Adapters that would gain, the smallest first, int64 [N].
    moved
        Adapters that are on a GPU now, and not all on the one that theirs stands for, int64 [M].
    matched
        Which GPU of now each GPU stands for, int64 [G]; -1: none.
    """

    def __init__(self, search: Search) -> None:
        self.search = search
        self.matched = search.current.matched(search.gpus)
        members = search.current.members
        # What each adapter keeps on each GPU; the last column is for GPUs that stand for none.
        padded = np.hstack([members, np.zeros((len(members), 1), dtype=np.int64)])
        self.keeps = padded[:, self.matched]
        self.owner = search.owners()
        everyone = np.arange(len(members))
        best = self.keeps.argmax(axis=1)
        self.gain = self.keeps[everyone, best] - self.keeps[everyone, self.owner]
        self.home = np.where(self.keeps[everyone, best] > 0, best, -1)
        self.moved = np.flatnonzero(search.current.placed > self.keeps[everyone, self.owner])
        away = np.flatnonzero(self.gain > 0)
        self.away = away[np.lexsort((away, search.size[away]))]

    def transfers(self) -> Iterator[Transfer]:
        """Yield ways home, those that nobody has to make room for first."""
        for adapter in self.away.tolist():
            yield Transfer(int(self.owner[adapter]), int(self.home[adapter]), adapter)
        for adapter in self.away.tolist():
            yield from self._exchanges(adapter)

    def _exchanges(self, adapter: int) -> Iterator[Transfer]:
        """Yield exchanges with adapters that lose less than this one gains, those of about its size first."""
        source, target = int(self.owner[adapter]), int(self.home[adapter])
        others = np.array(self.search.gpus[target].adapters, dtype=np.int64)
        gained = self.gain[adapter] + self.keeps[others, source] - self.keeps[others, target]
        useful = np.flatnonzero(gained > 0)
        difference = np.abs(self.search.size[others[useful]] - self.search.size[adapter])
        for index in np.lexsort((difference, -gained[useful]))[:PARTNERS]:
            yield Transfer(source, target, adapter, int(others[useful[index]]))


def _pass(search: Search) -> bool:
    """Try all ways home once; return whether one was taken."""
    homes = _Homes(search)
    size = TRANSFERS_IF_SIMULATED if search.run.model.uses_members else TRANSFERS_PER_QUESTION
    gpus = search.gpus
    untried = list(homes.transfers())
    helped = False
    while untried and not search.is_over and len(search.gpus) == len(gpus):
        chunk, untried = untried[:size], untried[size:]
        took = _take_disjoint(search, chunk)
        if took:
            helped = True
            moved = {transfer.adapter for transfer in took} | {transfer.returned for transfer in took}
            untried = [it for it in untried if it.adapter not in moved and it.returned not in moved - {None}]
    return helped


def _take_disjoint(search: Search, transfers: Sequence[Transfer]) -> list[Transfer]:
    """Ask about transfers, and make those that are accepted, about different GPUs, and better; return which."""
    changes = ask_transfers(search.run.model, search.gpus, transfers)
    chosen: list[tuple[Transfer, Change]] = []
    touched: set[int] = set()
    for transfer, change in zip(transfers, changes, strict=True):
        if change is not None and not change.keys() & touched:
            touched |= change.keys()
            chosen.append((transfer, change))
    if not chosen:
        return []
    together: dict[int, GpuAssignment | None] = {}
    for _, change in chosen:
        together.update(change)
    if search.take(together):
        return [transfer for transfer, _ in chosen]
    # One that empties a GPU would change the positions of the others.
    for transfer, change in chosen:
        if search.take(change):
            return [transfer]
    return []


def _drawn_positions(search: Search, homes: _Homes) -> list[int]:
    """Return the GPUs between which an adapter is to move, and perhaps others."""
    adapter = int(search.generator.choice(homes.away if len(homes.away) else homes.moved))
    chosen = {int(homes.owner[adapter]), int(homes.home[adapter])} - {-1}
    others = np.setdiff1d(np.arange(len(search.gpus)), sorted(chosen))
    count = min(int(search.generator.integers(2 - len(chosen), MOST_FURTHER_GPUS + 1)), len(others))
    return [*sorted(chosen), *(int(index) for index in search.generator.choice(others, size=count, replace=False))]


def _at_home(search: Search, homes: _Homes, positions: Sequence[int]) -> list[list[int]]:
    """Return for each of some GPUs who of all their adapters is at home there, if it stands for what it does now.

    In a part of the draws, it stands for any of the GPUs of now that the adapters are on.
    """
    members = search.current.members
    pool = np.array([adapter for position in positions for adapter in search.gpus[position].adapters], dtype=np.int64)
    before = homes.matched[list(positions)]
    if search.generator.random() < OTHER_NAMES_SHARE:
        served = np.flatnonzero(members[pool].any(axis=0))
        drawn = search.generator.permutation(np.append(served, np.full(len(positions), -1)))
        before = drawn[: len(positions)]
    # An adapter is offered to one of them; of the shares of one, each of them is offered one.
    taken: set[int] = set()
    offers: list[list[int]] = []
    for gpu in before:
        own: dict[int, int] = {}
        for adapter in [] if gpu < 0 else pool[members[pool, gpu] > 0].tolist():
            if adapter not in taken:
                own.setdefault(search.problem.told_index(adapter), adapter)
        taken |= set(own.values())
        offers.append(list(own.values()))
    return offers
