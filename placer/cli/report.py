"""`placer report`: a document as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from placer.cli.exits import OK, print_note, print_warning, print_written, reports_errors
from placer.cli.options import VerboseOption, WorkersOption

if TYPE_CHECKING:
    from collections.abc import Callable

    from placer.report.page import Page


@reports_errors
def report(
    file: Annotated[
        Path, typer.Argument(help="plan.json, or what `placer compare` wrote (folder or JSON).", show_default=False)
    ],
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Page to write; default: the file's name with .html.")
    ] = None,
    problem: Annotated[Path | None, typer.Option("--problem", help="Problem file of a plan; default: its own.")] = None,
    simulate: Annotated[
        bool, typer.Option("--simulate/--no-simulate", help="Simulate each GPU of a plan, for its time series.")
    ] = True,
    one_fewer: Annotated[
        float | None,
        typer.Option("--one-fewer", help="Ask for so many seconds why not one GPU less.", show_default=False),
    ] = None,
    figures: Annotated[
        Path | None, typer.Option("--figures", help="Folder for every figure as CSV, PNG and SVG.", show_default=False)
    ] = None,
    workers: WorkersOption = None,
    verbose: VerboseOption = False,
) -> int:
    """Show a plan, or a comparison of solvers, as one HTML page that needs no network."""
    from placer.comparison_report import require_folder
    from placer.html_page import require_report_libraries
    from placer.output_paths import check_outputs
    from placer.report.documents import kind_of
    from placer.report.page import render
    from twin.atomic_write import write_atomically

    require_report_libraries()
    target = output or Path(f"{file.resolve().stem}.html")
    check_outputs({"--output": target}, inputs={"FILE": file, "--problem": problem})
    if figures is not None:
        require_folder(figures, option="--figures")
    kind, data = kind_of(file)
    if kind == "plan":
        page, write_figures = _plan(
            file, problem, simulates=simulate, one_fewer_s=one_fewer, workers=workers, is_verbose=verbose
        )
    else:
        page, write_figures = _comparison(file, data)
    write_atomically(target, render(page))
    print_written(target)
    if figures is not None:
        print_note(f"wrote {write_figures(figures)} files to {figures}")
    return OK


def _plan(
    file: Path,
    problem: Path | None,
    *,
    simulates: bool,
    one_fewer_s: float | None,
    workers: int | None,
    is_verbose: bool,
) -> tuple[Page, Callable[[Path], int]]:
    """Return the page of a plan, and what writes its figures into a folder and counts the files."""
    from placer.cli.progress import ProgressDisplay
    from placer.report.plan_figures import write_plan_figures
    from placer.report.plan_report import report_plan

    with ProgressDisplay(is_verbose=is_verbose) as display:
        found = report_plan(
            file,
            problem_path=problem,
            simulates=simulates,
            one_fewer_s=one_fewer_s,
            workers=workers,
            observer=display,
        )
    for warning in found.page.data["warnings"]:
        print_warning(warning)
    return found.page, lambda folder: write_plan_figures(found, folder)


def _comparison(file: Path, data: dict[str, Any]) -> tuple[Page, Callable[[Path], int]]:
    """Return the page of a comparison, and what writes its figures into a folder and counts the files."""
    from placer.report.comparison_page import comparison_page, write_comparison_figures
    from placer.report.documents import read_comparison

    comparison = read_comparison(file, data)
    page = comparison_page(comparison, name=file.name)
    return page, lambda folder: write_comparison_figures(comparison, folder)
