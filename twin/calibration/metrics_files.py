"""Read samples of metrics: Prometheus' answers, text pages as a server shows them, and `placer measure`'s table.

Every reader takes the samples to a `SampleSink`. Times are unix seconds, or any clock that all files share.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from twin.bounded_read import MOST_MEASUREMENT_BYTES, parse_json, read_bounded_text
from twin.calibration.metrics_names import KNOWN_METRICS, vllm_name
from twin.errors import InputError, TwinError
from twin.tables import read_parquet_table

# Columns of the table that `placer measure` writes (twin/measurement/records.py).
TABLE_COLUMNS = ("time_s", "name", "labels", "value")
SCRAPED_AT = "# scraped_at"
RESULT_TYPES = ("matrix", "vector")

# Unix seconds (or milliseconds), or a date and time in UTC, in a file's name.
_UNIX_TIME = re.compile(r"(?<!\d)(\d{10})(\d{3})?((?<=\d{10})\.\d+)?(?!\d)")
_DATE_TIME = re.compile(r"(\d{4})-?(\d{2})-?(\d{2})[T_-]?(\d{2})[:_-]?(\d{2})[:_-]?(\d{2})")
_METRIC_LINE = re.compile(r"(vllm[:_][a-zA-Z0-9_:]*|process_start_time_seconds)[{\s]")
_SAMPLE_LINE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)[{\s]")
_ASK = 'ask for raw samples, such as query={__name__=~"vllm:.+"}[1h] of /api/v1/query'


class SampleSink(Protocol):
    """What takes samples; `origin` tells apart servers that have the same labels."""

    def add(self, origin: str, time_s: float, name: str, labels: Mapping[str, str], value: float) -> None:
        """Take one of them."""


def is_calibration_metric(name: str) -> bool:
    """Return whether a calibration reads a metric."""
    return vllm_name(name) in KNOWN_METRICS


def is_prometheus_answer(content: object) -> bool:
    """Return whether parsed JSON is an answer of Prometheus' HTTP API."""
    return isinstance(content, dict) and "status" in content and ("data" in content or "error" in content)


def is_metrics_text(head: str) -> bool:
    """Return whether a text begins like a page of vLLM's metrics, or a file of such pages."""
    lines = [line for line in head.splitlines() if line.strip()]
    return bool(lines) and (
        lines[0].startswith(SCRAPED_AT)
        or any(_METRIC_LINE.match(line) or line.startswith(("# HELP vllm", "# TYPE vllm")) for line in lines)
    )


def read_prometheus(content: Mapping[str, Any], collector: SampleSink, *, file: str) -> None:
    """Take the samples of a range query, or of an instant query, of /api/v1 (InputError)."""
    if content["status"] != "success":
        raise InputError(
            f"Prometheus must have answered. {file} holds its error: {content.get('error', content['status'])}.",
            file=file,
            field="status",
            value=content["status"],
            hint="ask again",
        )
    data = content.get("data")
    kind = data.get("resultType") if isinstance(data, dict) else None
    if kind not in RESULT_TYPES:
        raise _bad_answer(file, "data.resultType", kind, f"must be {' or '.join(RESULT_TYPES)}")
    results = data.get("result") if isinstance(data, dict) else None
    if not isinstance(results, list):
        raise _bad_answer(file, "data.result", results, "must be a list of series")
    for index, entry in enumerate(results):
        where = f"data.result.{index}"
        metric = entry.get("metric") if isinstance(entry, dict) else None
        if not isinstance(metric, dict) or "__name__" not in metric:
            raise _bad_answer(
                file, f"{where}.metric", metric, "must name its metric (`__name__`): rates and sums of it do not tell"
            )
        labels = {str(key): str(value) for key, value in metric.items() if key != "__name__"}
        values = entry.get("values") if kind == "matrix" else [entry.get("value")]
        if not isinstance(values, list):
            raise _bad_answer(file, f"{where}.values", values, "must be a list of [time, value]")
        for number, pair in enumerate(values):
            time_s, value = _pair(pair, file, f"{where}.values.{number}" if kind == "matrix" else f"{where}.value")
            collector.add("", time_s, str(metric["__name__"]), labels, value)


def read_text_pages(
    path: Path, collector: SampleSink, *, is_read: Callable[[str], bool] = is_calibration_metric
) -> bool:
    """Take the samples of a text page, or of several of them, each after a line ``# scraped_at SECONDS``.

    A file of one page without that line has its time in its name, or was last modified at it. Only metrics of which
    `is_read` says so are looked at.

    Returns
    -------
    Whether the time is that of the last modification.

    Raises
    ------
    InputError
        When the file is unreadable, or a line is none of the format.
    TwinError
        When prometheus_client is not installed.
    """
    try:
        lines = read_bounded_text(path, most_bytes=MOST_MEASUREMENT_BYTES).splitlines()
        modified_s = path.stat().st_mtime
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"metrics must be a readable file of UTF-8 text. {path}: {error}.", file=str(path), hint="check the path"
        ) from error
    marks = [number for number, line in enumerate(lines) if line.startswith(SCRAPED_AT)]
    if marks:
        for mark, end in zip(marks, [*marks[1:], len(lines)], strict=True):
            time_s = _scrape_time(lines[mark], f"{path}:{mark + 1}", str(path))
            # Pages in one file are of one server; another file may be of another.
            page = lines[mark + 1 : end]
            read_page(page, collector, path.name, time_s=time_s, file=str(path), first=mark + 2, is_read=is_read)
        return False
    named_s = time_in_name(path.stem)
    time_s = modified_s if named_s is None else named_s
    read_page(lines, collector, "pages", time_s=time_s, file=str(path), is_read=is_read)
    return named_s is None


def read_metrics_table(path: Path, collector: SampleSink) -> None:
    """Take the samples of the table ``metrics`` that `placer measure` writes (InputError).

    Each segment starts with a server of its own, as far as the table knows.
    """
    frame = read_parquet_table(path).frame
    missing = [name for name in TABLE_COLUMNS if name not in frame]
    if missing:
        raise InputError(
            f"a table of metrics must have the columns {', '.join(TABLE_COLUMNS)}. {path} lacks {', '.join(missing)}.",
            file=str(path),
            field=missing[0],
            hint="give the table that `placer measure` wrote",
        )
    if "segment" not in frame:
        frame = frame.assign(segment=1)
    # A page that could not be had is a row without a name.
    is_sample = frame["name"].notna().to_numpy(dtype=np.bool_)
    if not is_sample.any():
        raise _no_page(frame, path)
    frame = frame[is_sample]
    frame = frame[np.array([is_calibration_metric(str(name)) for name in frame["name"]], dtype=np.bool_)]
    labels: dict[str, dict[str, str]] = {}
    columns = (frame[name].tolist() for name in ("segment", *TABLE_COLUMNS))
    for segment, time_s, name, text, value in zip(*columns, strict=True):
        if text not in labels:
            labels[text] = _parse_labels(str(text), str(path))
        collector.add(f"{path.name} segment {segment}", float(time_s), str(name), labels[text], float(value))


def time_in_name(stem: str) -> float | None:
    """Return the unix seconds that a file's name holds: as a number, or as a date and time in UTC."""
    unix = _UNIX_TIME.search(stem)
    if unix:
        seconds, milliseconds, fraction = unix.groups()
        return float(seconds) + (int(milliseconds) / 1000.0 if milliseconds else float(fraction or 0.0))
    date = _DATE_TIME.search(stem)
    if date:
        try:
            return dt.datetime(*map(int, date.groups()), tzinfo=dt.UTC).timestamp()  # type: ignore[arg-type,misc]
        except ValueError:
            return None
    return None


def read_page(
    lines: Sequence[str],
    collector: SampleSink,
    origin: str,
    *,
    time_s: float,
    file: str,
    first: int = 1,
    is_read: Callable[[str], bool] = is_calibration_metric,
) -> None:
    """Take the samples of one page, scraped at `time_s`, whose first line has the number `first` in `file`.

    Raises
    ------
    InputError
        When a line of a metric that is read is none of the format.
    TwinError
        When prometheus_client is not installed.
    """
    try:
        from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415 - optional
    except ImportError as error:
        raise TwinError(
            "prometheus_client must be installed to read pages of metrics. It is not.",
            field="prometheus_client",
            hint="install the extra: pip install 'lora-placer[measure]'",
        ) from error
    for number, line in _lines_read(lines, is_read):
        try:
            samples = [
                (sample.name, sample.labels, float(sample.value))
                for family in text_string_to_metric_families(line + "\n")
                for sample in family.samples
            ]
        except (ValueError, LookupError, TypeError, OverflowError) as error:
            # The parser has no error of its own.
            raise InputError(
                f"a line must be a sample in Prometheus' text format. Got {line[:80]!r} ({file}:{first + number}).",
                file=file,
                field="line",
                value=line[:80],
                hint="save what the server's /metrics shows, unchanged",
            ) from error
        for name, labels, value in samples:
            collector.add(origin, time_s, name, labels, value)


def _lines_read(lines: Sequence[str], is_read: Callable[[str], bool]) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(lines):
        match = _SAMPLE_LINE.match(line)
        if match and is_read(match.group(1)):
            yield number, line


def _scrape_time(line: str, where: str, file: str) -> float:
    text = line.removeprefix(SCRAPED_AT).strip().removeprefix(":").strip()
    try:
        time_s = float(text)
    except ValueError:
        time_s = math.nan
    if not math.isfinite(time_s):
        raise InputError(
            f"`{SCRAPED_AT}` must be followed by unix seconds. Got {text!r} ({where}).",
            file=file,
            field="scraped_at",
            value=text,
            hint='write it by `echo "# scraped_at $(date +%s.%N)"` before each page',
        )
    return time_s


def _pair(pair: object, file: str, where: str) -> tuple[float, float]:
    if isinstance(pair, list) and len(pair) == 2:
        try:
            time_s, value = float(pair[0]), float(pair[1])
        except (TypeError, ValueError, OverflowError):
            time_s = value = math.nan
        # A value may be NaN, such as that of a histogram without samples; a time may not.
        if math.isfinite(time_s):
            return time_s, value
    raise _bad_answer(file, where, pair, "must be [time, value], both numbers, and the time finite")


def _parse_labels(text: str, file: str) -> dict[str, str]:
    try:
        labels = parse_json(text)
    except ValueError:
        labels = None
    if not isinstance(labels, dict):
        raise InputError(
            f"`labels` must be a JSON object. Got {text[:80]!r} ({file}).",
            file=file,
            field="labels",
            value=text[:80],
            hint="give the table that `placer measure` wrote",
        )
    return {str(key): str(value) for key, value in labels.items()}


def _bad_answer(file: str, field: str, value: object, demand: str) -> InputError:
    shown = repr(value)
    return InputError(
        f"`{field}` {demand}. Got {shown[:80]} ({file}).", file=file, field=field, value=shown[:80], hint=_ASK
    )


def _no_page(frame: pd.DataFrame, path: Path) -> InputError:
    reasons = [str(text) for text in frame["error"].dropna().unique()] if "error" in frame else []
    return InputError(
        f"a measurement must have recorded pages of metrics. {path} has none: {'; '.join(reasons[:3]) or 'no reason'}.",
        file=str(path),
        field="name",
        hint="measure again with the address at which the server shows its metrics: --metrics-url",
    )
