"""Which document a file holds, and the page that shows it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from placer.comparison_report import COMPARISON_NAME
from placer.whatif.output import WHATIF_NAME
from twin.bounded_read import parse_json, read_bounded
from twin.errors import InputError

Document = TypeVar("Document", bound=BaseModel)
# What commands with a folder for their results call the document in it.
_IN_FOLDERS = (f"{COMPARISON_NAME}.json", f"{WHATIF_NAME}.json")


@dataclass(frozen=True)
class DocumentKind:
    """A document that `placer report` shows: its name, who writes it, and keys that no other one has together."""

    name: str
    command: str
    keys: frozenset[str]


KINDS = (
    DocumentKind("plan", "placer solve PROBLEM -o plan.json", frozenset({"verdict", "configuration", "gpus"})),
    DocumentKind("comparison", "placer compare --output FOLDER", frozenset({"instances", "solvers", "runs"})),
    DocumentKind("what-if study", "placer whatif PROBLEM -o FOLDER", frozenset({"study", "cells"})),
    DocumentKind("migration", "placer replan PLAN PROBLEM -o replan.json", frozenset({"migration", "before", "plan"})),
)


def kind_of(path: Path) -> tuple[str, dict[str, Any]]:
    """Return which document a file, or the folder of a comparison or a study, holds, and its content.

    Raises
    ------
    InputError
        When the file is unreadable, no JSON, or no such document.
    """
    file = _in_folder(path) if path.is_dir() else path
    try:
        data = parse_json(read_bounded(file))
    except OSError as error:
        raise _no_document(file, error.strerror or str(error)) from error
    except ValueError as error:
        raise _no_document(file, f"It is no complete JSON: {error}") from error
    if isinstance(data, dict):
        for kind in KINDS:
            if kind.keys <= data.keys():
                return kind.name, data
    raise _no_document(file, "It is none of them")


def read_as(model: type[Document], path: Path, data: dict[str, Any], *, name: str) -> Document:
    """Return the document that a file holds; `name` is that of its kind.

    Raises
    ------
    InputError
        When it does not follow its schema.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise _no_document(path, f"`{field}` of a {name}: {first['msg']}") from error


def _in_folder(folder: Path) -> Path:
    files = [folder / name for name in _IN_FOLDERS]
    return next((file for file in files if file.is_file()), files[0])


def _no_document(file: Path, reason: str) -> InputError:
    known = " or ".join(f"a {kind.name} ({kind.command})" for kind in KINDS)
    return InputError(
        f"a report needs a document as JSON: {known}. {file}: {reason}.".replace("..", "."),
        file=str(file),
        field="file",
        value=str(file),
        hint="give the file that one of these commands wrote",
    )
