"""What each family of models makes of the same rows: error, latency and size, a table of docs/training.md.

``python -m benchmarks.surrogate_families ROWS [ROWS ...] [--profile llama-3.1-8b-h100-64gb] [--trials 1]
[--time-limit 600] [--seed 0] [--family NAME ...] [--smoke] [--update docs/training.md]``

ROWS are folders of ``placer dataset``. Every family is fitted as ``placer train`` fits it, and judged on the test rows
near their border; ``neural`` needs PyTorch. The model that is written is thrown away.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.document_tables import print_or_update, table
from benchmarks.packed_sets import DEFAULT_PROFILE
from predictors.dataset import ROWS_PER_SHARD, sample_dataset
from predictors.training import (
    ALL_FAMILY_NAMES,
    FAMILY_NAMES,
    FamilyReport,
    TrainingReport,
    TrainingSettings,
    train_surrogate,
)
from twin.profile import PerformanceProfile, load_profile

HEADER = (
    "family",
    "throughput ratio, mean error",
    "packed sets",
    "starvation, Brier score",
    "F1",
    "ITL p95, median error %",
    "one row",
    "10,000 rows",
    "size",
    "fitted in",
)


def train_all(datasets: Sequence[Path], profile: PerformanceProfile, *, settings: TrainingSettings) -> TrainingReport:
    """Fit all families to the rows."""
    with tempfile.TemporaryDirectory() as folder:
        return train_surrogate(
            datasets,
            profile,
            output=Path(folder) / "surrogate.onnx",
            settings=settings,
            workers=1,
            observer=lambda event: print(event, file=sys.stderr, flush=True),
        )


def cells_of(family: FamilyReport) -> list[str]:
    """Return the row of a family."""
    near, packed = family.errors["near_border"], family.errors["packed"]
    return [
        f"`{family.name}`",
        f"{near['ratio_mae']:.4f}",
        f"{packed['ratio_mae']:.4f}",
        f"{near['brier']:.4f}",
        f"{near['starvation_f1']:.3f}",
        f"{near['itl_median_error']:.1f}",
        f"{family.latency_us[1]:.1f} µs",
        f"{family.latency_us[10_000] / 1000.0:.1f} ms",
        f"{family.size_bytes / 1e6:.2f} MB",
        f"{family.fit_s:.0f} s",
    ]


def main(arguments: list[str] | None = None) -> int:
    """Fit, and print the table or put it into a document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", nargs="*", type=Path, help="folders of `placer dataset`")
    parser.add_argument("--profile", default=DEFAULT_PROFILE, help="that labelled them: shipped profile or JSON file")
    parser.add_argument("--trials", type=int, default=1, help="fits of each family")
    parser.add_argument("--time-limit", type=float, default=600.0, help="seconds for each family")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", action="append", choices=ALL_FAMILY_NAMES, help="default: all but polyhedra")
    parser.add_argument("--smoke", action="store_true", help="on a few rows of short simulations that are made here")
    parser.add_argument("--update", type=Path, help="document whose table is replaced")
    options = parser.parse_args(arguments)
    if not options.rows and not options.smoke:
        parser.error("give a folder of `placer dataset`, or --smoke")
    profile = load_profile(options.profile)
    with tempfile.TemporaryDirectory() as folder:
        datasets = options.rows
        if options.smoke:
            datasets = [Path(folder)]
            sample_dataset(
                profile, rows=4 * ROWS_PER_SHARD, output=folder, seeds=1, horizon_s=40.0, warmup_s=10.0, workers=1
            )
        settings = TrainingSettings(
            tuple(options.family or FAMILY_NAMES), options.time_limit, options.trials, options.seed, risk_gpus=0
        )
        report = train_all(datasets, profile, settings=settings)
    facts = report.facts
    command = (
        f"`python -m benchmarks.surrogate_families ROWS --profile {profile.name} --trials {options.trials} "
        f"--time-limit {options.time_limit:g} --seed {options.seed}`, on {facts['fitted_rows']:,} of {facts['rows']:,} "
        f"rows ({facts['scenarios']:,} sets); errors on {facts['test_rows']:,}."
    )
    lines = [*table(HEADER, [cells_of(family) for family in report.families]), "", command]
    print_or_update({f"families, {profile.name}": lines}, options.update)
    return 0


if __name__ == "__main__":
    sys.exit(main())
