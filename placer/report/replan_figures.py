"""The figures of a migration's report as files: its steps over time, and one after the other. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from placer.drawing import FIGURE_SETTINGS, LIMIT_COLOR, add_legend_below
from placer.replan_document import Replan, StepKind
from placer.report.figure_files import COLORS, HATCHES, Cell, write_figure
from placer.report.replan_page import KINDS, step_record
from placer.report.timeline import TimedStep, Timeline, timeline_of

_MARKERS = ("o", "^", "s", "D", "v", "P")
_LANE_HEIGHT = 0.62
# Steps whose numbers can be read beside them.
_MOST_NUMBERED = 60
_NUMBERED_SHARE = 0.03


def write_replan_figures(made: Replan, folder: Path) -> int:
    """Write every figure of the report into a folder, as CSV, PNG and SVG; return the number of files."""
    timeline = timeline_of(made.migration.steps)
    if not timeline.steps:
        return 0
    rows = step_rows(timeline)
    written = write_figure(folder, "timeline", _figure(timeline, over_time=True), rows)
    return written + write_figure(folder, "steps", _figure(timeline, over_time=False), rows)


def step_rows(timeline: Timeline) -> list[list[Cell]]:
    """Return the steps as rows of a table, with a heading."""
    rows: list[list[Cell]] = [
        ["step", "kind", "where", "adapters", "start_s", "seconds", "gpus_in_use", "is_safe", "check"]
    ]
    for timed in timeline.steps:
        record = step_record(timed)
        adapters = " ".join(record["adapters"])
        rows.append([record["number"], record["kind"], record["where"], adapters, record["start"], record["seconds"]])
        rows[-1] += [record["gpus"], "yes" if record["safe"] else "no", record["check"]]
    return rows


def _figure(timeline: Timeline, *, over_time: bool) -> Figure:
    """Draw a lane for each GPU, and GPUs in use below; over seconds, or a column for each step."""
    num_lanes, num_steps = len(timeline.lanes), len(timeline.steps)
    width = 7.5 if over_time else max(7.5, min(1.8 + 0.24 * num_steps, 40.0))
    with mpl.rc_context(FIGURE_SETTINGS | {"hatch.linewidth": 0.5}):
        figure = Figure(figsize=(width, 1.7 + 0.34 * num_lanes), layout="constrained")
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[max(num_lanes, 2), 2])
        for position, timed in enumerate(timeline.steps):
            place = (timed.start_s, timed.step.seconds) if over_time else (float(position), 1.0)
            is_wide = place[1] > _NUMBERED_SHARE * timeline.total_s if over_time else num_steps <= _MOST_NUMBERED
            _draw_step(axes, timed, place, is_bar=place[1] > 0.0, is_numbered=is_wide)
        _name_bars(axes, {timed.step.kind for timed in timeline.steps if timed.step.seconds or not over_time})
        axes.set_yticks(range(num_lanes), [lane.name for lane in timeline.lanes])
        axes.set_ylim(num_lanes - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        times = [timed.start_s if over_time else float(position) for position, timed in enumerate(timeline.steps)]
        end = timeline.total_s if over_time else float(num_steps)
        in_use = [timed.step.gpus_in_use for timed in timeline.steps]
        below.step([*times, end], [*in_use, in_use[-1]], where="post", color=LIMIT_COLOR)
        below.set_ylim(0, max(in_use) + 1)
        below.yaxis.set_major_locator(MaxNLocator(integer=True))
        below.set_ylabel("GPUs in use")
        below.set_xlabel("seconds" if over_time else "steps, in order")
        if not over_time:
            every = 1 + num_steps // _MOST_NUMBERED
            numbers = [timed.step.number for timed in timeline.steps]
            below.set_xticks([position + 0.5 for position in range(0, num_steps, every)], numbers[::every])
        add_legend_below(figure)
    return figure


def _draw_step(axes: Axes, timed: TimedStep, place: tuple[float, float], *, is_bar: bool, is_numbered: bool) -> None:
    """Draw a step on each of its lanes; `place` is where it begins, and how wide it is."""
    step, (left, width) = timed.step, place
    kind = KINDS.index(step.kind)
    color, is_safe = COLORS[kind], step.check.is_safe
    for lane in timed.lanes:
        if not is_bar:
            axes.plot(
                left, lane, _MARKERS[kind], color=color, markeredgecolor="#333333", markersize=7, clip_on=False,
                label=step.kind,
            )  # fmt: skip
            if not is_safe:
                axes.annotate(
                    f"{step.number}!", (left, lane), (0, 6), textcoords="offset points", ha="center", fontsize=7
                )
            continue
        axes.barh(
            lane, width, _LANE_HEIGHT, left, color=color, hatch=HATCHES[kind],
            edgecolor="#333333" if is_safe else "black", linewidth=0.4 if is_safe else 2.0,
        )  # fmt: skip
        if is_numbered:
            axes.text(
                left + width / 2, lane, str(step.number) if is_safe else f"{step.number}!",
                ha="center", va="center", fontsize=7,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
            )  # fmt: skip
    middle = left + width / 2
    for source in timed.sources:
        for lane in timed.lanes:
            axes.plot([middle, middle], [source, lane], color="#333333", linewidth=0.8, linestyle=":", zorder=0.5)


def _name_bars(axes: Axes, kinds: Collection[StepKind]) -> None:
    """Name the kinds of the steps that are bars, with a rectangle that is nowhere."""
    for index, kind in enumerate(KINDS):
        if kind in kinds:
            nowhere = Rectangle((0.0, 0.0), 0.0, 0.0, facecolor=COLORS[index], edgecolor="#333333", linewidth=0.4)
            nowhere.set_hatch(HATCHES[index])
            nowhere.set_label(kind)
            axes.add_patch(nowhere)
