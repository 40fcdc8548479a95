"""`placer verify --horizon`: which window was simulated, why it is another than was asked for, and what it shows."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from placer.cli.application import app
from placer.files import load_problem, save_plan
from placer.plan_document import Verification
from placer.planning import plan
from placer.verify_notes import window_notes
from tests.placer.small_fleets import small_data, write_problem
from tests.solvers.analytic import AnalyticSurrogate


def _run(*arguments: object) -> tuple[int, str, str]:
    """Run a command; return exit code, standard output and standard error."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="placer")
    return result.exit_code, result.stdout, result.stderr


def _planned(folder: Path, *, output_tokens: int = 100, max_num_seqs: int = 16) -> Path:
    """Return an accepted plan of two adapters that ask for 4 requests/s."""
    data = small_data(num_adapters=2, total_rps=4.0)
    data["engine"] |= {"max_num_seqs": max_num_seqs}
    data["adapters"] = [entry | {"output_tokens": {"mean": output_tokens}} for entry in data["adapters"]]
    problem = load_problem(write_problem(folder, data))
    save_plan(plan(problem, surrogate=AnalyticSurrogate(speed=10.0), verify=False), folder / "plan.json")
    return folder / "plan.json"


def test_the_window_that_was_simulated_is_said(tmp_path: Path) -> None:
    """By default it is the plan's; both formats say it."""
    path = _planned(tmp_path)
    code, output, _ = _run("verify", path)
    assert code == 0
    assert "window: 1800 s (300 s of it warm-up)" in output.splitlines()
    code, output, _ = _run("verify", path, "--horizon", "600", "--json")
    assert json.loads(output)["notes"] == ["window: 600 s (100 s of it warm-up)"]


def test_a_window_in_which_few_requests_arrive_is_lengthened_and_says_why(tmp_path: Path) -> None:
    """Of the 5 s that were asked for, a sixth is warm-up; 200 requests take 50 s more at 4 requests/s."""
    code, output, _ = _run("verify", _planned(tmp_path), "--horizon", "5")
    assert code == 0
    (line,) = (line for line in output.splitlines() if line.startswith("window"))
    assert line.startswith(
        "window of h100-64gb-0: 50.8 s (0.833 s of it warm-up) instead of 5 s, so that 200 requests are expected"
    )


def test_a_low_ratio_that_is_accepted_is_explained(tmp_path: Path) -> None:
    """In a window about as long as a request, few complete, though none waits."""
    path = _planned(tmp_path, output_tokens=2000, max_num_seqs=256)
    code, output, _ = _run("verify", path, "--horizon", "0.5", "--json")
    content = json.loads(output)
    (gpu,) = content["gpus"]
    assert (code, gpu["verification"]["verdict"]) == (0, "accepted")
    assert gpu["verification"]["throughput_ratio"] < 0.9
    assert content["notes"][-1].startswith("ratio of h100-64gb-0: below 0.9, and accepted: no request ")
    assert content["notes"][-1] in _run("verify", path, "--horizon", "0.5")[1].splitlines()


@pytest.mark.parametrize("horizon", ["-3", "0", "nan", "-0.5"])
def test_a_horizon_that_is_no_time_is_refused_by_name(tmp_path: Path, horizon: str) -> None:
    """The option and what was given are named, not a warm-up that nobody gave."""
    code, output, errors = _run("verify", _planned(tmp_path), "--horizon", horizon)
    assert (code, output) == (2, "")
    assert f"`--horizon` must be more than 0 s. Got {horizon}." in errors
    assert "warm-up" not in errors


def test_the_windows_of_many_gpus_are_summarised(tmp_path: Path) -> None:
    """A line for those as asked for, and one for each reason to take another window."""
    path = _planned(tmp_path)
    recheck = json.loads(_run("verify", path, "--json")[1])
    assert recheck["schema_version"] == 1
    seen = Verification.model_validate(recheck["gpus"][0]["verification"])
    gpus = [
        (f"g{index}", seen.model_copy(update={"horizon_s": length}))
        for index, length in enumerate((1800.0, 2500.0, 4000.0, 900.0))
    ]
    notes = window_notes(gpus, asked_s=1800.0)
    assert notes[0] == "window of g0: 1800 s (300 s of it warm-up)"
    assert notes[1].startswith("window of 2 GPUs: 2500 to 4000 s (300 s of it warm-up) instead of 1800 s, ")
    assert notes[2] == "window of g3: 900 s (300 s of it warm-up) instead of 1800 s: its trace ends then"
