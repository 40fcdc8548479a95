"""Tell sources apart, and read each kind of them with its reader."""

from __future__ import annotations

import datetime as dt
import json
import math
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from placer.observing.access_logs import FIELDS, LATEST_UNIX_S, LogWindow, read_access_logs
from placer.observing.benchmarks import read_benchmarks
from placer.observing.evidence import Observation
from placer.observing.http_source import HttpAccess
from placer.observing.metrics import MODEL_LABEL, observe_metrics
from placer.observing.prometheus import ask_prometheus, read_metrics_files, watch_pages
from placer.observing.samples import REQUESTS, TrafficSamples
from twin.calibration.bench_files import is_bench_result
from twin.calibration.metrics_files import is_metrics_text, is_prometheus_answer
from twin.errors import InputError

DEFAULT_WINDOW_S = 3600.0
DEFAULT_WATCH_S = 60.0
DEFAULT_EVERY_S = 1.0
TOKEN_VARIABLE = "PROMETHEUS_TOKEN"  # noqa: S105 - its name
_HEAD_BYTES = 65536
_JSON_SUFFIX = ".json"


@dataclass(frozen=True)
class SourceSettings:
    """How sources are read.

    Attributes
    ----------
    window_s, end_s
        Seconds, and unix seconds of the end; ``None``: a log from its begin to its end, `DEFAULT_WINDOW_S` of
        Prometheus until now, pages for `DEFAULT_WATCH_S`.
    every_s
        Between two scrapes of pages, > 0.
    selector
        Matchers of PromQL.
    request_counter, adapter_label
        Counter of requests, and its label with the adapter.
    fields
        Names in the lines of a log.
    base_models
        Names that are no adapters.
    access
        Token, time and size of answers.
    """

    window_s: float | None = None
    end_s: float | None = None
    every_s: float = DEFAULT_EVERY_S
    selector: str = ""
    request_counter: str = REQUESTS
    adapter_label: str = MODEL_LABEL
    fields: Mapping[str, str] = field(default_factory=dict)
    base_models: tuple[str, ...] = ()
    access: HttpAccess = field(default_factory=HttpAccess)

    def __post_init__(self) -> None:
        """Refuse times that are none."""
        for name, value in (("window", self.window_s), ("every", self.every_s), ("timeout", self.access.timeout_s)):
            if value is not None and not 0.0 < value < float("inf"):
                raise InputError(f"`{name}` must be a number of seconds above 0. Got {value}.", field=name, value=value)


@dataclass
class _Sorted:
    logs: list[Path] = field(default_factory=list)
    metrics: list[Path] = field(default_factory=list)
    benchmarks: list[Path] = field(default_factory=list)
    pages: list[str] = field(default_factory=list)
    servers: list[str] = field(default_factory=list)


def observe_sources(
    sources: Sequence[str],
    settings: SourceSettings,
    *,
    known_adapters: Collection[str] = (),
    clock: Callable[[], float] = time.time,
) -> tuple[Observation, ...]:
    """Read all sources: at most one observation of each kind, logs first.

    Parameters
    ----------
    sources
        Files (access logs, pages or answers of metrics, results of benchmarks), addresses of Prometheus, and of pages
        of metrics (their path ends in ``/metrics``).
    known_adapters
        See `observe_metrics`.
    clock
        Unix seconds now.

    Raises
    ------
    InputError, TwinError
        As the readers do; also when a source is none of them.
    """
    found = _sorted(sources)
    observations = []
    if found.logs:
        window = LogWindow(settings.window_s, settings.end_s)
        observations.append(
            read_access_logs(
                found.logs, fields=settings.fields, window=window, base_models=settings.base_models, now_s=clock()
            )
        )
    if found.metrics or found.pages or found.servers:
        observations.append(_metrics(found, settings, known_adapters, clock))
    if found.benchmarks:
        observations.append(read_benchmarks(found.benchmarks))
    return tuple(observations)


def parse_fields(text: str | None) -> dict[str, str]:
    """Read ``role=name`` pairs such as ``time=ts,model=request.model`` (InputError for anything else)."""
    pairs = [part.partition("=") for part in text.split(",")] if text else []
    for role, _, name in pairs:
        if role.strip() not in FIELDS or not name.strip():
            raise InputError(
                f"fields must be given as role=name, with a role of {', '.join(FIELDS)}. Got {text!r}.",
                field="fields",
                value=text,
                hint="for example --fields time=ts,model=request.model,prompt=usage.prompt_tokens",
            )
    return {role.strip(): name.strip() for role, _, name in pairs}


def parse_end(text: str | None) -> float | None:
    """Read a time as unix seconds, or as a date and time of ISO 8601, UTC without a zone (InputError otherwise)."""
    if text is None:
        return None
    try:
        end_s = float(text)
    except ValueError:
        try:
            date = dt.datetime.fromisoformat(text)
        except ValueError:
            end_s = math.nan
        else:
            end_s = (date if date.tzinfo else date.replace(tzinfo=dt.UTC)).timestamp()
    # Not a number is not between anything.
    if not 0.0 <= end_s <= LATEST_UNIX_S:
        raise InputError(
            f"`end` must be unix seconds, or a date and time (ISO 8601). Got {text!r}.",
            field="end",
            value=text,
            hint="for example --end 2026-05-01T12:00:00Z",
        )
    return end_s


def read_token(variable: str | None, file: Path | None) -> str | None:
    """Return a token from a file, or a variable of the environment; ``None``: there is none.

    Raises
    ------
    InputError
        When the file is unreadable or empty, or a variable that was named is not set.
    """
    if file is not None:
        try:
            token = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"a token must be in a readable file. {file}: {error}.", field="token_file") from error
        if not token:
            raise InputError(f"a token must not be empty. {file} is.", field="token_file", value=str(file))
        return token
    value = os.environ.get(variable or TOKEN_VARIABLE)
    if variable and not value:
        raise InputError(f"the variable {variable} must have the token. It is not set.", field="token_env")
    return value or None


def _metrics(
    found: _Sorted, settings: SourceSettings, known_adapters: Collection[str], clock: Callable[[], float]
) -> Observation:
    samples = TrafficSamples(request_counter=settings.request_counter)
    told: list[str] = []
    read_metrics_files(found.metrics, samples)
    for url in found.servers:
        told += ask_prometheus(
            url,
            samples,
            window_s=settings.window_s or DEFAULT_WINDOW_S,
            end_s=settings.end_s,
            selector=settings.selector,
            access=settings.access,
            now_s=clock(),
        )
    if found.pages:
        told += watch_pages(
            found.pages,
            samples,
            window_s=settings.window_s or DEFAULT_WATCH_S,
            every_s=settings.every_s,
            access=settings.access,
            clock=clock,
        )
    return observe_metrics(
        samples,
        names=(*map(str, found.metrics), *found.servers, *found.pages),
        adapter_label=settings.adapter_label,
        known_adapters=known_adapters,
        base_models=settings.base_models,
        told=told,
    )


def _sorted(sources: Sequence[str]) -> _Sorted:
    found = _Sorted()
    for source in dict.fromkeys(sources):
        if "://" in source:
            is_page = urlsplit(source).path.rstrip("/").endswith("/metrics")
            (found.pages if is_page else found.servers).append(source)
        else:
            _sort_file(Path(source), found)
    return found


def _sort_file(path: Path, found: _Sorted) -> None:
    """Tell what a file is by its content."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise InputError(
            f"a source must be an address or a readable file. {path}: {error.strerror}.",
            file=str(path),
            field="source",
            hint="addresses begin with http:// or https://",
        ) from error
    text = head.decode("utf-8", "replace").lstrip("\ufeff")
    if not text.strip():
        raise InputError(f"a source must have content. {path} is empty.", file=str(path), field="source")
    if is_metrics_text(text) or _is_whole(path, text, is_prometheus_answer):
        found.metrics.append(path)
    elif _is_whole(path, text, is_bench_result):
        found.benchmarks.append(path)
    elif text.lstrip().startswith("{"):
        found.logs.append(path)
    else:
        raise InputError(
            f"a source must be an access log (JSON lines), metrics, or a result of `vllm bench serve`. {path} is "
            "something else.",
            file=str(path),
            field="source",
            hint="`placer workload` reads traces as CSV and Parquet",
        )


def _is_whole(path: Path, head: str, is_kind: Callable[[object], bool]) -> bool:
    """Return whether a file's first JSON value is of a kind; that of a log is its first line."""
    if path.suffix != _JSON_SUFFIX:
        try:
            return is_kind(json.JSONDecoder().raw_decode(head.lstrip())[0])
        except (ValueError, RecursionError):
            return False
    try:
        return is_kind(json.JSONDecoder().raw_decode(path.read_text("utf-8-sig").lstrip())[0])
    except (OSError, ValueError, RecursionError):
        return False
