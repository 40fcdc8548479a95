"""`placer measure --demo` without vLLM, or with an interpreter that does not work; with vLLM: tests/vllm."""

import importlib.util
import shlex
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from placer.cli.application import app
from placer.measure_workload import load_measured_workload
from tests.twin.measured import QueueDriver, ignore_progress, new_folder, small_workload
from twin.measurement.demo import is_demo, make_demo
from twin.measurement.interrupts import StopRequest
from twin.measurement.session import run_segment
from twin.vllm_python import PYTHON_VARIABLE


def _run(*arguments: str | Path) -> tuple[int, str, str]:
    """Run a command; return exit code, standard output and standard error."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="placer")
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave nobody an interpreter that has vLLM."""
    if importlib.util.find_spec("vllm") is not None:
        pytest.skip("vLLM is installed beside the tests, and would be found")
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)


@pytest.mark.parametrize(
    ("interpreter", "message"),
    [("/nowhere/python", "vLLM's interpreter must run"), (sys.executable, "vLLM must be installed for this")],
)
@pytest.mark.usefixtures("without_vllm")
def test_an_interpreter_that_is_named_must_have_vllm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interpreter: str, message: str
) -> None:
    """Exit code 6 with the error, and nothing is made."""
    monkeypatch.setenv(PYTHON_VARIABLE, interpreter)
    code, output, errors = _run("measure", "--demo", tmp_path / "d")
    assert (code, output) == (6, "")
    assert f"error: {message}" in errors
    assert not (tmp_path / "d").exists()


@pytest.mark.usefixtures("without_vllm")
def test_the_demo_without_vllm_is_made_and_says_what_is_next(tmp_path: Path) -> None:
    """Model, adapters and workload can be served by any vLLM; the command that measures them is the same again."""
    folder = tmp_path / "a demo"
    arguments = ("--horizon", "3", "--seed", "2")
    code, output, errors = _run("measure", "--demo", folder, "--adapters", "3", "--ranks", "16,8", *arguments)
    assert (code, output) == (0, "")
    assert "Nothing was measured" in errors
    assert f"then: {shlex.join(('placer', 'measure', '--demo', str(folder), *arguments))}" in errors
    content = load_measured_workload(folder / "workload.yaml")
    assert [adapter.rank for adapter in content.workload.adapters] == [16, 8, 16]
    assert content.model_folder == folder / "model"
    assert content.adapter_folder == folder / "adapters"


@pytest.mark.usefixtures("without_vllm")
def test_a_demo_that_is_there_is_taken(tmp_path: Path) -> None:
    """Again, nothing is made anew, and the next command is that of the defaults."""
    folder = tmp_path / "d"
    assert _run("measure", "--demo", folder, "--adapters", "3")[0] == 0
    weights = (folder / "model" / "model.safetensors").stat().st_mtime_ns
    code, _, errors = _run("measure", "--demo", folder)
    assert code == 0
    assert f"found {folder}: workload.yaml, model, 3 adapters in adapters" in errors
    assert f"then: placer measure --demo {folder}\n" in errors
    assert (folder / "model" / "model.safetensors").stat().st_mtime_ns == weights
    assert _run("measure", "--demo", folder, "--adapters", "3", "--ranks", "8,16")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--adapters", "4"), "`--adapters` must be that of the demo that is there, 3. Got 4."),
        (("--ranks", "8"), "`--ranks` must be that of the demo that is there, 8,16,8. Got 8."),
    ],
)
@pytest.mark.usefixtures("without_vllm")
def test_another_demo_needs_another_folder(tmp_path: Path, arguments: tuple[str, str], message: str) -> None:
    """Exit code 2: what is asked for is not what is there."""
    make_demo(tmp_path / "d", num_adapters=3, ranks=(8, 16), rate_rps=4.0, seed=0)
    code, _, errors = _run("measure", "--demo", tmp_path / "d", *arguments)
    assert code == 2
    assert message in errors
    assert "another folder" in errors


@pytest.mark.usefixtures("without_vllm")
def test_only_a_whole_demo_is_one(tmp_path: Path) -> None:
    """A folder of one's own, or a demo without its model, is none."""
    make_demo(tmp_path / "d", num_adapters=1, ranks=(8,), rate_rps=4.0, seed=0)
    assert is_demo(tmp_path / "d")
    (tmp_path / "d" / "model" / "model.safetensors").unlink()
    assert not is_demo(tmp_path / "d")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "workload.yaml").write_text("schema_version: 1\n", encoding="utf-8")
    assert not is_demo(tmp_path / "own")
    assert not is_demo(tmp_path / "missing")
    code, _, errors = _run("measure", "--demo", tmp_path / "own")
    assert code == 2
    assert "a new or an empty folder" in errors


@pytest.mark.parametrize("option", ["--resume", "--finish"])
def test_a_complete_measurement_is_not_written_again(tmp_path: Path, option: str) -> None:
    """It says that there was nothing to do."""
    folder = new_folder(tmp_path / "m", small_workload())
    run_segment(folder, QueueDriver(), StopRequest(), ignore_progress)
    assert folder.manifest.status == "complete"
    code, _, errors = _run("measure", option, folder.path)
    assert code == 0
    assert f"{folder.path} is complete already" in errors
    assert "wrote" not in errors
