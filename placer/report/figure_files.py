"""Figures as files: the numbers as CSV, the picture as PNG and SVG. Needs matplotlib."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from placer.drawing import png_of, svg_of
from twin.atomic_write import write_atomically

Cell = str | int | float | None
# Colours that colour-blind readers tell apart; hatching tells the same apart without colours.
COLORS = ("#8ecdf2", "#f0b84a", "#35b390", "#d98fb8", "#e07b39", "#2c80bd", "#a3a3a3")
HATCHES = ("", "///", "..", "\\\\\\", "---", "xx", "||")
FILES_PER_FIGURE = 3
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def write_figure(folder: Path, name: str, figure: Figure, rows: Iterable[Sequence[Cell]]) -> int:
    """Write a figure into a folder as NAME.csv, NAME.png and NAME.svg; return how many files that are.

    Parameters
    ----------
    name
        May hold names of users: what is no letter, digit, dot, underscore or hyphen becomes an underscore.
    rows
        Its numbers; the first row is the heading.
    """
    stem = safe_name(name)
    contents: dict[str, str | bytes] = {
        "csv": csv_text(rows),
        "png": png_of(figure),
        "svg": svg_of(figure, "figure"),
    }
    for suffix, content in contents.items():
        write_atomically(folder / f"{stem}.{suffix}", content)
    return len(contents)


def safe_name(text: str) -> str:
    """Return a name that is one of a file in any folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).lstrip(".") or "_"


def csv_text(rows: Iterable[Sequence[Cell]]) -> str:
    """Return rows as CSV; texts that a spreadsheet would take for a formula get an apostrophe."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    for row in rows:
        writer.writerow([_cell(value) for value in row])
    return stream.getvalue()


def _cell(value: Cell) -> Cell:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value
