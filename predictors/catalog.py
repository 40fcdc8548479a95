"""Which surrogate to use: a shipped one, the twin itself, or a file of the user's."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from predictors.exact import ExactSurrogate
from predictors.onnx_surrogate import OnnxSurrogate
from predictors.surrogate import Surrogate
from twin.engine import EngineConfig
from twin.errors import SurrogateError
from twin.hardware import GpuType, ModelArchitecture
from twin.profile import PerformanceProfile
from twin.workload import Workload

AUTO = "auto"
EXACT = "exact"


def shipped_surrogate(profile_name: str) -> Path | None:
    """Return the path of the shipped surrogate that was distilled from the profile of that name, or None."""
    path = Path(str(resources.files("predictors") / "models" / f"{profile_name}.onnx"))
    return path if path.is_file() else None


def load_surrogate(
    choice: str,
    *,
    workload: Workload,
    model: ModelArchitecture,
    gpu: GpuType,
    engine: EngineConfig,
    profile: PerformanceProfile,
    horizon_s: float = 900.0,
    warmup_s: float = 150.0,
    seed: int = 0,
    workers: int = 1,
    starvation_tolerance: float = 0.1,
    base_directory: Path | None = None,
) -> Surrogate:
    """Return the surrogate that `choice` names.

    Parameters
    ----------
    choice
        ``auto``: the one shipped for the profile, else the exact one; ``exact``: the twin; otherwise the path of an
        ONNX file.
    workload, model, gpu, engine, profile
        The problem's; `engine` is the template for settings that are no features.
    horizon_s, warmup_s, seed, workers, starvation_tolerance
        Of the exact surrogate; seconds, seconds, of the traffic, threads, share of the load that may go unserved.
    base_directory
        Folder that a relative path starts from; the current one by default.

    Raises
    ------
    SurrogateError
        When the file is refused, or was distilled from another profile.
    """
    path = shipped_surrogate(profile.name) if choice == AUTO else (base_directory or Path()) / choice
    if choice == EXACT or path is None:
        return ExactSurrogate(
            workload,
            model,
            gpu,
            engine,
            profile,
            horizon_s=horizon_s,
            warmup_s=warmup_s,
            seed=seed,
            workers=workers,
            starvation_tolerance=starvation_tolerance,
        )
    surrogate = OnnxSurrogate.load(path)
    if surrogate.profile_name != profile.name:
        raise SurrogateError(
            f"a surrogate must have been distilled from the profile it is used with, {profile.name!r}. "
            f"{path} was distilled from {surrogate.profile_name!r}.",
            file=str(path),
            field="profile",
            value=surrogate.profile_name,
            hint="use `auto` or `exact`, or make one for this profile with `placer dataset` and then `placer train`",
        )
    return surrogate
