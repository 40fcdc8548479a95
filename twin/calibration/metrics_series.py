"""Samples of vLLM's metrics, sorted into one table of scrapes per engine."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from twin.calibration.metrics_names import (
    CACHE_INFO,
    CACHE_LABELS,
    COLUMN_OF,
    COUNTERS,
    GAUGES,
    KNOWN_METRICS,
    LORA_INFO,
    OF_PROCESS,
    ONLY,
    REQUIRED,
    vllm_name,
)
from twin.errors import InputError

# Labels by which a collector tells servers apart; the first that a sample has counts.
SERVER_LABELS = ("instance", "pod")


@dataclass(frozen=True)
class LoraState:
    """What ``vllm:lora_requests_info`` says at a scrape.

    Attributes
    ----------
    changed_s
        When it was set: of all combinations that a page lists, the latest one holds.
    """

    changed_s: float
    running: frozenset[str]
    waiting: frozenset[str]
    max_loras: int


@dataclass(frozen=True)
class EngineSeries:
    """The scrapes of one engine.

    Attributes
    ----------
    name
        For messages: file, server and engine.
    frame
        A row per scrape in order of time; columns ``time_s``, those of `COUNTERS` and `GAUGES` that were sampled,
        ``num_gpu_blocks``, ``block_size``, ``adapters`` (names with running requests), ``max_loras`` and
        ``is_running_told`` (0 where requests wait and running adapters are not told from waiting ones). NaN where a
        scrape lacks the value.
    adapter_names
        Adapters that were ever seen.
    shares_lora_info
        Whether the page names adapters, but those of several engines: they are not in the frame.
    """

    name: str
    frame: pd.DataFrame
    adapter_names: frozenset[str] = frozenset()
    shares_lora_info: bool = False


@dataclass
class SampleCollector:
    """Takes samples one by one, and keeps those that a calibration reads.

    Attributes
    ----------
    num_samples
        Samples given, of any metric.
    models
        Values of the label ``model_name``.
    """

    num_samples: int = 0
    models: set[str] = field(default_factory=set)
    # Every list has an entry per kept sample; a server is a file's (or a collector's) name and what labels say.
    _rows: list[tuple[str, str, float, str, str, float]] = field(default_factory=list)
    _lora: dict[str, dict[float, LoraState]] = field(default_factory=lambda: defaultdict(dict))
    _adapters: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def add(self, origin: str, time_s: float, name: str, labels: Mapping[str, str], value: float) -> None:
        """Take a sample; `origin` tells apart servers that have the same labels."""
        self.num_samples += 1
        name = vllm_name(name)
        if name not in KNOWN_METRICS or any(labels.get(key) != wanted for key, wanted in ONLY.get(name, {}).items()):
            return
        server = "|".join((origin, next((labels[key] for key in SERVER_LABELS if key in labels), "")))
        time_s = round(time_s, 3)
        if "model_name" in labels:
            self.models.add(labels["model_name"])
        if name == LORA_INFO:
            self._add_lora(server, time_s, labels, value)
            return
        engine = "" if name in OF_PROCESS else labels.get("engine", "")
        if name == CACHE_INFO:
            self._rows += [
                (server, engine, time_s, key, key, _number(labels[key])) for key in CACHE_LABELS if key in labels
            ]
        else:
            series = f"{name}{sorted(labels.items())}"
            self._rows.append((server, engine, time_s, COLUMN_OF[name], series, value))

    def series(self) -> tuple[EngineSeries, ...]:
        """Return the engines with at least one counted step (InputError: a metric is not among the samples)."""
        if not self._rows:
            raise _missing(REQUIRED[0])
        columns = ["server", "engine", "time_s", "column", "series", "value"]
        rows = pd.DataFrame(self._rows, columns=columns).drop_duplicates(columns[:-1], keep="last")
        rows = _preferred(rows)
        engines = []
        for server, of_server in rows.groupby("server", sort=True):
            counted = of_server[of_server["column"].isin([*COUNTERS, "running"])]
            names = sorted(counted["engine"].unique())
            shared = of_server[of_server["column"] == "started_s"]
            for engine in names:
                own = of_server[(of_server["engine"] == engine) & (of_server["column"] != "started_s")]
                frame = _frame(pd.concat([own, shared]))
                engines.append(self._engine_series(str(server), engine, frame, is_alone=len(names) == 1))
        if not engines:
            raise _missing(REQUIRED[0])
        return tuple(engines)

    def _engine_series(self, server: str, engine: str, frame: pd.DataFrame, *, is_alone: bool) -> EngineSeries:
        for column in REQUIRED:
            if column not in frame:
                raise _missing(column)
        states = self._lora.get(server, {})
        if states and is_alone:
            frame = frame.join(_lora_frame(states))
        name = " ".join(part for part in (*server.split("|"), f"engine {engine}" if engine else "") if part)
        adapters = frozenset(self._adapters.get(server, ()))
        return EngineSeries(name, frame.reset_index(names="time_s"), adapters, bool(states) and not is_alone)

    def _add_lora(self, server: str, time_s: float, labels: Mapping[str, str], value: float) -> None:
        state = LoraState(
            changed_s=value,
            running=_names(labels.get("running_lora_adapters", "")),
            waiting=_names(labels.get("waiting_lora_adapters", "")),
            max_loras=int(_number(labels.get("max_lora", "0"))),
        )
        self._adapters[server] |= state.running | state.waiting
        known = self._lora[server].get(time_s)
        if known is None or state.changed_s > known.changed_s:
            self._lora[server][time_s] = state


def _preferred(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows without those of a metric whose preferred name the engine has, too."""
    name = rows["series"].str.partition("[")[0]
    rank = {metric: place for names in (*COUNTERS.values(), *GAUGES.values()) for place, metric in enumerate(names)}
    place = name.map(rank).fillna(0)
    least = place.groupby([rows["server"], rows["engine"], rows["column"]]).transform("min")
    return rows[place == least]


def _frame(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row per time and a column per value; series of a column that differ in other labels add up."""
    is_setting = rows["column"].isin(CACHE_LABELS)
    settings = rows[is_setting].groupby(["time_s", "column"])["value"].last()
    # What is not a number is no zero.
    sums = rows[~is_setting].groupby(["time_s", "column"])["value"].sum(min_count=1)
    frame: pd.DataFrame = pd.concat([settings, sums]).unstack("column").sort_index()
    return frame


def _lora_frame(states: Mapping[float, LoraState]) -> pd.DataFrame:
    rows = [
        {
            "time_s": time_s,
            # 0.32 names every adapter with a request in both labels.
            "adapters": float(len(state.running)),
            "is_running_told": float(not state.waiting or state.waiting != state.running),
            "max_loras": float(state.max_loras),
        }
        for time_s, state in states.items()
    ]
    return pd.DataFrame(rows).set_index("time_s")


def _names(label: str) -> frozenset[str]:
    return frozenset(name for name in label.split(",") if name)


def _number(text: str) -> float:
    """Return the number that a label holds; NaN for one that holds none, such as ``None``."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _missing(column: str) -> InputError:
    names = {**COUNTERS, **GAUGES}[column]
    return InputError(
        f"the samples must have the metric {' or '.join(names)}. There is none of it.",
        field=names[0],
        hint='ask for all of vLLM\'s metrics, such as {__name__=~"vllm:.+"}',
    )


def counter_columns(frame: pd.DataFrame) -> list[str]:
    """Return the columns of a series' frame that never fall while the server lives."""
    return [str(name) for name in frame if name in COUNTERS]


def column(frame: pd.DataFrame, name: str, default: float = np.nan) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return float64 [rows] of a column; `default` where the series has none."""
    if name not in frame:
        return np.full(len(frame), default)
    return frame[name].to_numpy(dtype=np.float64)
