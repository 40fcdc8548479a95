"""`placer.advise`: the batch size, the KV budget and the replicas of one GPU, from the twin under saturation."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from placer.advice_document import Advice, SharedReplicas
from placer.batch_sweep import Aim, BatchSweep, batch_sizes, kv_budget, with_engine
from placer.events import PhaseStarted, PlanObserver, announce_compilation, ignore
from placer.files import ProblemFromFile
from placer.shared_replicas import shared_replicas
from placer.simulation import replica_for
from placer.unmeasured import unmeasured_warnings
from placer.wording import counted
from twin.calibration.prior import WEIGHTS_SHARE
from twin.errors import InputError
from twin.replica import Replica
from twin.saturation import SaturatedRun, saturate, saturated_mix
from twin.shared_gpu import weights_read_ms
from twin.workload import RequestTable

DEFAULT_TOLERANCE = 0.05
DEFAULT_REPLICAS = 2
MOST_REPLICAS = 4
DEFAULT_HORIZON_S = 900.0
# Shorter ones end before the requests that fill the batch have finished.
LEAST_HORIZON_S = 30.0
# Share of the horizon in which the batch fills.
WARMUP_SHARE = 1.0 / 6.0


def advise(
    problem: ProblemFromFile,
    *,
    plan: str | Path | None = None,
    gpu: str | None = None,
    max_loras: int | None = None,
    max_lora_rank: int | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
    itl_p95_ms: float | None = None,
    replicas_per_gpu: int = DEFAULT_REPLICAS,
    horizon_s: float = DEFAULT_HORIZON_S,
    seed: int = 0,
    workers: int | None = None,
    observer: PlanObserver | None = None,
) -> Advice:
    """Return how small a batch and a KV cache give about the throughput that a GPU can give.

    The mix of the problem's adapters, at rates that saturate the GPU, is simulated with ever larger `max_num_seqs`.
    Source: the Batching Configuration Advisor of the research line that placer builds on ("Mind the memory gap"):
    throughput flattens past a knee, and memory beyond it is free for more replicas on the same GPU.

    Parameters
    ----------
    problem
        All of its adapters are on the GPU, unless a plan says otherwise.
    plan, gpu, max_loras, max_lora_rank
        Which GPU, and its slots: see `placer.simulation.replica_for`.
    tolerance
        Share of the plateau's throughput that may be given up, in [0, 1).
    itl_p95_ms
        Largest p95 of the time between tokens, > 0; ``None``: the problem's limit, if it has one.
    replicas_per_gpu
        Up to so many replicas on the GPU are compared, 1 to `MOST_REPLICAS`.
    horizon_s
        Simulated seconds of each setting, of which `WARMUP_SHARE` is not measured.
    seed, workers, observer
        As in `placer.plan`.

    Raises
    ------
    InputError
        When a setting is outside of its range, a name is unknown, or the replica does not start.
    """
    _check_settings(tolerance, itl_p95_ms, replicas_per_gpu, horizon_s)
    observer = observer or ignore
    path = None if plan is None else Path(plan)
    workload, replica = replica_for(problem, plan=path, gpu=gpu, max_loras=max_loras, max_lora_rank=max_lora_rank)
    limit_ms = problem.limits.itl_p95_ms if itl_p95_ms is None else itl_p95_ms
    aim = Aim(tolerance, None if limit_ms is None else limit_ms / 1000.0)
    announce_compilation(observer, (replica.engine,))
    run = SaturatedRun(
        saturated_mix(workload), RequestTable.empty(), replica, horizon_s, WARMUP_SHARE * horizon_s, seed
    )
    observer(PhaseStarted("advise", "traffic that saturates the GPU"))
    sizes = batch_sizes(replica)
    run = replace(run, requests=saturate(with_engine(run, max_num_seqs=sizes[-1])).requests)
    observer(PhaseStarted("advise", f"{counted(len(sizes), 'batch size')} up to {sizes[-1]}"))
    sweep = BatchSweep(run, aim, workers=workers)
    sweep.simulate(sizes)
    knee, reachable_tps = sweep.knee(), sweep.reachable_tps()
    budget = None
    replicas: list[SharedReplicas] = []
    if knee is not None and reachable_tps is not None:
        observer(PhaseStarted("advise", f"smaller KV caches of {counted(knee.max_num_seqs, 'sequence')}"))
        budget = kv_budget(run, knee.max_num_seqs, aim, least_tps=sweep.least_tps())
        for count in range(2, replicas_per_gpu + 1):
            observer(PhaseStarted("advise", f"{count} replicas on the GPU"))
            replicas.append(shared_replicas(run, count, aim, alone_tps=reachable_tps, workers=workers))
    return Advice(
        gpu=gpu or replica.gpu.name,
        num_adapters=len(workload.adapters),
        tolerance=tolerance,
        itl_p95_limit_s=aim.itl_p95_limit_s,
        horizon_s=run.horizon_s,
        warmup_s=run.warmup_s,
        seed=seed,
        plateau_tps=max(point.throughput_tps for point in sweep.points),
        reachable_tps=reachable_tps,
        points=sweep.points,
        knee=knee,
        kv_budget=budget,
        replicas=tuple(replicas),
        inputs=problem.inputs,
        **_about(replica),
    )


def _about(replica: Replica) -> dict[str, Any]:
    """Return the fields of the advice that describe the replica as it is now."""
    engine = replica.engine
    return {
        "gpu_memory_gib": replica.gpu.memory_gib,
        "model": replica.model.name,
        "profile": replica.profile.name,
        "max_loras": engine.max_loras,
        "max_lora_rank": engine.max_lora_rank,
        "max_num_seqs": engine.max_num_seqs,
        "gpu_memory_utilization": engine.gpu_memory_utilization,
        "assumption": _assumption(replica),
        "warnings": unmeasured_warnings([replica.profile]),
    }


def _assumption(replica: Replica) -> str:
    """Say what the numbers about several replicas rest on."""
    read_ms = weights_read_ms(replica.profile, replica.model)
    base_ms = replica.profile.step_time.base_ms
    weights = (
        f"the GPU {replica.profile.gpu!r} has no datasheet here, so that all or nothing of a step's constant is its"
        if read_ms is None
        else f"of a step's constant of {base_ms:.1f} ms, reading the weights takes {read_ms:.1f} ms at the datasheet's "
        f"bandwidth, {read_ms / WEIGHTS_SHARE:.1f} ms at the share of it that kernels reach"
    )
    return (
        "Replicas share the GPU's bandwidth and multiprocessors: what a step reads or computes there takes R times as "
        "long while R replicas are in a step at once (assumed: always), what the host does overlaps. The profile has "
        f"times of whole steps and cannot separate the two: {weights}. Least: ideal turns, only what is the GPU's for "
        "certain is shared. Most: nothing overlaps, a step takes R times as long."
    )


def _check_settings(tolerance: float, itl_p95_ms: float | None, replicas_per_gpu: int, horizon_s: float) -> None:
    """Raise InputError for the first setting outside of its range."""
    checks = (
        ("tolerance", tolerance, 0.0 <= tolerance < 1.0, "at least 0 and less than 1"),
        ("itl_p95_ms", itl_p95_ms, itl_p95_ms is None or 0.0 < itl_p95_ms < math.inf, "more than 0"),
        (
            "replicas_per_gpu",
            replicas_per_gpu,
            1 <= replicas_per_gpu <= MOST_REPLICAS,
            f"from 1 to {MOST_REPLICAS}",
        ),
        ("horizon", horizon_s, LEAST_HORIZON_S <= horizon_s < math.inf, f"at least {LEAST_HORIZON_S:g} s"),
    )
    for field, value, holds, range_text in checks:
        if not holds:
            raise InputError(f"`{field}` must be {range_text}. Got {value}.", field=field, value=value)
