"""`placer advise`: the smallest batch and KV budget of a GPU that give about its throughput, and replicas on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from placer.cli.exits import NO_SOLUTION, OK, print_error, print_warning, print_written, reports_errors
from placer.cli.options import JsonOption, OutputOption, ProfileOption, SeedOption, VerboseOption, WorkersOption

if TYPE_CHECKING:
    from placer.advice_document import Advice, BatchPoint, KvBudget, SharedReplicas


@reports_errors
def advise(
    problem: Annotated[Path, typer.Argument(help="Problem file, YAML or JSON.", show_default=False)],
    *,
    plan: Annotated[Path | None, typer.Option("--plan", help="Advise on a GPU of this plan.json (with --gpu).")] = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", "--gpu-type", help="GPU of the plan, or GPU type of the problem.")
    ] = None,
    max_loras: Annotated[int | None, typer.Option("--max-loras", min=1, help="Slots; default: as many as fit.")] = None,
    max_lora_rank: Annotated[
        int | None, typer.Option("--max-lora-rank", min=1, help="Rank of every slot; default: the largest adapter's.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", help="Share of the plateau's throughput that may be given up.")
    ] = 0.05,
    itl_p95_ms: Annotated[
        float | None,
        typer.Option("--itl-p95-ms", help="Largest p95 of the time between tokens; default: the problem's limit."),
    ] = None,
    replicas_per_gpu: Annotated[
        int, typer.Option("--replicas-per-gpu", min=1, max=4, help="Compare up to so many replicas on the GPU.")
    ] = 2,
    profile: ProfileOption = None,
    horizon: Annotated[float, typer.Option("--horizon", help="Simulated seconds of each setting.")] = 900.0,
    seed: SeedOption = 0,
    workers: WorkersOption = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw throughput and ITL over the batch size: .png or .svg.")
    ] = None,
    output: OutputOption = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Find the smallest max_num_seqs and KV budget with which a GPU serves about all that it can."""
    from placer.advising import advise as advise_on
    from placer.cli.progress import ProgressDisplay
    from placer.figure_files import require_figure_path, save_figure
    from placer.files import load_problem, write_atomically
    from placer.output_paths import check_outputs, has_standard_output, problem_inputs

    if plot is not None:
        require_figure_path(plot)
    inputs = problem_inputs(problem, output) | {"--plan": plan, "--profile": profile}
    check_outputs({"--output": output, "--plot": plot}, inputs=inputs, prints_json=json_output)
    with ProgressDisplay(is_verbose=verbose) as display:
        advice = advise_on(
            load_problem(problem, profile=profile),
            plan=plan,
            gpu=gpu,
            max_loras=max_loras,
            max_lora_rank=max_lora_rank,
            tolerance=tolerance,
            itl_p95_ms=itl_p95_ms,
            replicas_per_gpu=replicas_per_gpu,
            horizon_s=horizon,
            seed=seed,
            workers=workers,
            observer=display,
        )
    for warning in advice.warnings:
        print_warning(warning)
    if output is not None:
        write_atomically(output, advice.model_dump_json(indent=2) + "\n")
        print_written(output)
    if plot is not None:
        from placer.advice_figures import knee_figure

        save_figure(lambda: knee_figure(advice), plot)
        print_written(plot)
    if json_output:
        typer.echo(advice.model_dump_json(indent=2))
    elif not has_standard_output(output):
        _print_advice(advice)
    if advice.knee is not None:
        return OK
    print_error(
        "no batch size keeps the ITL limit when the GPU is saturated.",
        hint="give a larger --itl-p95-ms, or fewer or smaller slots: they make every step longer",
    )
    return NO_SOLUTION


def _print_advice(advice: Advice) -> None:
    from placer.cli.tables import milliseconds, number, print_lines, print_table
    from placer.wording import counted

    limit = "" if advice.itl_p95_limit_s is None else f", ITL p95 at most {milliseconds(advice.itl_p95_limit_s)}"
    print_lines(
        [
            (
                f"{counted(advice.num_adapters, 'adapter')} of {advice.model} on {advice.gpu}, "
                f"{counted(advice.max_loras, 'slot')} of rank {advice.max_lora_rank}; saturated, "
                f"{advice.horizon_s:g} s ({advice.warmup_s:g} s warm-up), seed {advice.seed}{limit}"
            ),
            "",
        ]
    )
    columns = [
        ("max_num\nseqs", True),
        ("tokens/s", True),
        ("of the\nplateau", True),
        ("ITL\nmean", True),
        ("ITL\np95", True),
        ("running\nmean", True),
        ("KV\nmax", True),
        ("preempted", True),
        ("", False),
    ]
    rows = [
        (
            str(point.max_num_seqs),
            number(point.throughput_tps),
            f"{point.throughput_tps / advice.plateau_tps:.1%}" if advice.plateau_tps else "-",
            milliseconds(point.itl_mean_s),
            milliseconds(point.itl_p95_s),
            f"{point.running_mean:.1f}",
            f"{point.kv_usage_max:.0%}",
            f"{point.num_preemptions:,}",
            _mark(advice, point),
        )
        for point in advice.points
    ]
    print_table(columns, rows)
    if advice.knee is None or advice.kv_budget is None or advice.reachable_tps is None:
        return
    knee = advice.knee
    print_lines(
        [
            "",
            (
                f"knee: max_num_seqs {knee.max_num_seqs} gives {number(knee.throughput_tps)} tokens/s, "
                f"{knee.throughput_tps / advice.reachable_tps:.1%} of the most{' within the limit' if limit else ''}; "
                f"ITL p95 {milliseconds(knee.itl_p95_s)}"
            ),
            *_budget_lines(advice.kv_budget),
            *(_replica_line(entry, advice.reachable_tps) for entry in advice.replicas),
        ]
    )
    if advice.replicas:
        print_lines([f"assumption: {advice.assumption}"])


def _mark(advice: Advice, point: BatchPoint) -> str:
    marks = ["knee"] if point == advice.knee else []
    marks += ["now"] if point.max_num_seqs == advice.max_num_seqs else []
    marks += [] if point.is_within_limit else ["above the limit"]
    return ", ".join(marks)


def _budget_lines(budget: KvBudget) -> list[str]:
    from placer.cli.tables import milliseconds, number

    reasons = {
        "throughput": "less costs throughput or latency",
        "longest request": "less would not hold the longest request",
        "max_model_len": f"vLLM wants room for max_model_len; {number(budget.enough_tokens)} tokens would do",
        "everything": "no smaller one does",
    }
    return [
        (
            f"KV budget: {number(budget.kv_tokens)} tokens, {budget.kv_gib:.2f} GiB ({reasons[budget.decided_by]}); "
            f"{number(budget.point.throughput_tps)} tokens/s, ITL p95 {milliseconds(budget.point.itl_p95_s)}"
        ),
        (
            f"memory: gpu_memory_utilization {budget.gpu_memory_utilization:g}, {budget.memory_gib:.2f} GiB; "
            f"{budget.freed_gib:.2f} GiB are free for other use"
        ),
    ]


def _replica_line(entry: SharedReplicas, alone_tps: float) -> str:
    from placer.cli.tables import number

    start = f"{entry.num_replicas} replicas on the GPU: "
    if entry.message:
        return f"{start}does not start. {entry.message}"
    answers = {
        "yes": "serve more",
        "no": "do not serve more",
        "cannot tell": "cannot tell whether they serve more",
        "above the limit": "cannot keep the ITL limit",
    }
    cases = "; ".join(
        f"{case.case} sharing {number(case.throughput_tps)} ({case.throughput_tps / alone_tps:.2f} x)"
        + (f" at max_num_seqs {case.max_num_seqs} each" if case.max_num_seqs is not None else "")
        for case in entry.cases
    )
    return (
        f"{start}{answers[entry.serves_more]}. tokens/s of all: {cases}. Each has {entry.adapters_each} adapters at "
        f"most, {entry.max_loras_each} slots, {number(entry.kv_tokens_each)} KV tokens"
    )
