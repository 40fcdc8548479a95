"""What a plan's numbers depend on besides the problem: versions of the software, hashes of profile and surrogate."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from placer.files import ProblemFromFile, sha256_of
from placer.plan_document import InputFile, SurrogateDescription
from placer.surrogates import parts_of
from predictors.exact import ExactSurrogate
from predictors.onnx_surrogate import OnnxSurrogate
from predictors.surrogate import Surrogate
from solvers.problem import Problem

DISTRIBUTION = "lora-placer"
# Libraries that can change a plan's numbers; the others only read, draw or check.
LIBRARIES = ("numpy", "numba", "onnxruntime", "ortools", "highspy")


def software_versions() -> dict[str, str]:
    """Return the versions of placer, Python and the installed libraries that can change a plan, by name."""
    versions = {"placer": placer_version(), "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def placer_version() -> str:
    """Return the installed version; ``0+unknown`` when placer runs from a folder without being installed."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "0+unknown"


def plan_inputs(problem: Problem, surrogate: Surrogate) -> tuple[InputFile, ...]:
    """Return what a plan depends on, by content: the problem's files, the profiles, the surrogate's files."""
    files = list(problem.inputs) if isinstance(problem, ProblemFromFile) else []
    for profile in problem.profiles:
        content = json.dumps(profile.model_dump(mode="json"), sort_keys=True).encode()
        files.append(InputFile(role="profile", name=profile.name, sha256=sha256_of(content)))
    for part in parts_of(surrogate):
        if isinstance(part, OnnxSurrogate):
            content = Path(part.file).read_bytes()
            files.append(InputFile(role="surrogate", name=Path(part.file).name, sha256=sha256_of(content)))
    return tuple(dict.fromkeys(files))


def describe_surrogate(surrogate: Surrogate) -> SurrogateDescription:
    """Return the name of a surrogate, and what it was distilled from."""
    descriptions = list(dict.fromkeys(_describe_part(part) for part in parts_of(surrogate)))
    return SurrogateDescription(
        name=", ".join(dict.fromkeys(name for name, _ in descriptions)),
        details="; ".join(details for _, details in descriptions),
    )


def _describe_part(surrogate: Surrogate) -> tuple[str, str]:
    if isinstance(surrogate, OnnxSurrogate):
        return Path(surrogate.file).name, f"distilled from profile {surrogate.profile_name}"
    if isinstance(surrogate, ExactSurrogate):
        return "exact", f"the twin itself, {surrogate.horizon_s:g} s of profile {surrogate.profile.name}"
    return type(surrogate).__name__, "given by the caller"
