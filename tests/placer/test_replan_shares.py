"""Shares of one adapter while a fleet changes: no replica ever loads two of them, as vLLM knows one name for both."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placer.files import ProblemFromFile
from placer.plan_document import Plan
from placer.planned_shares import as_planned
from placer.planning import plan
from placer.replanning.drafts import Draft, changes_of, with_shares_at_home
from placer.replanning.migration import MigrationPlanner, MigrationRules, planned_migration
from placer.replanning.running import RunningFleet, before_of, running_fleet
from placer.replanning.stations import Berth, FleetTwin
from placer.replanning.step_times import StepTimes
from placer.verify import TwinSettings
from tests.placer.small_fleets import fair_surrogate, small_data, small_problem
from tests.placer.test_replan import QUICK

Fleet = tuple[RunningFleet, FleetTwin]


@pytest.fixture(name="fleet", scope="module")
def _fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """Return three replicas with a share of a0 each, of which one serves all others, too."""
    rule = {"given": [{"adapters": ["a0"], "replicas": 3}]}
    data = small_data(num_adapters=6, total_rps=6.0, replication=rule)
    problem: ProblemFromFile = small_problem(tmp_path_factory.mktemp("shares"), **data)
    made: Plan = plan(problem, surrogate=fair_surrogate(), **QUICK)
    divided = as_planned(problem, made)
    twin = FleetTwin(divided, TwinSettings(horizon_s=300.0, warmup_s=60.0, seed=0, workers=1))
    running = running_fleet(made, divided, ())
    assert len(running.stations) == 3
    return running, twin


def _target(fleet: Fleet, goal: dict[str | None, list[int]]) -> dict[str, Berth]:
    """Return replicas that serve the adapters that are given; one without a name is new."""
    running, _ = fleet
    like = next(iter(running.stations.values()))
    return {
        name or "new": Berth(name, (running.stations[name] if name else like).with_adapters(own))
        for name, own in goal.items()
    }


def _migrated(fleet: Fleet, target: dict[str, Berth]) -> MigrationPlanner:
    running, twin = fleet
    times = StepTimes(twin.problem, 10.0)
    return planned_migration(running, before_of(running, twin), target, twin, rules=MigrationRules(), times=times)


def _told_twice(fleet: Fleet, planner: MigrationPlanner) -> bool:
    """Return whether a replica ever has two adapters of one name, as vLLM has them."""
    running, twin = fleet
    problem = twin.problem
    loaded = {name: [problem.adapters[index].name for index in own.adapters] for name, own in running.stations.items()}
    for step in planner.log.steps:
        own = loaded.setdefault(step.replica, [])
        if step.kind == "load":
            own += step.adapters
        elif step.kind == "unload":
            loaded[step.replica] = [name for name in own if name not in step.adapters]
        elif step.kind in {"restart", "start"}:
            loaded[step.replica] = list(step.adapters)
        told = [name.partition(" [")[0] for name in loaded[step.replica]]
        if len(set(told)) < len(told):
            return True
    return False


def _shares(fleet: Fleet) -> dict[str, int]:
    running, _ = fleet
    return {name: station.adapters[0] for name, station in running.stations.items()}


def test_a_share_comes_when_the_other_one_has_gone(fleet: Fleet) -> None:
    """The second replica's share goes to a new GPU before it gets the first one's."""
    running, _ = fleet
    (first, one), (second, two), (third, three) = _shares(fleet).items()
    others = [adapter for adapter in running.stations[first].adapters if adapter != one]
    planner = _migrated(fleet, _target(fleet, {first: others, second: [one], third: [three], None: [two]}))
    assert planner.log.is_safe
    assert not _told_twice(fleet, planner)
    assert {name: live.routed for name, live in planner.live.items()} == {
        first: tuple(others),
        second: (one,),
        third: (three,),
        "new": (two,),
    }


def test_shares_that_only_change_places_are_told_as_unsafe(fleet: Fleet) -> None:
    """No order is safe for that, and the steps say so; what is asked for comes out."""
    running, _ = fleet
    (first, one), (second, two), (third, three) = _shares(fleet).items()
    others = [adapter for adapter in running.stations[first].adapters if adapter != one]
    target = _target(fleet, {first: [*others, two], second: [three], third: [one]})
    planner = _migrated(fleet, target)
    assert not planner.log.is_safe
    assert any("two shares of a0" in reason for step in planner.log.steps for reason in step.check.reasons)
    assert {name: live.station for name, live in planner.live.items()} == {
        name: berth.station for name, berth in target.items()
    }


@settings(max_examples=40, deadline=None)
@given(hosts=st.permutations(range(5)), placed=st.integers(1, 3))
def test_equal_shares_stay_where_one_is(fleet: Fleet, hosts: list[int], placed: int) -> None:
    """Which of them a GPU gets is nobody's matter: none moves to a GPU that has one, whatever a search says."""
    running, _ = fleet
    shares = list(_shares(fleet).values())
    names: list[str | None] = [*running.stations, None, None]
    others = sorted({*next(iter(running.stations.values())).adapters} - {*shares})
    like = next(iter(running.stations.values()))
    goal: list[list[int]] = [[*others], [], [], [], []]
    for share, host in zip(shares[:placed], hosts, strict=False):
        goal[host].append(share)
    berths = tuple(Berth(name, like.with_adapters(own)) for name, own in zip(names, goal, strict=True) if own)
    draft = Draft(berths, tuple(shares[placed:]))
    after = with_shares_at_home(draft, running, fleet[1].problem)
    everybody = sorted([*(adapter for berth in after.berths for adapter in berth.adapters), *after.unserved])
    assert everybody == sorted([*others, *shares])
    assert [len(berth.adapters) for berth in after.berths] == [len(berth.adapters) for berth in draft.berths]
    assert changes_of(after, running).num_moves == sum(1 for host in hosts[:placed] if host >= 3)
    assert with_shares_at_home(after, running, fleet[1].problem) == after


def test_plans_without_shares_are_left_alone(tmp_path: Path) -> None:
    """There is nothing to change places with."""
    problem = small_problem(tmp_path, **small_data(num_adapters=4, total_rps=2.0))
    made = plan(problem, surrogate=fair_surrogate(), **QUICK)
    running = running_fleet(made, problem, ())
    draft = Draft(tuple(Berth(name, station) for name, station in running.stations.items()))
    assert with_shares_at_home(draft, running, problem) is draft
