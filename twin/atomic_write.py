"""Write files whole or not at all, also when the program is stopped in the middle."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from twin.errors import InputError

# Names of standard output. The file behind them must not be replaced: what is printed later would go to the old one.
STANDARD_OUTPUT = frozenset({"-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"})
_OTHER_DESCRIPTOR = re.compile(r"/dev/(stdin|stderr|fd/.*)|/proc/[^/]+/fd/.*")


def is_standard_output(path: str | Path) -> bool:
    """Return whether a path names standard output: ``-``, ``/dev/stdout`` or another name of descriptor 1."""
    return os.path.normpath(path) in STANDARD_OUTPUT


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Write a file so that readers see the old content or all of the new one, also after a crash or Ctrl-C.

    What is written goes to a temporary file in the target's folder, which then takes the target's name. Of a link, the
    file behind it is replaced. Standard output (`is_standard_output`) is written to.

    Raises
    ------
    InputError
        When the path cannot be written, or is a pipe, a device or a folder; it is named, and nothing was changed.
    """
    data = content.encode() if isinstance(content, str) else content
    if is_standard_output(path):
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    target = Path(path)
    require_writable(target)
    try:
        with replacement_of(target) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise _unwritable(target, error.strerror or str(error), None) from error


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


def require_writable(path: str | Path, *, option: str | None = None) -> None:
    """Raise InputError when `path` can clearly not be written: asked before the work that would be lost.

    Parameters
    ----------
    option
        Named in the message, such as ``--report``.
    """
    if is_standard_output(path):
        return
    target = Path(path)
    resolved = _end_of_links(target)
    if resolved is None:
        raise _unwritable(target, "Its links do not end at a file", option)
    if target.is_dir():
        raise _unwritable(target, "It is a folder", option)
    if _OTHER_DESCRIPTOR.fullmatch(os.path.normpath(target)) or (target.exists() and not target.is_file()):
        raise _unwritable(target, "It is a pipe or a device, not a file", option)
    if not resolved.parent.is_dir():
        raise _unwritable(target, f"{resolved.parent} is not an existing folder", option)
    if not os.access(resolved.parent, os.W_OK):
        raise _unwritable(target, f"No permission to write in {resolved.parent}", option)


def _end_of_links(target: Path) -> Path | None:
    """Return the file behind the links; ``None`` when they go in a circle."""
    try:
        resolved = target.resolve()
    except (OSError, RuntimeError):
        return None
    # From Python 3.13 on, a circle is no error.
    return None if resolved.is_symlink() else resolved


def _mode_of(target: Path) -> int:
    """Return the permissions of a file that exists, or those that a new file gets."""
    if target.exists():
        return target.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _unwritable(path: Path, reason: str, option: str | None) -> InputError:
    subject = "the output path" if option is None else f"the output path of `{option}`"
    return InputError(
        f"{subject} must be writable. {path}: {reason}.",
        file=str(path),
        field="output" if option is None else option.removeprefix("--"),
        value=str(path),
        hint="give the path of a file in a folder that exists and that you may write to, or - for standard output",
    )
