"""Write a simulation's report: as JSON, or as Parquet with one row per adapter and the whole report in its metadata."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from placer.files import write_atomically
from twin.atomic_write import is_standard_output
from twin.errors import InputError
from twin.report import SimulationReport

SUFFIXES = (".json", ".parquet")
METADATA_KEY = "placer_report"


def require_report_path(path: Path) -> None:
    """Raise InputError unless the suffix says how to write the report; standard output gets JSON."""
    if path.suffix not in SUFFIXES and not is_standard_output(path):
        raise InputError(
            f"a report must be written to a file ending in {' or '.join(SUFFIXES)}. Got {path}.",
            file=str(path),
            field="output",
            value=str(path),
        )


def save_report(report: SimulationReport, path: Path) -> None:
    """Write a report whole or not at all (InputError when the path is not writable)."""
    require_report_path(path)
    if path.suffix != ".parquet":
        write_atomically(path, report.model_dump_json(indent=2) + "\n")
    else:
        write_atomically(path, _parquet(report))


def _parquet(report: SimulationReport) -> bytes:
    import pyarrow as pa  # noqa: PLC0415 - takes half a second, and JSON does without
    import pyarrow.parquet as pq  # noqa: PLC0415

    table = pa.Table.from_pylist([_flat(adapter.model_dump()) for adapter in report.adapters])
    table = table.replace_schema_metadata({METADATA_KEY: report.model_dump_json()})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record with nested mappings as columns: ``ttft.p95_s`` becomes ``ttft_p95_s``."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            # A latency without any sample is a missing number, not a missing column type.
            flat |= {f"{name}_{inner}": float("nan") if number is None else number for inner, number in value.items()}
        else:
            flat[name] = value
    return flat
