"""The page of a comparison of solvers: its runs in rows, and what is known of each instance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from placer.comparison_document import Comparison, InstanceRecord, RunRecord
from placer.comparison_summary import over_bound
from placer.comparison_tables import describe, summary_table
from placer.report.page import Page

SCRIPTS = ("comparison.js",)


def comparison_page(comparison: Comparison, *, name: str) -> Page:
    """Return the page of a comparison; `name` is that of its file or folder."""
    instances = {instance.name: instance for instance in comparison.instances}
    lines = describe(comparison)
    table = summary_table(comparison)
    data = {
        "lines": lines,
        "warnings": list(comparison.warnings),
        "solvers": [summary.solver for summary in comparison.solvers],
        "budget_s": comparison.configuration.get("budget_s"),
        "instances": [_instance(instance) for instance in comparison.instances],
        "runs": [_run(run, instances[run.instance]) for run in comparison.runs],
        "summary": {"columns": [list(column) for column in table.columns], "rows": [list(row) for row in table.rows]},
    }
    return Page("Comparison of solvers", f"{name}: {lines[0]}", SCRIPTS, "startComparison", data, lines)


def write_comparison_figures(comparison: Comparison, folder: Path) -> int:
    """Write the figures of a comparison into a folder, as CSV, PNG and SVG; return the number of files.

    Needs matplotlib.
    """
    from placer.comparison_figures import distance_figure, time_figure  # noqa: PLC0415 - comes with an extra
    from placer.report.figure_files import Cell, write_figure  # noqa: PLC0415

    instances = {instance.name: instance for instance in comparison.instances}
    heading: list[Cell] = ["instance", "solver", "seed", "adapters", "gpus", "over_bound", "best_s"]
    rows: list[list[Cell]] = [heading]
    for run in comparison.runs:
        instance = instances[run.instance]
        distance = over_bound(run, instance)
        rows.append([run.instance, run.solver, run.seed, instance.num_adapters, run.final_gpus, distance, run.best_s])
    written = write_figure(folder, "distance", distance_figure(comparison), rows)
    return written + write_figure(folder, "time", time_figure(comparison), rows)


def _instance(instance: InstanceRecord) -> dict[str, Any]:
    bound = instance.bound
    return {
        "name": instance.name,
        "family": instance.family,
        "what": instance.what,
        "adapters": instance.num_adapters,
        "bound": None if bound is None else bound.value,
        "proof": "none" if bound is None else f"{bound.proof}, of the {bound.model}",
        "planted": instance.planted_gpus,
    }


def _run(run: RunRecord, instance: InstanceRecord) -> dict[str, Any]:
    distance = over_bound(run, instance)
    return {
        "instance": run.instance,
        "solver": run.solver,
        "seed": run.seed,
        "status": run.status,
        "reason": run.reason or ("" if run.twin is None else run.twin.reason),
        "gpus": run.final_gpus,
        "over": None if distance is None else round(distance, 4),
        "rejected": None if run.twin is None else run.twin.rejected_gpus,
        "first_s": _rounded(run.first_s),
        "best_s": _rounded(run.best_s),
        "evaluations": run.num_evaluations,
        "termination": run.termination.replace("_", " "),
        "found": [[_rounded(found.runtime_s), found.num_gpus] for found in run.incumbents],
        "end_s": _rounded(run.runtime_s),
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else float(f"{seconds:.4g}")
