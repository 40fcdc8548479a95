"""The HTML report and the PNG files of a calibration (extra `report`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from placer.calibration_document import CalibrationReport, ResidualPoint
from placer.calibration_tables import calibration_tables, origin_lines, summary_lines
from placer.html_page import render_page, require_report_libraries

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = "calibration.html"
# What `render_figures` may return.
FIGURE_FILES = ("agreement.png", "coefficients.png", "residuals.png")


def render_report(report: CalibrationReport, points: Sequence[ResidualPoint]) -> str:
    """Return the report as one HTML page that refers to nothing outside of it.

    Raises
    ------
    InputError
        When jinja2 or matplotlib is not installed.
    """
    require_report_libraries()
    from placer.drawing import svg_of  # noqa: PLC0415 - comes with an extra

    figures = {name: svg_of(figure, name) for name, figure in draw_figures(report, points).items()}
    return render_page(
        TEMPLATE,
        {"residuals": "", "agreement": "", "coefficients": ""} | figures,
        report=report,
        summary=summary_lines(report),
        tables=calibration_tables(report),
        origins=origin_lines(report),
    )


def render_figures(report: CalibrationReport, points: Sequence[ResidualPoint]) -> dict[str, bytes]:
    """Return PNG files by name (InputError when matplotlib is not installed)."""
    require_report_libraries()
    from placer.drawing import png_of  # noqa: PLC0415 - comes with an extra

    return {f"{name}.png": png_of(figure) for name, figure in draw_figures(report, points).items()}


def draw_figures(report: CalibrationReport, points: Sequence[ResidualPoint]) -> dict[str, Figure]:
    """Return the figures by name; without measured steps there are no residuals."""
    from placer import calibration_figures as drawings  # noqa: PLC0415 - comes with an extra

    figures = {"coefficients": drawings.coefficient_figure(report)}
    if points:
        figures["residuals"] = drawings.residual_figure(points)
        figures["agreement"] = drawings.agreement_figure(points)
    return figures
