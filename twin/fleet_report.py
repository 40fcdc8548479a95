"""What a simulated fleet did, reported as if it were one replica: throughput, latencies and starvation of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twin.fleet import FleetReplica, FleetTrace
from twin.replica import ReplicaInputs, ReplicaTrace
from twin.report import SimulationReport, build_report
from twin.workload import RequestTable, Workload


def report_fleet(
    workload: Workload,
    requests: RequestTable,
    replicas: Sequence[FleetReplica],
    trace: FleetTrace,
    *,
    engine: str,
    seed: int,
    warmup_s: float,
    starvation_tolerance: float,
) -> SimulationReport:
    """Return the report of all replicas together, over all requests and for each of the workload's adapters.

    Time means (of running requests, KV usage, busy time) are sums over the replicas: of KV usage, divide by how many
    there are. `requests` are those that were simulated.
    """
    merged_inputs, merged = _merge(workload, requests, replicas, trace)
    return build_report(
        workload,
        merged_inputs,
        merged,
        engine=engine,
        seed=seed,
        warmup_s=warmup_s,
        starvation_tolerance=starvation_tolerance,
        with_adapters=False,
    )


def _merge(
    workload: Workload, requests: RequestTable, replicas: Sequence[FleetReplica], trace: FleetTrace
) -> tuple[ReplicaInputs, ReplicaTrace]:
    """Return inputs and trace with the requests of all replicas, by the fleet's numbers of requests and adapters."""
    num_adapters, traces = len(workload.adapters), trace.traces
    owner = trace.assigned_replica
    first = traces[0]

    def by_request(field: str) -> NDArray[Any]:
        like = getattr(first, field)
        column = np.full(len(requests), -1 if field.endswith("_ns") else 0, dtype=like.dtype)
        for index, one in enumerate(traces):
            column[owner == index] = getattr(one, field)
        return column

    def by_adapter(field: str) -> NDArray[Any]:
        like = getattr(first, field)
        has_base = field in {"adapter_gap_histogram", "adapter_gap_sum_ns", "adapter_gap_count"}
        merged = np.zeros((num_adapters + has_base, *like.shape[1:]), dtype=like.dtype)
        for replica, one in zip(replicas, traces, strict=True):
            values = getattr(one, field)
            merged[list(replica.adapters)] += values[: len(replica.adapters)]
            if has_base:
                merged[-1] += values[-1]
        return merged

    def total(field: str) -> int:
        return int(sum(getattr(one, field) for one in traces))

    per_request = (
        "first_scheduled_ns",
        "first_token_ns",
        "finish_ns",
        "generated_tokens",
        "is_running",
        "request_preemptions",
    )
    per_adapter = (
        "adapter_gap_histogram",
        "adapter_gap_sum_ns",
        "adapter_gap_count",
        "adapter_gpu_loads",
        "adapter_disk_loads",
    )
    totals = ("num_steps", "busy_ns", "load_ns", "scheduled_tokens", "num_preemptions")
    peaks = ("peak_used_blocks", "peak_running", "peak_waiting")
    columns: dict[str, Any] = {field: by_request(field) for field in per_request}
    columns |= {field: by_adapter(field) for field in per_adapter}
    columns |= {field: total(field) for field in (*totals, *peaks)}
    merged = replace(
        first,
        **columns,
        gap_histogram=np.sum([one.gap_histogram for one in traces], axis=0),
        running_integral=float(sum(one.running_integral for one in traces)),
        waiting_integral=float(sum(one.waiting_integral for one in traces)),
        used_blocks_integral=float(sum(one.used_blocks_integral for one in traces)),
        samples=first.samples[:0],
        step_log=None,
        step_table=None,
    )
    inputs = replace(
        trace.inputs[0],
        arrival_ns=requests.arrival_ns,
        adapter=requests.adapter,
        prompt_tokens=requests.prompt_tokens,
        output_tokens=requests.output_tokens,
        num_blocks=1 + sum(one.num_blocks - 1 for one in trace.inputs),
    )
    return inputs, merged
