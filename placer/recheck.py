"""Simulate the GPUs of a plan that was read from a file, with the settings that it gives them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from placer.events import GpuVerified, PhaseStarted, PlanObserver
from placer.files import ProblemFromFile, load_problem
from placer.plan_document import Plan, PlannedGpu, Verification
from placer.planned_shares import as_planned, broken_replication, planned_indices
from placer.recording import recorder_for
from placer.scenario_verdicts import joint_verdict, shown_scenario, traffics_of
from placer.stability import confirm_verdicts, instabilities
from placer.verify import TwinSettings, check_replicas
from placer.verify_agreement import EngineAgreement
from placer.verify_notes import ratio_notes, window_notes
from solvers.placement import GpuAssignment, Placement, require_constraints
from twin.errors import InputError
from twin.replica import Replica
from twin.simulate import ENGINES, EngineName
from twin.workload import Workload


class CheckedGpu(BaseModel):
    """A GPU of the plan, and what the twin says about it now.

    Attributes
    ----------
    agreement
        Whether the fast engine simulates the same; ``None``: it was not asked, or the GPU does not start.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    verification: Verification
    agreement: EngineAgreement | None = None


class Recheck(BaseModel):
    """What the twin says about a plan now.

    Attributes
    ----------
    verdict
        Rejected where one of the GPUs is.
    warnings
        What has changed since the plan was made, and what is metastable.
    notes
        The windows that were simulated and, where they are others than was asked for, why; and ratios that need words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    verdict: Literal["accepted", "rejected"]
    gpus: tuple[CheckedGpu, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()


def recheck_plan(
    plan: Plan,
    *,
    plan_path: Path,
    problem_path: Path | None,
    names: tuple[str, ...],
    engine: str,
    horizon_s: float | None,
    seed: int | None,
    workers: int | None,
    compares: bool,
    observer: PlanObserver,
    record_rejections: str | Path | None = None,
) -> Recheck:
    """Simulate GPUs of a plan that was read from a file.

    Parameters
    ----------
    plan, plan_path
        What was planned, and where it was read from: its problem is looked for from the current folder, then beside it.
    problem_path
        The problem instead.
    names, engine, horizon_s, seed, workers, compares, observer, record_rejections
        See `recheck_with`.

    Raises
    ------
    InputError
        When the problem is not found; and as `recheck_with`, also for other errors.
    """
    _require_time(horizon_s)
    problem, warnings = load_problem_of(plan, plan_path=plan_path, problem_path=problem_path)
    return recheck_with(
        plan,
        problem,
        warnings=warnings,
        names=names,
        engine=engine,
        horizon_s=horizon_s,
        seed=seed,
        workers=workers,
        compares=compares,
        observer=observer,
        record_rejections=record_rejections,
    )


def recheck_with(
    plan: Plan,
    problem: ProblemFromFile,
    *,
    warnings: Sequence[str] = (),
    names: tuple[str, ...],
    engine: str,
    horizon_s: float | None,
    seed: int | None,
    workers: int | None,
    compares: bool,
    observer: PlanObserver,
    record_rejections: str | Path | None = None,
) -> Recheck:
    """Simulate GPUs of a plan.

    Parameters
    ----------
    plan, problem
        What was planned, and for what; divided as the plan divides it (`placer.planned_shares.as_planned`).
    warnings
        What is known already.
    names
        GPUs to simulate; empty: all.
    engine
        Of the twin.
    horizon_s, seed
        ``None``: those of the plan. Of a horizon (> 0), a sixth at most is warm-up; it is longer for a GPU on which
        few requests are expected (`placer.verify.effective_horizon_s`).
    workers, compares, observer
        See `placer.verify.TwinSettings`.
    record_rejections
        See `placer.plan`.

    Raises
    ------
    InputError
        When the horizon is not above 0, the problem does not have the plan's adapters, a GPU has no such name, or the
        folder of records cannot be written.
    VllmError
        When the engine is vLLM, and it is missing or fails.
    """
    _require_time(horizon_s)
    gpus = select_gpus(plan, names)
    warnings = [*warnings, *_incompleteness(plan, problem), *_broken_constraints(plan, problem)]
    configuration = plan.configuration
    settings = TwinSettings(
        engine=require_engine(engine),
        horizon_s=configuration.horizon_s if horizon_s is None else horizon_s,
        warmup_s=configuration.warmup_s if horizon_s is None else min(configuration.warmup_s, horizon_s / 6.0),
        seed=plan.seed if seed is None else seed,
        workers=workers,
        compares=compares,
    )
    of_gpus = [_under_scenarios(problem, gpu) for gpu in gpus]
    num_scenarios = len(of_gpus[0])
    replicas = [replica for own in of_gpus for replica in own]
    limits = [problem.limits_of(planned_indices(problem, gpu)) for gpu in gpus]
    recorder = recorder_for(record_rejections, problem.workload, is_verified=True)
    observer(PhaseStarted("verify", f"GPUs of the plan, {len(gpus)}"))
    checked = {}
    limits_of_all = [own for own in limits for _ in range(num_scenarios)]
    for index, outcome in check_replicas(replicas, limits_of_all, settings, observer=observer):
        checked[index] = outcome
        if recorder is not None:
            recorder.record(*replicas[index], outcome.verification)
        observer(GpuVerified(outcome.verification.is_accepted, len(checked), len(replicas), outcome.reasons))
    verdicts: dict[int, Verification] = {}
    shown = []
    for index in range(len(gpus)):
        own = range(index * num_scenarios, (index + 1) * num_scenarios)
        of_gpu = [checked[position].verification for position in own]
        verdicts[index] = joint_verdict(problem, of_gpu)
        shown.append(own[shown_scenario(problem, of_gpu)])
    confirm_verdicts(
        [replicas[position] for position in shown],
        dict(verdicts),
        limits,
        workers=workers,
        observer=observer,
        keep=verdicts.__setitem__,
        outcomes={index: checked[position].outcome for index, position in enumerate(shown)},
    )
    judged = [(gpu.name, verdicts[index]) for index, gpu in enumerate(gpus)]
    warnings += instabilities(judged, margin=configuration.margin)
    warnings += recorder.warnings() if recorder is not None else ()
    entries = tuple(
        CheckedGpu(name=gpu.name, verification=verdicts[index], agreement=checked[shown[index]].agreement)
        for index, gpu in enumerate(gpus)
    )
    is_accepted = all(entry.verification.is_accepted for entry in entries)
    notes = window_notes(judged, asked_s=settings.horizon_s)
    notes += ratio_notes(judged, starvation_tolerance=problem.limits.starvation_tolerance)
    return Recheck(
        verdict="accepted" if is_accepted else "rejected", gpus=entries, warnings=tuple(warnings), notes=tuple(notes)
    )


def load_problem_of(plan: Plan, *, plan_path: Path, problem_path: Path | None) -> tuple[ProblemFromFile, list[str]]:
    """Return the problem of a plan, divided as the plan does, and a warning if its file is not that of the plan."""
    recorded = next((entry for entry in plan.inputs if entry.role == "problem"), None)
    path = problem_path or _find(plan_path, None if recorded is None else recorded.name)
    problem = as_planned(load_problem(path), plan)
    current = problem.inputs[0].sha256
    if recorded is not None and recorded.sha256 != current:
        return problem, [f"{path} is not the file that the plan was made from, or has changed since."]
    return problem, []


def select_gpus(plan: Plan, names: tuple[str, ...]) -> list[PlannedGpu]:
    """Return the GPUs of a plan with these names, or all of them."""
    by_name = {gpu.name: gpu for gpu in plan.gpus}
    if not by_name:
        raise InputError("a plan must have GPUs to be verified. It has none.", field="gpus")
    for name in names:
        if name not in by_name:
            raise InputError(f"`--gpu` must be one of {', '.join(by_name)}. Got {name!r}.", field="gpu", value=name)
    return [by_name[name] for name in names] if names else list(plan.gpus)


def replica_of(problem: ProblemFromFile, gpu: PlannedGpu) -> tuple[Workload, Replica]:
    """Return the adapters and the replica of a planned GPU."""
    missing = [name for name in gpu.adapters if name not in problem.told_positions]
    if missing:
        raise InputError(
            f"the adapters of a plan must be in its problem. {len(missing)} of {gpu.name} are not, the first is "
            f"{missing[0]!r}.",
            field="gpus",
            value=missing[0],
            hint="give the problem that the plan was made from with --problem",
        )
    types = [gpu_type.name for gpu_type in problem.gpu_types]
    if gpu.gpu_type not in types:
        raise InputError(
            f"the GPU types of a plan must be in its problem, which has {', '.join(types)}. Got {gpu.gpu_type!r}.",
            field="gpu_type",
            value=gpu.gpu_type,
            hint="give the problem that the plan was made from with --problem",
        )
    position = types.index(gpu.gpu_type)
    replica = Replica(problem.model, problem.gpu_types[position], gpu.engine, problem.profiles[position])
    return problem.traffic_of(planned_indices(problem, gpu)), replica


def _under_scenarios(problem: ProblemFromFile, gpu: PlannedGpu) -> list[tuple[Workload, Replica]]:
    """Return the replica of a planned GPU with its traffic under each scenario, or with the only traffic there is."""
    _, replica = replica_of(problem, gpu)
    return [(traffic, replica) for traffic in traffics_of(problem, planned_indices(problem, gpu))]


def require_engine(name: str) -> EngineName:
    """Return the engine of that name (InputError when there is none)."""
    if name == "fast":
        return "fast"
    if name == "simpy":
        return "simpy"
    if name == "vllm":
        return "vllm"
    raise InputError(f"`engine` must be one of {', '.join(ENGINES)}. Got {name!r}.", field="engine", value=name)


def _require_time(horizon_s: float | None) -> None:
    # Not a number is not above 0, either.
    if horizon_s is None or horizon_s > 0.0:
        return
    raise InputError(
        f"`--horizon` must be more than 0 s. Got {horizon_s:g}.",
        field="horizon",
        value=horizon_s,
        hint="for example --horizon 600, or leave it out for the plan's",
    )


def _incompleteness(plan: Plan, problem: ProblemFromFile) -> list[str]:
    """Say which adapters of the problem the plan does not place, or places more than once."""
    counts = Counter(name for gpu in plan.gpus for name in gpu.adapters)
    missing = [adapter.name for adapter in problem.told.adapters if adapter.name not in counts]
    shared = {entry.adapter for gpu in plan.gpus for entry in gpu.shares}
    repeated = [name for name, count in counts.items() if count > 1 and name not in shared]
    return [
        f"adapters of the problem are {text}: {len(names)}, the first is {names[0]!r}."
        for names, text in ((missing, "not in the plan"), (repeated, "on several GPUs, each with all of their traffic"))
        if names
    ]


def _broken_constraints(plan: Plan, problem: ProblemFromFile) -> list[str]:
    """Say which constraint of the problem the plan breaks; adapters and types that it does not have are errors."""
    if problem.constraint_table is None:
        return broken_replication(plan, problem)
    types = [gpu_type.name for gpu_type in problem.gpu_types]
    gpus = []
    for gpu in plan.gpus:
        replica_of(problem, gpu)
        adapters = tuple(sorted(planned_indices(problem, gpu)))
        gpus.append(GpuAssignment(types.index(gpu.gpu_type), adapters, gpu.engine.max_loras, gpu.engine.max_lora_rank))
    try:
        require_constraints(problem, Placement(tuple(gpus)))
    except InputError as error:
        return [f"the plan breaks the problem's constraints: {error.message}"]
    return broken_replication(plan, problem)


def _find(plan_path: Path, name: str | None) -> Path:
    if name is None:
        raise InputError(
            "a plan must name its problem file. This one was made without a file.",
            file=str(plan_path),
            hint="give the problem with --problem",
        )
    for candidate in (Path(name), plan_path.parent / name, plan_path.parent / Path(name).name):
        if candidate.is_file():
            return candidate
    raise InputError(
        f"the problem of a plan must be found. {name} is neither in the current folder nor beside {plan_path}.",
        file=str(plan_path),
        field="inputs",
        value=name,
        hint="give the problem with --problem",
    )
