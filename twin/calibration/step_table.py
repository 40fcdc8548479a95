"""Tables of a user's own measurements: steps, adapter loads, memory, start-up; CSV or Parquet, one row per measurement.

A folder holds any of ``steps``, ``loads``, ``memory`` and ``startup`` (``.csv``, ``.csv.gz`` or ``.parquet``). Extra
columns are allowed and not read. docs/calibration.md says how to measure them.

``steps``: one row per step, or per group of equal steps with their mean time.

=================  =========================================================================  ======================
column             meaning                                                                    without the column
=================  =========================================================================  ======================
tokens             scheduled tokens, >= 1                                                     required
requests           scheduled requests, 1..tokens                                              required
context_tokens     tokens computed before the step, summed over its requests                  required
time_ms            duration without adapter loads, > 0                                        required
adapters           distinct adapters of the scheduled requests                                0
max_loras          slots; 0 without LoRA                                                      0
max_lora_rank      rank of the slots                                                          required with slots
has_prefill        1 where a request had prompt tokens left to process                        tokens > requests
is_batch_changed   1 where the engine rebuilt its batch: a prefill in this step or the one    has_prefill
                   before, or another number of requests
waiting            requests in the queue                                                      0
cached_adapters    adapters in the CPU cache                                                  adapters
count (or weight)  steps that the row stands for                                              1
measurement        rows of one name are the kinds of steps of one measurement, whose mean     each row is its own
                   time, weighted by count, is `time_ms`, equal in all of them
step               number of the step: rows are the single steps of a log                     they are benchmarks
regime             name in the error table                                                    by what is in the step
group              rows of one group (a run) are resampled together for intervals             each row is its own
=================  =========================================================================  ======================

``loads``: ``rank``, ``cpu_to_gpu_ms``, ``disk_to_cpu_ms``, or long: ``rank``, ``kind`` (cpu_to_gpu or disk_to_cpu),
``ms``; optional ``max_lora_rank`` of the slots. ``memory``: ``max_loras``, ``max_lora_rank``, ``max_num_seqs``,
``gpu_memory_utilization``, and ``kv_tokens``, empty where the replica did not start. ``startup``: ``max_loras``,
``seconds``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from twin.calibration.alike_steps import means_of_alike, medians_of_equal
from twin.calibration.observations import StepObservations, Steps
from twin.engine import SUPPORTED_RANKS
from twin.errors import InputError
from twin.measurement.folder import MANIFEST
from twin.tables import as_floats, read_csv_table, read_parquet_table

TABLE_NAMES = ("steps", "loads", "memory", "startup")
SUFFIXES = (".csv", ".csv.gz", ".parquet")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """A table of measurements whose cells are read column by column, with errors that name file, row and value."""

    file: str
    frame: pd.DataFrame

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.frame)

    def has(self, column: str) -> bool:
        """Return whether the table has the column."""
        return column in self.frame.columns

    def require(self, *columns: str) -> None:
        """Raise InputError unless the table has the columns."""
        missing = [name for name in columns if not self.has(name)]
        if missing:
            raise InputError(
                f"the table must have the columns {', '.join(columns)}. {self.file} lacks {', '.join(missing)}.",
                file=self.file,
                field=missing[0],
                hint="add the column; docs/calibration.md describes the tables",
            )

    def numbers(self, column: str, *, least: float = 0.0, default: Floats | None = None) -> Floats:
        """Return float64 [N] of finite numbers >= `least`; InputError for the first cell that is none.

        A missing column is `default`.
        """
        if default is not None and not self.has(column):
            return default
        values = self._parsed(column)
        self.refuse(column, ~np.isfinite(values) | (values < least), f"must be a number of at least {least:g}")
        return values

    def optional_numbers(self, column: str) -> Floats:
        """Return float64 [N] of finite numbers >= 0, NaN where the cell is empty."""
        values = self._parsed(column)
        is_empty = self._is_empty(column)
        bad = ~is_empty & ~(np.isfinite(values) & (values >= 0.0))
        self.refuse(column, bad, "must be empty or a number of at least 0")
        return values

    def counts(self, column: str, *, least: int = 0, default: Floats | None = None) -> Floats:
        """Return float64 [N] of integers >= `least`."""
        values = self.numbers(column, least=least, default=default)
        self.refuse(column, values != np.floor(values), "must be an integer")
        return values

    def slot_ranks(self, *, is_used: NDArray[np.bool_]) -> Floats:
        """Return ``max_lora_rank``, float64 [N]; InputError where it is used (bool [N]) and vLLM does not take it."""
        ranks = self.counts("max_lora_rank")
        known = ", ".join(str(rank) for rank in SUPPORTED_RANKS)
        self.refuse("max_lora_rank", is_used & ~np.isin(ranks, SUPPORTED_RANKS), f"must be one of {known}")
        return ranks

    def flags(self, column: str, *, default: Floats) -> Floats:
        """Return float64 [N] of 0 and 1; ``true`` and ``false`` are read, too."""
        if not self.has(column):
            return default
        words = self.frame[column].astype(str).str.strip().str.lower()
        values = words.map({"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0, "1.0": 1.0, "0.0": 0.0})
        self.refuse(column, values.isna().to_numpy(dtype=np.bool_), "must be 0 or 1")
        return np.asarray(values, dtype=np.float64)

    def words(self, column: str) -> NDArray[np.str_]:
        """Return str [N]; InputError where the cell is empty."""
        self.refuse(column, self._is_empty(column), "must have a value")
        return self.frame[column].astype(str).str.strip().to_numpy(dtype=np.str_)

    def refuse(self, column: str, is_bad: NDArray[np.bool_], demand: str) -> None:
        """Raise InputError for the first row of bool [N] `is_bad`."""
        if not is_bad.any():
            return
        row = int(np.argmax(is_bad))
        # Plain values: messages show numbers as they are written.
        value = self.frame[column].tolist()[row] if self.has(column) else None
        # The heading is line 1 of a CSV file; Parquet has rows only.
        where = f"{self.file}, row {row + 1}" if self.file.endswith(".parquet") else f"{self.file}:{row + 2}"
        raise InputError(
            f"`{column}` {demand}. Got {value!r} ({where}).",
            file=self.file,
            field=column,
            value=value,
            hint="correct the cell, or remove the row",
        )

    def _refuse_times(self, column: str) -> None:
        """Raise InputError for a column of durations or dates: as numbers they are counts of an unknown unit."""
        kinds = {"m": "durations", "M": "dates"}
        kind = kinds.get(self.frame[column].dtype.kind)
        if kind is not None:
            unit = "seconds" if column == "seconds" else "milliseconds"
            scale = "" if column == "seconds" else " * 1000"
            raise InputError(
                f"`{column}` must have numbers, not {kind}. Got {self.frame[column].tolist()[0]!r} ({self.file}).",
                file=self.file,
                field=column,
                value=str(self.frame[column].tolist()[0]),
                hint=f"write {unit} as numbers, such as `frame[{column!r}].dt.total_seconds(){scale}`"
                if kind == "durations"
                else "choose another column",
            )

    def _is_empty(self, column: str) -> NDArray[np.bool_]:
        cells = self.frame[column]
        is_empty = cells.isna() | (cells.astype(str).str.strip() == "")
        return is_empty.to_numpy(dtype=np.bool_)

    def _parsed(self, column: str) -> Floats:
        self.require(column)
        self._refuse_times(column)
        return as_floats(self.frame[column])


def find_tables(data: Path) -> dict[str, Table]:
    """Return the tables of a folder by name (`TABLE_NAMES`), or the one table of ``steps`` that `data` is.

    Raises
    ------
    InputError
        When there is none, one stands there twice, or one cannot be read.
    """
    if data.is_file():
        return {"steps": read_measurements(data)}
    if not data.is_dir():
        raise InputError(
            f"the measurements must be a folder or a table of steps. {data} is neither.",
            file=str(data),
            hint="check the path; docs/calibration.md describes the tables",
        )
    tables: dict[str, Table] = {}
    for name in TABLE_NAMES:
        paths = [data / f"{name}{suffix}" for suffix in SUFFIXES if (data / f"{name}{suffix}").is_file()]
        if len(paths) > 1:
            raise InputError(
                f"a table must stand in one file. {data} has {' and '.join(path.name for path in paths)}.",
                file=str(paths[1]),
                field=name,
                hint="remove one of them",
            )
        if paths:
            tables[name] = read_measurements(paths[0])
    if not tables:
        measured = sorted(manifest.parent for manifest in data.glob(f"*/{MANIFEST}"))
        named = f"{measured[0]}, which `placer measure` wrote" if measured else "the folder with the measurements"
        raise InputError(
            f"the folder must hold a table: {', '.join(TABLE_NAMES)} ({', '.join(SUFFIXES)}), or the calib_* tables. "
            f"{data} has none of them.",
            file=str(data),
            hint=f"give {named}, or --prior-only to do without",
        )
    return tables


def read_measurements(path: Path) -> Table:
    """Read a table with at least one row (InputError)."""
    # Cells of CSV stay text, so that a message shows them as they are written.
    read = read_parquet_table if path.suffix == ".parquet" else read_csv_table
    return Table(str(path), read(path).frame.rename(columns=lambda name: str(name).strip()))


def read_steps(table: Table) -> StepObservations:
    """Return a table of steps as observations (InputError).

    Rows of a ``measurement`` are one; the steps of a log become means over those that are alike, and equal rows of
    other tables one of their median time (twin/calibration/alike_steps.py).
    """
    table.require("tokens", "requests", "context_tokens", "time_ms")
    nothing = np.zeros(len(table))
    tokens, requests = table.counts("tokens", least=1), table.counts("requests", least=1)
    table.refuse("requests", requests > tokens, "must be at most `tokens`: each scheduled request gets one or more")
    slots, adapters = table.counts("max_loras", default=nothing), table.counts("adapters", default=nothing)
    table.refuse(
        "adapters", adapters > np.minimum(slots, requests), "must be at most `max_loras` and at most `requests`"
    )
    ranks = table.slot_ranks(is_used=slots > 0) if (slots > 0).any() else nothing
    cached = table.counts("cached_adapters", default=adapters)
    table.refuse(
        "cached_adapters",
        cached < adapters,
        "must be at least `adapters`: adapters of the batch are in CPU memory, too",
    )
    has_prefill = table.flags("has_prefill", default=(tokens > requests).astype(np.float64))
    time_ms = table.numbers("time_ms")
    table.refuse("time_ms", time_ms <= 0, "must be greater than 0")
    frame = pd.DataFrame(
        {
            "tokens": tokens,
            "requests": requests,
            "context_tokens": table.numbers("context_tokens"),
            "adapters": adapters,
            "prefill": has_prefill,
            "changed": table.flags("is_batch_changed", default=has_prefill),
            "waiting": table.counts("waiting", default=nothing),
            "slots": slots,
            "max_rank": np.where(slots > 0, ranks, 0.0),
            "cached_adapters": cached,
            "time_ms": time_ms,
            "weight": _weights(table),
        }
    )
    frame["regime"] = table.words("regime") if table.has("regime") else regime_names(frame)
    frame["group"] = _names(table, "group", prefix="row")
    if table.has("measurement"):
        names = table.words("measurement")
        _require_one_time(table, names, time_ms)
        return observations_of(frame, pd.factorize(names)[0].astype(np.int64))
    if table.has("step"):
        return observations_of(*means_of_alike(frame))
    frame = medians_of_equal(frame, is_grouped=table.has("group"))
    return observations_of(frame, np.arange(len(frame)))


def regime_names(frame: pd.DataFrame) -> NDArray[np.str_]:
    """Return str [N]: what kind of step each row is."""
    kind = np.where(frame["prefill"] > 0, "prefill or mixed step", "decode")
    lora = np.where(
        frame["slots"] == 0, "without LoRA", np.where(frame["adapters"] > 0, "with LoRA", "slots without adapters")
    )
    return np.array([f"{one}, {other}" for one, other in zip(kind, lora, strict=True)], dtype=np.str_)


def joined(*parts: StepObservations) -> StepObservations:
    """Return the measurements of all parts, one after the other; groups of one name in two parts stay two."""
    if len(parts) == 1:
        return parts[0]
    offsets = np.cumsum([0, *(len(part.time_ms) for part in parts)])
    named = [set(part.group.tolist()) for part in parts]
    is_shared = any(one & other for index, one in enumerate(named) for other in named[:index])
    groups = [
        np.char.add(f"{number} ", part.group) if is_shared else part.group for number, part in enumerate(parts, start=1)
    ]
    return StepObservations(
        Steps(
            **{item.name: np.concatenate([getattr(part.steps, item.name) for part in parts]) for item in fields(Steps)}
        ),
        np.concatenate([part.weight for part in parts]),
        np.concatenate([part.measurement + offset for part, offset in zip(parts, offsets, strict=False)]),
        np.concatenate([part.time_ms for part in parts]),
        np.concatenate([part.regime for part in parts]),
        np.concatenate(groups),
    )


def no_steps() -> StepObservations:
    """Return no observations."""
    empty, words = np.zeros(0), np.zeros(0, dtype=np.str_)
    whole = np.zeros(0, dtype=np.int64)
    steps = Steps(empty, empty, empty, empty, empty, empty, empty, whole, whole, empty)
    return StepObservations(steps, empty, whole, empty, words, words)


def _weights(table: Table) -> Floats:
    if table.has("count") and table.has("weight"):
        raise InputError(
            f"a table must have one of the columns `count` and `weight`. {table.file} has both.",
            file=table.file,
            field="weight",
            hint="remove one of them",
        )
    column = "weight" if table.has("weight") else "count"
    weights = table.numbers(column, default=np.ones(len(table)))
    table.refuse(column, weights <= 0, "must be greater than 0")
    return weights


def _names(table: Table, column: str, *, prefix: str) -> NDArray[np.str_]:
    if table.has(column):
        return table.words(column)
    return np.array([f"{prefix} {row + 1}" for row in range(len(table))], dtype=np.str_)


def _require_one_time(table: Table, names: NDArray[np.str_], time_ms: Floats) -> None:
    first = pd.Series(time_ms).groupby(names).transform("first").to_numpy(dtype=np.float64)
    differs = ~np.isclose(time_ms, first, rtol=1e-6)
    table.refuse("time_ms", differs, "must be the same in all rows of a `measurement`: it is their mean")


def observations_of(frame: pd.DataFrame, measurement: NDArray[np.int64]) -> StepObservations:
    """Return rows with the columns of `Steps`, and time_ms, weight, regime and group, as observations.

    Parameters
    ----------
    measurement
        int64 [rows], the number of each row's measurement, from 0 on; time, regime and group are those of its first
        row.
    """
    first = np.unique(measurement, return_index=True)[1]
    column = {name: frame[name].to_numpy() for name in frame.columns}
    return StepObservations(
        steps=Steps(
            tokens=column["tokens"],
            requests=column["requests"],
            context_tokens=column["context_tokens"],
            adapters=column["adapters"],
            prefill=column["prefill"],
            changed=column["changed"],
            waiting=column["waiting"],
            slots=column["slots"].astype(np.int64),
            max_rank=column["max_rank"].astype(np.int64),
            cached_adapters=column["cached_adapters"],
        ),
        weight=column["weight"],
        measurement=measurement,
        time_ms=column["time_ms"][first],
        regime=column["regime"][first].astype(np.str_),
        group=column["group"][first].astype(np.str_),
    )
