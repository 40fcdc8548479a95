"""Whether the API server's stalls follow from the simulated runs: predicted against measured polling intervals.

``python -m benchmarks.front_end_stalls DATA [--update docs/twin-model.md] [--seeds 3] [--json] [--smoke]``

DATA is the folder with the measured runs (``runs/real_runs.csv``). Their load generator asked for ``/metrics`` again
`FrontEnd.poll_interval_s` after each answer, so that the length of a run over the number of its answers (`n_samples`),
less that wait, is the mean time that an answer took: the mean stall, if the server does nothing else meanwhile
(twin/validation/front_end.py). The twin predicts it from the combinations of adapters that it sees in the same run.

Chosen are the runs that served, whose client kept up (a saturated client asks late), and whose mean stall is above
`LEAST_STALL_S`: the intervals of the runs without stalls differ by some milliseconds, which must be little beside what
is compared. The stall is compared, not the interval: two seconds of every interval are the wait.

The two times of a line are fitted again to the chosen runs with ``split=calib``, without those of more than
`MOST_LOAD_RPS`, where rendering competes with serving: non-negative least squares of relative errors. The wait is the
median of what is left of the interval in the calib runs that hardly stall. `--update` replaces the table of the
document; without it, it is printed, with the runs that are predicted worst.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.document_tables import number, print_or_update, table
from benchmarks.front_end_fit import FittedTime, fit_times, fit_wait, mean_stall_s
from twin.errors import PlacerError
from twin.kernel import run_kernel
from twin.parallel import each_in_parallel
from twin.profile import PerformanceProfile
from twin.replica import build_inputs
from twin.validation.cells import RUN_ID, read_cells
from twin.validation.front_end import FrontEnd, PageGrowth, page_growth
from twin.validation.regenerate import regenerate_traffic
from twin.validation.replay import choose_profiles, replica_of, warm_engine
from twin.validation.runs import MeasuredRun, read_runs

FITTED_SPLIT = "calib"
LEAST_STALL_S = 0.05
MOST_LOAD_RPS = 19.0
NUM_WORST = 5
SMOKE_HORIZON_S = 60.0
# Which times a prediction is made with.
SHIPPED, FITTED = "shipped", "fitted here"
MICROSECONDS, MILLISECONDS = 1e6, 1e3


@dataclass(frozen=True)
class PolledRun:
    """A measured run and how often its page of metrics was read.

    Attributes
    ----------
    num_samples
        Answers in the whole run.
    interval_s
        Mean time from one answer to the next.
    """

    run: MeasuredRun
    num_samples: int
    interval_s: float

    @property
    def load_rps(self) -> float:
        """Offered requests per second."""
        assert self.run.traffic is not None
        return self.run.traffic.offered_rps

    def stall_s(self, front_end: FrontEnd) -> float:
        """Return the mean time that an answer took."""
        return self.interval_s - front_end.poll_interval_s


@dataclass(frozen=True)
class RunStalls:
    """Measured and predicted stalls of one run, with the shipped times and with those fitted here."""

    run_id: str
    split: str
    max_loras: int
    num_adapters: int
    load_rps: float
    measured_samples: int
    predicted_samples: float
    measured_interval_s: float
    predicted_interval_s: float
    measured_stall_s: float
    predicted_stall_s: float
    refitted_stall_s: float


@dataclass(frozen=True)
class Agreement:
    """How near predicted mean stalls, and the polling intervals with them, are to the measured ones.

    `within_10` and `within_25` count the runs whose stall is off by at most that many percent.
    """

    runs: str
    times: str
    num_runs: int
    median_stall_ratio: float
    within_10: int
    within_25: int
    median_interval_ratio: float
    largest_interval_error_percent: float


@dataclass(frozen=True)
class StallReport:
    """The chosen runs, how near their predictions are, and the times of the front end."""

    runs: tuple[RunStalls, ...]
    agreements: tuple[Agreement, ...]
    times: tuple[FittedTime, ...]


def polled_runs(path: Path) -> list[PolledRun]:
    """Return the runs of a table that served, whose client kept up, and whose answers were counted.

    Raises
    ------
    InputError
        When the table cannot be used; see `twin.validation.runs.read_runs`.
    """
    counts = {cells.run_id: cells for cells in read_cells(path, required=(RUN_ID, "n_samples", "duration_s"))}
    found = []
    for run in read_runs(path).runs:
        cells = counts[run.run_id]
        if run.status != "ok" or run.has_client_collapsed or run.traffic is None or cells.is_empty("n_samples"):
            continue
        num_samples = cells.integer("n_samples")
        found.append(PolledRun(run, num_samples, cells.number("duration_s", least=1.0) / num_samples))
    return found


def simulated_pages(
    runs: Sequence[PolledRun], *, num_seeds: int, horizon_s: float | None
) -> list[tuple[PageGrowth, ...]]:
    """Return how the page of metrics of each run grows, once per seed; `horizon_s` ``None``: each run's own length."""
    profiles = choose_profiles([polled.run for polled in runs], None)
    simulate = functools.partial(_simulated_page, profiles=profiles, horizon_s=horizon_s)
    subjects = [(polled.run, seed) for polled in runs for seed in range(num_seeds)]
    # Compiling here, once, puts the machine code where the workers find it.
    warm_engine("fast")
    pages = dict(each_in_parallel(simulate, subjects, workers=None, backend="loky"))
    return [tuple(pages[first + seed] for seed in range(num_seeds)) for first in range(0, len(subjects), num_seeds)]


def _simulated_page(
    subject: tuple[MeasuredRun, int], *, profiles: Mapping[str, PerformanceProfile], horizon_s: float | None
) -> PageGrowth:
    run, seed = subject
    assert run.traffic is not None
    warm_engine("fast")
    horizon_s = run.total_time_s if horizon_s is None else horizon_s
    workload, requests = regenerate_traffic(run.traffic, run_id=run.run_id, seed=seed, horizon_s=horizon_s)
    replica = replica_of(run, profiles[run.model])
    inputs = build_inputs(workload, requests, replica, horizon_s=horizon_s, hash_seed=seed)
    return page_growth(inputs, run_kernel(inputs))


def agreement(name: str, times: str, runs: Sequence[RunStalls]) -> Agreement:
    """Return how near the predictions of `runs` (at least one) with the shipped or the fitted times are."""
    measured_s = np.array([run.measured_stall_s for run in runs])
    predicted_s = np.array([run.refitted_stall_s if times == FITTED else run.predicted_stall_s for run in runs])
    intervals_s = np.array([run.measured_interval_s for run in runs])
    ratios = predicted_s / measured_s
    interval_ratios = (intervals_s - measured_s + predicted_s) / intervals_s
    return Agreement(
        runs=name,
        times=times,
        num_runs=len(runs),
        median_stall_ratio=float(np.median(ratios)),
        within_10=int((np.abs(ratios - 1.0) <= 0.10).sum()),
        within_25=int((np.abs(ratios - 1.0) <= 0.25).sum()),
        median_interval_ratio=float(np.median(interval_ratios)),
        largest_interval_error_percent=float(100.0 * np.abs(interval_ratios - 1.0).max()),
    )


def measure(data: Path, *, num_seeds: int, horizon_s: float | None) -> StallReport:
    """Simulate the runs of a folder and compare their stalls.

    Raises
    ------
    InputError
        When the table of runs cannot be used, or has too few runs for the fit.
    """
    front_end = FrontEnd()
    runs = [
        polled
        for polled in polled_runs(data / "runs" / "real_runs.csv")
        if polled.stall_s(front_end) > LEAST_STALL_S or polled.run.split == FITTED_SPLIT
    ]
    simulated = list(zip(runs, simulated_pages(runs, num_seeds=num_seeds, horizon_s=horizon_s), strict=True))
    chosen = [(polled, pages) for polled, pages in simulated if polled.stall_s(front_end) > LEAST_STALL_S]
    quiet = [(polled, pages) for polled, pages in simulated if polled.stall_s(front_end) <= LEAST_STALL_S]
    fitted = [
        (polled, pages)
        for polled, pages in chosen
        if polled.run.split == FITTED_SPLIT and polled.load_rps <= MOST_LOAD_RPS
    ]
    stalls_s = np.array([polled.stall_s(front_end) for polled, _ in fitted])
    label, name = fit_times([pages for _, pages in fitted], stalls_s, front_end)
    wait = fit_wait([pages for _, pages in quiet], np.array([polled.interval_s for polled, _ in quiet]), front_end)
    refitted = replace(front_end, label_s=label.fitted_s, label_name_s=name.fitted_s)
    compared = tuple(_compare(polled, pages, front_end, refitted) for polled, pages in chosen)
    return StallReport(compared, _agreements(compared), (label, name, *([wait] if wait else [])))


def _compare(polled: PolledRun, pages: Sequence[PageGrowth], front_end: FrontEnd, refitted: FrontEnd) -> RunStalls:
    predicted_s = mean_stall_s(pages, front_end)
    return RunStalls(
        run_id=polled.run.run_id,
        split=polled.run.split,
        max_loras=polled.run.engine.max_loras,
        num_adapters=polled.run.num_adapters,
        load_rps=polled.load_rps,
        measured_samples=polled.num_samples,
        predicted_samples=polled.num_samples * polled.interval_s / (front_end.poll_interval_s + predicted_s),
        measured_interval_s=polled.interval_s,
        predicted_interval_s=front_end.poll_interval_s + predicted_s,
        measured_stall_s=polled.stall_s(front_end),
        predicted_stall_s=predicted_s,
        refitted_stall_s=mean_stall_s(pages, refitted),
    )


def _agreements(runs: Sequence[RunStalls]) -> tuple[Agreement, ...]:
    """Return the agreement per split: of all runs, and of those without a load that competes with rendering."""
    rows = []
    for split in sorted({run.split for run in runs}):
        members = [run for run in runs if run.split == split]
        light = [run for run in members if run.load_rps <= MOST_LOAD_RPS]
        for name, part in ((split, members), (f"{split}, at most {MOST_LOAD_RPS:g} requests/s", light)):
            rows += [agreement(name, times, part) for times in (SHIPPED, FITTED) if part]
    return tuple(rows)


def stalls_table(report: StallReport) -> list[str]:
    """Return the agreement of the predictions, and the times behind them."""
    rows = [
        [
            row.runs,
            row.times,
            str(row.num_runs),
            number(row.median_stall_ratio),
            str(row.within_10),
            str(row.within_25),
            number(row.median_interval_ratio, 3),
            number(row.largest_interval_error_percent, 1),
        ]
        for row in report.agreements
    ]
    header = ["runs", "times", "number", "stall, predicted / measured, median", "within 10 %", "within 25 %"]
    return [
        *table([*header, "polling interval, median ratio", "largest error %"], rows),
        "",
        *table(["time", "shipped", "fitted here", "runs"], [_time_row(time) for time in report.times]),
    ]


def _time_row(time: FittedTime) -> list[str]:
    scale, unit, digits = (MICROSECONDS, "µs", 3) if time.shipped_s < 1e-3 else (1.0, "s", 4)
    shipped, fitted, low, high = (
        f"{scale * value:.{digits}g}" for value in (time.shipped_s, time.fitted_s, time.low_s, time.high_s)
    )
    return [time.name, f"{shipped} {unit}", f"{fitted} [{low}, {high}] {unit}", str(time.num_runs)]


def worst_table(report: StallReport) -> list[str]:
    """Return the runs of each split whose stalls are predicted worst, the worst first."""
    rows = []
    for split in sorted({run.split for run in report.runs}):
        members = [run for run in report.runs if run.split == split]
        members.sort(key=lambda run: -abs(run.predicted_stall_s / run.measured_stall_s - 1.0))
        rows += [
            [
                run.run_id,
                split,
                f"{run.max_loras}/{run.num_adapters}",
                number(run.load_rps, 1),
                f"{run.measured_samples} / {run.predicted_samples:.0f}",
                f"{run.measured_interval_s:.3f} / {run.predicted_interval_s:.3f}",
                f"{MILLISECONDS * run.measured_stall_s:.0f} / {MILLISECONDS * run.predicted_stall_s:.0f}",
                number(run.predicted_stall_s / run.measured_stall_s),
            ]
            for run in members[:NUM_WORST]
        ]
    header = ["run", "split", "slots/adapters", "requests/s", "samples, measured / predicted", "interval s", "stall ms"]
    return table([*header, "stall, predicted / measured"], rows)


def main(arguments: list[str] | None = None) -> int:
    """Measure, then print the tables or JSON, or put the table into the document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with runs/real_runs.csv")
    parser.add_argument("--update", type=Path, help="document whose table is replaced")
    parser.add_argument("--seeds", type=int, default=3, help="simulations per run")
    parser.add_argument("--json", action="store_true", help="print JSON, with every run")
    parser.add_argument(
        "--smoke", action="store_true", help=f"simulate {SMOKE_HORIZON_S:g} s once, to see that it runs"
    )
    options = parser.parse_args(arguments)
    if options.update and (options.smoke or options.json):
        parser.error("--update writes the measured table into a document: leave out --smoke and --json.")
    if options.seeds < 1:
        parser.error(f"--seeds must be at least 1. Got {options.seeds}.")
    try:
        report = measure(
            options.data,
            num_seeds=1 if options.smoke else options.seeds,
            horizon_s=SMOKE_HORIZON_S if options.smoke else None,
        )
        if options.json:
            print(json.dumps(asdict(report), indent=2, sort_keys=True))
            return 0
        found = {"stalls": stalls_table(report)}
        if options.update is None:
            found["predicted worst, with the shipped times"] = worst_table(report)
        print_or_update(found, options.update)
    except PlacerError as error:
        parser.error(error.message)
    return 0


if __name__ == "__main__":
    sys.exit(main())
