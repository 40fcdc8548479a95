"""Figures of a calibration: residuals, measured against predicted, intervals of the coefficients. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from placer.calibration_document import CalibratedParameter, CalibrationReport, ResidualPoint
from placer.drawing import FIGURE_SETTINGS, LIMIT_COLOR, add_legend_below
from twin.calibration.origins import Origin

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that colour-blind readers tell apart, each with a marker; more regimes than colours start again.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_MARKERS = ("o", "^", "s", "D", "v", "P", "X", "<", ">", "*", "p")
# Over what the errors are drawn, and whether on a logarithmic axis.
_PANELS = {
    "tokens": ("scheduled tokens", True),
    "requests": ("scheduled requests", True),
    "context_tokens": ("context tokens", False),
    "slots": ("slots", False),
    "adapters": ("distinct adapters", False),
    "measured_ms": ("measured time (ms)", True),
}
MOST_ERROR_PERCENT = 30.0
# More points than this are drawn as an image inside the vector graphic.
MOST_VECTOR_POINTS = 2000
_PLAIN_NUMBERS = FuncFormatter(lambda value, _: f"{value:,g}")
_ORIGIN_COLORS: dict[Origin, str] = {
    "fitted": "#0072b2",
    "at bound": "#000000",
    "joint": "#56b4e9",
    "taken over": "#e69f00",
    "other table": "#009e73",
    "prior": "#777777",
    "no data": "#cc79a7",
}


def residual_figure(points: Sequence[ResidualPoint]) -> Figure:
    """Return the relative errors over what a step depends on, one panel each.

    Errors beyond `MOST_ERROR_PERCENT` are drawn at it.
    """
    with mpl.rc_context(FIGURE_SETTINGS):
        figure = Figure(figsize=(9.6, 6.4), layout="constrained")
        panels = figure.subplots(2, 3, sharey=True)
        for axes, (quantity, (label, is_logarithmic)) in zip(panels.flat, _PANELS.items(), strict=True):

            def point_of(point: ResidualPoint, quantity: str = quantity) -> tuple[float, float]:
                percent = 100.0 * (point.predicted_ms / point.measured_ms - 1.0)
                return getattr(point, quantity), float(np.clip(percent, -MOST_ERROR_PERCENT, MOST_ERROR_PERCENT))

            _draw_by_regime(axes, points, [point_of(point) for point in points])
            axes.axhline(0.0, color=LIMIT_COLOR, linewidth=0.8, linestyle="--")
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.xaxis.set_major_formatter(_PLAIN_NUMBERS)
            if is_logarithmic:
                axes.set_xscale("log")
                _use_plain_numbers(axes)
            axes.set_xlabel(label)
        for row in panels:
            row[0].set_ylabel("error (%)")
        add_legend_below(figure)
        return figure


def agreement_figure(points: Sequence[ResidualPoint]) -> Figure:
    """Return predicted against measured times, with lines of no error and of 10 % error."""
    with mpl.rc_context(FIGURE_SETTINGS):
        figure = Figure(figsize=(5.6, 5.2), layout="constrained")
        axes = figure.subplots()
        _draw_by_regime(axes, points, [(point.measured_ms, point.predicted_ms) for point in points])
        times = [time for point in points for time in (point.measured_ms, point.predicted_ms)]
        ends = np.array([0.95 * min(times), 1.05 * max(times)])
        axes.plot(ends, ends, color=LIMIT_COLOR, linewidth=0.8)
        for factor in (0.9, 1.1):
            axes.plot(ends, factor * ends, color=LIMIT_COLOR, linewidth=0.6, linestyle=":")
        axes.set_xscale("log")
        axes.set_yscale("log")
        _use_plain_numbers(axes)
        axes.set_xlabel("measured (ms)")
        axes.set_ylabel("predicted (ms)")
        add_legend_below(figure)
        return figure


def coefficient_figure(report: CalibrationReport) -> Figure:
    """Return the intervals of the coefficients relative to their values, and their priors; none of those at 0."""
    shown = [entry for entry in report.parameters if entry.value > 0 and entry.origin != "at bound"][::-1]
    with mpl.rc_context(FIGURE_SETTINGS):
        figure = Figure(figsize=(7.2, 0.6 + 0.24 * len(shown)), layout="constrained")
        axes = figure.subplots()
        named: set[str] = set()
        for position, entry in enumerate(shown):
            _draw_coefficient(axes, position, entry, is_named=entry.origin not in named)
            named.add(entry.origin)
        with_prior = [(position, entry.prior) for position, entry in enumerate(shown) if entry.prior is not None]
        if with_prior:
            ratios = [prior / shown[position].value for position, prior in with_prior]
            places = [position for position, _ in with_prior]
            axes.plot(ratios, places, "|", color=LIMIT_COLOR, markersize=9, label="value of the prior")
        axes.axvline(1.0, color=LIMIT_COLOR, linewidth=0.6)
        axes.set_yticks(range(len(shown)), [entry.name for entry in shown])
        axes.set_xscale("symlog", linthresh=1.0, linscale=1.5)
        axes.set_xlim(left=-0.05)
        axes.xaxis.set_major_locator(mpl.ticker.FixedLocator([0, 0.5, 1, 2, 5, 10, 20, 50, 100]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("interval / value")
        add_legend_below(figure)
        return figure


def _draw_coefficient(axes: Axes, position: int, entry: CalibratedParameter, *, is_named: bool) -> None:
    color = _ORIGIN_COLORS[entry.origin]
    if entry.low is not None and entry.high is not None:
        ends = [entry.low / entry.value, entry.high / entry.value]
        axes.plot(ends, [position, position], color=color, linewidth=1.6, solid_capstyle="butt")
    axes.plot([1.0], [position], "o", color=color, markersize=4, label=entry.origin if is_named else None)


def _draw_by_regime(axes: Axes, points: Sequence[ResidualPoint], places: Sequence[tuple[float, float]]) -> None:
    """Draw each point at its place, in the colour and marker of its regime."""
    regimes = sorted({point.regime for point in points})
    for number, regime in enumerate(regimes):
        chosen = [place for point, place in zip(points, places, strict=True) if point.regime == regime]
        axes.scatter(
            [x for x, _ in chosen],
            [y for _, y in chosen],
            s=12,
            marker=_MARKERS[number % len(_MARKERS)],
            linewidths=0.0,
            alpha=0.65,
            color=_COLORS[number % len(_COLORS)],
            label=regime,
            rasterized=len(points) > MOST_VECTOR_POINTS,
        )


def _use_plain_numbers(axes: Axes) -> None:
    """Write numbers on logarithmic axes without powers of ten, at few ticks."""
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            low, high = axis.get_view_interval()
            axis.set_major_locator(LogLocator(subs=(1.0,) if high > 1000.0 * low else (1.0, 2.0, 5.0)))
            axis.set_major_formatter(_PLAIN_NUMBERS)
            axis.set_minor_formatter(NullFormatter())
