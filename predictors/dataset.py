"""Training data: scenarios labelled by the twin, dense around the border of starvation, in resumable Parquet shards.

Run ``python -m predictors.dataset --profile NAME --output FOLDER --rows 20000``.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd

from predictors.features import FEATURE_SCHEMA, build_features
from predictors.provenance import profile_fingerprint
from predictors.scenarios import Scenario, draw_scenario
from twin.errors import InputError, PlacerError
from twin.hardware import GpuType, load_model
from twin.profile import PerformanceProfile, load_profile
from twin.report import SimulationReport
from twin.simulate import simulate

LOGGER = logging.getLogger(__name__)

# Rows per replica of a scenario: the first search has to find the border, the second starts at that of the first. The
# last row of each is far from the border.
ROWS_PER_SEARCH = (8, 4)
ROWS_PER_SCENARIO = sum(ROWS_PER_SEARCH)
SCENARIOS_PER_SHARD = 16
MANIFEST_NAME = "manifest.json"

# About what one GPU serves in tokens/s and requests/s: only where the search for the border starts.
_FIRST_GUESS_TPS = 9_000.0
_FIRST_GUESS_RPS = 60.0


@dataclass(frozen=True)
class Progress:
    """How far a data set is."""

    finished_shards: int
    num_shards: int
    num_rows: int


Observer = Callable[[Progress], None]


def sample_dataset(
    profile: PerformanceProfile,
    *,
    rows: int,
    seed: int,
    output: str | Path,
    workers: int = 1,
    observer: Observer | None = None,
    horizon_s: float = 600.0,
    warmup_s: float = 100.0,
) -> Path:
    """Sample and label at least `rows` rows into the folder `output`; what an interrupted call finished is kept.

    Each scenario gives `ROWS_PER_SCENARIO` rows: loads chosen by bisection on the twin's verdict, on two engines. A
    scenario depends on `seed` and its number only: neither the workers nor an interruption change the data.

    Parameters
    ----------
    profile
        What to simulate; its model must be a shipped one.
    rows
        Rows wanted, >= 1; rounded up to whole shards.
    output
        Folder for ``manifest.json`` and ``shard-*.parquet``.
    workers
        Processes.
    observer
        Called after each shard.
    horizon_s, warmup_s
        Of each simulation, in seconds.

    Returns
    -------
    The folder.

    Raises
    ------
    InputError
        When the folder holds a data set of another profile, seed or horizon, or cannot be written.
    """
    if rows < 1:
        raise InputError(f"`rows` must be at least 1. Got {rows}.", field="rows", value=rows)
    folder = Path(output)
    settings = {
        "schema_version": 1,
        "feature_schema_version": FEATURE_SCHEMA.version,
        "profile": {"name": profile.name, "fingerprint": profile_fingerprint(profile)},
        "seed": seed,
        "horizon_s": horizon_s,
        "warmup_s": warmup_s,
    }
    finished = _open_folder(folder, settings)
    num_shards = math.ceil(rows / (ROWS_PER_SCENARIO * SCENARIOS_PER_SHARD))
    missing = [shard for shard in range(num_shards) if shard not in finished]
    parallel = joblib.Parallel(n_jobs=workers, return_as="generator_unordered")
    jobs = (joblib.delayed(_label_shard)(profile, shard, seed, horizon_s, warmup_s) for shard in missing)
    for shard, table in parallel(jobs):
        _write_atomically(folder / shard_name(shard), partial(table.to_parquet, index=False))
        finished.add(shard)
        _write_manifest(folder, settings, finished)
        if observer is not None:
            observer(Progress(len(finished), num_shards, len(finished) * ROWS_PER_SCENARIO * SCENARIOS_PER_SHARD))
    return folder


def load_dataset(folder: str | Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return the rows of a data set, in order of their shards, and its manifest.

    Raises
    ------
    InputError
        When the folder has no manifest, or no finished shard.
    """
    path = Path(folder)
    manifest = _read_manifest(path)
    if manifest is None or not manifest["shards"]:
        raise InputError(
            f"a data set must be a folder with {MANIFEST_NAME} and at least one finished shard. Got {path}.",
            file=str(path),
            hint="make one with `python -m predictors.dataset`",
        )
    tables = [pd.read_parquet(path / shard_name(shard)) for shard in manifest["shards"]]
    return pd.concat(tables, ignore_index=True), manifest


def shard_name(shard: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{shard:05d}.parquet"


def _label_shard(
    profile: PerformanceProfile, shard: int, seed: int, horizon_s: float, warmup_s: float
) -> tuple[int, pd.DataFrame]:
    numbers = range(shard * SCENARIOS_PER_SHARD, (shard + 1) * SCENARIOS_PER_SHARD)
    records = [
        record
        for number in numbers
        for record in label_scenario(profile, number, seed=seed, horizon_s=horizon_s, warmup_s=warmup_s)
    ]
    table = pd.DataFrame(records)
    types: dict[str, str] = dict.fromkeys(table.columns, "float32")
    return shard, table.astype(types | {"scenario": "int32", "search": "int8"})


def label_scenario(
    profile: PerformanceProfile, number: int, *, seed: int, horizon_s: float, warmup_s: float
) -> list[dict[str, float]]:
    """Return the labelled rows of scenario `number` of the data set with `seed`."""
    model = load_model(profile.model)
    gpu = GpuType(name=profile.gpu, memory_gib=profile.gpu_memory_gib, profile=profile.name)
    generator = np.random.default_rng(np.random.SeedSequence([seed, number]))
    scenario = draw_scenario(model, gpu, profile, generator=generator, num_replicas=len(ROWS_PER_SEARCH))
    tokens = float(np.sum(scenario.population.aggregate(1.0)[3:5]))
    border_rps = min(_FIRST_GUESS_TPS / tokens, _FIRST_GUESS_RPS) * float(np.exp(generator.normal(0.0, 0.2)))
    records: list[dict[str, float]] = []
    for index in range(len(scenario.replicas)):
        search = _BorderSearch(border_rps)
        for row in range(ROWS_PER_SEARCH[index]):
            is_last = row == ROWS_PER_SEARCH[index] - 1
            total_rps = search.elsewhere(generator) if is_last else search.next_load(generator)
            workload = scenario.population.workload(total_rps, horizon_s=horizon_s, generator=generator)
            report = simulate(workload, scenario.replicas[index], horizon_s=horizon_s, warmup_s=warmup_s)
            search.tell(total_rps, is_starved=report.has_starvation)
            record = _record(scenario, index, total_rps, report)
            records.append({"scenario": number, "search": index, **record})
        border_rps = search.border_rps
    return records


class _BorderSearch:
    """Loads to try: bracket the border of starvation by factors of two, bisect to 5 %, then stay within that."""

    def __init__(self, first_rps: float) -> None:
        self._lower: float | None = None
        self._upper: float | None = None
        self._next_rps = first_rps

    @property
    def border_rps(self) -> float:
        """Best guess of the largest load without starvation."""
        if self._lower is not None and self._upper is not None:
            return math.sqrt(self._lower * self._upper)
        return self._next_rps

    def next_load(self, generator: np.random.Generator) -> float:
        """Return the next load to simulate, in requests per second."""
        if self._lower is None or self._upper is None:
            return self._next_rps
        if self._upper > 1.05 * self._lower:
            return self.border_rps
        return self.border_rps * float(np.exp(generator.normal(0.0, 0.08)))

    def elsewhere(self, generator: np.random.Generator) -> float:
        """Return a load far from the border, idle to hopeless, in requests per second."""
        return self.border_rps * float(np.exp(generator.uniform(np.log(0.04), np.log(3.0))))

    def tell(self, total_rps: float, *, is_starved: bool) -> None:
        """Learn the verdict on a load; one that the bracket implies, or that contradicts it, changes nothing."""
        if is_starved and (self._upper is None or total_rps < self._upper):
            self._upper = max(total_rps, self._lower or 0.0)
        elif not is_starved and (self._lower is None or total_rps > self._lower):
            self._lower = min(total_rps, self._upper if self._upper is not None else math.inf)
        self._next_rps = total_rps * (0.5 if is_starved else 2.0)


def _record(scenario: Scenario, index: int, total_rps: float, report: SimulationReport) -> dict[str, float]:
    features = build_features(scenario.population.aggregate(total_rps), scenario.engine_columns(index))[0]
    missing = math.nan
    return dict(zip(FEATURE_SCHEMA.names, features.tolist(), strict=True)) | {
        "throughput_ratio": report.throughput_ratio,
        "throughput_tps": report.throughput_tps,
        "offered_tps": report.offered_tps,
        "is_starved": float(report.is_starved),
        "has_starvation": float(report.has_starvation),
        "itl_p95_s": report.itl.p95_s if report.itl.p95_s is not None else missing,
        "ttft_p95_s": report.ttft.p95_s if report.ttft.p95_s is not None else missing,
        "running_mean": report.running_mean,
        "waiting_mean": report.waiting_mean,
        "kv_usage_mean": report.kv_usage_mean,
        "num_preemptions": float(report.num_preemptions),
    }


def _open_folder(folder: Path, settings: dict[str, Any]) -> set[int]:
    """Create the folder, or check that it holds the same data set; return the shards that are finished."""
    manifest = _read_manifest(folder)
    if manifest is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write_manifest(folder, settings, set())
        except OSError as error:
            raise InputError(
                f"`output` must be a folder that can be written. {folder}: {error.strerror}.",
                field="output",
                value=str(folder),
            ) from error
        return set()
    differing = [key for key, value in settings.items() if manifest.get(key) != value]
    if differing:
        raise InputError(
            "a data set can only be continued with the settings it was begun with. "
            f"{folder} differs in {', '.join(differing)}.",
            file=str(folder / MANIFEST_NAME),
            field=differing[0],
            value=settings[differing[0]],
            hint="give another output folder",
        )
    return {shard for shard in manifest["shards"] if (folder / shard_name(shard)).is_file()}


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / MANIFEST_NAME
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} must be valid JSON. {error}.", file=str(path)) from error
    if not isinstance(content, dict) or not isinstance(content.get("shards"), list):
        raise InputError(f"{path} must be the manifest of a data set. Delete it to begin anew.", file=str(path))
    return content


def _write_manifest(folder: Path, settings: dict[str, Any], finished: set[int]) -> None:
    text = json.dumps({**settings, "shards": sorted(finished)}, sort_keys=True, indent=2) + "\n"
    _write_atomically(folder / MANIFEST_NAME, lambda path: path.write_text(text, encoding="utf-8"))


def _write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside `path`, then rename: a file of that name is always complete."""
    temporary = path.with_name(f".{path.name}.part")
    write(temporary)
    temporary.replace(path)


def main(arguments: list[str] | None = None) -> int:
    """Sample a data set from the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m predictors.dataset", description=__doc__)
    parser.add_argument("--profile", required=True, help="shipped profile, or path of a profile JSON file")
    parser.add_argument("--output", required=True, type=Path, help="folder of the shards; continued if it exists")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=joblib.cpu_count())
    parser.add_argument("--horizon", type=float, default=600.0, help="simulated seconds per row")
    parser.add_argument("--warmup", type=float, default=100.0, help="of them not counted")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)

    def report(progress: Progress) -> None:
        LOGGER.info("shard %d of %d, %d rows", progress.finished_shards, progress.num_shards, progress.num_rows)

    try:
        folder = sample_dataset(
            load_profile(options.profile),
            rows=options.rows,
            seed=options.seed,
            output=options.output,
            workers=options.workers,
            observer=report,
            horizon_s=options.horizon,
            warmup_s=options.warmup,
        )
    except KeyboardInterrupt:
        LOGGER.error("interrupted; run the same command to continue")  # noqa: TRY400 - the traceback says nothing
        return 130
    except PlacerError as error:
        LOGGER.error("error: %s", error.message)  # noqa: TRY400 - the message is meant for users
        return 2
    LOGGER.info("data set: %s", folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
