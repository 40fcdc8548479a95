"""`placer dataset` in this process and as one of its own: exit codes, progress, checks, Ctrl-C."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from placer.cli.application import app
from placer.cli.dataset_progress import duration_text, progress_text
from predictors.dataset import ROWS_PER_SHARD, Progress
from predictors.dataset_folder import check_folder, shard_name
from tests.placer.programs import interrupt_at, started

RUNNER = CliRunner()
ROOT = Path(__file__).resolve().parents[2]
PROFILE = "llama-3.1-8b-h100-64gb"
SHORT = ("--horizon", "10", "--warmup", "2", "--seeds", "1", "--workers", "1", "--family", "few")


def _run(*arguments: str | int | Path) -> tuple[int, str, str]:
    """Run the command; return exit code, standard output and standard error."""
    result = RUNNER.invoke(app, ["dataset", *map(str, arguments)], prog_name="placer")
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small data set made with the command."""
    path = tmp_path_factory.mktemp("data") / "set"
    code, output, errors = _run("--profile", PROFILE, "--output", path, "--rows", ROWS_PER_SHARD + 1, *SHORT)
    assert code == 0
    assert output.startswith("352 labelled rows and ")
    assert "0 of 2 shards, 0 rows" in errors
    assert "1 of 2 shards" in errors
    assert "rows/s" in errors
    assert f"wrote {path}" in errors
    return path


def test_a_complete_data_set_is_proven(folder: Path) -> None:
    """In words on standard output, or as JSON; exit code 0."""
    code, output, errors = _run("--check", folder)
    assert (code, errors) == (0, "")
    assert output.startswith("complete: 2 shards, ")
    assert output.endswith("16 scenarios, each once; all hashes match\n")
    code, output, _ = _run("--check", folder, "--json")
    assert code == 0
    assert json.loads(output)["is_complete"] is True


def test_an_incomplete_data_set_is_bad_input(folder: Path, tmp_path: Path) -> None:
    """Every finding is an error line, and the JSON has them all."""
    copy = Path(shutil.copytree(folder, tmp_path / "set"))
    (copy / shard_name(1)).unlink()
    code, output, errors = _run("--check", copy)
    assert (code, output) == (2, "")
    assert "error: shard-00001.parquet cannot be read" in errors
    assert "hint: " in errors
    code, output, _ = _run("--check", copy, "--json")
    assert code == 2
    assert len(json.loads(output)["problems"]) == 1


def test_the_same_command_continues_and_json_is_the_manifest(folder: Path) -> None:
    """Nothing is left to do; standard output can be piped."""
    arguments = ("--profile", PROFILE, "--output", folder, "--rows", "1", *SHORT)
    code, output, _ = _run(*arguments, "--json")
    assert code == 0
    assert len(json.loads(output)["shards"]) == 2


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        pytest.param(("--rows", "1", "--seed", "1"), "has `seed` 0, and 1 was asked for", id="another seed"),
        pytest.param(("--rows", "1", "--profile", "none"), "none", id="no such profile"),
        pytest.param(("--rows", "0"), "--rows", id="no rows"),
        pytest.param(("--rows", "1", "--family", "none"), "a family must be one of discrete", id="no such family"),
        pytest.param((), "`placer dataset` needs --rows, or --check", id="nothing asked for"),
    ],
)
def test_bad_input_is_exit_code_2(folder: Path, arguments: tuple[str, ...], fragment: str) -> None:
    """One sentence that says what would be right; nothing on standard output, the folder unchanged."""
    before = (folder / "manifest.json").read_bytes()
    code, output, errors = _run("--profile", PROFILE, "--output", folder, *SHORT, *arguments)
    assert (code, output) == (2, "")
    assert "error: " in errors
    assert fragment in errors
    assert (folder / "manifest.json").read_bytes() == before


def test_a_folder_without_a_data_set_cannot_be_checked(tmp_path: Path) -> None:
    """Bad input, with the command that makes one."""
    code, _, errors = _run("--check", tmp_path)
    assert code == 2
    assert "hint: make one with `placer dataset`" in errors


@pytest.mark.parametrize("module", ["distributed", "none"])
def test_a_cluster_that_cannot_be_used_is_exit_code_6(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the extra, and with nobody at the address; no traceback."""
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("predictors.cluster.CONNECT_TIMEOUT_S", 1.0)
    arguments = ("--profile", PROFILE, "--output", tmp_path / "set", "--rows", "1", *SHORT)
    code, output, errors = _run(*arguments, "--cluster", "tcp://127.0.0.1:1")
    assert (code, output) == (6, "")
    assert "error: " in errors
    assert "Traceback" not in errors
    assert "hint: " in errors


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(tmp_path: Path, workers: str) -> None:
    """Every process gets the signal, as from a terminal: exit code 130, whole shards, and the same command ends it."""
    folder = tmp_path / "set"
    arguments = ["dataset", "--profile", PROFILE, "--output", str(folder), "--rows", str(4 * ROWS_PER_SHARD)]
    command = [*arguments, *SHORT, "--workers", workers]
    with started(command, tmp_path) as process:
        output, errors = interrupt_at(process, "1 of 4")
    assert (process.returncode, output) == (130, "")
    assert "Traceback" not in errors
    assert "error: interrupted. " in errors
    assert "hint: run the same command again to continue" in errors
    assert all(problem.endswith("has not been sampled yet") for problem in check_folder(folder).problems)
    assert (folder / shard_name(0)).exists() or (folder / shard_name(1)).exists()
    with started(command, tmp_path) as again:
        again.communicate(timeout=120)
    assert again.returncode == 0
    assert check_folder(folder).problems == ()


def test_progress_has_the_rate_since_the_start_and_the_time_left() -> None:
    """What an earlier call finished says nothing about the speed of this one."""
    first = Progress(finished_shards=10, num_shards=20, num_rows=1760)
    assert progress_text(first, first, elapsed_s=3.0) == "10 of 20 shards, 1760 rows"
    later = Progress(finished_shards=12, num_shards=20, num_rows=2112)
    assert progress_text(first, later, elapsed_s=60.0) == "12 of 20 shards, 2112 rows, 5.9 rows/s, 4 min 0 s left"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (61.0, "1 min 1 s"), (7300.0, "2 h 1 min")])
def test_durations_have_their_two_largest_units(seconds: float, text: str) -> None:
    """Seconds do not matter in a matter of hours."""
    assert duration_text(seconds) == text
