"""What a reader must be told about a re-plan: what limits cost, and what a safe order needs."""

from __future__ import annotations

from collections.abc import Sequence

from placer.replan_document import Candidate, Changes, Migration, Replan, ReplanLimits
from placer.wording import counted


def message_of(chosen: Candidate, candidates: Sequence[Candidate], limits: ReplanLimits, migration: Migration) -> str:
    """Return sentences about limits that bind, spare GPUs and steps that are not safe; may be empty."""
    sentences = []
    is_limited = any(limit is not None for limit in limits.model_dump().values())
    failures = chosen.num_rejected + chosen.num_unserved
    if failures:
        within = " within the limits" if is_limited else ""
        sentences.append(
            f"No plan was found that serves everybody{within}: {counted(chosen.num_rejected, 'GPU')} rejected, "
            f"{counted(chosen.num_unserved, 'adapter')} unserved."
        )
    if not chosen.is_within_limits:
        sentences.append(f"No plan was found within the limits; this one takes {described(chosen.changes)}.")
    beyond = [other for other in candidates if not other.is_within_limits and _serves_more(other, chosen)]
    if beyond and chosen.is_within_limits:
        best = min(beyond, key=lambda other: (other.num_rejected + other.num_unserved, other.num_gpus))
        sentences.append(
            f"The limits bind: {counted(best.num_gpus, 'GPU')} instead of {chosen.num_gpus} would take "
            f"{described(best.changes)}."
        )
    smaller = [other for other in candidates if other.is_within_limits and _serves_more(other, chosen)]
    if smaller:
        best = min(smaller, key=lambda other: (other.num_gpus, other.changes.num_moves))
        sentences.append(
            f"{counted(best.num_gpus, 'GPU')} instead of {chosen.num_gpus} would take {described(best.changes)}: more "
            "moves than these GPUs are worth (`moves_per_gpu`)."
        )
    if migration.spare_gpus:
        sentences.append(
            f"No safe order was found without {counted(migration.spare_gpus, 'GPU')} more for a while: "
            f"{migration.peak_gpus} are in use at most."
        )
    if limits.max_loads is not None and migration.num_loads > limits.max_loads:
        sentences.append(f"With restarts the migration loads {counted(migration.num_loads, 'adapter')}.")
    unsafe = [step.number for step in migration.steps if not step.check.is_safe]
    if unsafe:
        numbers = ", ".join(str(number) for number in unsafe)
        sentences.append(f"No safe order was found: see step {numbers}. More spare GPUs may help.")
    return " ".join(sentences)


def described(changes: Changes) -> str:
    """Return what a plan changes in a few words."""
    counts = ((changes.num_moves, "move"), (changes.num_loads, "load"), (changes.num_restarts, "restart"))
    return ", ".join(counted(number, noun) for number, noun in counts)


def summary_of(made: Replan) -> list[str]:
    """Return what is in place, what changes, what else was considered, and what the way there takes, in sentences."""
    before, changes, migration = made.before, made.changes, made.migration
    starved = len(made.before.starved_adapters)
    now = f"{counted(before.num_gpus, 'GPU')} in place, {len(before.rejected_gpus)} rejected under the rates of now"
    then = f"{counted(made.plan.num_gpus, 'GPU')} afterwards: {described(changes)}"
    starts_and_stops = f"{counted(changes.num_starts, 'start')}, {counted(changes.num_stops, 'stop')}"
    lines = [f"{now}, {counted(starved, 'adapter')} starved or unserved.", f"{then}, {starts_and_stops}."]
    others = [candidate for candidate in made.candidates if candidate.method != made.method]
    lines += [
        f"Considered: {candidate.method}, {counted(candidate.num_gpus, 'GPU')}, {described(candidate.changes)}"
        f"{'' if candidate.is_within_limits else ' (beyond the limits)'}."
        for candidate in others
    ]
    if migration.steps:
        safety = "each of them safe" if migration.is_safe else "not all of them safe"
        steps = f"{counted(len(migration.steps), 'step')} in about {migration.total_s:,.0f} s"
        lines.append(f"{steps}, {safety}; at most {migration.peak_gpus} GPUs in use.")
        lines.append(f"Time of a start: {migration.startup_source}.")
    else:
        lines.append("There is nothing to do.")
    return lines


def _serves_more(other: Candidate, chosen: Candidate) -> bool:
    """Return whether a plan serves more, or as much with fewer GPUs."""
    failures = other.num_rejected + other.num_unserved, other.num_gpus
    return failures < (chosen.num_rejected + chosen.num_unserved, chosen.num_gpus)
