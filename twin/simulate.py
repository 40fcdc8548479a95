"""Simulate one replica under a workload: the entry point of the twin."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from twin.errors import InputError
from twin.replica import Replica, ReplicaInputs, ReplicaTrace, build_inputs
from twin.report import SimulationReport, build_report
from twin.workload import NANOSECONDS, RequestTable, Workload

# Called with the simulated time in s.
Progress = Callable[[float], None]

EngineName = Literal["fast", "simpy", "vllm"]

# Where each engine's ``run(inputs) -> ReplicaTrace`` lives; imported on first use, because compiled code takes a
# moment to load.
ENGINES: dict[str, tuple[str, str]] = {
    "fast": ("twin.kernel", "run_kernel"),
    "simpy": ("twin.reference", "run_reference"),
    "vllm": ("twin.vllm_engine", "run_vllm"),
}

# Rows of a time series: what a report can hold.
MAX_SAMPLES = 1_000_000
# Requests of a simulation: about 250 bytes each.
MAX_REQUESTS = 20_000_000


@dataclass(frozen=True)
class Simulation:
    """One simulated replica: what the engine was given, its raw outcome, the report of it, and the engine's CPU time.

    That time, in s, has no part in the report. It includes the loading of compiled code, but not the start of vLLM.
    """

    inputs: ReplicaInputs
    trace: ReplicaTrace
    report: SimulationReport
    engine_cpu_s: float


def simulate(
    workload: Workload,
    replica: Replica,
    *,
    engine: EngineName = "fast",
    horizon_s: float,
    warmup_s: float = 0.0,
    seed: int = 0,
    sample_interval_s: float = 0.0,
    starvation_tolerance: float = 0.1,
) -> SimulationReport:
    """Simulate `replica` serving all adapters of `workload`.

    Parameters
    ----------
    workload, replica
        What is asked, and of which engine.
    engine
        ``fast`` (compiled), ``simpy`` (readable, hundreds of times slower), or ``vllm`` (vLLM's own scheduler and
        LoRA caches, slower still, docs/vllm-engine.md); they take identical steps.
    horizon_s
        Simulated seconds, finite and > 0.
    warmup_s
        Seconds at the start that are simulated but not measured, in ``[0, horizon_s)``.
    seed
        Of the arrivals and lengths, and of the hashes that order a step's adapters (PYTHONHASHSEED); >= 0.
    sample_interval_s
        Interval of the report's time series, at most `MAX_SAMPLES` per horizon; 0: none.
    starvation_tolerance
        A replica or adapter starves when it serves less than ``1 - tolerance`` of its offered load; in [0, 1].

    Raises
    ------
    InputError
        For an unknown engine, a setting outside of its range, or requests that the replica cannot take (see
        `build_inputs`).
    TwinError
        When the replica does not start; as VllmError when vLLM is missing or fails.
    """
    return simulate_in_detail(
        workload,
        replica,
        engine=engine,
        horizon_s=horizon_s,
        warmup_s=warmup_s,
        seed=seed,
        sample_interval_s=sample_interval_s,
        starvation_tolerance=starvation_tolerance,
    ).report


def simulate_in_detail(
    workload: Workload,
    replica: Replica,
    *,
    engine: EngineName = "fast",
    horizon_s: float,
    warmup_s: float = 0.0,
    seed: int = 0,
    sample_interval_s: float = 0.0,
    starvation_tolerance: float = 0.1,
    requests: RequestTable | None = None,
    progress: Progress | None = None,
    with_adapters: bool = True,
    with_adapter_latencies: bool = True,
) -> Simulation:
    """Simulate as `simulate` does, and keep the times of every request.

    Parameters
    ----------
    requests
        To be served instead of those of `workload` under `seed`; they name its adapters.
    progress
        Called now and then, by the engine ``vllm`` only, with the simulated time in s.
    with_adapters
        Whether the report has a part for each adapter, which for hundreds of them takes longer than to simulate.
    with_adapter_latencies
        Whether that part has the adapter's latencies, which take most of that time.
    workload and others
        See `simulate`; also for the errors raised.
    """
    _check_settings(horizon_s, warmup_s, seed, sample_interval_s, starvation_tolerance)
    _check_size(workload, horizon_s)
    load_engine(engine)
    if requests is None:
        requests = workload.requests(horizon_s=horizon_s, seed=seed)
    inputs = build_inputs(
        workload,
        requests,
        replica,
        horizon_s=horizon_s,
        sample_interval_s=sample_interval_s,
        hash_seed=seed,
        counts_adapter_gaps=with_adapters and with_adapter_latencies,
    )
    trace, cpu_s = _run_timed(engine, inputs, progress)
    report = build_report(
        workload,
        inputs,
        trace,
        engine=engine,
        seed=seed,
        warmup_s=warmup_s,
        starvation_tolerance=starvation_tolerance,
        with_adapters=with_adapters,
        with_adapter_latencies=with_adapter_latencies,
    )
    return Simulation(inputs, trace, report, cpu_s)


def _run_timed(engine: EngineName, inputs: ReplicaInputs, progress: Progress | None) -> tuple[ReplicaTrace, float]:
    """Run an engine; return also the CPU time that it took, in s."""
    if engine == "vllm":
        from twin.vllm_engine import run_vllm_timed  # noqa: PLC0415 - as `load_engine` does

        tell = progress or _ignore
        return run_vllm_timed(inputs, progress=lambda now_ns: tell(now_ns / NANOSECONDS))
    run = load_engine(engine)
    started_s = time.thread_time()
    trace = run(inputs)
    return trace, time.thread_time() - started_s


def _ignore(_: float) -> None:
    """Do nothing with the simulated time."""


def _check_settings(
    horizon_s: float, warmup_s: float, seed: int, sample_interval_s: float, starvation_tolerance: float
) -> None:
    """Raise InputError for the first setting outside of its range."""
    if not (1.0 / NANOSECONDS <= horizon_s < math.inf and 0 <= warmup_s < horizon_s):
        raise InputError(
            "the horizon must be positive and finite, and the warm-up shorter than it. "
            f"Got horizon_s={horizon_s}, warmup_s={warmup_s}.",
            field="horizon_s",
            value=horizon_s,
        )
    if sample_interval_s != 0 and not horizon_s / MAX_SAMPLES <= sample_interval_s <= horizon_s:
        raise InputError(
            f"`sample_interval_s` must be 0 (no time series) or from {horizon_s / MAX_SAMPLES:g} to {horizon_s:g} for "
            f"this horizon. Got {sample_interval_s}.",
            field="sample_interval_s",
            value=sample_interval_s,
        )
    if not 0 <= starvation_tolerance <= 1:
        raise InputError(
            f"`starvation_tolerance` must lie between 0 and 1. Got {starvation_tolerance}.",
            field="starvation_tolerance",
            value=starvation_tolerance,
        )
    if seed < 0:
        raise InputError(f"`seed` must not be negative. Got {seed}.", field="seed", value=seed)


def _check_size(workload: Workload, horizon_s: float) -> None:
    """Raise InputError when the requests would not fit the memory of an ordinary machine."""
    largest_scale = max([1.0, *(phase.rate_scale for phase in workload.phases)])
    expected = sum(adapter.rate_rps for adapter in workload.adapters) * largest_scale * horizon_s
    if workload.trace is None and expected > MAX_REQUESTS:
        raise InputError(
            f"a simulation can have {MAX_REQUESTS:,} requests at most. About {expected:.3g} are expected in "
            f"{horizon_s:g} s.",
            field="horizon_s",
            value=horizon_s,
            hint="give a shorter horizon",
        )


def load_engine(engine: str) -> Callable[[ReplicaInputs], ReplicaTrace]:
    """Return an engine's run function by name (InputError when there is none of that name)."""
    if engine not in ENGINES:
        raise InputError(f"`engine` must be one of {', '.join(ENGINES)}. Got {engine!r}.", field="engine", value=engine)
    module, function = ENGINES[engine]
    run: Callable[[ReplicaInputs], ReplicaTrace] = getattr(importlib.import_module(module), function)
    return run
