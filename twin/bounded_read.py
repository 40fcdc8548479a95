"""Read documents from outside: no more bytes than a limit, and JSON without surprises."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

MIB = 2**20
# A problem of 100,000 adapters has 17 MiB.
MOST_DOCUMENT_BYTES = 64 * MIB
MOST_MODEL_BYTES = 256 * MIB
# Pages of metrics of a day, or all requests of a benchmark.
MOST_MEASUREMENT_BYTES = 1024 * MIB


def read_bounded(path: str | Path, *, most_bytes: int = MOST_DOCUMENT_BYTES) -> bytes:
    """Return the bytes of a file, or of a pipe or a device, of which there must not be more than `most_bytes`.

    Raises
    ------
    OSError
        When it cannot be read, or has more.
    """
    if "\0" in str(path):
        raise OSError(errno.EINVAL, "no file has such a name")
    with Path(path).open("rb") as stream:
        content = stream.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"it is larger than the {most_bytes / MIB:g} MiB that are read")
    return content


def read_bounded_text(path: str | Path, *, most_bytes: int = MOST_DOCUMENT_BYTES) -> str:
    """Return the UTF-8 text of a file without a mark at its beginning; see `read_bounded`.

    Raises
    ------
    OSError
        As `read_bounded`.
    UnicodeDecodeError
        When it is no UTF-8.
    """
    return read_bounded(path, most_bytes=most_bytes).decode("utf-8-sig")


def parse_json(content: str | bytes) -> Any:
    """Return the plain values of a JSON text.

    Raises
    ------
    ValueError
        When it is none, or is nested deeper than Python can follow.
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
