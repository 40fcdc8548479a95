"""An ordered, safe way from the running fleet to a plan: load before unload, restarts rolling, each step checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from placer.replan_document import Before, Migration
from placer.replanning.drafts import by_load
from placer.replanning.handovers import Handover
from placer.replanning.running import RunningFleet
from placer.replanning.stations import Berth, FleetTwin, Station, clashing_shares
from placer.replanning.step_log import StepLog
from placer.replanning.step_times import StepTimes

SUCCESSOR = "+next"


@dataclass(frozen=True)
class MigrationRules:
    """How a migration may go.

    Attributes
    ----------
    spare_gpus
        Most GPUs that may be in use for a while beyond those of before and after.
    restarts_at_once
        Most replicas that restart together, or have successors started together.
    max_temporary_loads
        Most adapters that are loaded elsewhere for the time of a restart; ``None``: any number.
    """

    spare_gpus: int = 1
    restarts_at_once: int = 1
    max_temporary_loads: int | None = None


@dataclass
class Live:
    """A replica that runs: its settings and whose requests it gets, and whom it has loaded."""

    station: Station
    loaded: set[int]

    @property
    def routed(self) -> tuple[int, ...]:
        """Adapters whose requests it gets."""
        return self.station.adapters


class MigrationPlanner:
    """Finds the order.

    Parameters
    ----------
    running, before
        What is in place, and what the twin says of it.
    target
        The plan: the name of each replica, and what it is.
    twin
        Who says whether a state is safe.
    rules, times
        What is allowed, and how long steps take.

    Attributes
    ----------
    log
        The steps so far.
    live
        The replicas that run now, by name.
    """

    def __init__(
        self,
        running: RunningFleet,
        before: Before,
        target: Mapping[str, Berth],
        twin: FleetTwin,
        *,
        rules: MigrationRules,
        times: StepTimes,
    ) -> None:
        self.twin = twin
        self.problem = twin.problem
        self.rules = rules
        self.target = dict(target)
        self.live = {name: Live(station, set(station.adapters)) for name, station in running.stations.items()}
        self.goal = {adapter: name for name, berth in target.items() for adapter in berth.adapters}
        self.num_temporary_loads = self.num_restarts = self.spares = 0
        self._is_forced = False
        self._gone = running.gone
        self._outgrown = {name: adapters for name, adapters in running.outgrown.items() if adapters}
        self._rejected = frozenset(before.rejected_gpus)
        counts = Counter(station.gpu_type for station in running.stations.values())
        after = Counter(berth.station.gpu_type for berth in target.values())
        self._allowed = counts | after
        self.log = StepLog(twin, times, before, running.stations)

    def run(self) -> None:
        """Make every step; see `log`."""
        for name, adapters in self._gone.items():
            if adapters:
                self.log.unload(name, self.live[name].station, adapters)
        self._start_new()
        while not self._is_over():
            if self._transfer() or self._stop() or self._start_new() or self._restart() or self._exchange():
                continue
            if self.spares < self.rules.spare_gpus and self._take_spare():
                continue
            self._force()
            break
        for name, adapters in self._outgrown.items():
            self.log.unload(name, self.live[name].station, adapters)

    # What is left to do

    def where(self) -> dict[int, str]:
        """Return the replica that gets each adapter's requests."""
        return {adapter: name for name, live in self.live.items() for adapter in live.routed}

    def _incoming(self, name: str) -> list[int]:
        """Return who must and can come to a replica, unserved ones first, then by load."""
        where, own = self.where(), set(self.live[name].routed)
        waiting = [adapter for adapter in self.target[name].adapters if adapter not in own]
        if not self._is_forced:
            clashing = clashing_shares(self.problem, self.live[name].loaded, waiting)
            waiting = [adapter for adapter in waiting if adapter not in clashing]
        order = by_load(self.problem, waiting)
        return sorted(order, key=lambda adapter: adapter in where)

    def _ready(self) -> list[str]:
        """Return the replicas of the plan that run with their settings, those of unserved adapters first."""
        where = self.where()
        ready = [name for name in self.target if name in self.live and not self._must_restart(name)]
        return sorted(ready, key=lambda name: all(adapter in where for adapter in self.target[name].adapters))

    def _must_restart(self, name: str) -> bool:
        live = self.live.get(name)
        return live is not None and live.station.engine != self.target[name].station.engine

    def _leftover(self) -> list[str]:
        """Return the replicas that the plan does not have."""
        return [name for name in self.live if name not in self.target]

    def _is_over(self) -> bool:
        is_there = all(
            name in self.live and self.live[name].station == berth.station for name, berth in self.target.items()
        )
        return is_there and not self._leftover()

    def _has_room(self, gpu_type: int) -> bool:
        """Return whether a GPU of a type is free."""
        used = sum(1 for live in self.live.values() if live.station.gpu_type == gpu_type)
        return used < self._allowed[gpu_type]

    def _is_available(self, gpu_type: int) -> bool:
        """Return whether there is one GPU of a type more than the migration has so far."""
        most = self.problem.gpu_types[gpu_type].max_count
        return most is None or self._allowed[gpu_type] < most

    # Steps: each returns whether it did anything

    def _transfer(self) -> bool:
        """Give replicas who must come to them, as many at a time as are safe."""
        is_changed = False
        for name in self._ready():
            chosen = self._safe_part(name, self._incoming(name))
            if chosen:
                self.shift({name: chosen})
                is_changed = True
        return is_changed

    def _safe_part(self, name: str, incoming: list[int]) -> list[int]:
        """Return adapters that may come to a replica together: all, else some of the first or of the last."""
        count = len(incoming)
        while count:
            for chosen in dict.fromkeys((tuple(incoming[:count]), tuple(incoming[-count:]))):
                if self.is_safe(self.after_shift({name: chosen})):
                    return list(chosen)
            count //= 2
        return []

    def _exchange(self) -> bool:
        """Load all that must move, and change the router once: where no replica can take anybody before it gives."""
        moves = {name: incoming for name in self._ready() if (incoming := self._incoming(name))}
        if not moves or not self.is_safe(self.after_shift(moves)):
            return False
        self.shift(moves)
        return True

    def _stop(self) -> bool:
        """Stop replicas that the plan does not have, and that serve nobody."""
        names = [name for name in self._leftover() if not self.live[name].routed]
        for name in names:
            self.stop(name)
        return bool(names)

    def _start_new(self) -> bool:
        """Start replicas of the plan on free GPUs, all at once: nobody is served less for it."""
        is_changed = False
        missing = [name for name in self.target if name not in self.live]
        for name in missing:
            if self._has_room(self.target[name].station.gpu_type):
                self.start(name, self.target[name].station, is_joined=is_changed)
                is_changed = True
        return is_changed

    def _restart(self) -> bool:
        """Restart replicas: empty ones where they are, others by a successor, or by serving theirs elsewhere."""
        waiting = [name for name in self.target if self._must_restart(name)]
        empty = [name for name in waiting if not self.live[name].routed][: self.rules.restarts_at_once]
        for index, name in enumerate(empty):
            self.restart(name, is_joined=index > 0)
        return bool(empty) or self._succeed(waiting) or any(self._drain(name) for name in waiting)

    def _succeed(self, waiting: Sequence[str]) -> bool:
        """Replace replicas by successors with other settings on free GPUs, as many at once as rules allow."""
        chosen: list[str] = []
        for name in waiting:
            station = self.live[name].station
            is_possible = self._has_room(station.gpu_type) and self.is_safe({name: self._successor(name)})
            if is_possible and len(chosen) < self.rules.restarts_at_once:
                own = self.live[name].routed
                self.start(name + SUCCESSOR, self.target[name].station, given=own, is_joined=bool(chosen))
                chosen.append(name)
        for name in chosen:
            self.hand_over(name)
        return bool(chosen)

    def _successor(self, name: str) -> Station:
        """Return a replica of the plan with the adapters that its predecessor serves now."""
        return self.target[name].station.with_adapters(self.live[name].routed)

    def _drain(self, name: str) -> bool:
        """Serve a replica's adapters elsewhere, restart it, and let the next steps bring them home."""
        allowed = self.rules.max_temporary_loads
        remaining = by_load(self.problem, self.live[name].routed)
        if allowed is not None and self.num_temporary_loads + len(remaining) > allowed:
            return False
        hosts: dict[str, list[int]] = {}
        for host in sorted(self.live, key=lambda other: (self._load_of(other), other)):
            if host != name and host not in self._rejected and remaining:
                is_free = not clashing_shares(self.problem, self.live[host].loaded, remaining)
                count = self.twin.longest_prefix(self.live[host].station, remaining) if is_free else 0
                if count:
                    hosts[host], remaining = remaining[:count], remaining[count:]
        if remaining:
            return False
        self.num_temporary_loads += sum(
            1 for host, own in hosts.items() for adapter in own if self.goal.get(adapter) != host
        )
        given = [adapter for adapter in self.live[name].routed if self.goal.get(adapter) == name]
        for host, own in hosts.items():
            self.shift({host: own})
        self.restart(name, given=given)
        return True

    def _take_spare(self) -> bool:
        """Allow one more GPU, of a type that something waits for."""
        kinds = [self.target[name].station.gpu_type for name in self.target if name not in self.live]
        kinds += [
            self.live[name].station.gpu_type
            for name in self.target
            if self._must_restart(name) and self.is_safe({name: self._successor(name)})
        ]
        kinds = [kind for kind in kinds if self._is_available(kind)]
        if not kinds:
            return False
        self._allowed[kinds[0]] += 1
        self.spares += 1
        return True

    def _force(self) -> None:
        """Make what is left without safety; the checks of these steps say so."""
        self._is_forced = True
        for name in [name for name in self.target if name not in self.live]:
            is_free = self._has_room(self.target[name].station.gpu_type)
            self.start(name, self.target[name].station, lacks_gpu=not is_free)
        for name in [name for name in self.target if self._must_restart(name)]:
            self.restart(name)
        moves = {name: incoming for name in self.target if (incoming := self._incoming(name))}
        if moves:
            self.shift(moves)
        self._stop()

    # What steps do to the state

    def after_shift(self, moves: Mapping[str, Sequence[int]]) -> dict[str, Station]:
        """Return what becomes of the replicas that a change of the router concerns, by name."""
        where = self.where()
        moving = {adapter for own in moves.values() for adapter in own}
        concerned = {*moves, *(where[adapter] for adapter in moving if adapter in where)}
        return {
            name: self.live[name].station.with_adapters({*self.live[name].routed} - moving | set(moves.get(name, ())))
            for name in sorted(concerned)
        }

    def is_safe(self, stations: Mapping[str, Station]) -> bool:
        """Return whether replicas may become these; see `StepLog.check`."""
        return all(self.twin.fits(station) for station in stations.values()) and self.log.check(stations).is_safe

    def shift(self, moves: Mapping[str, Sequence[int]]) -> None:
        """Load adapters at their new replicas, send their requests there, then unload them at the old ones."""
        where = self.where()
        clashing = [clashing_shares(self.problem, self.live[name].loaded, own) for name, own in moves.items()]
        for name, own in moves.items():
            live = self.live[name]
            self.log.load(name, live.station, [adapter for adapter in own if adapter not in live.loaded])
            live.loaded |= set(own)
        after = self.after_shift(moves)
        sources = [(adapter, where.get(adapter), name) for name, own in moves.items() for adapter in own]
        handover = Handover(
            stations={name: self.live[name].station for name in after},
            moves=tuple((adapter, source, name) for adapter, source, name in sources if source is not None),
        )
        self.log.shift(sources, after, handover, clashing=sorted(set().union(*clashing)))
        for name, station in after.items():
            self.live[name].station = station
        for name in after:
            done = [adapter for adapter, source, _ in sources if source == name]
            if done and name in self.target and not self._must_restart(name):
                self._unload(name, done)

    def _unload(self, name: str, adapters: Iterable[int]) -> None:
        live = self.live[name]
        names = tuple(self.problem.adapters[adapter].name for adapter in adapters)
        live.loaded -= set(adapters)
        self.log.unload(name, live.station, names)

    def start(
        self,
        name: str,
        target: Station,
        *,
        given: Sequence[int] = (),
        is_joined: bool = False,
        lacks_gpu: bool = False,
    ) -> None:
        """Start a replica that gets no requests yet, with the adapters that are given."""
        self.live[name] = Live(target.with_adapters(()), set(given))
        self.log.start(name, self.live[name].station, given, is_joined=is_joined, lacks_gpu=lacks_gpu)

    def hand_over(self, name: str) -> None:
        """Give all adapters of a replica to its successor, stop it, and give the successor its name."""
        successor = name + SUCCESSOR
        self.log.follow(successor, name)
        self.shift({successor: self.live[name].routed})
        self.stop(name)
        self.live[name] = self.live.pop(successor)
        self.num_restarts += 1

    def restart(self, name: str, *, given: Sequence[int] = (), is_joined: bool = False) -> None:
        """Restart a replica where it is, with the settings of the plan and the adapters that are given.

        It gets no requests until they are shifted to it.
        """
        live, dropped = self.live[name], self.live[name].routed
        live.station = self.target[name].station.with_adapters(())
        live.loaded = set(given)
        self._outgrown.pop(name, None)
        self.num_restarts += 1
        self.log.restart(name, live.station, given, dropped, is_joined=is_joined)

    def stop(self, name: str) -> None:
        """Stop a replica that serves nobody."""
        self._outgrown.pop(name, None)
        self.log.stop(name, self.live.pop(name).station)

    def _load_of(self, name: str) -> float:
        return sum(self.problem.adapters[adapter].offered_tps for adapter in self.live[name].routed)


def planned_migration(
    running: RunningFleet,
    before: Before,
    target: Mapping[str, Berth],
    twin: FleetTwin,
    *,
    rules: MigrationRules,
    times: StepTimes,
) -> MigrationPlanner:
    """Return a planner that has run: with spare GPUs as the last resort, else with them instead of temporary loads."""
    planners = []
    for own in (rules, replace(rules, max_temporary_loads=0)):
        planner = MigrationPlanner(running, before, target, twin, rules=own, times=times)
        planner.run()
        if planner.log.is_safe:
            return planner
        planners.append(planner)
    return planners[0]


def as_migration(planner: MigrationPlanner) -> Migration:
    """Return the steps of a planner that has run, as they are reported."""
    return planner.log.migration(
        num_temporary_loads=planner.num_temporary_loads,
        num_restarts=planner.num_restarts,
        spare_gpus=planner.spares,
    )
