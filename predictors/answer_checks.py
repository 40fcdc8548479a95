"""Checks of what a surrogate answers: shapes, numbers, that each row is answered for itself, and sensible physics."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from predictors.check_report import Check, Outcome
from predictors.features import describe_row, inflate, offered_tps
from predictors.surrogate import OUTPUT_NAMES, SurrogateOutput

# Two answers to the same question agree to this, relative to the larger one: sums in another order differ by less.
RELATIVE_TOLERANCE = 1e-5
ABSOLUTE_TOLERANCE = 1e-6
# A regression may answer slightly more than "all is served"; more than this is another quantity.
RATIO_SLACK = 0.05
# How far the throughput may be off the ratio times the offered load, relative and in tokens/s.
THROUGHPUT_TOLERANCE = (1e-3, 1e-2)
# Predictions may wobble against the physics by this much (ratio and probability) before they count as clearly wrong.
CLEARLY = 0.05
# Loads at which every set is asked about, relative to its own: next to nothing, and several times too much.
LOAD_FACTORS = (0.02, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
# Answers that differ by less over such loads do not depend on the question.
CONSTANT = 1e-6

Ask = Callable[[NDArray[np.float32]], SurrogateOutput]
# What is looked at once there are answers.
COMPARED = (
    "finite_inside",
    "finite_outside",
    "ratio_range",
    "probability_range",
    "not_negative",
    "repeatable",
    "order_of_rows",
    "batch_of_rows",
    "features_unchanged",
    "throughput_consistent",
    "depends_on_features",
    "more_load",
    "accepts_something",
    "refuses_something",
)
# Check, its outputs, and the largest value that they may have; the smallest is 0.
_RANGES: tuple[tuple[str, tuple[str, ...], float], ...] = (
    ("ratio_range", ("throughput_ratio",), 1.0 + RATIO_SLACK),
    ("probability_range", ("starvation_probability",), 1.0),
    ("not_negative", ("throughput_tps", "itl_s", "ttft_s"), np.inf),
)


@dataclass(frozen=True)
class Questions:
    """What is asked.

    Attributes
    ----------
    inside, outside
        Rows inside and outside of the domain, float32 [I, F] and [O, F]; I + O >= 1.
    largest_batch
        Rows of the largest batch; the rows are repeated to fill it.
    outcome_outside
        Of an answer outside that is no number: a loaded file refuses such a set, others are taken at their word.
    is_sweep
        Whether the rows reach from next to nothing to hopeless loads.
    """

    inside: NDArray[np.float32]
    outside: NDArray[np.float32]
    largest_batch: int
    outcome_outside: Outcome
    is_sweep: bool

    @property
    def rows(self) -> NDArray[np.float32]:
        """All rows, float32 [I + O, F]."""
        return np.concatenate([self.inside, self.outside])

    @property
    def base_loads(self) -> NDArray[np.float32]:
        """Rows that are also asked at other loads: those inside, if there are any."""
        return self.inside if len(self.inside) else self.outside

    def batch(self, size: int) -> NDArray[np.float32]:
        """Return the first `size` rows, repeated as often as needed, float32 [size, F]."""
        rows = self.rows
        return np.ascontiguousarray(rows[np.arange(size) % len(rows)])


class _UnansweredError(Exception):
    """The surrogate gave no answer that can be looked at; the text says what it gave."""


def answer_checks(ask: Ask, questions: Questions, *, clock: Callable[[], float]) -> tuple[list[Check], float | None]:
    """Ask and compare; return the checks, and the median seconds that one row takes (None: it cannot be asked).

    Parameters
    ----------
    ask
        Answers features, float32 [N, F], as the surrogate gives them.
    clock
        Returns seconds.
    """

    def answer(rows: NDArray[np.float32]) -> SurrogateOutput:
        return _answer(ask, rows)

    shapes = _check_shapes(answer, questions)
    if shapes.outcome == "passed":
        try:
            checks, seconds = _compare(answer, questions, clock)
        except _UnansweredError as error:
            shapes = _judged("answers", [str(error)], "")
        else:
            return [shapes, *checks], float(np.median(seconds))
    reason = "`answers` failed."
    return [shapes, *(Check(name, "skipped", reason) for name in COMPARED)], None


def _compare(ask: Ask, questions: Questions, clock: Callable[[], float]) -> tuple[list[Check], list[float]]:
    rows = questions.rows
    batch = ask(rows.copy())
    again = ask(rows.copy())
    singles, seconds = _ask_one_by_one(ask, rows, clock)
    loads = [ask(inflate(questions.base_loads, factor)) for factor in LOAD_FACTORS]
    return [
        *_check_numbers(batch, questions),
        *_check_ranges(batch, rows),
        _same("repeatable", again, batch, rows, "the same question gets the same answer"),
        _check_order(ask, batch, rows),
        _check_batches(ask, questions, batch, singles),
        _check_unchanged(ask, rows),
        _check_throughput(batch, rows),
        _check_dependence(batch, loads, questions),
        _check_more_load(loads, questions.base_loads),
        *_check_decisions(loads),
    ], seconds


def _answer(ask: Ask, rows: NDArray[np.float32]) -> SurrogateOutput:
    """Return the answer to `rows`; raise when there is none, or of another shape or type."""
    num_rows = len(rows)
    try:
        output = ask(rows)
    except Exception as error:
        # Whatever somebody else's implementation raises is the finding.
        text = getattr(error, "message", str(error))
        raise _UnansweredError(f"for {num_rows} rows it raises {type(error).__name__}: {text}") from error
    problems = []
    for name in OUTPUT_NAMES:
        values = getattr(output, name, None)
        if not isinstance(values, np.ndarray):
            problems.append(f"`{name}` is {type(values).__name__}, not a NumPy array")
        elif values.dtype != np.float32 or values.shape != (num_rows,):
            problems.append(f"`{name}` is {values.dtype} {list(values.shape)}, not float32 [{num_rows}]")
    if problems:
        raise _UnansweredError(f"for {num_rows} rows, {'; '.join(problems)}")
    # Copies: some implementations write every answer into the same arrays.
    return SurrogateOutput(*(getattr(output, name).copy() for name in OUTPUT_NAMES))


def _check_shapes(ask: Ask, questions: Questions) -> Check:
    """Ask for batches of several sizes: whether there is an answer, and of what shape and type."""
    problems = []
    sizes = sorted({0, 1, 2, questions.largest_batch})
    for size in sizes:
        try:
            ask(questions.batch(size))
        except _UnansweredError as error:
            problems.append(str(error))
    return _judged("answers", problems, f"five outputs, float32 [N], for N = {', '.join(map(str, sizes))}")


def _ask_one_by_one(
    ask: Ask, rows: NDArray[np.float32], clock: Callable[[], float]
) -> tuple[SurrogateOutput, list[float]]:
    """Return the answers to each row asked alone, and the seconds that each took."""
    singles, seconds = [], []
    for row in rows:
        question = row[np.newaxis].copy()
        started_s = clock()
        singles.append(ask(question))
        seconds.append(clock() - started_s)
    joined = (np.concatenate([getattr(single, name) for single in singles]) for name in OUTPUT_NAMES)
    return SurrogateOutput(*joined), seconds


def _check_numbers(batch: SurrogateOutput, questions: Questions) -> Iterator[Check]:
    num_inside = len(questions.inside)
    parts: tuple[tuple[str, NDArray[np.float32], slice, Outcome], ...] = (
        ("finite_inside", questions.inside, slice(num_inside), "failed"),
        ("finite_outside", questions.outside, slice(num_inside, None), questions.outcome_outside),
    )
    for name, rows, part, outcome in parts:
        if not len(rows):
            yield Check(name, "skipped", "no such set was asked about.")
            continue
        problems = []
        for output in OUTPUT_NAMES:
            values = getattr(batch, output)[part]
            problems += _wrong_values(output, values, ~np.isfinite(values), rows, "must be a finite number")
        if problems and outcome == "warning":
            problems.append("planning refuses such sets unheard")
        yield _judged(name, problems, f"all outputs are finite for {len(rows)} sets", outcome=outcome)


def _check_ranges(batch: SurrogateOutput, rows: NDArray[np.float32]) -> Iterator[Check]:
    """Check ranges; what is not finite is told elsewhere."""
    for name, outputs, most in _RANGES:
        bounds = f"in [0, {most:g}]" if np.isfinite(most) else "at least 0"
        problems = []
        for output in outputs:
            values = getattr(batch, output)
            wrong = np.isfinite(values) & ((values < 0.0) | (values > most + ABSOLUTE_TOLERANCE))
            problems += _wrong_values(output, values, wrong, rows, f"must be {bounds}")
        quoted = ", ".join(f"`{output}`" for output in outputs)
        yield _judged(name, problems, f"{quoted}: {bounds}")


def _wrong_values(
    output: str, values: NDArray[np.float32], wrong: NDArray[np.bool_], rows: NDArray[np.float32], rule: str
) -> list[str]:
    """Say how often an output breaks a rule, and for which set first; nothing if it does not."""
    if not wrong.any():
        return []
    first = int(np.argmax(wrong))
    value, subject = values[first], describe_row(rows[first])
    return [f"`{output}` {rule}, and is {value:g} for {subject} ({int(wrong.sum())} of {len(values)} sets)"]


def _check_order(ask: Ask, batch: SurrogateOutput, rows: NDArray[np.float32]) -> Check:
    backwards = ask(np.ascontiguousarray(rows[::-1]))
    reordered = SurrogateOutput(*(getattr(backwards, name)[::-1] for name in OUTPUT_NAMES))
    return _same("order_of_rows", reordered, batch, rows, "the order of the rows does not matter")


def _check_batches(ask: Ask, questions: Questions, batch: SurrogateOutput, singles: SurrogateOutput) -> Check:
    """Compare a batch with its rows one by one, and with a much larger batch."""
    rows, rule = questions.rows, "an answer does not depend on the other rows"
    alone = _same("batch_of_rows", singles, batch, rows, rule)
    if alone.outcome == "failed":
        return alone
    size = questions.largest_batch
    larger, where = ask(questions.batch(size)), np.arange(size) % len(rows)
    expected = SurrogateOutput(*(getattr(batch, name)[where] for name in OUTPUT_NAMES))
    return _same("batch_of_rows", larger, expected, questions.batch(size), rule)


def _same(name: str, actual: SurrogateOutput, expected: SurrogateOutput, rows: NDArray[np.float32], rule: str) -> Check:
    """Compare two answers to the same rows; NaN equals NaN here, because it is told elsewhere."""
    problems = []
    for output in OUTPUT_NAMES:
        one, other = getattr(actual, output), getattr(expected, output)
        is_close = np.isclose(one, other, rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE, equal_nan=True)
        if not is_close.all():
            other_value = f"once {other[int(np.argmin(is_close))]:g}, which must not change"
            problems += _wrong_values(output, one, ~is_close, rows, f"is {other_value}")
    return _judged(name, problems, rule)


def _check_unchanged(ask: Ask, rows: NDArray[np.float32]) -> Check:
    question = rows.copy()
    ask(question)
    problems = [] if np.array_equal(question, rows) else ["the features that were given are written to"]
    return _judged("features_unchanged", problems, "the features that are given are not written to")


def _check_throughput(batch: SurrogateOutput, rows: NDArray[np.float32]) -> Check:
    relative, absolute = THROUGHPUT_TOLERANCE
    # Infinities are told elsewhere.
    with np.errstate(invalid="ignore"):
        served = batch.throughput_ratio * offered_tps(rows)
    is_close = np.isclose(batch.throughput_tps, served, rtol=relative, atol=absolute)
    wrong = ~is_close & np.isfinite(served) & np.isfinite(batch.throughput_tps)
    must = f"must be `throughput_ratio` x the offered load, {served[int(np.argmax(wrong))]:g} tokens/s"
    problems = _wrong_values("throughput_tps", batch.throughput_tps, wrong, rows, must)
    return _judged("throughput_consistent", problems, "`throughput_tps` is `throughput_ratio` x the offered load")


def _check_dependence(batch: SurrogateOutput, loads: list[SurrogateOutput], questions: Questions) -> Check:
    """Find a model whose answers are always the same: most often, its input was lost in the export.

    The throughput is left out: it follows the load also where nothing is predicted. This fails rather than warns,
    because no replica serves next to nothing and several times too much with the same latencies: such a file holds no
    predictions, and a plan would be made by the twin's rejections alone. About a few rows of somebody's, which may all
    be light, it proves nothing, and is a warning.
    """
    spread = 0.0
    for name in OUTPUT_NAMES:
        if name != "throughput_tps":
            values = np.concatenate([getattr(output, name) for output in (batch, *loads)])
            known = values[np.isfinite(values)]
            spread = max(spread, float(np.ptp(known)) if len(known) else 0.0)
    problems = []
    if spread < CONSTANT:
        problems.append(
            "every set gets the same answer, idle or overloaded: the model does not use its input (was it cut off by "
            "the export?)"
        )
    outcome: Outcome = "failed" if questions.is_sweep else "warning"
    return _judged("depends_on_features", problems, "other sets get other answers", outcome=outcome)


def _check_more_load(loads: list[SurrogateOutput], rows: NDArray[np.float32]) -> Check:
    """Look for sets that get clearly better when their load grows."""
    problems = []
    for (lower, lighter), (higher, heavier) in pairwise(zip(LOAD_FACTORS, loads, strict=True)):
        # Infinities are told elsewhere.
        with np.errstate(invalid="ignore"):
            gain = heavier.throughput_ratio - lighter.throughput_ratio
            relief = lighter.starvation_probability - heavier.starvation_probability
        for text, change in (("`throughput_ratio` rises", gain), ("`starvation_probability` falls", relief)):
            known = np.where(np.isfinite(change), change, 0.0)
            worst = int(np.argmax(known))
            if known[worst] > CLEARLY:
                problems.append(
                    f"{text} by {known[worst]:.3f} when the load grows from {lower:g} to {higher:g} times that of "
                    f"{describe_row(rows[worst])} ({int((known > CLEARLY).sum())} of {len(rows)} sets)"
                )
    return _judged("more_load", problems, "more load of the same set never makes it clearly better", outcome="warning")


def _check_decisions(loads: list[SurrogateOutput]) -> Iterator[Check]:
    """Look at what planning would make of the answers."""
    # Its module reads data sets, too, for which it loads pandas: only a check pays for that.
    rule: Callable[[SurrogateOutput], NDArray[np.bool_]] = importlib.import_module("predictors.errors").is_feasible
    accepted = np.stack([rule(output) for output in loads])
    told = (
        f"planning would accept {int(accepted.sum())} of {accepted.size} sets, at {LOAD_FACTORS[0]:g} to "
        f"{LOAD_FACTORS[-1]:g} times the load"
    )
    for name, is_suspect, problem in (
        ("accepts_something", not accepted.any(), "every set is said to starve, so that nothing can be placed"),
        ("refuses_something", accepted.all(), "no set is said to starve: the twin's rejections would make the plan"),
    ):
        yield _judged(name, [f"{problem}; {told}"] if is_suspect else [], told, outcome="warning")


def _judged(name: str, problems: list[str], rule: str, *, outcome: Outcome = "failed") -> Check:
    """Return a passed check that says what holds, or one with the problems."""
    return Check(name, outcome, f"{'; '.join(problems)}.") if problems else Check(name, "passed", f"{rule}.")
