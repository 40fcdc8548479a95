"""Tables that users bring (CSV, JSON lines, Parquet), checked with messages that name file, column, row and value."""

from __future__ import annotations

import bz2
import difflib
import errno
import gzip
import lzma
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from twin.bounded_read import MIB, parse_json
from twin.errors import InputError

SHOWN_CHARACTERS = 60
# Forty million requests take some 1,200 MiB as CSV.
MOST_TABLE_BYTES = 2048 * MIB
_UNPACKERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_OTHER_SEPARATORS = {";": "';'", "\t": "a tab", "|": "'|'"}
# How the markers of an absent value (None, NaN, NaT, NA) print.
ABSENT_VALUES = frozenset({"None", "nan", "NaT", "<NA>"})


# What reading raises: the system, and the decoders of compressed files, of text and of Parquet for what is damaged or
# cut off. ValueError covers undecodable text, rows of another length (pandas) and foreign file formats (pyarrow).
READ_ERRORS: tuple[type[Exception], ...] = (
    OSError,
    # Some compressions need a library of their own.
    ImportError,
    ValueError,
    EOFError,
    LookupError,
    RuntimeError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    tarfile.TarError,
    pd.errors.ParserWarning,
)


@dataclass(frozen=True, eq=False)
class Table:
    """The rows of a file. Row numbers in messages count from 1 and leave out a header.

    Attributes
    ----------
    frame
        Values as the file has them: text for CSV, typed for JSON lines and Parquet.
    file
        Path of the file, as given.
    """

    frame: pd.DataFrame
    file: str

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(str(column) for column in self.frame.columns)

    def require(self, columns: Sequence[str]) -> None:
        """Raise InputError unless the table has all `columns`, with the nearest name that it has."""
        missing = [column for column in columns if column not in self.columns]
        if not missing:
            return
        near = {column: _nearest(column, self.columns) for column in missing}
        guesses = ", ".join(f"{column!r}: did you mean {guess!r}?" for column, guess in near.items() if guess)
        have = ", ".join(repr(column) for column in self.columns)
        raise InputError(
            f"{self.file} must have the columns {', '.join(map(repr, columns))}. "
            f"Missing: {', '.join(map(repr, missing))}; it has {have}.",
            file=self.file,
            field=missing[0],
            value=self.columns,
            hint=guesses or "name the file's own columns with a column mapping, or give another format",
        )

    def fail(self, column: str, rule: str, wrong: NDArray[np.bool_], *, hint: str | None = None) -> None:
        """Raise InputError for the first row where `wrong` (bool [N]) holds, saying that `column` must `rule`."""
        if not np.any(wrong):
            return
        row = int(np.argmax(wrong))
        value = self.frame[column].iloc[row]
        others = int(np.count_nonzero(wrong)) - 1
        more = f", and in {others} more rows" if others else ""
        raise InputError(
            f"`{column}` must {rule}. Got {_shown(value)} in row {row + 1} of {self.file}{more}.",
            file=self.file,
            field=column,
            value=value,
            hint=hint,
        )

    def numbers(self, column: str) -> NDArray[np.float64]:
        """Return `column` as float64 [N]: finite and not negative, or InputError."""
        values = as_floats(self.frame[column])
        self.fail(column, "be a finite number", ~np.isfinite(values), hint="correct or remove such rows")
        self.fail(column, "not be negative", values < 0, hint="correct or remove such rows")
        return values

    def counts(self, column: str) -> NDArray[np.int64]:
        """Return `column` as int64 [N]: whole numbers from 0 to 2,147,483,647, or InputError."""
        values = self.numbers(column)
        self.fail(column, "be a whole number", values != np.floor(values), hint="correct or remove such rows")
        largest = np.iinfo(np.int32).max
        self.fail(column, f"not exceed {largest}", values > largest, hint="correct or remove such rows")
        return values.astype(np.int64)

    def labels(self, column: str) -> NDArray[np.object_]:
        """Return `column` as str in an object array [N]: no empty ones, or InputError."""
        values = self.frame[column]
        absent = np.asarray(values.isna(), dtype=np.bool_)
        texts = np.array([str(value) for value in values], dtype=np.object_)
        empty = absent | np.array([not text.strip() for text in texts], dtype=np.bool_)
        self.fail(
            column, "not be empty", empty, hint="name an adapter in each row, or leave the column out of the mapping"
        )
        return texts


def as_floats(cells: pd.Series) -> NDArray[np.float64]:
    """Return cells as float64 [N]: NaN for what is no number, infinity for what is beyond float64."""
    try:
        numbers = pd.to_numeric(cells, errors="coerce")
    except OverflowError:
        # Whole numbers of any length, as JSON has them; as text, they are converted one by one.
        numbers = pd.to_numeric(cells.astype(str), errors="coerce")
    return np.asarray(numbers, dtype=np.float64)


def read_csv_table(path: Path) -> Table:
    """Read a CSV file with a header, all values as text (compression by suffix)."""

    def read() -> pd.DataFrame:
        with warnings.catch_warnings():
            # Rows longer than the header would otherwise lose their last fields with a warning only.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            options: Any = {"dtype": str, "keep_default_na": False, "index_col": False, "encoding": "utf-8-sig"}
            # The reader renames repeated columns: the header is looked at as a row first.
            header = pd.read_csv(path, header=None, nrows=1, **options)
            require_plain_header(header.iloc[0].tolist(), str(path))
            frame: pd.DataFrame = pd.read_csv(path, **options)
            return frame

    return _read(path, "CSV with a header", read)


def read_json_lines_table(path: Path) -> Table:
    """Read a file with one JSON object per line; values that are not plain (lists, objects) stay as they are."""

    # Not with pandas: it turns numbers in columns of certain names ("timestamp") into dates.
    def read() -> pd.DataFrame:
        records = []
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                record = parse_json(line)
                if not isinstance(record, dict):
                    raise ValueError(f"line {number} is no object")  # noqa: TRY004 - malformed content, like bad JSON
                records.append(record)
        return pd.DataFrame(records)

    return _read(path, "JSON lines (one object per line)", read)


def read_parquet_table(path: Path) -> Table:
    """Read a Parquet file."""

    def read() -> pd.DataFrame:
        import pyarrow as pa  # noqa: PLC0415 - takes half a second, and CSV does without
        import pyarrow.parquet as pq  # noqa: PLC0415

        try:
            with pq.ParquetFile(path) as file:
                # What pandas noted about its index in the file says nothing about the table.
                _require_cells(file.metadata)
                content = file.read()
                _require_no_bytes(content.schema)
                require_plain_header(content.column_names, str(path))
                frame: pd.DataFrame = content.to_pandas(ignore_metadata=True)
        except pa.ArrowException as error:
            raise ValueError(str(error)) from error
        return frame

    return _read(path, "Parquet", read)


def _require_file_size(path: Path) -> None:
    """Raise OSError for a file that is too large to be read as a table, unpacked."""
    unpack = _UNPACKERS.get(path.suffix.lower())
    size = path.stat().st_size
    if unpack is not None and size <= MOST_TABLE_BYTES:
        size = 0
        with unpack(path, "rb") as stream:
            while size <= MOST_TABLE_BYTES and (part := stream.read(4 * MIB)):
                size += len(part)
    elif path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    if size > MOST_TABLE_BYTES:
        raise OSError(errno.EFBIG, f"it is larger than the {MOST_TABLE_BYTES // MIB:,} MiB that are read, unpacked")


def _require_cells(metadata: Any) -> None:
    """Raise ValueError for a Parquet file of too many cells: repeated values take next to no room in it."""
    cells = metadata.num_rows * max(metadata.num_columns, 1)
    if cells * 8 > MOST_TABLE_BYTES:
        raise ValueError(f"it has {cells:,} cells, of which {MOST_TABLE_BYTES // 8:,} are read")


def _require_no_bytes(schema: Any) -> None:
    """Raise ValueError for a column of a Parquet file that is no text, number, time or list of them."""
    for field in schema:
        if "binary" in str(field.type):
            raise ValueError(f"the column {field.name!r} has bytes")


def require_plain_header(columns: Sequence[str], file: str) -> None:
    """Raise InputError when a column stands in a table twice, or all of them in one.

    Spaces around a name do not count.
    """
    names = [column.strip() for column in columns]
    others = [shown for separator, shown in _OTHER_SEPARATORS.items() if len(names) == 1 and separator in names[0]]
    if others:
        raise InputError(
            f"the columns must be separated by commas. {file} seems to be separated by {others[0]}.",
            file=file,
            value=names[0],
            hint="save it with commas between the cells and points in the numbers",
        )
    twice = [name for name in names if name and names.count(name) > 1]
    if twice:
        raise InputError(
            f"a column must stand in a table once. {file} has `{twice[0]}` twice.",
            file=file,
            field=twice[0],
            hint="remove or rename one of them",
        )


def _read(path: Path, kind: str, read: Callable[[], pd.DataFrame]) -> Table:
    file = str(path)
    if path.is_dir():
        raise InputError(f"the input must be a file. Got the folder {file}.", file=file)
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{file} must be {kind}. It is empty.", file=file)
        _require_file_size(path)
        frame = read()
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"{file} must be readable. {reason}.", file=file, hint="check the path and the permissions"
        ) from error
    except READ_ERRORS as error:
        reason = " ".join(str(error).split()).rstrip(".")
        is_ragged = isinstance(error, pd.errors.ParserError | pd.errors.ParserWarning)
        raise InputError(
            f"{file} must be {kind}. It cannot be read: {reason}.",
            file=file,
            hint="give each row as many cells as the header has, with quotes around cells with commas"
            if is_ragged
            else "the file may be cut off, damaged or of another format: get or save it again",
        ) from error
    if len(frame) == 0:
        raise InputError(f"{file} must hold at least one row below its header. It holds none.", file=file)
    return Table(frame, file)


def _nearest(name: str, candidates: Sequence[str]) -> str | None:
    lowered = {candidate.strip().lower(): candidate for candidate in candidates}
    matches = difflib.get_close_matches(name.lower(), list(lowered), n=1, cutoff=0.5)
    return lowered[matches[0]] if matches else None


def _shown(value: object) -> str:
    if not isinstance(value, str) and str(value) in ABSENT_VALUES:
        return "nothing"
    text = repr(value.item()) if isinstance(value, np.generic) else repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."
