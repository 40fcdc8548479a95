"""Tables of a document that a benchmark writes: Markdown between a pair of markers that name the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from placer.files import write_atomically
from twin.errors import InputError


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table."""
    return [f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows]]


def number(value: float | None, digits: int = 2, *, sign: bool = False) -> str:
    """Return a number for a table; a dash for none."""
    return "-" if value is None else f"{value:{'+' if sign else ''}.{digits}f}"


def marked(name: str, lines: Sequence[str]) -> str:
    """Return the lines between the markers of a table of the document."""
    begin, end = _markers(name)
    return "\n".join([begin, *lines, end])


def print_or_update(tables: Mapping[str, Sequence[str]], document: Path | None) -> None:
    """Print the tables under their names, or put them between their markers in `document`.

    Raises
    ------
    InputError
        When the document lacks the markers of a table, or cannot be read or written; it is then left as it was.
    """
    if document is None:
        print("\n\n".join(f"{name}\n" + "\n".join(lines) for name, lines in tables.items()))
        return
    try:
        text = document.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"a document must be a readable file in UTF-8. {document}: {error}.",
            file=str(document),
            hint="check the path",
        ) from error
    for name, lines in tables.items():
        begin, end = _markers(name)
        before, opened, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (opened and closed):
            raise InputError(
                f"{document} must have a table between {begin} and {end}.",
                file=str(document),
                hint="write both markers where the table belongs",
            )
        text = before + marked(name, lines) + after
    write_atomically(document, text)


def _markers(name: str) -> tuple[str, str]:
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
