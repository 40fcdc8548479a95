"""Scenarios that no surrogate was trained with, each labelled by many seeds at one load near its border.

``python -m benchmarks.held_out_rows --profile NAME --output FOLDER [--scenarios 5000] [--seeds 4] [--workers N]``

A data set for training has few seeds for each of many loads: half of a good surrogate's error on its rows is the
chance in their labels. Here a search with one seed and ten minutes finds the border of a scenario's first replica, and
a load within 15 % of it is simulated by others for as long as plans are. `benchmarks.surrogate_accuracy` judges
surrogates by the folder; the same command continues one that was interrupted, and ``placer dataset --check FOLDER``
proves that it is whole.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import pandas as pd

from predictors.dataset import Progress, fill_folder, library_versions, rows_table
from predictors.dataset_folder import SCENARIOS_PER_SHARD, Manifest, Settings, open_folder
from predictors.features import FEATURE_SCHEMA
from predictors.labelling import LabelSettings, label_near_border
from predictors.provenance import profile_fingerprint
from predictors.scenarios import FAMILIES
from twin.judging_window import DEFAULT_HORIZON_S, DEFAULT_WARMUP_S
from twin.profile import PerformanceProfile, load_profile, shipped_profiles

# Data sets for training have other seeds.
HELD_OUT_SEED = 9_000_003
# Raised whenever a number stands for another row than before.
SAMPLER_VERSION = 2
# Of the search for the border: loads, horizon and warm-up.
SEARCH_LOADS = 9
SEARCH_S = (600.0, 100.0)


def label_shard(profile: PerformanceProfile, labels: Settings, shard: int) -> pd.DataFrame:
    """Return the rows of a shard, one for each scenario."""
    search = LabelSettings(
        labels.seed, 1, horizon_s=SEARCH_S[0], warmup_s=SEARCH_S[1], loads=(SEARCH_LOADS, SEARCH_LOADS)
    )
    numbers = range(shard * SCENARIOS_PER_SHARD, (shard + 1) * SCENARIOS_PER_SHARD)
    window = (labels.horizon_s, labels.warmup_s)
    return rows_table(
        [label_near_border(profile, number, search, num_seeds=labels.seeds, window=window) for number in numbers]
    )


def sample_held_out(
    profile: PerformanceProfile,
    folder: Path,
    *,
    scenarios: int,
    seeds: int = 4,
    horizon_s: float = DEFAULT_HORIZON_S,
    warmup_s: float = DEFAULT_WARMUP_S,
    workers: int | None = None,
) -> Manifest:
    """Label at least so many scenarios into a folder; what an interrupted call finished is kept."""
    described = Settings(
        sampler_version=SAMPLER_VERSION,
        feature_schema_version=FEATURE_SCHEMA.version,
        profile={"name": profile.name, "fingerprint": profile_fingerprint(profile)},
        seed=HELD_OUT_SEED,
        seeds=seeds,
        horizon_s=horizon_s,
        warmup_s=warmup_s,
        families=FAMILIES,
        scenarios_per_shard=SCENARIOS_PER_SHARD,
        # One load of one replica, whatever was tried to find its border.
        loads=(1, 0),
    )
    num_shards = -(-scenarios // SCENARIOS_PER_SHARD)
    manifest = open_folder(folder, described, num_shards=num_shards, versions=library_versions())
    label = partial(label_shard, profile, described)
    return fill_folder(folder, manifest, label, workers=workers, cluster=None, observer=_say)


def _say(progress: Progress) -> None:
    print(f"{progress.finished_shards} of {progress.num_shards} shards", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Label, and say how many rows there are."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--profile", required=True, choices=shipped_profiles(), help="shipped profile")
    parser.add_argument("--output", type=Path, required=True, help="folder of the rows; continued where it exists")
    parser.add_argument("--scenarios", type=int, default=5000)
    parser.add_argument("--seeds", type=int, default=4, help="simulations of a row")
    parser.add_argument("--workers", type=int, help="processes; default: all cores")
    options = parser.parse_args(arguments)
    manifest = sample_held_out(
        load_profile(options.profile),
        options.output,
        scenarios=options.scenarios,
        seeds=options.seeds,
        workers=options.workers,
    )
    print(f"{manifest.num_rows:,} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
