"""What a study can be drawn over: the change that is its axis, and the lines of the others."""

from __future__ import annotations

from collections.abc import Sequence

from placer.whatif.document import Cell
from placer.whatif.scenario import shown_value

# Name of the line of which nothing but the axis changes.
PLAN_LINE = "plan"
AXIS_LABELS = {
    "scale_rates": "factor on all rates",
    "add_adapters": "adapters added",
    "price": "price of a GPU (per hour)",
    "burstiness": "coefficient of variation of the gaps between requests",
    "lengths": "factor on all lengths",
    "prompt_lengths": "factor on the lengths of prompts",
    "output_lengths": "factor on the lengths of answers",
    "lose_gpus": "GPUs lost",
    "itl_p95_ms": "limit on the p95 inter-token latency (ms)",
    "ttft_p95_ms": "limit on the p95 time to first token (ms)",
    "starvation_tolerance": "share that may be missed (starvation tolerance)",
}
# What a change is where a scenario does not have it.
_UNCHANGED = {
    "scale_rates": 1.0, "lengths": 1.0, "prompt_lengths": 1.0, "output_lengths": 1.0, "add_adapters": 0.0,
    "lose_gpus": 0.0,
}  # fmt: skip


def numeric_axis(cells: Sequence[Cell]) -> str | None:
    """Return the change with the most different numbers, where there are two at least."""
    counts = {name: len(_axis_values(cells, name)) for name in AXIS_LABELS}
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] >= 2 else None


def _axis_values(cells: Sequence[Cell], axis: str) -> set[float]:
    return {value for cell in cells if (value := _position(cell, axis)) is not None}


def _position(cell: Cell, axis: str) -> float | None:
    value = cell.changes.get(axis, _UNCHANGED.get(axis))
    return float(value) if isinstance(value, int | float) else None


def lines_of(cells: Sequence[Cell], axis: str) -> dict[str, list[tuple[float, Cell]]]:
    """Return for each combination of the other changes its cells, by what the axis shows; ascending."""
    lines: dict[str, list[tuple[float, Cell]]] = {}
    for cell in cells:
        position = _position(cell, axis)
        if position is None:
            continue
        others = [f"{name} {shown_value(value)}" for name, value in cell.changes.items() if name != axis]
        lines.setdefault(", ".join(others) or PLAN_LINE, []).append((position, cell))
    several = {name: sorted(members, key=lambda member: member[0]) for name, members in lines.items()}
    # Where only the problem as it is has none of the other changes, a point alone is no line.
    return {name: members for name, members in several.items() if len(members) > 1} or several
