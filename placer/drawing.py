"""How the figures of reports look, and how they become SVG or PNG. Needs matplotlib."""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib as mpl
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
}
LIMIT_COLOR = "#444444"
PNG_DOTS_PER_INCH = 150


def svg_of(figure: Figure, prefix: str) -> str:
    """Return the figure as an `svg` element whose identifiers start with `prefix`: a page holds several."""
    stream = io.StringIO()
    # Identifiers are hashed with the settings' salt: the same figure is the same text.
    with mpl.rc_context(FIGURE_SETTINGS):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)


def png_of(figure: Figure) -> bytes:
    """Return the figure as the content of a PNG file."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=PNG_DOTS_PER_INCH, metadata={"Software": None})
    return stream.getvalue()
