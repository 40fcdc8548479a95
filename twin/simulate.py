"""Simulate one replica under a workload: the entry point of the twin."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Literal

from twin.errors import InputError
from twin.replica import Replica, ReplicaInputs, ReplicaTrace, build_inputs
from twin.report import SimulationReport, build_report
from twin.workload import Workload

EngineName = Literal["fast", "simpy"]

# Where each engine's ``run(inputs) -> ReplicaTrace`` lives; imported on first use, because compiled code takes a
# moment to load.
ENGINES: dict[str, tuple[str, str]] = {
    "fast": ("twin.kernel", "run_kernel"),
    "simpy": ("twin.reference", "run_reference"),
}


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
        ``fast`` (compiled) or ``simpy`` (readable, about 100 times slower); they take identical steps.
    horizon_s
        Simulated seconds, > 0.
    warmup_s
        Seconds at the start that are simulated but not measured, in ``[0, horizon_s)``.
    seed
        Of the arrivals and lengths, and of the order in which a step's adapters are loaded.
    sample_interval_s
        Interval of the report's time series; 0: none.
    starvation_tolerance
        A replica or adapter starves when it serves less than ``1 - tolerance`` of its offered load.

    Raises
    ------
    InputError
        For an unknown engine, a bad horizon or warm-up, or requests that the replica cannot take (see `build_inputs`).
    TwinError
        When the replica does not start.
    """
    if horizon_s <= 0 or not 0 <= warmup_s < horizon_s:
        raise InputError(
            "the horizon must be positive and the warm-up shorter than it. "
            f"Got horizon_s={horizon_s}, warmup_s={warmup_s}.",
            field="horizon_s",
            value=horizon_s,
        )
    run = load_engine(engine)
    requests = workload.requests(horizon_s=horizon_s, seed=seed)
    inputs = build_inputs(
        workload, requests, replica, horizon_s=horizon_s, sample_interval_s=sample_interval_s, hash_seed=seed
    )
    return build_report(
        workload,
        inputs,
        run(inputs),
        engine=engine,
        seed=seed,
        warmup_s=warmup_s,
        starvation_tolerance=starvation_tolerance,
    )


def load_engine(engine: str) -> Callable[[ReplicaInputs], ReplicaTrace]:
    """Return an engine's run function by name (InputError when there is none of that name)."""
    if engine not in ENGINES:
        raise InputError(f"`engine` must be one of {', '.join(ENGINES)}. Got {engine!r}.", field="engine", value=engine)
    module, function = ENGINES[engine]
    run: Callable[[ReplicaInputs], ReplicaTrace] = getattr(importlib.import_module(module), function)
    return run
