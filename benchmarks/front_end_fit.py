"""Fit the times of the API server's front end to measured stalls: see `benchmarks.front_end_stalls`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from twin.calibration.step_fit import solve_least_squares
from twin.errors import InputError
from twin.validation.front_end import FrontEnd, PageGrowth, poll_page
from twin.workload import NANOSECONDS

LEAST_RUNS = 3
# The polls' times depend a little on the times that are fitted.
FIT_ITERATIONS = 4
NUM_RESAMPLES = 200
INTERVAL_PERCENT = 95.0


@dataclass(frozen=True)
class FittedTime:
    """A time of the front end: what is shipped, and what this fit gives, with its interval over resampled runs."""

    name: str
    num_runs: int
    shipped_s: float
    fitted_s: float
    low_s: float
    high_s: float


def mean_stall_s(pages: Sequence[PageGrowth], front_end: FrontEnd) -> float:
    """Return the mean stall of a run over its polls, the mean over its simulations."""
    return float(np.mean([poll_page(page, front_end).duration_s.mean() for page in pages]))


def mean_page(pages: Sequence[PageGrowth], front_end: FrontEnd) -> NDArray[np.float64]:
    """Return float64 [2]: lines, and names in them, of the page at a mean poll of `front_end`."""
    means = []
    for page in pages:
        polls_s, grid_s = poll_page(page, front_end).start_s, page.grid_ns / NANOSECONDS
        written = (page.new_lines, page.new_lines * page.names)
        means.append([np.interp(polls_s, grid_s, np.cumsum(count)).mean() for count in written])
    result: NDArray[np.float64] = np.mean(means, axis=0)
    return result


def fit_times(
    pages: Sequence[Sequence[PageGrowth]], stalls_s: NDArray[np.float64], front_end: FrontEnd
) -> tuple[FittedTime, FittedTime]:
    """Fit the times per line and per name to mean stalls.

    Parameters
    ----------
    pages
        Of each run, its simulations.
    stalls_s
        float64 [runs], measured, > 0.
    front_end
        Its wait is taken as given; its two times are what is shipped.

    Raises
    ------
    InputError
        When there are fewer than `LEAST_RUNS` runs.
    """
    if len(stalls_s) < LEAST_RUNS:
        raise InputError(
            f"two times must be fitted to the stalls of at least {LEAST_RUNS} runs. There are {len(stalls_s)}.",
            field="n_samples",
            hint="give a table with more runs that stalled",
        )
    relative = np.ones(len(stalls_s))
    matrix, times = np.empty((0, 2)), np.array([front_end.label_s, front_end.label_name_s])
    for _ in range(FIT_ITERATIONS):
        polled = replace(front_end, label_s=float(times[0]), label_name_s=float(times[1]))
        matrix = np.stack([mean_page(page, polled) for page in pages]) / stalls_s[:, None]
        times = solve_least_squares(matrix, relative)
    generator = np.random.default_rng(0)
    chosen = [generator.integers(0, len(stalls_s), len(stalls_s)) for _ in range(NUM_RESAMPLES)]
    low, high = _interval(np.stack([solve_least_squares(matrix[rows], relative) for rows in chosen]))
    shipped = (front_end.label_s, front_end.label_name_s)
    label, name = (
        FittedTime(label, len(stalls_s), shipped[column], float(times[column]), float(low[column]), float(high[column]))
        for column, label in enumerate(("per line", "per adapter name"))
    )
    return label, name


def fit_wait(
    pages: Sequence[Sequence[PageGrowth]], intervals_s: NDArray[np.float64], front_end: FrontEnd
) -> FittedTime | None:
    """Return the wait between answers: measured interval less predicted stall, the median; ``None`` without a run."""
    if not len(intervals_s):
        return None
    waits_s = intervals_s - np.array([mean_stall_s(page, front_end) for page in pages])
    generator = np.random.default_rng(0)
    medians = np.median(generator.choice(waits_s, (NUM_RESAMPLES, len(waits_s))), axis=1)
    low, high = _interval(medians)
    median = float(np.median(waits_s))
    return FittedTime("wait", len(waits_s), front_end.poll_interval_s, median, float(low), float(high))


def _interval(samples: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    tail = 0.5 * (100.0 - INTERVAL_PERCENT)
    low, high = np.percentile(samples, [tail, 100.0 - tail], axis=0)
    return low, high
