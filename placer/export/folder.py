"""The folder of an export: all files or none, and never over what something else wrote."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from twin.errors import InputError

MANIFEST = "placer-export.json"
_HINT = "give another folder, or --force: what is there is then kept beside it"


class Manifest(BaseModel):
    """What an export wrote.

    Attributes
    ----------
    formats
        Its folders.
    files
        SHA-256 of each file, by path.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    formats: tuple[str, ...]
    files: dict[str, str]


def check_folder(folder: Path, *, is_forced: bool) -> None:
    """Refuse a folder that cannot be written, or holds anything but an export as it was written.

    Raises
    ------
    InputError
        With the reason.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise _unusable(folder, "It is a file or a link", "give the path of a folder")
    if not folder.resolve().parent.is_dir():
        raise _unusable(folder, "The folder above it does not exist", "make it first")
    if folder.resolve() == Path.cwd() or folder.resolve() in Path.cwd().parents:
        raise _unusable(folder, "It is where this runs, or above", "give a folder of its own")
    reason = None if is_forced else _foreign(folder)
    if reason is not None:
        raise _unusable(folder, reason, _HINT)


def write_folder(folder: Path, contents: Mapping[str, Mapping[str, str]], *, is_forced: bool) -> Path | None:
    """Write files so that the folder holds all of them, or what it held before.

    Parameters
    ----------
    contents
        Of the files, by format and path below its folder.

    Returns
    -------
    Path or None
        Where a forced export put what something else had written.

    Raises
    ------
    InputError
        See `check_folder`; or when writing fails.
    """
    check_folder(folder, is_forced=is_forced)
    is_foreign = _foreign(folder) is not None
    target = folder.resolve()
    try:
        made = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
        before = _free_name(target) if is_foreign else made.with_suffix(".old")
        try:
            _fill(made, contents)
            made.chmod(0o755)
            _swap(made, target, before)
        finally:
            shutil.rmtree(made, ignore_errors=True)
        if not is_foreign:
            shutil.rmtree(before, ignore_errors=True)
    except OSError as error:
        raise _unusable(folder, error.strerror or str(error), "give a folder that can be written") from error
    return before if is_foreign else None


def read_folder(folder: Path) -> dict[str, dict[str, str]]:
    """Return the files of an export as they are now, by format and path below its folder.

    Raises
    ------
    InputError
        When it is none, or a file is unreadable.
    """
    manifest = _manifest(folder)
    if manifest is None:
        raise InputError(
            f"an import needs a folder that `placer export` wrote. {folder} has no valid {MANIFEST}.",
            file=str(folder),
            field="folder",
            value=str(folder),
        )
    found: dict[str, dict[str, str]] = {}
    for name in manifest.formats:
        found[name] = {}
        for path in _files_of(folder / name):
            try:
                found[name][path.relative_to(folder / name).as_posix()] = path.read_bytes().decode()
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(
                    f"files of an export must be readable text. {path}: {error}.", file=str(path)
                ) from error
    return found


def _fill(made: Path, contents: Mapping[str, Mapping[str, str]]) -> None:
    digests = {}
    for name, files in contents.items():
        for relative, text in files.items():
            path = made / name / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode())
            path.chmod(0o755 if path.suffix == ".sh" else 0o644)
            digests[f"{name}/{relative}"] = hashlib.sha256(text.encode()).hexdigest()
    manifest = Manifest(formats=tuple(contents), files=digests)
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, sort_keys=True)
    (made / MANIFEST).write_text(f"{text}\n", encoding="utf-8")


def _swap(made: Path, target: Path, before: Path) -> None:
    """Put a folder in the place of another one, which takes the name `before`; both stay as they are on failure."""
    has_old = target.exists()
    if has_old:
        target.rename(before)
    try:
        made.rename(target)
    except BaseException:
        if has_old:
            before.rename(target)
        raise


def _foreign(folder: Path) -> str | None:
    """Return why a folder is not an export as it was written; ``None``: it is one, is empty, or is not there."""
    present = {path.relative_to(folder).as_posix() for path in _files_of(folder)} if folder.is_dir() else set()
    manifest = _manifest(folder)
    if not present:
        return None
    if manifest is None:
        return f"`placer export` did not write it: it has no valid {MANIFEST}"
    others = sorted(present - manifest.files.keys() - {MANIFEST})
    if others:
        return f"`placer export` did not write all of it: {others[0]}"
    for name, digest in manifest.files.items():
        if name in present and hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
            return f"{name} was changed since it was exported"
    return None


def _files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())


def _manifest(folder: Path) -> Manifest | None:
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValidationError):
        return None


def _free_name(target: Path) -> Path:
    number = 1
    while (name := target.with_name(f"{target.name}.before-{number}")).exists():
        number += 1
    return name


def _unusable(folder: Path, reason: str, hint: str) -> InputError:
    return InputError(
        f"the output of an export must be a folder of its own. {folder}: {reason}.",
        file=str(folder),
        field="output",
        value=str(folder),
        hint=hint,
    )
