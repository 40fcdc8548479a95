"""Room by chains and by other slots, found for random fleets by a twin whose verdict is arithmetic."""

import math
from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from placer.replan_document import ReplanLimits
from placer.replanning.chains import ChainFinder
from placer.replanning.drafts import Draft, changes_of, rank_of
from placer.replanning.emptying import Emptying
from placer.replanning.repairing import Repairing
from placer.replanning.room import RoomFinder
from placer.replanning.running import RunningFleet
from placer.replanning.stations import Berth, FleetTwin, Station
from placer.verify import TwinSettings
from solvers.feasibility import FeasibilityModel
from tests.placer.small_fleets import HopefulSurrogate
from tests.placer.test_replan_migrations import CAPACITY, ArithmeticTwin
from tests.solvers.problems import make_adapter, make_problem


class SlotTwin(ArithmeticTwin):
    """Rejects a replica that has fewer slots than adapters, too."""

    def accepts(self, station: Station) -> bool:
        """Return whether load and slots are enough."""
        return super().accepts(station) and station.engine.num_slots >= len(station.adapters)


def fleet_of(sets: Sequence[Sequence[float]], kind: type[FleetTwin] = ArithmeticTwin) -> tuple[RunningFleet, FleetTwin]:
    """Return replicas that serve adapters with these rates, each with as many slots as adapters, and a twin."""
    rates = [rate for own in sets for rate in own]
    problem = make_problem([make_adapter(f"a{index}", rank=8, rate_rps=rate) for index, rate in enumerate(rates)])
    stations, first = {}, 0
    for number, own in enumerate(sets):
        adapters = tuple(range(first, first + len(own)))
        first += len(own)
        stations[f"r{number}"] = Station(0, problem.replica(0, len(own), 8, len(own)).engine, adapters)
    running = RunningFleet(stations=stations, gone={}, orphans=(), lost=(), lost_types=())
    return running, kind(problem, TwinSettings(horizon_s=1.0, warmup_s=0.0))


def hopeful(twin: FleetTwin) -> FeasibilityModel:
    """Return a model that sees room everywhere: the twin alone decides."""
    return FeasibilityModel(twin.problem, HopefulSurrogate())


def berths_of(running: RunningFleet) -> list[Berth]:
    """Return the replicas that run."""
    return [Berth(name, station) for name, station in running.stations.items()]


def emptying_of(running: RunningFleet, twin: FleetTwin, moves_per_gpu: float, **limits: int) -> Emptying:
    """Return what empties GPUs, and takes nothing back."""
    repairing = Repairing(running, twin, hopeful(twin), limits=ReplanLimits(**limits), moves_per_gpu=moves_per_gpu)
    return Emptying(repairing, undo=lambda plan: plan)


def test_a_chain_finds_room_where_there_is_none_for_the_adapter_itself() -> None:
    """2.5 fit nowhere; they do in place of 1, which fits elsewhere: one more move, and nobody else."""
    running, twin = fleet_of([[6.0, 3.0], [6.0, 1.0, 1.0], [2.5]])
    first, second, third = berths_of(running)
    model = hopeful(twin)
    finder = ChainFinder(RoomFinder(model, twin), model)
    assert all(not twin.accepts(it.with_adapters([*it.adapters, 5]).station) for it in (first, second))
    fleet = finder.place([first, second], third.adapters, closed=())
    assert fleet is not None
    assert sorted(len(berth.adapters) for berth in fleet) == [3, 3]
    assert changes_of(Draft(tuple(fleet)), running).num_moves == 2
    assert finder.place([first, second], third.adapters, closed=(0,)) is None


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 6).map(float), min_size=1, max_size=4), min_size=1, max_size=4),
    st.lists(st.integers(1, 6).map(float), min_size=1, max_size=2),
    st.integers(0, 3),
)
def test_chains_lose_nobody_and_leave_closed_replicas_alone(
    sets: list[list[float]], waiting: list[float], closed: int
) -> None:
    """Whatever is found: everybody is served once, the twin accepts what changed, closed replicas are as before."""
    running, twin = fleet_of([*sets, waiting])
    *others, leaving = berths_of(running)
    model = hopeful(twin)
    fleet = ChainFinder(RoomFinder(model, twin), model).place(others, leaving.adapters, closed={closed})
    slack = [max(0.0, CAPACITY - sum(own)) if index != closed else 0.0 for index, own in enumerate(sets)]
    if fleet is None:
        # What fits at once is found always.
        assert len(waiting) > 1 or max(slack) < waiting[0]
        return
    assert sorted(adapter for berth in fleet for adapter in berth.adapters) == list(range(len(twin.problem.adapters)))
    for index, (before, after) in enumerate(zip(others, fleet, strict=True)):
        assert after.home == before.home
        assert after == before or (index != closed and twin.accepts(after.station))


def test_gpus_without_slots_are_merged_by_one_restart() -> None:
    """Two GPUs at a fifth of their load with a slot for each of their adapters: one gets more slots."""
    running, twin = fleet_of([[1.0, 1.0], [1.0, 1.0, 1.0]], SlotTwin)
    draft = Draft(tuple(berths_of(running)))
    after = emptying_of(running, twin, math.inf).reduced(draft, least=1)
    changes = changes_of(after, running)
    assert (len(after.berths), changes.num_moves, changes.num_restarts) == (1, 2, 1)
    assert emptying_of(running, twin, math.inf, max_restarts=0).reduced(draft, least=1) == draft


def test_a_gpu_is_given_up_for_no_more_moves_than_it_is_worth() -> None:
    """Three adapters would move: for a worth of three the plan with fewer moves or restarts stays, above it goes."""
    running, twin = fleet_of([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    draft = Draft(tuple(berths_of(running)))
    sizes = {worth: len(emptying_of(running, twin, worth).reduced(draft, least=1).berths) for worth in (2.9, 3.1)}
    assert sizes == {2.9: 2, 3.1: 1}


def test_a_gpu_of_the_mean_cost_is_worth_as_many_moves_where_costs_count() -> None:
    """With the objective `least_cost`, prices make no difference as long as all GPUs cost the same."""
    running, twin = fleet_of([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    cheap = replace(twin.problem, objective="least_cost")
    costly = replace(cheap, gpu_types=tuple(it.model_copy(update={"cost_per_hour": 70.0}) for it in cheap.gpu_types))
    draft = Draft(tuple(berths_of(running)))
    ranks = []
    for problem in (cheap, costly):
        other = ArithmeticTwin(problem, twin.settings)
        ranks.append(rank_of(draft, running, other, moves_per_gpu=3.0)[2])
    assert ranks == [2.0, 2.0]
