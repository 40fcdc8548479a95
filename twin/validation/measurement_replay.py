"""Replay a folder that `placer measure` wrote: the very requests that were sent, in the twin, beside what happened.

Each segment began with an empty engine and is simulated by itself; what its requests and steps did is put together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from twin.engine import EngineConfig
from twin.errors import InputError
from twin.hardware import GpuType, ModelArchitecture
from twin.kernel import run_kernel
from twin.latency_summary import LatencySummary, summarise_durations, summarise_gaps
from twin.measurement.folder import MeasurementFolder
from twin.measurement.manifest import Segment
from twin.measurement.records import OK, TABLES
from twin.measurement.tables import read_table, table_path
from twin.profile import PerformanceProfile
from twin.replica import Replica, ReplicaInputs, ReplicaTrace, build_inputs
from twin.workload import NANOSECONDS, RequestTable, Workload

# An attempt with one of these never took a place in the engine.
NOT_SERVED = ("error", "unreachable", "malformed")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Served:
    """What happened to requests, measured or simulated.

    Attributes
    ----------
    finished, finished_tokens
        Requests that finished before the workload's horizon, and their prompt and output tokens.
    ttft, tpot
        Of the requests that finished at all; the time per output token of those with two or more.
    itl
        Of the gaps between all tokens.
    """

    finished: int
    finished_tokens: int
    ttft: LatencySummary
    tpot: LatencySummary
    itl: LatencySummary


@dataclass(frozen=True)
class Engine:
    """What the engine did, measured or simulated; times in seconds.

    Attributes
    ----------
    running_s
        Running requests, times how long.
    """

    steps: int
    busy_s: float
    load_s: float
    running_s: float
    preemptions: int
    gpu_loads: int
    disk_loads: int


@dataclass(frozen=True)
class ReplayedMeasurement:
    """Both sides.

    Attributes
    ----------
    requests
        That were replayed.
    measured_s
        Seconds before the horizon that were measured; `total_s` with those after it.
    engine_measured
        ``None`` over HTTP: nobody saw its steps.
    """

    requests: int
    measured_s: float
    total_s: float
    measured: Served
    simulated: Served
    engine_measured: Engine | None
    engine_simulated: Engine


def replay_measurement(
    folder: MeasurementFolder, profile: PerformanceProfile, model: ModelArchitecture, engine: EngineConfig
) -> ReplayedMeasurement:
    """Simulate the requests of a measurement as they were sent.

    Parameters
    ----------
    profile
        Gives step and load times; the KV blocks are those of the server where it said how many.
    engine
        The server's settings.

    Raises
    ------
    InputError
        When a table is damaged, nothing was sent, or the twin cannot take the requests under these settings.
    TwinError
        When the replica does not start in the twin.
    """
    table, steps = (_whole_table(folder, name) for name in ("requests", "steps"))
    sent = table[table["sent_s"].notna() & ~table["status"].isin(NOT_SERVED)]
    if sent.empty:
        raise InputError(
            f"a measurement must have sent requests. {folder.path} has none that a server took.",
            file=str(folder.path),
            field="requests",
            hint="`placer measure --finish` makes the tables of one that was killed; else measure again",
        )
    horizon_s = folder.manifest.workload.horizon_s
    workload = Workload(folder.manifest.workload.adapters)
    replica = Replica(model, GpuType(name=profile.gpu, memory_gib=profile.gpu_memory_gib), engine, profile)
    runs: list[_Run] = []
    for segment in folder.manifest.segments:
        own = sent[sent["segment"] == segment.number].sort_values("sent_s", kind="stable")
        if own.empty:
            continue
        length_s = _end_s(segment, own) - segment.start_s
        inputs = _inputs(own, segment, length_s, workload=workload, replica=replica, folder=folder)
        measured_s = horizon_s - segment.start_s
        if segment.status != "complete":
            # Nothing arrives between the end of a complete one and the horizon; of others nobody knows.
            measured_s = min(length_s, measured_s)
        runs.append(_Run(inputs, run_kernel(inputs), length_s, measured_s))
    return ReplayedMeasurement(
        requests=len(sent),
        measured_s=sum(max(run.measured_s, 0.0) for run in runs),
        total_s=sum(run.length_s for run in runs),
        measured=_measured(sent, horizon_s),
        simulated=_simulated(runs),
        engine_measured=_engine_measured(steps) if len(steps) else None,
        engine_simulated=_engine_simulated([run.trace for run in runs]),
    )


@dataclass(frozen=True)
class _Run:
    """A simulated segment, its length, and how much of it is before the workload's horizon."""

    inputs: ReplicaInputs
    trace: ReplicaTrace
    length_s: float
    measured_s: float


def _whole_table(folder: MeasurementFolder, name: str) -> pd.DataFrame:
    """Return a table with all of its columns, and adapters of the manifest only (InputError)."""
    table = read_table(folder.path, name)
    missing = [column.name for column in TABLES[name] if column.name not in table]
    known = {adapter.name for adapter in folder.manifest.workload.adapters}
    # The base model's requests have no adapter.
    strange = [] if missing or name != "requests" else sorted(set(table["adapter"].dropna()) - known)
    if not missing and not strange:
        return table
    path = table_path(folder.path, name)
    field = missing[0] if missing else "adapter"
    raise InputError(
        f"the table {name!r} must be as `placer measure` wrote it. {path} "
        + (
            f"lacks {', '.join(missing)}." if missing else f"has the adapter {strange[0]!r}, and the manifest does not."
        ),
        file=str(path),
        field=field,
        value=None if missing else strange[0],
        hint="make the tables again: `placer measure --finish`, or measure again",
    )


def _end_s(segment: Segment, requests: pd.DataFrame) -> float:
    if segment.end_s is not None:
        return segment.end_s
    # Of a process that was killed, the last thing that is known.
    return float(requests[["sent_s", "finish_s"]].max().max())


def _inputs(
    requests: pd.DataFrame,
    segment: Segment,
    length_s: float,
    *,
    workload: Workload,
    replica: Replica,
    folder: MeasurementFolder,
) -> ReplicaInputs:
    number = {adapter.name: index for index, adapter in enumerate(workload.adapters)}
    asked = requests["output_tokens"].to_numpy(dtype=np.int64)
    is_done = (requests["status"] == OK).to_numpy()
    # A model may end an answer before the length that was asked for.
    outputs = np.where(is_done, requests["generated_tokens"].fillna(0).to_numpy(dtype=np.int64), asked)
    arrival_s = np.maximum(requests["sent_s"].to_numpy(dtype=np.float64) - segment.start_s, 0.0)
    table = RequestTable(
        np.round(arrival_s * NANOSECONDS).astype(np.int64),
        # The base model has no name.
        np.asarray(requests["adapter"].map(number).fillna(-1), dtype=np.int32),
        requests["prompt_tokens"].to_numpy(dtype=np.int32),
        np.maximum(outputs, 1).astype(np.int32),
    )
    facts = folder.manifest
    inputs = build_inputs(workload, table, replica, horizon_s=length_s, hash_seed=facts.workload.seed % 2**32)
    if facts.server.kv_tokens is None:
        return inputs
    num_blocks = facts.server.kv_tokens // inputs.block_size
    return replace(inputs, num_blocks=num_blocks, watermark_blocks=int(replica.engine.watermark * num_blocks))


def _measured(sent: pd.DataFrame, horizon_s: float) -> Served:
    done = sent[sent["status"] == OK]
    in_time = done[done["finish_s"] <= horizon_s]
    gaps = [np.asarray(values, dtype=np.float64) for values in sent["itl_s"] if values is not None]
    several = done[done["generated_tokens"] > 1]
    decode_s = several["finish_s"] - several["sent_s"] - several["ttft_s"]
    return Served(
        finished=len(in_time),
        finished_tokens=int(in_time["prompt_tokens"].sum() + in_time["generated_tokens"].sum()),
        ttft=_summary(done["ttft_s"].to_numpy(dtype=np.float64)),
        tpot=_summary((decode_s / (several["generated_tokens"] - 1)).to_numpy(dtype=np.float64)),
        itl=_summary(np.concatenate([np.empty(0), *gaps])),
    )


def _simulated(runs: Sequence[_Run]) -> Served:
    ttft_ns, tpot_ns, finished, tokens = [], [], 0, 0
    for run in runs:
        trace, is_done = run.trace, run.trace.finish_ns >= 0
        several = is_done & (trace.generated_tokens > 1)
        in_time = is_done & (trace.finish_ns <= run.measured_s * NANOSECONDS)
        finished += int(in_time.sum())
        tokens += int((run.inputs.prompt_tokens.astype(np.int64) + trace.generated_tokens)[in_time].sum())
        ttft_ns.append((trace.first_token_ns - run.inputs.arrival_ns)[is_done])
        tpot_ns.append((trace.finish_ns - trace.first_token_ns)[several] / (trace.generated_tokens[several] - 1))
    return Served(
        finished=finished,
        finished_tokens=tokens,
        ttft=summarise_durations(np.concatenate(ttft_ns)),
        tpot=summarise_durations(np.concatenate(tpot_ns)),
        itl=summarise_gaps(
            np.sum([run.trace.gap_histogram for run in runs], axis=0),
            sum(int(run.trace.adapter_gap_sum_ns.sum()) for run in runs),
            sum(int(run.trace.adapter_gap_count.sum()) for run in runs),
        ),
    )


def _summary(values_s: Floats) -> LatencySummary:
    """Return the summary of the values that are known: not every answer says when its first token came."""
    return summarise_durations(values_s[np.isfinite(values_s)] * NANOSECONDS)


def _engine_measured(steps: pd.DataFrame) -> Engine:
    seconds = steps["duration_ms"] / 1000.0
    return Engine(
        steps=len(steps),
        busy_s=float(seconds.sum()),
        load_s=float(steps["load_ms"].sum()) / 1000.0,
        running_s=float((steps["running"] * seconds).sum()),
        preemptions=int(steps["preemptions"].sum()),
        gpu_loads=int(steps["gpu_loads"].sum()),
        disk_loads=int(steps["disk_loads"].sum()),
    )


def _engine_simulated(traces: Sequence[ReplicaTrace]) -> Engine:
    return Engine(
        steps=sum(trace.num_steps for trace in traces),
        busy_s=sum(trace.busy_ns for trace in traces) / NANOSECONDS,
        load_s=sum(trace.load_ns for trace in traces) / NANOSECONDS,
        running_s=sum(trace.running_integral for trace in traces) / NANOSECONDS,
        preemptions=sum(trace.num_preemptions for trace in traces),
        gpu_loads=sum(int(trace.adapter_gpu_loads.sum()) for trace in traces),
        disk_loads=sum(int(trace.adapter_disk_loads.sum()) for trace in traces),
    )
