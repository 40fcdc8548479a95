"""Whether the fast engine simulates a GPU exactly as another engine does, and how fast both are."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import fields

import numpy as np
from pydantic import BaseModel, ConfigDict

from twin.errors import TwinError
from twin.replica import ReplicaInputs, ReplicaTrace
from twin.simulate import Simulation, load_engine


class EngineFigures(BaseModel):
    """What one engine says about a replica, and how fast it is.

    Attributes
    ----------
    served_requests, num_steps
        Requests that got their last token before the horizon, and steps scheduled.
    simulated_s, simulated_s_per_cpu_s
        Simulated seconds, and those per second of CPU time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: str
    served_requests: int
    num_steps: int
    simulated_s: float
    simulated_s_per_cpu_s: float


class EngineAgreement(BaseModel):
    """An engine compared with the fast one, on the same requests.

    Attributes
    ----------
    is_same
        Whether both give the same times of every request, steps, preemptions, adapter loads and latency histograms.
    differences
        The fields of `twin.replica.ReplicaTrace` that differ, or why the fast engine gave none.
    checked, fast
        The engine, and the fast one (``None`` when it failed).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    is_same: bool
    differences: tuple[str, ...]
    checked: EngineFigures
    fast: EngineFigures | None


def compare_with_fast(simulation: Simulation) -> EngineAgreement:
    """Simulate the same requests with the fast engine, and compare all that both recorded."""
    inputs = simulation.inputs
    checked = _figures(simulation.report.engine, inputs, simulation.trace, simulation.engine_cpu_s)
    try:
        fast_trace, cpu_s = _run_fast(inputs)
    except TwinError as error:
        return EngineAgreement(is_same=False, differences=(error.message,), checked=checked, fast=None)
    differences = tuple(
        field.name
        for field in fields(ReplicaTrace)
        if not np.array_equal(getattr(simulation.trace, field.name), getattr(fast_trace, field.name))
    )
    fast = _figures("fast", inputs, fast_trace, cpu_s)
    return EngineAgreement(is_same=not differences, differences=differences, checked=checked, fast=fast)


def _run_fast(inputs: ReplicaInputs) -> tuple[ReplicaTrace, float]:
    """Run the fast engine; return also the CPU time of a second run, when its code is loaded."""
    run = load_engine("fast")
    trace = run(inputs)
    started_s = time.thread_time()
    run(inputs)
    return trace, time.thread_time() - started_s


def _figures(engine: str, inputs: ReplicaInputs, trace: ReplicaTrace, cpu_s: float) -> EngineFigures:
    return EngineFigures(
        engine=engine,
        served_requests=int((trace.finish_ns >= 0).sum()),
        num_steps=trace.num_steps,
        simulated_s=inputs.horizon_ns / 1e9,
        simulated_s_per_cpu_s=inputs.horizon_ns / 1e9 / max(cpu_s, 1e-9),
    )


def speeds(agreements: Sequence[EngineAgreement]) -> tuple[float, float]:
    """Return simulated seconds per second of CPU time over several GPUs: of the engine, and of the fast one.

    NaN where the fast engine failed on all of them.
    """
    checked = [agreement.checked for agreement in agreements]
    fast = [agreement.fast for agreement in agreements if agreement.fast is not None]
    return _overall_speed(checked), _overall_speed(fast)


def _overall_speed(figures: Sequence[EngineFigures]) -> float:
    cpu_s = sum(one.simulated_s / one.simulated_s_per_cpu_s for one in figures)
    return sum(one.simulated_s for one in figures) / cpu_s if cpu_s > 0.0 else math.nan
