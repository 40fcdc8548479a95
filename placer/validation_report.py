"""The HTML report of a validation: one file with tables and figures, to read or to print (extra `report`)."""

from __future__ import annotations

from placer.html_page import render_page, require_report_libraries
from placer.validation import ValidatedRun, Validation
from placer.validation_tables import NO_VALUE, TextTable, regime_lines, summary_lines, timing_line, validation_tables
from twin.validation.quantities import SCORED_QUANTITIES

TEMPLATE = "validation.html"


def render_report(validation: Validation) -> str:
    """Return the report as one HTML page that refers to nothing outside of it.

    Raises
    ------
    InputError
        When jinja2 or matplotlib is not installed.
    """
    require_report_libraries()
    from placer import validation_figures as drawings  # noqa: PLC0415 - comes with an extra
    from placer.drawing import svg_of  # noqa: PLC0415

    headline, *tables = validation_tables(validation)
    figures = {
        name: svg_of(draw(validation.rows), name)
        for name, draw in (
            ("scatter", drawings.scatter_figure),
            ("slots", drawings.slots_figure),
            ("goodput", drawings.goodput_figure),
        )
    }
    return render_page(
        TEMPLATE,
        figures,
        summary=summary_lines(validation),
        warnings=validation.warnings,
        headline=headline,
        tables=tables,
        rows=_rows_table(validation),
        regimes=regime_lines(validation),
        timing=timing_line(validation),
        inputs=validation.inputs,
        versions=sorted(validation.versions.items()),
        most_error=f"{drawings.MOST_ERROR_PERCENT:g}",
    )


def _rows_table(validation: Validation) -> TextTable:
    """Return every run: measured and predicted values side by side."""
    counts = ("slots", "adapters", "rank")
    columns = [("run", False), ("model", False), *((name, True) for name in counts), ("regime", False), ("", False)]
    columns += [(label, True) for label in ("starved", *SCORED_QUANTITIES.values())]
    return TextTable("Every run: measured / predicted", tuple(columns), tuple(_row(run) for run in validation.rows))


def _row(run: ValidatedRun) -> tuple[str, ...]:
    marks = {
        "informative": run.is_headline,
        "metastable": run.is_metastable,
        "lacks memory": run.predicted_status == "oom",
    }
    flags = ", ".join(name for name, holds in marks.items() if holds)
    counts = (str(run.max_loras), str(run.num_adapters), str(run.max_lora_rank))
    starved = f"{_yes_or_no(run.measured_starved)} / {_yes_or_no(run.predicted_starved)}"
    values = [
        f"{_number(run.measured.value(name))} / {_number(run.predicted.value(name))}" for name in SCORED_QUANTITIES
    ]
    return (run.run_id, run.model, *counts, run.regime, flags, starved, *values)


def _yes_or_no(holds: bool | None) -> str:  # noqa: FBT001 - formats it
    return NO_VALUE if holds is None else "yes" if holds else "no"


def _number(value: float | None) -> str:
    return NO_VALUE if value is None else f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
