"""Figures of a surrogate's card: reliability, error by distance from the border, risk, latency. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from placer.drawing import FIGURE_SETTINGS, LIMIT_COLOR, add_legend_below
from predictors.surrogate import STARVED_PROBABILITY
from predictors.targets import NEAR_BORDER
from predictors.training import FamilyReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Bins = Sequence[Mapping[str, float]]

# Colours and marks that can be told apart in grey and by colour-blind readers.
_BLUE, _RED, _GREEN, _PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
_FAMILY_STYLES = ((_BLUE, "o"), (_RED, "^"), (_GREEN, "s"), (_PURPLE, "D"))
_SUBSET_STYLES = {"all": ("all sets", _BLUE, "o"), "packed": ("packed sets", _RED, "^")}
# Loads, as shares of the one at the border, that stand below the axis of the distance.
_LOAD_TICKS = (0.05, 0.25, 0.5, 0.7, 0.9, 1.0, 1.1, 1.5, 2.0, 3.0)
# Probabilities that stand below the axis of the threshold.
_THRESHOLD_TICKS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.25, 0.5)
_PERCENT = FuncFormatter(lambda value, _: f"{value:.3g} %")


def reliability_figure(bins: Bins) -> Figure:
    """Return the shares that starved over the predicted probability of starvation, above the rows of each bin."""
    predicted = np.array([one["predicted"] for one in bins])
    starved = np.array([one["starved"] for one in bins])
    counts = np.array([one["rows"] for one in bins])
    with mpl.rc_context(FIGURE_SETTINGS):
        figure = Figure(figsize=(5.6, 5.4), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0.0, 1.0], [0.0, 1.0], color=LIMIT_COLOR, linewidth=0.8, linestyle="--", label="as predicted")
        upper.plot(predicted, starved, "o-", color=_BLUE, markersize=4, linewidth=1.0, label="test rows")
        upper.set_ylabel("share that starved")
        upper.set_ylim(-0.03, 1.03)
        lower.bar(predicted, counts, width=0.05, color=_BLUE)
        for place, count in zip(predicted, counts, strict=True):
            lower.annotate(f"{count:,.0f}", (place, count), (0, 2), textcoords="offset points", ha="center")
        lower.set_ylim(0.0, 1.3 * counts.max())
        lower.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        lower.set_ylabel("rows")
        lower.set_xlim(-0.05, 1.05)
        lower.set_xlabel("predicted probability of starvation")
        add_legend_below(figure)
        return figure


def distance_figure(distance: Mapping[str, Bins]) -> Figure:
    """Return the error of the throughput ratio, and the mean errors, over load / load at the border."""
    with mpl.rc_context(FIGURE_SETTINGS):
        figure = Figure(figsize=(9.6, 3.8), layout="constrained")
        spread, means, probability = figure.subplots(1, 3)
        everything = distance["all"]
        places = _places(everything)
        for low, high, alpha in (("p5", "p95", 0.15), ("p25", "p75", 0.3)):
            ends = [[one[name] for one in everything] for name in (low, high)]
            name = f"{low[1:]}th to {high[1:]}th percentile"
            spread.fill_between(places, *ends, color=_BLUE, alpha=alpha, linewidth=0.0, label=name)
        spread.plot(places, [one["p50"] for one in everything], color=_BLUE, linewidth=1.2, label="median")
        spread.axhline(0.0, color=LIMIT_COLOR, linewidth=0.8, linestyle="--")
        spread.set_title("ratio: predicted - true", fontsize=9)
        for axes, key, title in ((means, "ratio_mae", "ratio: mean absolute error"), (probability, "brier", "Brier")):
            for subset, (label, color, marker) in _SUBSET_STYLES.items():
                bins = distance[subset]
                values = [one[key] for one in bins]
                axes.plot(_places(bins), values, marker=marker, color=color, markersize=3, linewidth=1.0, label=label)
            axes.set_ylim(bottom=0.0)
            axes.set_title(title, fontsize=9)
        for axes in (spread, means, probability):
            _use_distance_axis(axes)
        add_legend_below(figure)
        return figure


def risk_figure(thresholds: Mapping[str, Any]) -> Figure:
    """Return the rejected share over the threshold with the threshold for each risk, and the share seen over the risk.

    Parameters
    ----------
    thresholds
        What a surrogate's metadata say about its thresholds, with a curve.
    """
    curve = thresholds["curve"]
    risks = [100.0 * one["risk"] for one in curve]
    with mpl.rc_context(FIGURE_SETTINGS):
        figure = Figure(figsize=(7.2, 3.6), layout="constrained")
        share, seen = figure.subplots(1, 2)
        places = [one["threshold"] for one in thresholds["rejected"]]
        shares = [100.0 * one["share"] for one in thresholds["rejected"]]
        share.plot(places, shares, "o", color=_BLUE, markersize=4, label="rejected")
        # From the smallest risk on that the surrogate keeps as it is, the line would only go up.
        needed = [one for one in curve if one["threshold"] < STARVED_PROBABILITY]
        line = [one["threshold"] for one in needed], [100.0 * one["risk"] for one in needed]
        share.plot(*line, color=_BLUE, linewidth=1.0, label="threshold for a risk")
        share.set_xscale("log")
        share.xaxis.set_major_locator(FixedLocator(_THRESHOLD_TICKS))
        share.xaxis.set_minor_locator(NullLocator())
        share.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        share.set_xlabel("accepted below this probability of starvation")
        share.set_ylabel("share of packed GPUs")
        share.set_ylim(bottom=0.0)
        known = [(100.0 * one["risk"], 100.0 * one["seen"]) for one in curve if one["seen"] is not None]
        if known:
            seen.plot(*zip(*known, strict=True), "^-", color=_RED, markersize=4, linewidth=1.0, label="seen")
        seen.plot(risks, risks, color=LIMIT_COLOR, linewidth=0.8, linestyle="--", label="as asked for")
        seen.set_xscale("log")
        seen.xaxis.set_major_locator(FixedLocator([0.5, 1, 2, 5, 10, 20, 50]))
        seen.xaxis.set_minor_locator(NullLocator())
        seen.set_xlabel("risk")
        seen.set_ylabel("rejected with the threshold of others")
        for axis in (share.yaxis, seen.xaxis, seen.yaxis):
            axis.set_major_formatter(_PERCENT)
        add_legend_below(figure)
        return figure


def latency_figure(families: Sequence[FamilyReport]) -> Figure:
    """Return how long a question takes over its rows, and the score over the time per row, by family."""
    with mpl.rc_context(FIGURE_SETTINGS):
        figure = Figure(figsize=(7.2, 3.4), layout="constrained")
        time, trade = figure.subplots(1, 2)
        for number, family in enumerate(families):
            color, marker = _FAMILY_STYLES[number % len(_FAMILY_STYLES)]
            rows = sorted(family.latency_us)
            values = [family.latency_us[count] for count in rows]
            time.plot(rows, values, marker=marker, color=color, markersize=4, linewidth=1.0, label=family.name)
            trade.plot([values[-1] / rows[-1]], [family.score], marker=marker, color=color, linestyle="")
        time.set_xscale("log")
        time.set_yscale("log")
        time.set_xlabel("rows of a question")
        time.set_ylabel("time (us)")
        trade.set_xscale("log")
        trade.set_ylim(bottom=0.0)
        trade.set_xlabel("time per row in a large question (us)")
        trade.set_ylabel("score (smaller is better)")
        for axis in (time.xaxis, time.yaxis, trade.xaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            axis.set_minor_formatter(NullFormatter())
        add_legend_below(figure)
        return figure


def _places(bins: Bins) -> list[float]:
    return [float(np.log(one["load_over_border"])) for one in bins]


def _use_distance_axis(axes: Axes) -> None:
    """Spread out what is near the border, where the axis is linear in the logarithm of the load."""
    axes.axvline(0.0, color=LIMIT_COLOR, linewidth=0.8, linestyle="--")
    axes.set_xscale("symlog", linthresh=NEAR_BORDER, linscale=1.0)
    axes.xaxis.set_major_locator(FixedLocator([float(np.log(load)) for load in _LOAD_TICKS]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{np.exp(value):.2g}"))
    axes.tick_params("x", labelrotation=90)
    axes.set_xlabel("load / load at the border")
