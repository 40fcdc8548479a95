"""Replicas with the settings that they run with, and what the twin says of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from placer.events import PlanObserver, ignore
from placer.plan_document import Verification
from placer.scenario_verdicts import joint_verdict, shown_traffic, traffics_of
from placer.stability import confirm_verdicts
from placer.verify import TwinSettings, simulate_replicas
from solvers.problem import Problem
from twin.drawn_traffic import DrawnTraffic
from twin.engine import EngineConfig
from twin.replica import Replica


@dataclass(frozen=True)
class Station:
    """A replica at one moment.

    Attributes
    ----------
    gpu_type
        Index into the problem's GPU types.
    engine
        All of vLLM's settings, as it was started with them.
    adapters
        Indices into the problem's adapters, ascending: whose requests it gets.
    """

    gpu_type: int
    engine: EngineConfig
    adapters: tuple[int, ...]

    def with_adapters(self, adapters: Iterable[int]) -> Station:
        """Return the replica with the requests of other adapters."""
        return replace(self, adapters=tuple(sorted(adapters)))


@dataclass(frozen=True)
class Berth:
    """A replica of a new plan.

    Attributes
    ----------
    home
        Name of the running replica that it is; ``None``: a new one.
    station
        What it is then.
    """

    home: str | None
    station: Station

    @property
    def adapters(self) -> tuple[int, ...]:
        """Indices of its adapters."""
        return self.station.adapters

    def with_adapters(self, adapters: Iterable[int]) -> Berth:
        """Return the replica with other adapters."""
        return replace(self, station=self.station.with_adapters(adapters))


class FleetTwin:
    """The twin as the judge of replicas with any settings; remembers every verdict.

    Parameters
    ----------
    problem
        Whose adapters these are; nothing in it is merged or divided.
    settings, observer
        How replicas are simulated, and who is told.
    """

    def __init__(self, problem: Problem, settings: TwinSettings, *, observer: PlanObserver = ignore) -> None:
        self.problem = problem
        self.settings = settings
        self.num_calls = 0
        self._observer = observer
        self._traffic = DrawnTraffic(settings.seed)
        self._verdicts: dict[Station, Verification] = {}

    def replica(self, station: Station) -> Replica:
        """Return what the twin simulates for a station."""
        kind = station.gpu_type
        return Replica(self.problem.model, self.problem.gpu_types[kind], station.engine, self.problem.profiles[kind])

    def fits(self, station: Station) -> bool:
        """Return whether no adapter's rank is above that of the slots."""
        ranks = self.problem.ranks[list(station.adapters)]
        return not len(ranks) or int(ranks.max()) <= station.engine.max_lora_rank

    def allows(self, station: Station) -> bool:
        """Return whether the problem's constraints allow a replica."""
        table = self.problem.constraint_table
        if table is None:
            return True
        rows = self.problem.aggregates[list(station.adapters)].sum(axis=0)[None]
        return bool(table.allows(rows, np.array([station.gpu_type], dtype=np.int64))[0])

    def verdicts(self, stations: Sequence[Station]) -> list[Verification]:
        """Return the verdict of each station, which has adapters and fits; those not known yet in one batch."""
        missing = [station for station in dict.fromkeys(stations) if station not in self._verdicts]
        traffics = [traffics_of(self.problem, station.adapters) for station in missing]
        owners = [station for station, own in zip(missing, traffics, strict=True) for _ in own]
        replicas = [
            (workload, self.replica(station))
            for station, own in zip(missing, traffics, strict=True)
            for workload in own
        ]
        limits = [self.problem.limits_of(station.adapters) for station in owners]
        if missing:
            found = simulate_replicas(replicas, limits, self.settings, observer=self._observer, traffic=self._traffic)
            self.num_calls += len(replicas)
            per_station = len(replicas) // len(missing)
            for index, station in enumerate(missing):
                own_verdicts = [found[index * per_station + offset] for offset in range(per_station)]
                self._verdicts[station] = joint_verdict(self.problem, own_verdicts)
        return [self._verdicts[station] for station in stations]

    def confirm(self, stations: Sequence[Station]) -> None:
        """Look twice at stations near a limit: their verdicts say from now on what other seeds and a backlog do."""
        asked = list(dict.fromkeys(stations))
        verdicts = self.verdicts(asked)

        def keep(index: int, verdict: Verification) -> None:
            self._verdicts[asked[index]] = verdict

        confirm_verdicts(
            [
                (shown_traffic(self.problem, station.adapters, verdict), self.replica(station))
                for station, verdict in zip(asked, verdicts, strict=True)
            ],
            dict(enumerate(verdicts)),
            [self.problem.limits_of(station.adapters) for station in asked],
            workers=self.settings.workers,
            observer=self._observer,
            keep=keep,
            traffic=self._traffic,
        )

    def accepts(self, station: Station) -> bool:
        """Return whether a replica can and may serve its adapters; one without any can."""
        if not station.adapters:
            return True
        return self.fits(station) and self.allows(station) and self.verdicts([station])[0].is_accepted

    def longest_prefix(self, station: Station, offered: Sequence[int]) -> int:
        """Return how many of `offered`, from the first on, a replica takes beside its own, by bisection.

        Taking an adapter off a replica is assumed to make it no worse, which holds up to chance; what is returned has
        been accepted.
        """
        fitting = 0
        while fitting < len(offered) and self.fits(station.with_adapters([offered[fitting]])):
            fitting += 1
        low, high, count = 0, fitting + 1, fitting
        while high - low > 1:
            if self.accepts(station.with_adapters([*station.adapters, *offered[:count]])):
                low = count
            else:
                high = count
            count = (low + high) // 2
        return low


def clashing_shares(problem: Problem, loaded: Collection[int], coming: Collection[int]) -> set[int]:
    """Return those who come of whom another share is loaded: vLLM has one name for both."""
    shares = problem.shares
    if shares is None:
        return set()
    present = {int(shares.adapter_of[adapter]) for adapter in loaded if adapter not in coming}
    return {adapter for adapter in coming if int(shares.adapter_of[adapter]) in present}
