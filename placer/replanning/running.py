"""The fleet that is in place, under the rates of now: what of a plan still serves whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from placer.plan_document import Plan, PlannedGpu
from placer.replan_document import Before
from placer.replanning.stations import FleetTwin, Station
from solvers.problem import Problem
from twin.errors import InputError


@dataclass(frozen=True)
class RunningFleet:
    """What serves now.

    Attributes
    ----------
    stations
        Of each replica, by name, with the adapters that the problem still has.
    gone
        Names of those that it has not any more, by replica.
    outgrown
        Names of those whose rank has become too large for its slots, by replica: nobody serves them as they are now.
    orphans
        Adapters that were on lost GPUs, ascending.
    lost
        Names of those GPUs.
    lost_types
        Their types' names.
    """

    stations: dict[str, Station]
    gone: dict[str, tuple[str, ...]]
    orphans: tuple[int, ...]
    lost: tuple[str, ...]
    lost_types: tuple[str, ...]
    outgrown: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def home(self) -> dict[int, str]:
        """Replica of each adapter that is served."""
        return {adapter: name for name, station in self.stations.items() for adapter in station.adapters}

    def unserved(self, problem: Problem) -> tuple[int, ...]:
        """Return the adapters that no replica serves: the new ones, and those of lost GPUs."""
        home = self.home
        return tuple(index for index in range(len(problem.adapters)) if index not in home)


def running_fleet(plan: Plan, problem: Problem, lost: Sequence[str]) -> RunningFleet:
    """Return what of `plan` serves the adapters of `problem`.

    Raises
    ------
    InputError
        When the plan has no GPUs, has an adapter on two GPUs that it does not divide, or has a type of GPU that the
        problem lacks; when a lost GPU is not in it.
    """
    _check(plan, problem, lost)
    types = [gpu_type.name for gpu_type in problem.gpu_types]
    indices = {adapter.name: index for index, adapter in enumerate(problem.adapters)}
    names = {gpu.name: share_names(gpu, problem) for gpu in plan.gpus}
    serving = [gpu for gpu in plan.gpus if gpu.name not in lost]
    gone_gpus = [gpu for gpu in plan.gpus if gpu.name in lost]
    stations = {
        gpu.name: Station(
            types.index(gpu.gpu_type),
            gpu.engine,
            tuple(sorted(indices[name] for name in names[gpu.name] if name in indices)),
        )
        for gpu in serving
    }
    fitting = {name: _without_larger(station, problem) for name, station in stations.items()}
    outgrown = {
        name: tuple(problem.adapters[index].name for index in station.adapters if index not in fitting[name].adapters)
        for name, station in stations.items()
    }
    return RunningFleet(
        stations=fitting,
        gone={gpu.name: tuple(name for name in names[gpu.name] if name not in indices) for gpu in serving},
        orphans=tuple(sorted(indices[name] for gpu in gone_gpus for name in names[gpu.name] if name in indices)),
        lost=tuple(gpu.name for gpu in gone_gpus),
        lost_types=tuple(gpu.gpu_type for gpu in gone_gpus),
        outgrown=outgrown,
    )


def share_names(gpu: PlannedGpu, problem: Problem) -> tuple[str, ...]:
    """Return the adapters of a planned GPU as a problem that may be divided names them: a share has its own name."""
    shares = problem.shares
    if shares is None:
        return gpu.adapters
    positions = {adapter.name: index for index, adapter in enumerate(shares.origin.adapters)}
    replicas = {entry.adapter: entry.replica for entry in gpu.shares}

    def name_of(adapter: str) -> str:
        if adapter not in positions:
            return adapter
        return problem.adapters[int(shares.first[positions[adapter]]) + replicas.get(adapter, 1) - 1].name

    return tuple(name_of(adapter) for adapter in gpu.adapters)


def before_of(running: RunningFleet, twin: FleetTwin) -> Before:
    """Return what the twin says of the running fleet under the rates of now."""
    problem = twin.problem
    busy = {name: station for name, station in running.stations.items() if station.adapters}
    verdicts = dict(zip(busy, twin.verdicts(list(busy.values())), strict=True))
    starved = {name for verdict in verdicts.values() for name in verdict.starved_adapters}
    starved |= {problem.adapters[index].name for index in running.unserved(problem)}
    gone = {name for names in running.gone.values() for name in names}
    return Before(
        num_gpus=len(running.stations),
        lost_gpus=running.lost,
        rejected_gpus=tuple(name for name, verdict in verdicts.items() if not verdict.is_accepted),
        starved_adapters=tuple(sorted(starved)),
        gone_adapters=tuple(sorted(gone)),
    )


def without_lost(problem: Problem, lost_types: Sequence[str]) -> Problem:
    """Return the problem with as many GPUs less as are lost of each type whose number is limited.

    Raises
    ------
    InputError
        When no GPU is left.
    """
    left = tuple(
        gpu_type
        if gpu_type.max_count is None
        else gpu_type.model_copy(update={"max_count": max(0, gpu_type.max_count - lost_types.count(gpu_type.name))})
        for gpu_type in problem.gpu_types
    )
    if all(gpu_type.max_count == 0 for gpu_type in left):
        raise InputError(
            "GPUs must be left that serve. `max_count` allows as many as are lost.",
            field="lose_gpu",
            hint="raise `max_count` of the problem if there are others",
        )
    return replace(problem, gpu_types=left)


def _without_larger(station: Station, problem: Problem) -> Station:
    """Return the replica without adapters whose rank has become too large for its slots: they are served anew."""
    rank = station.engine.max_lora_rank
    return station.with_adapters(index for index in station.adapters if problem.adapters[index].rank <= rank)


def _check(plan: Plan, problem: Problem, lost: Sequence[str]) -> None:
    """Raise InputError unless the plan can be re-planned for the problem."""
    if not plan.gpus:
        raise InputError("a plan must have GPUs to be changed. It has none.", field="gpus", hint="use `placer solve`")
    if problem.constraint_table is not None and problem.constraint_table.together:
        raise InputError(
            "adapters must move one by one to be re-planned. `constraints` keep groups together.",
            field="constraints",
            hint="use `placer solve --current PLAN`, which says what moves, but not how",
        )
    types = {gpu_type.name for gpu_type in problem.gpu_types}
    names = [gpu.name for gpu in plan.gpus]
    for name in lost:
        if name not in names:
            raise InputError(
                f"a lost GPU must be one of {', '.join(names)}. Got {name!r}.", field="lose_gpu", value=name
            )
    owner: dict[str, PlannedGpu] = {}
    for gpu in plan.gpus:
        if gpu.gpu_type not in types:
            raise InputError(
                f"the GPU types of the plan must be in the problem, which has {', '.join(sorted(types))}. "
                f"Got {gpu.gpu_type!r} ({gpu.name}).",
                field="gpu_type",
                value=gpu.gpu_type,
                hint="add the type to `gpu_types`",
            )
        for adapter in share_names(gpu, problem):
            if adapter in owner:
                raise InputError(
                    f"an adapter must be on one GPU of the plan. {adapter!r} is on {owner[adapter].name} and "
                    f"{gpu.name}.",
                    field="gpus",
                    value=adapter,
                )
            owner[adapter] = gpu
