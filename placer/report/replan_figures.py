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
from placer.report.timeline import MARK_STEP, Mark, TimedStep, Timeline, is_short, marks_of, timeline_of

_MARKERS = ("o", "^", "s", "d", "v", "P")
_LANE_HEIGHT = 0.62
_LANE_INCHES = 0.46
_POINTS_PER_INCH = 72.0
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
        figure = Figure(figsize=(width, 1.7 + _LANE_INCHES * num_lanes), layout="constrained")
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[max(num_lanes, 2), 2])
        for position, timed in enumerate(timeline.steps):
            place = (timed.start_s, timed.step.seconds) if over_time else (float(position), 1.0)
            is_wide = place[1] > _NUMBERED_SHARE * timeline.total_s if over_time else num_steps <= _MOST_NUMBERED
            if not (over_time and is_short(timed, timeline)):
                _draw_bars(axes, timed, place, is_numbered=is_wide)
            _draw_sources(axes, timed, place[0] + place[1] / 2)
        for mark in marks_of(timeline) if over_time else ():
            _draw_mark(axes, mark)
        _name_bars(axes, {timed.step.kind for timed in timeline.steps if not (over_time and is_short(timed, timeline))})
        axes.set_yticks(range(num_lanes), [lane.name for lane in timeline.lanes])
        axes.set_ylim(num_lanes - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        times = [timed.start_s if over_time else float(position) for position, timed in enumerate(timeline.steps)]
        end = timeline.total_s if over_time else float(num_steps)
        in_use = [timed.step.gpus_in_use for timed in timeline.steps]
        below.step([*times, end], [*in_use, in_use[-1]], where="post", color=LIMIT_COLOR)
        below.set_ylim(0, max(in_use) + 1)
        below.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        below.set_ylabel("GPUs in use")
        below.set_xlabel("seconds" if over_time else "steps, in order")
        if not over_time:
            every = 1 + num_steps // _MOST_NUMBERED
            numbers = [timed.step.number for timed in timeline.steps]
            below.set_xticks([position + 0.5 for position in range(0, num_steps, every)], numbers[::every])
        add_legend_below(figure)
    return figure


def _draw_mark(axes: Axes, mark: Mark) -> None:
    """Draw a mark for short steps, with how many they are, or the numbers of those that are not safe."""
    kind, height = KINDS.index(mark.kind), mark.lane + mark.offset
    axes.plot(
        mark.at_s, height, _MARKERS[kind], color=COLORS[kind], markeredgecolor="#333333", markeredgewidth=0.6,
        markersize=0.85 * MARK_STEP * _LANE_INCHES * _POINTS_PER_INCH, clip_on=False, label=mark.kind, zorder=3.0,
    )  # fmt: skip
    count = str(len(mark.numbers)) if len(mark.numbers) > 1 else ""
    text = " ".join(f"{number}!" for number in mark.unsafe) or count
    axes.annotate(
        text, (mark.at_s, height), (5, 0), textcoords="offset points", va="center", fontsize=5.5, zorder=4.0,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.2, "alpha": 0.85 if text else 0.0},
    )  # fmt: skip


def _draw_bars(axes: Axes, timed: TimedStep, place: tuple[float, float], *, is_numbered: bool) -> None:
    """Draw a step as a bar on each of its lanes; `place` is where it begins, and how wide it is."""
    step, (left, width) = timed.step, place
    kind, is_safe = KINDS.index(step.kind), step.check.is_safe
    for lane in timed.lanes:
        axes.barh(
            lane, width, _LANE_HEIGHT, left, color=COLORS[kind], hatch=HATCHES[kind],
            edgecolor="#333333" if is_safe else "black", linewidth=0.4 if is_safe else 2.0,
        )  # fmt: skip
        if is_numbered:
            axes.text(
                left + width / 2, lane, str(step.number) if is_safe else f"{step.number}!",
                ha="center", va="center", fontsize=7,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
            )  # fmt: skip


def _draw_sources(axes: Axes, timed: TimedStep, middle: float) -> None:
    """Draw from where requests go away, with a line to each GPU that gets them."""
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
