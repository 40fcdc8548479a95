"""What every solver does about constraints and replicas before it begins: it keeps them, or says who does.

A solver that declares `Capability.CONSTRAINTS` sees problems without groups that must share a GPU: those are merged
into one adapter each (`solvers.merging`), and what it finds is told in the adapters that users know. All other rules
are part of what `solvers.feasibility` accepts. Replicas are shares (`solvers.shares`), which a rule keeps apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any, Protocol, TypeVar, cast

from predictors.surrogate import Surrogate
from solvers.interface import Capability, Observer
from solvers.merging import Merging, merged_problem
from solvers.objective import evaluate
from solvers.placement import GpuAssignment, Placement, validate_placement
from solvers.problem import Problem
from solvers.result import Incumbent, SolveResult
from twin.errors import SolverError

SolveMethod = TypeVar("SolveMethod", bound=Callable[..., SolveResult])


class _Named(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def capabilities(self) -> frozenset[Capability]: ...


def constrained(solve: SolveMethod) -> SolveMethod:
    """Wrap a solver's `solve`: it refuses constraints that it would not keep, and never sees unmerged groups."""

    @wraps(solve)
    def wrapped(self: _Named, problem: Problem, surrogate: Surrogate, **arguments: Any) -> SolveResult:
        require_kept(self, problem)
        _require_divided(problem)
        merged = merged_problem(problem)
        if merged.merging is None or merged is problem:
            return solve(self, problem, surrogate, **arguments)
        warm_start = arguments.pop("warm_start", None)
        if warm_start is not None:
            validate_placement(problem, warm_start)
            warm_start = collapsed(merged.merging, warm_start)
        observer = _translating(problem, surrogate, merged.merging, arguments.pop("observer", None))
        result = solve(self, merged, surrogate, warm_start=warm_start, observer=observer, **arguments)
        if result.placement is None:
            return result
        placement = expanded(merged.merging, result.placement)
        return replace(result, placement=placement, evaluation=evaluate(problem, placement, surrogate))

    return cast(SolveMethod, wrapped)


def require_kept(solver: _Named, problem: Problem) -> None:
    """Raise SolverError unless `solver` keeps the constraints of `problem` and its replicas apart, if it has any."""
    table = problem.constraint_table
    is_replicated = problem.told.replication.is_asked
    if Capability.CONSTRAINTS not in solver.capabilities and (table is not None or is_replicated):
        given = [
            name
            for name, is_given in (("constraints", problem.constraints.are_given), ("replication", is_replicated))
            if is_given
        ]
        raise SolverError(
            f"a problem with {' and '.join(f'`{name}`' for name in given)} needs a solver that keeps them. "
            f"{solver.name!r} does not.",
            field="solver",
            value=solver.name,
            hint=f"take one of {', '.join(_keepers())}",
        )
    allowed = None if table is None else table.allowed_types
    if allowed is None or Capability.MIXED_GPU_TYPES in solver.capabilities or allowed.all(axis=0).any():
        return
    raise SolverError(
        f"a problem whose `constraints` need several GPU types needs a solver that mixes them. {solver.name!r} builds "
        "fleets of one type.",
        field="solver",
        value=solver.name,
        hint=f"take one of {', '.join(_keepers(Capability.MIXED_GPU_TYPES))}",
    )


def _require_divided(problem: Problem) -> None:
    """Raise SolverError for a problem that asks for replicas and has no shares yet: they would be left out."""
    if problem.replication.is_asked and problem.unmerged.shares is None:
        raise SolverError(
            "a problem with `replication` must be divided into shares before it is solved. This one is not.",
            field="replication",
            value=problem.replication.model_dump(exclude_defaults=True),
            hint="make the plan with placer.plan, or divide the problem with solvers.shares.divided_problem",
        )


def expanded(merging: Merging, placement: Placement) -> Placement:
    """Return a placement of a merged problem as one of the problem that it comes from."""
    return Placement(tuple(expanded_gpu(merging, gpu) for gpu in placement.gpus))


def expanded_gpu(merging: Merging, gpu: GpuAssignment) -> GpuAssignment:
    """Return a GPU of a merged problem with the adapters that users know."""
    return replace(gpu, adapters=merging.expanded(gpu.adapters))


def collapsed(merging: Merging, placement: Placement) -> Placement:
    """Return a placement in which groups are together as one of the merged problem."""
    return Placement(
        tuple(
            replace(gpu, adapters=tuple(sorted({int(merging.item_of[adapter]) for adapter in gpu.adapters})))
            for gpu in placement.gpus
        )
    )


def _translating(
    problem: Problem, surrogate: Surrogate, merging: Merging, observer: Observer | None
) -> Observer | None:
    """Return an observer of the merged problem's incumbents that tells `observer` about the problem's."""
    if observer is None:
        return None

    def translate(incumbent: Incumbent) -> None:
        placement = expanded(merging, incumbent.placement)
        observer(replace(incumbent, placement=placement, evaluation=evaluate(problem, placement, surrogate)))

    return translate


def _keepers(*also: Capability) -> list[str]:
    # The registry lists the solvers whose methods this module wraps.
    from solvers.registry import solver_entries  # noqa: PLC0415

    needed = {Capability.CONSTRAINTS, *also}
    return [entry.name for entry in solver_entries() if needed <= entry.capabilities]
