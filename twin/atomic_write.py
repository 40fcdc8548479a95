"""Write files whole or not at all, also when the program is stopped in the middle."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from twin.errors import InputError


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Write a file so that readers see the old content or all of the new one, also after a crash or Ctrl-C.

    What is written goes to a temporary file in the target's folder, which then takes the target's name. A target that
    is no regular file (a pipe, ``/dev/stdout``) is written to directly.

    Raises
    ------
    InputError
        When the path cannot be written; it is named, and nothing was changed.
    """
    target = Path(path)
    data = content.encode() if isinstance(content, str) else content
    require_writable(target)
    try:
        if target.exists() and not target.is_file():
            target.write_bytes(data)
            return
        with replacement_of(target) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise _unwritable(target, error.strerror or str(error)) from error


@contextmanager
def replacement_of(path: Path) -> Iterator[Path]:
    """Yield a temporary file to write to, which takes the name of `path` at the end unless an exception came before.

    Raises
    ------
    OSError
        When the folder cannot be written.
    """
    target = path.resolve()
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(_mode_of(target))
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def require_writable(path: str | Path) -> None:
    """Raise InputError when `path` can clearly not be written: asked before the work that would be lost."""
    target = Path(path)
    folder = target.resolve().parent
    if target.is_dir():
        raise _unwritable(target, "It is a folder")
    if not folder.is_dir():
        raise _unwritable(target, f"{folder} is not an existing folder")
    if not os.access(folder, os.W_OK) and not (target.exists() and not target.is_file()):
        raise _unwritable(target, f"No permission to write in {folder}")


def _mode_of(target: Path) -> int:
    """Return the permissions of a file that exists, or those that a new file gets."""
    if target.exists():
        return target.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _unwritable(path: Path, reason: str) -> InputError:
    return InputError(
        f"the output path must be writable. {path}: {reason}.",
        file=str(path),
        field="output",
        value=str(path),
        hint="give the path of a file in a folder that exists and that you may write to",
    )
