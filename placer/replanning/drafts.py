"""A new plan in progress: its replicas, who has no place yet, what it changes, and whether limits allow that."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from placer.replan_document import Changes, ReplanLimits
from placer.replanning.running import RunningFleet
from placer.replanning.stations import Berth, FleetTwin
from solvers.problem import Problem


@dataclass(frozen=True)
class Draft:
    """A plan: replicas, each with adapters, and adapters that have none.

    Attributes
    ----------
    berths
        Each stands for another running replica, or for none.
    unserved
        Indices of adapters, ascending.
    """

    berths: tuple[Berth, ...]
    unserved: tuple[int, ...] = ()

    def replaced(self, changes: dict[int, Berth | None]) -> tuple[Berth, ...]:
        """Return the replicas with some of them replaced, by position; those that are ``None`` or empty go."""
        after = (changes.get(index, berth) for index, berth in enumerate(self.berths))
        return tuple(berth for berth in after if berth is not None and berth.adapters)


def changes_of(draft: Draft, running: RunningFleet) -> Changes:
    """Return what a plan changes about the running fleet."""
    home, orphans = running.home, set(running.orphans)
    moves = num_orphans = num_new = 0
    for berth in draft.berths:
        for adapter in berth.adapters:
            if adapter in home:
                moves += home[adapter] != berth.home
            elif adapter in orphans:
                num_orphans += 1
            else:
                num_new += 1
    homes = {berth.home for berth in draft.berths if berth.home is not None}
    return Changes(
        num_moves=moves,
        num_orphans=num_orphans,
        num_new=num_new,
        num_loads=moves + num_orphans + num_new,
        num_restarts=sum(1 for berth in draft.berths if is_restarted(berth, running)),
        num_starts=sum(1 for berth in draft.berths if berth.home is None),
        num_stops=len(running.stations) - len(homes),
    )


def with_shares_at_home(draft: Draft, running: RunningFleet, problem: Problem) -> Draft:
    """Return a plan in which equal shares of an adapter are named such that replicas that have one keep it.

    Which of them a replica serves makes no difference, but to move one where another one is: that is no move at all,
    and no replica can load both.
    """
    shares = problem.shares
    if shares is None:
        return draft
    running_on = {name: set(station.adapters) for name, station in running.stations.items()}
    new_name: dict[int, int] = {}
    for first, own in zip(shares.first.tolist(), shares.of_adapter, strict=True):
        for share in dict.fromkeys(own):
            equal = [first + index for index, value in enumerate(own) if value == share]
            host = {adapter: berth for berth in draft.berths for adapter in equal if adapter in berth.adapters}
            kept = {
                adapter: here
                for adapter, berth in host.items()
                for here in equal
                if here in running_on.get(berth.home or "", ())
            }
            free = [adapter for adapter in equal if adapter not in kept.values()]
            kept |= {adapter: adapter for adapter in equal if adapter not in kept and adapter in free}
            free = [adapter for adapter in free if adapter not in kept.values()]
            left = [adapter for adapter in equal if adapter not in kept]
            new_name |= kept | dict(zip(left, free, strict=True))
    return replace(
        draft,
        berths=tuple(berth.with_adapters(new_name[adapter] for adapter in berth.adapters) for berth in draft.berths),
        unserved=tuple(sorted(new_name[adapter] for adapter in draft.unserved)),
    )


def is_restarted(berth: Berth, running: RunningFleet) -> bool:
    """Return whether a replica that stays has other engine settings than it runs with."""
    return berth.home is not None and running.stations[berth.home].engine != berth.station.engine


def is_within(changes: Changes, limits: ReplanLimits) -> bool:
    """Return whether limits allow what a plan changes."""
    pairs = (
        (changes.num_moves, limits.max_moves),
        (changes.num_loads, limits.max_loads),
        (changes.num_restarts, limits.max_restarts),
    )
    return all(limit is None or count <= limit for count, limit in pairs)


def num_rejected(draft: Draft, twin: FleetTwin) -> int:
    """Return how many replicas the twin rejects, or the problem's constraints do not allow."""
    stations = [berth.station for berth in draft.berths if berth.adapters]
    verdicts = twin.verdicts(stations)
    return sum(
        1
        for station, verdict in zip(stations, verdicts, strict=True)
        if not (verdict.is_accepted and twin.allows(station))
    )


def rank_of(
    draft: Draft, running: RunningFleet, twin: FleetTwin, *, moves_per_gpu: float = math.inf
) -> tuple[float, ...]:
    """Return how good a plan is, smaller is better: who is served, GPUs and moves, then restarts and loads.

    Parameters
    ----------
    draft, running, twin
        The plan, what it changes, and who judges it.
    moves_per_gpu
        Moves that one GPU fewer is worth, > 0; infinite: any number, the fewest GPUs come first. Where costs
        count, that is what a GPU of the mean cost of those in place is worth.
    """
    changes, problem = changes_of(draft, running), twin.problem
    cost = sum(problem.gpu_types[berth.station.gpu_type].cost_per_hour for berth in draft.berths)
    size, second = float(len(draft.berths)), cost
    if problem.objective == "least_cost":
        in_place = [problem.gpu_types[station.gpu_type].cost_per_hour for station in running.stations.values()]
        size, second = cost / (sum(in_place) / max(1, len(in_place)) or 1.0), float(len(draft.berths))
    served = (len(draft.unserved), num_rejected(draft, twin))
    worth = round(size + changes.num_moves / moves_per_gpu, 9)
    return (*served, worth, size, second, changes.num_moves, changes.num_restarts, changes.num_loads)


def by_load(problem: Problem, adapters: Iterable[int]) -> list[int]:
    """Return adapters by offered load, descending."""
    return sorted(adapters, key=lambda index: (-problem.adapters[index].offered_tps, index))
