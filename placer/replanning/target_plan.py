"""A draft as a plan: with predictions, verdicts, the names and settings of the replicas that stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from placer.plan_builder import PlanParts, build_plan, shares_of
from placer.plan_document import Plan, PlanMoves, PlannedGpu
from placer.replanning.drafts import Draft, changes_of
from placer.replanning.running import RunningFleet, share_names
from placer.replanning.stations import Berth, FleetTwin
from placer.stopwatch import Stopwatch
from placer.wording import counted
from solvers.constraints import Constraints
from solvers.placement import GpuAssignment, Placement, require_constraints
from solvers.problem import Problem
from twin.errors import InputError
from twin.memory import slot_bytes


def named(draft: Draft, running: RunningFleet, twin: FleetTwin) -> dict[str, Berth]:
    """Return the replicas of a draft by name: those that stay keep theirs, and new ones get one that nobody had."""
    taken = {*running.stations, *running.lost}
    names: dict[str, Berth] = {}
    for berth in draft.berths:
        name = berth.home
        if name is None:
            kind = twin.problem.gpu_types[berth.station.gpu_type].name
            number = 0
            while f"{kind}-{number}" in taken:
                number += 1
            name = f"{kind}-{number}"
            taken.add(name)
        names[name] = berth
    return names


def plan_of(names: Mapping[str, Berth], draft: Draft, running: RunningFleet, parts: PlanParts, twin: FleetTwin) -> Plan:
    """Return the plan of named replicas.

    Parameters
    ----------
    names, draft
        The replicas, by name, and the draft that they are of.
    running
        What it changes.
    parts
        All but the problem, the GPUs and what is known of them.
    twin
        Who has judged.
    """
    problem = twin.problem
    served = sorted(adapter for berth in names.values() for adapter in berth.adapters)
    position = {adapter: index for index, adapter in enumerate(served)}
    gpus: dict[GpuAssignment, tuple[str, Berth]] = {}
    for name, berth in names.items():
        engine, own = berth.station.engine, tuple(position[adapter] for adapter in berth.adapters)
        chosen = engine.max_num_seqs if engine.max_num_seqs in problem.max_num_seqs_options else None
        gpus[GpuAssignment(berth.station.gpu_type, own, engine.max_loras, engine.max_lora_rank, chosen)] = (name, berth)
    verdicts = dict(zip(gpus, twin.verdicts([berth.station for _, berth in gpus.values()]), strict=True))
    broken = _broken_constraints(names, problem)
    only = problem
    if draft.unserved or broken:
        # Rules name adapters that are not served, or do not hold.
        workload = problem.workload.subset(served) if draft.unserved and served else problem.workload
        # Not all shares of an adapter are there: those that are, are adapters of their own.
        shares = None if draft.unserved else problem.shares
        only = replace(problem, workload=workload, constraints=Constraints(), shares=shares)
    plan = build_plan(replace(parts, problem=only, gpus=tuple(gpus), known=verdicts.get), Stopwatch().timings)
    owners = {own.adapters: entry for own, entry in gpus.items()}
    indices = {adapter.name: index for index, adapter in enumerate(only.adapters)}

    def with_name(gpu: PlannedGpu) -> PlannedGpu:
        name, berth = owners[tuple(sorted(indices[adapter] for adapter in share_names(gpu, only)))]
        told: dict[str, object] = {"name": name, "engine": berth.station.engine, "current": berth.home}
        if problem.shares is not None:
            told["adapters"] = tuple(problem.told_name(adapter) for adapter in berth.adapters)
            told["shares"] = shares_of(problem, berth.adapters)
        return gpu.model_copy(update=told)

    changes: dict[str, object] = {
        "gpus": tuple(with_name(gpu) for gpu in plan.gpus),
        "moves": _moves(draft, running, twin),
    }
    warnings = list(plan.warnings)
    if draft.unserved:
        first = problem.adapters[draft.unserved[0]].name
        warnings.append(f"No GPU serves {counted(len(draft.unserved), 'adapter')}, the first is {first!r}.")
    if broken:
        warnings.append(f"The plan breaks the problem's constraints: {broken}")
    if only is not problem:
        configuration = plan.configuration.model_copy(update={"constraints": problem.constraints})
        changes |= {"configuration": configuration, "warnings": tuple(warnings)}
        changes |= {"verdict": "rejected" if names else "none"}
    return plan.model_copy(update=changes)


def _broken_constraints(names: Mapping[str, Berth], problem: Problem) -> str:
    """Return which rule replicas break; empty: none."""
    stations = [berth.station for berth in names.values()]
    gpus = (
        GpuAssignment(station.gpu_type, station.adapters, station.engine.max_loras, station.engine.max_lora_rank)
        for station in stations
    )
    try:
        require_constraints(problem, Placement(tuple(gpus)))
    except InputError as error:
        return error.message
    return ""


def _moves(draft: Draft, running: RunningFleet, twin: FleetTwin) -> PlanMoves:
    """Return what a draft moves, as plans tell it."""
    changes, home, problem = changes_of(draft, running), running.home, twin.problem
    loaded = [
        problem.adapters[adapter].rank
        for berth in draft.berths
        for adapter in berth.adapters
        if adapter not in home or home[adapter] != berth.home
    ]
    return PlanMoves(
        num_gpus_before=len(running.stations),
        num_placed=len(home),
        num_moved=changes.num_moves,
        share=round(changes.num_moves / len(home), 6) if home else 0.0,
        num_new=changes.num_new + changes.num_orphans,
        loaded_mib=round(sum(slot_bytes(problem.model, rank) for rank in loaded) / 2**20, 3),
    )
