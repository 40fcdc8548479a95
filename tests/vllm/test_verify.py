"""`placer verify` and `placer simulate` with vLLM's own scheduler, on the plan of the shipped example."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import placer
from placer.cli.application import app
from placer.files import load_problem, save_plan
from twin.report import SimulationReport

pytestmark = pytest.mark.usefixtures("python")

EXAMPLE = Path(__file__).parents[2] / "examples" / "azure-llama-400.yaml"
RUNNER = CliRunner()
# Simulated seconds per GPU: vLLM takes about a second of CPU time for 10 to 25 of them.
WINDOW_S = 20


def _run(*arguments: object) -> tuple[int, str, str]:
    """Run a command; return exit code, standard output and standard error."""
    result = RUNNER.invoke(app, [str(argument) for argument in arguments], prog_name="placer")
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def plan_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the plan of the example."""
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    save_plan(placer.plan(load_problem(EXAMPLE)), path)
    return path


def test_vllms_scheduler_agrees_with_the_fast_engine_on_every_gpu_of_the_example(plan_path: Path) -> None:
    """Requests served, steps and all that is recorded; and the speed of both is printed."""
    window = ("--engine", "vllm", "--horizon", WINDOW_S, "--problem", EXAMPLE)
    _, output, errors = _run("verify", plan_path, *window, "--json")
    gpus = json.loads(output)["gpus"]
    assert len(gpus) >= 7
    for gpu in gpus:
        agreement = gpu["agreement"]
        assert agreement["is_same"], agreement["differences"]
        assert 0 < agreement["checked"]["served_requests"] == agreement["fast"]["served_requests"]
        assert 0 < agreement["checked"]["num_steps"] == agreement["fast"]["num_steps"]
    assert "does not simulate" not in errors
    _, output, _ = _run("verify", plan_path, *window, "--gpu", gpus[0]["name"])
    assert "vllm simulates " in output
    assert "times as many." in output


def test_a_simulation_by_vllm_reports_what_the_fast_engine_reports(plan_path: Path) -> None:
    """The whole report of one GPU, but for the engine's name."""
    arguments = ("--plan", plan_path, "--gpu", "h100-64gb-6", "--horizon", WINDOW_S, "--interval", 1, "--json")
    reports = []
    for engine in ("vllm", "fast"):
        code, output, _ = _run("simulate", EXAMPLE, *arguments, "--engine", engine)
        assert code == 0
        reports.append(SimulationReport.model_validate(json.loads(output)))
    assert reports[0].engine == "vllm"
    assert reports[0].model_copy(update={"engine": "fast"}) == reports[1]
