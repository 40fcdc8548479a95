"""The tables of a validation as text cells: the command line and the HTML report show the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from placer.validation import Validation
from placer.wording import counted
from twin.validation.published import TwinScore
from twin.validation.quantities import SCORED_QUANTITIES
from twin.validation.runs import FAILED_STATUS
from twin.validation.scores import ErrorSummary, GroupScore, StarvationScore

NO_VALUE = "-"
DIMENSIONS = ("split", "model", "slots", "max rank", "regime")

# What is shown of each error, in the order of the lines.
_MEASURES = {
    "half-SMAPE %": "half_smape_percent",
    "SMAPE %": "smape_percent",
    "bias %": "bias_percent",
    "median half-SMAPE %": "median_percent",
    "between seeds %": "seed_spread_percent",
}
_SIGNED = frozenset({"bias_percent"})


@dataclass(frozen=True)
class TextTable:
    """A table ready to be printed.

    Attributes
    ----------
    title
        What it shows.
    columns
        Heading, and whether the column is of numbers (right-aligned).
    rows
        Cells as text.
    """

    title: str
    columns: tuple[tuple[str, bool], ...]
    rows: tuple[tuple[str, ...], ...]


def validation_tables(validation: Validation) -> tuple[TextTable, ...]:
    """Return all tables of a validation; the headline comes first, empty tables are left out.

    So are dimensions in which all runs are in one group (`single_groups`).
    """
    alone = single_groups(validation)
    groups = [group for group in validation.groups if group.dimension not in alone]
    by_dimension = {name: [group for group in groups if group.dimension == name] for name in DIMENSIONS}
    tables = [
        headline_table(validation.groups[0]),
        *(_errors_table(dimension, members) for dimension, members in by_dimension.items()),
        _starvation_table(groups),
        _memory_table(validation),
        _published_table(validation),
        _worst_table(validation),
    ]
    return tuple(table for table in tables if table.rows)


def single_groups(validation: Validation) -> dict[str, str]:
    """Return the dimensions in which all runs are in one group, with its name: its errors are those of all runs."""
    names = {
        dimension: [group.name for group in validation.groups if group.dimension == dimension]
        for dimension in DIMENSIONS
    }
    return {dimension: members[0] for dimension, members in names.items() if len(members) == 1}


def headline_table(group: GroupScore) -> TextTable:
    """Return the errors over all headline runs, one quantity per row."""
    columns = (("", False), ("runs", True), *((name, True) for name in _MEASURES))
    rows = tuple(
        (
            label,
            str(group.errors[name].num_rows),
            *(_measure(group.errors[name], field) for field in _MEASURES.values()),
        )
        for name, label in SCORED_QUANTITIES.items()
    )
    return TextTable("Errors over informative runs whose client kept up", columns, rows)


def summary_lines(validation: Validation) -> tuple[str, ...]:
    """Return what was validated, and what it took, in sentences."""
    names = {role: [entry.name for entry in validation.inputs if entry.role == role] for role in ("runs", "profile")}
    horizon = "each run's own length" if validation.horizon_s is None else f"{validation.horizon_s:g} s"
    metastable = validation.metastable
    alone = [f"{dimension} {name}" for dimension, name in single_groups(validation).items()]
    replayed = f"{', '.join(names['runs'])}: {counted(validation.num_replayed, 'run')} replayed"
    seeds = "one seed" if len(validation.seeds) == 1 else f"mean of {len(validation.seeds)} seeds"
    disagreeing = f"{counted(len(metastable), 'run')}, {validation.groups[0].num_metastable} of them informative"
    disagreeing += f" ({', '.join(metastable)})" if metastable else ""
    seen = "as clients of a polled server see them" if validation.has_front_end else "those of the engine"
    return (
        f"{replayed}, {counted(validation.num_failed, 'row')} left out ({FAILED_STATUS})",
        f"twin: {validation.engine} engine, profile {', '.join(names['profile'])}, {horizon}, {seeds}",
        f"latencies: {seen}",
        f"metastable, the seeds disagree: {disagreeing}",
        *([f"all runs: {', '.join(alone)}"] if alone else []),
    )


def timing_line(validation: Validation) -> str:
    """Return what the simulations took."""
    timings = validation.timings
    return (
        f"{counted(timings.num_simulations, 'simulation')} in {timings.total_wall_s:.1f} s on "
        f"{counted(timings.workers, 'core')}; one takes "
        f"{timings.wall_s_mean:.2f} s wall, {timings.cpu_s_mean:.2f} s CPU (at most {timings.wall_s_max:.2f}, "
        f"{timings.cpu_s_max:.2f})"
    )


def regime_lines(validation: Validation) -> tuple[str, ...]:
    """Return the rules of the regimes that occur."""
    occurring = {row.regime for row in validation.rows}
    return tuple(f"{name}: {rule}" for name, rule in validation.regime_rules.items() if name in occurring)


def _errors_table(dimension: str, groups: Sequence[GroupScore]) -> TextTable:
    labels = SCORED_QUANTITIES.values()
    columns = ((dimension, False), ("runs", True), ("", False), *((label, True) for label in labels))
    rows = []
    for group in groups:
        if group.num_headline_rows == 0:
            continue
        for position, (measure, field) in enumerate(_MEASURES.items()):
            head = (group.name, str(group.num_headline_rows)) if position == 0 else ("", "")
            rows.append((*head, measure, *(_measure(group.errors[name], field) for name in SCORED_QUANTITIES)))
    return TextTable(f"Errors by {dimension}", columns, tuple(rows))


def _starvation_table(groups: Sequence[GroupScore]) -> TextTable:
    columns = (
        ("", False),
        ("", False),
        ("runs", False),
        ("number", True),
        ("F1", True),
        ("precision", True),
        ("recall", True),
        ("agreement", True),
        ("|goodput error|", True),
    )
    rows = []
    for group in groups:
        for population, score in (("headline", group.starvation), ("all", group.starvation_all)):
            if score.num_rows:
                rows.append((group.dimension, group.name, population, *_starvation_cells(score)))
    return TextTable("Starvation", columns, tuple(rows))


def _memory_table(validation: Validation) -> TextTable:
    memory = validation.memory
    columns = (("measured", False), ("predicted to start", True), ("predicted to lack memory", True))
    return TextTable(
        "Memory errors",
        columns,
        (
            ("started", str(memory.ok_predicted_ok), str(memory.ok_predicted_oom)),
            ("lacked memory", str(memory.oom_predicted_ok), str(memory.oom_predicted_oom)),
        ),
    )


def _published_table(validation: Validation) -> TextTable:
    columns = (
        ("runs", False),
        ("number", True),
        ("twin", False),
        ("throughput\nhalf-SMAPE %", True),
        ("throughput\nbias %", True),
        ("ITL mean\nhalf-SMAPE %", True),
        ("ITL mean\nbias %", True),
        ("starvation\nF1", True),
        ("starvation\nagreement", True),
    )
    rows = []
    for comparison in validation.published:
        for name, score in (("ours", comparison.ours), ("published", comparison.published)):
            head = (comparison.rows, str(comparison.num_rows)) if name == "ours" else ("", "")
            rows.append((*head, name, *_twin_cells(score)))
    return TextTable("Beside the published twin, on the same runs", columns, tuple(rows))


def _worst_table(validation: Validation) -> TextTable:
    columns = (("regime", False), ("", False), ("worst runs (half-SMAPE %)", False))
    rows = tuple(
        (
            worst.regime,
            SCORED_QUANTITIES[worst.quantity],
            ", ".join(f"{run.run_id} ({run.half_smape_percent:.1f})" for run in worst.runs),
        )
        for worst in validation.worst
    )
    return TextTable("Where it is worst", columns, rows)


def _twin_cells(score: TwinScore) -> tuple[str, ...]:
    errors = (score.throughput, score.itl_mean)
    cells = [_measure(error, field) for error in errors for field in ("half_smape_percent", "bias_percent")]
    return (*cells, _share(score.starvation.f1), _share(score.starvation.agreement))


def _starvation_cells(score: StarvationScore) -> tuple[str, ...]:
    shares = (score.f1, score.precision, score.recall, score.agreement, score.goodput_error)
    return (str(score.num_rows), *map(_share, shares))


def _measure(summary: ErrorSummary, field: str) -> str:
    value: float | None = getattr(summary, field)
    if value is None:
        return NO_VALUE
    return f"{value:+.2f}" if field in _SIGNED else f"{value:.2f}"


def _share(value: float | None) -> str:
    return NO_VALUE if value is None else f"{value:.3f}"
