"""`placer report`: a document as one HTML page."""

from __future__ import annotations

from dataclasses import dataclass
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
        Path,
        typer.Argument(
            help="plan.json, replan.json, or what `placer compare` or `placer whatif` wrote (folder or JSON).",
            show_default=False,
        ),
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
    """Show a plan, a comparison of solvers, a what-if study or a migration as one HTML page that needs no network."""
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
    page, write_figures = _PAGES[kind](
        _Asked(
            file=file,
            data=data,
            problem=problem,
            simulates=simulate,
            one_fewer_s=one_fewer,
            workers=workers,
            is_verbose=verbose,
        )
    )
    write_atomically(target, render(page))
    print_written(target)
    if figures is not None:
        print_note(f"wrote {write_figures(figures)} files to {figures}")
    return OK


@dataclass(frozen=True)
class _Asked:
    """A document and its content; what follows is about plans only."""

    file: Path
    data: dict[str, Any]
    problem: Path | None
    simulates: bool
    one_fewer_s: float | None
    workers: int | None
    is_verbose: bool


def _plan(asked: _Asked) -> tuple[Page, Callable[[Path], int]]:
    """Return the page of a plan, and what writes its figures into a folder and counts the files."""
    from placer.cli.progress import ProgressDisplay
    from placer.report.plan_figures import write_plan_figures
    from placer.report.plan_report import report_plan

    with ProgressDisplay(is_verbose=asked.is_verbose) as display:
        found = report_plan(
            asked.file,
            problem_path=asked.problem,
            simulates=asked.simulates,
            one_fewer_s=asked.one_fewer_s,
            workers=asked.workers,
            observer=display,
        )
    for warning in found.page.data["warnings"]:
        print_warning(warning)
    return found.page, lambda folder: write_plan_figures(found, folder)


def _comparison(asked: _Asked) -> tuple[Page, Callable[[Path], int]]:
    """Return the page of a comparison, and what writes its figures into a folder and counts the files."""
    from placer.comparison_document import Comparison
    from placer.report.comparison_page import comparison_page, write_comparison_figures
    from placer.report.documents import read_as

    comparison = read_as(Comparison, asked.file, asked.data, name="comparison")
    page = comparison_page(comparison, name=asked.file.name)
    return page, lambda folder: write_comparison_figures(comparison, folder)


def _study(asked: _Asked) -> tuple[Page, Callable[[Path], int]]:
    """Return the page of a what-if study, and what writes its figures into a folder and counts the files."""
    from placer.report.documents import read_as
    from placer.report.whatif_page import whatif_page, write_whatif_figures
    from placer.whatif.document import WhatIf

    study = read_as(WhatIf, asked.file, asked.data, name="what-if study")
    return whatif_page(study, name=asked.file.name), lambda folder: write_whatif_figures(study, folder)


def _migration(asked: _Asked) -> tuple[Page, Callable[[Path], int]]:
    """Return the page of a migration, and what writes its figures into a folder and counts the files."""
    from placer.replan_document import Replan
    from placer.report.documents import read_as
    from placer.report.replan_figures import write_replan_figures
    from placer.report.replan_page import replan_page

    made = read_as(Replan, asked.file, asked.data, name="migration")
    return replan_page(made, name=asked.file.name), lambda folder: write_replan_figures(made, folder)


_PAGES = {"plan": _plan, "comparison": _comparison, "what-if study": _study, "migration": _migration}
