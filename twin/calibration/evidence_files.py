"""Find out by its content what a file of measurements is: a table, metrics, or results of a benchmark."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from twin.calibration.bench_files import BenchResult, parse_results, read_json_values
from twin.calibration.metrics_files import TABLE_COLUMNS, is_metrics_text, is_prometheus_answer
from twin.calibration.step_table import SUFFIXES, TABLE_NAMES
from twin.errors import InputError
from twin.measurement.folder import MANIFEST
from twin.measurement.records import TABLES
from twin.measurement.tables import SCHEDULE, table_path

JSON_SUFFIXES = (".json", ".jsonl")
TEXT_SUFFIXES = ("", ".txt", ".prom", ".metrics", ".text")
# Files of settings, which are read when asked for.
SETTINGS_SUFFIXES = (".yaml", ".yml")
HEAD_BYTES = 65536
# What `placer measure` writes, and gives no step time unless it is a table that is read.
MEASUREMENT_FILES = frozenset({MANIFEST, "engine.log", *(f"{name}.parquet" for name in (SCHEDULE, *TABLES))})


@dataclass
class EvidenceFiles:
    """The files of the measurements by what they hold.

    Attributes
    ----------
    answers
        Answers of Prometheus.
    pages
        Text pages of a server.
    metrics_tables
        Tables of metrics that `placer measure` wrote.
    results
        Results of ``vllm bench serve``.
    unread
        Names of files that are none of these, and no table of a user's own.
    has_tables
        Whether the folder has tables of a user's own, too.
    """

    answers: list[tuple[Path, dict[str, Any]]] = field(default_factory=list)
    pages: list[Path] = field(default_factory=list)
    metrics_tables: list[Path] = field(default_factory=list)
    results: list[tuple[Path, tuple[BenchResult, ...]]] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    has_tables: bool = False

    @property
    def metrics(self) -> list[Path]:
        """Files with metrics."""
        return [*(path for path, _ in self.answers), *self.pages, *self.metrics_tables]


def recognise(data: Path) -> EvidenceFiles:
    """Return the files of a folder, or the one file, by what they hold.

    Raises
    ------
    InputError
        When the one file is nothing known, a file that looks like a benchmark's result is none, or one is damaged.
    """
    files = EvidenceFiles()
    if data.is_file():
        if not _is_table(data) and not _recognise(data, files):
            raise _unrecognised(data)
        return files
    own_tables = {f"{name}{suffix}" for name in TABLE_NAMES for suffix in SUFFIXES}
    known = MEASUREMENT_FILES if is_measurement(data) else frozenset()
    for path in sorted(data.iterdir()) if data.is_dir() else ():
        if not path.is_file() or path.name.startswith(".") or path.suffix in SETTINGS_SUFFIXES:
            continue
        if path.name in own_tables:
            files.has_tables = True
        elif not _recognise(path, files) and path.name not in known:
            files.unread.append(path.name)
    return files


def is_measurement(folder: Path) -> bool:
    """Return whether `placer measure` wrote the folder (twin/measurement/folder.py)."""
    return (folder / MANIFEST).is_file() and table_path(folder, SCHEDULE).is_file()


def _recognise(path: Path, files: EvidenceFiles) -> bool:
    """Note what a file holds, and return whether that is metrics or results."""
    if path.suffix in JSON_SUFFIXES:
        return _recognise_json(path, files)
    if path.suffix == ".parquet" and _is_metrics_table(path):
        files.metrics_tables.append(path)
        return True
    if path.suffix in TEXT_SUFFIXES and is_metrics_text(_head(path)):
        files.pages.append(path)
        return True
    return False


def _recognise_json(path: Path, files: EvidenceFiles) -> bool:
    values = read_json_values(path)
    if values and is_prometheus_answer(values[0]):
        files.answers += [(path, value) for value in values if is_prometheus_answer(value)]
        return True
    results = parse_results(values, file=str(path)) if values else ()
    if results:
        files.results.append((path, results))
    return bool(results)


def _is_table(path: Path) -> bool:
    return path.name.endswith((".csv", ".csv.gz")) or (path.suffix == ".parquet" and not _is_metrics_table(path))


def _is_metrics_table(path: Path) -> bool:
    try:
        names = pq.read_schema(path).names
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"a table must be CSV in UTF-8 or Parquet. {path}: {error}.", file=str(path), hint="save it again"
        ) from error
    return set(TABLE_COLUMNS) <= set(names)


def _head(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return stream.read(HEAD_BYTES).decode("utf-8", errors="replace")
    except OSError as error:
        raise InputError(
            f"measurements must be readable. {path}: {error.strerror}.", file=str(path), hint="check the path"
        ) from error


def _unrecognised(path: Path) -> InputError:
    return InputError(
        "measurements must be a folder, a table of steps (.csv, .parquet), metrics of vLLM (an answer of Prometheus' "
        f"/api/v1/query, text pages, `placer measure`'s table) or results of `vllm bench serve`. "
        f"{path} is none of them.",
        file=str(path),
        field="data",
        value=path.name,
        hint="look at the file's first lines; docs/calibration.md describes the formats",
    )
