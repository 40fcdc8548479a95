"""The answer to "why not fewer GPUs?" in sentences: the command line and the report say the same."""

from __future__ import annotations

from collections.abc import Sequence

from placer.why_not_document import Shortfall, WhyNot, WorkPart
from placer.wording import counted

_PROOFS = {
    "memory": "memory: some adapters fit no GPU",
    "work": "the work bound",
    "alone": "adapters that are refused even on a GPU of their own",
    "farley": "a certified Farley bound",
    "enumeration": "enumeration of all sets of adapters",
    "cp-sat": "a refutation by CP-SAT",
}


def verdict_line(answer: WhyNot) -> str:
    """Say whether so many GPUs are enough, and what proves it."""
    gpus = counted(answer.num_gpus, "GPU")
    if answer.answer == "possible":
        fewest = counted(answer.best_known_gpus or 0, "GPU")
        return f"{gpus} can do: the surrogate {answer.surrogate.name} accepts a placement on {fewest} (not simulated)"
    proof = answer.proof
    if proof is None:
        return f"NOT PROVEN: nobody found a placement on {gpus}, and nothing says that there is none"
    model = f"the twin, profile {proof.model_name}" if proof.model == "twin" else f"the surrogate {proof.model_name}"
    least = "no number of GPUs does" if proof.lower_bound is None else f"at least {proof.lower_bound:,} are needed"
    declared = ", if it is as monotone as it declares" if proof.relies_on_monotonicity else ""
    return f"{gpus} cannot do, {least}: proven by {_PROOFS.get(proof.kind, proof.kind)}, of {model}{declared}"


def unplaceable_line(name: str, rank: int, share: float | None) -> str:
    """Say why no GPU holds an adapter alone."""
    if share is None:
        return f"{name} (rank {rank}): no GPU starts with a slot of this rank"
    fits = f"at most {share:.0%} of its load is accepted on a GPU" if share else "no share of its load is accepted"
    return f"{name} (rank {rank}): {fits}"


def parts_text(parts: Sequence[WorkPart]) -> str:
    """Return who brings which share of the work."""
    return ", ".join(f"{part.name} {part.share:.0%}" for part in parts)


def shortfall_lines(found: Shortfall, num_gpus: int) -> list[str]:
    """Say how far a search got with so many GPUs."""
    lines = []
    if found.served_share is not None:
        lines.append(
            f"{counted(num_gpus, 'GPU')} serve {found.served_share:.0%} of all rates, as far as best fit sees: "
            f"{1.0 / found.served_share - 1.0:.1%} more capacity is missing"
        )
    lines.append(f"with every adapter on them, {found.num_accepted} of {found.num_gpus} are accepted by the surrogate")
    worst = found.worst
    if worst is not None:
        demands = ", ".join(f"{name} {share:.0%}" for name, share in worst.demands.items())
        lines += [
            (
                f"the worst, a {worst.gpu.gpu_type} with {counted(len(worst.gpu.adapters), 'adapter')} on "
                f"{worst.gpu.max_loras} slots of rank {worst.gpu.max_lora_rank}: {'; '.join(worst.violations)}"
            ),
            f"what it needs of each limit (profile's arithmetic): {demands}; most of {worst.binding}",
        ]
    return lines


def known_lines(answer: WhyNot) -> list[str]:
    """Say which bound and which placement are known, and who was asked."""
    bound = answer.lower_bound
    known = [] if bound is None else [f"at least {bound.value:,} GPUs ({bound.proof}, of the {bound.model})"]
    if answer.best_known_gpus is not None:
        known.append(f"found on {answer.best_known_gpus:,} (surrogate {answer.surrogate.name}, not simulated)")
    lines = [f"known: {'; '.join(known)}"] if known else []
    if answer.allowed_gpus is not None and answer.allowed_gpus < answer.num_gpus:
        lines.append(f"`max_count` allows {answer.allowed_gpus:,} GPUs only")
    care = f", margin {answer.margin:.0%}" if answer.margin else ""
    if answer.threshold < 0.5:
        care += f", probability of starvation below {answer.threshold:.3g}"
    lines.append(f"surrogate: {answer.surrogate.name} ({answer.surrogate.details}){care}")
    return lines
