"""Figures of a validation: predictions against measurements, errors over slots, goodput. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from placer.drawing import FIGURE_SETTINGS, LIMIT_COLOR, add_legend_below
from placer.validation import ValidatedRun
from twin.validation.quantities import LEAST_GOODPUT_RATIO

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]

# Colour and marker of each regime: told apart also in grey and by colour-blind readers.
_STYLES = {
    "unsaturated": ("#0072b2", "o"),
    "slots-bound": ("#d55e00", "^"),
    "KV-bound": ("#009e73", "s"),
    "collapsed": ("#777777", "x"),
    "not measured": ("#cc79a7", "D"),
}
_SCATTERED = {
    "tok_per_s": "throughput (tokens/s)",
    "itl_mean_ms": "ITL mean (ms)",
    "tpot_mean_ms": "TPOT mean (ms)",
    "ttft_p50_ms": "TTFT p50 (ms)",
    "running_mean": "running requests",
    "kv_usage_mean": "KV use (share)",
}
MOST_ERROR_PERCENT = 50.0


def scatter_figure(rows: Sequence[ValidatedRun]) -> Figure:
    """Return predictions against measurements of runs whose client kept up, one panel per quantity.

    Filled marks are headline runs, hollow ones the others.
    """
    shown = [row for row in rows if row.regime != "collapsed"]

    def draw(axes: Axes, quantity: str) -> None:
        values = _draw_by_regime(axes, shown, lambda row: (row.measured.value(quantity), row.predicted.value(quantity)))
        if quantity != "kv_usage_mean":
            _use_logarithmic_axes(axes, values)
        if len(values):
            ends = [float(values.min()), float(values.max())]
            axes.plot(ends, ends, color=LIMIT_COLOR, linewidth=0.8, zorder=1)
        axes.set_xlabel("measured")
        axes.set_ylabel("predicted")

    return _panels(draw)


def slots_figure(rows: Sequence[ValidatedRun]) -> Figure:
    """Return the relative errors of headline runs over the slots, with their median; one panel per quantity.

    Errors beyond `MOST_ERROR_PERCENT` are drawn at it: one run that is off by a factor must not flatten all others.
    """
    shown = [row for row in rows if row.is_headline]
    slots = sorted({row.max_loras for row in shown})

    def draw(axes: Axes, quantity: str) -> None:
        def error(row: ValidatedRun) -> tuple[float | None, float | None]:
            measured, predicted = row.measured.value(quantity), row.predicted.value(quantity)
            if not measured or predicted is None:
                return None, None
            percent = 100.0 * (predicted - measured) / measured
            return float(slots.index(row.max_loras)), min(max(percent, -MOST_ERROR_PERCENT), MOST_ERROR_PERCENT)

        _draw_by_regime(axes, shown, error)
        points = [(x, y) for row in shown for x, y in [error(row)] if x is not None and y is not None]
        places = sorted({x for x, _ in points})
        medians = [float(np.median([y for x, y in points if x == place])) for place in places]
        axes.plot(places, medians, color=LIMIT_COLOR, linewidth=1.0)
        axes.axhline(0.0, color=LIMIT_COLOR, linewidth=0.8, linestyle="--")
        axes.set_xticks(range(len(slots)), [str(number) for number in slots])
        axes.set_xlabel("slots")
        axes.set_ylabel("error (%)")

    return _panels(draw)


def goodput_figure(rows: Sequence[ValidatedRun]) -> Figure:
    """Return predicted against measured goodput of all runs that served, with the limit of starvation."""
    with mpl.rc_context(FIGURE_SETTINGS):
        figure = Figure(figsize=(4.2, 3.6), layout="constrained")
        axes = figure.subplots()
        _draw_by_regime(axes, rows, lambda row: (row.measured.goodput_ratio, row.predicted.goodput_ratio))
        axes.axhline(LEAST_GOODPUT_RATIO, color=LIMIT_COLOR, linewidth=0.8, linestyle="--")
        axes.axvline(LEAST_GOODPUT_RATIO, color=LIMIT_COLOR, linewidth=0.8, linestyle="--")
        axes.plot([0.0, 1.0], [0.0, 1.0], color=LIMIT_COLOR, linewidth=0.8)
        axes.set_xlabel("measured goodput / offered load")
        axes.set_ylabel("predicted")
        add_legend_below(figure)
        return figure


def _panels(draw: Callable[[Axes, str], None]) -> Figure:
    """Return a figure of one panel per quantity of `_SCATTERED`."""
    with mpl.rc_context(FIGURE_SETTINGS):
        figure = Figure(figsize=(9.6, 6.2), layout="constrained")
        panels = figure.subplots(2, 3)
        for axes, (quantity, title) in zip(panels.flat, _SCATTERED.items(), strict=True):
            draw(axes, quantity)
            axes.set_title(title, fontsize=9)
        add_legend_below(figure)
        return figure


def _draw_by_regime(
    axes: Axes,
    rows: Sequence[ValidatedRun],
    point_of: Callable[[ValidatedRun], tuple[float | None, float | None]],
) -> Floats:
    """Draw the rows that have a point, and return the points, float64 [N, 2]."""
    drawn = []
    for regime, (color, marker) in _STYLES.items():
        for is_headline in (False, True):
            points = [
                (x, y)
                for row in rows
                if row.regime == regime and row.is_headline is is_headline
                for x, y in [point_of(row)]
                if x is not None and y is not None
            ]
            if not points:
                continue
            drawn += points
            is_filled = is_headline or marker == "x"
            axes.scatter(
                [x for x, _ in points],
                [y for _, y in points],
                s=16,
                marker=marker,
                linewidths=0.8,
                alpha=0.85,
                label=regime,
                color=color if is_filled else None,
                facecolors=None if is_filled else "none",
                edgecolors=None if is_filled else color,
                zorder=3 if is_headline else 2,
            )
    return np.array(drawn, dtype=np.float64).reshape(-1, 2)


def _use_logarithmic_axes(axes: Axes, values: Floats) -> None:
    """Make both axes logarithmic, with plain numbers at few ticks."""
    is_wide = len(values) > 0 and float(values.max()) > 1000.0 * float(values[values > 0].min(initial=np.inf))
    for axis, scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
        scale("log")
        axis.set_major_locator(LogLocator(subs=(1.0,) if is_wide else (1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.set_minor_formatter(NullFormatter())
