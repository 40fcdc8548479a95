"""The page of a migration: what changes, each step over time with its check, and the fleet afterwards."""

from __future__ import annotations

from typing import Any, get_args

from placer.plan_document import PlannedGpu
from placer.plan_wording import headroom_text, verdict_text
from placer.replan_document import Replan, ReplicaCheck, StepCheck, StepKind
from placer.replanning.words import described, summary_of
from placer.report.page import Page
from placer.report.timeline import TimedStep, timeline_of

SCRIPTS = ("timeline.js", "replan.js")
KINDS = get_args(StepKind)
_METHODS = {"repair": "repair: GPUs keep what they have", "reduce": "then GPUs are emptied", "scratch": "a new plan"}


def replan_page(made: Replan, *, name: str) -> Page:
    """Return the page of a migration; `name` is that of its file."""
    timeline = timeline_of(made.migration.steps)
    summary = summary_of(made)
    data = {
        "kinds": list(KINDS),
        "cards": _cards(made),
        "warnings": _warnings(made),
        "numbers": _numbers(made),
        "lanes": [[lane.name, lane.gpu_type, lane.first_s, lane.last_s] for lane in timeline.lanes],
        "steps": [step_record(timed) for timed in timeline.steps],
        "total_s": timeline.total_s,
        "gpus_before": made.before.num_gpus,
        "limits": _limit_lines(made),
        "candidates": [
            {
                "method": _METHODS[candidate.method],
                "is_chosen": candidate.method == made.method,
                "gpus": candidate.num_gpus,
                "rejected": candidate.num_rejected,
                "unserved": candidate.num_unserved,
                "changes": described(candidate.changes),
                "within": candidate.is_within_limits,
            }
            for candidate in made.candidates
        ],
        "gpus": [_gpu_record(gpu) for gpu in made.plan.gpus],
        "summary": summary,
    }
    return Page("Migration", f"{name}: {summary[0]}", SCRIPTS, "startReplan", data, [*summary, *_warnings(made)])


def step_record(timed: TimedStep) -> dict[str, Any]:
    """Return a step as plain values: what the page and the CSV of the figure have."""
    step = timed.step
    return {
        "number": step.number,
        "kind": step.kind,
        "where": place_of(timed),
        "lanes": list(timed.lanes),
        "sources": list(timed.sources),
        "adapters": list(step.adapters),
        "start": round(timed.start_s, 3),
        "seconds": step.seconds,
        "gpus": step.gpus_in_use,
        "safe": step.check.is_safe,
        "how": "" if step.is_gradual is None else "both may serve at a time" if step.is_gradual else "at once",
        "check": check_text(step.check),
        "replicas": [_replica_line(replica) for replica in step.check.replicas],
    }


def place_of(timed: TimedStep) -> str:
    """Return where a step happens, in words."""
    shifts = timed.step.shifts
    if not shifts:
        return timed.step.replica
    return ", ".join(f"{shift.source or 'nobody'} to {shift.target}" for shift in shifts)


def check_text(check: StepCheck) -> str:
    """Return what the twin says of a step, in a sentence."""
    if not check.is_safe:
        reasons = [*check.reasons, *(f"{name} starves" for name in check.newly_starved)]
        return "not safe: " + "; ".join(reasons or ["adapters starve"])
    if check.basis == "unchanged":
        return "safe: nobody gets other requests"
    engines = " and ".join(sorted({replica.engine for replica in check.replicas}))
    return f"safe: simulated ({engines})"


def _replica_line(replica: ReplicaCheck) -> str:
    verdict = "accepted" if replica.is_accepted else "rejected"
    starved = f", starved: {', '.join(replica.starved_adapters)}" if replica.starved_adapters else ""
    return (
        f"{replica.replica}: {verdict} ({replica.engine}, {replica.num_adapters} adapters, "
        f"{replica.throughput_ratio:.1%} of the offered tokens{starved})"
    )


def _cards(made: Replan) -> list[tuple[str, str, str]]:
    before, changes, migration = made.before, made.changes, made.migration
    safe = "every step is safe" if migration.is_safe else "some step is not safe"
    restarted = f"{migration.num_restarts:,} with those of the way there"
    others = f"{changes.num_new:,} new, {changes.num_orphans:,} of lost GPUs"
    temporary = f"{migration.num_temporary_loads:,} more for the time of restarts"
    return [
        ("GPUs", f"{before.num_gpus:,} → {made.plan.num_gpus:,}", f"at most {migration.peak_gpus:,} on the way"),
        ("verdict of the twin", made.verdict, safe),
        ("adapters that move", f"{changes.num_moves:,}", others),
        ("loads", f"{changes.num_loads:,}", temporary if migration.num_temporary_loads else ""),
        ("restarts", f"{changes.num_restarts:,}", restarted if migration.num_restarts != changes.num_restarts else ""),
        ("starved or unserved", f"{len(before.starved_adapters):,} → {len(_starved_after(made)):,}", "adapters"),
        ("takes", f"{migration.total_s:,.0f} s", f"{len(migration.steps):,} steps"),
    ]


def _starved_after(made: Replan) -> list[str]:
    """Return the adapters that starve under the new plan, or that nobody serves then."""
    verdicts = [gpu.verification for gpu in made.plan.gpus]
    starved = [name for verdict in verdicts if verdict is not None for name in verdict.starved_adapters]
    return list(dict.fromkeys([*made.unserved_adapters, *starved]))


def _numbers(made: Replan) -> list[tuple[str, str, str]]:
    """Return rows of what is in place under the rates of now, and of the new plan."""
    before, rejected = made.before, [gpu.name for gpu in made.plan.gpus if _is_rejected(gpu)]
    after_starved = _starved_after(made)
    return [
        ("GPUs that serve", f"{before.num_gpus:,}", f"{made.plan.num_gpus:,}"),
        ("GPUs that the twin rejects", _listed(before.rejected_gpus), _listed(rejected)),
        ("lost GPUs", _listed(before.lost_gpus), "0"),
        ("adapters that starve, or that nobody serves", _listed(before.starved_adapters), _listed(after_starved)),
        ("adapters that the workload does not have any more", _listed(before.gone_adapters), "0"),
    ]


def _is_rejected(gpu: PlannedGpu) -> bool:
    return gpu.verification is not None and not gpu.verification.is_accepted


def _listed(names: tuple[str, ...] | list[str], most: int = 12) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return f"{len(names):,}" + (f": {', '.join(names[:most])}{more}" if names else "")


def _warnings(made: Replan) -> list[str]:
    unserved = f"nobody serves {_listed(made.unserved_adapters)}"
    return [
        *([made.message] if made.message else []),
        *([unserved] if made.unserved_adapters else []),
        *made.plan.warnings,
    ]


def _limit_lines(made: Replan) -> list[str]:
    """Say for each limit what was allowed and what is used, and whether nothing is left of it."""
    migration, changes, limits = made.migration, made.changes, made.limits
    used = (
        ("moves", limits.max_moves, changes.num_moves),
        ("loads", limits.max_loads, changes.num_loads),
        ("restarts", limits.max_restarts, changes.num_restarts),
    )
    lines = []
    for what, most, number in used:
        if most is None:
            lines.append(f"{what}: {number:,}, no limit was given")
        else:
            rest = "nothing is left of it" if number == most else "it is exceeded" if number > most else "it is kept"
            lines.append(f"{what}: {number:,} of {most:,}; {rest}")
    spare = made.settings.get("spare_gpus")
    allowed = "" if spare is None else f" of {spare:,} allowed"
    lines.append(f"GPUs for a while only: {migration.spare_gpus:,}{allowed}")
    return [*lines, f"time of a start: {migration.startup_source}"]


def _gpu_record(gpu: PlannedGpu) -> dict[str, Any]:
    twin = gpu.verification
    return {
        "name": gpu.name,
        "type": gpu.gpu_type,
        "adapters": list(gpu.adapters),
        "ranks": " ".join(f"{entry.num_adapters}x{entry.rank}" for entry in gpu.ranks),
        "slots": gpu.engine.max_loras,
        "rank": gpu.engine.max_lora_rank,
        "offered": round(gpu.offered_tps),
        "simulated": None if twin is None else round(twin.throughput_tps),
        "headroom": headroom_text(gpu.headroom),
        "verdict": "not simulated" if twin is None else verdict_text(twin),
    }
