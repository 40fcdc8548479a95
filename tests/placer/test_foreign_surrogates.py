"""Plans with surrogates that others made: a bad one costs GPUs or ends in a clear error, never in a wrong plan."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from placer.cli.application import app
from placer.files import load_problem
from placer.plan_document import Plan
from placer.planning import plan
from solvers.registry import solver_entries
from tests.placer.small_fleets import PROFILE, small_data, write_problem
from tests.predictors.handmade import capacity_model, metadata, save
from twin.errors import InputError, SurrogateError

NOTHING = "nothing = Sub (offered, offered)\n"
STARVED = {
    "throughput_ratio": f"{NOTHING} throughput_ratio = Add (nothing, hundredth)",
    "starvation_probability": "starvation_probability = Add (nothing, one)",
    "throughput_tps": "throughput_tps = Mul (throughput_ratio, offered)",
}
SERVED = {
    "throughput_ratio": f"{NOTHING} throughput_ratio = Add (nothing, one)",
    "starvation_probability": "starvation_probability = Identity (nothing)",
    "throughput_tps": "throughput_tps = Identity (offered)",
}
# More than ten requests/s: not a number.
NAN = {"ttft_s": "left = Sub (ten, rate)\n ttft_s = Sqrt (left)"}
AVAILABLE = [entry.name for entry in solver_entries() if entry.availability().is_available]
# Solvers with limits of their own beside the surrogate, and which.
OWN_LIMITS = {"punica": "running requests beyond `max_num_seqs` would queue"}
RUNNER = CliRunner()


def _file(folder: Path, statements: dict[str, str], **bounds: list[float]) -> Path:
    values: dict[str, Any] = {**metadata(), "profile": {"name": PROFILE}}
    values["domain"]["features"].update(bounds)
    return save(capacity_model(statements=statements), folder / "mine.onnx", values)


def _problem(folder: Path, **changes: Any) -> Path:
    return write_problem(folder, small_data(**changes))


def _plan_or_error(problem: Path, surrogate: Path, *, solver: str = "bfd") -> Plan | SurrogateError:
    try:
        return plan(load_problem(problem), solver=solver, surrogate=surrogate)
    except SurrogateError as error:
        return error


def _run(*arguments: str | Path) -> tuple[int, str, str]:
    """Run a command; return exit code, standard output and standard error."""
    result = RUNNER.invoke(app, [str(argument) for argument in arguments], prog_name="placer")
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("solver", AVAILABLE)
def test_a_model_that_refuses_everything_proves_nothing(tmp_path: Path, solver: str) -> None:
    """There is no placement under it, and the answer blames the model or claims no proof: the twin could place all."""
    outcome = _plan_or_error(_problem(tmp_path), _file(tmp_path, STARVED), solver=solver)
    if isinstance(outcome, SurrogateError):
        assert "which the twin accepts" in outcome.message
        assert "exact" in str(outcome.hint)
    else:
        assert (outcome.verdict, outcome.solution, outcome.num_gpus) == ("none", "none", 0)
        assert outcome.termination != "proven"


def test_a_model_that_refuses_everything_is_bad_input(tmp_path: Path) -> None:
    """Exit code 2, not 3 (proven infeasible), with the adapter and what else can be asked."""
    code, output, errors = _run("solve", _problem(tmp_path), "--surrogate", _file(tmp_path, STARVED))
    assert (code, output) == (2, "")
    assert "'a0', which the twin accepts" in errors
    assert "`exact`" in errors


def test_a_model_that_refuses_everything_is_not_blamed_for_what_nobody_serves(tmp_path: Path) -> None:
    """An adapter that the twin rejects alone, too, is the problem's fault."""
    data = small_data()
    data["adapters"][0]["rate_rps"] = 25.0
    with pytest.raises(InputError, match="'a0'"):
        plan(load_problem(write_problem(tmp_path, data)), surrogate=_file(tmp_path, STARVED))


@pytest.mark.parametrize("solver", AVAILABLE)
def test_a_model_that_accepts_everything_is_corrected_by_the_twin(tmp_path: Path, solver: str) -> None:
    """Its placement is one GPU; the plan has what the twin accepts, and each GPU was simulated."""
    result = plan(load_problem(_problem(tmp_path)), solver=solver, surrogate=_file(tmp_path, SERVED))
    assert (result.verdict, result.num_gpus) == ("accepted", 2)
    assert result.repair.rejected_at_first == (0 if solver in OWN_LIMITS else 1)
    assert all(gpu.verification is not None and gpu.verification.verdict == "accepted" for gpu in result.gpus)


def test_a_model_that_accepts_everything_cannot_hide_that_gpus_are_missing(tmp_path: Path) -> None:
    """Where the twin accepts no repair within `max_count`, the plan is rejected: exit code 5, and the plan says so."""
    gpu = {"name": "h100-64gb", "memory_gib": 63.43, "cost_per_hour": 3.0, "profile": PROFILE, "max_count": 2}
    problem = _problem(tmp_path, num_adapters=24, total_rps=21.0, gpu_types=[gpu])
    code, output, errors = _run("solve", problem, "--surrogate", _file(tmp_path, SERVED), "--json")
    result = Plan.model_validate_json(output)
    assert (code, result.verdict) == (5, "rejected")
    assert any(gpu.verification is not None and gpu.verification.reasons for gpu in result.gpus)
    assert "the twin rejects the plan" in errors


def test_a_model_without_a_number_is_named(tmp_path: Path) -> None:
    """Inside its domain it promised one: exit code 2, file and output in the message, no plan."""
    file = _file(tmp_path, NAN)
    with pytest.raises(SurrogateError, match="nan for `ttft_s`") as caught:
        plan(load_problem(_problem(tmp_path)), surrogate=file)
    assert (caught.value.file, caught.value.field) == (str(file), "ttft_s")
    code, output, errors = _run("solve", _problem(tmp_path), "--surrogate", file)
    assert (code, output) == (2, "")
    assert f"{file} gives nan for `ttft_s`" in errors
    assert "placer surrogate" in errors


def test_a_model_without_numbers_outside_of_its_domain_still_plans(tmp_path: Path) -> None:
    """Such sets count as refused, so that the plan consists of others."""
    result = plan(load_problem(_problem(tmp_path)), surrogate=_file(tmp_path, NAN, sum_rate_rps=[0.0, 10.0]))
    assert result.verdict == "accepted"
    assert not any(gpu.predicted.is_outside_domain for gpu in result.gpus)


@pytest.mark.parametrize(("highest", "expected"), [(0.502, Plan), (0.6, SurrogateError)])
def test_a_model_that_guesses_gives_no_wrong_plan(tmp_path: Path, highest: float, expected: type) -> None:
    """Whatever it says, what is reported as accepted was simulated and accepted."""
    problem = _problem(tmp_path, num_adapters=40)
    guess = f"starvation_probability = RandomUniformLike <high = {highest}, seed = 3.0> (offered)"
    outcome = _plan_or_error(problem, _file(tmp_path, {"starvation_probability": guess}))
    assert isinstance(outcome, expected)
    if isinstance(outcome, SurrogateError):
        assert "which the twin accepts" in outcome.message
    else:
        placed = sorted(name for gpu in outcome.gpus for name in gpu.adapters)
        assert placed == sorted(adapter.name for adapter in load_problem(problem).adapters)
        verdicts = {gpu.verification.verdict for gpu in outcome.gpus if gpu.verification is not None}
        assert (outcome.verdict == "accepted") == (verdicts == {"accepted"})


def test_the_command_tells_every_check(tmp_path: Path) -> None:
    """A right file: exit code 0, every check on standard output, the latency, nothing on standard error."""
    file = _file(tmp_path, {})
    code, output, errors = _run("surrogate", file)
    assert (code, errors) == (0, "")
    for text in ("metadata_keys", "finite_inside", "hull_rule", "warning", "us for one row"):
        assert text in output
    assert "profile_match" not in output
    assert "no profile was given" in _run("surrogate", file, "-v")[1]


def test_the_command_refuses_a_wrong_file(tmp_path: Path) -> None:
    """Exit code 2; what fails is named on standard error, and told on standard output, also as JSON."""
    file = _file(tmp_path, NAN)
    code, output, errors = _run("surrogate", file, "--profile", "qwen2.5-7b-h100-64gb")
    assert code == 2
    assert re.search(r"fails 2 of \d+ checks: profile_match, finite_inside", errors)
    assert "`ttft_s` must be a finite number" in output
    code, output, _ = _run("surrogate", file, "--json")
    content = json.loads(output)
    assert (code, content["is_ok"], content["subject"]) == (2, False, str(file))
    assert {check["outcome"] for check in content["checks"] if check["name"] == "finite_inside"} == {"failed"}


def test_the_command_refuses_what_is_no_file(tmp_path: Path) -> None:
    """A mistyped path is bad input, not a bug."""
    code, output, errors = _run("surrogate", tmp_path / "none.onnx")
    assert code == 2
    assert "must be a readable ONNX file" in output
    assert re.search(r"none\.onnx fails 1 of \d+ checks: file", errors)


def test_checking_loads_no_more_than_it_needs() -> None:
    """A test suite of somebody's that imports the check waits neither for the runtime nor for what trains models."""
    script = "import json, sys, placer.testing; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert {"onnx", "onnxruntime", "pandas", "numba", "sklearn", "torch"} & set(json.loads(run.stdout)) == set()
