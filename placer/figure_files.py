"""Write one figure to a file: PNG or SVG, by the file's name (extra `report`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from placer.files import write_atomically
from placer.html_page import require_report_libraries
from twin.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")


def require_figure_path(path: Path) -> None:
    """Raise InputError unless the suffix says how to write a figure, and the libraries for it are installed."""
    if path.suffix not in SUFFIXES:
        raise InputError(
            f"a figure must be written to a file ending in {' or '.join(SUFFIXES)}. Got {path}.",
            file=str(path),
            field="plot",
            value=str(path),
        )
    require_report_libraries()


def save_figure(draw: Callable[[], Figure], path: Path) -> None:
    """Write what `draw` returns, whole or not at all (InputError when the path is not writable)."""
    require_figure_path(path)
    from placer.drawing import png_of, svg_of  # noqa: PLC0415 - comes with an extra

    figure = draw()
    write_atomically(path, png_of(figure) if path.suffix == ".png" else svg_of(figure, path.stem))
