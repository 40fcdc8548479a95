"""What folders of `placer measure` say about themselves: whether they can be fitted together, and are whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from twin.errors import InputError
from twin.hardware import ModelArchitecture
from twin.measurement.folder import open_folder
from twin.measurement.manifest import Manifest

KILLED = "its process was killed, or still runs"


@dataclass(frozen=True)
class MeasuredFolder:
    """A measurement's folder, as its manifest has it.

    Attributes
    ----------
    path
        Where it is.
    clock
        What its times are counted by.
    status, reason
        Whether it is complete, and why not.
    model
        What was measured; ``None`` over HTTP, and where its config.json is not there any more.
    """

    path: Path
    clock: str
    status: str
    reason: str | None
    model: ModelArchitecture | None


def read_folder(path: Path) -> MeasuredFolder:
    """Return what a measurement's manifest says (InputError for a damaged one)."""
    manifest = open_folder(path).manifest
    return MeasuredFolder(path, manifest.clock, manifest.status, manifest.reason, measured_model(manifest))


def measured_model(manifest: Manifest) -> ModelArchitecture | None:
    """Return the model that an engine in process had, if its config.json is still there and can be read."""
    if manifest.settings.kind != "in_process":
        return None
    config = Path(manifest.settings.model) / "config.json"
    try:
        return ModelArchitecture.from_config(config) if config.is_file() else None
    except InputError:
        return None


def require_one_clock(folders: Sequence[MeasuredFolder]) -> str | None:
    """Return the clock of all folders, or ``None`` without any.

    Raises
    ------
    InputError
        When they differ: a step takes another time on each.
    """
    for folder in folders[1:]:
        if folder.clock != folders[0].clock:
            raise InputError(
                f"measurements that are fitted together must be on one clock. {folders[0].path} is on "
                f"`{folders[0].clock}`, {folder.path} on `{folder.clock}`.",
                file=str(folder.path),
                field="clock",
                value=folder.clock,
                hint="calibrate them apart, or measure one again with the other's --clock; over HTTP it is `wall`",
            )
    return folders[0].clock if folders else None


def require_model(measured: ModelArchitecture | None, model: ModelArchitecture, path: Path) -> None:
    """Raise InputError when another model than `model` was measured; names and longest contexts may differ."""
    free = {"name", "max_model_len"}
    if measured is None or measured.model_dump(exclude=free) == model.model_dump(exclude=free):
        return
    different = [name for name, value in measured.model_dump(exclude=free).items() if value != getattr(model, name)]
    facts = ", ".join(f"{name} {getattr(measured, name)} and not {getattr(model, name)}" for name in different[:3])
    raise InputError(
        f"the model must be the one that was measured. That of {path} is not {model.name!r}: {facts}.",
        file=str(path),
        field="model",
        value=model.name,
        hint="give the config.json of the measured model with --model",
    )


def partial_warnings(folders: Sequence[MeasuredFolder]) -> list[str]:
    """Return a warning for each measurement that is not complete."""
    return [
        f"The measurement {folder.path.resolve().name} is {folder.status}: {(folder.reason or KILLED).rstrip('.')}."
        for folder in folders
        if folder.status != "complete"
    ]
