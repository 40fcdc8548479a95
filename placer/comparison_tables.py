"""The tables of a comparison as text cells, Markdown and CSV: the command line and the page show the same ones."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from placer.comparison_document import Comparison, InstanceRecord, RunRecord, SolverSummary
from placer.comparison_summary import cost_over_bound, over_bound
from placer.validation_tables import NO_VALUE, TextTable
from placer.wording import counted

_LONGEST_REASON = 120


def summary_table(comparison: Comparison) -> TextTable:
    """Return one row per solver."""
    reference = comparison.reference or "reference"
    columns = (
        ("solver", False),
        ("runs", True),
        ("placed", True),
        ("GPUs", True),
        ("over\nbound", True),
        ("cost over\nbound", True),
        ("first\ns", True),
        ("best\ns", True),
        ("within\n1 % s", True),
        ("evaluations", True),
        ("accepted\nat first", True),
        ("rejected\nGPUs", True),
        ("worst\nservice", True),
        ("replay\naccepted", True),
        ("moves", True),
        (f"wins/ties/losses\nagainst {reference}", True),
        ("mean\nsaving", True),
    )
    return TextTable("Solvers", columns, tuple(_summary_row(summary) for summary in comparison.solvers))


def instances_table(comparison: Comparison) -> TextTable:
    """Return one row per instance: what is known, and what each solver needs (mean over the seeds)."""
    names = [summary.solver for summary in comparison.solvers]
    columns = (
        ("instance", False),
        ("what", False),
        ("adapters", True),
        ("bound", True),
        ("proof", False),
        ("planted", True),
        *((name, True) for name in names),
    )
    rows = tuple(_instance_row(instance, names, comparison.runs) for instance in comparison.instances)
    return TextTable("GPUs by instance", columns, rows)


def runs_table(comparison: Comparison) -> TextTable:
    """Return one row per run."""
    columns = (
        ("instance", False),
        ("solver", False),
        ("seed", True),
        ("GPUs", True),
        ("over\nbound", True),
        ("solver's\nGPUs", True),
        ("rejected", True),
        ("worst\nservice", True),
        ("first\ns", True),
        ("best\ns", True),
        ("within\n1 % s", True),
        ("evaluations", True),
        ("moves", True),
        ("termination", False),
        ("reason", False),
    )
    instances = {instance.name: instance for instance in comparison.instances}
    rows = tuple(_run_row(run, instances[run.instance]) for run in comparison.runs)
    return TextTable("Runs", columns, rows)


def run_line(run: RunRecord) -> str:
    """Return a run in one line."""
    subject = f"{run.instance}, {run.solver}, seed {run.seed}"
    if run.status != "placed":
        return f"{subject}: {run.status}: {_short(run.reason)}"
    text = f"{subject}: {counted(run.num_gpus or 0, 'GPU')} in {run.runtime_s or 0.0:.2f} s"
    if run.twin is None:
        return text
    repaired = "not repaired" if run.twin.num_gpus is None else counted(run.twin.num_gpus, "GPU")
    return f"{text}, {run.twin.rejected_gpus} rejected by the twin, {repaired} in the end"


def to_markdown(comparison: Comparison) -> str:
    """Return the comparison as a Markdown document."""
    parts = ["# Comparison of solvers", "", *describe(comparison), ""]
    for table in (summary_table(comparison), instances_table(comparison), runs_table(comparison)):
        parts += [f"## {table.title}", "", *markdown_lines(table), ""]
    return "\n".join(parts)


def markdown_lines(table: TextTable) -> list[str]:
    """Return a table in Markdown."""
    heading = [heading.replace("\n", " ") for heading, _ in table.columns]
    dashes = ["---:" if is_number else "---" for _, is_number in table.columns]
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in table.rows]
    return [f"| {' | '.join(row)} |" for row in [heading, dashes, *cells]]


def describe(comparison: Comparison) -> list[str]:
    """Return sentences about what was compared and how."""
    asked = comparison.configuration
    limits = [
        f"{asked['budget_s']:g} s" if asked["budget_s"] is not None else "",
        f"{asked['max_evaluations']:,} evaluations" if asked["max_evaluations"] is not None else "",
    ]
    budget = " or ".join(limit for limit in limits if limit) or "no limit"
    lines = [
        f"{counted(len(comparison.solvers), 'solver')} on {counted(len(comparison.instances), 'instance')}, "
        f"{counted(len(comparison.runs), 'run')}; budget of each: {budget}; surrogate: {asked['surrogate']}, "
        f"margin {asked['margin']:.0%}" + (f", risk {asked['risk']:g}" if asked["risk"] is not None else "") + "."
    ]
    if asked["is_verified"]:
        lines.append(
            f"GPUs are those that the twin accepts after at most {asked['repair_rounds']} rounds of repair; it "
            f"simulates {asked['horizon_s']:g} s, {asked['warmup_s']:g} s of them warm-up."
        )
    else:
        lines.append("GPUs are those that the surrogate accepts; the twin was not asked.")
    return [*lines, *comparison.warnings]


def runs_to_csv(comparison: Comparison) -> str:
    """Return one line per run with full numbers; an empty cell is no value."""
    instances = {instance.name: instance for instance in comparison.instances}
    return _csv([_run_values(run, instances[run.instance]) for run in comparison.runs])


def summary_to_csv(comparison: Comparison) -> str:
    """Return one line per solver with full numbers; an empty cell is no value."""
    return _csv([summary.model_dump() for summary in comparison.solvers])


def _csv(rows: Sequence[dict[str, object]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _run_values(run: RunRecord, instance: InstanceRecord) -> dict[str, object]:
    twin, replay = run.twin, run.replay
    return {
        "instance": run.instance,
        "family": instance.family,
        "num_adapters": instance.num_adapters,
        "solver": run.solver,
        "seed": run.seed,
        "status": run.status,
        "termination": run.termination,
        "num_gpus": run.final_gpus,
        "cost_per_hour": run.final_cost_per_hour,
        "bound": None if instance.bound is None else instance.bound.value,
        "bound_proof": None if instance.bound is None else f"{instance.bound.proof}, {instance.bound.model}",
        "planted_gpus": instance.planted_gpus,
        "gpus_over_bound": over_bound(run, instance),
        "cost_over_bound": cost_over_bound(run, instance),
        "solver_gpus": run.num_gpus,
        "solver_cost_per_hour": run.cost_per_hour,
        "solver_bound": None if run.bound is None else run.bound.value,
        "runtime_s": run.runtime_s,
        "first_s": run.first_s,
        "best_s": run.best_s,
        "within_one_percent_s": run.within_one_percent_s,
        "num_evaluations": run.num_evaluations,
        "accepted_share": None if twin is None else twin.accepted_share,
        "rejected_gpus": None if twin is None else twin.rejected_gpus,
        "worst_service_ratio": None if twin is None else twin.worst_service_ratio,
        "repair_rounds": None if twin is None else twin.repair_rounds,
        "twin_calls": None if twin is None else twin.twin_calls,
        "replay_accepted_share": None if replay is None else replay.accepted_share,
        "replay_worst_service_ratio": None if replay is None else replay.worst_service_ratio,
        "moves": run.moves,
        "reason": run.reason or ("" if twin is None else twin.reason),
    }


def _summary_row(summary: SolverSummary) -> tuple[str, ...]:
    against = NO_VALUE if summary.wins is None else f"{summary.wins}/{summary.ties}/{summary.losses}"
    return (
        summary.solver,
        str(summary.num_runs),
        str(summary.num_placed),
        _number(summary.mean_gpus, 2),
        _share(summary.gpus_over_bound),
        _share(summary.cost_over_bound),
        _number(summary.first_s, 3),
        _number(summary.best_s, 3),
        _number(summary.within_one_percent_s, 3),
        _number(summary.num_evaluations, 0),
        _share(summary.accepted_share),
        _number(summary.rejected_gpus, 0),
        _number(summary.worst_service_ratio, 3),
        _share(summary.replay_accepted_share),
        _number(summary.mean_moves, 1),
        against,
        _share(summary.mean_saving),
    )


def _instance_row(instance: InstanceRecord, solvers: Sequence[str], runs: Sequence[RunRecord]) -> tuple[str, ...]:
    bound = instance.bound
    cells = []
    for solver in solvers:
        mine = [run for run in runs if (run.instance, run.solver) == (instance.name, solver)]
        gpus = [run.final_gpus for run in mine if run.final_gpus is not None]
        # Where some seed has no placement, a mean of the others would look better than it is.
        complete = bool(mine) and len(gpus) == len(mine)
        cells.append(f"{sum(gpus) / len(gpus):g}" if complete else NO_VALUE)
    return (
        instance.name,
        instance.what,
        f"{instance.num_adapters:,}",
        NO_VALUE if bound is None else str(bound.value),
        NO_VALUE if bound is None else f"{bound.proof}, {bound.model}",
        NO_VALUE if instance.planted_gpus is None else str(instance.planted_gpus),
        *cells,
    )


def _run_row(run: RunRecord, instance: InstanceRecord) -> tuple[str, ...]:
    twin = run.twin
    return (
        run.instance,
        run.solver,
        str(run.seed),
        _number(run.final_gpus, 0),
        _share(over_bound(run, instance)),
        _number(run.num_gpus, 0),
        NO_VALUE if twin is None else str(twin.rejected_gpus),
        NO_VALUE if twin is None else _number(twin.worst_service_ratio, 3),
        _number(run.first_s, 3),
        _number(run.best_s, 3),
        _number(run.within_one_percent_s, 3),
        _number(run.num_evaluations, 0),
        _number(run.moves, 0),
        run.termination if run.status in {"placed", "no placement"} else run.status,
        _short(run.reason or ("" if twin is None else twin.reason)),
    )


def _number(value: float | None, digits: int) -> str:
    return NO_VALUE if value is None else f"{value:,.{digits}f}"


def _share(value: float | None) -> str:
    return NO_VALUE if value is None else f"{100.0 * value:.1f} %"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_REASON else f"{text[: _LONGEST_REASON - 3]}..."
