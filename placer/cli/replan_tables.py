"""What `placer replan` prints: what changes, the steps, and what they amount to."""

from __future__ import annotations

from placer.cli.tables import print_lines, print_table
from placer.plan_document import PlannedGpu
from placer.replan_document import MigrationStep, Replan
from placer.replanning.words import summary_of

LISTED_ADAPTERS = 4


def print_replan(made: Replan) -> None:
    """Print the GPUs of the new plan, the steps of the migration, and a summary."""
    options = made.plan.configuration.max_num_seqs_options
    columns = [("GPU", False), ("adapters", True), ("slots", True), ("max\nrank", True)]
    columns += [*([("max\nseqs", True)] if options else []), ("verdict", False)]
    print_table(columns, [_gpu_row(gpu, has_sequences=bool(options)) for gpu in made.plan.gpus])
    if made.migration.steps:
        print_lines([""])
        headings = [("step", True), ("what", False), ("GPU", False), ("adapters", False)]
        headings += [("seconds", True), ("GPUs\nin use", True), ("safe", False)]
        print_table(headings, [_step_row(step) for step in made.migration.steps])
    print_lines(["", *summary_of(made)])


def _gpu_row(gpu: PlannedGpu, *, has_sequences: bool) -> tuple[str, ...]:
    verdict = "not simulated" if gpu.verification is None else gpu.verification.verdict
    slots, rank = gpu.engine.max_loras, gpu.engine.max_lora_rank
    sequences = [str(gpu.engine.max_num_seqs)] if has_sequences else []
    return gpu.name, str(len(gpu.adapters)), str(slots), str(rank), *sequences, verdict


def _step_row(step: MigrationStep) -> tuple[str, ...]:
    return (
        str(step.number),
        step.kind,
        _place(step),
        _listed(step.adapters),
        f"{step.seconds:,.1f}" if step.seconds else "",
        str(step.gpus_in_use),
        _safety(step),
    )


def _place(step: MigrationStep) -> str:
    if not step.shifts:
        return step.replica
    pairs = [f"{shift.source or 'nobody'} -> {shift.target}" for shift in step.shifts]
    more = f" and {len(pairs) - 2} more" if len(pairs) > 2 else ""
    return ", ".join(pairs[:2]) + more


def _listed(adapters: tuple[str, ...]) -> str:
    more = f" and {len(adapters) - LISTED_ADAPTERS} more" if len(adapters) > LISTED_ADAPTERS else ""
    return ", ".join(adapters[:LISTED_ADAPTERS]) + more


def _safety(step: MigrationStep) -> str:
    if not step.check.is_safe:
        return "no: " + "; ".join(step.check.reasons or ("adapters starve",))
    if step.check.basis == "unchanged":
        return "nothing changes"
    engines = ", ".join(sorted({replica.engine for replica in step.check.replicas}))
    at_once = ", at once" if step.is_gradual is False else ""
    return f"yes ({engines}{at_once})"
