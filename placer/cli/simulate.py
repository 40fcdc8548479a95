"""`placer simulate`: one replica in the twin, in detail."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from placer.cli.exits import OK, print_warning, print_written, reports_errors
from placer.cli.options import EngineOption, JsonOption, OutputOption, ProfileOption, SeedOption, VerboseOption

if TYPE_CHECKING:
    from twin.report import SimulationReport


@reports_errors
def simulate(
    problem: Annotated[Path, typer.Argument(help="Problem file, YAML or JSON.", show_default=False)],
    *,
    plan: Annotated[Path | None, typer.Option("--plan", help="Simulate a GPU of this plan.json (with --gpu).")] = None,
    gpu: Annotated[str | None, typer.Option("--gpu", help="GPU of the plan, or GPU type of the problem.")] = None,
    max_loras: Annotated[int | None, typer.Option("--max-loras", min=1, help="Slots; default: as many as fit.")] = None,
    max_lora_rank: Annotated[
        int | None, typer.Option("--max-lora-rank", min=1, help="Rank of every slot; default: the largest adapter's.")
    ] = None,
    max_num_seqs: Annotated[
        int | None, typer.Option("--max-num-seqs", min=1, help="Requests at a time; default: the problem's or plan's.")
    ] = None,
    profile: ProfileOption = None,
    engine: EngineOption = "fast",
    horizon: Annotated[float, typer.Option("--horizon", help="Simulated seconds.")] = 3600.0,
    warmup: Annotated[float, typer.Option("--warmup", help="Seconds at the start that are not measured.")] = 0.0,
    interval: Annotated[float, typer.Option("--interval", min=0, help="Seconds between samples; 0: none.")] = 0.0,
    seed: SeedOption = 0,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="Simulate with so many seeds; do they agree? Default: no question.")
    ] = 1,
    output: OutputOption = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Simulate one replica that serves all adapters of PROBLEM, or one GPU of a plan."""
    from placer.cli.engines import choose_engine
    from placer.cli.progress import ProgressDisplay
    from placer.files import load_problem
    from placer.output_paths import check_outputs, has_standard_output, problem_inputs
    from placer.report_files import require_report_path, save_report
    from placer.simulation import replica_for, simulate_replica
    from placer.unmeasured import unmeasured_warnings
    from placer.wording import counted

    if output is not None:
        require_report_path(output)
    inputs = problem_inputs(problem, output) | {"--plan": plan, "--profile": profile}
    check_outputs({"--output": output}, inputs=inputs, prints_json=json_output)
    chosen_engine = choose_engine(engine)
    content = load_problem(problem, profile=profile)
    workload, replica = replica_for(
        content, plan=plan, gpu=gpu, max_loras=max_loras, max_lora_rank=max_lora_rank, max_num_seqs=max_num_seqs
    )
    with ProgressDisplay(is_verbose=verbose) as display:
        report = simulate_replica(
            workload,
            replica,
            engine=chosen_engine,
            horizon_s=horizon,
            warmup_s=warmup,
            interval_s=interval,
            seed=seed,
            num_seeds=seeds,
            starvation_tolerance=content.limits.starvation_tolerance,
            observer=display,
        )
    for warning in unmeasured_warnings([replica.profile]):
        print_warning(warning)
    if output is not None:
        save_report(report, output)
        print_written(output)
    if json_output:
        typer.echo(report.model_dump_json(indent=2))
    elif not has_standard_output(output):
        slots = f"{counted(replica.engine.max_loras, 'slot')} of rank {replica.engine.max_lora_rank}"
        _print_report(report, f"{counted(len(workload.adapters), 'adapter')} on {replica.gpu.name}, {slots}")
    return OK


def _print_report(report: SimulationReport, subject: str) -> None:
    from placer.cli.tables import milliseconds, number, print_lines, print_stability, print_table

    starved = report.starved_adapters
    print_lines([f"{subject}; {report.horizon_s:g} s ({report.warmup_s:g} s warm-up), seed {report.seed}", ""])
    rows = [
        ("offered", f"{number(report.offered_tps)} tokens/s, {report.offered_rps:.3g} requests/s"),
        ("completed", f"{number(report.throughput_tps)} tokens/s, {report.completed_rps:.3g} requests/s"),
        (
            "throughput / offered",
            f"{report.throughput_ratio:.3f} ({'starved' if report.is_starved else 'not starved'})",
        ),
        ("starved adapters", f"{len(starved)} of {len(report.adapters)}"),
        ("running, waiting (mean)", f"{report.running_mean:.1f}, {report.waiting_mean:.1f}"),
        (
            "KV cache (mean, max)",
            f"{report.kv_usage_mean:.0%}, {report.kv_usage_max:.0%} of {report.kv_tokens:,} tokens",
        ),
        ("steps, preemptions", f"{report.num_steps:,}, {report.num_preemptions:,}"),
        ("loads GPU, disk", f"{report.gpu_loads:,}, {report.disk_loads:,} ({report.load_time_s:.1f} s)"),
    ]
    print_table([("", False), ("", False)], rows)
    print_lines([""])
    latencies = [
        (
            name,
            milliseconds(summary.mean_s),
            milliseconds(summary.p50_s),
            milliseconds(summary.p95_s),
            milliseconds(summary.p99_s),
        )
        for name, summary in (("TTFT", report.ttft), ("ITL", report.itl), ("TPOT", report.tpot))
    ]
    print_table([("latency", False), ("mean", True), ("p50", True), ("p95", True), ("p99", True)], latencies)
    if report.stability is not None:
        print_lines([""])
        print_stability(report.stability)
