"""`placer explain --why-not`: why so many GPUs cannot serve a problem, or that they can, or that nobody knows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from placer.cli.exits import INFEASIBLE, INTERRUPTED, NO_SOLUTION, OK, print_error, print_hint, print_warning

if TYPE_CHECKING:
    from placer.why_not_document import WhyNot, WorkRecord

_NEEDED = {
    "tokens": "scheduled tokens",
    "sequences": "request-steps (max_num_seqs)",
    "kv cache": "KV token-steps (KV cache)",
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
    from placer.why_not_wording import known_lines, shortfall_lines, unplaceable_line, verdict_line

    print_lines([verdict_line(answer), ""])
    if answer.unplaceable:
        print_lines([*(unplaceable_line(entry.name, entry.rank, entry.share) for entry in answer.unplaceable), ""])
    _print_work(answer.work, num_gpus=answer.num_gpus)
    if answer.shortfall is not None:
        print_lines(["", *shortfall_lines(answer.shortfall, answer.num_gpus)])
    print_lines(["", "steps:"])
    for attempt in answer.attempts:
        extra = f" (pip install 'lora-placer[{attempt.extra}]')" if attempt.extra else ""
        print_lines([f"  {attempt.step}: {attempt.outcome}{extra}"])
    print_lines(["", *known_lines(answer)])


def _print_work(work: WorkRecord, *, num_gpus: int) -> None:
    from placer.cli.tables import print_lines, print_table
    from placer.why_not_wording import parts_text

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
    print_lines([f"most of it: {parts_text(work.ranks)}; {parts_text(work.adapters)}"])


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
