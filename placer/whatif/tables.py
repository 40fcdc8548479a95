"""Tables and sentences of a study, as text; and its cells as rows of plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from placer.whatif.document import Cell, WhatIf
from placer.whatif.scenario import AS_IT_IS, shown_value

NO_VALUE = "-"
_LONGEST_REASON = 90
Column = tuple[str, bool]


@dataclass(frozen=True)
class StudyTable:
    """A table ready to be printed: columns are a heading and whether they are of numbers."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]


def study_tables(study: WhatIf) -> list[StudyTable]:
    """Return the tables of a study: what it is about first."""
    tables = [_cells_table(study)]
    if study.study == "risk":
        tables.append(_risk_table(study.cells))
    if any(cell.loss is not None for cell in study.cells):
        tables.append(_loss_table(study.cells))
    if study.break_even:
        tables.append(_break_even_table(study))
    if study.savings:
        tables.append(_savings_table(study))
    return tables


def study_lines(study: WhatIf) -> list[str]:
    """Return sentences: what the numbers are, and how they were made."""
    settings: Any = study.configuration["settings"]
    lines = [
        f"each scenario: {settings['solver']}, surrogate {settings['surrogate']}, "
        + (f"twin over {settings['horizon_s']:g} s, seed {settings['seed']}" if settings["is_verified"] else "no twin")
    ]
    if study.study == "risk":
        risk: Any = study.configuration["risk"]
        error = "with the twin's measured error" if risk["has_twin_error"] else "without the twin's own error"
        lines.append(
            f"risk: {risk['num_draws']} draws of lognormal rates, cv {risk['rate_cv']:g} of each adapter and "
            f"{risk['common_cv']:g} of all together, {error}; intervals: Wilson, 95 %"
        )
    if study.break_even:
        lines.append("break-even: fleets of one type each; exact for these numbers of GPUs, which no price changes")
    if any(record.gpus > 0 and record.is_within_bound for record in study.savings):
        lines.append("maybe by the search: the lower bound of the problem as it is allows as few GPUs")
    return lines


def cell_line(cell: Cell) -> str:
    """Return what came out of a cell, in a line."""
    if not cell.has_plan:
        return f"{cell.label}: {cell.status}. {_short(cell.reason)}".rstrip(". ")
    risk = "" if cell.risk is None else f", starves with probability {cell.risk.probability:.2f}"
    return f"{cell.label}: {cell.num_gpus} GPUs, {cell.cost_per_hour:g} per hour{risk} ({cell.seconds:.0f} s)"


def cell_row(cell: Cell) -> dict[str, Any]:
    """Return a cell as a flat row: changes as ``change_...``, what was drawn as ``risk_...``; lists as text."""
    data = cell.model_dump(mode="json")
    changes, risk, loss = data.pop("changes"), data.pop("risk"), data.pop("loss")
    data["gpus_by_type"] = shown_value(data["gpus_by_type"])
    row = {"index": data.pop("index"), "label": data.pop("label")}
    row |= {f"change_{name}": _plain(value) for name, value in changes.items()}
    row |= data
    row |= {f"risk_{name}": value for name, value in (risk or {}).items()}
    row |= {f"loss_{name}": _plain(value) for name, value in (loss or {}).items()}
    return row


def _plain(value: Any) -> int | float | str | None:
    """Return numbers and missing values as they are, and everything else as text."""
    return value if value is None or isinstance(value, int | float) else shown_value(value)


def _cells_table(study: WhatIf) -> StudyTable:
    columns: tuple[Column, ...] = (
        ("scenario", False), ("adapters", True), ("offered\ntok/s", True), ("GPUs", True), ("bound", True),
        ("per hour", True), ("worst\nservice", True), ("ITL\np95", True), ("TTFT\np95", True), ("meta-\nstable", True),
        ("seconds", True), ("verdict", False),
    )  # fmt: skip
    return StudyTable("Scenarios", columns, tuple(_cell_row(cell) for cell in study.cells))


def _cell_row(cell: Cell) -> tuple[str, ...]:
    return (
        cell.label,
        _number(cell.num_adapters, 0),
        _number(cell.offered_tps, 0),
        _number(cell.num_gpus, 0),
        _number(cell.lower_bound, 0),
        _number(cell.cost_per_hour, 2),
        _number(cell.worst_service_ratio, 3),
        _number(cell.itl_p95_ms, 0, " ms"),
        _number(None if cell.ttft_p95_ms is None else cell.ttft_p95_ms / 1000.0, 1, " s"),
        _number(cell.num_metastable, 0),
        _number(cell.seconds, 0),
        cell.status if cell.has_plan else f"{cell.status}: {_short(cell.reason)}",
    )


def _risk_table(cells: Sequence[Cell]) -> StudyTable:
    columns: tuple[Column, ...] = (
        ("planned for", False), ("GPUs", True), ("per hour", True), ("starved\ndraws", True),
        ("probability of\nstarvation", True), ("95 % interval", False), ("share of\nGPUs", True), ("most often", False),
    )  # fmt: skip
    rows = [
        (
            cell.label,
            _number(cell.num_gpus, 0),
            _number(cell.cost_per_hour, 2),
            f"{risk.num_starved} of {risk.num_draws}",
            f"{risk.probability:.2f}",
            f"{risk.low:.2f} to {risk.high:.2f}",
            f"{risk.gpu_share:.1%}",
            f"{risk.worst_gpu}, {risk.worst_gpu_starved} times" if risk.worst_gpu_starved else NO_VALUE,
        )
        for cell in cells
        if (risk := cell.risk) is not None
    ]
    return StudyTable("Risk", columns, tuple(rows))


def _loss_table(cells: Sequence[Cell]) -> StudyTable:
    columns: tuple[Column, ...] = (
        ("scenario", False), ("GPUs before", False), ("lost", False), ("adapters that starve", True),
        ("worst\nservice", True), ("the first of them", False),
    )  # fmt: skip
    rows = [
        (
            cell.label,
            shown_value(loss.gpus_before),
            shown_value(loss.gpus_lost),
            "none" if cell.has_plan else str(len(loss.starved_adapters)),
            _number(loss.worst_service_ratio if not cell.has_plan else cell.worst_service_ratio, 3),
            _short(" ".join(loss.starved_adapters[:6])),
        )
        for cell in cells
        if (loss := cell.loss) is not None
    ]
    return StudyTable("Lost GPUs", columns, tuple(rows))


def _break_even_table(study: WhatIf) -> StudyTable:
    columns: tuple[Column, ...] = (
        ("scenario", False), ("type", False), ("GPUs", True), ("price", True), ("other", False), ("GPUs", True),
        ("price", True), ("break-even\nprice of type", True), ("as a ratio\nof prices", True), ("cheaper now", False),
    )  # fmt: skip
    rows = [
        (
            ", ".join(f"{name} {shown_value(value)}" for name, value in record.scenario.items()) or AS_IT_IS,
            record.gpu_type,
            str(record.num_gpus),
            f"{record.price:.2f}",
            record.other,
            str(record.num_other),
            f"{record.other_price:.2f}",
            f"{record.break_even_price:.3f}",
            f"{record.price_ratio:.3f}",
            record.cheaper or "equal",
        )
        for record in study.break_even
    ]
    return StudyTable("Break-even", columns, tuple(rows))


def _savings_table(study: WhatIf) -> StudyTable:
    columns: tuple[Column, ...] = (("change", False), ("GPUs saved", True), ("saved per hour", True), ("", False))
    rows = [
        (
            record.label,
            str(record.gpus),
            f"{record.cost_per_hour:.2f}",
            "maybe by the search" if record.gpus > 0 and record.is_within_bound else "",
        )
        for record in study.savings
    ]
    return StudyTable("Savings", columns, tuple(rows))


def _number(value: float | None, digits: int, unit: str = "") -> str:
    return NO_VALUE if value is None else f"{value:,.{digits}f}{unit}"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_REASON else f"{text[: _LONGEST_REASON - 3]}..."
