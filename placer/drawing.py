"""How the figures of reports look, and how they become SVG or PNG. Needs matplotlib."""

from __future__ import annotations

import io
import re
import textwrap
from typing import Any

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.figure import Figure

# Newer releases of matplotlib demand literal names here, older ones do not know them.
FIGURE_SETTINGS: Any = {
    "svg.hashsalt": "placer",
    "font.size": 8.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    # Names are users' texts: what stands between two dollars is no formula.
    "text.parse_math": False,
}
LIMIT_COLOR = "#444444"
PNG_DOTS_PER_INCH = 150
# Room that a character of a legend takes at most, in inches, at the settings' size of letters.
_CHARACTER_INCHES = 0.075
_MOST_LEGEND_COLUMNS = 5


def add_legend_below(figure: Figure) -> None:
    """Name what is drawn in the figure's panels, each name once, below them and within the figure's width.

    The figure grows by the height of the legend. Long names are broken into lines.
    """
    artists: dict[str, Artist] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        # Of several artists with one name, the one drawn last stands in the legend.
        artists |= dict(zip(labels, handles, strict=True))
    if not artists:
        return
    width = int(figure.get_figwidth() / _CHARACTER_INCHES)
    names = [textwrap.fill(name, width) for name in artists]
    for num_columns in range(min(len(names), _MOST_LEGEND_COLUMNS), 0, -1):
        legend = figure.legend(
            list(artists.values()), names, loc="outside lower center", ncols=num_columns, frameon=False
        )
        box = legend.get_window_extent()
        if box.width <= figure.bbox.width or num_columns == 1:
            break
        legend.remove()
    figure.set_figheight(figure.get_figheight() + box.height / figure.dpi)


def svg_of(figure: Figure, prefix: str) -> str:
    """Return the figure as an `svg` element whose identifiers start with `prefix`: a page holds several.

    It has a white background of its own. Browsers that force a dark mode recolour the backgrounds of a page; what they
    recolour in a figure has changed from release to release, so that the page asks them to leave it as it is.
    """
    stream = io.StringIO()
    # Identifiers are hashed with the settings' salt: the same figure is the same text.
    with mpl.rc_context(FIGURE_SETTINGS):
        figure.savefig(stream, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)


def png_of(figure: Figure) -> bytes:
    """Return the figure as the content of a PNG file."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=PNG_DOTS_PER_INCH, metadata={"Software": None})
    return stream.getvalue()
