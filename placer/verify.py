"""Ask the twin about GPUs: simulate each with its adapters and settings, in parallel, and judge what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Literal

from placer.events import GpuVerified, PlanObserver, announce_compilation, ignore
from placer.judge import judge_report
from placer.plan_document import Verification
from placer.recording import GpuRecorder
from placer.scenario_verdicts import joint_verdict, shown_scenario, shown_traffic, traffics_of
from placer.stability import confirm_verdicts
from placer.verify_agreement import EngineAgreement, compare_with_fast
from placer.verify_progress import SimulatedTime
from solvers.placement import GpuAssignment, replica_of_gpu
from solvers.problem import Problem
from solvers.problem_file import Limits
from twin.drawn_traffic import DrawnTraffic
from twin.errors import InputError, TwinError, VllmError
from twin.judging_window import DEFAULT_HORIZON_S, DEFAULT_WARMUP_S, LONGEST_HORIZON_S, long_enough_s
from twin.parallel import each_in_parallel
from twin.replica import Replica
from twin.simulate import EngineName, Progress, simulate_in_detail
from twin.stability import seed_outcome
from twin.stability_report import SeedOutcome
from twin.workload import Workload


@dataclass(frozen=True)
class TwinSettings:
    """How GPUs are simulated.

    Attributes
    ----------
    engine
        ``fast`` (threads: it releases the interpreter lock), ``simpy`` (processes), or ``vllm`` (threads, each with a
        process of vLLM's own).
    horizon_s, warmup_s
        Simulated seconds, and those at the start that are not measured. A GPU on which few requests
        would arrive is simulated for longer (`twin.judging_window`).
    seed
        Of the traffic.
    compares
        Whether GPUs are simulated with the fast engine, too, and all that both engines say is compared.
    workers
        Threads or processes; ``None``: one per core that this process may use. The answers do not depend on it.
    """

    engine: EngineName = "fast"
    horizon_s: float = DEFAULT_HORIZON_S
    warmup_s: float = DEFAULT_WARMUP_S
    seed: int = 0
    workers: int | None = None
    compares: bool = False

    def __post_init__(self) -> None:
        """Refuse a window that measures nothing."""
        if not 0.0 <= self.warmup_s < self.horizon_s <= LONGEST_HORIZON_S:
            raise InputError(
                f"the horizon must be longer than the warm-up and at most {LONGEST_HORIZON_S:g} s. "
                f"Got {self.horizon_s:g} s with a warm-up of {self.warmup_s:g} s.",
                field="horizon_s",
                value=self.horizon_s,
                hint="for example --horizon 1800",
            )


class TwinVerifier:
    """The twin as the judge of GPUs of one problem; remembers every verdict.

    Parameters
    ----------
    problem, settings
        Whose adapters, and how they are simulated.
    observer
        Told about every GPU that was simulated. Ctrl-C raised while it runs stops the batch; verdicts so far are kept.
    recorder
        Given every GPU that was simulated.

    Attributes
    ----------
    num_calls
        GPUs simulated so far.
    traffic
        Draws their requests.
    """

    def __init__(
        self,
        problem: Problem,
        settings: TwinSettings,
        *,
        observer: PlanObserver = ignore,
        recorder: GpuRecorder | None = None,
    ) -> None:
        self.problem = problem
        self.settings = settings
        self.num_calls = 0
        self._observer = observer
        self._recorder = recorder
        self._verdicts: dict[GpuAssignment, Verification] = {}
        self._outcomes: dict[GpuAssignment, SeedOutcome | None] = {}
        self.traffic = DrawnTraffic(settings.seed)

    def known(self, assignment: GpuAssignment) -> Verification | None:
        """Return the verdict about a GPU if it was simulated already."""
        return self._verdicts.get(assignment)

    def accepts(self, assignment: GpuAssignment) -> bool:
        """Return whether the GPU was simulated already and accepted."""
        verdict = self.known(assignment)
        return verdict is not None and verdict.is_accepted

    def verify(self, assignments: Sequence[GpuAssignment]) -> tuple[Verification, ...]:
        """Simulate those of `assignments` that were not simulated yet, in parallel; return the verdict of each."""
        missing = [assignment for assignment in dict.fromkeys(assignments) if assignment not in self._verdicts]
        if missing:
            self._simulate(missing)
        return tuple(self._verdicts[assignment] for assignment in assignments)

    def confirm(self, assignments: Sequence[GpuAssignment]) -> tuple[Verification, ...]:
        """Verify GPUs, and look twice at those near a limit; return the verdicts, with what that says."""
        gpus = list(dict.fromkeys(assignments))
        verdicts = dict(enumerate(self.verify(gpus)))

        def keep(index: int, verdict: Verification) -> None:
            self._verdicts[gpus[index]] = verdict

        confirm_verdicts(
            [self._shown(gpu) for gpu in gpus],
            verdicts,
            self._limits(gpus),
            workers=self.settings.workers,
            observer=self._observer,
            keep=keep,
            outcomes={index: self._outcomes.get(gpu) for index, gpu in enumerate(gpus)},
            traffic=self.traffic,
        )
        return tuple(self._verdicts[assignment] for assignment in assignments)

    def _shown(self, gpu: GpuAssignment) -> tuple[Workload, Replica]:
        """Return a GPU that was simulated, with the traffic that its verdict is about."""
        return shown_traffic(self.problem, gpu.adapters, self._verdicts[gpu]), self._replica(gpu)

    def _replica(self, gpu: GpuAssignment) -> Replica:
        return replica_of_gpu(self.problem, gpu)

    def _limits(self, assignments: Sequence[GpuAssignment]) -> list[Limits]:
        return [self.problem.limits_of(gpu.adapters) for gpu in assignments]

    def _simulate(self, missing: list[GpuAssignment]) -> None:
        traffics = [traffics_of(self.problem, gpu.adapters) for gpu in missing]
        owner = [gpu for gpu, workloads in zip(missing, traffics, strict=True) for _ in workloads]
        workloads = [workload for own in traffics for workload in own]
        replicas = [(workload, self._replica(gpu)) for workload, gpu in zip(workloads, owner, strict=True)]
        num_scenarios = len(workloads) // len(missing)
        known: dict[int, CheckedReplica] = {}

        def keep(index: int, checked: CheckedReplica) -> None:
            known[index] = checked
            self.num_calls += 1
            if self._recorder is not None:
                self._recorder.record(*replicas[index], checked.verification)
            first = index - index % num_scenarios
            of_gpu = [known.get(first + offset) for offset in range(num_scenarios)]
            complete = [entry for entry in of_gpu if entry is not None]
            if len(complete) == num_scenarios:
                verdicts = [entry.verification for entry in complete]
                self._verdicts[owner[index]] = joint_verdict(self.problem, verdicts)
                self._outcomes[owner[index]] = complete[shown_scenario(self.problem, verdicts)].outcome

        simulate_replicas(
            replicas,
            self._limits(owner),
            self.settings,
            observer=self._observer,
            keep=keep,
            traffic=self.traffic,
        )


def simulate_replicas(
    replicas: Sequence[tuple[Workload, Replica]],
    limits: Sequence[Limits],
    settings: TwinSettings,
    *,
    observer: PlanObserver = ignore,
    keep: Callable[[int, CheckedReplica], None] | None = None,
    traffic: DrawnTraffic | None = None,
) -> dict[int, Verification]:
    """Simulate replicas in parallel and judge them.

    Parameters
    ----------
    replicas
        What is asked of each, and what it is.
    limits, settings
        What each must keep, and how they are simulated.
    observer
        Told about each one.
    keep
        Called with position and outcome before the observer is: what was simulated survives Ctrl-C.
    traffic
        Draws the requests, under the seed of the settings; ``None``: they are drawn for each replica.

    Returns
    -------
    The verdict of each position.

    Raises
    ------
    VllmError
        When the engine is vLLM, and it is missing or fails.
    """
    verdicts: dict[int, Verification] = {}
    for index, checked in check_replicas(replicas, limits, settings, observer=observer, traffic=traffic):
        verdicts[index] = checked.verification
        if keep is not None:
            keep(index, checked)
        observer(GpuVerified(checked.verification.is_accepted, len(verdicts), len(replicas), checked.reasons))
    return verdicts


@dataclass(frozen=True)
class CheckedReplica:
    """The verdict about a replica, and whether the fast engine simulates the same (``None``: it was not asked).

    `outcome` is what is compared with other seeds, if the verdict calls for that.
    """

    verification: Verification
    agreement: EngineAgreement | None
    outcome: SeedOutcome | None = None

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is rejected."""
        return self.verification.reasons


def check_replicas(
    replicas: Sequence[tuple[Workload, Replica]],
    limits: Sequence[Limits],
    settings: TwinSettings,
    *,
    observer: PlanObserver,
    traffic: DrawnTraffic | None = None,
) -> Iterator[tuple[int, CheckedReplica]]:
    """Simulate replicas in parallel; yield position and outcome of each when it is there.

    Parameters
    ----------
    replicas, limits, settings, traffic
        See `simulate_replicas`; also for the errors raised. Processes draw for themselves.
    observer
        Told how far a slow engine is.
    """
    if settings.engine == "fast" or settings.compares:
        announce_compilation(observer, (replica.engine for _, replica in replicas))
    backend: Literal["threading", "loky"] = "loky" if settings.engine == "simpy" else "threading"
    shared = traffic if backend == "threading" else None
    questions = [
        _Question(*replica, own, settings, traffic=shared) for replica, own in zip(replicas, limits, strict=True)
    ]
    if settings.engine == "vllm":
        horizons_s = [effective_horizon_s(workload, settings) for workload, _ in replicas]
        time = SimulatedTime(horizons_s, observer)
        questions = [replace(question, progress=time.of(index)) for index, question in enumerate(questions)]
    with closing(each_in_parallel(_check, questions, workers=settings.workers, backend=backend)) as results:
        yield from results


def verify_gpus(
    problem: Problem,
    assignments: Sequence[GpuAssignment],
    *,
    engine: EngineName = "fast",
    horizon_s: float = DEFAULT_HORIZON_S,
    warmup_s: float = DEFAULT_WARMUP_S,
    seed: int = 0,
    workers: int | None = None,
    observer: PlanObserver = ignore,
) -> tuple[Verification, ...]:
    """Simulate GPUs in parallel, those near a limit with further seeds; return the verdict of each.

    Parameters
    ----------
    problem, assignments
        The adapters, and which of them are on which GPU under which settings.
    engine, horizon_s, warmup_s, seed, workers
        See `TwinSettings`.
    observer
        Told about progress.

    Raises
    ------
    InputError
        When the window is empty, or an assignment does not fit the problem.
    """
    settings = TwinSettings(engine=engine, horizon_s=horizon_s, warmup_s=warmup_s, seed=seed, workers=workers)
    return TwinVerifier(problem, settings, observer=observer).confirm(assignments)


def verify_replica(workload: Workload, replica: Replica, limits: Limits, settings: TwinSettings) -> Verification:
    """Simulate one replica and judge it; a replica that does not start is rejected with vLLM's words."""
    return _check(_Question(workload, replica, limits, settings)).verification


@dataclass(frozen=True)
class _Question:
    """A replica to simulate; `progress` and `traffic` only where it is simulated in this process."""

    workload: Workload
    replica: Replica
    limits: Limits
    settings: TwinSettings
    progress: Progress | None = None
    traffic: DrawnTraffic | None = None


def _check(question: _Question) -> CheckedReplica:
    """Simulate and judge one replica, and compare engines if that is asked."""
    settings, replica, limits, traffic = question.settings, question.replica, question.limits, question.traffic
    horizon_s = effective_horizon_s(question.workload, settings)
    try:
        simulation = simulate_in_detail(
            question.workload,
            replica,
            engine=settings.engine,
            horizon_s=horizon_s,
            warmup_s=settings.warmup_s,
            seed=settings.seed,
            starvation_tolerance=limits.starvation_tolerance,
            progress=question.progress,
            requests=None if traffic is None else traffic.requests(question.workload, horizon_s=horizon_s),
            with_adapter_latencies=settings.compares,
        )
    except VllmError:
        raise
    except TwinError as error:
        return CheckedReplica(_rejection(question.workload, settings, horizon_s, error), None)
    verification = judge_report(simulation.report, limits, num_slots=replica.engine.num_slots)
    agreement = compare_with_fast(simulation) if settings.compares else None
    return CheckedReplica(verification, agreement, seed_outcome(simulation) if verification.near_limits else None)


def _rejection(workload: Workload, settings: TwinSettings, horizon_s: float, error: TwinError) -> Verification:
    return Verification(
        engine=settings.engine,
        horizon_s=horizon_s,
        warmup_s=settings.warmup_s,
        seed=settings.seed,
        offered_tps=sum(adapter.offered_tps for adapter in workload.adapters),
        throughput_tps=0.0,
        throughput_ratio=0.0,
        starved_adapters=tuple(adapter.name for adapter in workload.adapters),
        itl_p95_s=None,
        ttft_p95_s=None,
        kv_usage_max=0.0,
        verdict="rejected",
        reasons=(error.message,),
        worst_service_ratio=0.0,
    )


def effective_horizon_s(workload: Workload, settings: TwinSettings) -> float:
    """Return the horizon for a workload.

    Long enough for its load (`twin.judging_window`), unless its rates are not constant; and not beyond the end of a
    replayed trace, where queues would drain and an overloaded GPU would catch up.

    Raises
    ------
    InputError
        When the trace ends within the warm-up.
    """
    longest_s = workload.longest_horizon_s
    if longest_s <= settings.warmup_s:
        raise InputError(
            f"a replayed trace must be longer than the warm-up of {settings.warmup_s:g} s. "
            f"It ends after {longest_s:g} s.",
            field="warmup_s",
            value=settings.warmup_s,
            hint="give a shorter --warmup, or a longer trace",
        )
    rate_rps = sum(adapter.rate_rps for adapter in workload.adapters)
    if workload.trace is not None or workload.phases or rate_rps <= 0.0:
        return min(settings.horizon_s, longest_s)
    return long_enough_s(rate_rps, horizon_s=settings.horizon_s, warmup_s=settings.warmup_s)
