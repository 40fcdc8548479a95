"""Room for adapters on replicas with the slots that they run with: the surrogate proposes, the twin decides."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from placer.replanning.drafts import by_load
from placer.replanning.stations import Berth, FleetTwin, Station
from placer.searches import fill, run_searches
from placer.verify import TwinVerifier
from solvers.feasibility import FeasibilityModel

# Adapters times replicas up to which the twin alone is asked.
MOST_QUESTIONS = 60


class RoomFinder:
    """Finds places for adapters.

    Parameters
    ----------
    model
        The surrogate, asked with the slots that a replica runs with.
    twin
        Who decides.
    """

    def __init__(self, model: FeasibilityModel, twin: FleetTwin) -> None:
        self.model = model
        self.twin = twin
        self.problem = twin.problem

    def place(
        self,
        berths: Sequence[Berth],
        adapters: Sequence[int],
        *,
        closed: Collection[int] = (),
        model: FeasibilityModel | None = None,
    ) -> tuple[list[Berth], list[int]]:
        """Put adapters on replicas of which the twin accepts what comes out.

        Parameters
        ----------
        berths, adapters
            What there is, and whom to place.
        closed
            Positions of replicas that get nobody.
        model
            Asked instead of the finder's own surrogate.

        Returns
        -------
        The replicas, and the adapters that found no room, by load.
        """
        fleet, waiting, shut = list(berths), by_load(self.problem, adapters), set(closed)
        while waiting:
            offers, without = self._offers(fleet, waiting, shut, model or self.model)
            if not offers:
                break
            wanted = {
                index: fleet[index].with_adapters([*fleet[index].adapters, *own]) for index, own in offers.items()
            }
            self.twin.verdicts([berth.station for berth in wanted.values()])
            refused: list[int] = []
            for index, own in offers.items():
                count = self.twin.longest_prefix(fleet[index].station, own)
                fleet[index] = fleet[index].with_adapters([*fleet[index].adapters, *own[:count]])
                if count < len(own):
                    refused += own[count:]
                    shut.add(index)
            waiting = by_load(self.problem, [*without, *refused])
        return fleet, waiting

    def fit(self, berths: Sequence[Berth], adapters: Sequence[int], *, closed: Collection[int]) -> list[Berth] | None:
        """Put a few adapters where the twin lets them, whatever the surrogate says, the fullest replica first.

        Returns ``None`` when one of them finds no room, or when that would be too many questions.
        """
        fleet, opened = list(berths), [index for index in range(len(berths)) if index not in closed]
        if len(adapters) * len(opened) > MOST_QUESTIONS:
            return None
        for adapter in by_load(self.problem, adapters):
            loads = [(-self.load_of(fleet[index].adapters), index) for index in opened]
            fullest = [index for _, index in sorted(loads)]
            wanted = {index: fleet[index].with_adapters([*fleet[index].adapters, adapter]) for index in fullest}
            host = next((index for index in fullest if self.twin.accepts(wanted[index].station)), None)
            if host is None:
                return None
            fleet[host] = wanted[host]
        return fleet

    def load_of(self, adapters: Sequence[int]) -> float:
        """Return the tokens/s that adapters offer."""
        return sum(self.problem.adapters[index].offered_tps for index in adapters)

    def open(
        self, berths: Sequence[Berth], adapters: Sequence[int], verifier: TwinVerifier
    ) -> tuple[list[Berth], list[int]]:
        """Open GPUs for adapters while there are GPUs; return the replicas, and who found no room."""
        fleet, waiting = list(berths), by_load(self.problem, adapters)
        while waiting:
            opened, waiting = self._opened(fleet, waiting, verifier)
            if opened is None:
                break
            fleet.append(opened)
        return fleet, waiting

    def _opened(
        self, fleet: Sequence[Berth], waiting: Sequence[int], verifier: TwinVerifier
    ) -> tuple[Berth | None, list[int]]:
        """Open a GPU with as many adapters, by load, as surrogate and twin accept, on the first type that takes one."""
        types = self.problem.gpu_types
        for kind in sorted(range(len(types)), key=lambda index: (types[index].cost_per_hour, index)):
            limit = types[kind].max_count
            if limit is not None and sum(1 for berth in fleet if berth.station.gpu_type == kind) >= limit:
                continue
            (filled,) = run_searches(verifier, [fill(self.model, None, kind, waiting)])
            if filled.assignment is not None:
                replica = self.problem.replica(
                    kind, filled.assignment.max_loras, filled.assignment.max_lora_rank, len(filled.assignment.adapters)
                )
                station = Station(kind, replica.engine, filled.assignment.adapters)
                return Berth(None, self._with_usual_slots(station, fleet)), list(filled.refused)
        return None, list(waiting)

    def _with_usual_slots(self, station: Station, fleet: Sequence[Berth]) -> Station:
        """Return a new replica with the slots of others of its type, the most first, where the twin accepts that.

        Few slots do for those that it gets now, and would have to be others, by a restart, for whoever comes later.
        """
        engines = {berth.station.engine for berth in fleet if berth.station.gpu_type == station.gpu_type}
        problem = self.problem
        usual = {
            (engine.max_loras, engine.max_lora_rank)
            for engine in engines
            if problem.fixed_max_loras in (None, engine.max_loras)
            and problem.fixed_max_lora_rank in (None, engine.max_lora_rank)
        }
        for slots, rank in sorted(usual, reverse=True):
            if (slots, rank) > (station.engine.max_loras, station.engine.max_lora_rank):
                engine = problem.replica(station.gpu_type, slots, rank, len(station.adapters)).engine
                wanted = replace(station, engine=engine)
                if self.twin.accepts(wanted):
                    return wanted
        return station

    def _offers(
        self, fleet: Sequence[Berth], adapters: Sequence[int], closed: Collection[int], model: FeasibilityModel
    ) -> tuple[dict[int, list[int]], list[int]]:
        """Give each adapter to the replica where the surrogate sees most room; return the offers, and who got none."""
        problem = self.problem
        opened = [index for index in range(len(fleet)) if index not in closed]
        if not opened:
            return {}, list(adapters)
        stations = [fleet[index].station for index in opened]
        members = [list(station.adapters) for station in stations]
        rows = np.array([problem.aggregates[own].sum(axis=0) for own in members])
        ranks = np.array([station.engine.max_lora_rank for station in stations], dtype=np.int64)
        types = np.array([station.gpu_type for station in stations], dtype=np.int64)
        slots = np.array([station.engine.max_loras for station in stations], dtype=np.int64)
        offers: dict[int, list[int]] = {}
        without: list[int] = []
        for adapter in adapters:
            sets = [tuple(sorted((*own, adapter))) for own in members] if model.uses_members else None
            choices = model.choice_with_slots(rows + problem.aggregates[adapter], ranks, types, slots, sets)
            possible = choices.feasible & (ranks >= problem.ranks[adapter])
            if not possible.any():
                without.append(adapter)
                continue
            position = int(np.argmin(np.where(possible, choices.pressure, np.inf)))
            members[position].append(adapter)
            rows[position] += problem.aggregates[adapter]
            offers.setdefault(opened[position], []).append(adapter)
        return offers, without
