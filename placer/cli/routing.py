"""`placer routing`: the plan's placement against routers over GPUs that all have every adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from placer.cli.exits import OK, print_warning, print_written, reports_errors
from placer.cli.options import JsonOption, OutputOption, VerboseOption

if TYPE_CHECKING:
    from placer.routing_document import FleetRun, PolicyResult, RoutingStudy


@reports_errors
def routing(
    plan: Annotated[Path, typer.Argument(help="plan.json.", show_default=False)],
    *,
    problem: Annotated[
        Path | None, typer.Option("--problem", help="Problem file; default: the one that the plan names.")
    ] = None,
    replicas: Annotated[
        list[int] | None, typer.Option("--replicas", min=2, help="Also each adapter on so many GPUs; repeatable. [2]")
    ] = None,
    slots: Annotated[
        list[int] | None,
        typer.Option("--slots", min=1, help="max_loras to try where the plan settles none; repeatable. [16 32 64 128]"),
    ] = None,
    horizon: Annotated[
        float | None, typer.Option("--horizon", help="Simulated seconds; default: those of the plan.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of the traffic; default: the plan's.")] = None,
    output: OutputOption = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Compare each adapter on its planned GPU with every adapter everywhere behind a router, and with k replicas."""
    from placer.cli.progress import ProgressDisplay
    from placer.files import write_atomically
    from placer.output_paths import check_outputs, has_standard_output
    from placer.routing_study import DEFAULT_REPLICAS, SLOTS
    from placer.routing_study import routing as study_routing

    check_outputs({"--output": output}, inputs={"PLAN": plan, "--problem": problem}, prints_json=json_output)
    with ProgressDisplay(is_verbose=verbose) as display:
        study = study_routing(
            plan,
            problem=problem,
            replicas=tuple(replicas or DEFAULT_REPLICAS),
            slots=tuple(slots or SLOTS),
            horizon_s=horizon,
            seed=seed,
            observer=display,
        )
    for warning in study.warnings:
        print_warning(warning)
    if output is not None:
        write_atomically(output, study.model_dump_json(indent=2) + "\n")
        print_written(output)
    if json_output:
        typer.echo(study.model_dump_json(indent=2))
    elif not has_standard_output(output):
        _print_study(study)
    return OK


def _print_study(study: RoutingStudy) -> None:
    from placer.cli.tables import print_lines, print_table
    from placer.wording import counted

    window = f"{study.horizon_s:g} s ({study.warmup_s:g} s warm-up), seed {study.seed}"
    print_lines([f"{counted(study.num_adapters, 'adapter')}, {study.offered_rps:.1f} requests/s; {window}", ""])
    columns = [
        ("policy", False),
        ("GPUs\nneeded", True),
        ("GPUs", True),
        ("slots", True),
        ("throughput\n/ offered", True),
        ("starved\nadapters", True),
        ("loads\n/ s", True),
        ("TTFT\np95", True),
        ("ITL\np95", True),
    ]
    print_table(columns, [row for result in study.policies for row in _rows(result, study)])


def _rows(result: PolicyResult, study: RoutingStudy) -> list[tuple[str, ...]]:
    """Return the row at the plan's number of GPUs, and that of the fewest GPUs where it is another one."""
    names = {
        "planned": "planned GPU",
        "least_loaded": "everywhere, least loaded",
        "lora_affinity": "everywhere, LoRA affinity",
        "replicas": f"{result.replicas} GPUs each, least loaded",
    }
    needed = f"> {study.most_gpus}" if result.fewest is None else str(result.fewest.num_gpus)
    if result.policy == "planned" and result.fewest is None:
        needed = f"> {study.plan_gpus}"
    runs = [run for run in (result.at_plan, result.fewest) if run is not None]
    rows = [_cells(run) for run in dict.fromkeys(runs)]
    starts = [(names[result.policy], needed), *[("", "")] * (len(rows) - 1)]
    return [(*start, *row) for start, row in zip(starts, rows, strict=False)]


def _cells(run: FleetRun) -> tuple[str, ...]:
    from placer.cli.tables import milliseconds

    return (
        str(run.num_gpus),
        "plan's" if run.max_loras is None else str(run.max_loras),
        f"{run.throughput_ratio:.3f}",
        str(run.num_starved_adapters),
        f"{run.gpu_loads_per_s:.2f}",
        milliseconds(run.ttft_p95_s),
        milliseconds(run.itl_p95_s),
    )
