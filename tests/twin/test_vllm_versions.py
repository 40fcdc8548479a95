"""One list of tested versions of vLLM: the tests' own file, the code that warns of others, and the extras."""

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from tests.vllm.golden import recorded_version
from twin.vllm_python import DISTRIBUTIONS, TESTED_VERSIONS, minor_version

ROOT = Path(__file__).parents[2]
VERSIONS = ROOT / "tests" / "vllm_versions.toml"


def _tested() -> list[dict[str, Any]]:
    tested: list[dict[str, Any]] = tomllib.loads(VERSIONS.read_text(encoding="utf-8"))["tested"]
    return tested


def test_the_code_knows_the_versions_that_were_tested() -> None:
    """No warning about those, and one about all others."""
    assert sorted({minor_version(entry["version"]) for entry in _tested()}) == sorted(TESTED_VERSIONS)


def test_the_extras_install_tested_versions_only() -> None:
    """Each extra has one distribution, pinned to a version of the list."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = [entry["version"] for entry in _tested()]
    for name in DISTRIBUTIONS:
        (requirement,) = map(Requirement, project["optional-dependencies"][name])
        assert requirement.name == name
        assert any(map(requirement.specifier.contains, versions))
        assert not any(map(requirement.specifier.contains, ("0.31.0", "0.33.0", "1.0.0")))


def test_the_recorded_steps_are_of_the_last_version() -> None:
    """A new version means a new file."""
    assert recorded_version() == _tested()[-1]["version"]


def test_the_checks_install_the_last_version() -> None:
    """PyTorch first, and what breaks the import goes last."""
    command = [sys.executable, str(ROOT / ".ci" / "install_vllm.py"), str(VERSIONS)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    entry = _tested()[-1]
    assert [line.split()[0] for line in lines] == ["install"] * len(entry["install"]) + ["uninstall"]
    assert lines[-2] == f"install {entry['distribution']}=={entry['version']}"
