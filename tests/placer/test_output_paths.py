"""Outputs of the commands: none replaces an input or another one, and links, pipes and folders stay what they are."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from placer.cli.application import app
from placer.files import load_problem, save_plan
from placer.planning import plan
from tests.placer.small_fleets import PROFILE, fair_surrogate, small_data, write_problem
from tests.twin.run_tables import RUN, write_runs
from tests.twin.test_step_table import drawn_rows, write
from twin.profile import load_profile, save_profile


def _run(*arguments: str | Path) -> tuple[int, str, str]:
    """Run the command in this process; return exit code, standard output and standard error."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="placer")
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """Return inputs of every command by name."""
    problem = write_problem(tmp_path, small_data(num_adapters=2, total_rps=1.0))
    save_plan(plan(load_problem(problem), surrogate=fair_surrogate(), verify=False), tmp_path / "plan.json")
    save_profile(load_profile(PROFILE), tmp_path / "profile.json")
    trace = tmp_path / "trace.csv"
    trace.write_text("time,prompt,output\n" + "".join(f"{row},100,10\n" for row in range(50)), encoding="utf-8")
    counts = tmp_path / "counts.csv"
    counts.write_text("id,requests\na,5\nb,3\n", encoding="utf-8")
    data: dict[str, Any] = small_data()
    del data["adapters"]
    data["trace"] = {"file": trace.name, "adapters": {"count": 2, "popularity": f"file:{counts.name}"}}
    data["gpu_types"][0]["profile"] = "profile.json"
    tables = tmp_path / "tables"
    tables.mkdir()
    (tmp_path / "link").symlink_to(trace)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    return {
        "folder": tmp_path,
        "problem": problem,
        "traced": write_problem(tmp_path, data, "traced.yaml"),
        "plan": tmp_path / "plan.json",
        "profile": tmp_path / "profile.json",
        "trace": trace,
        "link": tmp_path / "link",
        "counts": counts,
        "config": tmp_path / "config.json",
        "runs": write_runs(tmp_path / "runs.csv", [RUN]),
        "tables": tables,
        "steps": write(tables / "steps.csv", drawn_rows(40, seed=1)),
    }


_CALIBRATE = "calibrate {tables} --model llama-3.1-8b"
_CALIBRATE_TO_NEW = f"{_CALIBRATE} --output {{folder}}/new.json"


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("solve {problem} --output {problem}", "--output"),
        ("solve {problem} --output {folder}/tables/../problem.yaml", "--output"),
        ("solve {traced} --output {trace}", "--output"),
        ("solve {traced} --output {link}", "--output"),
        ("solve {traced} --output {counts}", "--output"),
        ("solve {traced} --output {profile}", "--output"),
        ("solve {problem} --profile {profile} --output {profile}", "--output"),
        ("simulate {problem} --plan {plan} --gpu h100-64gb-0 --output {plan}", "--output"),
        ("simulate {traced} --output {profile}", "--output"),
        ("validate --runs {runs} --predictions {runs}", "--predictions"),
        ("validate --runs {runs} --profile {profile} --report {profile}", "--report"),
        ("validate --runs {runs} --published-twin {counts} --predictions {counts}", "--predictions"),
        ("validate --runs {runs} --predictions {folder}/new --report {folder}/new", "--report"),
        (f"{_CALIBRATE} --output {{steps}}", "--output"),
        ("calibrate {steps} --model llama-3.1-8b --output {steps}", "--output"),
        ("calibrate {steps} --model {config} --output {config}", "--output"),
        ("calibrate {steps} --model {folder} --output {config}", "--output"),
        (f"{_CALIBRATE} --prior {{profile}} --output {{profile}}", "--output"),
        (f"{_CALIBRATE} --host-profile {{profile}} --output {{profile}}", "--output"),
        (f"{_CALIBRATE_TO_NEW} --runs {{runs}} --report {{runs}}", "--report"),
        (f"{_CALIBRATE_TO_NEW} --settings {{traced}} --report {{traced}}", "--report"),
        (f"{_CALIBRATE_TO_NEW} --report {{folder}}/new.json", "--report"),
        (f"{_CALIBRATE} --output {{tables}}/residuals.png --figures {{tables}}", "--figures"),
        (f"{_CALIBRATE} --output /dev/stdout --report - ", "--report"),
        (f"{_CALIBRATE} --output - --json", "--output"),
        ("workload {trace} --output {trace}", "--output"),
        ("workload {trace} --output {link}", "--output"),
        ("workload {trace} --popularity file:{counts} --output {counts}", "--output"),
        ("workload {trace} --model {config} --output {config}", "--output"),
    ],
)
def test_an_output_that_is_read_or_written_twice_is_refused(places: dict[str, Path], command: str, option: str) -> None:
    """Exit code 2 with the option's name; no file is changed."""
    before = {path: path.read_bytes() for path in places.values() if path.is_file()}
    code, output, errors = _run(*command.format(**places).split())
    assert (code, output) == (2, "")
    assert f"error: `{option}" in errors
    assert "must name a file of its own" in errors
    assert "hint: " in errors
    assert {path: path.read_bytes() for path in before} == before
    assert not (places["folder"] / "new.json").exists()


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("solve {problem} --output {place}", "--output"),
        ("simulate {problem} --output {place}", "--output"),
        ("validate --runs {runs} --predictions {place}", "--predictions"),
        ("validate --runs {runs} --report {place}", "--report"),
        (f"{_CALIBRATE} --output {{place}}", "--output"),
        (f"{_CALIBRATE_TO_NEW} --report {{place}}", "--report"),
        ("workload {trace} --output {place}", "--output"),
    ],
)
@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "folder"])
def test_what_is_no_file_is_refused_and_stays(places: dict[str, Path], command: str, option: str, kind: str) -> None:
    """A pipe without a reader would stop the program for ever, and a device must never be replaced."""
    pipe, place = places["folder"] / "pipe.json", places["folder"] / "place.json"
    os.mkfifo(pipe)
    if kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        place = pipe
    else:
        place.symlink_to(pipe)
    code, output, errors = _run(*command.format(**places, place=place).split())
    assert (code, output) == (2, "")
    assert f"error: the output path of `{option}` must be writable. {place}: " in errors
    assert ("It is a folder" if kind == "folder" else "It is a pipe or a device") in errors
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert place.is_symlink() is (kind == "link to a pipe")


def test_a_folder_of_measurements_may_hold_what_is_made_of_it(places: dict[str, Path]) -> None:
    """The same command again writes the profile and the report again."""
    for _ in range(2):
        code, _, errors = _run(
            *f"{_CALIBRATE} --output {{tables}}/mine.json --report {{tables}}/fit.html".format(**places).split()
        )
        assert code == 0, errors
    assert load_profile(str(places["tables"] / "mine.json")).model == "llama-3.1-8b"


def test_a_profile_is_written_through_a_link(places: dict[str, Path]) -> None:
    """The link stays, and the file behind it is new."""
    target, link = places["folder"] / "target.json", places["folder"] / "linked.json"
    target.write_text("old", encoding="utf-8")
    link.symlink_to(target)
    code, _, errors = _run("calibrate", "--prior-only", "--model", "llama-3.1-8b", "--output", link)
    assert code == 0, errors
    assert link.is_symlink()
    assert load_profile(str(target)).model == "llama-3.1-8b"


@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
@pytest.mark.parametrize(
    "command",
    [
        "solve {problem} --surrogate exact --budget 600 --no-verify --output {name}",
        "simulate {problem} --horizon 20 --output {name}",
        "calibrate --prior-only --model llama-3.1-8b --output {name}",
        "workload {trace} --adapters 3 --popularity uniform --output {name}",
    ],
)
def test_standard_output_gets_the_file_and_nothing_else(places: dict[str, Path], command: str, name: str) -> None:
    """So that another program can read it; summaries are left out."""
    code, output, errors = _run(*command.format(**places, name=name).split())
    assert code == 0, errors
    content = yaml.safe_load(output) if command.startswith("workload") else json.loads(output)
    assert isinstance(content, dict)
    assert f"wrote {name}" not in errors
    assert not Path("-").exists()
