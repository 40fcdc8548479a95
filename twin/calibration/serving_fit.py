"""Fit the step-time coefficients to micro-benchmarks and to serving runs together.

A serving run has no step times, but its mean time per output token (TPOT) is a mean of the simulated steps: with the
steps of a simulation held as they are, it is linear in the coefficients. They are not as they were when the
coefficients change - slower steps let more requests run, which slows the steps further - so the answer is linearised
with the measured gain of that feedback, and simulated again: Gauss-Newton iterations over the twin. Requests come
through the load generator's front end (twin/validation/front_end.py), whose stalls are those under the first
coefficients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import joblib
import numpy as np
from numpy.typing import NDArray

from twin.calibration.coverage import RunCoverage, step_kinds
from twin.calibration.observations import StepObservations, Steps
from twin.calibration.step_fit import (
    CoefficientPrior,
    StepFit,
    at_bound,
    bootstrap_intervals,
    error_table,
    fit_step_time,
    relative_design,
    solve_relative,
    step_terms,
)
from twin.errors import InputError
from twin.kernel import run_kernel
from twin.profile import PerformanceProfile
from twin.replica import STEP_TABLE_COLUMNS, ReplicaInputs, ReplicaTrace, build_inputs, num_cached_adapters
from twin.step_time import COEFFICIENT_NAMES
from twin.validation.front_end import FrontEnd, predict_stalls, through_stalls
from twin.validation.regenerate import regenerate_traffic
from twin.validation.replay import replica_of
from twin.validation.runs import MeasuredRun
from twin.worker_processes import start_workers

# Weight of a run's relative error beside that of a micro-benchmark row, divided by the run's gain: what is amplified is
# noisy.
RUN_WEIGHT = 3.0
# Decimals of shares of the time that are told: beyond them is rounding.
SHARE_DECIMALS = 12
# The gain is measured by this change of all coefficients, and kept within what a stable estimate can be.
GAIN_STEP = 0.01
GAIN_RANGE = (0.8, 4.0)
# One iteration follows a run's residual up to this share of its TPOT: far away the linearisation does not hold.
MOST_RESIDUAL = 0.25
# Share of the way that each iteration after the first goes: the noise of the simulations does not swing the answer.
DAMPING = 0.5
NS_PER_MS = 1e6


@dataclass(frozen=True)
class ServingFit:
    """A joint fit.

    Attributes
    ----------
    fit
        The coefficients, with the errors on the micro-benchmarks.
    intervals
        Of the fitted coefficients, from resampling benchmarks and runs, in the last linearisation.
    run_ids, tpot_error_percent
        Of the runs: predicted / measured TPOT - 1 at the end.
    alone_error_percent
        The same under the fit to the micro-benchmarks alone.
    rows
        float64 [N + runs, len(COEFFICIENT_NAMES)], what the last iteration solved: the benchmarks' `relative_design`,
        then a row per run, weighed against them.
    coverage
        What the runs had in them.
    """

    fit: StepFit
    intervals: dict[str, tuple[float, float]]
    run_ids: tuple[str, ...]
    tpot_error_percent: tuple[float, ...]
    alone_error_percent: tuple[float, ...]
    rows: NDArray[np.float64]
    coverage: RunCoverage


@dataclass(frozen=True)
class _Replayed:
    """A run under some coefficients.

    Its TPOT, the mean terms of a token's step, the gain of the feedback, and the share of each kind of step in the time
    of a token's steps.
    """

    tpot_ms: float
    terms: NDArray[np.float64]
    gain: float
    time_shares: dict[str, float]


def fit_with_runs(
    observations: StepObservations,
    runs: Sequence[MeasuredRun],
    profile: PerformanceProfile,
    front_end: FrontEnd,
    *,
    fixed: Mapping[str, float],
    prior: CoefficientPrior | None = None,
    seeds: tuple[int, ...] = (0, 1),
    iterations: int = 8,
    workers: int | None = None,
    on_iteration: Callable[[int, float], None] | None = None,
) -> ServingFit:
    """Fit all coefficients but the `fixed` ones to micro-benchmarks and the TPOT of serving runs.

    Parameters
    ----------
    observations
        The micro-benchmarks.
    runs
        Serving runs of the same model and GPU; those without traffic or TPOT are not used.
    profile
        Memory and load times of the replicas; its step times are not used.
    prior
        What is believed about the coefficients; ``None``: nothing.
    seeds
        Of the regenerated workloads; a run's TPOT is the mean over them.
    on_iteration
        Called after each iteration with its number and the mean absolute TPOT error in percent.

    Raises
    ------
    InputError
        When no run can be used, or a run does not start or completes nothing in the twin.
    """
    chosen = _usable(runs)
    measured_ms = np.array([run.measured.tpot_mean_ms for run in chosen], dtype=np.float64)
    micro = relative_design(observations)
    vector = _as_vector(fit_step_time(observations, fixed=fixed, prior=prior).coefficients)
    tasks = [(run, seed) for run in chosen for seed in seeds]
    run_ids = [run.run_id for run, _ in tasks]
    num_workers = workers or joblib.cpu_count()
    start_workers(num_workers)
    with joblib.Parallel(n_jobs=num_workers) as parallel:
        inputs = parallel(joblib.delayed(_prepare)(run, seed, profile, front_end, vector) for run, seed in tasks)
        errors_percent: list[NDArray[np.float64]] = []
        matrix, target, solution = micro, np.ones(len(micro)), vector
        group = np.concatenate([observations.group, np.array([f"run {run.run_id}" for run in chosen])])
        for iteration in range(iterations):
            replayed = parallel(joblib.delayed(_replay)(*one, vector) for one in zip(run_ids, inputs, strict=True))
            tpot_ms, terms, gain = _means_over_seeds(replayed, len(seeds))
            errors_percent.append(100.0 * (tpot_ms / measured_ms - 1.0))
            if on_iteration is not None:
                on_iteration(iteration, float(np.mean(np.abs(errors_percent[-1]))))
            residual_ms = np.clip(measured_ms - tpot_ms, -MOST_RESIDUAL * measured_ms, MOST_RESIDUAL * measured_ms)
            sensitivity = gain[:, None] * terms
            weight = RUN_WEIGHT / gain / measured_ms
            matrix = np.vstack([micro, weight[:, None] * sensitivity])
            target = np.concatenate([np.ones(len(micro)), weight * (residual_ms + sensitivity @ vector)])
            solution = solve_relative(matrix, target, fixed=fixed, prior=prior)
            vector = solution if iteration == 0 else vector + DAMPING * (solution - vector)
        replayed = parallel(joblib.delayed(_replay)(*one, vector) for one in zip(run_ids, inputs, strict=True))
        tpot_ms, _, _ = _means_over_seeds(replayed, len(seeds))
    coefficients = dict(zip(COEFFICIENT_NAMES, vector.tolist(), strict=True))
    return ServingFit(
        fit=StepFit(coefficients, frozenset(fixed), at_bound(solution, fixed), error_table(observations, coefficients)),
        intervals=bootstrap_intervals(matrix, target, group, fixed=fixed, resamples=200, seed=0, prior=prior),
        run_ids=tuple(run.run_id for run in chosen),
        tpot_error_percent=tuple((100.0 * (tpot_ms / measured_ms - 1.0)).tolist()),
        alone_error_percent=tuple(errors_percent[0].tolist()),
        rows=matrix,
        coverage=_coverage(inputs, replayed, len(seeds)),
    )


def simulated_steps(table: NDArray[np.int64], inputs: ReplicaInputs) -> Steps:
    """Return the simulated steps of a step table (see `STEP_TABLE_COLUMNS`)."""
    column = {name: table[:, index].astype(np.float64) for index, name in enumerate(STEP_TABLE_COLUMNS)}
    return Steps(
        tokens=column["tokens"],
        requests=column["requests"],
        context_tokens=column["context_tokens"],
        adapters=column["adapters"],
        prefill=column["has_prefill"],
        changed=column["is_batch_changed"],
        waiting=column["waiting"],
        slots=np.full(len(table), inputs.num_slots, dtype=np.int64),
        max_rank=np.full(len(table), inputs.max_lora_rank if inputs.num_slots else 0, dtype=np.int64),
        cached_adapters=np.full(len(table), float(num_cached_adapters(inputs))),
    )


def _prepare(
    run: MeasuredRun, seed: int, profile: PerformanceProfile, front_end: FrontEnd, vector: NDArray[np.float64]
) -> ReplicaInputs:
    """Return a run's inputs, its requests through the front end's stalls under the first coefficients."""
    assert run.traffic is not None
    workload, requests = regenerate_traffic(run.traffic, run_id=run.run_id, seed=seed, horizon_s=run.total_time_s)
    replica = replica_of(run, profile)
    verdict = replica.memory()
    if not verdict.starts:
        raise InputError(
            f"run {run.run_id!r} must start in the twin, as it did when measured. On {profile.gpu_memory_gib:g} GiB it "
            f"does not: {verdict.message}",
            field="run_id",
            value=run.run_id,
            hint="check the memory of the GPU, or leave the run out of the table",
        )
    inputs = build_inputs(workload, requests, replica, horizon_s=run.total_time_s, hash_seed=seed)
    inputs = replace(inputs, step_coefficients=vector)
    trace = run_kernel(inputs)
    _require_tpot(run.run_id, trace)
    if not run.is_polled:
        return inputs
    return through_stalls(inputs, predict_stalls(inputs, trace, front_end))


def _usable(runs: Sequence[MeasuredRun]) -> list[MeasuredRun]:
    """Return the runs with traffic and TPOT (InputError: there is none)."""
    usable = [run for run in runs if run.traffic is not None and run.measured.tpot_mean_ms]
    if not usable:
        raise InputError(
            f"at least one serving run must have a time per output token and its traffic. None of {len(runs)} has.",
            field="tpot_mean_ms",
            hint="give runs that served requests, or fit without runs",
        )
    return usable


def _require_tpot(run_id: str, *traces: ReplicaTrace) -> None:
    """Raise InputError unless each simulation of a run has a time per output token."""
    if not all(_measures_tpot(trace).any() for trace in traces):
        raise InputError(
            f"run {run_id!r} must complete requests in the twin. No request of two tokens or more did.",
            field="run_id",
            value=run_id,
            hint="check `total_time` and `rates_counts`, or leave the run out of the table",
        )


def _replay(run_id: str, inputs: ReplicaInputs, vector: NDArray[np.float64]) -> _Replayed:
    """Simulate one run under `vector` (InputError: it completes nothing)."""
    trace = run_kernel(replace(inputs, step_coefficients=vector), keep_step_table=True)
    shifted = run_kernel(replace(inputs, step_coefficients=vector * (1.0 + GAIN_STEP)))
    _require_tpot(run_id, trace, shifted)
    tpot_ms = _tpot_ms(trace)
    gain = float(np.log(_tpot_ms(shifted) / tpot_ms) / np.log(1.0 + GAIN_STEP))
    assert trace.step_table is not None
    steps = simulated_steps(trace.step_table, inputs)
    terms = step_terms(steps)
    times_ms = terms @ vector
    kinds = step_kinds(steps)
    of_kinds = _token_means(trace, np.stack([times_ms, *(times_ms * occurs for occurs in kinds.values())], axis=1))
    return _Replayed(
        tpot_ms=tpot_ms,
        terms=_token_means(trace, terms),
        gain=min(max(gain, GAIN_RANGE[0]), GAIN_RANGE[1]),
        # Differences of running sums: kinds with the same steps must have the same share.
        time_shares=dict(zip(kinds, np.round(of_kinds[1:] / of_kinds[0], SHARE_DECIMALS).tolist(), strict=True)),
    )


def _measures_tpot(trace: ReplicaTrace) -> NDArray[np.bool_]:
    """Return bool [N]: requests that completed with at least two tokens."""
    return (trace.finish_ns >= 0) & (trace.generated_tokens > 1)


def _tpot_ms(trace: ReplicaTrace) -> float:
    chosen = _measures_tpot(trace)
    gaps = trace.generated_tokens[chosen] - 1
    return float(((trace.finish_ns - trace.first_token_ns)[chosen] / gaps).mean()) / NS_PER_MS


def _token_means(trace: ReplicaTrace, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return float64 [C]: mean over requests of what `values`, float64 [steps, C], add up to in a token's time.

    A request's TPOT is the time of the steps after its first token, over its tokens but one; adapter loads, which no
    coefficient is about, are the rest.
    """
    assert trace.step_table is not None
    cumulative = np.vstack([np.zeros(values.shape[1]), np.cumsum(values, axis=0)])
    chosen = _measures_tpot(trace)
    end_ns = trace.step_table[:, STEP_TABLE_COLUMNS.index("end_ns")]
    after_first = np.searchsorted(end_ns, trace.first_token_ns[chosen]) + 1
    after_last = np.searchsorted(end_ns, trace.finish_ns[chosen]) + 1
    gaps = trace.generated_tokens[chosen] - 1
    means: NDArray[np.float64] = ((cumulative[after_last] - cumulative[after_first]) / gaps[:, None]).mean(axis=0)
    return means


def _means_over_seeds(
    replayed: Sequence[_Replayed], num_seeds: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return TPOT [runs], terms [runs, coefficients] and gain [runs], each the mean over the seeds of a run."""
    tpot_ms = np.array([one.tpot_ms for one in replayed]).reshape(-1, num_seeds).mean(axis=1)
    terms = np.stack([one.terms for one in replayed]).reshape(-1, num_seeds, len(COEFFICIENT_NAMES)).mean(axis=1)
    gain = np.array([one.gain for one in replayed]).reshape(-1, num_seeds).mean(axis=1)
    return tpot_ms, terms, gain


def _coverage(inputs: Sequence[ReplicaInputs], replayed: Sequence[_Replayed], num_seeds: int) -> RunCoverage:
    """Return what the runs had in them: shares of the time are means over the seeds of a run."""
    shares = np.array([list(one.time_shares.values()) for one in replayed])
    largest = shares.reshape(-1, num_seeds, shares.shape[1]).mean(axis=1).max(axis=0)
    return RunCoverage(
        time_shares=dict(zip(replayed[0].time_shares, largest.tolist(), strict=True)),
        slots=tuple(sorted({one.num_slots for one in inputs})),
        max_ranks=tuple(sorted({one.max_lora_rank for one in inputs if one.num_slots})),
    )


def _as_vector(coefficients: Mapping[str, float]) -> NDArray[np.float64]:
    return np.array([coefficients[name] for name in COEFFICIENT_NAMES])
