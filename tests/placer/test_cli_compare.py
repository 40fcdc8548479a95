"""`placer compare` in this process and as one of its own: exit codes, what is printed and written, Ctrl-C."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from placer.cli.application import app
from placer.comparison_document import Comparison
from solvers.registry import solver_names
from tests.placer.programs import ROOT, interrupt_at, started
from tests.solvers.problems import random_problem

RUNNER = CliRunner()
DOCUMENT = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
ORACLE = "tests.placer.foreign:Oracle"


def _run(*arguments: str | float | Path) -> tuple[int, str, str]:
    """Run the command; return exit code, standard output and standard error."""
    result = RUNNER.invoke(app, ["compare", *map(str, arguments)], prog_name="placer")
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with two instances of a user's."""
    path = tmp_path / "instances"
    path.mkdir()
    for name, seed, count in (("small", 1, 12), ("large", 2, 40)):
        adapters = random_problem(seed, count, load_gpus=1.5).adapters
        content = {
            "rank": [adapter.rank for adapter in adapters],
            "rate_rps": [adapter.rate_rps for adapter in adapters],
            "prompt_tokens": [adapter.prompt_tokens.effective_mean for adapter in adapters],
            "output_tokens": [adapter.output_tokens.effective_mean for adapter in adapters],
        }
        (path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_users_instances_and_function_are_compared(folder: Path, tmp_path: Path) -> None:
    """All solvers by default; tables, placements and files; the same command does nothing again."""
    arguments = ("--instances", folder, "--surrogate", ORACLE, "--budget", 1, "--output", tmp_path / "out")
    code, output, errors = _run(*arguments, "--save-placements", tmp_path / "placements")
    assert code == 0
    for name in (*solver_names(), "small", "large", "the twin was not asked"):
        assert name in output
    total = 2 * len(solver_names())
    assert f"{total} of {total} runs" in errors
    assert (tmp_path / "out" / "comparison.html").is_file()
    assert {path.name for path in (tmp_path / "placements").iterdir()} >= {"small--bfd--seed0.json"}
    code, output, errors = _run(*arguments, "--json")
    assert (code, f"{total} of {total} runs\n") == (0, errors.splitlines(keepends=True)[0])
    assert len(Comparison.model_validate_json(output).runs) == total


def test_the_twin_is_asked_where_it_is_asked_for(folder: Path) -> None:
    """By default not with a function of somebody else's; what it says is in the JSON."""
    arguments = ("--instances", folder / "small.json", "--surrogate", ORACLE, "--solver", "bfd", "--json")
    for option, is_asked in (("--verify", True), ("--no-verify", False)):
        code, output, _ = _run(*arguments, option, "--horizon", 60, "--warmup", 10)
        (run,) = json.loads(output)["runs"]
        assert code == 0
        assert (run["twin"] is not None) is is_asked


def test_the_shipped_surrogate_is_verified_by_default() -> None:
    """One small instance of a family, two seeds."""
    code, output, _ = _run(
        "--instance", "sizes-zipf-n10", "--solver", "bfd", "--solver", "greedy", "--seeds", 2, "--json",
        "--horizon", 60, "--warmup", 10,
    )  # fmt: skip
    comparison = Comparison.model_validate_json(output)
    assert code == 0
    assert [run.seed for run in comparison.runs] == [0, 0, 1, 1]
    assert all(run.twin is not None for run in comparison.runs)


def test_instances_are_listed() -> None:
    """As a table, or as JSON; families and patterns choose."""
    code, output, _ = _run("--list-instances")
    assert code == 0
    assert "papers-mixed-r8-16-32-n1536" in output
    code, output, _ = _run("--list-instances", "--family", "sizes", "--max-adapters", 100, "--json")
    names = [entry["name"] for entry in json.loads(output)["instances"]]
    assert (code, names) == (0, ["sizes-discrete-n10", "sizes-zipf-n10", "sizes-discrete-n100", "sizes-zipf-n100"])


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        pytest.param((), "at least one instance", id="nothing chosen"),
        pytest.param(("--family", "none"), "a family must be one of papers", id="no such family"),
        pytest.param(("--instance", "none"), "'none'", id="no such instance"),
        pytest.param(("--instances", "/nowhere"), "/nowhere", id="no such folder"),
        pytest.param(("--instance", "sizes-zipf-n10", "--solver", "bdf"), "did you mean 'bfd'?", id="no such solver"),
        pytest.param(("--instance", "sizes-zipf-n10", "--surrogate", "no:One"), "'no:One'", id="no such surrogate"),
        pytest.param(("--instance", "sizes-zipf-n10", "--budget", "-1"), "budget", id="no such budget"),
        pytest.param(("--instance", "sizes-zipf-n10", "--horizon", "1"), "horizon", id="no such window"),
        pytest.param(("--instance", "sizes-zipf-n10", "--margin", "-2"), "margin", id="no such margin"),
        pytest.param(("--instance", "sizes-zipf-n10", "--risk", "2"), "risk", id="no such risk"),
        pytest.param(("--instance", "sizes-zipf-n10", "--previous", "none"), "previous", id="no such placement"),
    ],
)
def test_bad_input_is_exit_code_2(arguments: tuple[str, ...], fragment: str) -> None:
    """One sentence that says what would be right; nothing on standard output, no traceback."""
    code, output, errors = _run("--solver", "bfd", "--horizon", 60, "--warmup", 10, *arguments)
    assert (code, output) == (2, "")
    assert "error: " in errors
    assert fragment in errors
    assert "Traceback" not in errors


def test_another_configuration_is_exit_code_2(folder: Path, tmp_path: Path) -> None:
    """The folder stays as it is."""
    arguments = ("--instances", folder, "--surrogate", ORACLE, "--solver", "bfd", "--output", tmp_path / "out")
    assert _run(*arguments)[0] == 0
    code, output, errors = _run(*arguments, "--margin", 0.1)
    assert (code, output) == (2, "")
    assert "has `margin` 0.0, and 0.1 was asked for" in errors


def test_runs_that_all_fail_are_exit_code_6(folder: Path) -> None:
    """The reason is a warning and stands in the table."""
    code, output, errors = _run(
        "--instances", folder, "--surrogate", "tests.placer.foreign:FailingSurrogate", "--solver", "bfd"
    )
    assert code == 6
    assert "warning: bfd is failed: ZeroDivisionError" in errors
    assert "small" in output


def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(folder: Path, tmp_path: Path) -> None:
    """Every process gets the signal, as from a terminal: exit code 130, and the same command ends it."""
    arguments = ["--instances", str(folder), "--surrogate", ORACLE, "--seeds", "300", "--output", str(tmp_path / "out")]
    with started(["compare", *arguments, "--solver", "bfd", "--solver", "greedy"], ROOT) as process:
        output, errors = interrupt_at(process, "3 of 1200")
    assert (process.returncode, output) == (130, "")
    assert "Traceback" not in errors
    assert re.search(r"error: interrupted\. \d+ of 1200 runs are kept in ", errors)
    assert "hint: run the same command again to continue" in errors
    kept = len(list((tmp_path / "out" / "runs").glob("*.json")))
    assert 3 <= kept < 1200
    code, _, errors = _run(
        "--instances", folder, "--surrogate", ORACLE, "--solver", "bfd", "--output", tmp_path / "out"
    )
    assert code == 2
    assert "goes on with the configuration that it was begun with" in errors


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, flags=re.MULTILINE | re.DOTALL)


def test_the_documents_instance_and_oracle_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copied into a folder, the examples run as the text says."""
    instance, placement = _blocks("json")
    (oracle,) = _blocks("python")
    (tmp_path / "instances").mkdir()
    (tmp_path / "instances" / "mine.json").write_text(instance, encoding="utf-8")
    (tmp_path / "documented_oracle.py").write_text(oracle, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for choice in ("documented_oracle:Oracle", "documented_oracle.py:Oracle"):
        arguments = ("--instances", "instances", "--surrogate", choice, "--solver", "bfd", "--solver", "greedy")
        code, output, errors = _run(*arguments, "--save-placements", "placements", "--json")
        assert code == 0, errors
        comparison = Comparison.model_validate_json(output)
        assert {run.num_gpus for run in comparison.runs if run.solver == "bfd"} == {1}
    saved = json.loads((tmp_path / "placements" / "mine--bfd--seed0.json").read_text(encoding="utf-8"))
    assert set(saved) == set(json.loads(placement))


def test_the_documents_commands_name_options_that_there_are() -> None:
    """And every option of the command is in its table."""
    _, text, _ = _run("--help")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    options = set(re.findall(r"--[a-z-]+", plain)) - {"--help", "--verbose", "--json", "--horizon", "--warmup"}
    for option in options - {"--list-instances", "--output"}:
        assert f"`{option}" in DOCUMENT or f"{option} " in DOCUMENT, option
    for option in re.findall(r"(--[a-z-]+)", "\n".join(_blocks("bash"))):
        assert option in options
