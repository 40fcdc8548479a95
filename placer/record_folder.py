"""A folder of records: what was asked for, and one JSON file for each finished record, so that a command can go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from placer.comparison_document import as_json
from twin.atomic_write import write_atomically
from twin.bounded_read import parse_json, read_bounded
from twin.errors import InputError

CONFIGURATION_NAME = "configuration.json"
RecordT = TypeVar("RecordT", bound=BaseModel)

_ANEW = "give another folder, or delete this one to begin anew"


@dataclass(frozen=True)
class RecordKind(Generic[RecordT]):
    """What a folder holds.

    Attributes
    ----------
    record
        Class of its documents.
    name_of
        Returns the name of a record's file, without a suffix; unique in a folder.
    whole, part
        What all records are together, and what one is, in messages: ``comparison``, ``run``. Records are in the folder
        `part` + ``s``.
    """

    record: type[RecordT]
    name_of: Callable[[RecordT], str]
    whole: str
    part: str


class RecordFolder(Generic[RecordT]):
    """Finished records of one configuration on disk.

    Parameters
    ----------
    path
        Made when it does not exist.
    configuration
        Everything that decides the records, as plain values.
    kind
        What is kept.

    Raises
    ------
    InputError
        When the folder holds records of another configuration, or cannot be written.
    """

    def __init__(self, path: Path, configuration: dict[str, Any], kind: RecordKind[RecordT]) -> None:
        self.path = path
        self.configuration = configuration
        self.kind = kind
        self._records = path / f"{kind.part}s"
        self._open()

    def finished(self) -> list[RecordT]:
        """Return the records that are there, by the names of their files.

        Raises
        ------
        InputError
            When a file is no such record.
        """
        records = []
        for file in sorted(self._records.glob("*.json")):
            try:
                records.append(self.kind.record.model_validate_json(read_bounded(file)))
            except (OSError, ValidationError) as error:
                raise InputError(
                    f"every file of {self._records} must be a {self.kind.part} of this version. {file.name} is not: "
                    f"{str(error).splitlines()[0]}.",
                    file=str(file),
                    hint=f"delete the file: the {self.kind.part} is then done again",
                ) from error
        return records

    def keep(self, record: RecordT) -> None:
        """Write a finished record, whole or not at all."""
        write_atomically(self._records / f"{self.kind.name_of(record)}.json", as_json(record))

    def _open(self) -> None:
        file = self.path / CONFIGURATION_NAME
        if not file.exists():
            self._begin(file)
            return
        try:
            before = parse_json(read_bounded(file))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{file} must be the configuration of a {self.kind.whole}. {error}.", file=str(file), hint=_ANEW
            ) from error
        now = json.loads(json.dumps(self.configuration))
        if not isinstance(before, dict) or before != now:
            raise _difference(self.kind.whole, file, before if isinstance(before, dict) else {}, now)
        self._records.mkdir(exist_ok=True)

    def _begin(self, file: Path) -> None:
        try:
            if self.path.is_dir() and any(self.path.iterdir()):
                raise InputError(
                    f"the folder of a new {self.kind.whole} must be empty. {self.path} is not, and has no "
                    f"{CONFIGURATION_NAME}.",
                    file=str(self.path),
                    field="output",
                    value=str(self.path),
                    hint="give another folder",
                )
            self._records.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"the output must be a folder that can be written. {self.path}: {error.strerror}.",
                file=str(self.path),
                field="output",
                value=str(self.path),
            ) from error
        write_atomically(file, json.dumps(self.configuration, indent=2, sort_keys=True) + "\n")


def _difference(whole: str, file: Path, before: dict[str, Any], now: dict[str, Any]) -> InputError:
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            return InputError(
                f"a {whole} goes on with the configuration that it was begun with. {file.parent} has `{key}` "
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
