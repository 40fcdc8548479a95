"""`placer validate`: the twin against measured serving runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from placer.cli.exits import OK, print_warning, print_written, reports_errors
from placer.cli.options import EngineOption, JsonOption, ProfileOption, VerboseOption, WorkersOption

if TYPE_CHECKING:
    from placer.validation import Validation


@reports_errors
def validate(
    *,
    runs: Annotated[Path, typer.Option("--runs", help="Table of measured runs, CSV.", show_default=False)],
    profile: ProfileOption = None,
    model: Annotated[str | None, typer.Option("--model", help="Only the runs of this model.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="Only this part of the table, such as valid.")] = None,
    only_informative: Annotated[
        bool, typer.Option("--only-informative", help="Only the runs that count in the headline errors.")
    ] = False,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Simulations per run; predictions are means.")] = 3,
    horizon: Annotated[
        float | None, typer.Option("--horizon-s", "--horizon", min=1.0, help="Simulated seconds; default: each run's.")
    ] = None,
    front_end: Annotated[
        bool,
        typer.Option(
            "--front-end/--no-front-end",
            help="Latencies as clients saw them behind a server that is polled for metrics, or those of the engine.",
        ),
    ] = True,
    engine: EngineOption = "fast",
    workers: WorkersOption = None,
    published_twin: Annotated[
        Path | None, typer.Option("--published-twin", help="Table of another twin's outputs, to be scored beside ours.")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option("--predictions", help="CSV file to write: one row of predictions per run.")
    ] = None,
    report: Annotated[Path | None, typer.Option("--report", help="HTML file to write: tables and figures.")] = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Replay measured runs in the twin and say how far its predictions are from what was measured."""
    from placer.cli.progress import ProgressDisplay
    from placer.files import write_atomically
    from placer.output_paths import check_outputs, has_standard_output
    from placer.recheck import require_engine
    from placer.validation import validate_twin, validation_to_json
    from twin.validation.predictions import predictions_to_csv

    check_outputs(
        {"--predictions": predictions, "--report": report},
        inputs={"--runs": runs, "--profile": profile, "--published-twin": published_twin},
        prints_json=json_output,
    )
    if report is not None:
        from placer.html_page import require_report_libraries

        require_report_libraries()
    with ProgressDisplay(is_verbose=verbose) as display:
        outcome = validate_twin(
            runs,
            model=model,
            split=split,
            only_informative=only_informative,
            profile=profile,
            published=published_twin,
            num_seeds=seeds,
            horizon_s=horizon,
            engine=require_engine(engine),
            workers=workers,
            with_front_end=front_end,
            observer=display,
        )
    if predictions is not None:
        write_atomically(predictions, predictions_to_csv(outcome.predictions))
        print_written(predictions)
    if report is not None:
        from placer.validation_report import render_report

        write_atomically(report, render_report(outcome.validation))
        print_written(report)
    for warning in outcome.validation.warnings:
        print_warning(warning)
    if json_output:
        typer.echo(validation_to_json(outcome.validation), nl=False)
    elif not has_standard_output(predictions, report):
        _print_validation(outcome.validation)
    return OK


def _print_validation(validation: Validation) -> None:
    from placer.cli.tables import print_lines, print_table
    from placer.validation_tables import regime_lines, summary_lines, timing_line, validation_tables

    print_lines(summary_lines(validation))
    for table in validation_tables(validation):
        print_lines(["", table.title])
        print_table(table.columns, table.rows)
    print_lines(["", *(f"regime {line}" for line in regime_lines(validation)), timing_line(validation)])
