"""Cells of a CSV file as numbers and words, with errors that name file, run, column and value."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from twin.errors import InputError
from twin.tables import require_plain_header

RUN_ID = "run_id"
# What spreadsheets and data frames write where there is no value.
EMPTY_CELLS = frozenset({"", "nan", "NaN", "NA", "None", "null"})


@dataclass(frozen=True)
class Cells:
    """One row of a table of runs.

    Attributes
    ----------
    file, line
        Where it stands; lines count from 1, the heading included.
    values
        Text of every column.
    """

    file: str
    line: int
    values: dict[str, str]

    @property
    def run_id(self) -> str:
        """Name of the run."""
        return self.values[RUN_ID]

    def is_empty(self, column: str) -> bool:
        """Whether the table has no value there (or no such column)."""
        return self.values.get(column, "") in EMPTY_CELLS

    def text(self, column: str) -> str:
        """Return a word; InputError when the cell is empty."""
        if self.is_empty(column):
            raise self.error(column, "must have a value")
        return self.values[column]

    def number(self, column: str, *, least: float = -math.inf) -> float:
        """Return a finite number of at least `least`; InputError when it is none."""
        return self.parse_number(column, self.text(column), least=least)

    def optional_number(self, column: str) -> float | None:
        """Return a finite number of at least 0, or None where the cell is empty."""
        return None if self.is_empty(column) else self.number(column, least=0.0)

    def integer(self, column: str, *, least: int = 1) -> int:
        """Return an integer of at least `least`; it may be written with a fraction of zero."""
        number = self.number(column, least=least)
        if not number.is_integer():
            raise self.error(column, "must be an integer")
        return int(number)

    def optional_flag(self, column: str) -> bool | None:
        """Return a 0 or 1 as a bool, or None where the cell is empty."""
        if self.is_empty(column):
            return None
        number = self.number(column)
        if number not in {0.0, 1.0}:
            raise self.error(column, "must be 0 or 1")
        return bool(number)

    def parse_number(self, column: str, text: str, *, least: float) -> float:
        """Return a part of a cell as a finite number of at least `least`; InputError when it is none."""
        try:
            number = float(text)
        except ValueError as error:
            raise self.error(column, "must be a number") from error
        if not math.isfinite(number) or number < least:
            demand = "must be a finite number" if math.isinf(least) else f"must be a number of at least {least:g}"
            raise self.error(column, demand)
        return number

    def error(self, column: str, demand: str, *, hint: str | None = None) -> InputError:
        """Return the error that a cell is not what it must be."""
        value = self.values.get(column, "")
        return InputError(
            f"`{column}` {demand}. Got {value!r} (run {self.run_id}, {self.file}:{self.line}).",
            file=self.file,
            field=column,
            value=value,
            hint=hint or "correct the cell, or remove the row",
        )


def read_cells(path: str | Path, *, required: Sequence[str]) -> tuple[Cells, ...]:
    """Read a CSV file with a heading.

    Parameters
    ----------
    path
        The file, in UTF-8.
    required
        Columns that it must have; `RUN_ID` must name each row once.

    Raises
    ------
    InputError
        When the file cannot be read, a column is missing, a row has more or fewer cells than the heading, or a run has
        no name or the name of another one.
    """
    file = str(path)
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream)
            columns = next(reader, [])
            if not any(columns):
                raise InputError(
                    f"a table of runs must have a heading and rows. {file}: It is empty.",
                    file=file,
                    hint="docs/calibration.md describes the table of runs",
                )
            require_plain_header(columns, file)
            _require_columns(file, columns, required)
            # A blank line has no cell.
            rows = [_cells(file, reader.line_num, columns, cells) for cells in reader if cells]
    except OSError as error:
        raise InputError(
            f"a table of runs must be a readable file. {file}: {error.strerror}.", file=file, hint="check the path"
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"a table of runs must be CSV in UTF-8. {file}: {error}.", file=file, hint="save it as CSV in UTF-8"
        ) from error
    if not rows:
        raise InputError(
            f"a table of runs must have rows. {file} has none below its heading.",
            file=file,
            hint="give the table with the measured runs",
        )
    seen: dict[str, int] = {}
    for row in rows:
        if row.is_empty(RUN_ID):
            raise InputError(
                f"`{RUN_ID}` must have a value. It is empty ({file}:{row.line}).", file=file, field=RUN_ID, value=""
            )
        if row.run_id in seen:
            raise row.error(RUN_ID, f"must name one row. It also stands in line {seen[row.run_id]}")
        seen[row.run_id] = row.line
    return tuple(rows)


def _cells(file: str, line: int, columns: Sequence[str], cells: Sequence[str]) -> Cells:
    if len(cells) != len(columns):
        raise InputError(
            f"a row must have as many cells as the heading ({len(columns)}). Got {len(cells)} ({file}:{line}).",
            file=file,
            field=RUN_ID,
            value=len(cells),
            hint="put quotes around cells with commas, and write empty cells between commas",
        )
    return Cells(file, line, {name: text.strip() for name, text in zip(columns, cells, strict=True)})


def _require_columns(file: str, columns: Sequence[str], required: Sequence[str]) -> None:
    missing = [name for name in required if name not in columns]
    if missing:
        raise InputError(
            f"a table of runs must have the columns {', '.join(required)}. {file} lacks {', '.join(missing)}.",
            file=file,
            field=missing[0],
            hint="add the column; docs/calibration.md describes the table of runs",
        )
