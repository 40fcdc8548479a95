"""Solvers x instances x seeds with equal budgets: run what is missing, keep each run, and summarise."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from placer.comparison_document import BoundRecord, Comparison, InstanceRecord, RunRecord, run_name
from placer.comparison_run import Run, RunSettings, do_run, problem_and_surrogate, twin_settings
from placer.comparison_summary import best_bound, best_cost_bound, summarise
from placer.instances.catalog import InstanceEntry
from placer.instances.instance import Instance, Judges
from placer.planning import check_arguments
from placer.record_folder import RecordFolder, RecordKind
from placer.verify import TwinSettings
from predictors.aggregate_oracle import AggregateOracle
from predictors.cluster import each_on_cluster
from solvers.bounds import work_bound
from solvers.named_object import names_object
from solvers.registry import SolverEntry, solver_entries, solver_entry
from twin.errors import InputError
from twin.parallel import each_in_parallel

DEFAULT_REFERENCE = "greedy"
RUN_KIND = RecordKind(RunRecord, run_name, whole="comparison", part="run")


@dataclass(frozen=True)
class CompareProgress:
    """How far a comparison is; `latest` is the run that just ended, ``None`` at the start."""

    finished: int
    total: int
    latest: RunRecord | None


Observer = Callable[[CompareProgress], None]


def compare(
    instances: Sequence[Instance | InstanceEntry],
    *,
    solvers: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    settings: RunSettings | None = None,
    reference: str = DEFAULT_REFERENCE,
    previous: tuple[tuple[int, ...], ...] | None = None,
    output: str | Path | None = None,
    workers: int = 1,
    cluster: str | None = None,
    observer: Observer | None = None,
) -> Comparison:
    """Run every solver on every instance with every seed, and say how they compare.

    Parameters
    ----------
    instances
        At least one; entries are made first. Those that cannot be made here are left out, with a warning.
    solvers
        Names in the registry; none: all of them. Those whose libraries are missing are records with the reason.
    seeds
        Of the solvers and of the simulated traffic.
    settings
        Budget, surrogate and twin, the same for all.
    reference
        Solver with which the others are compared.
    previous
        A placement from before, for each GPU the indices of its adapters: moves are counted against it.
    output
        Folder that keeps the finished runs and is continued where it exists; ``None``: nothing is kept.
    workers
        Runs at a time. Runs that share cores take longer: for times to be compared, leave it at 1.
    cluster
        Address of a Dask scheduler, such as ``tcp://host:8786``, on whose workers the runs are done instead.
    observer
        Told about progress, after each run was kept.

    Raises
    ------
    InputError, SolverError, SurrogateError
        When there is nothing to compare, a solver is unknown, the surrogate cannot be loaded, or the folder holds a
        comparison of another configuration.
    ClusterError
        When the cluster cannot be used.
    KeyboardInterrupt
        On Ctrl-C; what was finished is kept.
    """
    settings = settings or RunSettings()
    _check(seeds, workers, settings)
    entries = _entries(solvers)
    made, warnings = make_instances(instances, settings, seeds=seeds)
    # What cannot be loaded is told before anything runs.
    problem_and_surrogate(made[0].problem, settings)
    configuration = _configuration(made, entries, seeds, settings, reference=reference, previous=previous)
    folder = None if output is None else RecordFolder(Path(output), configuration, RUN_KIND)
    records = {} if folder is None else {record.key: record for record in folder.finished()}
    unavailable = _unavailable(made, entries, seeds)
    in_parallel = replace(settings, twin_workers=1) if workers > 1 or cluster is not None else settings
    wanted = [
        Run(instance, entry.name, seed, in_parallel, previous)
        for instance in made
        for seed in seeds
        for entry in entries
    ]
    missing = [run for run in wanted if run.key not in records and run.key not in unavailable]
    done = len(wanted) - len(missing)
    tell = observer or _ignore
    tell(CompareProgress(done, len(wanted), None))
    if missing:
        with closing(_results(missing, workers=workers, cluster=cluster)) as results:
            for position, record in results:
                records[missing[position].key] = record
                if folder is not None:
                    folder.keep(record)
                done += 1
                tell(CompareProgress(done, len(wanted), record))
    runs = tuple((records | unavailable)[run.key] for run in wanted)
    return _comparison(configuration, made, entries, runs, settings=settings, reference=reference, warnings=warnings)


def make_instances(
    instances: Sequence[Instance | InstanceEntry], settings: RunSettings, *, seeds: Sequence[int] = (0,)
) -> tuple[list[Instance], list[str]]:
    """Return the instances, made where they are entries, and sentences about those that cannot be made here.

    Parameters
    ----------
    instances, settings, seeds
        As for `compare`: whoever judges the runs says when a planted GPU is full.

    Raises
    ------
    InputError
        When none is left, or two have one name.
    """
    judges = Judges(
        lambda problem: problem_and_surrogate(problem, settings),
        tuple(twin_settings(settings, seed) for seed in seeds) if settings.is_verified else (),
    )
    made: list[Instance] = []
    warnings: list[str] = []
    for item in instances:
        if isinstance(item, Instance):
            made.append(item)
        elif reason := item.unavailable():
            warnings.append(f"{item.name} is left out: {reason}")
        else:
            made.append(item.make(judges))
    for instance in made:
        if instance.problem.objective == "lowest_latency":
            raise InputError(
                f"instances must be about numbers or costs of GPUs. {instance.name!r} asks for the lowest latency.",
                field="instances",
                value=instance.name,
                hint="give it the objective `fewest_gpus` or `least_cost`",
            )
    if not made:
        raise InputError(
            f"there must be at least one instance. {' '.join(warnings) or 'None was chosen.'}",
            field="instances",
            hint="choose some with --family, --instance or --instances; `placer compare --list-instances` lists them",
        )
    names = [instance.name for instance in made]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"names of instances must be unique. Two are called {name!r}.", field="instances", value=name
            )
    return made, warnings


def _check(seeds: Sequence[int], workers: int, settings: RunSettings) -> None:
    if not seeds or min(seeds) < 0 or len(set(seeds)) != len(seeds):
        raise InputError(
            f"seeds must be different and at least 0. Got {list(seeds)}.", field="seeds", value=list(seeds)
        )
    if workers < 1:
        raise InputError(f"`workers` must be at least 1. Got {workers}.", field="workers", value=workers)
    check_arguments(settings.margin, settings.risk, settings.repair_rounds)
    TwinSettings(horizon_s=settings.horizon_s, warmup_s=settings.warmup_s)


def _entries(names: Sequence[str]) -> list[SolverEntry]:
    """Return the entries of the solvers asked for, once each; SolverError for one that does not exist."""
    if not names:
        return list(solver_entries())
    return [solver_entry(name) for name in dict.fromkeys(names)]


def _unavailable(
    instances: Sequence[Instance], entries: Sequence[SolverEntry], seeds: Sequence[int]
) -> dict[tuple[str, str, int], RunRecord]:
    """Return records of what cannot run here. They are not kept: what is missing may be installed."""
    records = {}
    for entry in entries:
        availability = entry.availability()
        if availability.is_available:
            continue
        extra = f" (pip install 'lora-placer[{availability.extra}]')" if availability.extra else ""
        for instance in instances:
            for seed in seeds:
                records[instance.name, entry.name, seed] = RunRecord(
                    instance=instance.name,
                    solver=entry.name,
                    seed=seed,
                    status="unavailable",
                    reason=f"{availability.reason}{extra}",
                )
    return records


def _results(runs: Sequence[Run], *, workers: int, cluster: str | None) -> Generator[tuple[int, RunRecord], None, None]:
    if cluster is not None:
        return each_on_cluster(do_run, runs, address=cluster)
    return each_in_parallel(do_run, runs, workers=workers, backend="loky")


def _configuration(
    instances: Sequence[Instance],
    entries: Sequence[SolverEntry],
    seeds: Sequence[int],
    settings: RunSettings,
    *,
    reference: str,
    previous: tuple[tuple[int, ...], ...] | None,
) -> dict[str, Any]:
    """Return everything that decides the runs, as plain values."""
    return {
        "schema_version": 1,
        "instances": {instance.name: instance.fingerprint() for instance in instances},
        "solvers": [entry.name for entry in entries],
        "seeds": list(seeds),
        "reference": reference,
        "budget_s": settings.budget.seconds,
        "max_evaluations": settings.budget.max_evaluations,
        "surrogate": _surrogate_identity(settings.surrogate),
        "margin": settings.margin,
        "risk": settings.risk,
        "is_verified": settings.is_verified,
        "horizon_s": settings.horizon_s,
        "warmup_s": settings.warmup_s,
        "repair_rounds": settings.repair_rounds,
        "is_regaining": settings.is_regaining,
        "previous": None if previous is None else hashlib.sha256(repr(previous).encode()).hexdigest()[:16],
    }


def _surrogate_identity(choice: str) -> str:
    """Return a choice of surrogate, with the hash of the file that it names."""
    file = Path(choice.rpartition(":")[0] if names_object(choice) else choice)
    if not file.is_file():
        return choice
    return f"{choice} (sha256 {hashlib.sha256(file.read_bytes()).hexdigest()[:16]})"


def _comparison(
    configuration: dict[str, Any],
    instances: Sequence[Instance],
    entries: Sequence[SolverEntry],
    runs: tuple[RunRecord, ...],
    *,
    settings: RunSettings,
    reference: str,
    warnings: Sequence[str],
) -> Comparison:
    names = [entry.name for entry in entries]
    compared_with = reference if reference in names else None
    described = tuple(_described(instance, runs, settings) for instance in instances)
    warnings = [*warnings, *_impossible(described, runs)]
    return Comparison(
        configuration=configuration,
        reference=compared_with,
        instances=described,
        solvers=summarise(
            names,
            described,
            runs,
            reference=compared_with,
            is_cost=all(instance.problem.objective == "least_cost" for instance in instances),
        ),
        runs=runs,
        warnings=tuple(warnings),
    )


def _described(instance: Instance, runs: Sequence[RunRecord], settings: RunSettings) -> InstanceRecord:
    """Return what is known about an instance after all runs."""
    problem, surrogate = problem_and_surrogate(instance.problem, settings)
    candidates: list[BoundRecord | None] = []
    if instance.lower_bound:
        candidates.append(BoundRecord(value=instance.lower_bound, proof="given", model="instance"))
    proven = [run.bound for run in runs if run.instance == instance.name]
    if isinstance(surrogate, AggregateOracle):
        # What holds for the twin says nothing about another model.
        candidates += [bound for bound in proven if bound is not None and bound.model == "surrogate"]
    else:
        work = work_bound(problem)
        candidates += [BoundRecord.of(work), *proven]
    cheapest = min(gpu_type.cost_per_hour for gpu_type in problem.gpu_types)
    return InstanceRecord(
        name=instance.name,
        family=instance.family,
        what=instance.what,
        num_adapters=len(problem.adapters),
        fingerprint=instance.fingerprint(),
        bound=best_bound(candidates),
        planted_gpus=instance.planted_gpus,
        cheapest_gpu_per_hour=cheapest,
        least_cost_per_hour=best_cost_bound(candidates, cheapest),
    )


def _impossible(instances: Sequence[InstanceRecord], runs: Sequence[RunRecord]) -> list[str]:
    """Return sentences about instances with a placement on fewer GPUs than a bound allows."""
    sentences = []
    for instance in instances:
        counts = [run.final_gpus for run in runs if run.instance == instance.name and run.final_gpus is not None]
        if instance.bound is not None and counts and min(counts) < instance.bound.value:
            bound = instance.bound
            sentences.append(
                f"{instance.name}: a placement has {min(counts)} GPUs, fewer than the lower bound of {bound.value} "
                f"({bound.proof}, {bound.model}): the bound does not hold for what judged the placement"
            )
    return sentences


def _ignore(_: CompareProgress) -> None:
    """Do nothing with progress that nobody asked for."""
