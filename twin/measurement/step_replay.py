"""Replay a measurement in the twin with the measured time of each step, to see whether it batches as vLLM did.

What a real run and a prediction differ by has two causes: how long steps take, and what is in them. With the measured
times the first one is gone.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from simpy import Environment, Event

from twin.errors import InputError
from twin.measurement.folder import MeasurementFolder
from twin.measurement.tables import read_table
from twin.recorder import Request, Step
from twin.reference import Arrival, ReplicaProcess
from twin.replica import STEP_TABLE_COLUMNS, Replica, ReplicaInputs, ReplicaTrace, build_inputs
from twin.step_clock import StepClock
from twin.workload import NANOSECONDS, Workload

# What a step's batch is compared by, in both tables.
COMPARED = ("tokens", "requests", "context_tokens", "adapters", "has_prefill", "is_batch_changed", "waiting")
# Of the twin, so that the last measured step ends before it.
SPARE_S = 1.0


@dataclass(frozen=True)
class StepReplay:
    """How the twin's steps compare with the measured ones.

    Attributes
    ----------
    num_steps
        Measured.
    first_difference
        Number of the first step in which they differ in any of `COMPARED`, or that only one of them has; ``None``:
        they are the same.
    gpu_loads, disk_loads, preemptions
        Measured, and the twin's.
    """

    num_steps: int
    first_difference: int | None
    gpu_loads: tuple[int, int]
    disk_loads: tuple[int, int]
    preemptions: tuple[int, int]

    @property
    def is_same(self) -> bool:
        """Whether the twin took the measured steps, with as many loads and preemptions."""
        pairs = (self.gpu_loads, self.disk_loads, self.preemptions)
        return self.first_difference is None and all(measured == twins for measured, twins in pairs)


def replay_steps(folder: MeasurementFolder, replica: Replica) -> StepReplay:
    """Let the twin serve the requests of a measurement, with the measured time of each step.

    Parameters
    ----------
    folder
        Of one segment, in process, on a clock on which time passes in steps only (``cpu`` or ``steady``).
    replica
        The engine's settings and KV capacity; its step and load times do not matter.

    Raises
    ------
    InputError
        When the measurement is another, or its requests do not fit the replica.
    TwinError
        When the replica does not start.
    """
    manifest = folder.manifest
    if manifest.clock == "wall" or len(manifest.segments) != 1:
        raise InputError(
            "steps can be replayed of a measurement of one segment on the clock `cpu` or `steady`. "
            f"{folder.path} has {len(manifest.segments)} on `{manifest.clock}`.",
            file=str(folder.path),
            field="clock",
            value=manifest.clock,
            hint="measure in process with --clock steady, without interruption",
        )
    steps = read_table(folder.path, "steps")
    durations_ns = np.round(steps["duration_ms"].to_numpy(dtype=np.float64) * 1e6).astype(np.int64)
    last_s = float(steps["start_s"].iloc[-1]) + durations_ns[-1] / NANOSECONDS if len(steps) else 0.0
    facts = manifest.workload
    inputs = build_inputs(
        Workload(adapters=facts.adapters),
        folder.schedule(),
        replica,
        horizon_s=max(last_s, facts.horizon_s) + SPARE_S,
        hash_seed=facts.seed,
    )
    return _compared(steps, _replayed(inputs, durations_ns))


class _RecordedClock(StepClock):
    """Gives each step the time of the recorded one of its number; those beyond them, the profile's."""

    def __init__(self, inputs: ReplicaInputs, durations_ns: NDArray[np.int64]) -> None:
        super().__init__(inputs)
        self._durations_ns = iter(durations_ns.tolist())

    def time(self, step: Step, *, num_waiting: int) -> None:
        super().time(step, num_waiting=num_waiting)
        step.duration_ns = next(self._durations_ns, step.duration_ns)


class _RecordedReplica(ReplicaProcess):
    def __init__(self, environment: Environment, inputs: ReplicaInputs, durations_ns: NDArray[np.int64]) -> None:
        super().__init__(environment, inputs, keep_step_table=True)
        self._clock = _RecordedClock(inputs, durations_ns)


def _replayed(inputs: ReplicaInputs, durations_ns: NDArray[np.int64]) -> ReplicaTrace:
    environment = Environment()
    replica = _RecordedReplica(environment, inputs, durations_ns)
    columns = (inputs.adapter, inputs.prompt_tokens, inputs.output_tokens)
    requests = [Request(row, *map(int, values)) for row, values in enumerate(zip(*columns, strict=True))]

    def arrive() -> Generator[Event, Any, None]:
        for request, arrival_ns in zip(requests, inputs.arrival_ns.tolist(), strict=True):
            if arrival_ns > environment.now:
                yield Arrival(environment, arrival_ns)
            replica.push(request)

    environment.process(arrive())
    environment.process(replica.run())
    environment.run()
    return replica.trace(requests)


def _compared(steps: pd.DataFrame, trace: ReplicaTrace) -> StepReplay:
    assert trace.step_table is not None
    twins = trace.step_table[:, [STEP_TABLE_COLUMNS.index(name) for name in COMPARED]]
    measured = steps[list(COMPARED)].to_numpy(dtype=np.int64)
    common = min(len(measured), len(twins))
    differs = np.flatnonzero((measured[:common] != twins[:common]).any(axis=1))
    first = int(differs[0]) if len(differs) else None
    if first is None and len(measured) != len(twins):
        first = common
    return StepReplay(
        num_steps=len(steps),
        first_difference=first,
        gpu_loads=(int(steps["gpu_loads"].sum()), int(trace.adapter_gpu_loads.sum())),
        disk_loads=(int(steps["disk_loads"].sum()), int(trace.adapter_disk_loads.sum())),
        preemptions=(int(steps["preemptions"].sum()), trace.num_preemptions),
    )
