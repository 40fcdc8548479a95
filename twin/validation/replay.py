"""Replay measured runs through the twin, several times each, on several cores."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import joblib
import numpy as np

from twin.engine import EngineConfig
from twin.errors import InputError, ProfileError
from twin.hardware import GpuType, load_model
from twin.lengths import LengthDistribution
from twin.profile import PerformanceProfile, load_profile, shipped_profiles
from twin.replica import Replica, ReplicaInputs, ReplicaTrace, build_inputs
from twin.report import build_report
from twin.simulate import MAX_REQUESTS, EngineName, load_engine, simulate
from twin.validation.front_end import ClientView, FrontEnd, client_view, predict_stalls, through_stalls
from twin.validation.quantities import LEAST_GOODPUT_RATIO, Quantities
from twin.validation.regenerate import regenerate_traffic
from twin.validation.runs import VLLM_VERSION, MeasuredRun, Traffic
from twin.worker_processes import start_workers
from twin.workload import NANOSECONDS, Adapter, Workload

MILLISECONDS = 1000.0

# That of the measured runs.
DEFAULT_FRONT_END = FrontEnd()


@dataclass(frozen=True)
class ReplaySettings:
    """How runs are replayed.

    Attributes
    ----------
    seeds
        Each run is simulated once per seed; at least one, all >= 0.
    horizon_s
        Simulated seconds; ``None``: each run's own length.
    engine
        Engine of the twin.
    workers
        Processes; ``None``: one per core. The answers do not depend on it.
    front_end
        The API server between clients and engine; ``None``: latencies are those of the engine.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    horizon_s: float | None = None
    engine: EngineName = "fast"
    workers: int | None = None
    front_end: FrontEnd | None = DEFAULT_FRONT_END


@dataclass(frozen=True)
class Replay:
    """One simulation of a run.

    Attributes
    ----------
    does_start
        Whether the twin's replica starts; if not, nothing else was simulated.
    quantities
        What it did; nothing where it does not start or the table gives no traffic.
    wall_s, cpu_s
        What drawing the requests, simulating and summarising took.
    """

    does_start: bool
    quantities: Quantities
    wall_s: float
    cpu_s: float


def choose_profiles(runs: Sequence[MeasuredRun], name: str | None) -> dict[str, PerformanceProfile]:
    """Return the profile of each model of the runs.

    Parameters
    ----------
    name
        A shipped name or the path of a file; ``None``: the shipped profile of each model, the one of the engine
        `VLLM_VERSION` if there are several.

    Raises
    ------
    ProfileError
        When the profile is unreadable or of another model, or a model has no profile, or several equally good ones.
    """
    models = sorted({run.model for run in runs})
    if name is None:
        return {model: _shipped_profile(model) for model in models}
    profile = load_profile(name)
    others = [model for model in models if model != profile.model]
    if others:
        raise ProfileError(
            f"the profile's model must be that of the runs ({', '.join(models)}). "
            f"Profile {profile.name!r} was measured with {profile.model!r}.",
            field="profile",
            value=name,
            hint="choose rows with --model, or leave out --profile",
        )
    return {profile.model: profile}


def replica_of(run: MeasuredRun, profile: PerformanceProfile) -> Replica:
    """Return the replica that a run was measured on: the profile's GPU with the run's settings."""
    gpu = GpuType(name=profile.gpu, memory_gib=profile.gpu_memory_gib)
    return Replica(load_model(run.model), gpu, run.engine, profile)


def replay_run(
    run: MeasuredRun,
    profile: PerformanceProfile,
    *,
    seed: int,
    horizon_s: float | None,
    engine: EngineName = "fast",
    front_end: FrontEnd | None = None,
) -> Replay:
    """Simulate a run once.

    Parameters
    ----------
    profile
        Of the run's model.
    seed, horizon_s, engine, front_end
        See `ReplaySettings`.

    Raises
    ------
    InputError
        When more than `MAX_REQUESTS` are expected.
    """
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    replica = replica_of(run, profile)
    does_start = replica.memory().starts
    quantities = Quantities()
    if does_start and run.traffic is not None:
        horizon_s = run.total_time_s if horizon_s is None else horizon_s
        _check_size(run, run.traffic, horizon_s)
        workload, requests = regenerate_traffic(run.traffic, run_id=run.run_id, seed=seed, horizon_s=horizon_s)
        inputs = build_inputs(workload, requests, replica, horizon_s=horizon_s, hash_seed=seed)
        quantities = _quantities(workload, inputs, engine, front_end)
    return Replay(does_start, quantities, time.perf_counter() - wall_s, time.process_time() - cpu_s)


def _quantities(
    workload: Workload, inputs: ReplicaInputs, engine: EngineName, front_end: FrontEnd | None
) -> Quantities:
    """Return what clients see of a replica, or what the engine does if there is no front end."""
    simulated = inputs
    trace = load_engine(engine)(inputs)
    stalls = None
    if front_end is not None:
        # The stalls follow from what the replica does; what they do to its arrivals changes them but little.
        stalls = predict_stalls(inputs, trace, front_end)
        simulated = through_stalls(inputs, stalls)
        trace = load_engine(engine)(simulated)
    report = build_report(
        workload, simulated, trace, engine=engine, seed=0, warmup_s=0.0, starvation_tolerance=1.0 - LEAST_GOODPUT_RATIO
    )
    if front_end is not None and stalls is not None:
        seen = client_view(trace, inputs.arrival_ns, stalls, front_end)
    else:
        seen = ClientView(
            itl_mean_ms=_milliseconds(report.itl.mean_s),
            itl_p50_ms=_milliseconds(report.itl.p50_s),
            ttft_p50_ms=_completed_ttft_p50_ms(inputs, trace),
        )
    return Quantities(
        tok_per_s=report.throughput_tps,
        itl_mean_ms=seen.itl_mean_ms,
        itl_p50_ms=seen.itl_p50_ms,
        tpot_mean_ms=_milliseconds(report.tpot.mean_s),
        ttft_p50_ms=seen.ttft_p50_ms,
        running_mean=report.running_mean,
        waiting_mean=report.waiting_mean,
        kv_usage_mean=report.kv_usage_mean,
        goodput_ratio=report.throughput_ratio,
    )


def replay_runs(
    runs: Sequence[MeasuredRun],
    profiles: Mapping[str, PerformanceProfile],
    settings: ReplaySettings,
    *,
    on_replay: Callable[[int, int], None] | None = None,
) -> tuple[tuple[Replay, ...], ...]:
    """Simulate every run once per seed, in parallel processes.

    Parameters
    ----------
    runs, profiles
        What was measured, and the profile of each of their models.
    on_replay
        Called after each simulation with how many are done, of how many. Ctrl-C raised while it runs stops the rest.

    Returns
    -------
    Per run (in order) one replay per seed (in order).
    """
    tasks = [(position, column) for position in _largest_first(runs) for column in range(len(settings.seeds))]
    workers = max(1, min(settings.workers or joblib.cpu_count(), len(tasks)))
    jobs = (
        joblib.delayed(_replay_warm)(task, runs[task[0]], profiles[runs[task[0]].model], settings) for task in tasks
    )
    # Compiling here, once, puts the machine code where the workers find it.
    warm_engine(settings.engine)
    replays: dict[tuple[int, int], Replay] = {}
    start_workers(workers)
    results = joblib.Parallel(n_jobs=workers, return_as="generator_unordered")(jobs)
    try:
        for done, (task, replay) in enumerate(results, start=1):
            replays[task] = replay
            if on_replay is not None:
                on_replay(done, len(tasks))
    finally:
        with warnings.catch_warnings():
            # After Ctrl-C, joblib warns about the simulations that nobody waits for any more.
            warnings.simplefilter("ignore")
            results.close()
    return tuple(
        tuple(replays[position, column] for column in range(len(settings.seeds))) for position in range(len(runs))
    )


@functools.cache
def warm_engine(engine: EngineName) -> None:
    """Load or compile an engine in this process, so that no measured simulation waits for it."""
    profile = load_profile(shipped_profiles()[0])
    replica = Replica(
        load_model(profile.model),
        GpuType(name=profile.gpu, memory_gib=profile.gpu_memory_gib),
        EngineConfig(max_num_seqs=1, max_model_len=16),
        profile,
    )
    length = LengthDistribution.constant(1)
    adapter = Adapter(name="warm-up", rank=8, rate_rps=1.0, prompt_tokens=length, output_tokens=length)
    simulate(Workload((adapter,)), replica, engine=engine, horizon_s=1.0)


def _replay_warm(
    task: tuple[int, int],
    run: MeasuredRun,
    profile: PerformanceProfile,
    settings: ReplaySettings,
) -> tuple[tuple[int, int], Replay]:
    """Replay one run under one seed."""
    warm_engine(settings.engine)
    seed = settings.seeds[task[1]]
    return task, replay_run(
        run,
        profile,
        seed=seed,
        horizon_s=settings.horizon_s,
        engine=settings.engine,
        front_end=settings.front_end,
    )


def _largest_first(runs: Sequence[MeasuredRun]) -> list[int]:
    """Return the positions of the runs with most requests first: no core then ends alone with a long one."""

    def num_requests(position: int) -> float:
        run = runs[position]
        return 0.0 if run.traffic is None else run.traffic.offered_rps * run.total_time_s

    return sorted(range(len(runs)), key=num_requests, reverse=True)


def _check_size(run: MeasuredRun, traffic: Traffic, horizon_s: float) -> None:
    """Raise InputError when the requests would not fit the memory of an ordinary machine."""
    expected = traffic.offered_rps * horizon_s
    if expected > MAX_REQUESTS:
        raise InputError(
            f"a simulation can have {MAX_REQUESTS:,} requests at most. About {expected:.3g} are expected in "
            f"{horizon_s:g} s of run {run.run_id}.",
            field="horizon_s",
            value=horizon_s,
            hint="give a shorter horizon",
        )


def _shipped_profile(model: str) -> PerformanceProfile:
    fitting = [profile for name in shipped_profiles() if (profile := load_profile(name)).model == model]
    if len(fitting) > 1:
        same_version = [profile for profile in fitting if profile.vllm_version.startswith(VLLM_VERSION)]
        fitting = same_version or fitting
    if len(fitting) != 1:
        names = ", ".join(profile.name for profile in fitting) or "none"
        raise ProfileError(
            f"one shipped profile must be of {model!r} and vLLM {VLLM_VERSION}. Found: {names}.",
            field="profile",
            value=model,
            hint="name a profile with --profile",
        )
    return fitting[0]


def _completed_ttft_p50_ms(inputs: ReplicaInputs, trace: ReplicaTrace) -> float | None:
    """Return the median time to first token of completed requests: a client logs no others."""
    completed = trace.finish_ns >= 0
    if not completed.any():
        return None
    waits_ns = (trace.first_token_ns - inputs.arrival_ns)[completed]
    return float(np.median(waits_ns)) / NANOSECONDS * MILLISECONDS


def _milliseconds(value_s: float | None) -> float | None:
    return None if value_s is None else value_s * MILLISECONDS
