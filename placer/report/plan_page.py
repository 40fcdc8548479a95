"""The page of a plan: its numbers in columns, rounded to what is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from placer.files import ProblemFromFile
from placer.plan_document import Plan, PlannedGpu, Verification
from placer.plan_wording import rejection_lines, scenario_lines, source_lines, summary_lines
from placer.recheck import replica_of
from placer.report.page import Page
from placer.report.series import GpuSeries
from placer.why_not_document import WhyNot
from placer.why_not_wording import known_lines, shortfall_lines, unplaceable_line, verdict_line
from placer.wording import counted
from twin.memory import GIB
from twin.replica import Replica
from twin.workload import Workload

SCRIPTS = ("fleet.js", "detail.js", "plan.js")


def plan_page(
    plan: Plan,
    problem: ProblemFromFile,
    *,
    name: str,
    series: Mapping[str, GpuSeries] | None = None,
    one_fewer: WhyNot | None = None,
    warnings: Sequence[str] = (),
) -> Page:
    """Return the page of a plan.

    Parameters
    ----------
    plan, problem
        What was planned, and for what, divided as the plan does.
    name
        Of the plan's file.
    series
        What the twin says about each GPU over time, by name; ``None``: it was not asked.
    one_fewer
        Whether one GPU less is enough; ``None``: nobody asked.
    warnings
        About the files, beside those of the plan.

    Raises
    ------
    InputError
        When the plan's adapters or GPU types are not in the problem.
    """
    verdicts = [(gpu.name, gpu.verification) for gpu in plan.gpus if gpu.verification is not None]
    replicas = [replica_of(problem, gpu) for gpu in plan.gpus]
    adapters = _adapter_columns(plan, [workload for workload, _ in replicas])
    summary = summary_lines(plan)
    bounds = [line for line in summary if line.startswith("lower bound")]
    data = {
        "types": list(plan.configuration.gpu_types),
        "ranks": sorted(set(adapters["rank"])),
        "threshold": plan.configuration.threshold,
        "cards": _cards(plan),
        "warnings": [*warnings, *rejection_lines(plan), *plan.warnings, *_disagreements(plan, series)],
        "gpus": _gpu_columns(plan, [replica for _, replica in replicas]),
        "adapters": adapters,
        "series": None if series is None else [_series_record(gpu, series.get(gpu.name)) for gpu in plan.gpus],
        "bounds": bounds or ["No lower bound is known."],
        "one_fewer": None if one_fewer is None else one_fewer_lines(one_fewer),
        "summary": [*(line for line in summary if line not in bounds), *scenario_lines(verdicts)],
        "sources": source_lines(plan),
    }
    lines = [*summary, *plan.warnings]
    return Page("Plan", f"{name}: {summary[0]}", SCRIPTS, "startPlan", data, lines)


def one_fewer_lines(answer: WhyNot) -> list[str]:
    """Say what would change with one GPU less: whether it can do, and if not, what is missing."""
    lines = [verdict_line(answer)]
    lines += [unplaceable_line(entry.name, entry.rank, entry.share) for entry in answer.unplaceable]
    if answer.shortfall is not None:
        lines += shortfall_lines(answer.shortfall, answer.num_gpus)
    lines += [f"{attempt.step}: {attempt.outcome}" for attempt in answer.attempts]
    return [*lines, *known_lines(answer), *answer.warnings]


def verdict_name(gpu: PlannedGpu) -> str:
    """Return what the page calls a GPU: accepted, metastable (accepted by chance), rejected, or unverified."""
    twin = gpu.verification
    if twin is None:
        return "unverified"
    return "metastable" if twin.is_accepted and twin.is_metastable else twin.verdict


def _cards(plan: Plan) -> list[tuple[str, str, str]]:
    """Return the numbers on top of the page: name, value, and what to know about it."""
    bound = plan.lower_bound
    verdicts = [verdict_name(gpu) for gpu in plan.gpus]
    kinds = [(kind, verdicts.count(kind)) for kind in ("accepted", "metastable", "rejected", "unverified")]
    adapters = {name for gpu in plan.gpus for name in gpu.adapters}
    offered_tps = sum(gpu.offered_tps for gpu in plan.gpus)
    cards = [
        ("GPUs", f"{plan.num_gpus:,}", f"{plan.cost_per_hour:,.6g} per hour"),
        ("verdict of the twin", plan.verdict, ", ".join(f"{count:,} {kind}" for kind, count in kinds if count)),
        ("adapters", f"{len(adapters):,}", f"{offered_tps:,.0f} tokens/s offered"),
        (
            "lower bound",
            "none" if bound is None else f"{bound.value:,}",
            "" if bound is None else f"{bound.proof}, of the {bound.model}",
        ),
        ("gap", "none" if plan.gap is None else f"{plan.gap:.0%}", "GPUs above the bound, of all"),
    ]
    proven = plan.surrogate_bound
    if proven is not None:
        cards.append(
            ("of what the surrogate accepts", f"at least {proven.value:,}", f"{proven.proof}, of the surrogate")
        )
    rooms = [gpu.headroom for gpu in plan.gpus if gpu.headroom is not None]
    if rooms:
        cards.append(("least headroom", f"{min(rooms):.0%}" if min(rooms) >= 0 else "< 0%", "by the surrogate"))
    if plan.moves is not None:
        moved = f"{plan.moves.num_moved:,} of {plan.moves.num_placed:,}"
        cards.append(("adapters that move", moved, f"{plan.moves.loaded_mib:,.0f} MiB to load"))
    return cards


def _gpu_columns(plan: Plan, replicas: Sequence[Replica]) -> dict[str, list[Any]]:
    types = list(plan.configuration.gpu_types)
    rows = [
        _gpu_row(gpu, types.index(gpu.gpu_type)) | _memory(replica)
        for gpu, replica in zip(plan.gpus, replicas, strict=True)
    ]
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else _NO_COLUMNS)}


_NO_COLUMNS = ("name", "headroom", "offered", "type", "verdict", "risk")


def _gpu_row(gpu: PlannedGpu, gpu_type: int) -> dict[str, Any]:
    twin = gpu.verification
    return {
        "name": gpu.name,
        "type": gpu_type,
        "num_slots": gpu.engine.max_loras,
        "max_rank": gpu.engine.max_lora_rank,
        "kv_tokens": gpu.kv_tokens,
        "offered": round(gpu.offered_tps),
        "predicted": round(gpu.predicted.throughput_tps),
        "outside": int(gpu.predicted.is_outside_domain),
        "risk": round(1000 * gpu.predicted.starvation_probability),
        "headroom": None if gpu.headroom is None else round(100 * gpu.headroom, 1),
        "verdict": verdict_name(gpu),
        "simulated": None if twin is None else round(twin.throughput_tps),
        "kv_max": None if twin is None else round(100 * twin.kv_usage_max),
        "twin": None if twin is None else _twin_record(twin),
    }


def _twin_record(twin: Verification) -> dict[str, Any]:
    scenario = "" if twin.scenario is None else f", scenario {twin.scenario}"
    rejected = [f"rejected under scenario {name}" for name in twin.rejected_scenarios]
    return {
        "ratio": round(twin.throughput_ratio, 3),
        "itl_ms": None if twin.itl_p95_s is None else round(1000 * twin.itl_p95_s),
        "ttft_ms": None if twin.ttft_p95_s is None else round(1000 * twin.ttft_p95_s),
        "service": None if twin.worst_service_ratio is None else round(twin.worst_service_ratio, 3),
        "near": list(twin.near_limits),
        "reasons": [*twin.reasons, *rejected],
        "stability": [] if twin.stability is None else list(twin.stability.reasons),
        "window": f"{twin.engine} engine, {twin.horizon_s:g} s ({twin.warmup_s:g} s of it warm-up), "
        f"seed {twin.seed}{scenario}",
    }


def _memory(replica: Replica) -> dict[str, float]:
    """Return what takes the memory of a GPU, in GiB: weights, slots, KV cache, and all the rest, used or not."""
    found = replica.memory()
    parts = {"weights": found.weights_bytes, "slots": found.slots_bytes, "kv": found.kv_bytes}
    rest = max(replica.gpu.memory_gib * GIB - sum(parts.values()), 0.0)
    return {name: round(size / GIB, 2) for name, size in (parts | {"rest": rest}).items()}


def _adapter_columns(plan: Plan, workloads: Sequence[Workload]) -> dict[str, list[Any]]:
    """Return the adapters of all GPUs, one after the other; those of GPU g begin at ``first[g]``."""
    columns: dict[str, list[Any]] = {name: [] for name in ("name", "rank", "rps", "tps", "share")}
    first = [0]
    for gpu, workload in zip(plan.gpus, workloads, strict=True):
        shares = {entry.adapter: entry.share for entry in gpu.shares}
        for name, adapter in zip(gpu.adapters, workload.adapters, strict=True):
            columns["name"].append(name)
            columns["rank"].append(adapter.rank)
            columns["rps"].append(_rounded(adapter.rate_rps))
            columns["tps"].append(_rounded(adapter.offered_tps))
            columns["share"].append(round(1000 * shares.get(name, 1.0)))
        first.append(len(columns["name"]))
    return {"first": first, **columns}


def _rounded(value: float) -> float:
    """Return four significant digits: what is shown."""
    return float(f"{value:.4g}")


def _series_record(gpu: PlannedGpu, series: GpuSeries | None) -> dict[str, Any] | None:
    if series is None:
        return None
    planned = gpu.verification
    agrees = "" if planned is None else f"The verdict is {series.verdict}, as in the plan."
    if planned is not None and planned.verdict != series.verdict:
        agrees = f"THIS SIMULATION SAYS {series.verdict}, and the plan {planned.verdict}."
    return {
        "horizon": series.horizon_s,
        "warmup": series.warmup_s,
        "seed": series.seed,
        "scenario": series.scenario,
        "running": series.running,
        "waiting": series.waiting,
        "kv": series.kv_permille,
        "tokens": series.tokens,
        "loads": series.loads,
        "served": series.served_permille,
        "adapter_loads": series.adapter_loads,
        "agrees": agrees,
    }


def _disagreements(plan: Plan, series: Mapping[str, GpuSeries] | None) -> list[str]:
    """Say which GPUs the simulation of the report judges in another way than the plan."""
    found = [
        gpu.name
        for gpu in plan.gpus
        if gpu.verification is not None
        and (own := (series or {}).get(gpu.name)) is not None
        and gpu.verification.rejected_scenarios == ()
        and own.verdict != gpu.verification.verdict
    ]
    if not found:
        return []
    gpus = counted(len(found), "GPU")
    return [f"the simulation of this page judges {gpus} in another way than the plan: {', '.join(found[:5])}"]
