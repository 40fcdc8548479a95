"""The figures of a plan's report as files. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from placer.drawing import FIGURE_SETTINGS, LIMIT_COLOR, add_legend_below
from placer.report.figure_files import COLORS, HATCHES, Cell, write_figure
from placer.report.plan_report import PlanReport
from placer.report.series import NUM_PARTS, GpuSeries

# GPUs whose names can be read below their columns.
_MOST_NAMED = 40
_MEMORY = {"weights": "weights", "slots": "LoRA slots", "kv": "KV cache", "rest": "rest"}


def write_plan_figures(report: PlanReport, folder: Path) -> int:
    """Write every figure of the report into a folder, as CSV, PNG and SVG; return the number of files."""
    data = report.page.data
    if not report.plan.gpus:
        return 0
    loads = _loads_by_rank(data)
    num_written = write_figure(
        folder, "load", _stacked(data, loads, "tokens/s offered", capacity=True), _load_rows(data, loads)
    )
    memory = {label: np.array(data["gpus"][name]) for name, label in _MEMORY.items()}
    num_written += write_figure(
        folder, "memory", _stacked(data, memory, "GiB", capacity=False), _rows(data, memory, unit="gib")
    )
    num_written += write_figure(folder, "risk", _risk_figure(data), _risk_rows(data))
    for position, (name, series) in enumerate((report.series or {}).items()):
        num_written += write_figure(
            folder, f"series-{position}-{name}", _series_figure(name, series), _series_rows(series)
        )
    return num_written


def _loads_by_rank(data: Any) -> dict[str, NDArray[np.float64]]:
    """Return the load of each GPU by rank, float64 [GPUs], in tokens/s."""
    first, adapters = data["adapters"]["first"], data["adapters"]
    ranks, tps = np.array(adapters["rank"]), np.array(adapters["tps"], dtype=np.float64)
    owner = np.repeat(np.arange(len(first) - 1), np.diff(first))
    loads = {}
    for rank in data["ranks"]:
        loads[f"rank {rank}"] = np.zeros(len(first) - 1)
        np.add.at(loads[f"rank {rank}"], owner[ranks == rank], tps[ranks == rank])
    return loads


def _capacities(data: Any) -> list[float | None]:
    pairs = zip(data["gpus"]["offered"], data["gpus"]["headroom"], strict=True)
    return [None if room is None else offered * (1.0 + room / 100.0) for offered, room in pairs]


def _stacked(data: Any, parts: dict[str, Any], unit: str, *, capacity: bool) -> Figure:
    """Return one column for each GPU, stacked from its parts."""
    names = data["gpus"]["name"]
    with mpl.rc_context(FIGURE_SETTINGS | {"hatch.linewidth": 0.4}):
        figure = Figure(figsize=(max(6.5, min(len(names) * 0.12, 40.0)), 3.4), layout="constrained")
        axes = figure.subplots()
        bottom = np.zeros(len(names))
        for index, (label, values) in enumerate(parts.items()):
            axes.bar(
                range(len(names)),
                values,
                bottom=bottom,
                label=label,
                color=COLORS[index % len(COLORS)],
                hatch=HATCHES[index % len(HATCHES)],
                edgecolor="#333333",
                linewidth=0.3,
            )
            bottom += values
        if capacity:
            known = [(index, value) for index, value in enumerate(_capacities(data)) if value is not None]
            for index, value in known:
                axes.plot([index - 0.45, index + 0.45], [value, value], color="black", linewidth=1.2)
        _name_gpus(axes, names)
        axes.set_ylabel(unit)
        add_legend_below(figure)
    return figure


def _name_gpus(axes: Axes, names: Sequence[str]) -> None:
    if len(names) <= _MOST_NAMED:
        axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 8 else 20)
    else:
        axes.set_xlabel("GPUs, in the order of the plan")


def _rows(data: Any, parts: dict[str, Any], *, unit: str) -> list[list[Cell]]:
    heading: list[Cell] = ["gpu", *(f"{label.lower().replace(' ', '_')}_{unit}" for label in parts)]
    columns = [values.tolist() for values in parts.values()]
    return [heading, *([name, *row] for name, *row in zip(data["gpus"]["name"], *columns, strict=True))]


def _load_rows(data: Any, loads: dict[str, Any]) -> list[list[Cell]]:
    rows = _rows(data, loads, unit="tps")
    extra: list[list[Cell]] = [
        ["verdict", "offered_tps", "capacity_tps"],
        *([*row] for row in zip(data["gpus"]["verdict"], data["gpus"]["offered"], _capacities(data), strict=True)),
    ]
    return [[*row, *more] for row, more in zip(rows, extra, strict=True)]


def _risk_rows(data: Any) -> list[list[Cell]]:
    gpus = data["gpus"]
    columns = zip(gpus["name"], gpus["headroom"], gpus["risk"], gpus["verdict"], strict=True)
    rows: list[list[Cell]] = [[name, room, risk / 1000, verdict] for name, room, risk, verdict in columns]
    return [["gpu", "headroom_percent", "starvation_probability", "verdict"], *rows]


def _risk_figure(data: Any) -> Figure:
    """Return the predicted probability of starvation over the headroom, one mark per GPU."""
    markers = {"accepted": "o", "rejected": "^", "metastable": "s", "unverified": "D"}
    with mpl.rc_context(FIGURE_SETTINGS):
        figure = Figure(figsize=(6.5, 3.4), layout="constrained")
        axes = figure.subplots()
        for index, (verdict, marker) in enumerate(markers.items()):
            points = [
                (room, probability)
                for _, room, probability, own in _risk_rows(data)[1:]
                if own == verdict and room is not None
            ]
            if points:
                rooms, probabilities = zip(*points, strict=True)
                axes.scatter(
                    rooms, probabilities, marker=marker, color=COLORS[index], edgecolor="black", s=18, label=verdict
                )
        axes.axhline(data["threshold"], color=LIMIT_COLOR, linewidth=0.8, linestyle="--")
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("headroom (%)")
        axes.set_ylabel("probability of starvation, surrogate")
        add_legend_below(figure)
    return figure


def _series_rows(series: GpuSeries) -> list[list[Cell]]:
    heading: list[Cell] = ["time_s", "running", "waiting", "kv_used_percent", "tokens_per_s", "loads"]
    part_s = series.horizon_s / NUM_PARTS
    columns = zip(series.running, series.waiting, series.kv_permille, series.tokens, series.loads, strict=True)
    rows: list[list[Cell]] = [
        [round(index * part_s, 3), running, waiting, permille / 10, round(tokens / part_s), loads]
        for index, (running, waiting, permille, tokens, loads) in enumerate(columns)
    ]
    return [heading, *rows]


def _series_figure(name: str, series: GpuSeries) -> Figure:
    """Return what a GPU did over time, in four panels."""
    part_s = series.horizon_s / NUM_PARTS
    times_s = np.arange(NUM_PARTS) * part_s
    with mpl.rc_context(FIGURE_SETTINGS):
        figure = Figure(figsize=(6.5, 6.0), layout="constrained")
        requests, cache, tokens, loads = figure.subplots(4, sharex=True)
        requests.plot(times_s, series.running, color="#2c80bd", label="running")
        requests.plot(times_s, series.waiting, color="#e07b39", linestyle="--", label="waiting")
        requests.set_ylabel("requests")
        requests.legend(frameon=False, ncols=2)
        cache.plot(times_s, np.array(series.kv_permille) / 10, color="#2c80bd")
        cache.set_ylabel("KV cache (%)")
        tokens.plot(times_s, np.array(series.tokens) / part_s, color="#2c80bd")
        tokens.set_ylabel("tokens/s")
        loads.bar(times_s, series.loads, width=part_s, align="edge", color="#2c80bd")
        loads.set_ylabel("loads")
        loads.set_xlabel("simulated time (s)")
        for axes in (requests, cache, tokens, loads):
            axes.axvspan(0.0, series.warmup_s, color="#eeeeee", zorder=0)
        figure.suptitle(f"{name}, seed {series.seed}")
    return figure
