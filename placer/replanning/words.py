"""What a reader must be told about a re-plan: what limits cost, and what a safe order needs."""

from __future__ import annotations

from collections.abc import Sequence

from placer.replan_document import Candidate, Changes, Migration, ReplanLimits
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


def _serves_more(other: Candidate, chosen: Candidate) -> bool:
    """Return whether a plan serves more, or as much with fewer GPUs."""
    failures = other.num_rejected + other.num_unserved, other.num_gpus
    return failures < (chosen.num_rejected + chosen.num_unserved, chosen.num_gpus)
