"""Re-planning: few GPUs and few moves, limits, lost GPUs, and migrations in which nobody starves on the way."""

import itertools
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placer.files import ProblemFromFile
from placer.plan_document import Plan
from placer.planning import plan
from placer.replan_document import Replan
from placer.replanning.run import Strategy, replan
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
    ("options", "field", "words"),
    [
        ({"lose_gpus": ("other",)}, "lose_gpu", "a lost GPU must be one of h100-64gb-0"),
        ({"max_moves": -1}, "max_moves", "`max_moves` must be at least 0. Got -1"),
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
        (before, {"replication": {"given": [{"adapters": ["a1"], "replicas": 2}]}}, (), "must be on one GPU each"),
        (before, {"constraints": {"together": [{"adapters": ["a1", "a2"]}]}}, (), "must move one by one"),
        (before, {"gpu_types": [gpu_type | {"max_count": 4}]}, every, "GPUs must be left that serve"),
    ]
    for given, changes, lost, words in cases:
        with pytest.raises(InputError, match=words):
            again(given, small_problem(tmp_path, **data | changes), lose_gpus=lost)
