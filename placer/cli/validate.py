"""`placer validate`: the twin against measured serving runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from placer.cli.exits import OK, print_warning, print_written, reports_errors
from placer.cli.options import EngineOption, JsonOption, ProfileOption, VerboseOption, WorkersOption

if TYPE_CHECKING:
    from placer.measurement_validation import MeasurementValidation
    from placer.validation import Validation

DEFAULT_SEEDS = 3
# From here on, decimals say nothing.
MANY = 100.0


@reports_errors
def validate(
    measurement: Annotated[
        Path | None, typer.Argument(help="Folder that `placer measure` wrote.", show_default=False)
    ] = None,
    *,
    runs: Annotated[
        Path | None, typer.Option("--runs", help="Table of measured runs, CSV.", show_default=False)
    ] = None,
    profile: ProfileOption = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Only the runs of this model; of a folder: its config.json.")
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="Only this part of the table, such as valid.")] = None,
    only_informative: Annotated[
        bool, typer.Option("--only-informative", help="Only the runs that count in the headline errors.")
    ] = False,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="Simulations per run; predictions are means.")
    ] = DEFAULT_SEEDS,
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
    from placer.cli.engines import choose_engine
    from placer.cli.progress import ProgressDisplay
    from placer.files import write_atomically
    from placer.output_paths import check_outputs, has_standard_output
    from placer.validation import validate_twin, validation_to_json
    from twin.validation.predictions import predictions_to_csv

    if runs is None or measurement is not None:
        of_runs = {
            "--runs": runs is not None,
            "--split": split is not None,
            "--only-informative": only_informative,
            "--seeds": seeds != DEFAULT_SEEDS,
            "--horizon": horizon is not None,
            "--no-front-end": not front_end,
            "--engine": engine != "fast",
            "--workers": workers is not None,
            "--published-twin": published_twin is not None,
            "--predictions": predictions is not None,
            "--report": report is not None,
        }
        folder, name = _require_measurement(measurement, profile, [option for option in of_runs if of_runs[option]])
        return _validate_measurement(folder, name, model=model, is_json=json_output, is_verbose=verbose)
    check_outputs(
        {"--predictions": predictions, "--report": report},
        inputs={"--runs": runs, "--profile": profile, "--published-twin": published_twin},
        prints_json=json_output,
    )
    if report is not None:
        from placer.html_page import require_report_libraries

        require_report_libraries()
    chosen_engine = choose_engine(engine)
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
            engine=chosen_engine,
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


def _require_measurement(measurement: Path | None, profile: str | None, of_runs: list[str]) -> tuple[Path, str]:
    """Return the folder and the profile to validate; refuse what does not go with a folder."""
    from twin.errors import InputError

    if measurement is None:
        raise InputError(
            "a folder of `placer measure`, or --runs with a table of runs, must be given. Got neither.",
            field="runs",
            hint="placer validate FOLDER --profile profile.json, or placer validate --runs runs.csv",
        )
    if of_runs:
        raise InputError(
            f"`{of_runs[0]}` goes with a table of runs. Got it, and the folder {measurement}.",
            field=of_runs[0].removeprefix("--"),
            hint="leave it out: the requests of a folder are replayed as they were sent",
        )
    if profile is None:
        raise InputError(
            f"the profile to validate must be given. Got the folder {measurement} alone.",
            field="profile",
            hint="give --profile: a shipped name, or what `placer calibrate` wrote",
        )
    return measurement, profile


def _validate_measurement(folder: Path, profile: str, *, model: str | None, is_json: bool, is_verbose: bool) -> int:
    from placer.cli.progress import ProgressDisplay
    from placer.measurement_validation import measurement_validation_to_json, validate_measurement

    with ProgressDisplay(is_verbose=is_verbose) as display:
        validation = validate_measurement(folder, profile=profile, model=model, observer=display)
    for warning in validation.warnings:
        print_warning(warning)
    if is_json:
        typer.echo(measurement_validation_to_json(validation), nl=False)
    else:
        _print_measurement(validation)
    return OK


def _print_measurement(validation: MeasurementValidation) -> None:
    from placer.cli.tables import print_lines, print_table
    from placer.validation_tables import NO_VALUE

    requests = f"{validation.num_requests} requests, replayed as they were sent"
    print_lines(
        [
            f"{validation.folder}: {requests}, {validation.measured_s:g} s ({validation.clock} clock)",
            f"profile {validation.profile}, model {validation.model}",
            "",
        ]
    )
    rows = [
        (
            row.name,
            row.unit,
            *(NO_VALUE if value is None else _cell(value) for value in (row.measured, row.predicted)),
            NO_VALUE if row.error_percent is None else f"{row.error_percent:+.1f}",
        )
        for row in validation.quantities
    ]
    columns = (("", False), ("", False), ("measured", True), ("predicted", True), ("error %", True))
    print_table(columns, rows)


def _cell(value: float) -> str:
    return f"{value:,.0f}" if value >= MANY else f"{value:.3g}"


def _print_validation(validation: Validation) -> None:
    from placer.cli.tables import print_lines, print_table
    from placer.validation_tables import regime_lines, summary_lines, timing_line, validation_tables

    print_lines(summary_lines(validation))
    for table in validation_tables(validation):
        print_lines(["", table.title])
        print_table(table.columns, table.rows)
    print_lines(["", *(f"regime {line}" for line in regime_lines(validation)), timing_line(validation)])
