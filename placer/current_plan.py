"""What is in place, and what decides between placements with equal objectives, as arguments of planning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

from placer.files import ProblemFromFile, load_plan, sha256_of
from placer.plan_document import InputFile, Plan
from solvers.current import CurrentGpu, check_current
from solvers.problem import Problem
from solvers.problem_file import SecondaryName
from twin.errors import InputError

CurrentChoice = str | Path | Plan | Sequence[CurrentGpu]
# In place of names: nothing decides.
NONE = "none"


def with_secondary(problem: Problem, secondary: Sequence[str] | None, current: CurrentChoice | None) -> Problem:
    """Return a problem with other secondary objectives, or with something else in place.

    Parameters
    ----------
    problem
        Keeps what is not given.
    secondary
        Names, the most important first; ``["none"]``, or nothing in it: none.
    current
        A plan, the path of a plan.json, or GPUs.

    Raises
    ------
    InputError
        When a name is unknown or given twice, the file is no plan, or a GPU names an adapter twice.
    """
    if secondary is not None:
        problem = replace(problem, secondary=_names(secondary))
    if current is None:
        return problem
    gpus = _gpus(current)
    try:
        check_current(gpus)
    except ValueError as error:
        raise InputError(str(error), field="current") from error
    if isinstance(problem, ProblemFromFile) and isinstance(current, str | Path):
        digest = sha256_of(Path(current).read_bytes())
        file = InputFile(role="current", name=Path(current).name, sha256=digest)
        return replace(problem, current=gpus, inputs=(*problem.inputs, file))
    return replace(problem, current=gpus)


def _names(secondary: Sequence[str]) -> tuple[SecondaryName, ...]:
    allowed = get_args(SecondaryName)
    names = () if tuple(secondary) == (NONE,) else tuple(secondary)
    for name in names:
        if name not in allowed or names.count(name) > 1:
            raise InputError(
                f"secondary objectives must be of {', '.join(allowed)}, each once, or {NONE}. Got {', '.join(names)}.",
                field="secondary",
                value=list(names),
                hint="for example --secondary moves,headroom",
            )
    return cast("tuple[SecondaryName, ...]", names)


def _gpus(current: CurrentChoice) -> tuple[CurrentGpu, ...]:
    if isinstance(current, str | Path):
        current = load_plan(current)
    if isinstance(current, Plan):
        return tuple(CurrentGpu(gpu_type=gpu.gpu_type, adapters=gpu.adapters, name=gpu.name) for gpu in current.gpus)
    return tuple(current)
