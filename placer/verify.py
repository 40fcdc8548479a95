"""Ask the twin about GPUs: simulate each with its adapters and settings, in parallel, and judge what comes out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import joblib

from placer.events import GpuVerified, KernelCompiling, PlanObserver, ignore
from placer.plan_document import Verification
from solvers.placement import GpuAssignment
from solvers.problem import Problem
from solvers.problem_file import Limits
from twin.errors import InputError, TwinError
from twin.replica import Replica
from twin.report import SimulationReport
from twin.simulate import EngineName, simulate
from twin.workload import Workload

DEFAULT_HORIZON_S = 1800.0
DEFAULT_WARMUP_S = 300.0
# A replica's throughput ratio is a share of completed requests. With fewer than this many expected in the window, the
# few that are still being served at its end would decide; the horizon is then longer, up to the second number.
MIN_EXPECTED_REQUESTS = 200.0
LONGEST_HORIZON_S = 30.0 * 86400.0
LISTED_ADAPTERS = 5


@dataclass(frozen=True)
class TwinSettings:
    """How GPUs are simulated.

    Attributes
    ----------
    engine
        ``fast`` (threads: it releases the interpreter lock) or ``simpy`` (processes).
    horizon_s, warmup_s
        Simulated seconds, and those at the start that are not measured. A GPU on which fewer than
        `MIN_EXPECTED_REQUESTS` would arrive is simulated for longer.
    seed
        Of the traffic.
    workers
        Threads or processes; ``None``: one per core that this process may use. The answers do not depend on it.
    """

    engine: EngineName = "fast"
    horizon_s: float = DEFAULT_HORIZON_S
    warmup_s: float = DEFAULT_WARMUP_S
    seed: int = 0
    workers: int | None = None

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

    Attributes
    ----------
    num_calls
        GPUs simulated so far.
    """

    def __init__(self, problem: Problem, settings: TwinSettings, *, observer: PlanObserver = ignore) -> None:
        self.problem = problem
        self.settings = settings
        self.num_calls = 0
        self._observer = observer
        self._verdicts: dict[GpuAssignment, Verification] = {}

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

    def _simulate(self, missing: list[GpuAssignment]) -> None:
        problem = self.problem
        replicas = [
            (
                problem.workload.subset(list(gpu.adapters)),
                problem.replica(gpu.gpu_type, gpu.max_loras, gpu.max_lora_rank, len(gpu.adapters)),
            )
            for gpu in missing
        ]

        def keep(index: int, verdict: Verification) -> None:
            self._verdicts[missing[index]] = verdict
            self.num_calls += 1

        simulate_replicas(replicas, problem.limits, self.settings, observer=self._observer, keep=keep)


def simulate_replicas(
    replicas: Sequence[tuple[Workload, Replica]],
    limits: Limits,
    settings: TwinSettings,
    *,
    observer: PlanObserver = ignore,
    keep: Callable[[int, Verification], None] | None = None,
) -> dict[int, Verification]:
    """Simulate replicas in parallel and judge them.

    Parameters
    ----------
    replicas
        What is asked of each, and what it is.
    limits, settings
        What they must keep, and how they are simulated.
    observer
        Told about each one.
    keep
        Called with position and verdict before the observer is: what was simulated survives Ctrl-C.

    Returns
    -------
    The verdict of each position.
    """
    if settings.engine == "fast":
        announce_compilation(observer)
    jobs = (
        joblib.delayed(_verify_numbered)(index, workload, replica, limits, settings)
        for index, (workload, replica) in enumerate(replicas)
    )
    workers = max(1, min(settings.workers or available_cores(), len(replicas)))
    backend = "threading" if settings.engine == "fast" else "loky"
    results = joblib.Parallel(n_jobs=workers, backend=backend, return_as="generator_unordered")(jobs)
    verdicts: dict[int, Verification] = {}
    try:
        for done, (index, verdict) in enumerate(results, start=1):
            verdicts[index] = verdict
            if keep is not None:
                keep(index, verdict)
            observer(GpuVerified(verdict.is_accepted, done, len(replicas), verdict.reasons))
    finally:
        with warnings.catch_warnings():
            # After Ctrl-C, joblib warns about the simulations that nobody waits for any more.
            warnings.simplefilter("ignore")
            results.close()
    return verdicts


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
    """Simulate GPUs in parallel; return the verdict of each.

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
    return TwinVerifier(problem, settings, observer=observer).verify(assignments)


def verify_replica(workload: Workload, replica: Replica, limits: Limits, settings: TwinSettings) -> Verification:
    """Simulate one replica and judge it; a replica that does not start is rejected with vLLM's words."""
    horizon_s = effective_horizon_s(workload, settings)
    try:
        report = simulate(
            workload,
            replica,
            engine=settings.engine,
            horizon_s=horizon_s,
            warmup_s=settings.warmup_s,
            seed=settings.seed,
            starvation_tolerance=limits.starvation_tolerance,
        )
    except TwinError as error:
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
        )
    return judge_report(report, limits)


def judge_report(report: SimulationReport, limits: Limits) -> Verification:
    """Return the verdict about a simulated replica: starvation by both tests, and the latency limits."""
    reasons = tuple(_reasons(report, limits))
    return Verification(
        engine=report.engine,
        horizon_s=report.horizon_s,
        warmup_s=report.warmup_s,
        seed=report.seed,
        offered_tps=report.offered_tps,
        throughput_tps=report.throughput_tps,
        throughput_ratio=report.throughput_ratio,
        starved_adapters=report.starved_adapters,
        itl_p95_s=report.itl.p95_s,
        ttft_p95_s=report.ttft.p95_s,
        kv_usage_max=report.kv_usage_max,
        verdict="rejected" if reasons else "accepted",
        reasons=reasons,
    )


def effective_horizon_s(workload: Workload, settings: TwinSettings) -> float:
    """Return the horizon for a workload.

    Longer when few requests are expected, unless its rates are not constant; and not beyond the end of a replayed
    trace, where queues would drain and an overloaded GPU would catch up.

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
    needed_s = settings.warmup_s + MIN_EXPECTED_REQUESTS / rate_rps
    return max(settings.horizon_s, min(needed_s, LONGEST_HORIZON_S))


def announce_compilation(observer: PlanObserver) -> None:
    """Tell `observer` that the next simulation has to wait for the compiler, if it has to."""
    from twin.kernel import kernel_is_cached  # noqa: PLC0415 - loads the compiler, which planning needs late or never

    if not kernel_is_cached():
        observer(KernelCompiling())


def available_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _verify_numbered(
    index: int, workload: Workload, replica: Replica, limits: Limits, settings: TwinSettings
) -> tuple[int, Verification]:
    return index, verify_replica(workload, replica, limits, settings)


def _reasons(report: SimulationReport, limits: Limits) -> list[str]:
    least = 1.0 - limits.starvation_tolerance
    reasons = []
    if report.is_starved:
        reasons.append(
            f"the replica starves: {report.throughput_tps:,.0f} of {report.offered_tps:,.0f} offered tokens/s "
            f"({report.throughput_ratio:.3f}, at least {least:g})"
        )
    starved = report.starved_adapters
    if starved:
        shown = ", ".join(starved[:LISTED_ADAPTERS])
        more = f" and {len(starved) - LISTED_ADAPTERS} more" if len(starved) > LISTED_ADAPTERS else ""
        verb = "adapter starves" if len(starved) == 1 else "adapters starve"
        reasons.append(f"{len(starved)} {verb}: {shown}{more}")
    for name, value_s, limit_ms in (
        ("ITL", report.itl.p95_s, limits.itl_p95_ms),
        ("TTFT", report.ttft.p95_s, limits.ttft_p95_ms),
    ):
        if limit_ms is not None and value_s is not None and value_s * 1000.0 > limit_ms:
            reasons.append(f"{name} p95 {value_s * 1000.0:.1f} ms is above {limit_ms:g} ms")
    return reasons
