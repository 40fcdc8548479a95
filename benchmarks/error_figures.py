"""Gather the error figures of the documentation on one page: how sure is an answer, and which command says so.

``python -m benchmarks.error_figures [--update docs/how-sure.md]``

Measures nothing. Every figure is a cell of a table that another command wrote into a document; this one looks it up
there, so that the page cannot say something else than the tables do. A test holds the page to them.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.document_tables import print_or_update, table
from twin.errors import InputError

DOCS = Path(__file__).resolve().parent.parent / "docs"
HEADER = ("what is compared", "figure", "value", "table", "command")

_LLAMA = "llama-3.1-8b-h100-64gb"
_QWEN = "qwen2.5-7b-h100-64gb"
_ACCURACY = "benchmarks.twin_accuracy DATA"
_LOOP = "benchmarks.measured_loop"
_SURROGATE = "benchmarks.surrogate_accuracy DATA"
_HELD_OUT = "benchmarks.surrogate_accuracy --held-out ROWS"
_PACKED = f"benchmarks.packed_sets --profile {_LLAMA} --problems 4 --gpus 16 --risk 0.05"
_WORKLOADS = ("rate", "slots", "adapters", "little KV", "small cache")
_CONFIGURATION = "benchmarks.configuration_accuracy DATA"


@dataclass(frozen=True)
class Figure:
    """A cell of a table of the documentation.

    Attributes
    ----------
    figure
        What the number is, with its unit.
    document
        File in docs/.
    name
        Of the table: what its markers say.
    row
        The first cells of its row, without emphasis.
    column
        Start of the heading of its column.
    command
        Module, with its arguments, that wrote the table; run by ``python -m``.
    """

    figure: str
    document: str
    name: str
    row: tuple[str, ...]
    column: str
    command: str


@dataclass(frozen=True)
class Group:
    """Figures about the same comparison."""

    title: str
    figures: tuple[Figure, ...]


def _on_runs(profile: str) -> tuple[Figure, ...]:
    labels = (
        ("throughput, half-SMAPE %", "throughput"),
        ("ITL mean, half-SMAPE %", "ITL mean"),
        ("starved or not, F1", "starvation: F1"),
    )
    column = f"valid, {profile}"
    return tuple(Figure(text, "twin-model.md", "errors", (row,), column, _ACCURACY) for text, row in labels)


def _held_out(profile: str) -> tuple[Figure, ...]:
    name = f"held out, {profile}"
    return (
        Figure("throughput ratio, mean error", "training.md", name, ("all",), "throughput ratio", _HELD_OUT),
        Figure("probability of starvation, Brier score", "training.md", name, ("all",), "starvation, Brier", _HELD_OUT),
        Figure("ITL p95, median error %", "training.md", name, ("all",), "ITL p95", _HELD_OUT),
        Figure("TTFT p95, median error %", "training.md", name, ("all",), "TTFT p95", _HELD_OUT),
    )


def _measured(workload: str) -> tuple[Figure, ...]:
    return tuple(
        Figure(
            f"workload {workload}: {quantity.partition(',')[0]}, error",
            "measure.md",
            "measured loop",
            (workload, quantity),
            "error",
            _LOOP,
        )
        for quantity in ("throughput, tokens/s", "ITL mean, ms", "loads into slots")
    )


GROUPS = (
    Group("twin, shipped profile, against one-hour runs that it has not seen", _on_runs("shipped profile")),
    Group("twin, micro-benchmarks alone, against the same runs", _on_runs("micro-benchmarks alone")),
    Group(
        "step times, against the measurements that they were fitted to",
        tuple(
            Figure(f"{profile}, MAPE %", "twin-model.md", f"fit {profile}", ("in the fit", "all"), "MAPE", _ACCURACY)
            for profile in (_LLAMA, _QWEN)
        ),
    ),
    Group(
        "twin, calibrated here, against a real vLLM on the CPU with unseen workloads",
        tuple(figure for workload in _WORKLOADS for figure in _measured(workload)),
    ),
    Group(
        "surrogate against the one-hour runs",
        tuple(
            Figure(text, "training.md", "surrogates on measured runs", (row,), "llama", _SURROGATE)
            for text, row in (
                ("throughput, half-SMAPE %", "throughput, half-SMAPE % (bias)"),
                ("ITL mean, half-SMAPE %", "ITL mean, half-SMAPE % (bias)"),
                ("starved or not, F1", "starvation, F1"),
            )
        ),
    ),
    Group("surrogate against the twin near the border, Llama-3.1-8B", _held_out(_LLAMA)),
    Group("surrogate against the twin near the border, Qwen2.5-7B", _held_out(_QWEN)),
    Group(
        "GPUs packed full by the surrogate, judged by the twin",
        (
            Figure("rejected, no risk given", "training.md", f"packed sets, {_LLAMA}", ("all",), "rejected", _PACKED),
            Figure("rejected, risk 0.05", "training.md", f"packed sets, {_LLAMA}", ("all",), "rejected#2", _PACKED),
            Figure(
                "GPUs more than the twin as oracle",
                "training.md",
                f"packed sets, {_LLAMA}",
                ("all",),
                "GPUs more than the oracle's",
                _PACKED,
            ),
        ),
    ),
    Group(
        "best number of adapters and of slots, against measured runs",
        tuple(
            Figure(f"{method}, mean error %", "configuration.md", "measured errors", (method,), "both", _CONFIGURATION)
            for method in ("twin on the grid", "model on the grid", "surrogate on the grid")
        ),
    ),
)


def look_up(figure: Figure, docs: Path = DOCS) -> str:
    """Return the text of a figure's cell, without emphasis.

    Parameters
    ----------
    docs
        Folder of the documents.

    Raises
    ------
    InputError
        When the document has no such table, row or column.
    """
    file = docs / figure.document
    text = file.read_text(encoding="utf-8")
    _, begun, rest = text.partition(f"<!-- {figure.name}: begin -->")
    body, ended, _ = rest.partition(f"<!-- {figure.name}: end -->")
    if not (begun and ended):
        raise _missing(file, f"a table between the markers of {figure.name!r}")
    lines = [_cells(line) for line in body.splitlines() if line.startswith("|")]
    heading, rows = lines[0], _without_gaps(lines[2:])
    column = _column(heading, figure.column)
    if column is None:
        raise _missing(file, f"a column {figure.column!r} in {figure.name!r}")
    for row in rows:
        if all(cell == wanted or cell.startswith(f"{wanted}:") for cell, wanted in zip(row, figure.row, strict=False)):
            return row[column]
    raise _missing(file, f"a row {' | '.join(figure.row)!r} in {figure.name!r}")


def _column(heading: Sequence[str], wanted: str) -> int | None:
    """Return the number of a column; `wanted` may end in ``#2`` for the second one with that heading."""
    name, _, occurrence = wanted.partition("#")
    found = [index for index, cell in enumerate(heading) if cell.startswith(name)]
    position = int(occurrence or 1) - 1
    return found[position] if position < len(found) else None


def _cells(line: str) -> list[str]:
    return [re.sub(r"\*\*|`", "", cell).strip() for cell in line.strip().strip("|").split("|")]


def _without_gaps(rows: list[list[str]]) -> list[list[str]]:
    """Return the rows with an empty first cell filled from the row above: a group is named once."""
    filled: list[list[str]] = []
    for row in rows:
        filled.append([row[0] or (filled[-1][0] if filled else ""), *row[1:]])
    return filled


def _missing(file: Path, what: str) -> InputError:
    return InputError(
        f"{file} must have {what}.", file=str(file), hint="the benchmark that writes the table has changed it"
    )


def rows() -> list[tuple[str, ...]]:
    """Return the rows of the page's table."""
    return [
        (
            group.title if position == 0 else "",
            figure.figure,
            look_up(figure),
            f"[{figure.document.removesuffix('.md')}]({figure.document})",
            f"`{figure.command}`",
        )
        for group in GROUPS
        for position, figure in enumerate(group.figures)
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table or write it into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", type=Path, metavar="DOCUMENT", help="write the table into this document")
    options = parser.parse_args(arguments)
    print_or_update({"error figures": table(HEADER, rows())}, options.update)


if __name__ == "__main__":
    main()
