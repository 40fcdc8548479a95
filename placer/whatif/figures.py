"""Figures of a study: GPUs and cost over what changes, the risk curve, break-even prices, savings. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from placer.drawing import FIGURE_SETTINGS, LIMIT_COLOR, add_legend_below
from placer.whatif.curves import AXIS_LABELS, PLAN_LINE, lines_of, numeric_axis
from placer.whatif.document import BreakEvenRecord, Cell, WhatIf
from placer.whatif.scenario import AS_IT_IS, shown_value

# Colour-blind readers tell them apart; markers and strokes do so in grey.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#777777")
_MARKERS = ("o", "^", "s", "D", "v", "x", "P")
_SIZE_INCHES = (6.5, 3.4)
MOST_BARS = 25


def study_figures(study: WhatIf) -> Iterator[tuple[str, Figure]]:
    """Yield the name of each figure that the study has something for, and the figure."""
    axis = numeric_axis(study.cells)
    if study.study in {"sweep", "break-even"} and axis is not None:
        yield "gpus", _over(study.cells, axis, "GPUs", lambda cell: cell.num_gpus, bound=lambda cell: cell.lower_bound)
        yield (
            "cost",
            _over(
                study.cells, axis, "cost per hour",
                lambda cell: cell.cost_per_hour, bound=lambda cell: cell.cost_bound_per_hour,
            ),
        )  # fmt: skip
    if any(cell.risk is not None for cell in study.cells):
        yield "risk", _risk(study.cells)
    if study.break_even:
        yield "break-even", _break_even(study.break_even)
    if study.savings:
        yield "savings", _savings(study)


def _over(
    cells: Sequence[Cell],
    axis: str,
    label: str,
    value_of: Callable[[Cell], float | None],
    *,
    bound: Callable[[Cell], float | None],
) -> Figure:
    """Draw a number over a change, a line for each combination of the other changes; hollow: no plan to deploy."""
    with mpl.rc_context(FIGURE_SETTINGS):
        figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
        axes = figure.subplots()
        for number, (name, members) in enumerate(lines_of(cells, axis).items()):
            style: dict[str, Any] = {
                "color": _COLORS[number % len(_COLORS)],
                "marker": _MARKERS[number % len(_MARKERS)],
                "markersize": 4,
            }
            _draw_line(axes, members, value_of, name, style)
            known = [(x, y) for x, cell in members if (y := bound(cell)) is not None]
            if known and len(lines_of(cells, axis)) <= 2:
                axes.plot(
                    *zip(*known, strict=True), color=style["color"], linestyle=":", linewidth=1.0,
                    label="lower bound" if name == PLAN_LINE else f"lower bound, {name}",
                )  # fmt: skip
        axes.set_xlabel(AXIS_LABELS[axis])
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0.0)
        if label == "GPUs":
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        add_legend_below(figure)
    return figure


def _draw_line(
    axes: Axes,
    members: Sequence[tuple[float, Cell]],
    value_of: Callable[[Cell], float | None],
    name: str,
    style: dict[str, Any],
) -> None:
    drawn = [(x, y) for x, cell in members if cell.has_plan and (y := value_of(cell)) is not None]
    if drawn:
        axes.plot(*zip(*drawn, strict=True), linewidth=1.2, label=name, **style)
    hollow = [(x, y) for x, cell in members if not cell.has_plan and (y := value_of(cell)) is not None]
    if hollow:
        axes.plot(
            *zip(*hollow, strict=True), linestyle="none", markerfacecolor="none", label="rejected by the twin", **style
        )
    without = [x for x, cell in members if not cell.has_plan and value_of(cell) is None]
    if without:
        axes.plot(without, [0.0] * len(without), "x", color=LIMIT_COLOR, clip_on=False, label="no plan")


def _risk(cells: Sequence[Cell]) -> Figure:
    with mpl.rc_context(FIGURE_SETTINGS):
        figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
        axes = figure.subplots()
        judged = [(cell, cell.risk) for cell in cells if cell.risk is not None]
        for number, (cell, risk) in enumerate(judged):
            # Plans of the same size are drawn beside each other.
            twins = [other for other, _ in judged[:number] if other.num_gpus == cell.num_gpus]
            axes.errorbar(
                [(cell.num_gpus or 0) + 0.12 * len(twins)],
                [risk.probability],
                yerr=[[risk.probability - risk.low], [risk.high - risk.probability]],
                color=_COLORS[number % len(_COLORS)],
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=6,
                capsize=3,
                linestyle="none",
                label="the rates as they stand" if not cell.changes else cell.label,
            )
        axes.set_xlabel("GPUs")
        axes.set_ylabel("probability that some GPU starves\n(95 % interval)")
        axes.set_ylim(-0.03, 1.03)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        add_legend_below(figure)
    return figure


def _break_even(records: Sequence[BreakEvenRecord]) -> Figure:
    """Draw the cost of two fleets over the price of one type, for the first scenarios."""
    shown = records[:3]
    with mpl.rc_context(FIGURE_SETTINGS):
        figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
        panels = figure.subplots(1, len(shown), squeeze=False)[0]
        for axes, record in zip(panels, shown, strict=True):
            highest = 1.6 * max(record.break_even_price, record.price)
            cost = record.num_other * record.other_price
            axes.plot(
                [0.0, highest], [0.0, record.num_gpus * highest], color=_COLORS[0],
                label=f"{record.num_gpus} x {record.gpu_type}",
            )  # fmt: skip
            axes.plot(
                [0.0, highest], [cost, cost], color=_COLORS[1], linestyle="--",
                label=f"{record.num_other} x {record.other} at {record.other_price:g}",
            )  # fmt: skip
            axes.plot(
                [record.break_even_price],
                [cost],
                "o",
                color=LIMIT_COLOR,
                label=f"break-even {record.break_even_price:.2f}",
            )
            axes.plot(
                [record.price],
                [record.num_gpus * record.price],
                "s",
                color=_COLORS[0],
                label=f"price now {record.price:g}",
            )
            title = ", ".join(f"{name} {shown_value(value)}" for name, value in record.scenario.items())
            axes.set_title(title or AS_IT_IS)
            axes.set_xlabel(f"price of {record.gpu_type} (per hour)")
            axes.set_ylabel("cost of the fleet (per hour)")
            axes.set_ylim(bottom=0.0)
        add_legend_below(figure)
    return figure


def _savings(study: WhatIf) -> Figure:
    records = study.savings[:MOST_BARS][::-1]
    with mpl.rc_context(FIGURE_SETTINGS):
        figure = Figure(figsize=(6.5, 1.0 + 0.22 * len(records)), layout="constrained")
        axes = figure.subplots()
        for is_open, color, hatch, name in (
            (False, _COLORS[0], "", "fewer GPUs than the lower bound of the problem as it is"),
            (True, _COLORS[5], "//", "maybe by the search"),
        ):
            chosen = [(index, entry.gpus) for index, entry in enumerate(records) if entry.is_within_bound == is_open]
            if chosen:
                places, saved = zip(*chosen, strict=True)
                axes.barh(places, saved, color=color, hatch=hatch, edgecolor="white", label=name)
        axes.axvline(0.0, color=LIMIT_COLOR, linewidth=0.8)
        axes.set_yticks(range(len(records)), [record.label for record in records])
        axes.set_xlabel("GPUs saved")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        add_legend_below(figure)
    return figure
