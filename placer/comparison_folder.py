"""The folder of a comparison: what was asked for, and one JSON file for each finished run, so that it can go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from placer.comparison_document import RunRecord, as_json
from twin.atomic_write import write_atomically
from twin.errors import InputError

CONFIGURATION_NAME = "configuration.json"
RUNS_NAME = "runs"

_ANEW = "give another folder, or delete this one to begin anew"


class ComparisonFolder:
    """Finished runs of one configuration on disk.

    Parameters
    ----------
    path
        Made when it does not exist.
    configuration
        Everything that decides the runs, as plain values.

    Raises
    ------
    InputError
        When the folder holds a comparison of another configuration, or cannot be written.
    """

    def __init__(self, path: Path, configuration: dict[str, Any]) -> None:
        self.path = path
        self.configuration = configuration
        self._runs = path / RUNS_NAME
        self._open()

    def finished(self) -> dict[tuple[str, str, int], RunRecord]:
        """Return the runs that are there.

        Raises
        ------
        InputError
            When a file is no run.
        """
        records = {}
        for file in sorted(self._runs.glob("*.json")):
            try:
                record = RunRecord.model_validate_json(file.read_bytes())
            except (OSError, ValidationError) as error:
                raise InputError(
                    f"every file of {self._runs} must be a run of this version. {file.name} is not: "
                    f"{str(error).splitlines()[0]}.",
                    file=str(file),
                    hint="delete the file: the run is then done again",
                ) from error
            records[record.key] = record
        return records

    def keep(self, record: RunRecord) -> None:
        """Write a finished run, whole or not at all."""
        write_atomically(self._runs / f"{run_name(record)}.json", as_json(record))

    def _open(self) -> None:
        file = self.path / CONFIGURATION_NAME
        if not file.exists():
            self._begin(file)
            return
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{file} must be the configuration of a comparison. {error}.", file=str(file), hint=_ANEW
            ) from error
        now = json.loads(json.dumps(self.configuration))
        if not isinstance(before, dict) or before != now:
            raise _difference(file, before if isinstance(before, dict) else {}, now)
        self._runs.mkdir(exist_ok=True)

    def _begin(self, file: Path) -> None:
        try:
            if self.path.is_dir() and any(self.path.iterdir()):
                raise InputError(
                    f"the folder of a new comparison must be empty. {self.path} is not, and has no "
                    f"{CONFIGURATION_NAME}.",
                    file=str(self.path),
                    field="output",
                    value=str(self.path),
                    hint="give another folder",
                )
            self._runs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"the output must be a folder that can be written. {self.path}: {error.strerror}.",
                file=str(self.path),
                field="output",
                value=str(self.path),
            ) from error
        write_atomically(file, json.dumps(self.configuration, indent=2, sort_keys=True) + "\n")


def run_name(record: RunRecord) -> str:
    """Return the name of a run's files, without a suffix; a solver ``folder/own.py:Solver`` is ``own.py-Solver``."""
    solver = record.solver.rpartition("/")[2].replace(":", "-")
    return f"{record.instance}--{solver}--seed{record.seed}"


def _difference(file: Path, before: dict[str, Any], now: dict[str, Any]) -> InputError:
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            return InputError(
                f"a comparison goes on with the configuration that it was begun with. {file.parent} has `{key}` "
                f"{_short(before.get(key))}, and {_short(now.get(key))} was asked for.",
                file=str(file),
                field=key,
                value=now.get(key),
                hint=_ANEW,
            )
    raise AssertionError("configurations that differ differ in a key")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
