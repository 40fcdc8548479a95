"""Adapters of a problem divided as a plan divides them: each GPU of the plan is looked at with exactly its share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from placer.files import ProblemFromFile
from placer.plan_document import AdapterShare, Plan, PlannedGpu
from placer.wording import counted
from solvers.problem import Problem
from solvers.replication import given_replicas, most_replicas
from solvers.shares import AnyProblem, divided_problem
from twin.errors import InputError

# Of the sum of an adapter's shares.
ROUNDING = 1e-6
AGAIN = "make the plan again with `placer solve`"


def as_planned(problem: AnyProblem, plan: Plan) -> AnyProblem:
    """Return the problem of placing the shares that a plan has.

    Parameters
    ----------
    problem
        As it was read. Adapters of the plan that it does not have are left to others to complain about.

    Raises
    ------
    InputError
        When shares are not about adapters of their GPU, an adapter is on several GPUs and not everywhere with a share,
        or shares are not numbered from 1 on or not 1 in sum.
    """
    shares = _shares_of(plan)
    if not (shares or problem.replication.is_asked):
        return problem
    return divided_problem(problem, [shares.get(adapter.name, (1.0,)) for adapter in problem.adapters])


def planned_indices(problem: ProblemFromFile, gpu: PlannedGpu) -> list[int]:
    """Return the adapters of a divided problem that a planned GPU serves, in the plan's order."""
    chosen = [problem.told_positions[name] for name in gpu.adapters]
    if problem.shares is None:
        return chosen
    replicas = {entry.adapter: entry.replica for entry in gpu.shares}
    first = problem.shares.first
    return [int(first[index]) + replicas.get(name, 1) - 1 for name, index in zip(gpu.adapters, chosen, strict=True)]


def broken_replication(plan: Plan, problem: Problem) -> list[str]:
    """Say which adapter has other numbers of replicas in a plan than its problem fixes, or more than it allows.

    What the problem leaves open, and what the plan was told to find, may be any number.
    """
    names = [adapter.name for adapter in problem.told.adapters]
    planned = _shares_of(plan)
    rules = problem.told.replication
    fixed, most = given_replicas(rules, names), most_replicas(rules, names)
    asked = most_replicas(plan.configuration.replication, names)
    for index, adapter in enumerate(names):
        found = len(planned.get(adapter, (1.0,)))
        if index in most:
            is_broken, must = found > most[index], f"at most {counted(most[index], 'replica')}"
        else:
            is_free = fixed[index] == 1 and index in asked
            is_broken, must = found != fixed[index] and not is_free, counted(fixed[index], "replica")
        if is_broken:
            return [f"the plan breaks the problem's `replication`: {adapter!r} must have {must}. It has {found}."]
    return []


def _shares_of(plan: Plan) -> Mapping[str, tuple[float, ...]]:
    """Return the shares of the plan's adapters that have several, by name and in the order of the replicas."""
    found: dict[str, dict[int, float]] = {}
    for position, entry in _entries(plan):
        known = found.setdefault(entry.adapter, {})
        if entry.replica in known:
            raise _error(position, entry.adapter, "must be numbered", f"Number {entry.replica} is there twice")
        known[entry.replica] = entry.share
    for position, gpu in enumerate(plan.gpus):
        own = {entry.adapter for entry in gpu.shares}
        for name in gpu.adapters:
            if name in found and name not in own:
                raise _error(position, name, "must be given on each of its GPUs", f"{gpu.name} has none")
    for name, known in found.items():
        position = next(index for index, entry in _entries(plan) if entry.adapter == name)
        if sorted(known) != list(range(1, len(known) + 1)):
            raise _error(position, name, "must be numbered from 1 on", f"Got {sorted(known)}")
        if abs(sum(known.values()) - 1.0) > ROUNDING:
            raise _error(position, name, "must add up to 1", f"They add up to {sum(known.values()):g}")
    return {name: tuple(share for _, share in sorted(known.items())) for name, known in found.items()}


def _entries(plan: Plan) -> Iterator[tuple[int, AdapterShare]]:
    """Yield the shares of each GPU, by position."""
    for position, gpu in enumerate(plan.gpus):
        for entry in gpu.shares:
            if entry.adapter not in gpu.adapters:
                raise _error(
                    position, entry.adapter, "must be on a GPU that serves it", f"{gpu.name} does not serve it"
                )
            yield position, entry


def _error(position: int, adapter: str, rule: str, got: str) -> InputError:
    return InputError(
        f"the shares of an adapter {rule}: those of {adapter!r} in the plan are not. {got}.",
        field=f"gpus.{position}.shares",
        value=adapter,
        hint=AGAIN,
    )
