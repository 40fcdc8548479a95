"""Tables and sentences about plans and simulations, on standard output."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from placer.plan_document import Plan, PlannedGpu, Verification
from placer.plan_wording import (
    headroom_text,
    rejection_lines,
    scenario_lines,
    source_lines,
    summary_lines,
    verdict_text,
)
from twin.stability_report import StabilityReport

# More than any table is wide: a table that does not fit a window is easier to read wrapped by the window than squeezed.
WIDEST_TABLE = 240


def print_table(columns: Sequence[tuple[str, bool]], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text on standard output.

    Parameters
    ----------
    columns
        Heading, and whether the column is of numbers (right-aligned).
    rows
        Cells as text.
    """
    has_headings = any(heading for heading, _ in columns)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, show_header=has_headings)
    for heading, is_number in columns:
        table.add_column(heading, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    _console().print(table)


def print_lines(lines: Sequence[str]) -> None:
    """Print lines of text on standard output as they are."""
    console = _console()
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def print_plan(plan: Plan) -> None:
    """Print a plan: the table of its GPUs, then what it amounts to and which model each number comes from."""
    columns = [
        ("GPU", False),
        ("adapters", True),
        ("ranks", False),
        ("slots", True),
        ("max\nrank", True),
        *([("max\nseqs", True)] if plan.configuration.max_num_seqs_options else []),
        ("offered\ntok/s", True),
        ("predicted\ntok/s", True),
        ("simulated\ntok/s", True),
        ("headroom", True),
        ("ITL\np95", True),
        ("verdict", False),
    ]
    print_table(columns, [_gpu_row(gpu, plan) for gpu in plan.gpus])
    verdicts = [(gpu.name, gpu.verification) for gpu in plan.gpus if gpu.verification is not None]
    print_lines(["", *rejection_lines(plan), *summary_lines(plan), *scenario_lines(verdicts), *source_lines(plan)])


def print_verdicts(names: Sequence[str], verdicts: Sequence[Verification]) -> None:
    """Print what the twin says about GPUs."""
    columns = [
        ("GPU", False),
        ("offered\ntok/s", True),
        ("simulated\ntok/s", True),
        ("ratio", True),
        ("starved", True),
        ("ITL\np95", True),
        ("TTFT\np95", True),
        ("KV\nmax", True),
        ("verdict", False),
    ]
    rows = [
        (
            name,
            number(verdict.offered_tps),
            number(verdict.throughput_tps),
            f"{verdict.throughput_ratio:.3f}",
            str(len(verdict.starved_adapters)),
            milliseconds(verdict.itl_p95_s),
            milliseconds(verdict.ttft_p95_s),
            f"{verdict.kv_usage_max:.0%}",
            verdict_text(verdict),
        )
        for name, verdict in zip(names, verdicts, strict=True)
    ]
    print_table(columns, rows)
    pairs = zip(names, verdicts, strict=True)
    print_lines(["", *(f"{name}: {reason}" for name, verdict in pairs for reason in verdict.reasons)])
    print_lines(scenario_lines(list(zip(names, verdicts, strict=True))))


def number(value: float) -> str:
    """Return a large number with separators, without decimals."""
    return f"{value:,.0f}"


def milliseconds(value_s: float | None) -> str:
    """Return seconds as milliseconds; a dash when there is no value."""
    return "-" if value_s is None else f"{value_s * 1000.0:,.0f} ms"


def print_stability(stability: StabilityReport) -> None:
    """Print what several seeds say about a replica."""
    columns = [("run", False), ("throughput\n/ offered", True), ("starved\nadapters", True), ("running", True)]
    labelled = [(f"seed {run.seed}", run) for run in stability.runs]
    if stability.after_backlog is not None:
        after = stability.after_backlog
        labelled.append((f"seed {after.seed} after {stability.backlog_s:g} s of backlog", after))
    rows = [
        (label, f"{run.throughput_ratio:.3f}", str(run.num_starved_adapters), f"{run.running_mean:.1f}")
        for label, run in labelled
    ]
    print_table(columns, rows)
    findings = [f"METASTABLE, {reason}" for reason in stability.reasons] or ["stable: all runs say the same"]
    print_lines(["", *findings, f"seeds vary {stability.varies}"])


def _console() -> Console:
    return Console(width=WIDEST_TABLE)


def _gpu_row(gpu: PlannedGpu, plan: Plan) -> tuple[str, ...]:
    twin = gpu.verification
    return (
        gpu.name,
        str(len(gpu.adapters)),
        " ".join(f"{entry.num_adapters}x{entry.rank}" for entry in gpu.ranks),
        str(gpu.engine.max_loras),
        str(gpu.engine.max_lora_rank),
        *([str(gpu.engine.max_num_seqs)] if plan.configuration.max_num_seqs_options else []),
        number(gpu.offered_tps),
        number(gpu.predicted.throughput_tps),
        "-" if twin is None else number(twin.throughput_tps),
        headroom_text(gpu.headroom),
        "-" if twin is None else milliseconds(twin.itl_p95_s),
        "not simulated" if twin is None else verdict_text(twin),
    )
