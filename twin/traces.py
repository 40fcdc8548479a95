"""Readers of traces: Azure LLM, Mooncake, ServeGen client rates, any CSV, JSON lines or Parquet by column names.

A bad input is an InputError that names the file, the column, the row and the value, and what can be done.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from twin.errors import InputError
from twin.tables import Table, read_csv_table, read_json_lines_table, read_parquet_table
from twin.trace import Trace, observed_duration_s

TimeUnit = Literal["s", "ms", "us", "ns"]
SECONDS_PER_UNIT: dict[str, float] = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
FORMATS = ("azure", "mooncake", "csv", "jsonl", "parquet")
COLUMN_ROLES = ("time", "prompt", "output", "adapter")
SERVEGEN_WINDOW_S = 600.0


@dataclass(frozen=True)
class TraceColumns:
    """Names of a file's columns.

    Attributes
    ----------
    time
        Arrival: a number in `time_unit`, or a date and time (ISO 8601). The first request is at 0 s of the trace.
    prompt, output
        Token counts.
    adapter
        Label of the adapter; ``None``: the file has none.
    time_unit
        Of numeric times.
    """

    time: str = "time"
    prompt: str = "prompt"
    output: str = "output"
    adapter: str | None = None
    time_unit: TimeUnit = "s"

    @classmethod
    def from_mapping(cls, mapping: dict[str, str], *, time_unit: str = "s") -> TraceColumns:
        """Return the columns named by a mapping from `COLUMN_ROLES`; what is left out keeps its default.

        Raises
        ------
        InputError
            On another key or an unknown unit.
        """
        for role in mapping:
            _choose(role, COLUMN_ROLES, "a column mapping's key", "columns")
        _choose(time_unit, get_args(TimeUnit), "`time_unit`", "time_unit")
        unit: TimeUnit = next(known for known in get_args(TimeUnit) if known == time_unit)
        default = cls()
        return cls(
            time=mapping.get("time", default.time),
            prompt=mapping.get("prompt", default.prompt),
            output=mapping.get("output", default.output),
            adapter=mapping.get("adapter"),
            time_unit=unit,
        )


AZURE_COLUMNS = TraceColumns(time="TIMESTAMP", prompt="ContextTokens", output="GeneratedTokens")
MOONCAKE_CSV_COLUMNS = TraceColumns("timestamp_ms", "input_length", "output_length", time_unit="ms")
MOONCAKE_JSON_COLUMNS = TraceColumns("timestamp", "input_length", "output_length", time_unit="ms")


def read_trace(
    path: str | Path,
    *,
    trace_format: str | None = None,
    columns: TraceColumns | None = None,
    sort: bool = False,
    drop_empty: bool = False,
) -> Trace:
    """Read a trace of requests.

    Parameters
    ----------
    path
        CSV (also compressed, by suffix), JSON lines or Parquet.
    trace_format
        One of `FORMATS`; ``None``: from the suffix, `columns` and the file's own column names.
    columns
        Names of the columns, for the formats ``csv``, ``jsonl`` and ``parquet``.
    sort
        Sort requests that are not in order of arrival; without it they are an error.
    drop_empty
        Leave out requests without prompt or output tokens; without it they are an error.

    Raises
    ------
    InputError
        When the file is unreadable, empty, of another format, or has a row that is no request.
    """
    source = Path(path)
    if trace_format is not None:
        _choose(trace_format, FORMATS, "the trace format", "format")
    if trace_format in {"azure", "mooncake"} and columns is not None:
        raise InputError(
            f"a column mapping goes with the formats csv, jsonl and parquet. Got one for "
            f"{trace_format!r}, which has its own.",
            field="columns",
            value=columns,
            hint="give one of those formats, or leave the mapping out",
        )
    table = _read_table(source, trace_format)
    return _to_trace(table, columns or _known_columns(table, trace_format), sort=sort, drop_empty=drop_empty)


def read_azure(path: str | Path, *, sort: bool = False, drop_empty: bool = False) -> Trace:
    """Read an Azure LLM trace: CSV with TIMESTAMP, ContextTokens, GeneratedTokens (Azure/AzurePublicDataset)."""
    return read_trace(path, trace_format="azure", sort=sort, drop_empty=drop_empty)


def read_mooncake(path: str | Path, *, sort: bool = False, drop_empty: bool = False) -> Trace:
    """Read a Mooncake trace: JSON lines with timestamp (ms), input_length, output_length, or CSV with timestamp_ms."""
    return read_trace(path, trace_format="mooncake", sort=sort, drop_empty=drop_empty)


def _read_table(path: Path, trace_format: str | None) -> Table:
    suffixes = {suffix.lower() for suffix in path.suffixes}
    if trace_format == "parquet" or (trace_format is None and suffixes & {".parquet", ".pq"}):
        return read_parquet_table(path)
    if trace_format == "jsonl" or (trace_format in {None, "mooncake"} and suffixes & {".jsonl", ".ndjson"}):
        return read_json_lines_table(path)
    return read_csv_table(path)


def _known_columns(table: Table, trace_format: str | None) -> TraceColumns:
    """Return the columns of a format that names its own, or of the format that the table looks like."""
    if trace_format == "azure":
        return AZURE_COLUMNS
    have = set(table.columns)
    if trace_format == "mooncake":
        return MOONCAKE_JSON_COLUMNS if MOONCAKE_JSON_COLUMNS.time in have else MOONCAKE_CSV_COLUMNS
    for known in (AZURE_COLUMNS, MOONCAKE_CSV_COLUMNS, MOONCAKE_JSON_COLUMNS):
        if trace_format is None and {known.time, known.prompt, known.output} <= have:
            return known
    return TraceColumns(adapter="adapter" if "adapter" in have else None)


def _to_trace(table: Table, columns: TraceColumns, *, sort: bool, drop_empty: bool) -> Trace:
    wanted = [columns.time, columns.prompt, columns.output, *([columns.adapter] if columns.adapter else [])]
    table.require(wanted)
    arrival_s = _arrival_s(table, columns)
    prompt_tokens, output_tokens = table.counts(columns.prompt), table.counts(columns.output)
    adapter = table.labels(columns.adapter) if columns.adapter else None
    if not sort:
        backwards = np.concatenate([[False], np.diff(arrival_s) < 0])
        table.fail(
            columns.time,
            "not be earlier than in the row before",
            backwards,
            hint="sort the file by time, or ask for it (sort=True, --sort)",
        )
    if not drop_empty:
        hint = "remove requests without tokens, or ask for it (drop_empty=True, --drop-empty)"
        table.fail(columns.prompt, "be at least 1", prompt_tokens < 1, hint=hint)
        table.fail(columns.output, "be at least 1", output_tokens < 1, hint=hint)
    kept = np.flatnonzero((prompt_tokens >= 1) & (output_tokens >= 1))
    if len(kept) == 0:
        raise InputError(
            f"{table.file} must hold at least one request with tokens. It holds none.",
            file=table.file,
            field=columns.prompt,
        )
    kept = kept[np.argsort(arrival_s[kept], kind="stable")]
    from_start_s = arrival_s[kept] - arrival_s[kept[0]]
    return Trace(
        arrival_s=from_start_s,
        prompt_tokens=prompt_tokens[kept],
        output_tokens=output_tokens[kept],
        duration_s=observed_duration_s(from_start_s),
        adapter=None if adapter is None else adapter[kept],
        name=Path(table.file).name,
    )


def _arrival_s(table: Table, columns: TraceColumns) -> NDArray[np.float64]:
    """Return times in seconds: numbers in the columns' unit, or dates or durations counted from the earliest."""
    values = table.frame[columns.time]
    if pd.api.types.is_timedelta64_dtype(values):
        # A typed duration has its own unit, which is not the columns'.
        table.fail(columns.time, "not be empty", np.asarray(values.isna()), hint="correct or remove such rows")
        return np.asarray((values - values.min()).dt.total_seconds(), dtype=np.float64)
    if not _holds_dates(values):
        return table.numbers(columns.time) * SECONDS_PER_UNIT[columns.time_unit]
    dates = pd.to_datetime(values, errors="coerce", format="ISO8601", utc=True)
    unreadable = np.asarray(dates.isna(), dtype=np.bool_)
    table.fail(
        columns.time, "be a number or a date and time (ISO 8601)", unreadable, hint="correct or remove such rows"
    )
    # Differences before the conversion to float: as seconds since 1970 they would lose the nanoseconds.
    return np.asarray((dates - dates.min()).dt.total_seconds(), dtype=np.float64)


def _holds_dates(values: pd.Series) -> bool:
    """Return whether the column's first value that is not blank is no number."""
    if pd.api.types.is_datetime64_any_dtype(values):
        return True
    return next((not _is_number(text) for text in values if isinstance(text, str) and text.strip()), False)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _choose(given: str, known: tuple[str, ...], what: str, field: str) -> None:
    if given in known:
        return
    nearest = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    raise InputError(
        f"{what} must be one of {', '.join(known)}. Got {given!r}.",
        field=field,
        value=given,
        hint=f"did you mean {nearest[0]!r}?" if nearest else None,
    )


@dataclass(frozen=True, eq=False)
class ClientRates:
    """Traffic of real clients, window by window, as columns of length N, sorted by client and time.

    Attributes
    ----------
    client
        Name of the client (object array of str).
    window_start_s
        float64, start of the window, seconds; a client without a row in a window sent nothing.
    rate_rps
        float64, requests per second in the window.
    gap_cv
        float64, coefficient of variation of the time between requests.
    gap_law
        Law of the gaps: ``"gamma"`` or ``"weibull"`` (object array of str).
    shape, scale
        float64, parameters of the law, fitted by the publishers; `scale` in seconds.
    window_s
        Length of each window, seconds.
    """

    client: NDArray[np.object_]
    window_start_s: NDArray[np.float64]
    rate_rps: NDArray[np.float64]
    gap_cv: NDArray[np.float64]
    gap_law: NDArray[np.object_]
    shape: NDArray[np.float64]
    scale: NDArray[np.float64]
    window_s: float

    def __len__(self) -> int:
        """Return the number of (client, window) rows."""
        return len(self.client)

    def mean_rate_rps(self) -> dict[str, float]:
        """Return each client's mean rate over the span of the table, silent windows included."""
        span_s = float(self.window_start_s.max() - self.window_start_s.min()) + self.window_s
        names, positions = np.unique(self.client.astype(str), return_inverse=True)
        requests = np.bincount(positions, weights=self.rate_rps * self.window_s)
        return {str(name): float(count) / span_s for name, count in zip(names, requests, strict=True)}


def read_servegen_rates(path: str | Path, *, window_s: float = SERVEGEN_WINDOW_S) -> ClientRates:
    """Read ServeGen's client rates (alibaba/ServeGen).

    The CSV has the columns client, window_start_s, rate_rps, cv, pattern, arg1, arg2.

    Raises
    ------
    InputError
        When the file is unreadable, a column is missing, a value is no number, or a law is neither Gamma nor Weibull.
    """
    table = read_csv_table(Path(path))
    table.require(("client", "window_start_s", "rate_rps", "cv", "pattern", "arg1", "arg2"))
    law = np.array([label.strip().lower() for label in table.labels("pattern")], dtype=np.object_)
    table.fail("pattern", "be Gamma or Weibull", ~np.isin(law.astype(str), ["gamma", "weibull"]))
    client = table.labels("client")
    start_s = table.numbers("window_start_s")
    order = np.lexsort((start_s, client.astype(str)))
    return ClientRates(
        client=client[order],
        window_start_s=start_s[order],
        rate_rps=table.numbers("rate_rps")[order],
        gap_cv=table.numbers("cv")[order],
        gap_law=law[order],
        shape=table.numbers("arg1")[order],
        scale=table.numbers("arg2")[order],
        window_s=window_s,
    )
