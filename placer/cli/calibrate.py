"""`placer calibrate`: from measurements to a performance profile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from placer.cli.exits import OK, print_warning, print_written, reports_errors
from placer.cli.options import JsonOption, VerboseOption, WorkersOption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from placer.calibration import Calibration
    from placer.calibration_document import CalibrationReport


@reports_errors
def calibrate(
    data: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Tables of measurements, vLLM's metrics, or results of vllm bench serve: folders or files.",
            show_default=False,
        ),
    ] = None,
    *,
    model: Annotated[str, typer.Option("--model", help="A shipped model, or its config.json.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Profile to write, JSON.", show_default=False)],
    gpu: Annotated[str, typer.Option("--gpu", help="GPU that was measured, or to make a prior for.")] = "h100-64gb",
    gpu_memory_gib: Annotated[
        float | None, typer.Option("--gpu-memory-gib", help="Memory that an engine sees; default: datasheet.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Of the profile; default: MODEL-GPU.")] = None,
    prior_only: Annotated[
        bool, typer.Option("--prior-only", help="Without measurements: a prior from the GPU's datasheet.")
    ] = False,
    prior: Annotated[
        str,
        typer.Option(
            "--prior", help="What holds where nothing was measured: auto (datasheet), a profile, or guess (a CPU)."
        ),
    ] = "auto",
    runs: Annotated[Path | None, typer.Option("--runs", help="Table of measured serving runs to fit, CSV.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="Only this part of the runs, such as calib.")] = None,
    front_end: Annotated[
        bool,
        typer.Option(
            "--front-end/--no-front-end",
            help="The runs' server was polled for metrics all the time, as in the published runs, or was not.",
        ),
    ] = True,
    host_profile: Annotated[
        str | None, typer.Option("--host-profile", help="Take host terms over from this profile (name or file).")
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option("--settings", help="YAML with the server's engine and adapters, for metrics and bench results."),
    ] = None,
    report: Annotated[Path | None, typer.Option("--report", help="HTML file to write: tables and figures.")] = None,
    figures: Annotated[Path | None, typer.Option("--figures", help="Folder for the figures, PNG.")] = None,
    workers: WorkersOption = None,
    json_output: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Fit a performance profile to measured steps, loads and memory, and say how far it can be believed."""
    from placer.calibration import CalibrationRequest, calibrate_profile
    from placer.cli.progress import ProgressDisplay
    from placer.output_paths import check_outputs, config_path, has_standard_output
    from twin.profile import save_profile

    measured = tuple(data or ())
    _require_data_or_prior(measured, is_prior_only=prior_only)
    check_outputs(
        {"--output": output, "--report": report} | _figure_paths(figures),
        inputs={
            **{f"DATA {number}": path for number, path in enumerate(measured[1:], start=2)},
            "DATA": measured[0] if measured else None,
            "--model": config_path(model),
            "--runs": runs,
            "--host-profile": host_profile,
            "--prior": prior,
            "--settings": settings,
        },
        prints_json=json_output,
    )
    if report is not None or figures is not None:
        from placer.html_page import require_report_libraries

        require_report_libraries()
    if figures is not None:
        _make_folder(figures)
    request = CalibrationRequest(
        data=measured,
        model=model,
        gpu=gpu,
        gpu_memory_gib=gpu_memory_gib,
        name=name,
        runs=runs,
        split=split,
        has_front_end=front_end,
        host_profile=host_profile,
        prior=prior,
        workers=workers,
        settings=settings,
    )
    with ProgressDisplay(is_verbose=verbose) as display:
        outcome = calibrate_profile(request, display)
    save_profile(outcome.profile, output)
    print_written(output)
    _write_report(outcome, report=report, figures=figures)
    for warning in outcome.report.warnings:
        print_warning(warning)
    if json_output:
        from placer.calibration_document import report_to_json

        typer.echo(report_to_json(outcome.report), nl=False)
    elif not has_standard_output(output, report):
        _print_report(outcome.report)
    return OK


def _require_data_or_prior(data: Sequence[Path], *, is_prior_only: bool) -> None:
    from twin.errors import InputError

    if is_prior_only == bool(data):
        names = ", ".join(str(path) for path in data)
        given = f"{names} and --prior-only" if is_prior_only else "neither"
        raise InputError(
            f"either measurements or --prior-only must be given. Got {given}.",
            field="data",
            value=names or None,
            hint="give the folder with the tables, or --prior-only with --gpu",
        )


def _figure_paths(folder: Path | None) -> dict[str, Path | None]:
    """Return the figures that a folder will hold; of one that does not exist yet, nothing can be in the way."""
    from placer.calibration_report import FIGURE_FILES

    return {f"--figures {name}": folder / name for name in FIGURE_FILES} if folder and folder.is_dir() else {}


def _make_folder(folder: Path) -> None:
    from twin.errors import InputError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the folder for the figures must be writable. {folder}: {error.strerror}.",
            file=str(folder),
            field="figures",
            value=str(folder),
            hint="give a folder in one that exists and that you may write to",
        ) from error


def _write_report(outcome: Calibration, *, report: Path | None, figures: Path | None) -> None:
    from placer.files import write_atomically

    if report is not None:
        from placer.calibration_report import render_report

        write_atomically(report, render_report(outcome.report, outcome.points))
        print_written(report)
    if figures is not None:
        from placer.calibration_report import render_figures

        for file, content in render_figures(outcome.report, outcome.points).items():
            write_atomically(figures / file, content)
            print_written(figures / file)


def _print_report(report: CalibrationReport) -> None:
    from placer.calibration_tables import calibration_tables, origin_lines, summary_lines
    from placer.cli.tables import print_lines, print_table

    print_lines(summary_lines(report))
    for table in calibration_tables(report):
        print_lines(["", table.title])
        print_table(table.columns, table.rows)
    print_lines(["", *(f"origin {line}" for line in origin_lines(report))])
