"""Whether several replicas on one GPU serve more than one: the model of twin/shared_gpu.py, simulated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from placer.advice_document import ReplicaAnswer, SharedPoint, SharedReplicas
from placer.batch_sweep import Aim, batch_sizes, with_engine
from twin.replica import Replica
from twin.report import SimulationReport
from twin.saturation import SaturatedRun, saturate, simulate_all
from twin.shared_gpu import SHARED_CASES, SharedCase, shared_coefficients
from twin.workload import Workload


def divided_workload(workload: Workload, num_replicas: int) -> tuple[Workload, ...]:
    """Return the adapters of each replica: the one with the largest load to the replica with the least, and so on.

    With fewer adapters than replicas, each replica serves all of them.
    """
    if len(workload.adapters) < num_replicas:
        return (workload,) * num_replicas
    loads = np.array([adapter.offered_tps for adapter in workload.adapters])
    given = np.zeros(num_replicas)
    members: list[list[int]] = [[] for _ in range(num_replicas)]
    for adapter in np.argsort(-loads, kind="stable").tolist():
        # Adapters without traffic are spread, too.
        chosen = min(range(num_replicas), key=lambda index: (given[index], len(members[index])))
        members[chosen].append(adapter)
        given[chosen] += loads[adapter]
    return tuple(workload.subset(sorted(own)) for own in members)


def shared_replicas(
    run: SaturatedRun, num_replicas: int, aim: Aim, *, alone_tps: float, workers: int | None
) -> SharedReplicas:
    """Return what `num_replicas` (>= 2) replicas on the GPU of `run` serve together.

    Each has the same share of the memory, holds the weights once, and has slots in proportion to its adapters, rounded
    up.

    Parameters
    ----------
    run
        One replica that has the GPU to itself, with all adapters.
    alone_tps
        What that one gives within the limit.
    """
    runs = [_own_run(run, workload, num_replicas) for workload in divided_workload(run.workload, num_replicas)]
    verdicts = [own.replica.memory() for own in runs]
    message = next((verdict.message for verdict in verdicts if not verdict.starts), "")
    cases: tuple[SharedPoint, ...] = ()
    if not message:
        cases = tuple(_best_point(runs, num_replicas, case, aim, workers=workers) for case in SHARED_CASES)
    return SharedReplicas(
        num_replicas=num_replicas,
        gpu_memory_utilization=runs[0].replica.engine.gpu_memory_utilization,
        kv_tokens_each=min(verdict.kv_tokens for verdict in verdicts),
        adapters_each=max(len(own.workload.adapters) for own in runs),
        max_loras_each=max(own.replica.engine.max_loras for own in runs),
        message=message,
        cases=cases,
        serves_more=_answer(cases, alone_tps),
    )


def _own_run(run: SaturatedRun, workload: Workload, num_replicas: int) -> SaturatedRun:
    """Return the run of one of the replicas, with its adapters and its part of the memory."""
    engine = run.replica.engine
    count = len(workload.adapters)
    slots = -(-engine.max_loras * count // len(run.workload.adapters))
    changed = engine.with_slots(slots, max_lora_rank=engine.max_lora_rank, num_adapters=count)
    replica = Replica(run.replica.model, run.replica.gpu, changed, run.replica.profile)
    return with_engine(
        replace(run, workload=workload, replica=replica),
        gpu_memory_utilization=engine.gpu_memory_utilization / num_replicas,
    )


def _best_point(
    runs: Sequence[SaturatedRun], num_replicas: int, case: SharedCase, aim: Aim, *, workers: int | None
) -> SharedPoint:
    """Return the batch size with which all replicas together give the most within the limit."""
    profile, model = runs[0].replica.profile, runs[0].replica.model
    times = shared_coefficients(profile, model, num_replicas=num_replicas, case=case)
    sizes = sorted(set.intersection(*(set(batch_sizes(own.replica)) for own in runs)))
    # Powers of two: differences between the cases are larger than between neighbours.
    sizes = [size for size in sizes if size & (size - 1) == 0]
    best = SharedPoint(case=case, throughput_tps=0.0, max_num_seqs=None, itl_p95_s=None)
    reports = [_simulate(own, times, sizes, workers) for own in runs]
    for index, size in enumerate(sizes):
        # A step is as long as the longest of its times: neither gives more than with any of them alone.
        throughput_tps = sum(min(one[index].throughput_tps for one in own) for own in reports)
        latencies = [one[index].itl.p95_s for own in reports for one in own]
        itl_p95_s = max((value for value in latencies if value is not None), default=None)
        if aim.keeps_limit(itl_p95_s) and throughput_tps > best.throughput_tps:
            best = SharedPoint(case=case, throughput_tps=throughput_tps, max_num_seqs=size, itl_p95_s=itl_p95_s)
    return best


def _simulate(
    run: SaturatedRun, times: Sequence[NDArray[np.float64]], sizes: Sequence[int], workers: int | None
) -> list[list[SimulationReport]]:
    """Return the reports of one replica with each of its step times, at each batch size.

    The traffic saturates the replica with the first of the times: with another one that serves all of it, the first is
    the one that counts.
    """
    widest = replace(with_engine(run, max_num_seqs=sizes[-1]), step_coefficients=times[0])
    requests = saturate(widest).requests
    return [
        simulate_all(
            (
                replace(with_engine(run, max_num_seqs=size), requests=requests, step_coefficients=coefficients)
                for size in sizes
            ),
            workers=workers,
        )
        for coefficients in times
    ]


def _answer(cases: Sequence[SharedPoint], alone_tps: float) -> ReplicaAnswer:
    if not cases:
        return "does not start"
    if cases[0].max_num_seqs is None:
        return "above the limit"
    are_more = [case.throughput_tps > alone_tps for case in cases]
    return "yes" if all(are_more) else "cannot tell" if any(are_more) else "no"
