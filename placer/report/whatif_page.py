"""The page of a what-if study: its curves, its scenarios in rows, and why some have no plan."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from placer.report.page import Page
from placer.whatif.curves import AXIS_LABELS, lines_of, numeric_axis
from placer.whatif.document import BreakEvenRecord, WhatIf
from placer.whatif.document import Cell as StudyCell
from placer.whatif.scenario import AS_IT_IS, shown_value
from placer.whatif.tables import cell_row, study_lines, study_tables
from placer.wording import counted

if TYPE_CHECKING:
    from placer.report.figure_files import Cell

SCRIPTS = ("whatif.js",)
# Changes that can be chosen one by one; there are never more values to choose from.
_MOST_VALUES = 60


def whatif_page(study: WhatIf, *, name: str) -> Page:
    """Return the page of a study; `name` is that of its file or folder."""
    axis = numeric_axis(study.cells) if study.study in {"sweep", "break-even"} else None
    places = _places(study, axis)
    planned = sum(cell.has_plan for cell in study.cells)
    head = f"{study.study}: {counted(len(study.cells), 'scenario')}, {counted(planned, 'plan')}"
    lines = study_lines(study)
    failures = {f"{cell.label}: {cell.reason}" for cell in study.cells if not cell.has_plan}
    data = {
        "study": study.study,
        "axis": None if axis is None else AXIS_LABELS[axis],
        "lines": lines,
        # Those about scenarios without a plan stand where these are listed.
        "warnings": [text for text in study.warnings if text not in failures],
        "cards": _cards(study),
        "choices": _choices(study),
        "cells": [_cell(cell, places.get(cell.index)) for cell in study.cells],
        "break_even": [_break_even(record) for record in study.break_even],
        "savings": [[entry.label, entry.gpus, entry.cost_per_hour, entry.is_within_bound] for entry in study.savings],
        # The first table is that of the cells, which the page has with all of their numbers.
        "tables": [
            {"title": table.title, "columns": [list(column) for column in table.columns], "rows": list(table.rows)}
            for table in study_tables(study)[1:]
        ],
    }
    return Page("What if", f"{name}: {head}", SCRIPTS, "startWhatIf", data, [head, *lines])


def write_whatif_figures(study: WhatIf, folder: Path) -> int:
    """Write the figures of a study into a folder, as CSV, PNG and SVG; return the number of files.

    Needs matplotlib.
    """
    from placer.report.figure_files import write_figure  # noqa: PLC0415 - comes with an extra
    from placer.whatif.figures import study_figures  # noqa: PLC0415

    rows: Mapping[str, list[list[Cell]]] = {
        "break-even": _table([record.model_dump(mode="json") for record in study.break_even]),
        "savings": _table([record.model_dump(mode="json") for record in study.savings]),
    }
    cells = _table([cell_row(cell) for cell in study.cells])
    return sum(write_figure(folder, name, figure, rows.get(name, cells)) for name, figure in study_figures(study))


def _table(records: list[dict[str, Any]]) -> list[list[Cell]]:
    """Return records as rows below a heading; what a record lacks is empty."""
    heading = list(dict.fromkeys(name for record in records for name in record))
    return [list(heading), *([_plain(record.get(name)) for name in heading] for record in records)]


def _plain(value: Any) -> Cell:
    return value if value is None or isinstance(value, int | float | str) else shown_value(value)


def _places(study: WhatIf, axis: str | None) -> dict[int, tuple[str, float]]:
    """Return for each cell that is drawn over the axis, by index, its line and where it is."""
    if axis is None:
        return {}
    lines = lines_of(study.cells, axis)
    return {cell.index: (line, position) for line, members in lines.items() for position, cell in members}


def _cards(study: WhatIf) -> list[tuple[str, str, str]]:
    """Return the numbers on top of the page: name, value, and what to know about it."""
    planned = [cell for cell in study.cells if cell.has_plan]
    without = [cell.status for cell in study.cells if not cell.has_plan]
    kinds = ", ".join(f"{without.count(status):,} {status}" for status in dict.fromkeys(without))
    cards = [
        ("scenarios", f"{len(study.cells):,}", f"study {study.study}"),
        ("with a plan", f"{len(planned):,}", f"without: {kinds}" if kinds else "all of them"),
    ]
    gpus = [cell.num_gpus for cell in planned if cell.num_gpus is not None]
    if gpus:
        cards.append(("GPUs", _range(min(gpus), max(gpus), "{:,}"), "fewest and most"))
    costs = [cell.cost_per_hour for cell in planned if cell.cost_per_hour is not None]
    if costs:
        cards.append(("cost per hour", _range(min(costs), max(costs), "{:,.6g}"), "least and most"))
    as_it_is = next((cell for cell in study.cells if not cell.changes and cell.has_plan), None)
    if as_it_is is not None:
        cards.append((AS_IT_IS, counted(as_it_is.num_gpus or 0, "GPU"), f"{as_it_is.cost_per_hour:,.6g} per hour"))
    return cards


def _range(low: float, high: float, form: str) -> str:
    return form.format(low) if low == high else f"{form.format(low)} to {form.format(high)}"


def _choices(study: WhatIf) -> dict[str, list[str]]:
    """Return the values of each change that has several, as they are shown; empty: a scenario without the change."""
    names = dict.fromkeys(name for cell in study.cells for name in cell.changes)
    found = {name: list(dict.fromkeys(_shown(cell, name) for cell in study.cells)) for name in names}
    return {name: values for name, values in found.items() if 1 < len(values) <= _MOST_VALUES}


def _shown(cell: StudyCell, name: str) -> str:
    return shown_value(cell.changes[name]) if name in cell.changes else ""


def _cell(cell: StudyCell, place: tuple[str, float] | None) -> dict[str, Any]:
    line, position = place if place is not None else (None, None)
    loss = cell.loss
    return {
        "label": cell.label,
        "changes": {name: shown_value(value) for name, value in cell.changes.items()},
        "line": line,
        "x": position,
        "status": cell.status,
        "reason": cell.reason,
        "planned": cell.has_plan,
        "adapters": cell.num_adapters,
        "offered": None if cell.offered_tps is None else round(cell.offered_tps),
        "gpus": cell.num_gpus,
        "types": shown_value(cell.gpus_by_type),
        "bound": cell.lower_bound,
        "proof": cell.bound_proof,
        "cost": cell.cost_per_hour,
        "cost_bound": cell.cost_bound_per_hour,
        "service": None if cell.worst_service_ratio is None else round(cell.worst_service_ratio, 4),
        "itl": None if cell.itl_p95_ms is None else round(cell.itl_p95_ms, 1),
        "ttft": None if cell.ttft_p95_ms is None else round(cell.ttft_p95_ms, 1),
        "metastable": cell.num_metastable,
        "risk": None
        if cell.risk is None
        else [cell.risk.probability, round(cell.risk.low, 4), round(cell.risk.high, 4), cell.risk.num_draws],
        "starved": None if loss is None else len(loss.starved_adapters),
    }


def _break_even(record: BreakEvenRecord) -> dict[str, Any]:
    scenario = ", ".join(f"{name} {shown_value(value)}" for name, value in record.scenario.items())
    return {
        "scenario": scenario or AS_IT_IS,
        "type": record.gpu_type,
        "other": record.other,
        "gpus": record.num_gpus,
        "other_gpus": record.num_other,
        "price": record.price,
        "other_price": record.other_price,
        "at": record.break_even_price,
    }
