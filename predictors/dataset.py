"""Training data: scenarios labelled by the twin, in resumable Parquet shards.

`sample_dataset` is what the command ``placer dataset`` calls; docs/dataset.md describes the rows.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd

from predictors.border import LEAST_LOADS
from predictors.cluster import each_on_cluster
from predictors.dataset_folder import (
    MANIFEST_NAME,
    SCENARIOS_PER_SHARD,
    Manifest,
    Settings,
    open_folder,
    read_shards,
    write_shard,
)
from predictors.features import FEATURE_SCHEMA
from predictors.labelling import ROWS_PER_SEARCH, STARTS, LabelSettings, Row, label_scenario
from predictors.provenance import profile_fingerprint
from predictors.scenarios import FAMILIES
from twin.errors import InputError
from twin.parallel import each_in_parallel
from twin.profile import PerformanceProfile
from twin.report import WAITING_GRACE_S

# Of a shard with the usual numbers of loads.
ROWS_PER_SHARD = sum(ROWS_PER_SEARCH) * SCENARIOS_PER_SHARD
# Raised whenever a number stands for another scenario, or a row for another load, than before.
SAMPLER_VERSION = 1
# Software that can change a row.
_LIBRARIES = ("lora-placer", "numba", "numpy", "pandas", "pyarrow")
_COLUMN_TYPES = {
    "scenario": "int32",
    "search": "int8",
    "row": "int8",
    "num_seeds": "int16",
    "max_model_len": "int32",
    "load_rps": "float64",
    "family": "str",
    "memory_verdict": "str",
    "vllm_version": "str",
}


@dataclass(frozen=True)
class Progress:
    """How far a data set is; rows are those of the finished shards."""

    finished_shards: int
    num_shards: int
    num_rows: int


Observer = Callable[[Progress], None]


def sample_dataset(
    profile: PerformanceProfile,
    *,
    rows: int,
    output: str | Path,
    seed: int = 0,
    seeds: int = 3,
    families: Sequence[str] = FAMILIES,
    horizon_s: float = 600.0,
    warmup_s: float = 100.0,
    loads: tuple[int, int] = ROWS_PER_SEARCH,
    workers: int | None = None,
    cluster: str | None = None,
    observer: Observer | None = None,
) -> Manifest:
    """Sample and label at least `rows` rows into the folder `output`; what an interrupted call finished is kept.

    Each scenario gives ``sum(loads)`` rows: loads around the border of starvation, on two engines. A shard depends
    on the settings and its number only: neither workers, a cluster nor an interruption change the data.

    Parameters
    ----------
    profile
        What to simulate; its model must be a shipped one.
    rows
        Rows wanted, >= 1; rounded up to whole shards. Those whose replica does not start come on top.
    output
        Folder for ``manifest.json`` and ``shard-*.parquet``; continued where it exists.
    seed, seeds
        Of the data set, >= 0; and how many simulations, with other arrivals each, a row is the mean of, >= 1.
    families
        Kinds of scenarios, of `FAMILIES`; in proportion to their shares.
    horizon_s, warmup_s
        Of each simulation, in seconds; the horizon is at least twice the grace of `twin.report`.
    loads
        Of each scenario's first and second replica, at least `predictors.border.LEAST_LOADS` each. With fewer loads a
        data set of so many rows has more scenarios; with more, borders are known better.
    workers
        Processes; ``None``: one per core. Not used with a cluster.
    cluster
        Address of a Dask scheduler, such as ``tcp://host:8786``; ``None``: this machine.
    observer
        Called at the start and after each shard.

    Returns
    -------
    The manifest as it was written.

    Raises
    ------
    InputError
        When a setting is out of range, or the folder holds a data set of other settings or cannot be written.
    ClusterError
        When the cluster cannot be used.
    """
    check_dataset_numbers(rows=rows, seed=seed, seeds=seeds, horizon_s=horizon_s, warmup_s=warmup_s)
    _check_loads(loads)
    label_settings = LabelSettings(seed, seeds, horizon_s, warmup_s, _checked_families(families), loads)
    folder = Path(output)
    settings = Settings(
        sampler_version=SAMPLER_VERSION,
        feature_schema_version=FEATURE_SCHEMA.version,
        profile={"name": profile.name, "fingerprint": profile_fingerprint(profile)},
        seed=seed,
        seeds=seeds,
        horizon_s=horizon_s,
        warmup_s=warmup_s,
        families=label_settings.families,
        scenarios_per_shard=SCENARIOS_PER_SHARD,
        loads=loads,
    )
    num_shards = math.ceil(rows / (sum(loads) * SCENARIOS_PER_SHARD))
    manifest = open_folder(folder, settings, num_shards=num_shards, versions=library_versions())
    label = partial(label_shard, profile, label_settings)
    return fill_folder(folder, manifest, label, workers=workers, cluster=cluster, observer=observer or ignore_progress)


def fill_folder(
    folder: Path,
    manifest: Manifest,
    label: Callable[[int], pd.DataFrame],
    *,
    workers: int | None,
    cluster: str | None,
    observer: Observer,
) -> Manifest:
    """Label the shards that a folder lacks, and write each as soon as it is done.

    Parameters
    ----------
    manifest
        Of the folder (`open_folder`).
    label
        The rows of a shard; of a module, so that processes find it.
    workers, cluster, observer
        See `sample_dataset`.

    Returns
    -------
    The manifest as it was written.
    """
    finished = {entry.shard for entry in manifest.shards}
    missing = [shard for shard in range(manifest.num_shards) if shard not in finished]
    observer(_progress(manifest))
    if not missing:
        return manifest
    results = (
        each_in_parallel(label, missing, workers=workers, backend="loky")
        if cluster is None
        else each_on_cluster(label, missing, address=cluster)
    )
    with closing(results):
        for position, table in results:
            entry = write_shard(folder, missing[position], table, num_unstartable=_num_unstartable(table))
            manifest = manifest.with_shard(entry)
            manifest.write(folder)
            observer(_progress(manifest))
    return manifest


def load_dataset(folder: str | Path, *, with_unstartable: bool = False) -> tuple[pd.DataFrame, Manifest]:
    """Return the rows of a data set's finished shards, in order, and its manifest.

    Parameters
    ----------
    with_unstartable
        Also return the rows whose replica does not start: they have no labels.

    Raises
    ------
    InputError
        When the folder has no manifest or no finished shard, or a shard cannot be read.
    """
    path = Path(folder)
    manifest = Manifest.read(path)
    if manifest is None or not manifest.shards:
        raise InputError(
            f"a data set must be a folder with {MANIFEST_NAME} and at least one finished shard. Got {path}.",
            file=str(path),
            hint="make one with `placer dataset`",
        )
    table = read_shards(path, manifest)
    if not with_unstartable:
        if "memory_verdict" not in table:
            raise InputError(
                f"a data set must hold loads that `placer dataset` labelled. {path} holds "
                f"{', '.join(manifest.settings.families)}.",
                file=str(path),
                field="families",
                value=list(manifest.settings.families),
                hint="make one with `placer dataset`",
            )
        # As text: a damaged file may have anything in the column.
        table = table[table["memory_verdict"].astype(str) == STARTS].reset_index(drop=True)
    return table, manifest


def label_shard(profile: PerformanceProfile, settings: LabelSettings, shard: int) -> pd.DataFrame:
    """Return the rows of a shard, sorted by scenario, search and row."""
    numbers = range(shard * SCENARIOS_PER_SHARD, (shard + 1) * SCENARIOS_PER_SHARD)
    return rows_table([row for number in numbers for row in label_scenario(profile, number, settings)])


def rows_table(rows: Sequence[Row]) -> pd.DataFrame:
    """Return rows as a table with the column types of a shard."""
    table = pd.DataFrame(rows)
    types: dict[str, str] = dict.fromkeys(table.columns, "float32")
    return table.astype(types | _COLUMN_TYPES)


def check_dataset_numbers(*, rows: int, seed: int, seeds: int, horizon_s: float, warmup_s: float) -> None:
    """Raise InputError for the first number outside of its range."""
    for name, value, least in (("rows", rows, 1), ("seed", seed, 0), ("seeds", seeds, 1)):
        if value < least:
            raise InputError(f"`{name}` must be at least {least}. Got {value}.", field=name, value=value)
    # In a shorter one no request can be overdue, and so nothing can starve.
    least_s = 2.0 * WAITING_GRACE_S
    if not (least_s <= horizon_s < math.inf and 0.0 <= warmup_s < horizon_s):
        raise InputError(
            f"the horizon must be finite and at least {least_s:g} s, and the warm-up shorter than it. "
            f"Got {horizon_s:g} s and {warmup_s:g} s.",
            field="horizon_s",
            value=horizon_s,
        )


def _check_loads(loads: tuple[int, int]) -> None:
    if min(loads) < LEAST_LOADS:
        raise InputError(
            f"`loads` must be at least {LEAST_LOADS} for each replica: fewer do not find the border. Got {loads}.",
            field="loads",
            value=loads,
        )


def _checked_families(families: Sequence[str]) -> tuple[str, ...]:
    """Return the families once each, in the order of `FAMILIES`; InputError for one that there is not."""
    unknown = [family for family in families if family not in FAMILIES]
    if unknown or not families:
        raise InputError(
            f"a family must be one of {', '.join(FAMILIES)}. Got {unknown[0] if unknown else 'none'!r}.",
            field="families",
            value=unknown[0] if unknown else None,
        )
    return tuple(family for family in FAMILIES if family in families)


def library_versions() -> dict[str, str]:
    """Return the versions of the software that can change a row."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _num_unstartable(table: pd.DataFrame) -> int:
    """Return the rows that say that their replica does not start."""
    return int((table["memory_verdict"] != STARTS).sum()) if "memory_verdict" in table else 0


def _progress(manifest: Manifest) -> Progress:
    return Progress(len(manifest.shards), manifest.num_shards, manifest.num_rows)


def ignore_progress(_: Progress) -> None:
    """Do nothing with progress that nobody asked for."""
