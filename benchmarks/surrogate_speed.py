"""How long a question to a surrogate takes on one thread: a table of docs/training.md.

``python -m benchmarks.surrogate_speed [--surrogate FILE ...] [--rows 10000] [--questions 4000] [--json] [--smoke]
[--update docs/training.md]``

One row is timed in three shells: the graph in ONNX Runtime on memory that it is bound to; with the features copied in
and the outputs out, as `predictors.bound_row` does; and `OnnxSurrogate.predict`, which also checks both. Kinds take
turns, one hundred questions each, so that all meet the same state of the machine. The fastest decile is what the
machine can do; on a shared one the median tells about its neighbours, too. Without ``--surrogate`` the shipped ones are
asked.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.document_tables import print_or_update, table
from predictors.bound_row import BoundRow
from predictors.catalog import shipped_surrogate
from predictors.onnx_surrogate import OnnxSurrogate
from predictors.probes import rows_inside
from predictors.surrogate import OUTPUT_NAMES
from predictors.surrogate_file import INPUT_NAME
from twin.profile import shipped_profiles

QUESTIONS_PER_TURN = 100
# Per question: as many as last about as long as a turn of single ones.
LARGE_QUESTIONS_PER_TURN = 1

Times = dict[str, tuple[float, float]]


def seconds_of(ask: Callable[[], object], questions: int) -> list[float]:
    """Return the wall time of each question, in seconds."""
    seconds = []
    for _ in range(questions):
        started = time.perf_counter()
        ask()
        seconds.append(time.perf_counter() - started)
    return seconds


def times_of(file: Path, *, num_rows: int, questions: int) -> Times:
    """Return by kind of question the fastest decile and the median, in microseconds."""
    surrogate = OnnxSurrogate.load(file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), sess_options=options, providers=["CPUExecutionProvider"])
    bound = BoundRow(session, OUTPUT_NAMES)
    rows = rows_inside(surrogate.domain, num_rows)
    one = rows[:1]
    kinds: dict[str, tuple[Callable[[], object], int]] = {
        "one row, graph": (bound.run, QUESTIONS_PER_TURN),
        "one row, copied in and out": (lambda: bound.ask(one), QUESTIONS_PER_TURN),
        "one row, checked": (lambda: surrogate.predict(one), QUESTIONS_PER_TURN),
        f"{num_rows:,} rows, graph": (
            lambda: session.run(list(OUTPUT_NAMES), {INPUT_NAME: rows}),
            LARGE_QUESTIONS_PER_TURN,
        ),
        f"{num_rows:,} rows, checked": (lambda: surrogate.predict(rows), LARGE_QUESTIONS_PER_TURN),
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    bound.ask(one)
    for _ in range(max(1, questions // QUESTIONS_PER_TURN)):
        for kind, (ask, times) in kinds.items():
            seconds[kind] += seconds_of(ask, times)
    return {
        kind: (1e6 * float(np.percentile(values, 10)), 1e6 * float(np.median(values)))
        for kind, values in seconds.items()
    }


def _text(microseconds: float) -> str:
    return f"{microseconds:.1f} µs" if microseconds < 1000.0 else f"{microseconds / 1000.0:.1f} ms"


def main(arguments: list[str] | None = None) -> int:
    """Ask, and print the table or put it into a document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--surrogate", action="append", type=Path, help="ONNX file; repeatable")
    parser.add_argument("--rows", type=int, default=10_000, help="of a large question")
    parser.add_argument("--questions", type=int, default=4000, help="of one row, of each kind")
    parser.add_argument("--json", action="store_true", help="print microseconds as JSON")
    parser.add_argument("--smoke", action="store_true", help="few questions, to see that it runs")
    parser.add_argument("--update", type=Path, help="document whose table is replaced")
    options = parser.parse_args(arguments)
    files = options.surrogate or [shipped_surrogate(name) for name in shipped_profiles()]
    questions = QUESTIONS_PER_TURN if options.smoke else options.questions
    by_file = {file.name: times_of(file, num_rows=options.rows, questions=questions) for file in files}
    if options.json:
        print(json.dumps(by_file, indent=2))
        return 0
    kinds = list(next(iter(by_file.values())))
    rows = [
        [name, *(f"{_text(fastest)} ({_text(median)})" for fastest, median in (times[kind] for kind in kinds))]
        for name, times in by_file.items()
    ]
    lines = table(["fastest decile (median)", *kinds], rows)
    print_or_update({"time of a question": [*lines, "", f"ONNX Runtime {onnxruntime.__version__}."]}, options.update)
    return 0


if __name__ == "__main__":
    sys.exit(main())
