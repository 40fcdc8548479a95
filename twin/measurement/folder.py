"""The folder of a measurement: its manifest, its shards while it runs, its tables in the end.

manifest.json       what was run, and whether it is complete
schedule.parquet    the requests that were to be sent
shards/             records as they were made; removed when the measurement is complete
*.parquet           the tables of `twin.measurement.records.TABLES`
engine.log          what vLLM wrote, in process
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from pydantic import ValidationError

from twin.atomic_write import write_atomically
from twin.bounded_read import parse_json, read_bounded
from twin.errors import InputError
from twin.measurement.manifest import Manifest, manifest_to_json
from twin.measurement.tables import load_schedule, save_schedule
from twin.workload import RequestTable, Workload

MANIFEST = "manifest.json"
LOCK = ".lock"
ENGINE_LOG = "engine.log"


class MeasurementFolder:
    """A measurement on disk.

    Parameters
    ----------
    path
        Of the folder.
    manifest
        What its manifest says.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @property
    def shards(self) -> Path:
        """Folder of the shards; gone when the measurement is complete."""
        return self.path / "shards"

    @property
    def engine_log(self) -> Path:
        """What vLLM wrote, in process."""
        return self.path / ENGINE_LOG

    def update(self, **changes: Any) -> None:
        """Replace fields of the manifest, and write it."""
        self.manifest = self.manifest.model_copy(update=changes)
        write_atomically(self.path / MANIFEST, manifest_to_json(self.manifest))

    def schedule(self) -> RequestTable:
        """Return the requests that were to be sent (InputError if the file is damaged)."""
        facts = self.manifest.workload
        return load_schedule(self.path, [adapter.name for adapter in facts.adapters], num_requests=facts.num_requests)

    def discard(self, *, has_log: bool) -> None:
        """Remove the folder, as nothing was recorded; it stays for the engine's log if that is to stay."""
        is_kept = has_log and self.engine_log.exists()
        for entry in self.path.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif not (is_kept and entry.name in {LOCK, ENGINE_LOG}):
                entry.unlink()
        # A folder that is a mount, say, cannot go.
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def remove_shards(self) -> None:
        """Remove the shards: the tables have everything."""
        shutil.rmtree(self.shards, ignore_errors=True)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out of the folder (InputError if one is there, or the folder cannot be written)."""
        with self._lock_file() as file:
            try:
                # The system lets go of it when the process ends, however it ends.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InputError(
                    f"only one process may work on a measurement. Another one works on {self.path}.",
                    file=str(self.path),
                    field="output",
                    hint="wait for it, or stop it",
                ) from error
            yield

    def _lock_file(self) -> TextIO:
        try:
            return (self.path / LOCK).open("w", encoding="utf-8")
        except OSError as error:
            raise _unwritable(self.path, error) from error


def create_folder(path: Path, manifest: Manifest, requests: RequestTable, workload: Workload) -> MeasurementFolder:
    """Make the folder of a new measurement, with its schedule and its manifest.

    Raises
    ------
    InputError
        When the path cannot be written, or has something in it already but the log of an engine that never started.
    """
    try:
        if path.exists() and (
            not path.is_dir() or any(entry.name not in {LOCK, ENGINE_LOG} for entry in path.iterdir())
        ):
            has_manifest = (path / MANIFEST).exists()
            raise InputError(
                f"a measurement must be written to a new or an empty folder. {path} is neither.",
                file=str(path),
                field="output",
                value=str(path),
                hint="give another folder"
                + (f", or go on with the measurement in it: placer measure --resume {path}" if has_manifest else ""),
            )
        path.mkdir(parents=True, exist_ok=True)
        folder = MeasurementFolder(path, manifest)
        folder.engine_log.unlink(missing_ok=True)
        folder.shards.mkdir()
        save_schedule(requests, workload, path)
        folder.update()
    except OSError as error:
        raise _unwritable(path, error) from error
    return folder


def open_folder(path: Path) -> MeasurementFolder:
    """Return the measurement in a folder.

    Raises
    ------
    InputError
        When there is none, or its manifest cannot be read.
    """
    file = path / MANIFEST
    try:
        manifest = Manifest.model_validate(parse_json(read_bounded(file)))
    except OSError as error:
        raise InputError(
            f"a measurement must have a {MANIFEST}. {path} has none that can be read: {error.strerror}.",
            file=str(file),
            hint="give the folder that `placer measure --output` wrote",
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"a measurement's manifest must follow its schema. `{field}`: {first['msg']} ({file}).",
            file=str(file),
            field=field,
            value=first.get("input"),
            hint="it is of another version, or was edited; measure again",
        ) from error
    except ValueError as error:
        raise InputError(
            f"a measurement's manifest must be valid JSON. {file}: {str(error).rstrip('.')}.",
            file=str(file),
            hint="measure again",
        ) from error
    return MeasurementFolder(path, manifest)


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"the folder of a measurement must be writable. {path}: {error.strerror}.",
        file=str(path),
        field="output",
        value=str(path),
        hint="give a folder that you may write to",
    )
