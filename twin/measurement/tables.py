"""Turn the shards of a measurement into Parquet tables, each written whole or not at all."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from twin.atomic_write import replacement_of
from twin.errors import InputError, TwinError
from twin.measurement.records import LOST, SENT, TABLES, ShardReader
from twin.workload import RequestTable, Workload

SCHEDULE = "schedule"
BATCH_ROWS = 10_000
# Finished requests, and by when they came, are looked for by number.
SORTED_BY = {"requests": [("request", "ascending"), ("attempt", "ascending")]}

_TYPES = {
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "string": pa.string(),
    "list<int32>": pa.list_(pa.int32()),
    "list<float64>": pa.list_(pa.float64()),
}
_SCHEDULE_COLUMNS = pa.schema(
    [
        ("request", pa.int64()),
        ("arrival_ns", pa.int64()),
        ("adapter", pa.string()),
        ("rank", pa.int32()),
        ("prompt_tokens", pa.int32()),
        ("output_tokens", pa.int32()),
    ]
)


def schema_of(table: str) -> pa.Schema:
    """Return the Arrow schema of one of `TABLES`."""
    return pa.schema([(column.name, _TYPES[column.kind]) for column in TABLES[table]])


def table_path(folder: Path, table: str) -> Path:
    """Return the path of a table in a measurement's folder."""
    return folder / f"{table}.parquet"


def consolidate(shards: Path, folder: Path) -> tuple[dict[str, int], int]:
    """Write every table that the shards have records of, replacing older versions.

    Returns
    -------
    tuple
        Rows by table, and lines of shards that could not be read.

    Raises
    ------
    InputError
        When a record is damaged.
    TwinError
        When pages of metrics were recorded and prometheus_client is not installed.
    OSError
        When a table cannot be written.
    """
    reader = ShardReader(shards)
    rows = {}
    for table in TABLES:
        try:
            count = _write_table(table, _records_of(table, reader), table_path(folder, table))
        except (pa.ArrowException, KeyError, TypeError, OverflowError, UnicodeError) as error:
            raise InputError(
                f"records must be as the measurement wrote them. {shards / table}-*.jsonl: {str(error).rstrip('.')}.",
                file=str(shards),
                field=table,
                hint="remove the damaged line, or measure again",
            ) from error
        if count:
            rows[table] = count
    return rows, reader.unreadable


def read_table(folder: Path, table: str) -> pd.DataFrame:
    """Return a table of a measurement; without rows if it recorded none (InputError for a damaged file)."""
    path = table_path(folder, table)
    if not path.exists():
        return _frame_of(schema_of(table).empty_table())
    try:
        return _frame_of(pq.read_table(path))
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"a measurement's table must be readable Parquet. {path}: {str(error).rstrip('.')}.",
            file=str(path),
            hint="make the tables again while there are shards: `placer measure --finish FOLDER`; else measure again",
        ) from error


def save_schedule(requests: RequestTable, workload: Workload, folder: Path) -> None:
    """Write the requests that a measurement sends, in order of arrival."""
    names = np.array([adapter.name for adapter in workload.adapters], dtype=np.object_)
    ranks = np.array([adapter.rank for adapter in workload.adapters], dtype=np.int32)
    is_base = requests.adapter < 0
    owner = np.where(is_base, 0, requests.adapter)
    table = pa.Table.from_arrays(
        [
            pa.array(np.arange(len(requests), dtype=np.int64)),
            pa.array(requests.arrival_ns),
            pa.array(names[owner], type=pa.string(), mask=is_base),
            pa.array(ranks[owner], mask=is_base),
            pa.array(requests.prompt_tokens),
            pa.array(requests.output_tokens),
        ],
        schema=_SCHEDULE_COLUMNS,
    )
    _write_parquet(table, table_path(folder, SCHEDULE))


def load_schedule(folder: Path, names: Iterable[str], *, num_requests: int | None = None) -> RequestTable:
    """Return the requests of a measurement.

    Parameters
    ----------
    names
        Of the adapters, in the order of their numbers.
    num_requests
        How many there must be; ``None``: any number.

    Raises
    ------
    InputError
        When the file cannot be read, or is not that of the measurement.
    """
    path = table_path(folder, SCHEDULE)
    number = {name: index for index, name in enumerate(names)}
    try:
        table = pq.read_table(path, schema=_SCHEDULE_COLUMNS)
        # Columns that the file does not have are read as empty.
        if any(table.column(name).null_count for name in ("arrival_ns", "prompt_tokens", "output_tokens")):
            raise pa.ArrowInvalid("it has empty cells")
        if num_requests is not None and table.num_rows != num_requests:
            raise pa.ArrowInvalid(f"it has {table.num_rows} requests, and the manifest says {num_requests}")
        asked = table.column("adapter").to_pylist()
        adapter = np.array([-1 if name is None else number[name] for name in asked], dtype=np.int32)
    except (OSError, pa.ArrowException, KeyError) as error:
        raise InputError(
            f"a measurement's schedule must be readable and name its adapters. {path}: {str(error).rstrip('.')}.",
            file=str(path),
            hint="measure again into a new folder",
        ) from error
    frame = _frame_of(table)
    return RequestTable(
        frame["arrival_ns"].to_numpy(dtype=np.int64),
        adapter,
        frame["prompt_tokens"].to_numpy(dtype=np.int32),
        frame["output_tokens"].to_numpy(dtype=np.int32),
    )


def sent_requests(shards: Path) -> set[int]:
    """Return the numbers of the requests that were sent, whatever became of them."""
    return {int(record["request"]) for record in ShardReader(shards).records(SENT)}


def _records_of(table: str, reader: ShardReader) -> Iterator[Mapping[str, Any]]:
    if table == "requests":
        return _requests(reader)
    if table == "metrics":
        return itertools.chain.from_iterable(_samples(record) for record in reader.records(table))
    return reader.records(table)


def _requests(reader: ShardReader) -> Iterator[Mapping[str, Any]]:
    """Yield the outcomes, then what was sent and has none: the measuring process did not live to see it."""
    known = set()
    for record in reader.records("requests"):
        known.add((record["request"], record["attempt"]))
        yield record
    for record in reader.records(SENT):
        if (record["request"], record["attempt"]) not in known:
            error = "the process that measured ended before the outcome"
            yield {**record, "status": LOST, "generated_tokens": None, "error": error}


def _samples(record: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield a row per sample of a recorded page of metrics, and one with the error where there is one."""
    page = {key: record[key] for key in ("time_s", "duration_s", "segment")}
    if record.get("error"):
        yield {**page, "error": record["error"]}
        return
    try:
        from twin.measurement.metrics_page import PageError, samples_of  # noqa: PLC0415 - an optional library
    except ImportError as error:
        raise TwinError(
            "prometheus_client must be installed to read the recorded metrics. It is not.",
            field="prometheus_client",
            hint="install the extra: pip install 'lora-placer[measure]'; then `placer measure --finish FOLDER`",
        ) from error
    try:
        for name, labels, value in samples_of(record["text"]):
            yield {**page, "name": name, "labels": json.dumps(labels, sort_keys=True), "value": value}
    except PageError as error:
        yield {**page, "error": str(error)}


def _write_table(name: str, records: Iterable[Mapping[str, Any]], path: Path) -> int:
    """Write the records, batch by batch unless they are to be sorted; no file without records."""
    schema = schema_of(name)
    batches = (pa.Table.from_pylist(list(batch), schema=schema) for batch in _batched(records))
    first = next(batches, None)
    if first is None:
        path.unlink(missing_ok=True)
        return 0
    if name in SORTED_BY:
        table = pa.concat_tables([first, *batches]).sort_by(SORTED_BY[name])
        _write_parquet(table, path)
        return int(table.num_rows)
    count = 0
    with replacement_of(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for batch in itertools.chain([first], batches):
            writer.write_table(batch)
            count += batch.num_rows
    return count


def _write_parquet(table: pa.Table, path: Path) -> None:
    with replacement_of(path) as temporary:
        pq.write_table(table, temporary)


def _frame_of(table: pa.Table) -> pd.DataFrame:
    frame: pd.DataFrame = table.to_pandas()
    return frame


def _batched(records: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], ...]]:
    iterator = iter(records)
    while batch := tuple(itertools.islice(iterator, BATCH_ROWS)):
        yield batch
