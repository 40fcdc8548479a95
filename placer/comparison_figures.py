"""Figures of a comparison: how far solvers are from the bound, and how soon they are there. Needs matplotlib."""

from __future__ import annotations

import matplotlib as mpl
from matplotlib.figure import Figure

from placer.comparison_document import Comparison
from placer.comparison_summary import over_bound
from placer.drawing import FIGURE_SETTINGS, LIMIT_COLOR, add_legend_below

# Colour-blind readers tell them apart; markers tell further solvers apart.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#777777")
_MARKERS = ("o", "^", "s", "D", "v", "x", "P")
_STYLES: tuple[str | tuple[int, tuple[int, ...]], ...] = ("-", (0, (6, 2)), (2, (3, 3)), (0, (1, 2)))
# Times below this are drawn at it: the axis is logarithmic.
_SHORTEST_S = 1e-3


def distance_figure(comparison: Comparison) -> Figure:
    """Return for each solver which share of its runs is within how much of the bound; further left is better.

    Runs without a placement count as runs that are never there.
    """
    instances = {instance.name: instance for instance in comparison.instances}
    with mpl.rc_context(FIGURE_SETTINGS):
        figure = Figure(figsize=(6.5, 3.6), layout="constrained")
        axes = figure.subplots()
        distances = {
            summary.solver: [
                over_bound(run, instances[run.instance]) for run in comparison.runs if run.solver == summary.solver
            ]
            for summary in comparison.solvers
        }
        farthest = max(
            (100.0 * value for values in distances.values() for value in values if value is not None), default=0.0
        )
        for position, (solver, values) in enumerate(distances.items()):
            known = sorted(100.0 * value for value in values if value is not None)
            # From the first run on, and on to the right edge of the others.
            steps = [0.0, *(100.0 * (index + 1) / len(values) for index in range(len(known)))]
            if known:
                axes.step(
                    [known[0], *known, farthest],
                    [*steps, steps[-1]],
                    where="post",
                    label=solver,
                    color=_COLORS[position % len(_COLORS)],
                    # Of lines that run on each other, all are seen.
                    linestyle=_STYLES[position % len(_STYLES)],
                )
        axes.set_xlabel("GPUs over the bound (%), at most")
        axes.set_ylabel("runs (%)")
        axes.set_ylim(0.0, 102.0)
        add_legend_below(figure)
    return figure


def time_figure(comparison: Comparison) -> Figure:
    """Return the time to the best placement over the number of adapters, both logarithmic, one mark per run."""
    instances = {instance.name: instance for instance in comparison.instances}
    with mpl.rc_context(FIGURE_SETTINGS):
        figure = Figure(figsize=(6.5, 3.6), layout="constrained")
        axes = figure.subplots()
        for position, summary in enumerate(comparison.solvers):
            points = [
                (instances[run.instance].num_adapters, max(run.best_s, _SHORTEST_S))
                for run in comparison.runs
                if run.solver == summary.solver and run.best_s is not None
            ]
            if points:
                adapters, times_s = zip(*points, strict=True)
                axes.scatter(
                    adapters,
                    times_s,
                    s=14,
                    label=summary.solver,
                    color=_COLORS[position % len(_COLORS)],
                    marker=_MARKERS[position % len(_MARKERS)],
                )
        axes.set_xscale("log")
        axes.set_yscale("log")
        budget_s = comparison.configuration.get("budget_s")
        if isinstance(budget_s, float):
            axes.axhline(budget_s, color=LIMIT_COLOR, linewidth=0.8, linestyle="--")
        axes.set_xlabel("adapters")
        axes.set_ylabel("time to the best placement (s)")
        add_legend_below(figure)
    return figure
