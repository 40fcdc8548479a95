"""Limits and constraints that can be left out one at a time: to see which of them costs a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from placer.files import ProblemFromFile
from solvers.constraints import LIMIT_NAMES
from solvers.replication import NOT_REPLICATED
from twin.errors import InputError

RULES = ("gpu_type", "together", "apart", "limits")
# Instead of no limit: a replica that serves nothing is starved under any tolerance below 1.
TOLERANCE_STEP = 2.0


def relaxations(problem: ProblemFromFile) -> Iterator[str]:
    """Yield the names of what can be left out of a problem; see `relaxed`."""
    for name in ("itl_p95_ms", "ttft_p95_ms"):
        if getattr(problem.limits, name) is not None:
            yield f"limits.{name}"
    if 0.0 < problem.limits.starvation_tolerance * TOLERANCE_STEP < 1.0:
        yield "limits.starvation_tolerance"
    for section in RULES:
        for position in range(len(getattr(problem.constraints, section))):
            yield f"constraints.{section}.{position}"
    for name, is_given in (
        ("uncertainty", problem.uncertainty is not None),
        ("scenarios", problem.scenarios is not None),
        ("replication", problem.replication != NOT_REPLICATED),
        ("engine.max_loras", problem.fixed_max_loras is not None),
        ("engine.max_lora_rank", problem.fixed_max_lora_rank is not None),
        ("max_count", any(gpu_type.max_count is not None for gpu_type in problem.gpu_types)),
    ):
        if is_given:
            yield name


def relaxed(problem: ProblemFromFile, name: str) -> ProblemFromFile:
    """Return a problem without one of its `relaxations`.

    ``limits.starvation_tolerance`` is doubled; the others are left out: a limit, a rule of the constraints by section
    and position, uncertain rates, scenarios, replication, slots or rank that `engine` fixes, or all `max_count`.

    Raises
    ------
    InputError
        When there is no such thing to leave out.
    """
    known = list(relaxations(problem))
    if name not in known:
        raise InputError(
            f"`relax` of a scenario must be one of {', '.join(known) or 'nothing: there is nothing to relax'}. "
            f"Got {name!r}.",
            field="relax",
            value=name,
        )
    first, _, rest = name.partition(".")
    if first == "limits":
        tolerance = problem.limits.starvation_tolerance * TOLERANCE_STEP
        update = {rest: tolerance if rest == "starvation_tolerance" else None}
        assert rest in LIMIT_NAMES
        return replace(problem, limits=problem.limits.model_copy(update=update))
    if first == "constraints":
        section, _, position = rest.partition(".")
        rules = list(getattr(problem.constraints, section))
        del rules[int(position)]
        return replace(problem, constraints=problem.constraints.model_copy(update={section: tuple(rules)}))
    if first == "engine":
        return (
            replace(problem, fixed_max_loras=None)
            if rest == "max_loras"
            else replace(problem, fixed_max_lora_rank=None)
        )
    if first == "max_count":
        unlimited = tuple(gpu_type.model_copy(update={"max_count": None}) for gpu_type in problem.gpu_types)
        return replace(problem, gpu_types=unlimited)
    if first == "replication":
        return replace(problem, replication=NOT_REPLICATED)
    return replace(problem, uncertainty=None) if first == "uncertainty" else replace(problem, scenarios=None)
