"""Re-planning: few GPUs and few moves, limits, lost GPUs, and migrations in which nobody starves on the way."""

import itertools
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placer.events import PhaseStarted, PlanEvent
from placer.files import ProblemFromFile
from placer.plan_document import Plan
from placer.planning import plan
from placer.replan_document import Replan
from placer.replanning.arguments import Strategy
from placer.replanning.handovers import Handover, simulate_handovers
from placer.replanning.run import replan
from placer.replanning.running import running_fleet
from placer.replanning.stations import FleetTwin
from placer.verify import TwinSettings
from tests.placer.migrations import check_migration
from tests.placer.small_fleets import fair_surrogate, small_data, small_problem
from twin.errors import InputError

QUICK: dict[str, Any] = {"solver": "bfd", "horizon_s": 600.0, "warmup_s": 100.0, "max_evaluations": 3000}
# The multi-replica engine is slow: it has tests of its own.
NEAR: dict[str, Any] = QUICK | {"handover_horizon_s": 0.0}


def drifted(folder: Path, data: dict[str, Any], seed: int, *, spread: float = 0.5) -> ProblemFromFile:
    """Return the problem of `data` with rates that are off by random factors."""
    generator = np.random.default_rng(seed)
    adapters = [
        adapter | {"rate_rps": round(adapter["rate_rps"] * float(np.exp(generator.normal(0.0, spread))), 4)}
        for adapter in data["adapters"]
    ]
    return small_problem(folder, **data | {"adapters": adapters})


def again(before: Plan, problem: ProblemFromFile, **options: Any) -> Replan:
    """Re-plan quickly, and check what holds of any migration that is safe."""
    made = replan(before, problem, surrogate=fair_surrogate(), **NEAR | options)
    assert made == Replan.model_validate_json(made.model_dump_json())
    if made.migration.is_safe:
        check_migration(before, made, {adapter.name: adapter.rank for adapter in problem.adapters})
    return made


@pytest.fixture(name="in_place", scope="module")
def _in_place(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Plan]:
    """Return the data of a problem, and its plan: four GPUs."""
    data = small_data(num_adapters=24, total_rps=34.0)
    made = plan(small_problem(tmp_path_factory.mktemp("first"), **data), surrogate=fair_surrogate(), **QUICK)
    assert (made.num_gpus, made.verdict) == (4, "accepted")
    return data, made


def test_nothing_changes_where_nothing_has_to(in_place: tuple[dict[str, Any], Plan], tmp_path: Path) -> None:
    """The same rates: the same plan with the same names and settings, and no step."""
    data, before = in_place
    made = again(before, small_problem(tmp_path, **data))
    assert (made.verdict, made.migration.steps, made.migration.total_s) == ("accepted", (), 0.0)
    assert {gpu.name: (gpu.adapters, gpu.engine) for gpu in made.plan.gpus} == {
        gpu.name: (gpu.adapters, gpu.engine) for gpu in before.gpus
    }


@pytest.mark.parametrize("seed", [1, 4])
def test_near_needs_no_more_gpus_than_scratch_and_no_more_moves(
    in_place: tuple[dict[str, Any], Plan], tmp_path: Path, seed: int
) -> None:
    """Rates drift, two adapters go and two come: fewest GPUs first, then fewest moves."""
    data, before = in_place
    newcomers = [adapter | {"name": f"new-{adapter['name']}"} for adapter in data["adapters"][3:5]]
    problem = drifted(tmp_path, data | {"adapters": [*data["adapters"][2:], *newcomers]}, seed)
    near, repair, scratch = (again(before, problem, strategy=it) for it in ("near", "repair", "scratch"))
    assert (near.verdict, repair.verdict) == ("accepted", "accepted")
    assert near.before.gone_adapters == ("a0", "a1")
    assert {"new-a3", "new-a4"} <= set(near.before.starved_adapters)
    assert near.plan.num_gpus <= min(repair.plan.num_gpus, scratch.plan.num_gpus)
    if near.plan.num_gpus == scratch.plan.num_gpus:
        assert near.changes.num_moves <= scratch.changes.num_moves
    if near.plan.num_gpus == repair.plan.num_gpus:
        assert near.changes.num_moves <= repair.changes.num_moves
    assert near.changes.num_new == 2


@pytest.mark.parametrize("seed", range(3))
def test_brute_force_finds_no_fewer_gpus_and_moves(tmp_path: Path, seed: int) -> None:
    """Five adapters on fixed slots: all ways to put them on the GPUs in place and on new ones, judged by the twin."""
    data = small_data(num_adapters=5, total_rps=14.0)
    data["engine"] |= {"max_loras": 5, "max_lora_rank": 16}
    before = plan(small_problem(tmp_path, **data), surrogate=fair_surrogate(), **QUICK)
    problem = drifted(tmp_path, data, seed, spread=0.7)
    made = again(before, problem)
    running = running_fleet(before, problem, ())
    twin = FleetTwin(problem, TwinSettings(horizon_s=600.0, warmup_s=100.0))
    station = next(iter(running.stations.values()))
    home = running.home

    @cache
    def is_accepted(adapters: tuple[int, ...]) -> bool:
        return twin.accepts(station.with_adapters(adapters))

    names = [*running.stations, "new-0", "new-1"]
    best = (99, 99)
    for chosen in itertools.product(names, repeat=5):
        used = sorted(set(chosen))
        sets = [tuple(index for index in range(5) if chosen[index] == name) for name in used]
        if all(is_accepted(own) for own in sets):
            best = min(best, (len(used), sum(home[index] != chosen[index] for index in range(5))))
    assert made.verdict == "accepted"
    assert best == (made.plan.num_gpus, made.changes.num_moves)


@pytest.mark.parametrize("worth", [1.0, "auto", float("inf")])
def test_a_gpu_is_worth_so_many_moves(in_place: tuple[dict[str, Any], Plan], tmp_path: Path, worth: Any) -> None:
    """At two thirds of the traffic: no plan that was considered has less of GPUs and moves, and the message says so."""
    data, before = in_place
    quiet = [adapter | {"rate_rps": round(adapter["rate_rps"] * 0.66, 4)} for adapter in data["adapters"]]
    made = again(before, small_problem(tmp_path, **data | {"adapters": quiet}), moves_per_gpu=worth)
    price = {"auto": 24 / 4}.get(worth, worth)
    assert made.settings["moves_per_gpu"] == (None if price == float("inf") else price)

    def cost(num_gpus: int, num_moves: int) -> float:
        return float(num_gpus + num_moves / price)

    others = [cost(it.num_gpus, it.changes.num_moves) for it in made.candidates]
    assert cost(made.plan.num_gpus, made.changes.num_moves) == min(others)
    fewest = min(it.num_gpus for it in made.candidates)
    assert ("instead of" in made.message) == (fewest < made.plan.num_gpus)
    if worth == 1.0:
        assert (made.plan.num_gpus, made.changes.num_moves) == (4, 0)
    else:
        assert made.plan.num_gpus == 3


@pytest.mark.parametrize("limit", [{"max_moves": 1}, {"max_loads": 2}, {"max_restarts": 0}])
def test_limits_are_kept(in_place: tuple[dict[str, Any], Plan], tmp_path: Path, limit: dict[str, int]) -> None:
    """Under any limit the plan keeps it, and where more GPUs or starving are the price, the message says so."""
    data, before = in_place
    free, limited = (again(before, drifted(tmp_path, data, 5, spread=0.9), **given) for given in ({}, limit))
    ((name, most),) = limit.items()
    assert getattr(limited.changes, name.replace("max_", "num_")) <= most
    assert getattr(limited.limits, name) == most
    is_worse = (limited.verdict != "accepted", limited.plan.num_gpus) > (
        free.verdict != "accepted",
        free.plan.num_gpus,
    )
    if limited.verdict != "accepted":
        assert "within the limits" in limited.message
    elif is_worse:
        assert "The limits bind" in limited.message


@pytest.mark.parametrize("strategy", ["near", "repair"])
def test_new_constraints_move_who_breaks_them(
    in_place: tuple[dict[str, Any], Plan], tmp_path: Path, strategy: Strategy
) -> None:
    """Adapters of one GPU that must be apart now, and one whose type of GPU is another now: only they move."""
    data, before = in_place
    (gpu_type,) = data["gpu_types"]
    crowded = max(before.gpus, key=lambda gpu: len(gpu.adapters))
    pinned, *apart = crowded.adapters[-3:]
    constraints = {
        "apart": [{"adapters": apart}],
        "gpu_type": [{"adapters": [pinned], "types": ["own"]}],
    }
    types = [gpu_type, gpu_type | {"name": "own"}]
    problem = small_problem(tmp_path, **data | {"gpu_types": types, "constraints": constraints})
    made = again(before, problem, strategy=strategy)
    homes = {adapter: gpu for gpu in made.plan.gpus for adapter in gpu.adapters}
    assert made.verdict == "accepted"
    assert homes[apart[0]].name != homes[apart[1]].name
    assert homes[pinned].gpu_type == "own"
    if strategy == "repair":
        assert made.changes.num_moves == 2


def test_constraints_that_limits_do_not_let_keep_are_told(
    in_place: tuple[dict[str, Any], Plan], tmp_path: Path
) -> None:
    """Nobody may move: the plan is what is in place, it is rejected, and says which rule it breaks."""
    data, before = in_place
    crowded = max(before.gpus, key=lambda gpu: len(gpu.adapters))
    apart = {"apart": [{"adapters": list(crowded.adapters[-2:])}]}
    made = again(before, small_problem(tmp_path, **data | {"constraints": apart}), strategy="repair", max_moves=0)
    assert (made.verdict, made.changes.num_moves, made.migration.steps) == ("rejected", 0, ())
    assert made.candidates[0].num_rejected == 1
    assert "No plan was found that serves everybody within the limits" in made.message
    assert any("keep apart must be on different GPUs" in warning for warning in made.plan.warnings)
    assert made.plan.configuration.constraints.apart


@pytest.mark.parametrize("strategy", ["near", "repair"])
def test_a_chosen_max_num_seqs_stays(in_place: tuple[dict[str, Any], Plan], tmp_path: Path, strategy: Strategy) -> None:
    """Where other values may be chosen, too, nobody restarts for one that is not needed."""
    data, before = in_place
    data = data | {"engine": data["engine"] | {"max_num_seqs": [16, 64]}}
    made = again(before, small_problem(tmp_path, **data), strategy=strategy)
    assert (made.verdict, made.migration.steps) == ("accepted", ())
    assert {gpu.engine.max_num_seqs for gpu in made.plan.gpus} == {16}


def test_new_gpus_run_with_what_most_have(in_place: tuple[dict[str, Any], Plan], tmp_path: Path) -> None:
    """A replacement of a lost GPU gets the `max_num_seqs` of the others."""
    data, before = in_place
    data = data | {"engine": data["engine"] | {"max_num_seqs": [16, 64]}}
    lost = before.gpus[0].name
    made = again(before, small_problem(tmp_path, **data), strategy="repair", lose_gpus=(lost,))
    assert (made.verdict, made.plan.num_gpus) == ("accepted", 4)
    assert {gpu.engine.max_num_seqs for gpu in made.plan.gpus} == {16}


def test_nobody_is_served_where_all_are_lost_and_nothing_may_be_loaded(tmp_path: Path) -> None:
    """The one GPU is lost, and limits forbid to load anybody: an answer without GPUs that names all."""
    data = small_data(num_adapters=4, total_rps=4.0)
    before = plan(small_problem(tmp_path, **data), surrogate=fair_surrogate(), **QUICK)
    problem = small_problem(tmp_path, **data | {"constraints": {"apart": [{"adapters": ["a0", "a1"]}]}})
    made = again(before, problem, strategy="repair", lose_gpus=(before.gpus[0].name,), max_loads=0)
    assert (made.verdict, made.plan.verdict, made.plan.gpus) == ("rejected", "none", ())
    assert made.unserved_adapters == ("a0", "a1", "a2", "a3")


def test_a_lost_gpu_is_replaced(in_place: tuple[dict[str, Any], Plan], tmp_path: Path) -> None:
    """Its adapters are loaded elsewhere first; nobody else has to move, and its name is not used again."""
    data, before = in_place
    lost = before.gpus[1]
    made = again(before, small_problem(tmp_path, **data), lose_gpus=(lost.name,))
    assert (made.verdict, made.before.lost_gpus) == ("accepted", (lost.name,))
    assert set(lost.adapters) == set(made.before.starved_adapters)
    assert made.changes.num_orphans == len(lost.adapters)
    assert lost.name not in {gpu.name for gpu in made.plan.gpus}


def test_without_a_gpu_for_them_adapters_are_not_served_and_told(
    in_place: tuple[dict[str, Any], Plan], tmp_path: Path
) -> None:
    """Where `max_count` allows no other GPU, the lost one counts: who finds no room is named, the rest goes on."""
    data, before = in_place
    (gpu_type,) = data["gpu_types"]
    problem = small_problem(tmp_path, **data | {"gpu_types": [gpu_type | {"max_count": 4}]})
    made = again(before, problem, lose_gpus=(before.gpus[0].name,), strategy="repair")
    assert (made.verdict, made.plan.num_gpus) == ("rejected", 3)
    assert made.unserved_adapters
    assert set(made.unserved_adapters) <= set(before.gpus[0].adapters)
    assert "No plan was found that serves everybody" in made.message


@pytest.mark.parametrize(("spare_gpus", "verdict"), [(0, "unsafe"), (1, "accepted")])
def test_other_engine_settings_restart_every_replica(
    in_place: tuple[dict[str, Any], Plan], tmp_path: Path, spare_gpus: int, verdict: str
) -> None:
    """One after the other, by a successor on a spare GPU; without one full GPUs cannot be emptied safely."""
    data, before = in_place
    data = data | {"engine": data["engine"] | {"max_num_batched_tokens": 1024}}
    problem = small_problem(tmp_path, **data)
    made = again(before, problem, strategy="repair", spare_gpus=spare_gpus, restart_s=120.0)
    assert (made.verdict, made.changes.num_restarts, made.changes.num_moves) == (verdict, 4, 0)
    assert made.migration.peak_gpus == 4 + spare_gpus
    assert {gpu.engine.max_num_batched_tokens for gpu in made.plan.gpus} == {1024}
    if spare_gpus:
        assert made.migration.num_loads == 0
        assert made.migration.total_s == pytest.approx(4 * 120.0)
        assert "1 GPU more for a while" in made.message
        twice = again(before, problem, strategy="repair", spare_gpus=2, restarts_at_once=2, restart_s=120.0)
        assert twice.migration.spare_gpus == 1


def test_a_spare_gpu_is_one_that_there_is(in_place: tuple[dict[str, Any], Plan], tmp_path: Path) -> None:
    """Four GPUs of the type are all there are: none is used for a while, and restarts are not safe."""
    data, before = in_place
    (gpu_type,) = data["gpu_types"]
    data = data | {"engine": data["engine"] | {"max_num_batched_tokens": 1024}}
    for most, verdict, spare_gpus in ((4, "unsafe", 0), (5, "accepted", 1)):
        problem = small_problem(tmp_path, **data | {"gpu_types": [gpu_type | {"max_count": most}]})
        made = again(before, problem, strategy="repair", spare_gpus=1)
        assert (made.verdict, made.migration.spare_gpus, made.migration.peak_gpus) == (verdict, spare_gpus, most)


def test_an_adapter_that_outgrew_its_slots_is_unloaded_there(
    in_place: tuple[dict[str, Any], Plan], tmp_path: Path
) -> None:
    """Its rank is larger now: it is served elsewhere, and then the old one is unloaded, unless its replica restarts."""
    data, before = in_place
    grown = before.gpus[2].adapters[-1]
    adapters = [it | {"rank": 64} if it["name"] == grown else it for it in data["adapters"]]
    problem = small_problem(tmp_path, **data | {"adapters": adapters})
    made = replan(before, problem, surrogate=fair_surrogate(), strategy="repair", **NEAR)
    steps = [(step.kind, step.replica) for step in made.migration.steps if grown in step.adapters]
    assert [kind for kind, _ in steps] == ["load", "shift", "unload"]
    assert steps[-1][1] == before.gpus[2].name != steps[0][1]
    assert made.before.gone_adapters == ()


@pytest.fixture(name="divided", scope="module")
def _divided(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Plan]:
    """Return the data of a problem in which the busiest adapter is on three GPUs, and its plan."""
    rule = {"given": [{"adapters": ["a0"], "replicas": 3}]}
    data = small_data(num_adapters=12, total_rps=34.0, replication=rule)
    made = plan(small_problem(tmp_path_factory.mktemp("divided"), **data), surrogate=fair_surrogate(), **QUICK)
    assert made.verdict == "accepted"
    assert sum("a0" in gpu.adapters for gpu in made.gpus) == 3
    return data, made


@pytest.mark.parametrize("strategy", ["near", "repair"])
def test_shares_of_a_divided_adapter_move_one_by_one(
    divided: tuple[dict[str, Any], Plan], tmp_path: Path, strategy: Strategy
) -> None:
    """A GPU with a share is lost: the share goes to a GPU without one, and the plan can be planned again."""
    data, before = divided
    problem = small_problem(tmp_path, **data)
    lost = next(gpu for gpu in before.gpus if "a0" in gpu.adapters)
    made = again(before, problem, strategy=strategy, lose_gpus=(lost.name,))
    assert made.verdict == "accepted"
    hosts = [gpu for gpu in made.plan.gpus if "a0" in gpu.adapters]
    assert sorted(entry.replica for gpu in hosts for entry in gpu.shares if entry.adapter == "a0") == [1, 2, 3]
    assert len(hosts) == 3
    (share,) = (entry.replica for entry in lost.shares if entry.adapter == "a0")
    assert {"load", "shift"} == {step.kind for step in made.migration.steps if f"a0 [{share}/3]" in step.adapters}
    same = again(made.plan, problem, strategy=strategy)
    assert (same.verdict, same.migration.steps) == ("accepted", ())


def test_shares_without_a_gpu_are_told(divided: tuple[dict[str, Any], Plan], tmp_path: Path) -> None:
    """No other GPU is allowed: shares that found no room are named, the others are served."""
    data, before = divided
    (gpu_type,) = data["gpu_types"]
    problem = small_problem(tmp_path, **data | {"gpu_types": [gpu_type | {"max_count": len(before.gpus)}]})
    lost = next(gpu for gpu in before.gpus if "a0" in gpu.adapters)
    made = again(before, problem, strategy="repair", lose_gpus=(lost.name,))
    assert made.verdict == "rejected"
    assert made.unserved_adapters


def test_a_divided_plan_is_not_made_anew(divided: tuple[dict[str, Any], Plan], tmp_path: Path) -> None:
    """Shares stay what they are: another number of replicas, or a plan from scratch, is refused with what to use."""
    data, before = divided
    four = data | {"replication": {"given": [{"adapters": ["a0"], "replicas": 4}]}}
    for changed, options, words in (
        (four, {}, "'a0' must have 4 replicas. It has 3"),
        (data, {"strategy": "scratch"}, "shares stay what they are"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            again(before, small_problem(tmp_path, **changed), **options)
        assert caught.value.field == "replication"


def test_gpus_near_a_limit_are_looked_at_twice(in_place: tuple[dict[str, Any], Plan], tmp_path: Path) -> None:
    """As those of a new plan: with other seeds and after a backlog, with the settings that they run with."""
    data, before = in_place
    made = again(before, drifted(tmp_path, data, 4), strategy="repair")
    verdicts = [gpu.verification for gpu in made.plan.gpus if gpu.verification is not None]
    near = [verdict for verdict in verdicts if verdict.is_accepted and verdict.near_limits]
    assert near
    assert [verdict for verdict in verdicts if verdict.stability is not None] == near
    is_told = any("is metastable" in warning for warning in made.plan.warnings)
    assert is_told == any(verdict.stability is not None and verdict.stability.is_metastable for verdict in near)


def test_an_idle_fleet_restarts_without_a_spare_gpu(tmp_path: Path) -> None:
    """Two GPUs at a third of their load: each is served by the other one while it restarts, and gets its own back."""
    data = small_data(num_adapters=8, total_rps=14.0)
    data["adapters"] = [adapter | {"rank": 16} for adapter in data["adapters"]]
    before = plan(small_problem(tmp_path, **data), surrogate=fair_surrogate(), **QUICK)
    assert before.num_gpus == 2
    quiet = [adapter | {"rate_rps": adapter["rate_rps"] * 0.3} for adapter in data["adapters"]]
    data = data | {"engine": data["engine"] | {"max_num_batched_tokens": 1024}, "adapters": quiet}
    made = again(before, small_problem(tmp_path, **data), strategy="repair", spare_gpus=0)
    assert (made.verdict, made.changes.num_restarts, made.migration.peak_gpus) == ("accepted", 2, 2)
    assert made.migration.num_temporary_loads == made.migration.num_loads > 0


def test_both_replicas_serve_during_a_handover(in_place: tuple[dict[str, Any], Plan], tmp_path: Path) -> None:
    """The multi-replica twin simulates each change of the router between two replicas, and names itself."""
    data, before = in_place
    made = again(before, drifted(tmp_path, data, 2, spread=0.8), handover_horizon_s=10.0, strategy="repair")
    gradual = [step for step in made.migration.steps if any(shift.source for shift in step.shifts)]
    assert gradual
    for step in gradual:
        assert step.is_gradual is not None
        assert {"fast", "simpy"} == {check.engine for check in step.check.replicas}


@pytest.mark.parametrize(
    ("phase", "method"), [("verify", None), ("repair", None), ("improve", "repair"), ("solve", "reduce")]
)
def test_ctrl_c_ends_the_search_with_what_was_found(
    in_place: tuple[dict[str, Any], Plan], tmp_path: Path, phase: str, method: str | None
) -> None:
    """The way to the best plan so far is checked as ever; before there is one, Ctrl-C is passed on."""
    data, before = in_place
    seen: list[str] = []

    def observe(event: PlanEvent) -> None:
        if isinstance(event, PhaseStarted) and event.phase == phase and phase not in seen:
            seen.append(phase)
            raise KeyboardInterrupt

    problem = drifted(tmp_path, data, 1)
    if method is None:
        with pytest.raises(KeyboardInterrupt):
            again(before, problem, observer=observe)
        return
    made = again(before, problem, observer=observe)
    assert (made.plan.termination, made.verdict, made.candidates[-1].method) == ("interrupted", "accepted", method)


@pytest.mark.parametrize(
    ("options", "field", "words"),
    [
        ({"lose_gpus": ("other",)}, "lose_gpu", "a lost GPU must be one of h100-64gb-0"),
        ({"max_moves": -1}, "max_moves", "`max_moves` must be at least 0. Got -1"),
        ({"moves_per_gpu": 0.0}, "moves_per_gpu", "`moves_per_gpu` must be above 0, or 'auto'. Got 0.0"),
        ({"moves_per_gpu": float("nan")}, "moves_per_gpu", "Got nan"),
        ({"spare_gpus": -1}, "spare_gpus", "`spare_gpus` must be at least 0"),
        ({"restarts_at_once": 0}, "restarts_at_once", "must be at least 1"),
        ({"restart_s": float("nan")}, "restart_s", "must be at least 0"),
        ({"strategy": "best"}, "strategy", "`strategy` must be one of near, repair, scratch. Got 'best'"),
    ],
)
def test_arguments_that_do_not_hold(
    in_place: tuple[dict[str, Any], Plan], tmp_path: Path, options: dict[str, Any], field: str, words: str
) -> None:
    """Each is an InputError that names field and value."""
    data, before = in_place
    with pytest.raises(InputError, match=words) as caught:
        again(before, small_problem(tmp_path, **data), **options)
    assert caught.value.field == field


def test_plans_that_do_not_go_with_the_problem(in_place: tuple[dict[str, Any], Plan], tmp_path: Path) -> None:
    """Unknown GPU types, an adapter on two GPUs, divided adapters, groups that move together, no GPU left."""
    data, before = in_place
    (gpu_type,) = data["gpu_types"]
    first, second, *others = before.gpus
    twice = second.model_copy(update={"adapters": (*second.adapters, first.adapters[0])})
    every = tuple(gpu.name for gpu in before.gpus)
    cases: list[tuple[Plan, dict[str, Any], tuple[str, ...], str]] = [
        (before, {"gpu_types": [gpu_type | {"name": "other"}]}, (), "the GPU types of the plan must be in the problem"),
        (before.model_copy(update={"gpus": (first, twice, *others)}), {}, (), "an adapter must be on one GPU"),
        (before.model_copy(update={"gpus": ()}), {}, (), "a plan must have GPUs"),
        (before, {"replication": {"given": [{"adapters": ["a1"], "replicas": 2}]}}, (), "'a1' must have 2 replicas"),
        (before, {"constraints": {"together": [{"adapters": ["a1", "a2"]}]}}, (), "must move one by one"),
        (before, {"gpu_types": [gpu_type | {"max_count": 4}]}, every, "GPUs must be left that serve"),
    ]
    for given, changes, lost, words in cases:
        with pytest.raises(InputError, match=words):
            again(given, small_problem(tmp_path, **data | changes), lose_gpus=lost)


def test_a_replica_that_serves_nobody_during_a_handover_is_left_out(
    in_place: tuple[dict[str, Any], Plan], tmp_path: Path
) -> None:
    """One that has just been restarted without safety gets adapters that nobody serves: it has nothing to give."""
    data, before = in_place
    problem = small_problem(tmp_path, **data)
    first, second, third, _ = running_fleet(before, problem, ()).stations.values()
    stations = {"from": first, "to": second, "idle": third.with_adapters(())}
    handover = Handover(stations=stations, moves=((first.adapters[-1], "from", "to"),))
    (found,) = simulate_handovers(problem, [handover], horizon_s=5.0, seed=0, workers=1)
    assert found is not None
    assert list(found) == ["from", "to"]
