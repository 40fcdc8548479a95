"""Is a replica's outcome a matter of chance? Simulate it under several seeds, and once more after a backlog.

Seeds alone find two regimes only where chance visits both within the horizon. Of two regimes that last, a replica that
starts empty shows the one with few requests; one that starts with a backlog shows the other, under the same arrivals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from twin.activity import Activity, activity_at
from twin.drawn_traffic import DrawnTraffic
from twin.errors import InputError
from twin.replica import Replica, ReplicaInputs
from twin.report import SimulationReport
from twin.simulate import EngineName, Simulation, simulate_in_detail
from twin.stability_report import REGIME_SHARE, SeedOutcome, SlotUse, StabilityReport, judge_runs
from twin.trace import purpose_generator
from twin.workload import NANOSECONDS, RequestTable, Workload

NUM_FURTHER_SEEDS = 3
DEFAULT_SEEDS = tuple(range(1 + NUM_FURTHER_SEEDS))
# Seconds of traffic in the backlog: enough to fill the slots of every replica known to have two regimes (30 s are not),
# and served long before the second half of the window, unless the replica cannot keep up anyway.
BACKLOG_S = 60.0
# ... and at most this share of the horizon, so that a short one has time to serve it.
MOST_BACKLOG_SHARE = 0.1
# Arrivals of a trace are facts, which a seed cannot draw anew. Moving each by up to this does not change the traffic,
# but which step a request joins and which ones it meets; an outcome that hinges on that is not the trace's.
ARRIVAL_JITTER_S = 1.0
# Times within the measured window at which a run is looked at.
NUM_TIMES = 512
# Parts of the window whose means give the error of its mean.
NUM_ERROR_PARTS = 8
# Parts of the second half of the window, long after a backlog: most of a run, even where it recovers in the end.
NUM_LATE_PARTS = 4
# Parts of the window in which a regime is looked for, and how long each is at least: several times what a request
# takes.
MOST_REGIME_PARTS = 16
LEAST_PART_S = 90.0


def assess_stability(
    workload: Workload,
    replica: Replica,
    *,
    horizon_s: float,
    warmup_s: float = 0.0,
    seeds: Sequence[int] = DEFAULT_SEEDS,
    engine: EngineName = "fast",
    starvation_tolerance: float = 0.1,
    known: SeedOutcome | None = None,
    traffic: DrawnTraffic | None = None,
    on_report: Callable[[SimulationReport], None] | None = None,
) -> StabilityReport:
    """Simulate a replica once per seed, and once more after a backlog; say whether its outcome is a matter of chance.

    Parameters
    ----------
    workload, replica, horizon_s, warmup_s, engine, starvation_tolerance
        See `twin.simulate.simulate`. The requests of a trace come as they are for the first seed; for the others, each
        arrives up to `ARRIVAL_JITTER_S` sooner or later.
    seeds
        At least one, all different and >= 0.
    known
        What `seed_outcome` says of the first seed, where that was simulated already: it is not simulated again.
    traffic
        Draws the requests under the first seed, and may have done so; ``None``: they are drawn here.
    on_report
        Called with the report of each seed that is simulated, in order; it has no latencies of single adapters.

    Raises
    ------
    InputError
        When the seeds are none or repeat, and for what `simulate` refuses.
    TwinError
        When the replica does not start.
    """
    assert known is None or known.seed == seeds[0], known
    assert traffic is None or traffic.seed == seeds[0], traffic.seed
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(
            f"`seeds` must be at least one, all different. Got {list(seeds)}.", field="seeds", value=list(seeds)
        )

    def run(seed: int, requests: RequestTable) -> Simulation:
        return simulate_in_detail(
            workload,
            replica,
            engine=engine,
            horizon_s=horizon_s,
            warmup_s=warmup_s,
            seed=seed,
            starvation_tolerance=starvation_tolerance,
            requests=requests,
            with_adapter_latencies=False,
        )

    def first_requests() -> RequestTable:
        if traffic is not None:
            return traffic.requests(workload, horizon_s=horizon_s)
        return workload.requests(horizon_s=horizon_s, seed=seeds[0])

    outcomes: list[SeedOutcome] = [] if known is None else [known]
    drawn: dict[int, RequestTable] = {}
    for seed in seeds[len(outcomes) :]:
        drawn[seed] = first_requests() if seed == seeds[0] else _requests(workload, horizon_s, seed)
        simulation = run(seed, drawn[seed])
        outcomes.append(seed_outcome(simulation))
        if on_report is not None:
            on_report(simulation.report)
    # The regime with more requests is looked for from the run that shows least of it.
    calmest = min(outcomes, key=lambda outcome: outcome.running_mean).seed
    backlog_s = min(BACKLOG_S, MOST_BACKLOG_SHARE * horizon_s)
    requests = drawn[calmest] if calmest in drawn else first_requests()
    after_backlog = None
    if len(requests):
        after_backlog = seed_outcome(run(calmest, _with_backlog(requests, backlog_s / horizon_s)))
    return _report(workload, outcomes, after_backlog, horizon_s=horizon_s, warmup_s=warmup_s, backlog_s=backlog_s)


def _requests(workload: Workload, horizon_s: float, seed: int) -> RequestTable:
    """Return the requests of a further seed; those of a trace are jittered."""
    if workload.trace is None:
        return workload.requests(horizon_s=horizon_s, seed=seed)
    trace = workload.trace
    most_ns = round(ARRIVAL_JITTER_S * NANOSECONDS)
    shifts_ns = purpose_generator("jitter", seed).integers(-most_ns, most_ns, len(trace), endpoint=True)
    # Reflected at the start, which nothing can precede.
    arrival_ns = np.abs(trace.arrival_ns + shifts_ns)
    order = np.argsort(arrival_ns, kind="stable")
    moved = RequestTable(
        arrival_ns[order], trace.adapter[order], trace.prompt_tokens[order], trace.output_tokens[order]
    )
    return moved.until(horizon_s)


def _with_backlog(requests: RequestTable, share: float) -> RequestTable:
    """Return `requests` with that share of them, the first ones, once more at the start: a replica that was away."""
    count = math.ceil(share * len(requests))
    rows = np.concatenate([np.arange(count), np.arange(len(requests))])
    arrival_ns = requests.arrival_ns[rows]
    arrival_ns[:count] = 0
    return RequestTable(arrival_ns, requests.adapter[rows], requests.prompt_tokens[rows], requests.output_tokens[rows])


def seed_outcome(simulation: Simulation) -> SeedOutcome:
    """Return what is compared of a run with those of other seeds."""
    inputs, report = simulation.inputs, simulation.report
    warmup_ns = round(report.warmup_s * NANOSECONDS)
    times_ns = np.linspace(warmup_ns, simulation.trace.end_ns, NUM_TIMES, endpoint=False).astype(np.int64)
    activity = activity_at(inputs, simulation.trace, times_ns)
    late = activity.running[NUM_TIMES // 2 :]
    window_s = report.horizon_s - report.warmup_s
    return SeedOutcome(
        seed=report.seed,
        offered_tps=report.offered_tps,
        throughput_ratio=report.throughput_ratio,
        throughput_error=report.throughput_ratio * _relative_error_of_ratio(simulation, warmup_ns),
        is_starved=report.is_starved,
        num_starved_adapters=len(report.starved_adapters),
        running_mean=report.running_mean,
        running_error=_error_of_mean(activity.running.reshape(NUM_ERROR_PARTS, -1).mean(axis=1)),
        late_running=tuple(late.reshape(NUM_LATE_PARTS, -1).mean(axis=1).tolist()),
        slots=_slot_use(activity, inputs, num_parts=max(1, min(MOST_REGIME_PARTS, int(window_s / LEAST_PART_S)))),
    )


def _relative_error_of_ratio(simulation: Simulation, warmup_ns: int) -> float:
    """Return the standard error of completed / offered tokens, from those of parts of the window."""
    inputs, trace = simulation.inputs, simulation.trace
    tokens = inputs.prompt_tokens.astype(np.int64) + inputs.output_tokens
    # Whole nanoseconds: a time is at or after an edge when it is at or after the next whole one.
    edges_ns = np.ceil(np.linspace(warmup_ns, trace.end_ns, NUM_ERROR_PARTS + 1)).astype(np.int64)
    # What arrives is sorted. What is finished at the very end of the window belongs to the last part.
    before = np.searchsorted(inputs.arrival_ns, edges_ns[:-1])
    arrived = np.diff(np.append(0, np.cumsum(tokens))[np.append(before, len(tokens))])
    since = np.array([tokens[trace.finish_ns >= edge_ns].sum() for edge_ns in edges_ns[:-1]])
    finished = since - np.append(since[1:], 0)
    return math.hypot(
        *(_error_of_mean(totals) / totals.mean() if totals.any() else 0.0 for totals in (arrived, finished))
    )


def _error_of_mean(means: NDArray[np.float64]) -> float:
    """Return the standard error of a mean from the means of equal parts."""
    return float(means.std(ddof=1)) / math.sqrt(len(means))


def _slot_use(activity: Activity, inputs: ReplicaInputs, *, num_parts: int) -> SlotUse | None:
    if not 0 < inputs.num_slots < len(inputs.adapter_hash):
        return None
    is_taken = activity.active_adapters >= inputs.num_slots
    shares = np.array([part.mean() for part in np.array_split(is_taken, num_parts)])
    running = np.array([part.mean() for part in np.array_split(activity.running, num_parts)])
    taken, free = running[shares >= REGIME_SHARE], running[shares <= 1.0 - REGIME_SHARE]
    return SlotUse(
        taken_share=float(is_taken.mean()),
        num_taken_parts=len(taken),
        num_free_parts=len(free),
        running_while_taken=float(taken.mean()) if len(taken) else None,
        running_while_free=float(free.mean()) if len(free) else None,
    )


def _report(
    workload: Workload,
    runs: Sequence[SeedOutcome],
    after_backlog: SeedOutcome | None,
    *,
    horizon_s: float,
    warmup_s: float,
    backlog_s: float,
) -> StabilityReport:
    ratios = [run.throughput_ratio for run in runs]
    means = [run.running_mean for run in runs]
    reasons = judge_runs(runs, after_backlog)
    is_drawn = workload.trace is None
    return StabilityReport(
        horizon_s=horizon_s,
        warmup_s=warmup_s,
        varies="arrivals, lengths, load order" if is_drawn else f"arrivals by {ARRIVAL_JITTER_S:g} s, load order",
        runs=tuple(runs),
        backlog_s=backlog_s,
        after_backlog=after_backlog,
        throughput_spread=max(ratios) - min(ratios),
        running_factor=max(means) / min(means) if min(means) > 0 else None,
        num_starved=sum(run.has_starvation for run in runs),
        is_metastable=bool(reasons),
        reasons=reasons,
    )
