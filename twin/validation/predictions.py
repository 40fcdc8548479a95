"""What the twin predicts for a run: the mean over seeds, and how far the seeds are apart."""

from __future__ import annotations

import csv
import io
import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from twin.stability_report import MOST_RUNNING_FACTOR, MOST_THROUGHPUT_FACTOR, find_disagreements
from twin.validation.cells import RUN_ID
from twin.validation.quantities import SCORED_QUANTITIES, Quantities, mean_quantities
from twin.validation.replay import Replay
from twin.validation.runs import MeasuredRun, Status

# A run is metastable when its largest value over the seeds exceeds its smallest by more than this factor. Runs last an
# hour, in which the seeds' own noise is far smaller.
STABLE_FACTORS = {"goodput_ratio": MOST_THROUGHPUT_FACTOR, "running_mean": MOST_RUNNING_FACTOR}

# What every file of predictions begins with; further columns may follow.
PREDICTION_COLUMNS = (
    RUN_ID,
    "status",
    "tok_per_s",
    "itl_mean_ms",
    "itl_p50_ms",
    "tpot_mean_ms",
    "ttft_p50_ms",
    "running_mean",
    "kv_usage_mean",
    "goodput_ratio",
    "starved",
)
SPREAD_SUFFIX = "_seed_spread_percent"


@dataclass(frozen=True)
class RunPrediction:
    """A measured run and what the twin predicts for it.

    Attributes
    ----------
    status
        ``oom``: the twin's replica does not start.
    quantities
        Means over the seeds.
    seed_spread_percent
        Half-SMAPE between the seeds, the mean over pairs, by quantity; ``None`` with fewer than two values.
    is_metastable
        The seeds disagree about starvation, or by more than `STABLE_FACTORS`.
    wall_s, cpu_s
        Mean over the seeds of what one simulation took.
    """

    run: MeasuredRun
    status: Status
    quantities: Quantities
    seed_spread_percent: dict[str, float | None]
    is_metastable: bool
    wall_s: float
    cpu_s: float

    @property
    def is_starved(self) -> bool | None:
        """Whether the mean goodput over the seeds is that of a starved replica; ``None``: nothing was simulated."""
        return self.quantities.is_starved


def predict_run(run: MeasuredRun, replays: Sequence[Replay]) -> RunPrediction:
    """Return what replays of one run (one per seed, at least one) amount to."""
    samples = [replay.quantities for replay in replays]
    return RunPrediction(
        run=run,
        status="ok" if all(replay.does_start for replay in replays) else "oom",
        quantities=mean_quantities(samples),
        seed_spread_percent={name: _spread_percent(_values(samples, name)) for name in SCORED_QUANTITIES},
        is_metastable=_is_metastable(samples),
        wall_s=statistics.fmean(replay.wall_s for replay in replays),
        cpu_s=statistics.fmean(replay.cpu_s for replay in replays),
    )


def predictions_to_csv(predictions: Sequence[RunPrediction]) -> str:
    """Return predictions as CSV, one row per run.

    The columns are `PREDICTION_COLUMNS`, whether the run is metastable, and the spread of the seeds. Flags are 0 or 1;
    what has no value is empty.
    """
    spreads = [f"{name}{SPREAD_SUFFIX}" for name in SCORED_QUANTITIES]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*PREDICTION_COLUMNS, "metastable", *spreads])
    for prediction in predictions:
        numbers = [prediction.quantities.value(name) for name in PREDICTION_COLUMNS[2:-1]]
        writer.writerow(
            [
                prediction.run.run_id,
                prediction.status,
                *map(_cell, numbers),
                _cell(prediction.is_starved),
                _cell(prediction.is_metastable),
                *(_cell(prediction.seed_spread_percent[name]) for name in SCORED_QUANTITIES),
            ]
        )
    return stream.getvalue()


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.8g}"


def _values(samples: Sequence[Quantities], name: str) -> list[float]:
    return [number for sample in samples if (number := sample.value(name)) is not None]


def _spread_percent(values: list[float]) -> float | None:
    pairs = [100.0 * abs(a - b) / (abs(a) + abs(b)) if a != b else 0.0 for a, b in itertools.combinations(values, 2)]
    return statistics.fmean(pairs) if pairs else None


def _is_metastable(samples: Sequence[Quantities]) -> bool:
    disagreements = find_disagreements(
        starved=[is_starved for sample in samples if (is_starved := sample.is_starved) is not None],
        throughput_ratios=_values(samples, "goodput_ratio"),
        running_means=_values(samples, "running_mean"),
    )
    return bool(disagreements)
