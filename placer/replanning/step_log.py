"""The steps of a migration as they are written down: how long each takes, and what the twin says of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from placer.plan_document import Verification
from placer.replan_document import (
    Before,
    CheckEngine,
    Migration,
    MigrationStep,
    ReplicaCheck,
    Shift,
    StepCheck,
    StepKind,
)
from placer.replanning.handovers import Handover, simulate_handovers
from placer.replanning.stations import FleetTwin, Station
from placer.replanning.step_times import StepTimes
from twin.engine import EngineConfig

UNCHANGED = StepCheck(basis="unchanged", is_safe=True)


class StepLog:
    """Writes steps down.

    Parameters
    ----------
    twin, times
        Who checks steps, and how long they take.
    before, running
        What the twin says of the fleet before the first step, and the fleet.
    """

    def __init__(self, twin: FleetTwin, times: StepTimes, before: Before, running: Mapping[str, Station]) -> None:
        self.steps: list[MigrationStep] = []
        self._twin = twin
        self._times = times
        self._starved = frozenset(before.starved_adapters)
        self._first = {name: set(running[name].adapters) for name in before.rejected_gpus}
        self._predecessor: dict[str, str] = {}
        self._in_use = self._peak = len(running)
        self._group = 0
        self._handovers: dict[int, Handover] = {}
        self._num_loads = 0

    @property
    def is_safe(self) -> bool:
        """Whether each step is."""
        return all(step.check.is_safe for step in self.steps)

    def follow(self, successor: str, name: str) -> None:
        """Take what was true of a replica for true of its successor."""
        self._predecessor[successor] = name

    def check(self, stations: Mapping[str, Station]) -> StepCheck:
        """Return whether replicas may become these, by name.

        They may if no adapter starves on them that did not before the migration, and the twin rejects none that it
        did not reject before; one that it did must not get anybody else.
        """
        busy = {name: station for name, station in stations.items() if station.adapters}
        verdicts = dict(zip(busy, self._twin.verdicts(list(busy.values())), strict=True))
        counts = {name: len(station.adapters) for name, station in busy.items()}
        return self._judged(verdicts, counts, self._relieved(busy), engine="fast")

    def load(self, name: str, station: Station, adapters: Sequence[int]) -> None:
        """Load adapters on a replica, which gets none of their requests yet."""
        if adapters:
            self._num_loads += len(adapters)
            self._add("load", name, station, self._times.load_s(station, adapters), adapters=self._names(adapters))

    def shift(
        self,
        moves: Sequence[tuple[int, str | None, str]],
        after: Mapping[str, Station],
        handover: Handover,
        *,
        clashing: Sequence[int] = (),
    ) -> None:
        """Send the requests of adapters from one replica, or from none, to another.

        `clashing`: shares that come where another one of their adapter is loaded.
        """
        groups: dict[tuple[str | None, str], list[int]] = {}
        for adapter, source, target in moves:
            groups.setdefault((source, target), []).append(adapter)
        shifts = tuple(
            Shift(source=source, target=target, adapters=self._names(own)) for (source, target), own in groups.items()
        )
        if handover.moves:
            self._handovers[len(self.steps)] = handover
        first = moves[0][2]
        names = self._names([adapter for adapter, _, _ in moves])
        check = self.check(after)
        if clashing:
            told = sorted({self._twin.problem.told_name(adapter) for adapter in clashing})
            reasons = tuple(f"a replica has two shares of {name} loaded, which have one name" for name in told)
            check = check.model_copy(update={"is_safe": False, "reasons": (*check.reasons, *reasons)})
        self._add("shift", first, after[first], 0.0, adapters=names, shifts=shifts, check=check)

    def unload(self, name: str, station: Station, adapters: Sequence[str]) -> None:
        """Unload adapters, by name, whose requests go elsewhere or come no more."""
        self._add("unload", name, station, 0.0, adapters=tuple(adapters))

    def start(self, name: str, station: Station, given: Sequence[int], *, is_joined: bool, lacks_gpu: bool) -> None:
        """Start a replica on a GPU, with the adapters that are given."""
        self._in_use += 1
        self._peak = max(self._peak, self._in_use)
        lacking = StepCheck(basis="unchanged", is_safe=False, reasons=("no GPU is free for it",))
        self._add(
            "start",
            name,
            station,
            self._times.start_s(station),
            adapters=self._names(given),
            engine=station.engine,
            check=lacking if lacks_gpu else UNCHANGED,
            is_joined=is_joined,
        )

    def restart(
        self, name: str, station: Station, given: Sequence[int], dropped: Sequence[int], *, is_joined: bool
    ) -> None:
        """Restart a replica; `dropped`: who is not served meanwhile."""
        newly = tuple(sorted(set(self._names(dropped)) - self._starved))
        reasons = ("adapters are not served during the restart",) if dropped else ()
        check = StepCheck(basis="unchanged", is_safe=not dropped, newly_starved=newly, reasons=reasons)
        seconds = self._times.start_s(station)
        self._add(
            "restart",
            name,
            station,
            seconds,
            adapters=self._names(given),
            engine=station.engine,
            check=check,
            is_joined=is_joined,
        )

    def stop(self, name: str, station: Station) -> None:
        """Stop a replica that serves nobody, and give its GPU back."""
        self._in_use -= 1
        self._add("stop", name, station, 0.0)

    def simulate_handovers(self, *, horizon_s: float, workers: int | None) -> None:
        """Simulate what happens while two replicas serve the adapters of a shift; nothing for a horizon of 0.

        Where the twin does not approve of it, the router has to change at once.
        """
        handovers = dict(self._handovers) if horizon_s > 0.0 else {}
        found = simulate_handovers(
            self._twin.problem,
            list(handovers.values()),
            horizon_s=horizon_s,
            seed=self._twin.settings.seed,
            workers=workers,
        )
        for index, verdicts in zip(handovers, found, strict=True):
            step = self.steps[index]
            counts = {name: len(station.adapters) for name, station in handovers[index].stations.items()}
            relieved = self._relieved(handovers[index].stations)
            meanwhile = None if verdicts is None else self._judged(verdicts, counts, relieved, engine="simpy")
            seen = () if meanwhile is None else meanwhile.replicas
            check = step.check.model_copy(update={"replicas": (*seen, *step.check.replicas)})
            is_gradual = meanwhile is not None and meanwhile.is_safe
            self.steps[index] = step.model_copy(update={"is_gradual": is_gradual, "check": check})

    def migration(self, *, num_temporary_loads: int, num_restarts: int, spare_gpus: int) -> Migration:
        """Return all steps and what they amount to."""
        longest: dict[int, float] = {}
        for step in self.steps:
            longest[step.group] = max(longest.get(step.group, 0.0), step.seconds)
        return Migration(
            is_safe=self.is_safe,
            steps=tuple(self.steps),
            num_loads=self._num_loads,
            num_temporary_loads=num_temporary_loads,
            num_restarts=num_restarts,
            spare_gpus=spare_gpus,
            peak_gpus=self._peak,
            total_s=round(sum(longest.values()), 3),
            startup_source=self._times.startup_source,
        )

    def _relieved(self, stations: Mapping[str, Station]) -> set[str]:
        """Return the replicas that the twin rejected before, and that serve nobody else than then."""
        before = {name: self._first.get(self._predecessor.get(name, name)) for name in stations}
        return {
            name
            for name, station in stations.items()
            if (own := before[name]) is not None and set(station.adapters) <= own
        }

    def _judged(
        self,
        verdicts: Mapping[str, Verification],
        counts: Mapping[str, int],
        relieved: Collection[str],
        *,
        engine: CheckEngine,
    ) -> StepCheck:
        replicas = tuple(
            ReplicaCheck(
                replica=name,
                engine=engine,
                num_adapters=counts[name],
                is_accepted=verdict.is_accepted,
                throughput_ratio=round(verdict.throughput_ratio, 6),
                starved_adapters=verdict.starved_adapters,
            )
            for name, verdict in verdicts.items()
        )
        starved = {adapter for verdict in verdicts.values() for adapter in verdict.starved_adapters}
        newly = tuple(sorted(starved - self._starved))
        reasons = tuple(
            f"{name}: {reason}"
            for name, verdict in verdicts.items()
            if not verdict.is_accepted and name not in relieved
            for reason in verdict.reasons
        )
        is_safe = not newly and not reasons
        return StepCheck(basis="simulated", is_safe=is_safe, replicas=replicas, newly_starved=newly, reasons=reasons)

    def _names(self, adapters: Sequence[int]) -> tuple[str, ...]:
        return tuple(self._twin.problem.adapters[adapter].name for adapter in adapters)

    def _add(
        self,
        kind: StepKind,
        name: str,
        station: Station,
        seconds: float,
        *,
        adapters: tuple[str, ...] = (),
        shifts: tuple[Shift, ...] = (),
        engine: EngineConfig | None = None,
        check: StepCheck = UNCHANGED,
        is_joined: bool = False,
    ) -> None:
        self._group += not is_joined
        self.steps.append(
            MigrationStep(
                number=len(self.steps) + 1,
                kind=kind,
                replica=name,
                gpu_type=self._twin.problem.gpu_types[station.gpu_type].name,
                adapters=adapters,
                shifts=shifts,
                engine=engine,
                seconds=round(seconds, 3),
                group=self._group,
                gpus_in_use=self._in_use,
                check=check,
            )
        )
