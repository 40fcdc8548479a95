"""What a replica delivers at most: simulated under somewhat more traffic than it can serve."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from twin.errors import InputError
from twin.kernel import run_kernel
from twin.parallel import each_in_parallel
from twin.replica import Replica, build_inputs
from twin.report import SimulationReport, build_report
from twin.workload import RequestTable, Workload

# Throughput / offered of traffic that saturates without a queue so long that looking through it costs time by itself.
LEAST_RATIO, MOST_RATIO = 0.8, 0.93
_AIMED_RATIO = 0.88
# What counts as throughput / offered where next to nothing is finished.
_SMALLEST_RATIO = 0.01
# Factors by which traffic grows that is served whole, or nearly.
_FAR, _NEAR = 2.0, 1.25
_NEARLY_WHOLE = 0.97
_MOST_ROUNDS = 60
_MOST_STRETCHES = 6


@dataclass(frozen=True)
class SaturatedRun:
    """A replica with its traffic, and what about it differs from what its settings and profile say.

    Attributes
    ----------
    requests
        Of `workload`'s adapters, more than the replica can serve.
    warmup_s
        Seconds at the start in which the batch fills; not measured.
    step_coefficients
        Instead of the profile's; float64, see twin/step_time.py.
    num_blocks
        KV blocks instead of those of the memory formula, null block included.
    """

    workload: Workload
    requests: RequestTable
    replica: Replica
    horizon_s: float
    warmup_s: float
    seed: int
    step_coefficients: NDArray[np.float64] | None = None
    num_blocks: int | None = None


def saturated_mix(workload: Workload) -> Workload:
    """Return the mix of a workload: its adapters' mean rates and lengths, constant over time, also of a trace.

    Raises
    ------
    InputError
        When no adapter has any traffic.
    """
    if sum(adapter.rate_rps for adapter in workload.adapters) <= 0.0:
        raise InputError(
            "a workload must have traffic to saturate a GPU with. All rates are 0.",
            field="adapters",
            hint="give at least one adapter a rate_rps above 0",
        )
    return Workload(adapters=workload.adapters)


def saturate(run: SaturatedRun) -> SaturatedRun:
    """Return `run` with the requests of its mix, at rates of which `LEAST_RATIO` to `MOST_RATIO` are served.

    Its requests are not read. All rates are multiplied by one factor.
    """
    factor = 1.0
    for _ in range(_MOST_ROUNDS):
        requests = run.workload.scaled(factor).requests(horizon_s=run.horizon_s, seed=run.seed)
        scaled = replace(run, requests=requests)
        ratio = simulate_saturated(scaled).throughput_ratio
        if ratio > MOST_RATIO or not len(requests):
            factor *= _FAR if ratio > _NEARLY_WHOLE or not len(requests) else _NEAR
        elif ratio >= LEAST_RATIO:
            break
        else:
            factor *= max(ratio, _SMALLEST_RATIO) / _AIMED_RATIO
    return scaled


def simulate_lightly(run: SaturatedRun) -> SimulationReport:
    """Return the report of a replica under its first requests, spread such that few more arrive than it serves.

    `run` has the traffic that saturates another setting of the replica, one that serves about as much or more. All
    settings thus get the same requests in the same order.
    """
    for _ in range(_MOST_STRETCHES):
        report = simulate_saturated(run)
        if report.throughput_ratio >= LEAST_RATIO:
            break
        stretch = _AIMED_RATIO / max(report.throughput_ratio, _SMALLEST_RATIO)
        arrival_ns = np.round(run.requests.arrival_ns * stretch).astype(np.int64)
        run = replace(run, requests=replace(run.requests, arrival_ns=arrival_ns).until(run.horizon_s))
    return report


def simulate_saturated(run: SaturatedRun) -> SimulationReport:
    """Return what the compiled engine says about a replica.

    Raises
    ------
    TwinError
        When the replica does not start, or its KV blocks hold less than one request.
    """
    inputs = build_inputs(run.workload, run.requests, run.replica, horizon_s=run.horizon_s, hash_seed=run.seed)
    if run.step_coefficients is not None:
        inputs = replace(inputs, step_coefficients=run.step_coefficients)
    if run.num_blocks is not None:
        inputs = replace(inputs, num_blocks=run.num_blocks)
    return build_report(
        run.workload,
        inputs,
        run_kernel(inputs),
        engine="fast",
        seed=run.seed,
        warmup_s=run.warmup_s,
        starvation_tolerance=0.1,
        with_adapters=False,
    )


def simulate_all(runs: Iterable[SaturatedRun], *, workers: int | None) -> list[SimulationReport]:
    """Return what `simulate_lightly` says about runs, in their order, with `workers` at once (``None``: all cores)."""
    subjects = list(runs)
    found = dict(each_in_parallel(simulate_lightly, subjects, workers=workers, backend="threading"))
    return [found[index] for index in range(len(subjects))]


def longest_request_tokens(run: SaturatedRun) -> int:
    """Return the tokens of the longest request; the engine ends requests at `max_model_len`."""
    tokens = run.requests.prompt_tokens.astype(np.int64) + run.requests.output_tokens
    engine, model = run.replica.engine, run.replica.model
    return min(int(tokens.max(initial=1)), engine.max_model_len or model.max_model_len)
