"""`placer compare`: solvers x instances x seeds with equal budgets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from placer.cli.exits import (
    BACKEND_FAILED,
    OK,
    print_hint,
    print_note,
    print_warning,
    reports_errors,
)
from placer.cli.options import HorizonOption, JsonOption, VerboseOption, WarmupOption

if TYPE_CHECKING:
    from placer.comparison_document import Comparison
    from placer.instances.catalog import InstanceEntry
    from placer.instances.instance import Instance


@reports_errors
def compare(
    *,
    family: Annotated[
        list[str] | None, typer.Option("--family", help="All instances of this family; repeatable.", show_default=False)
    ] = None,
    instance: Annotated[
        list[str] | None,
        typer.Option("--instance", help="Instances of this name, * for anything; repeatable.", show_default=False),
    ] = None,
    instances: Annotated[
        Path | None, typer.Option("--instances", help="Folder of JSON files of your own.", show_default=False)
    ] = None,
    max_adapters: Annotated[
        int | None, typer.Option("--max-adapters", min=1, help="Leave larger instances of the families out.")
    ] = None,
    list_instances: Annotated[
        bool, typer.Option("--list-instances", help="Only list the instances that there are.")
    ] = False,
    solver: Annotated[
        list[str] | None, typer.Option("--solver", help="Repeatable; default: all.", show_default=False)
    ] = None,
    reference: Annotated[str, typer.Option("--reference", help="Solver to compare the others with.")] = "greedy",
    seed: Annotated[int, typer.Option("--seed", min=0, help="First seed.")] = 0,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many, counted from the first.")] = 1,
    surrogate: Annotated[
        str, typer.Option("--surrogate", help="auto, exact (the twin), an ONNX file, or module:object.")
    ] = "auto",
    budget: Annotated[float, typer.Option("--budget", help="Seconds for each run of a solver.")] = 60.0,
    max_evaluations: Annotated[
        int | None, typer.Option("--max-evaluations", min=0, help="Rows that each may ask the surrogate for.")
    ] = None,
    margin: Annotated[float, typer.Option("--margin", help="Share by which rates are raised for the surrogate.")] = 0.0,
    risk: Annotated[float | None, typer.Option("--risk", help="As for `placer solve`.", show_default=False)] = None,
    verify: Annotated[
        bool | None,
        typer.Option(
            "--verify/--no-verify",
            help="Let the twin judge and repair. Default: yes, but not with a module:object.",
            show_default=False,
        ),
    ] = None,
    horizon: HorizonOption = 1800.0,
    warmup: WarmupOption = 300.0,
    previous: Annotated[
        Path | None,
        typer.Option("--previous", help="A saved placement: count the adapters that move.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder for runs and tables; continued where it exists.", show_default=False
        ),
    ] = None,
    save_placements: Annotated[
        Path | None, typer.Option("--save-placements", help="Folder for every placement as JSON.", show_default=False)
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", min=1, help="Runs at a time; they share the cores, so times suffer.")
    ] = 1,
    cluster: Annotated[
        str | None,
        typer.Option("--cluster", help="Address of a Dask scheduler, tcp://host:port, to run on its workers."),
    ] = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Run solvers on instances with equal budgets, let the twin judge what they find, and compare.

    With --output, the same command goes on where it was interrupted.
    """
    from placer.cli.parts_progress import PartsProgress
    from placer.compare import compare as run_comparison
    from placer.comparison_report import read_previous, require_folder
    from placer.comparison_report import save_placements as save
    from placer.comparison_run import RunSettings
    from placer.comparison_tables import run_line
    from solvers.budget import Budget
    from solvers.named_object import names_object

    if list_instances:
        return _list(family or (), instance or (), max_adapters, prints_json=json_output)
    chosen = _choose(family or (), instance or (), instances, max_adapters)
    settings = RunSettings(
        surrogate=surrogate,
        budget=Budget(budget, max_evaluations),
        margin=margin,
        risk=risk,
        is_verified=not names_object(surrogate) if verify is None else verify,
        horizon_s=horizon,
        warmup_s=warmup,
    )
    if save_placements is not None:
        require_folder(save_placements, option="--save-placements")
    with PartsProgress("runs", run_line, is_verbose=verbose) as display:
        try:
            comparison = run_comparison(
                chosen,
                solvers=solver or (),
                seeds=range(seed, seed + seeds),
                settings=settings,
                reference=reference,
                previous=None if previous is None else read_previous(previous),
                output=output,
                workers=workers,
                cluster=cluster,
                observer=display,
            )
        except KeyboardInterrupt:
            return display.say_interrupted(output)
    if save_placements is not None:
        print_note(f"wrote {save(comparison, save_placements)} placements to {save_placements}")
    _conclude(comparison, output, prints_json=json_output)
    failed = [run for run in comparison.runs if run.status in {"failed", "unavailable"}]
    for reason in dict.fromkeys(f"{run.solver} is {run.status}: {run.reason}" for run in failed):
        print_warning(reason)
    return BACKEND_FAILED if len(failed) == len(comparison.runs) else OK


def _choose(
    families: list[str] | tuple[str, ...],
    patterns: list[str] | tuple[str, ...],
    folder: Path | None,
    max_adapters: int | None,
) -> list[Instance | InstanceEntry]:
    """Return the instances that were asked for."""
    from placer.instances.catalog import select
    from placer.instances.user_files import read_instances

    chosen: list[Instance | InstanceEntry] = list(
        select(families=families, patterns=patterns, max_adapters=max_adapters)
    )
    if folder is not None:
        mine = read_instances(folder)
        for warning in mine.warnings:
            print_warning(warning)
        chosen += mine.instances
    return chosen


def _list(
    families: list[str] | tuple[str, ...],
    patterns: list[str] | tuple[str, ...],
    max_adapters: int | None,
    *,
    prints_json: bool,
) -> int:
    """Print the instances of the families that were asked for, or of all."""
    import json

    from placer.cli.tables import print_table
    from placer.instances.catalog import family_names, select

    names = family_names() if not (families or patterns) else families
    entries = select(families=names, patterns=patterns, max_adapters=max_adapters)
    if prints_json:
        rows = [
            {
                "name": entry.name,
                "family": entry.family,
                "num_adapters": entry.num_adapters,
                "unavailable": entry.unavailable(),
            }
            for entry in entries
        ]
        typer.echo(json.dumps({"schema_version": 1, "instances": rows}, indent=2, sort_keys=True))
        return OK
    print_table(
        [("instance", False), ("family", False), ("adapters", True), ("can be made", False)],
        [
            (entry.name, entry.family, f"{entry.num_adapters:,}", f"no: {entry.unavailable()}")
            if entry.unavailable()
            else (entry.name, entry.family, f"{entry.num_adapters:,}", "yes")
            for entry in entries
        ],
    )
    return OK


def _conclude(comparison: Comparison, output: Path | None, *, prints_json: bool) -> None:
    """Write the tables, and print them."""
    from placer.cli.tables import print_lines, print_table
    from placer.comparison_document import as_json
    from placer.comparison_report import COMPARISON_NAME, write_comparison
    from placer.comparison_tables import describe, instances_table, summary_table

    if prints_json:
        for warning in comparison.warnings:
            print_warning(warning)
    if output is not None:
        written = write_comparison(comparison, output)
        print_note(f"wrote {', '.join(path.name for path in written)} to {output}")
        if not any(path.name == f"{COMPARISON_NAME}.html" for path in written):
            print_hint("an HTML page needs the extra `report`: pip install 'lora-placer[report]'")
    if prints_json:
        typer.echo(as_json(comparison), nl=False)
        return
    for table in (instances_table(comparison), summary_table(comparison)):
        print_table(table.columns, table.rows)
        print_lines([""])
    print_lines(describe(comparison))
