"""The figure of an advice: throughput and time between tokens over the batch size, with the knee. Needs matplotlib."""

from __future__ import annotations

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from placer.advice_document import Advice
from placer.drawing import FIGURE_SETTINGS, LIMIT_COLOR, add_legend_below

_THROUGHPUT_COLOR, _MEAN_COLOR, _P95_COLOR, _KNEE_COLOR = "#0072b2", "#009e73", "#d55e00", "#cc79a7"


def knee_figure(advice: Advice) -> Figure:
    """Return two panels over `max_num_seqs`: throughput with what is tolerated, and ITL with its limit."""
    points = advice.points
    sizes = [point.max_num_seqs for point in points]
    with mpl.rc_context(FIGURE_SETTINGS):
        figure = Figure(figsize=(6.5, 4.8), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True)
        throughputs = [point.throughput_tps / 1000.0 for point in points]
        upper.plot(sizes, throughputs, "o-", color=_THROUGHPUT_COLOR, markersize=3, label="throughput")
        if advice.reachable_tps is not None:
            most = advice.reachable_tps / 1000.0
            upper.axhspan(
                (1.0 - advice.tolerance) * most,
                most,
                color=_THROUGHPUT_COLOR,
                alpha=0.12,
                linewidth=0.0,
                label=f"within {100 * advice.tolerance:g} % of the plateau",
            )
        upper.set_ylim(bottom=0.0)
        upper.set_ylabel("throughput (1000 tokens/s)")
        for label, color, marker, values in (
            ("ITL mean", _MEAN_COLOR, "s", [point.itl_mean_s for point in points]),
            ("ITL p95", _P95_COLOR, "^", [point.itl_p95_s for point in points]),
        ):
            shown = [(size, 1000.0 * value) for size, value in zip(sizes, values, strict=True) if value is not None]
            lower.plot(*zip(*shown, strict=True), f"{marker}-", color=color, markersize=3, label=label)
        if advice.itl_p95_limit_s is not None:
            limit_ms = 1000.0 * advice.itl_p95_limit_s
            lower.axhline(limit_ms, color=LIMIT_COLOR, linewidth=0.8, linestyle="--", label="limit of ITL p95")
        lower.set_ylim(bottom=0.0)
        lower.set_ylabel("time between tokens (ms)")
        lower.set_xlabel("max_num_seqs")
        if advice.knee is not None:
            size = advice.knee.max_num_seqs
            for axes in (upper, lower):
                axes.axvline(size, color=_KNEE_COLOR, linewidth=1.2, label=f"knee: {size}")
        lower.set_xscale("log", base=2)
        powers = [2**power for power in range(sizes[-1].bit_length())]
        lower.xaxis.set_major_locator(FixedLocator(powers))
        lower.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        lower.xaxis.set_minor_locator(NullLocator())
        lower.xaxis.set_minor_formatter(NullFormatter())
        add_legend_below(figure)
    return figure
