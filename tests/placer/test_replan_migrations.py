"""Orders of steps, found for random fleets and plans by a twin whose verdict is arithmetic."""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from placer.plan_document import Verification
from placer.replan_document import Migration
from placer.replanning.migration import MigrationPlanner, MigrationRules, as_migration, planned_migration
from placer.replanning.running import RunningFleet, before_of
from placer.replanning.stations import Berth, FleetTwin, Station
from placer.replanning.step_times import StepTimes
from placer.verify import TwinSettings
from solvers.problem import Problem
from tests.solvers.problems import make_problem
from twin.lengths import LengthDistribution
from twin.workload import Adapter

# A replica serves this load, whatever its slots.
CAPACITY = 10.0


class ArithmeticTwin(FleetTwin):
    """Accepts a replica if its adapters' rates are at most its capacity; all of them starve if not."""

    def verdicts(self, stations: Sequence[Station]) -> list[Verification]:
        """Return the verdicts by adding rates up."""
        return [self._verdict(station) for station in stations]

    def load_of(self, station: Station) -> float:
        """Return the sum of the rates."""
        return sum(self.problem.adapters[index].rate_rps for index in station.adapters)

    def _verdict(self, station: Station) -> Verification:
        load = self.load_of(station)
        is_accepted = load <= CAPACITY
        names = tuple(self.problem.adapters[index].name for index in station.adapters)
        return Verification(
            engine="fast",
            horizon_s=1.0,
            warmup_s=0.0,
            seed=0,
            offered_tps=load,
            throughput_tps=min(load, CAPACITY),
            throughput_ratio=min(1.0, CAPACITY / load) if load else 1.0,
            starved_adapters=() if is_accepted else names,
            itl_p95_s=None,
            ttft_p95_s=None,
            kv_usage_max=0.0,
            verdict="accepted" if is_accepted else "rejected",
            reasons=() if is_accepted else ("too much load",),
        )


@st.composite
def fleets(draw: st.DrawFn) -> tuple[Problem, RunningFleet, dict[str, Berth], MigrationRules]:
    """Return a problem, what runs, a plan of which each replica is accepted, and rules."""
    num_adapters = draw(st.integers(1, 9))
    rates = draw(st.lists(st.integers(1, 6), min_size=num_adapters, max_size=num_adapters))
    lengths = LengthDistribution(mean=100.0)
    problem = make_problem(
        [
            Adapter(name=f"a{index}", rank=8, rate_rps=float(rate), prompt_tokens=lengths, output_tokens=lengths)
            for index, rate in enumerate(rates)
        ]
    )
    # -1: nobody serves it.
    homes = draw(st.lists(st.integers(-1, 3), min_size=num_adapters, max_size=num_adapters))
    sets = [[index for index in range(num_adapters) if homes[index] == home] for home in range(4)]
    engines = [problem.replica(0, slots, 8, 9).engine for slots in (4, 6)]
    running = {f"gpu-{home}": Station(0, engines[0], tuple(own)) for home, own in enumerate(sets) if own}
    target: dict[str, Berth] = {}
    goals: list[list[int]] = []
    for index in draw(st.permutations(range(num_adapters))):
        fitting = [own for own in goals if sum(rates[one] for one in own) + rates[index] <= CAPACITY]
        is_joined = draw(st.booleans())
        if fitting and is_joined:
            fitting[0].append(index)
        else:
            goals.append([index])
    names = draw(st.permutations([*running, *(f"new-{number}" for number in range(len(goals)))]))
    for name, own in zip(names, goals, strict=False):
        engine = engines[draw(st.integers(0, 1))]
        home = name if name in running else None
        target[name] = Berth(home, Station(0, engine, tuple(sorted(own))))
    fleet = RunningFleet(running, dict.fromkeys(running, ()), (), (), ())
    rules = MigrationRules(spare_gpus=draw(st.integers(0, 2)), restarts_at_once=draw(st.integers(1, 2)))
    return problem, fleet, target, rules


def migrated(
    problem: Problem, running: RunningFleet, target: dict[str, Berth], rules: MigrationRules
) -> tuple[Migration, MigrationPlanner, ArithmeticTwin]:
    """Return the steps, and the planner that has made them."""
    twin = ArithmeticTwin(problem, TwinSettings())
    before = before_of(running, twin)
    planner = planned_migration(running, before, target, twin, rules=rules, times=StepTimes(problem))
    return as_migration(planner), planner, twin


@settings(deadline=None, max_examples=150)
@given(fleets())
def test_each_state_serves_everybody_within_capacity(
    case: tuple[Problem, RunningFleet, dict[str, Berth], MigrationRules],
) -> None:
    """By replaying routes: who was served stays served by one replica, and only what was overloaded may still be."""
    problem, running, target, rules = case
    migration, planner, twin = migrated(problem, running, target, rules)
    assert {name: live.station for name, live in planner.live.items()} == {
        name: berth.station for name, berth in target.items()
    }
    assert all(live.loaded == set(live.routed) for live in planner.live.values())
    assert migration.spare_gpus <= rules.spare_gpus
    assert sum(step.kind == "load" for step in migration.steps) <= migration.num_loads
    if not migration.is_safe:
        return
    assert migration.peak_gpus <= max(len(running.stations), len(target)) + migration.spare_gpus
    indices = {adapter.name: index for index, adapter in enumerate(problem.adapters)}
    routes = {problem.adapters[index].name: name for index, name in running.home.items()}
    overloaded = {name for name, station in running.stations.items() if twin.load_of(station) > CAPACITY}
    started_with = {name: twin.load_of(station) for name, station in running.stations.items()}
    for step in migration.steps:
        for shift in step.shifts:
            assert {routes.get(name) for name in shift.adapters} == {shift.source}
            routes |= dict.fromkeys(shift.adapters, shift.target)
        if step.kind == "stop" and f"{step.replica}+next" in routes.values():
            routes = {name: step.replica if home == f"{step.replica}+next" else home for name, home in routes.items()}
        if step.kind == "restart":
            assert step.replica not in routes.values()
        for name in set(routes.values()):
            load = sum(problem.adapters[indices[own]].rate_rps for own, home in routes.items() if home == name)
            first = name.removesuffix("+next")
            assert load <= CAPACITY or (first in overloaded and load <= started_with[first])
    assert routes == {problem.adapters[index].name: name for name, berth in target.items() for index in berth.adapters}


@settings(deadline=None, max_examples=100)
@given(fleets())
def test_no_gpu_is_borrowed_that_is_not_needed(
    case: tuple[Problem, RunningFleet, dict[str, Berth], MigrationRules],
) -> None:
    """Where a safe order takes spare GPUs, the same search finds none with one less."""
    problem, running, target, rules = case
    migration, _, _ = migrated(problem, running, target, rules)
    if migration.is_safe and migration.spare_gpus:
        fewer = MigrationRules(migration.spare_gpus - 1, rules.restarts_at_once, rules.max_temporary_loads)
        assert not migrated(problem, running, target, fewer)[0].is_safe
