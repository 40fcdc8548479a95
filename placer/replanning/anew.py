"""A plan from scratch as a change of the running fleet: slots are kept where the twin accepts that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from placer.plan_document import Plan
from placer.replanning.drafts import Draft
from placer.replanning.repairing import wanted_engine
from placer.replanning.running import RunningFleet
from placer.replanning.stations import Berth, FleetTwin, Station
from solvers.current import CurrentGpu
from solvers.moves import match_gpus


def current_gpus(running: RunningFleet, twin: FleetTwin) -> tuple[CurrentGpu, ...]:
    """Return the running fleet as what is in place for a solver."""
    problem = twin.problem
    return tuple(
        CurrentGpu(
            gpu_type=problem.gpu_types[station.gpu_type].name,
            adapters=tuple(problem.adapters[index].name for index in station.adapters),
            name=name,
        )
        for name, station in running.stations.items()
    )


def draft_of(plan: Plan, running: RunningFleet, twin: FleetTwin, *, keeps_slots: bool) -> Draft:
    """Return the GPUs of a plan that was made with `current_gpus` in place.

    GPUs without a running replica take one that nobody else stands for, if there is one of their type. A replica keeps
    its slots if the twin accepts its new adapters with them; if not, or if it is not to keep them, it is restarted with
    the plan's.
    """
    problem = twin.problem
    types = [gpu_type.name for gpu_type in problem.gpu_types]
    indices = {adapter.name: index for index, adapter in enumerate(problem.adapters)}
    planned = [
        Berth(
            gpu.current,
            Station(types.index(gpu.gpu_type), gpu.engine, tuple(sorted(indices[name] for name in gpu.adapters))),
        )
        for gpu in plan.gpus
    ]
    housed = _reusing(planned, running)
    if not keeps_slots:
        return Draft(tuple(_with_cache(berth, running) for berth in housed))
    return _with_slots_kept(Draft(tuple(housed)), running, twin)


def aligned(draft: Draft, running: RunningFleet, twin: FleetTwin) -> Draft:
    """Return a plan whose replicas stand for running ones of their type such that the fewest adapters move.

    Where the twin does not accept a replica with the slots of that which it then stands for, that is restarted.

    Raises
    ------
    InputError
        When SciPy, which matches them, is not installed.
    """
    names = list(running.stations)
    shared = np.zeros((len(names), len(draft.berths)), dtype=np.int64)
    for row, name in enumerate(names):
        station = running.stations[name]
        for column, berth in enumerate(draft.berths):
            if berth.station.gpu_type == station.gpu_type:
                shared[row, column] = len(set(station.adapters) & set(berth.adapters))
    homes = [None if row < 0 else names[row] for row in match_gpus(shared)]
    berths = [replace(berth, home=home) for berth, home in zip(draft.berths, homes, strict=True)]
    return _with_slots_kept(Draft(tuple(_reusing(berths, running)), draft.unserved), running, twin)


def _with_slots_kept(draft: Draft, running: RunningFleet, twin: FleetTwin) -> Draft:
    """Return a plan whose replicas have the slots that they run with, where the twin accepts that."""
    kept = {index: station for index, berth in enumerate(draft.berths) if (station := _kept(berth, running, twin))}
    verdicts = dict(zip(kept, twin.verdicts(list(kept.values())), strict=True))
    berths = (
        replace(berth, station=kept[index]) if index in kept and verdicts[index].is_accepted else berth
        for index, berth in enumerate(draft.berths)
    )
    return replace(draft, berths=tuple(berths))


def _reusing(berths: Sequence[Berth], running: RunningFleet) -> list[Berth]:
    """Return the replicas with those that are new on GPUs of replicas that nobody stands for."""
    taken = {berth.home for berth in berths}
    free = [name for name in running.stations if name not in taken]
    housed = []
    for berth in berths:
        kind = berth.station.gpu_type
        name = next((name for name in free if running.stations[name].gpu_type == kind), None)
        if berth.home is None and name is not None:
            free.remove(name)
            berth = replace(berth, home=name)  # noqa: PLW2901 - one new name for it would be one too many
        housed.append(berth)
    return housed


def _with_cache(berth: Berth, running: RunningFleet) -> Berth:
    """Return the replica with the CPU cache that it runs with, where nothing else differs and that is large enough."""
    now = None if berth.home is None else running.stations[berth.home].engine
    if now is None or now.cpu_capacity < len(berth.adapters):
        return berth
    same = berth.station.engine.model_copy(update={"max_cpu_loras": now.max_cpu_loras})
    return replace(berth, station=replace(berth.station, engine=same)) if same == now else berth


def _kept(berth: Berth, running: RunningFleet, twin: FleetTwin) -> Station | None:
    """Return the replica as it would be with the slots that it runs with; ``None``: it is new, or ranks do not fit."""
    if berth.home is None:
        return None
    now = running.stations[berth.home]
    station = replace(now, engine=wanted_engine(twin.problem, now)).with_adapters(berth.adapters)
    return station if twin.fits(station) else None
