"""Judge what the twin simulated: starvation, latency limits, and how near a limit a replica is."""

from __future__ import annotations

import math
from collections.abc import Iterator

from placer.plan_document import LimitName, Verification
from solvers.problem_file import Limits
from twin.report import SimulationReport

LISTED_ADAPTERS = 5
# An accepted replica is near a limit, where chance may decide, when ...
# ... its throughput ratio is above the least that is accepted by less than this: seeds differ by up to 0.03;
NEAR_THROUGHPUT = 0.05
# ... more requests than this wait on average: slots, KV cache or sequences run out at times. Where they do not, it is
# below 0.1, which is arrivals that wait for the next step;
NEAR_QUEUE = 0.1
# ... its KV cache was used up to this share;
NEAR_KV_USAGE = 0.9
# ... a latency is above this share of its limit;
NEAR_LATENCY = 0.9
# ... there are fewer slots than adapters, and about this share of the slots is in use on average. Two to three times as
# many requests run when all slots are taken, and so replicas had that second regime from a share of 0.41 on.
NEAR_SLOTS = 0.3


def judge_report(report: SimulationReport, limits: Limits, *, num_slots: int) -> Verification:
    """Return the verdict about a simulated replica: starvation by both tests, and the latency limits.

    Parameters
    ----------
    report, limits
        What was simulated, and what it must keep.
    num_slots
        Of the replica; 0: LoRA is off.
    """
    reasons = tuple(_reasons(report, limits))
    return Verification(
        engine=report.engine,
        horizon_s=report.horizon_s,
        warmup_s=report.warmup_s,
        seed=report.seed,
        offered_tps=report.offered_tps,
        throughput_tps=report.throughput_tps,
        throughput_ratio=report.throughput_ratio,
        starved_adapters=report.starved_adapters,
        itl_p95_s=report.itl.p95_s,
        ttft_p95_s=report.ttft.p95_s,
        kv_usage_max=report.kv_usage_max,
        verdict="rejected" if reasons else "accepted",
        reasons=reasons,
        near_limits=() if reasons else tuple(_near_limits(report, limits, num_slots)),
        worst_service_ratio=min((adapter.served_ratio for adapter in report.adapters), default=None),
    )


def active_adapters(report: SimulationReport) -> float:
    """Return how many adapters are active on average: those with a Poisson arrival within a request's time."""
    if report.completed_rps == 0:
        return 0.0
    # Little's law.
    residence_s = report.running_mean / report.completed_rps
    window_s = report.horizon_s - report.warmup_s
    return sum(-math.expm1(-adapter.requests_arrived / window_s * residence_s) for adapter in report.adapters)


def _near_limits(report: SimulationReport, limits: Limits, num_slots: int) -> Iterator[LimitName]:
    if report.served_ratio < 1.0 - limits.starvation_tolerance + NEAR_THROUGHPUT:
        yield "throughput"
    if report.waiting_mean > NEAR_QUEUE:
        yield "queue"
    if report.kv_usage_max > NEAR_KV_USAGE:
        yield "KV cache"
    if 0 < num_slots < len(report.adapters) and active_adapters(report) > NEAR_SLOTS * num_slots:
        yield "slots"
    pairs = ((report.itl.p95_s, limits.itl_p95_ms), (report.ttft.p95_s, limits.ttft_p95_ms))
    if any(
        limit_ms is not None and value_s is not None and value_s * 1000.0 > NEAR_LATENCY * limit_ms
        for value_s, limit_ms in pairs
    ):
        yield "latency"


def _reasons(report: SimulationReport, limits: Limits) -> list[str]:
    least = 1.0 - limits.starvation_tolerance
    reasons = []
    if report.is_starved:
        reasons.append(
            f"the replica starves: {report.throughput_tps:,.0f} of {report.offered_tps:,.0f} offered tokens/s "
            f"({report.throughput_ratio:.3f}, at least {least:g})"
        )
    starved = report.starved_adapters
    if starved:
        shown = ", ".join(starved[:LISTED_ADAPTERS])
        more = f" and {len(starved) - LISTED_ADAPTERS} more" if len(starved) > LISTED_ADAPTERS else ""
        verb = "adapter starves" if len(starved) == 1 else "adapters starve"
        reasons.append(f"{len(starved)} {verb}: {shown}{more}")
    for name, value_s, limit_ms in (
        ("ITL", report.itl.p95_s, limits.itl_p95_ms),
        ("TTFT", report.ttft.p95_s, limits.ttft_p95_ms),
    ):
        if limit_ms is not None and value_s is not None and value_s * 1000.0 > limit_ms:
            reasons.append(f"{name} p95 {value_s * 1000.0:.1f} ms is above {limit_ms:g} ms")
    return reasons
