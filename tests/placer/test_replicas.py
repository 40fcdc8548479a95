"""Hot adapters on several GPUs: found, placed, simulated with their shares, told, read back, and never oversold."""

import json
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from placer.cli.application import app
from placer.files import ProblemFromFile, load_plan, load_problem, save_plan
from placer.measure_workload import load_measured_workload
from placer.plan_document import Plan
from placer.planned_shares import as_planned, broken_replication, planned_indices
from placer.planning import plan
from placer.recheck import replica_of
from placer.replicas import Replicas
from placer.verify import verify_gpus
from placer.why_not import explain_why_not, question_of
from predictors.exact import ExactSurrogate
from solvers.alone import UnplaceableError, fits_alone
from solvers.current import CurrentGpu, moves_of
from solvers.feasibility import FeasibilityModel
from solvers.placement import GpuAssignment
from solvers.replication import AutomaticRule, Replication
from solvers.shares import divided_problem, equal_shares
from tests.placer.small_fleets import (
    GPU_RPS,
    LENGTHS,
    HopefulSurrogate,
    fair_surrogate,
    rechecked,
    small_data,
    small_problem,
    write_problem,
)
from tests.solvers.analytic import AnalyticSurrogate
from tests.solvers.problems import GPU, make_adapter, make_problem
from twin.errors import InputError, SolverError, SurrogateError
from twin.memory import slot_bytes

RUNNER = CliRunner()
WINDOW: dict[str, Any] = {"horizon_s": 600.0, "warmup_s": 100.0}
# Of three small GPUs, with room for the others beside its shares.
HOT_RPS = 2.7 * GPU_RPS


def hot_adapters(hot_rps: float = HOT_RPS, **changes: Any) -> list[dict[str, Any]]:
    """Return a hot adapter, and three that are not."""
    others = [{"name": f"a{index}", "rank": 8, "rate_rps": 0.2 + 0.5 * index, **LENGTHS} for index in range(3)]
    return [{"name": "hot", "rank": 16, "rate_rps": hot_rps, **LENGTHS} | changes, *others]


def hot_problem(folder: Path, hot_rps: float = HOT_RPS, **changes: Any) -> ProblemFromFile:
    """Return the problem of placing them."""
    return small_problem(folder, **({"adapters": hot_adapters(hot_rps)} | changes))


def given_replicas(count: int) -> dict[str, Any]:
    """Return the section of a problem file."""
    return {"given": [{"adapters": ["hot"], "replicas": count}]}


def planned(problem: ProblemFromFile, **changes: Any) -> Plan:
    """Return a plan that takes a short time."""
    arguments: dict[str, Any] = {"surrogate": fair_surrogate(), "solver": "bfd", "workers": 1, **WINDOW}
    return plan(problem, **(arguments | changes))


def assert_served(result: Plan, *, replicas: int) -> None:
    """Assert that the hot adapter has its shares on as many GPUs, the others one home, and the twin accepts all."""
    assert result.verdict == "accepted"
    assert all(gpu.verification is not None and gpu.verification.is_accepted for gpu in result.gpus)
    routes = result.routes()
    assert list(routes.pop("hot").values()) == pytest.approx([1.0 / replicas] * replicas)
    assert sorted(routes) == ["a0", "a1", "a2"]
    assert all(list(weights.values()) == [1.0] for weights in routes.values())
    shares = sorted((entry.replica, entry.adapter) for gpu in result.gpus for entry in gpu.shares)
    assert shares == [(number, "hot") for number in range(1, replicas + 1)]


def test_a_hot_adapter_is_an_error_alone_and_served_on_three_gpus(tmp_path: Path) -> None:
    """What no GPU serves alone is served with a share on each of three, which also serve others."""
    with pytest.raises(InputError, match=r"'hot'.*Replicate") as caught:
        planned(hot_problem(tmp_path))
    assert caught.value.field == "adapters.0.rate_rps"
    assert caught.value.value == HOT_RPS
    assert "--replicas auto" in (caught.value.hint or "")
    result = planned(hot_problem(tmp_path, replication=given_replicas(3)))
    assert_served(result, replicas=3)
    assert result.num_gpus == 3
    hosts = [gpu for gpu in result.gpus if gpu.shares]
    assert sum(gpu.offered_tps for gpu in result.gpus) == pytest.approx(200.0 * (HOT_RPS + 2.1))
    assert all(gpu.verification is not None and gpu.verification.offered_tps > 1400.0 for gpu in hosts)
    assert result.configuration.replication.given[0].replicas == 3


def test_automatic_replicas_are_the_fewest_that_surrogate_and_twin_accept(tmp_path: Path) -> None:
    """Two shares are refused, three accepted; adapters that a GPU serves alone stay whole."""
    problem = hot_problem(tmp_path)
    result = planned(problem, replicas="auto")
    assert_served(result, replicas=3)
    two = divided_problem(problem, equal_shares([2, 1, 1, 1]))
    alone = [GpuAssignment(0, (share,), 1, 16) for share in (0, 1)]
    assert not any(verdict.is_accepted for verdict in verify_gpus(two, alone, **WINDOW))
    assert not result.configuration.replication.given
    assert result.configuration.replication.automatic


@settings(max_examples=15, deadline=None)
@given(
    rates_rps=st.lists(st.floats(0.5, 150.0), min_size=1, max_size=3),
    most=st.integers(1, 20),
    gpus=st.sampled_from([None, 3]),
)
@example(rates_rps=[30.0, 84.0], most=2, gpus=None)
def test_the_number_is_the_least_of_all_that_brute_force_tries(
    rates_rps: list[float], most: int, gpus: int | None
) -> None:
    """Each number of equal shares is tried on a problem of its own; none up to the limits is an error."""
    adapters = [make_adapter(f"a{index}", rate_rps=rate) for index, rate in enumerate(rates_rps)]
    types = (GPU.model_copy(update={"max_count": gpus}),)
    asked = Replication(automatic=(AutomaticRule(max_replicas=most),))
    problem = replace(make_problem(adapters, gpu_types=types), replication=asked)
    limit = most if gpus is None else min(most, gpus)

    def fits(rate_rps: float) -> bool:
        share = make_problem([make_adapter("share", rate_rps=rate_rps)])
        return bool(fits_alone(FeasibilityModel(share, AnalyticSurrogate()), [0]).any())

    least = [next((n for n in range(1, limit + 1) if fits(rate / n)), None) for rate in rates_rps]
    replicas = Replicas(problem, surrogate_of=lambda _: AnalyticSurrogate(), verifier_of=None)
    if None in least:
        with pytest.raises(UnplaceableError, match=f"'a{least.index(None)}'") as caught:
            replicas.find()
        assert caught.value.adapters == tuple(index for index, count in enumerate(least) if count is None)
        # All others have theirs.
        assert [count for count, right in zip(replicas.counts, least, strict=True) if right is not None] == [
            right for right in least if right is not None
        ]
    else:
        replicas.find()
        assert replicas.counts == least


def test_the_twin_has_the_last_word_about_the_number(tmp_path: Path) -> None:
    """A surrogate that accepts everything divides nothing; what the twin rejects is divided until it does not."""
    result = planned(hot_problem(tmp_path), surrogate=HopefulSurrogate(), replicas="auto")
    assert_served(result, replicas=3)
    assert result.repair.twin_calls > len(result.gpus)


def test_replicas_that_are_given_are_not_changed(tmp_path: Path) -> None:
    """Two are too few: that is said about the share, and what `auto` may do about other adapters does not help."""
    problem = hot_problem(tmp_path, replication=given_replicas(2))
    for replicas in ("given", "auto"):
        with pytest.raises(UnplaceableError, match=r"'hot \[\d/2\]'") as caught:
            planned(problem, surrogate=HopefulSurrogate(), replicas=replicas)
        assert caught.value.field == "adapters.0.rate_rps"
        assert "raise its `replicas`" in (caught.value.hint or "")


def test_the_exact_surrogate_simulates_shares(tmp_path: Path) -> None:
    """It is made for the shares; one that was made for whole adapters is refused instead of asked about others."""
    problem = hot_problem(tmp_path)
    result = planned(problem, surrogate="exact", replicas="auto", budget=None, max_evaluations=40)
    assert_served(result, replicas=3)
    own = ExactSurrogate(
        problem.workload, problem.model, problem.gpu_types[0], problem.engine, problem.profiles[0], horizon_s=300.0
    )
    with pytest.raises(SurrogateError, match="made for the shares"):
        planned(problem, surrogate=own, replicas="auto")


def test_adapters_that_fit_are_planned_as_without_replicas(tmp_path: Path) -> None:
    """Asking for replicas where needed changes nothing where none are."""
    problem = small_problem(tmp_path, num_adapters=6, total_rps=8.0)
    without, asked = planned(problem), planned(problem, replicas="auto")
    assert asked.gpus == without.gpus
    assert asked.repair == without.repair
    assert all(gpu.shares == () for gpu in asked.gpus)


def test_more_replicas_than_allowed_is_an_error_with_the_share_that_fits(tmp_path: Path) -> None:
    """The rule's limit and the number of GPUs both hold."""
    few = {"automatic": [{"adapters": ["hot"], "max_replicas": 2}]}
    with pytest.raises(UnplaceableError, match=r"'hot'.*needs more than 2, .*at most \d+% of it fits") as caught:
        planned(hot_problem(tmp_path, replication=few))
    assert caught.value.field == "adapters.0.rate_rps"
    scarce = [small_data()["gpu_types"][0] | {"max_count": 2}]
    with pytest.raises(UnplaceableError, match="needs more than 2"):
        planned(hot_problem(tmp_path, gpu_types=scarce), replicas="auto")


def test_grouped_adapters_are_not_divided(tmp_path: Path) -> None:
    """A group is on one GPU, so that its hot member is an error as before."""
    grouped = {"together": [{"adapters": ["hot", "a0"]}]}
    with pytest.raises(InputError, match="every adapter must fit a GPU alone"):
        planned(hot_problem(tmp_path, constraints=grouped), replicas="auto")


def test_other_systems_rules_refuse_replicas(tmp_path: Path) -> None:
    """They would put all of an adapter on one GPU; who can is named."""
    problem = hot_problem(tmp_path, replication=given_replicas(3))
    with pytest.raises(SolverError, match="`replication`") as caught:
        planned(problem, solver="dlora")
    assert "portfolio" in (caught.value.hint or "")
    with pytest.raises(SolverError, match="`replication`"):
        planned(hot_problem(tmp_path), solver="greedy", replicas="auto")


def test_optimal_is_said_of_given_numbers_only_unless_the_work_bound_proves_it(tmp_path: Path) -> None:
    """An exact solver proves its optimum for three replicas; that three are best nobody has shown."""
    arguments: dict[str, Any] = {"solver": "exact", "improve": False}
    fixed = planned(hot_problem(tmp_path, replication=given_replicas(3)), **arguments)
    assert fixed.num_gpus > fixed.lower_bound.value if fixed.lower_bound else False
    assert fixed.solution == "optimal"
    found = planned(hot_problem(tmp_path), replicas="auto", **arguments)
    assert found.gpus == fixed.gpus
    assert found.solution == "feasible"


def test_the_plan_is_read_back_and_each_gpu_simulated_with_its_share(tmp_path: Path) -> None:
    """From the file alone, the twin says to the digit what planning said."""
    result = planned(hot_problem(tmp_path, replication=given_replicas(3)))
    path = tmp_path / "plan.json"
    save_plan(result, path)
    read = load_plan(path)
    assert read == result
    checked = rechecked(read, path)
    assert [gpu.verification for gpu in checked.gpus] == [gpu.verification for gpu in result.gpus]
    assert checked.warnings == ()


def test_a_plan_without_replicas_is_valid_without_their_fields(tmp_path: Path) -> None:
    """Files of earlier versions are read."""
    result = planned(small_problem(tmp_path, num_adapters=4, total_rps=4.0))
    content = result.model_dump(mode="json")
    for gpu in content["gpus"]:
        assert gpu.pop("shares") == []
    del content["configuration"]["replication"]
    assert Plan.model_validate(content) == result


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(1, 4), min_size=4, max_size=4), seed=st.randoms(use_true_random=False))
def test_a_plan_maps_back_to_the_shares_it_was_made_of(problem: ProblemFromFile, counts: list[int], seed: Any) -> None:
    """Whatever is on which GPU: plan, file and problem agree about each share's traffic."""
    names = [adapter.name for adapter in problem.adapters]
    gpus: list[dict[str, Any]] = [{"name": f"g{index}", "adapters": [], "shares": []} for index in range(max(counts))]
    for name, count in zip(names, counts, strict=True):
        for number, position in enumerate(seed.sample(range(len(gpus)), count), start=1):
            gpus[position]["adapters"].append(name)
            if count > 1:
                gpus[position]["shares"].append({"adapter": name, "share": 1.0 / count, "replica": number})
    made = edited(template(), gpus)
    divided = as_planned(problem, made)
    assert sorted(index for gpu in made.gpus for index in planned_indices(divided, gpu)) == list(range(sum(counts)))
    total = 0.0
    for gpu in made.gpus:
        if gpu.adapters:
            workload, _ = replica_of(divided, gpu)
            shares = {entry.adapter: entry.share for entry in gpu.shares}
            expected = [problem.adapters[names.index(name)].rate_rps * shares.get(name, 1.0) for name in gpu.adapters]
            assert [adapter.rate_rps for adapter in workload.adapters] == expected
            total += sum(expected)
    assert total == pytest.approx(sum(adapter.rate_rps for adapter in problem.adapters))


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> ProblemFromFile:
    """Return the problem of the hot adapter."""
    return hot_problem(tmp_path_factory.mktemp("hot"))


_TEMPLATES: list[Plan] = []


def template() -> Plan:
    """Return a plan of three replicas, made once."""
    assert _TEMPLATES, "the fixture makes it"
    return _TEMPLATES[0]


@pytest.fixture(scope="module", autouse=True)
def _made(problem: ProblemFromFile) -> None:
    """Make the plan that tests edit."""
    _TEMPLATES.append(planned(problem, replicas="auto", verify=False))


def edited(made: Plan, gpus: list[dict[str, Any]]) -> Plan:
    """Return a plan with GPUs that are like its first one but for some fields."""
    first = made.gpus[0].model_dump()
    return Plan.model_validate(made.model_dump() | {"gpus": [first | changes for changes in gpus]})


@pytest.mark.parametrize(
    ("gpus", "text"),
    [
        ([(["hot"], [("hot", 0.5, 1)]), (["hot"], [("hot", 0.4, 2)])], "must add up to 1"),
        ([(["hot"], [("hot", 0.5, 1)]), (["hot"], [("hot", 0.5, 1)])], "must be numbered"),
        ([(["hot"], [("hot", 0.5, 1)]), (["hot"], [("hot", 0.5, 3)])], "must be numbered from 1 on"),
        ([(["hot"], [("hot", 0.5, 1)]), (["hot"], [])], "must be given on each of its GPUs"),
        ([(["a0"], [("hot", 1.0, 1)])], "must be on a GPU that serves it"),
    ],
)
def test_shares_that_do_not_make_an_adapter_are_refused(
    problem: ProblemFromFile, gpus: list[tuple[list[str], list[tuple[str, float, int]]]], text: str
) -> None:
    """A plan that was edited by hand is not verified as something else than it says."""
    changes = [
        {
            "name": f"g{position}",
            "adapters": adapters,
            "shares": [{"adapter": name, "share": share, "replica": number} for name, share, number in shares],
        }
        for position, (adapters, shares) in enumerate(gpus)
    ]
    with pytest.raises(InputError, match=text) as caught:
        as_planned(problem, edited(template(), changes))
    assert (caught.value.field or "").endswith(".shares")


def test_shares_of_any_size_are_simulated_as_they_are(problem: ProblemFromFile) -> None:
    """A router's weights may be edited in the plan."""
    changes = [
        {"name": f"g{number}", "adapters": ["hot"], "shares": [{"adapter": "hot", "share": share, "replica": number}]}
        for number, share in ((1, 0.7), (2, 0.3))
    ]
    made = edited(template(), changes)
    divided = as_planned(problem, made)
    rates = [replica_of(divided, gpu)[0].adapters[0].rate_rps for gpu in made.gpus]
    assert rates == pytest.approx([0.7 * HOT_RPS, 0.3 * HOT_RPS])


def test_the_command_line_solves_tells_verifies_and_simulates(tmp_path: Path) -> None:
    """The option, the text, the file, and what else reads it."""
    path, out = write_problem(tmp_path, small_data(adapters=hot_adapters())), tmp_path / "plan.json"
    common = ["--surrogate", "exact", "--solver", "bfd", "--horizon", "600", "--warmup", "100", "--no-improve"]
    refused = RUNNER.invoke(app, ["solve", str(path), *common], prog_name="placer")
    assert refused.exit_code == 2
    assert "--replicas auto" in refused.stderr
    arguments = ["solve", str(path), *common, "--replicas", "auto", "--output", str(out)]
    result = RUNNER.invoke(app, arguments, prog_name="placer")
    assert result.exit_code == 0, result.stderr
    assert "replicas: hot on 3 GPUs: 33.3% of its requests on" in result.stdout
    content = json.loads(out.read_text(encoding="utf-8"))
    hosts = [gpu for gpu in content["gpus"] if "hot" in gpu["adapters"]]
    assert [gpu["shares"][0]["share"] for gpu in hosts] == pytest.approx([1 / 3] * 3)
    checked = RUNNER.invoke(app, ["verify", str(out)], prog_name="placer")
    assert checked.exit_code == 0, checked.stderr
    assert "on several GPUs" not in checked.stderr
    arguments = ["simulate", str(path), "--plan", str(out), "--gpu", hosts[0]["name"], "--horizon", "600", "--json"]
    simulated = RUNNER.invoke(app, arguments, prog_name="placer")
    assert simulated.exit_code == 0, simulated.stderr
    offered = json.loads(simulated.stdout)["offered_tps"]
    assert offered == pytest.approx(hosts[0]["offered_tps"], rel=0.1)
    unknown = RUNNER.invoke(app, ["solve", str(path), "--replicas", "3"], prog_name="placer")
    assert unknown.exit_code == 2
    assert "`replicas` must be given or auto" in " ".join(unknown.stderr.split())


def test_a_share_is_measured_under_the_adapters_name(problem: ProblemFromFile, tmp_path: Path) -> None:
    """A server knows the adapter, not its shares."""
    path = write_problem(tmp_path, small_data(adapters=hot_adapters()))
    save_plan(template(), tmp_path / "plan.json")
    gpu = next(gpu for gpu in template().gpus if gpu.shares)
    measured = load_measured_workload(path, plan=tmp_path / "plan.json", gpu=gpu.name).workload
    assert tuple(adapter.name for adapter in measured.adapters) == gpu.adapters
    rates = {adapter.name: adapter.rate_rps for adapter in measured.adapters}
    assert rates["hot"] == pytest.approx(problem.adapters[0].rate_rps * gpu.shares[0].share)


def test_fleets_of_one_gpu_type_and_lowest_latency_take_shares(tmp_path: Path) -> None:
    """Solvers that are asked for each GPU type by itself, and under limits that are bisected, see the same shares."""
    gpu = small_data()["gpu_types"][0]
    types = [gpu, gpu | {"name": "cheap", "cost_per_hour": 2.0}]
    problem = hot_problem(tmp_path, gpu_types=types, objective="least_cost", replication=given_replicas(3))
    result = planned(problem, solver="greedy-repaired")
    assert_served(result, replicas=3)
    assert {each.gpu_type for each in result.gpus} == {"cheap"}
    problem = hot_problem(tmp_path, gpu_types=[gpu | {"max_count": 5}], objective="lowest_latency")
    fast = planned(problem, replicas="auto", budget=None, max_evaluations=2_000)
    assert_served(fast, replicas=3)
    assert 3 < fast.num_gpus <= 5


def test_why_not_divides_as_a_plan_would(tmp_path: Path) -> None:
    """Proofs are about the shares that were found, and that is said; of a plan, its own shares are asked about."""
    path = write_problem(tmp_path, small_data(adapters=hot_adapters(), replication={"automatic": [{}]}))
    answer = explain_why_not(question_of(path, surrogate=None), 4, budget_s=None, surrogate=fair_surrogate())
    assert answer.answer == "possible"
    assert "hot 3" in " ".join(answer.warnings)
    assert sorted(name for gpu in answer.placement for name in gpu.adapters)[3:] == [
        "hot [1/3]",
        "hot [2/3]",
        "hot [3/3]",
    ]
    assert [part.name for part in answer.work.adapters].count("hot") == 1
    made = planned(load_problem(path), verify=False)
    save_plan(made, tmp_path / "plan.json")
    question = question_of(tmp_path / "plan.json", surrogate=None)
    refused = explain_why_not(question, 3, budget_s=None, max_evaluations=3_000, surrogate=fair_surrogate())
    assert refused.answer == "impossible"
    assert refused.proof is not None
    assert refused.proof.model == "surrogate"
    assert "Only the work bound is about all numbers" in " ".join(refused.warnings)
    few = write_problem(tmp_path, small_data(adapters=hot_adapters(), replication={"automatic": [{"max_replicas": 2}]}))
    unplaceable = explain_why_not(question_of(few, surrogate=None), 3, budget_s=None, surrogate=fair_surrogate())
    assert [entry.name for entry in unplaceable.unplaceable] == ["hot"]


def test_a_plan_with_other_numbers_than_its_problem_is_noticed(tmp_path: Path) -> None:
    """The problem was changed after the plan was made."""
    made = planned(hot_problem(tmp_path, replication=given_replicas(3)), verify=False)
    path = tmp_path / "plan.json"
    save_plan(made, path)
    hot_problem(tmp_path, replication=given_replicas(4))
    result = RUNNER.invoke(
        app,
        ["verify", str(path), "--problem", str(tmp_path / "problem.yaml"), "--gpu", made.gpus[0].name],
        prog_name="placer",
    )
    assert "'hot' must have 4 replicas. It has 3." in " ".join(result.stderr.split())


@pytest.mark.parametrize("is_in_file", [True, False])
def test_numbers_that_were_found_break_nothing(tmp_path: Path, *, is_in_file: bool) -> None:
    """Neither by a rule of the file, nor where the command asked for them; more than a rule allows is noticed."""
    rule = {"automatic": [{"adapters": ["hot"], "max_replicas": 4}]}
    problem = hot_problem(tmp_path, replication=rule if is_in_file else {})
    made = planned(problem, replicas="given" if is_in_file else "auto", verify=False)
    assert len(made.routes()["hot"]) == 3
    assert broken_replication(made, as_planned(problem, made)) == []
    few = hot_problem(tmp_path, replication={"automatic": [{"adapters": ["hot"], "max_replicas": 2}]})
    (warning,) = broken_replication(made, as_planned(few, made))
    assert "'hot' must have at most 2 replicas. It has 3." in warning


def test_the_same_shares_again_move_nothing(tmp_path: Path) -> None:
    """A plan that is in place stays as it is, whichever share is where; nothing is loaded."""
    problem = hot_problem(tmp_path, replication=given_replicas(3))
    first = planned(problem)
    again = planned(problem, current=first)
    assert again.moves is not None
    assert (again.moves.num_placed, again.moves.num_moved, again.moves.num_new) == (6, 0, 0)
    assert again.moves.loaded_mib == 0.0
    assert {gpu.current for gpu in again.gpus} == {gpu.name for gpu in first.gpus}


@pytest.mark.parametrize(("before", "after", "num_new"), [(2, 3, 1), (3, 4, 1), (4, 3, 0)])
def test_another_number_of_replicas_loads_only_what_is_missing(
    tmp_path: Path, before: int, after: int, num_new: int
) -> None:
    """Each further copy is loaded once; copies that are given back are no moves."""
    rates = {"hot_rps": 1.7 * GPU_RPS}
    first = planned(hot_problem(tmp_path, replication=given_replicas(before), **rates))
    problem = hot_problem(tmp_path, replication=given_replicas(after), **rates)
    made = planned(problem, current=first)
    assert made.verdict == "accepted"
    assert made.moves is not None
    assert made.moves.num_new == num_new
    assert made.moves.num_placed == 3 + min(before, after)
    free = planned(problem, current=first, secondary=[])
    assert free.moves is not None
    assert made.moves.num_moved <= free.moves.num_moved


@given(data=st.data())
def test_copies_that_stay_are_as_many_as_a_brute_force_over_names_finds(data: st.DataObject) -> None:
    """Whichever GPU stands for which of now, no more copies of adapters can stay where they are."""
    counts = tuple(data.draw(st.lists(st.integers(1, 3), min_size=2, max_size=4)))
    adapters = [make_adapter(f"a{index}", rate_rps=0.1) for index in range(len(counts))]
    problem = divided_problem(make_problem(adapters), equal_shares(counts))
    assert problem.shares is not None
    num_gpus = data.draw(st.integers(max(counts), 4))
    on_gpus: list[list[int]] = [[] for _ in range(num_gpus)]
    for adapter in range(len(counts)):
        chosen = data.draw(st.permutations(range(num_gpus)))
        for share, gpu in zip(problem.shares.indices_of(adapter), chosen, strict=False):
            on_gpus[gpu].append(share)
    gpus = tuple(GpuAssignment(0, tuple(sorted(own)), len(own), 16) for own in on_gpus if own)
    names = st.lists(st.sampled_from([*(adapter.name for adapter in adapters), "gone"]), unique=True)
    now = data.draw(st.lists(names, min_size=0, max_size=4))
    current = tuple(CurrentGpu(gpu_type=GPU.name, adapters=tuple(own)) for own in now)
    moves = moves_of(replace(problem, current=current), gpus)
    wanted = [{problem.told_name(share) for share in gpu.adapters} for gpu in gpus]
    stand_ins = [*map(set, now), *([set()] * len(gpus))]
    staying = max(
        sum(len(own & before) for own, before in zip(wanted, chosen, strict=True))
        for chosen in permutations(stand_ins, len(gpus))
    )
    placed = sum(min(count, sum(f"a{index}" in own for own in now)) for index, count in enumerate(counts))
    assert moves.num_placed == placed
    assert moves.num_moved == placed - staying
    assert moves.num_new == sum(counts) - placed
    sizes = slot_bytes(problem.model, adapters[0].rank)
    assert moves.loaded_bytes == (sum(counts) - staying) * sizes


def test_a_replayed_trace_is_divided(tmp_path: Path) -> None:
    """Each request of the hot adapter goes to one replica, and the plan's GPUs get what the router draws for them."""
    rows = ["time,prompt,output,adapter"]
    rows += [f"{index * 0.05:.3f},100,100,{'hot' if index % 12 else 'cold'}" for index in range(14_000)]
    (tmp_path / "trace.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    columns = {"time": "time", "prompt": "prompt", "output": "output", "adapter": "adapter"}
    data = small_data(
        trace={
            "file": "trace.csv",
            "format": "csv",
            "columns": columns,
            "replay": True,
            "adapters": {"popularity": "given", "ranks": [8]},
        }
    )
    del data["adapters"]
    path = write_problem(tmp_path, data)
    traced = load_problem(path)
    assert traced.workload.trace is not None
    result = planned(traced, replicas="auto")
    assert result.verdict == "accepted"
    divided = as_planned(traced, result)
    sent = [replica_of(divided, gpu)[0].trace for gpu in result.gpus]
    assert sum(len(trace) for trace in sent if trace is not None) == 14_000
    assert len(result.routes()["hot"]) == 3


def test_what_is_asked_of_the_twin_is_the_thinned_traffic(tmp_path: Path) -> None:
    """A bursty adapter's share is less bursty, and that is what a GPU is simulated with."""
    problem = hot_problem(tmp_path, adapters=hot_adapters(gap_cv=2.0))
    divided = divided_problem(replace(problem), equal_shares([3, 1, 1, 1]))
    share = divided.traffic_of((0, 3)).adapters[0]
    assert share.name == "hot [1/3]"
    assert share.gap_cv == pytest.approx(2.0**0.5)
