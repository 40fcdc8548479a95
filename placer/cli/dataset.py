"""`placer dataset`: training data for a surrogate, labelled by the twin."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from placer.cli.exits import BAD_INPUT, OK, print_error, print_hint, print_note, reports_errors
from placer.cli.options import JsonOption, VerboseOption, WorkersOption

if TYPE_CHECKING:
    from predictors.dataset_folder import Manifest


@reports_errors
def dataset(
    *,
    profile: Annotated[
        str | None, typer.Option("--profile", help="Performance profile to simulate: a shipped name or a path.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the shards; continued where it exists.")
    ] = None,
    rows: Annotated[
        int | None, typer.Option("--rows", min=1, help="Labelled rows; rounded up to whole shards.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the scenarios and their traffic.")] = 0,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Simulations per row, with other arrivals each.")] = 3,
    horizon: Annotated[float, typer.Option("--horizon", help="Simulated seconds of each.")] = 600.0,
    warmup: Annotated[float, typer.Option("--warmup", help="Seconds at the start that are not measured.")] = 100.0,
    loads: Annotated[
        tuple[int, int],
        typer.Option("--loads", metavar="N M", help="Rows of each scenario's first and second replica."),
    ] = (14, 8),
    workers: WorkersOption = None,
    cluster: Annotated[
        str | None,
        typer.Option("--cluster", help="Address of a Dask scheduler, tcp://host:port, to label on its workers."),
    ] = None,
    family: Annotated[
        list[str] | None, typer.Option("--family", help="Only this kind of scenarios; repeatable. Default: all.")
    ] = None,
    check: Annotated[
        Path | None, typer.Option("--check", help="Sample nothing: prove that this folder is complete.")
    ] = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Sample scenarios that planners meet and label them with the twin, into a folder of Parquet shards.

    The same command continues what was interrupted.
    """
    if check is not None:
        return _check(check, prints_json=json_output)
    from placer.cli.dataset_progress import DatasetProgress, say_interrupted
    from predictors.dataset import sample_dataset
    from predictors.scenarios import FAMILIES
    from twin.profile import load_profile

    given = {"--profile": profile, "--output": output, "--rows": rows}
    missing = [name for name, value in given.items() if value is None]
    if profile is None or output is None or rows is None:
        print_error(f"`placer dataset` needs {', '.join(missing)}, or --check.", hint="see `placer dataset --help`")
        return BAD_INPUT
    with DatasetProgress(is_verbose=verbose) as display:
        try:
            manifest = sample_dataset(
                load_profile(profile),
                rows=rows,
                output=output,
                seed=seed,
                seeds=seeds,
                families=family or FAMILIES,
                horizon_s=horizon,
                warmup_s=warmup,
                loads=loads,
                workers=workers,
                cluster=cluster,
                observer=display,
            )
        except KeyboardInterrupt:
            return say_interrupted(output, display)
    _print_summary(output, manifest, prints_json=json_output)
    return OK


def _print_summary(output: Path, manifest: Manifest, *, prints_json: bool) -> None:
    if prints_json:
        typer.echo(manifest.model_dump_json(indent=2))
        return
    unstartable = sum(entry.unstartable_rows for entry in manifest.shards)
    typer.echo(
        f"{manifest.num_rows - unstartable:,} labelled rows and {unstartable:,} that do not start, "
        f"in {len(manifest.shards):,} shards"
    )
    print_note(f"wrote {output}")


def _check(folder: Path, *, prints_json: bool) -> int:
    import json
    from dataclasses import asdict

    from predictors.dataset_folder import check_folder

    result = check_folder(folder)
    if prints_json:
        typer.echo(json.dumps({"is_complete": not result.problems, **asdict(result)}, indent=2, sort_keys=True))
    elif not result.problems:
        typer.echo(
            f"complete: {result.num_shards:,} shards, {result.num_rows:,} rows, {result.num_scenarios:,} scenarios, "
            "each once; all hashes match"
        )
    for problem in result.problems:
        print_error(f"{problem}.")
    if result.problems:
        print_hint("delete the files named, and run the command that sampled them again")
    return BAD_INPUT if result.problems else OK
