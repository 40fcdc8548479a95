"""One replica to look at closely: all adapters of a problem, or one GPU of a plan."""

from __future__ import annotations

from pathlib import Path

from placer.events import PhaseStarted, PlanObserver, announce_compilation
from placer.files import ProblemFromFile, load_plan
from placer.planned_shares import as_planned
from placer.recheck import replica_of, select_gpus
from placer.verify_progress import SimulatedTime
from placer.wording import counted
from solvers.slots import SlotTables
from twin.engine import SUPPORTED_RANKS
from twin.errors import InputError
from twin.replica import Replica
from twin.report import SimulationReport
from twin.simulate import EngineName, simulate_in_detail
from twin.stability import assess_stability
from twin.workload import Workload


def replica_for(
    problem: ProblemFromFile,
    *,
    plan: Path | None,
    gpu: str | None,
    max_loras: int | None,
    max_lora_rank: int | None,
    max_num_seqs: int | None = None,
) -> tuple[Workload, Replica]:
    """Return the adapters and the replica to simulate.

    Parameters
    ----------
    problem
        All of its adapters are on the replica, unless a plan says otherwise.
    plan, gpu
        A plan.json and the name of one of its GPUs; without a plan, `gpu` is the name of a GPU type.
    max_loras, max_lora_rank, max_num_seqs
        Settings instead of those of the plan, of those that the problem fixes, or of those that follow: the largest
        rank, and as many slots as there are adapters and memory allows. Where `max_num_seqs` is the planner's to
        choose, it is 256 or the option next to it.

    Raises
    ------
    InputError
        When a name is unknown, the settings do not go together, or the replica does not start.
    """
    if plan is not None:
        workload, replica = _planned(problem, plan, gpu)
    else:
        workload, replica = _all_on_one(problem, gpu, max_loras, max_lora_rank)
    changes = {"max_loras": max_loras, "max_lora_rank": max_lora_rank, "max_num_seqs": max_num_seqs}
    settings = replica.engine.model_dump() | {name: value for name, value in changes.items() if value is not None}
    if not problem.limits_cpu_memory:
        settings["max_cpu_loras"] = max(len(workload.adapters), settings["max_loras"])
    replica = Replica(replica.model, replica.gpu, replica.engine.model_copy(update=_checked(settings)), replica.profile)
    verdict = replica.memory()
    if not verdict.starts:
        raise InputError(
            f"the replica must start. With {replica.engine.max_loras} slots of rank {replica.engine.max_lora_rank} on "
            f"{replica.gpu.name!r} it does not: {verdict.message}",
            field="max_loras",
            value=replica.engine.max_loras,
            hint="give fewer slots with --max-loras",
        )
    return workload, replica


def simulate_replica(
    workload: Workload,
    replica: Replica,
    *,
    engine: EngineName,
    horizon_s: float,
    warmup_s: float,
    interval_s: float,
    seed: int,
    num_seeds: int,
    starvation_tolerance: float,
    observer: PlanObserver,
) -> SimulationReport:
    """Simulate a replica, to the end of its trace at most; see `twin.simulate.simulate`.

    With several seeds, from `seed` on, the report of the first one also says whether the others agree with it. The
    observer is told what takes long.
    """
    horizon_s = min(horizon_s, workload.longest_horizon_s)
    if engine == "fast":
        announce_compilation(observer, (replica.engine,))
    observer(PhaseStarted("verify", f"{horizon_s:g} s of {counted(len(workload.adapters), 'adapter')}"))
    report = simulate_in_detail(
        workload,
        replica,
        engine=engine,
        horizon_s=horizon_s,
        warmup_s=warmup_s,
        seed=seed,
        sample_interval_s=interval_s,
        starvation_tolerance=starvation_tolerance,
        progress=SimulatedTime([horizon_s], observer).of(0),
    ).report
    if num_seeds == 1:
        return report
    observer(PhaseStarted("verify", f"the same with {num_seeds} seeds and after a backlog"))
    stability = assess_stability(
        workload,
        replica,
        engine=engine,
        horizon_s=horizon_s,
        warmup_s=warmup_s,
        seeds=range(seed, seed + num_seeds),
        starvation_tolerance=starvation_tolerance,
    )
    return report.model_copy(update={"stability": stability})


def _planned(problem: ProblemFromFile, plan: Path, gpu: str | None) -> tuple[Workload, Replica]:
    content = load_plan(plan)
    gpus = select_gpus(content, () if gpu is None else (gpu,))
    if len(gpus) > 1:
        names = ", ".join(entry.name for entry in gpus)
        raise InputError(f"one GPU of the plan must be named with --gpu: {names}. Got none.", field="gpu")
    return replica_of(as_planned(problem, content), gpus[0])


def _all_on_one(
    problem: ProblemFromFile, gpu: str | None, max_loras: int | None, max_lora_rank: int | None
) -> tuple[Workload, Replica]:
    names = [gpu_type.name for gpu_type in problem.gpu_types]
    if gpu is not None and gpu not in names:
        raise InputError(f"`--gpu` must be one of {', '.join(names)}. Got {gpu!r}.", field="gpu", value=gpu)
    gpu_type = 0 if gpu is None else names.index(gpu)
    tables = SlotTables(problem)
    rank = max_lora_rank or tables.rank_of_slots(int(problem.ranks.max()))
    count = len(problem.adapters)
    slots = max_loras or max(1, min(count, tables.limit(gpu_type, rank)))
    return problem.workload, problem.replica(gpu_type, slots, rank, count)


def _checked(settings: dict[str, object]) -> dict[str, object]:
    rank = settings["max_lora_rank"]
    if rank not in SUPPORTED_RANKS:
        ranks = ", ".join(str(value) for value in SUPPORTED_RANKS)
        raise InputError(f"`max_lora_rank` must be one of {ranks}. Got {rank}.", field="max_lora_rank", value=rank)
    return settings
