"""Room by chains: an adapter takes the place of a smaller one, which goes on to another replica, and so on."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from placer.replanning.drafts import by_load
from placer.replanning.room import RoomFinder
from placer.replanning.stations import Berth
from solvers.feasibility import FeasibilityModel

# Adapters that go on one after the other for one that comes.
LONGEST_CHAIN = 3
# Who goes on has at most this share of the load of whom it makes room for: the room that is looked for shrinks.
SHRINKING = 0.9
# Adapters of a replica that are thought of, spread over their loads; and places that the twin is asked about, in all.
MOST_CANDIDATES = 8
MOST_PLACES = 4
MOST_QUESTIONS = 60


class ChainFinder:
    """Finds places on full replicas.

    Parameters
    ----------
    room
        Whose twin decides.
    model
        The surrogate that proposes, asked with the slots that a replica runs with.
    """

    def __init__(self, room: RoomFinder, model: FeasibilityModel) -> None:
        self.model = model
        self.twin = room.twin
        self.problem = room.problem
        self._asked = 0

    def place(self, berths: Sequence[Berth], adapters: Sequence[int], *, closed: Collection[int]) -> list[Berth] | None:
        """Put adapters on replicas, those of largest load first, each with a chain of others that go on for it.

        The arguments are those of `RoomFinder.place`. Replicas that have changed were accepted by the twin; ``None``:
        some adapter found no place within `MOST_QUESTIONS` questions.
        """
        fleet = list(berths)
        self._asked = 0
        for adapter in by_load(self.problem, adapters):
            after = self._inserted(fleet, adapter, {*closed}, LONGEST_CHAIN)
            if after is None:
                return None
            fleet = after
        return fleet

    def _inserted(self, fleet: list[Berth], adapter: int, closed: set[int], length: int) -> list[Berth] | None:
        """Return the fleet with an adapter and a chain of at most `length` others; ``None``: nothing was found."""
        for position, berth in self._direct(fleet, adapter, closed):
            if self._is_accepted(berth):
                return _replaced(fleet, position, berth)
        if length == 0:
            return None
        for position, leaver, berth in self._exchanges(fleet, adapter, closed):
            if self._is_accepted(berth):
                # Nobody comes back to where it has left: a chain ends.
                after = self._inserted(_replaced(fleet, position, berth), leaver, closed | {position}, length - 1)
                if after is not None:
                    return after
        return None

    def _direct(self, fleet: Sequence[Berth], adapter: int, closed: Collection[int]) -> list[tuple[int, Berth]]:
        """Return replicas with an adapter more, those of least pressure first, where the surrogate sees any hope."""
        options = [
            (position, berth.with_adapters([*berth.adapters, adapter]))
            for position, berth in enumerate(fleet)
            if position not in closed
        ]
        return [options[index] for index in self._hopeful([berth for _, berth in options])[:MOST_PLACES]]

    def _exchanges(
        self, fleet: Sequence[Berth], adapter: int, closed: Collection[int]
    ) -> Iterator[tuple[int, int, Berth]]:
        """Yield replicas where an adapter takes the place of another one, the smallest of these first."""
        options = [
            (position, leaver, berth.with_adapters({*berth.adapters, adapter} - {leaver}))
            for position, berth in enumerate(fleet)
            if position not in closed
            for leaver in self._leavers(berth, adapter)
        ]
        likely = [options[index] for index in self._hopeful([berth for *_, berth in options])]
        likely.sort(key=lambda option: (self._load(option[1]), option[1]))
        smallest: dict[int, tuple[int, int, Berth]] = {}
        for option in likely:
            smallest.setdefault(option[0], option)
        yield from list(smallest.values())[:MOST_PLACES]

    def _leavers(self, berth: Berth, adapter: int) -> list[int]:
        """Return adapters of a replica that are smaller than one, a few of them spread over their loads."""
        most = SHRINKING * self._load(adapter)
        smaller = [own for own in by_load(self.problem, berth.adapters) if self._load(own) < most]
        return [smaller[index] for index in _spread(len(smaller), MOST_CANDIDATES)]

    def _hopeful(self, berths: Sequence[Berth]) -> list[int]:
        """Return the positions of replicas that fit and that the surrogate accepts, those of least pressure first."""
        fitting = [index for index, berth in enumerate(berths) if self.twin.fits(berth.station)]
        if not fitting:
            return []
        stations = [berths[index].station for index in fitting]
        choices = self.model.choice_with_slots(
            np.array([self.problem.aggregates[list(station.adapters)].sum(axis=0) for station in stations]),
            np.array([station.engine.max_lora_rank for station in stations], dtype=np.int64),
            np.array([station.gpu_type for station in stations], dtype=np.int64),
            np.array([station.engine.max_loras for station in stations], dtype=np.int64),
            [station.adapters for station in stations] if self.model.uses_members else None,
        )
        order = np.argsort(choices.pressure, kind="stable")
        return [fitting[int(index)] for index in order if choices.feasible[index]]

    def _is_accepted(self, berth: Berth) -> bool:
        self._asked += 1
        return self._asked <= MOST_QUESTIONS and self.twin.accepts(berth.station)

    def _load(self, adapter: int) -> float:
        return self.problem.adapters[adapter].offered_tps


def _replaced(fleet: Sequence[Berth], position: int, berth: Berth) -> list[Berth]:
    return [berth if index == position else other for index, other in enumerate(fleet)]


def _spread(count: int, most: int) -> NDArray[np.int64]:
    """Return at most so many positions below `count`, evenly spread, with the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))
