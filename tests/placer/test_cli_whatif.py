"""`placer whatif` in this process and as one of its own: exit codes, what is printed and written, Ctrl-C."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from placer.cli.application import app
from placer.whatif.document import WhatIf
from tests.placer.programs import interrupt_at, started
from tests.placer.small_fleets import small_data, write_problem

RUNNER = CliRunner()
QUICK = ("--solver", "bfd", "--max-evaluations", "500", "--no-improve", "--horizon", "120", "--warmup", "20")


def _run(problem: Path, *arguments: str | Path) -> tuple[int, str, str]:
    """Run the command; return exit code, standard output and standard error."""
    result = RUNNER.invoke(app, ["whatif", str(problem), *QUICK, *map(str, arguments)], prog_name="placer")
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def problem(tmp_path: Path) -> Path:
    """Return the file of a small problem."""
    return write_problem(tmp_path, small_data())


def test_options_and_a_file_make_one_study(problem: Path, tmp_path: Path) -> None:
    """The grid of the options, that of the file, then its cases; tables on standard output, files in the folder."""
    file = tmp_path / "scenarios.yaml"
    file.write_text("grid: {add_adapters: [2]}\ncases: [{name: launch, scale_rates: 1.2, burstiness: 2}]\n")
    arguments = ("--scale-rates", "0.5:1:0.5", "--lengths", "1", "--scenarios", file, "--output", tmp_path / "out")
    code, output, errors = _run(problem, *arguments)
    assert code == 0
    assert "4 of 4 scenarios" in errors
    for label in ("as it is", "scale_rates 0.5", "add_adapters 2", "launch"):
        assert label in output
    assert {"whatif.parquet", "whatif.csv", "whatif.json", "gpus.png"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    code, output, errors = _run(problem, *arguments, "--json")
    assert (code, errors.splitlines()[0]) == (0, "4 of 4 scenarios")
    assert len(WhatIf.model_validate_json(output).cells) == 4
    code, _, errors = _run(problem, "--scale-rates", "2", "--output", tmp_path / "out")
    assert code == 2
    assert "goes on with the configuration" in errors


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        pytest.param((), "a sweep must have scenarios", id="nothing"),
        pytest.param(("--scale-rates", "1:2"), "`scale_rates`: values must", id="no range"),
        pytest.param(("--scale-rates", "-1"), "must be above 0", id="no factor"),
        pytest.param(("--scenarios", "/nowhere.yaml"), "/nowhere.yaml", id="no file"),
        pytest.param(("--study", "risks"), "`--study` must be one of", id="no study"),
        pytest.param(("--study", "risk", "--probability", "0.3"), "`--probability` must be at least 0.5", id="no risk"),
        pytest.param(("--study", "risk", "--rate-cv", "-1"), "`rate_cv` must be", id="no spread"),
        pytest.param(("--study", "break-even"), "two at least", id="one type"),
        pytest.param(("--scale-rates", "2", "--solver", "bdf"), "did you mean 'bfd'?", id="no solver"),
        pytest.param(("--scale-rates", "2", "--horizon", "1"), "horizon", id="no window"),
    ],
)
def test_bad_input_is_exit_code_2(problem: Path, arguments: tuple[str, ...], fragment: str) -> None:
    """One sentence that says what would be right; nothing on standard output, no traceback."""
    code, output, errors = _run(problem, *arguments)
    assert (code, output) == (2, "")
    assert "error: " in errors
    assert fragment in errors
    assert "Traceback" not in errors


def test_no_plan_at_all_is_exit_code_4(tmp_path: Path) -> None:
    """Every scenario is a row with its reason."""
    data = small_data()
    data["gpu_types"][0]["max_count"] = 1
    code, output, _ = _run(write_problem(tmp_path, data), "--scale-rates", "1,2")
    assert code == 4
    assert output.count("none: At least") == 2


def test_the_risk_is_printed_with_its_interval(problem: Path) -> None:
    """For the rates as they stand, and for each probability."""
    code, output, _ = _run(problem, "--study", "risk", "--draws", "3", "--probability", "0.9", "--scale-rates", "0.3")
    assert code == 0
    assert "scale_rates 0.3, probability 0.9" in output
    assert "of 3" in output
    assert "3 draws of lognormal rates, cv 0.3 of each adapter" in output


def test_schemas_are_printed() -> None:
    """Of the file of scenarios, and of the study."""
    for name, key in (("whatif", "grid"), ("whatif-study", "cells")):
        result = RUNNER.invoke(app, ["schema", name])
        assert (result.exit_code, key in json.loads(result.stdout)["properties"]) == (0, True)


def test_after_ctrl_c_the_same_command_goes_on(problem: Path) -> None:
    """Exit code 130, what is finished is kept, and the next run does the rest."""
    arguments = ["whatif", problem.name, *QUICK, "--scale-rates", "0.5:2:0.25", "--output", "out"]
    with started(arguments, problem.parent) as process:
        _, errors = interrupt_at(process, "2 of 7")
        assert process.returncode == 130
    assert "are kept in out" in errors
    assert "Traceback" not in errors
    kept = len(list((problem.parent / "out" / "cells").glob("*.json")))
    assert 2 <= kept < 7
    with started(arguments, problem.parent) as process:
        output, errors = process.communicate(timeout=300)
    assert process.returncode == 0
    assert errors.startswith(f"{kept} of 7 scenarios")
    assert "scale_rates 2" in output
