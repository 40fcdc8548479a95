"""GPUs near a limit are looked at twice; a verdict that is a matter of chance is flagged, and nothing else changes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from placer.cli.application import app
from placer.events import GpuAssessed, PlanEvent, ignore
from placer.files import ProblemFromFile, load_plan, save_plan
from placer.judge import judge_report
from placer.plan_document import Plan, Verification, plan_schema
from placer.planning import plan
from placer.stability import GpuQuestion, assess_gpu
from placer.verify import TwinSettings, TwinVerifier, check_replicas, verify_gpus, verify_replica
from solvers.placement import GpuAssignment
from tests.placer.small_fleets import HopefulSurrogate, small_data, small_problem, write_problem
from twin.report import SimulationReport
from twin.simulate import simulate
from twin.workload import Workload

WINDOW: dict[str, Any] = {"horizon_s": 600.0, "warmup_s": 100.0}
# Forty adapters behind three slots: which of them wait too long depends on the arrivals.
METASTABLE: dict[str, Any] = {
    "num_adapters": 40,
    "total_rps": 7.0,
    "engine": {"max_num_seqs": 16, "max_num_batched_tokens": 2048, "gpu_memory_utilization": 0.9, "max_loras": 3},
}
EVERYTHING = GpuAssignment(0, tuple(range(40)), 3, 16)
LIGHT = GpuAssignment(0, (1, 3), 2, 16)


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> ProblemFromFile:
    """Return a problem whose single GPU is accepted with seed 0 and rejected with another."""
    return small_problem(tmp_path_factory.mktemp("problem"), **METASTABLE)


@pytest.fixture(scope="module")
def metastable_plan(problem: ProblemFromFile) -> Plan:
    """Return the plan of that GPU."""
    return plan(problem, surrogate=HopefulSurrogate(), **WINDOW)


def _run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="placer")
    return result.exit_code, result.stdout, result.stderr


def _with_seed(problem: ProblemFromFile, gpu: GpuAssignment, seed: int) -> Verification:
    """Return the verdict about a GPU with one seed, alone."""
    return TwinVerifier(problem, TwinSettings(seed=seed, **WINDOW)).verify([gpu])[0]


def test_a_gpu_that_other_seeds_reject_is_flagged(problem: ProblemFromFile) -> None:
    """It stays accepted, by its own seed; which others reject it, and why, is what they say alone."""
    (verdict,) = verify_gpus(problem, [EVERYTHING], **WINDOW)
    alone = [_with_seed(problem, EVERYTHING, seed) for seed in range(4)]
    rejected = [entry for entry in alone if not entry.is_accepted]
    assert verdict.model_copy(update={"stability": None}) == alone[0]
    assert (verdict.is_accepted, verdict.is_metastable) == (True, True)
    stability = verdict.stability
    assert stability is not None
    assert stability.rejected_seeds == tuple(entry.seed for entry in rejected)
    first = rejected[0]
    detail = f"with seed {first.seed}, {'; '.join(first.reasons)}"
    assert stability.reasons[0] == f"rejected with {len(rejected)} of 4 seeds: {detail}"
    assert stability.report is not None
    assert [run.throughput_ratio for run in stability.report.runs] == [entry.throughput_ratio for entry in alone]


def test_a_gpu_far_from_its_limits_is_not_simulated_again(tmp_path: Path) -> None:
    """Nor is one that is rejected anyway; one in between is, and may turn out to be stable."""
    events: list[PlanEvent] = []
    problem = small_problem(tmp_path)
    light, middling, overloaded = verify_gpus(
        problem,
        [LIGHT, GpuAssignment(0, (0, 1, 2), 3, 16), GpuAssignment(0, tuple(range(12)), 12, 16)],
        **WINDOW,
        observer=events.append,
    )
    assert (light.near_limits, light.stability) == ((), None)
    assert (overloaded.verdict, overloaded.near_limits, overloaded.stability) == ("rejected", (), None)
    assert middling.stability is not None
    assert (middling.near_limits, middling.is_metastable, middling.stability.reasons) == (("queue",), False, ())
    assert [event for event in events if isinstance(event, GpuAssessed)] == [
        GpuAssessed(is_metastable=False, done=1, total=1)
    ]


@pytest.mark.parametrize(
    ("changes", "num_slots", "near"),
    [
        pytest.param({}, 4, (), id="nothing"),
        pytest.param({"throughput_ratio": 0.94, "requests_overdue": 1}, 4, ("throughput",), id="throughput"),
        pytest.param({"throughput_ratio": 0.94}, 4, (), id="nothing overdue"),
        pytest.param({"throughput_ratio": 0.89, "requests_overdue": 1, "is_starved": True}, 4, (), id="rejected"),
        pytest.param({"waiting_mean": 0.2}, 4, ("queue",), id="queue"),
        pytest.param({"kv_usage_max": 0.95}, 4, ("KV cache",), id="KV cache"),
        pytest.param({"completed_rps": 0.0}, 1, (), id="nothing completed"),
        pytest.param({}, 1, ("slots",), id="slots"),
        pytest.param({}, 2, (), id="as many slots as adapters"),
        pytest.param({}, 0, (), id="no slots"),
    ],
)
def test_what_an_accepted_gpu_is_near(
    tmp_path: Path, changes: dict[str, float], num_slots: int, near: tuple[str, ...]
) -> None:
    """Two adapters of 2.6 requests/s together, far from every limit but for one."""
    problem = small_problem(tmp_path)
    replica = problem.replica(0, 2, 16, 2)
    report = simulate(problem.workload.subset([1, 3]), replica, horizon_s=300.0, warmup_s=60.0)
    verdict = judge_report(report.model_copy(update=changes), problem.limits, num_slots=num_slots)
    assert verdict.near_limits == near


def test_what_was_simulated_is_not_simulated_again(problem: ProblemFromFile) -> None:
    """A verdict with the outcome of its run leads to the same as one without."""
    workload, replica = problem.traffic_of(EVERYTHING.adapters), problem.replica(0, 3, 16, 40)
    settings = TwinSettings(**WINDOW)
    ((_, checked),) = check_replicas([(workload, replica)], [problem.limits], settings, observer=ignore)
    assert checked.outcome is not None
    question = GpuQuestion(workload, replica, problem.limits, checked.verification)
    assert assess_gpu(replace(question, outcome=checked.outcome)) == assess_gpu(question)


def test_latency_limits_flip_like_starvation(tmp_path: Path) -> None:
    """With a limit just above what the first seed has, seeds that have more reject the GPU."""
    free = small_problem(tmp_path)
    values_s = [_with_seed(free, LIGHT, seed).itl_p95_s or 0.0 for seed in range(4)]
    limit_ms = values_s[0] * 1000.0 * 1.0001
    above = tuple(seed for seed, value_s in enumerate(values_s) if value_s * 1000.0 > limit_ms)
    assert above
    limits = {"starvation_tolerance": 0.1, "itl_p95_ms": limit_ms}
    (verdict,) = verify_gpus(small_problem(tmp_path, limits=limits), [LIGHT], **WINDOW)
    assert (verdict.verdict, verdict.near_limits) == ("accepted", ("latency",))
    assert verdict.stability is not None
    assert verdict.stability.rejected_seeds == above
    assert "ITL p95" in verdict.stability.reasons[0]


def test_requests_of_another_seed_may_be_more_than_the_replica_takes(problem: ProblemFromFile) -> None:
    """A longer prompt than `max_model_len` comes with some seeds only: flagged, and no reason to lose the plan."""
    adapter = problem.adapters[0]
    varied = adapter.model_copy(update={"prompt_tokens": adapter.prompt_tokens.model_copy(update={"std": 100.0})})
    workload = Workload((varied,))
    longest = [int(workload.requests(horizon_s=600.0, seed=seed).prompt_tokens.max()) for seed in range(30)]
    seed = next(seed for seed in range(27) if longest[seed] < max(longest[seed + 1 : seed + 4]))
    replica = problem.replica(0, 1, 16, 1)
    engine = replica.engine.model_copy(update={"max_model_len": longest[seed] + 1})
    replica = replace(replica, engine=engine)
    first = verify_replica(workload, replica, problem.limits, TwinSettings(seed=seed, **WINDOW))
    stability = assess_gpu(GpuQuestion(workload, replica, problem.limits, first))
    assert (stability.is_metastable, stability.report) == (True, None)
    assert "prompts must be shorter" in stability.reasons[0]


def test_a_metastable_plan_is_accepted_with_a_warning(metastable_plan: Plan) -> None:
    """The warning names the GPU, the share of seeds and what to do."""
    (gpu,) = metastable_plan.gpus
    assert (metastable_plan.verdict, gpu.verification is not None) == ("accepted", True)
    assert gpu.verification is not None
    assert gpu.verification.stability is not None
    flagged = [warning for warning in metastable_plan.warnings if "metastable" in warning]
    assert flagged[0] == f"{gpu.name} is metastable: {'; '.join(gpu.verification.stability.reasons)}."
    assert "of 4 seeds" in flagged[0]
    assert "--margin 0.1" in flagged[1]
    assert metastable_plan.repair.twin_calls == 1


def test_without_a_second_look_a_plan_is_the_same_and_says_so(problem: ProblemFromFile, metastable_plan: Plan) -> None:
    """Only what the further seeds said is missing; the warning names what makes up for it."""
    seen: list[PlanEvent] = []
    quick = plan(problem, surrogate=HopefulSurrogate(), confirm=False, observer=seen.append, **WINDOW)
    (gpu,), (looked_at,) = quick.gpus, metastable_plan.gpus
    assert not [event for event in seen if isinstance(event, GpuAssessed)]
    assert looked_at.verification is not None
    assert gpu.verification == looked_at.verification.model_copy(update={"stability": None})
    assert (gpu.adapters, gpu.engine, quick.verdict) == (looked_at.adapters, looked_at.engine, "accepted")
    (told,) = [warning for warning in quick.warnings if "with one seed only" in warning]
    assert told.startswith("1 of 1 GPUs are near a limit")
    assert "`placer verify`" in told
    assert not [warning for warning in metastable_plan.warnings if "with one seed only" in warning]


def test_verify_makes_up_for_the_second_look(tmp_path: Path) -> None:
    """A plan that was made without it, and then verified, knows as much as one that was made with it."""
    path = write_problem(tmp_path, small_data(**METASTABLE))
    quick = tmp_path / "plan.json"
    code, _, _ = _run("solve", path, "--no-confirm", "--horizon", "600", "--warmup", "100", "-o", quick)
    assert code == 0
    verification = load_plan(quick).gpus[0].verification
    assert verification is not None
    assert (verification.near_limits, verification.stability) == (("queue", "slots"), None)
    _, output, _ = _run("verify", quick, "--json")
    assert json.loads(output)["gpus"][0]["verification"]["stability"] is not None


def test_the_number_of_workers_does_not_change_what_is_flagged(problem: ProblemFromFile, metastable_plan: Plan) -> None:
    """Seeds are simulated in any order."""
    again = plan(problem, surrogate=HopefulSurrogate(), workers=1, **WINDOW)
    assert again.comparable() == metastable_plan.comparable()


def test_ctrl_c_while_gpus_are_looked_at_twice_keeps_the_plan(problem: ProblemFromFile) -> None:
    """Everything was placed and simulated by then."""

    def interrupt(event: PlanEvent) -> None:
        if isinstance(event, GpuAssessed):
            raise KeyboardInterrupt

    result = plan(problem, surrogate=HopefulSurrogate(), observer=interrupt, **WINDOW)
    assert (result.termination, result.verdict) == ("interrupted", "accepted")


def test_a_plan_without_the_question_can_be_read(tmp_path: Path, metastable_plan: Plan) -> None:
    """Not every plan was looked at twice."""
    path = tmp_path / "plan.json"
    save_plan(metastable_plan, path)
    content = json.loads(path.read_text(encoding="utf-8"))
    for key in ("near_limits", "stability"):
        del content["gpus"][0]["verification"][key]
    path.write_text(json.dumps(content), encoding="utf-8")
    (gpu,) = load_plan(path).gpus
    assert gpu.verification is not None
    assert (gpu.verification.stability, gpu.verification.is_metastable) == (None, False)
    assert {"Stability", "StabilityReport", "SeedOutcome"} <= set(plan_schema()["$defs"])


def test_verify_shows_what_is_metastable(tmp_path: Path, metastable_plan: Plan) -> None:
    """Exit code 0 as before, a word in the table, warnings on standard error, and the same in JSON."""
    write_problem(tmp_path, small_data(**METASTABLE))
    path = tmp_path / "plan.json"
    save_plan(metastable_plan, path)
    code, output, errors = _run("verify", path)
    assert code == 0
    assert "accepted, metastable" in output
    assert "warning: h100-64gb-0 is metastable: rejected with" in errors
    _, output, _ = _run("verify", path, "--json")
    (gpu,) = json.loads(output)["gpus"]
    assert metastable_plan.gpus[0].verification is not None
    assert gpu["verification"] == metastable_plan.gpus[0].verification.model_dump(mode="json")


def test_solve_shows_what_is_metastable(tmp_path: Path) -> None:
    """The table, a line below it, and warnings; a plan is a plan."""
    path = write_problem(tmp_path, small_data(**METASTABLE | {"num_adapters": 8, "total_rps": 5.0}))
    code, output, _ = _run("solve", path, "--horizon", "600", "--warmup", "100")
    assert code == 0
    assert "simulated with other seeds and after a backlog, " in output


def test_simulate_with_several_seeds(tmp_path: Path) -> None:
    """A row per seed and one after a backlog; without the option, one run and no word about it."""
    path = write_problem(tmp_path, small_data(num_adapters=4, total_rps=4.0))
    arguments = ("simulate", path, "--horizon", "120", "--seed", "5")
    code, output, _ = _run(*arguments, "--seeds", "2")
    assert code == 0
    for text in ("seed 5 ", "seed 6 ", "after 12 s of backlog", "stable: all runs say the same", "seeds vary arrivals"):
        assert text in output
    _, single, _ = _run(*arguments)
    assert output.startswith(single)
    assert "stable" not in single
    report = SimulationReport.model_validate_json(_run(*arguments, "--seeds", "2", "--json")[1])
    assert report.stability is not None
    assert (report.seed, report.stability.seeds) == (5, (5, 6))
    assert SimulationReport.model_validate_json(_run(*arguments, "--json")[1]) == report.model_copy(
        update={"stability": None}
    )
