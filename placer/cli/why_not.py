"""`placer explain --why-not`: why so many GPUs cannot serve a problem, or that they can, or that nobody knows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from placer.cli.exits import INFEASIBLE, INTERRUPTED, NO_SOLUTION, OK, print_error, print_hint, print_warning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from placer.why_not_document import Shortfall, WhyNot, WorkPart, WorkRecord

_NEEDED = {
    "tokens": "scheduled tokens",
    "sequences": "request-steps (max_num_seqs)",
    "kv cache": "KV token-steps (KV cache)",
}
_PROOFS = {
    "memory": "memory: some adapters fit no GPU",
    "work": "the work bound",
    "alone": "adapters that are refused even on a GPU of their own",
    "farley": "a certified Farley bound",
    "enumeration": "enumeration of all sets of adapters",
    "cp-sat": "a refutation by CP-SAT",
}


def answer_why_not(
    path: Path,
    num_gpus: int,
    *,
    surrogate: str | None,
    profile: str | None,
    budget_s: float,
    max_evaluations: int | None,
    seed: int,
    is_json: bool,
    is_verbose: bool,
) -> int:
    """Answer, print, and return the exit code: 0 enough, 3 proven that not, 4 neither, 130 interrupted."""
    from placer.cli.progress import ProgressDisplay
    from placer.why_not import explain_why_not, question_of, why_not_to_json

    question = question_of(path, surrogate=surrogate, profile=profile)
    with ProgressDisplay(is_verbose=is_verbose) as display:
        answer = explain_why_not(
            question,
            num_gpus,
            budget_s=budget_s,
            max_evaluations=max_evaluations,
            seed=seed,
            observer=display,
        )
    for warning in answer.warnings:
        print_warning(warning)
    if is_json:
        typer.echo(why_not_to_json(answer), nl=False)
    else:
        print_answer(answer)
    return _conclude(answer)


def print_answer(answer: WhyNot) -> None:
    """Print an answer for people."""
    from placer.cli.tables import print_lines

    print_lines([_verdict(answer), ""])
    if answer.unplaceable:
        print_lines([*(_unplaceable_line(entry.name, entry.rank, entry.share) for entry in answer.unplaceable), ""])
    _print_work(answer.work, num_gpus=answer.num_gpus)
    if answer.shortfall is not None:
        print_lines(["", *_shortfall_lines(answer.shortfall, answer.num_gpus)])
    print_lines(["", "steps:"])
    for attempt in answer.attempts:
        extra = f" (pip install 'lora-placer[{attempt.extra}]')" if attempt.extra else ""
        print_lines([f"  {attempt.step}: {attempt.outcome}{extra}"])
    print_lines(["", *_known_lines(answer)])


def _verdict(answer: WhyNot) -> str:
    from placer.wording import counted

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


def _unplaceable_line(name: str, rank: int, share: float | None) -> str:
    if share is None:
        return f"{name} (rank {rank}): no GPU starts with a slot of this rank"
    fits = f"at most {share:.0%} of its load is accepted on a GPU" if share else "no share of its load is accepted"
    return f"{name} (rank {rank}): {fits}"


def _print_work(work: WorkRecord, *, num_gpus: int) -> None:
    from placer.cli.tables import print_lines, print_table

    exceeds = "more than there are" if work.gpus > num_gpus else "which alone would fit"
    print_lines([f"unavoidable work (twin, mean rates): {work.gpus:.2f} GPUs, {exceeds}"])
    rows = [(part.name, f"{part.gpus:.2f}", f"{part.share:.0%}") for part in work.parts]
    print_table([("GPU time for", False), ("GPUs", True), ("share", True)], rows)
    print_lines([f"steps are needed most for {_NEEDED[work.binding]}:"])
    needs = [
        (
            _NEEDED[step.limit],
            f"{step.needed_per_s:,.0f}",
            f"{step.per_step:,}",
            f"{step.steps_per_s:,.1f}",
            f"{step.gpus:.2f}",
        )
        for step in work.steps
    ]
    print_table(
        [("steps for", False), ("needed\nper s", True), ("most in\na step", True), ("steps/s", True), ("GPUs", True)],
        needs,
    )
    print_lines([f"most of it: {_parts(work.ranks)}; {_parts(work.adapters)}"])


def _parts(parts: Sequence[WorkPart]) -> str:
    return ", ".join(f"{part.name} {part.share:.0%}" for part in parts)


def _shortfall_lines(found: Shortfall, num_gpus: int) -> list[str]:
    from placer.wording import counted

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


def _known_lines(answer: WhyNot) -> list[str]:
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


def _conclude(answer: WhyNot) -> int:
    """Say what can be done, and return the exit code."""
    if answer.is_interrupted:
        print_error("interrupted: this is what was known by then.")
        return INTERRUPTED
    if answer.answer == "possible":
        print_hint("`placer solve` makes a plan of it, and simulates every GPU; a larger --budget may be needed there")
        return OK
    if answer.answer == "impossible":
        return INFEASIBLE
    if answer.unplaceable:
        print_hint("replicate or exclude the adapters that are refused alone, or relax `limits`")
    else:
        print_hint("a larger --budget may find a proof or a placement; `placer solvers` says what is not installed")
    return NO_SOLUTION
