"""The files of a comparison: CSV, Markdown, one HTML page (extra `report`), and every placement as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from placer.comparison_document import Comparison, PlacementRecord, RunRecord, as_json, run_name
from placer.comparison_tables import (
    describe,
    instances_table,
    runs_table,
    runs_to_csv,
    summary_table,
    summary_to_csv,
    to_markdown,
)
from placer.html_page import render_page, require_report_libraries
from twin.atomic_write import write_atomically
from twin.bounded_read import parse_json, read_bounded
from twin.errors import InputError

TEMPLATE = "comparison.html"
COMPARISON_NAME = "comparison"


def render_comparison(comparison: Comparison) -> str:
    """Return the comparison as one HTML page that refers to nothing outside of it.

    Raises
    ------
    InputError
        When jinja2 or matplotlib is not installed.
    """
    require_report_libraries()
    from placer.comparison_figures import distance_figure, time_figure  # noqa: PLC0415 - comes with an extra
    from placer.drawing import svg_of  # noqa: PLC0415

    figures = {
        "distance": svg_of(distance_figure(comparison), "distance"),
        "time": svg_of(time_figure(comparison), "time"),
    }
    return render_page(
        TEMPLATE,
        figures,
        lines=describe(comparison),
        reference=comparison.reference,
        summary=summary_table(comparison),
        tables=[instances_table(comparison), runs_table(comparison)],
    )


def write_comparison(comparison: Comparison, folder: Path) -> tuple[Path, ...]:
    """Write the comparison into a folder as JSON, CSV, Markdown and, where its libraries are installed, HTML.

    Returns
    -------
    The files that were written.
    """
    contents = {
        f"{COMPARISON_NAME}.json": as_json(comparison),
        "runs.csv": runs_to_csv(comparison),
        "solvers.csv": summary_to_csv(comparison),
        f"{COMPARISON_NAME}.md": to_markdown(comparison),
    }
    try:
        contents[f"{COMPARISON_NAME}.html"] = render_comparison(comparison)
    except InputError as error:
        if error.field != "report":
            raise
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return tuple(folder / name for name in contents)


def save_placements(comparison: Comparison, folder: Path) -> int:
    """Write every placement as JSON, so that anybody can check it; return how many files were written.

    A run's own file holds the solver's placement; one that ends in ``--repaired`` what repair made of it.

    Raises
    ------
    InputError
        When the folder cannot be written.
    """
    require_folder(folder, option="--save-placements")
    num_written = 0
    for run in comparison.runs:
        for suffix, placement in (("", run.placement), ("--repaired", run.repaired)):
            if placement is not None:
                write_atomically(folder / f"{run_name(run)}{suffix}.json", _placement_text(run, placement))
                num_written += 1
    return num_written


def require_folder(folder: Path, *, option: str) -> None:
    """Make a folder, or raise InputError when it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"`{option}` must be a folder that can be written. {folder}: {error.strerror}.",
            file=str(folder),
            field=option.removeprefix("--"),
            value=str(folder),
        ) from error


def read_previous(file: Path) -> tuple[tuple[int, ...], ...]:
    """Return the GPUs of a placement that was saved, or of any JSON with `gpus`: lists of adapter indices.

    Raises
    ------
    InputError
        When the file is no such JSON.
    """
    try:
        data = parse_json(read_bounded(file))
        gpus = tuple(tuple(gpu) for gpu in (data["gpus"] if isinstance(data, dict) else data))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _no_placement(file, f"{type(error).__name__}: {error}") from error
    placed = [adapter for gpu in gpus for adapter in gpu]
    if not all(type(adapter) is int and adapter >= 0 for adapter in placed):
        raise _no_placement(file, "an adapter is not a number from 0 on")
    if len(set(placed)) != len(placed):
        raise _no_placement(file, "an adapter is on two GPUs")
    return gpus


def _no_placement(file: Path, reason: str) -> InputError:
    return InputError(
        f"a previous placement must be JSON with `gpus`, a list of lists of adapter indices. {file}: {reason}.",
        file=str(file),
        field="previous",
        hint="`--save-placements` writes such files",
    )


def _placement_text(run: RunRecord, placement: PlacementRecord) -> str:
    content = {
        "schema_version": 1,
        "instance": run.instance,
        "solver": run.solver,
        "seed": run.seed,
        "num_gpus": len(placement.gpus),
        **placement.model_dump(mode="json", exclude_none=True),
    }
    return json.dumps(content, sort_keys=True) + "\n"
