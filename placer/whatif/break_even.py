"""At which price one GPU type becomes as cheap as another: exact, because prices do not change fleets of one type."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from placer.whatif.document import BreakEvenRecord, Cell


def break_even(cells: Sequence[Cell]) -> tuple[BreakEvenRecord, ...]:
    """Return for each scenario and each pair of GPU types, each with a fleet of its own, where the cheaper one changes.

    A fleet of n GPUs of one type costs n times their price, and the fewest GPUs are the cheapest fleet of the type at
    any price. So fleets of n GPUs at the price p and of m at q cost the same where p / q = m / n. What is exact about
    that is the arithmetic: n and m are the GPUs of plans, which may be more than the fewest. A fleet that mixes types
    may be cheaper than both.

    Parameters
    ----------
    cells
        Whose changes have a `gpu_type`; those without a plan are left out.
    """
    groups: dict[str, list[tuple[dict[str, Any], Cell]]] = {}
    for cell in cells:
        rest = {name: value for name, value in cell.changes.items() if name != "gpu_type"}
        if "gpu_type" in cell.changes and cell.has_plan and cell.num_gpus and cell.cost_per_hour is not None:
            groups.setdefault(repr(sorted(rest.items())), []).append((rest, cell))
    return tuple(
        _record(rest, first, second)
        for members in groups.values()
        for (rest, first), (_, second) in itertools.combinations(members, 2)
    )


def _record(scenario: dict[str, Any], cell: Cell, other: Cell) -> BreakEvenRecord:
    assert cell.num_gpus
    assert other.num_gpus
    assert cell.cost_per_hour is not None
    assert other.cost_per_hour is not None
    price, other_price = cell.cost_per_hour / cell.num_gpus, other.cost_per_hour / other.num_gpus
    names = (str(cell.changes["gpu_type"]), str(other.changes["gpu_type"]))
    difference = cell.cost_per_hour - other.cost_per_hour
    ratio = other.num_gpus / cell.num_gpus
    return BreakEvenRecord(
        scenario=scenario,
        gpu_type=names[0],
        other=names[1],
        num_gpus=cell.num_gpus,
        num_other=other.num_gpus,
        price=price,
        other_price=other_price,
        break_even_price=other_price * ratio,
        price_ratio=ratio,
        cheaper=None if abs(difference) < 1e-9 else names[difference > 0.0],
    )
