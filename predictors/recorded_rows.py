"""Recorded GPUs as rows of a data set: labelled by the twin as its own rows are, and remembered in their folder."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from predictors.dataset import SAMPLER_VERSION, rows_table
from predictors.features import FEATURE_SCHEMA
from predictors.labelling import LabelSettings, label_set
from predictors.populations import Population
from predictors.provenance import profile_identity
from predictors.recorded_gpus import RecordedGpu, prepare_folder, read_recorded
from twin.atomic_write import write_atomically
from twin.errors import InputError, TwinError
from twin.hardware import GpuType, load_model
from twin.parallel import each_in_parallel
from twin.profile import PerformanceProfile
from twin.replica import Replica
from twin.tables import READ_ERRORS
from twin.workload import Adapter

# GPUs that are labelled by one process and written as one file: what an interruption loses at most.
GPUS_PER_BATCH = 4
Batch = Sequence[tuple[str, RecordedGpu]]
Label = Callable[[Batch], pd.DataFrame | None]
# Column that says whose a row is, and is none of a data set's.
_KEY = "gpu"


@dataclass(frozen=True)
class GpusLabelled:
    """So many recorded GPUs have labels."""

    done: int
    total: int


@dataclass(frozen=True)
class RecordedRows:
    """Rows of recorded GPUs.

    Attributes
    ----------
    table
        With the columns of a data set; scenarios are numbered from 0, one for each workload.
    facts
        `gpus`, `rejected` and `accepted` when plans were made, `workloads`, `rows`; `rejected_that_starve` and
        `accepted_that_starve`, the shares of those GPUs that starve under their own load with most seeds of the labels;
        `other_profiles` (GPUs passed over) and `unlabelled` (the twin could not simulate all of their loads).
    """

    table: pd.DataFrame
    facts: dict[str, Any]


def recorded_rows(
    folders: Sequence[str | Path],
    profile: PerformanceProfile,
    settings: LabelSettings,
    *,
    workers: int | None = None,
    observer: Callable[[GpusLabelled], None] = lambda event: None,  # noqa: ARG005 - nobody watches
) -> RecordedRows:
    """Label the GPUs of `profile` in these folders, and return their rows.

    Labels are written into the folder of their GPU and used again with the same settings. They depend on the GPU and
    the settings only.

    Parameters
    ----------
    folders
        That `predictors.recorded_gpus` wrote.
    settings
        Of the data set that the rows go with; its families do not count.
    workers
        Processes; ``None``: one per core.
    observer
        Told at the start and after each batch.

    Raises
    ------
    InputError
        When a folder is none, has no GPU of the profile, holds a damaged file, or cannot be written.
    """
    identity = profile_identity(profile)
    gpus: dict[str, RecordedGpu] = {}
    owners: dict[str, Path] = {}
    num_others = 0
    for folder in map(Path, folders):
        found = read_recorded(folder)
        own = {key: gpu for key, gpu in found.items() if gpu.profile == identity}
        _require_some(folder, found, own, identity)
        num_others += len(found) - len(own)
        gpus |= {key: gpu for key, gpu in own.items() if key not in gpus}
        for key in own:
            owners.setdefault(key, folder)
    prefix = _prefix(settings, identity)
    labels = {key: rows for folder in dict.fromkeys(owners.values()) for key, rows in _read_labels(folder, prefix)}
    observer(GpusLabelled(sum(key in labels for key in gpus), len(gpus)))
    missing = [(owners[key], key, gpu) for key, gpu in gpus.items() if key not in labels]
    for rows_by_key in _label_missing(missing, partial(label_batch, profile, settings), prefix=prefix, workers=workers):
        labels |= rows_by_key
        observer(GpusLabelled(sum(key in labels for key in gpus), len(gpus)))
    return _joined(gpus, {key: labels[key] for key in gpus if key in labels}, num_others)


def label_batch(profile: PerformanceProfile, settings: LabelSettings, batch: Batch) -> pd.DataFrame | None:
    """Return the rows of GPUs with a column for their keys; without those that the twin cannot simulate."""
    tables = [_label(profile, settings, key, gpu) for key, gpu in batch]
    labelled = [table for table in tables if table is not None]
    return pd.concat(labelled, ignore_index=True) if labelled else None


def _label(profile: PerformanceProfile, settings: LabelSettings, key: str, gpu: RecordedGpu) -> pd.DataFrame | None:
    replica = Replica(
        model=load_model(profile.model),
        gpu=GpuType(name=profile.gpu, memory_gib=gpu.memory_gib, profile=profile.name),
        engine=gpu.engine,
        profile=profile,
    )
    adapters = [Adapter(name=f"adapter-{index}", **dict(adapter)) for index, adapter in enumerate(gpu.adapters)]
    try:
        rows = label_set(Population.of(adapters), replica, int(key, 16), settings)
    except (InputError, TwinError):
        # Of some seed, a request may be longer than the context; such a GPU is counted as one without labels.
        return None
    # The number is larger than the column; the workload gives another one later.
    return rows_table([row | {"scenario": 0} for row in rows]).assign(**{_KEY: key})


def _label_missing(
    missing: Sequence[tuple[Path, str, RecordedGpu]], label: Label, *, prefix: str, workers: int | None
) -> Iterator[dict[str, pd.DataFrame]]:
    """Label GPUs in batches, write each into their folder as soon as it is there, and yield its rows by key."""
    batches: list[tuple[Path, Batch]] = []
    for folder in dict.fromkeys(folder for folder, _, _ in missing):
        prepare_folder(folder, option="--from-rejections")
        own = [(key, gpu) for owner, key, gpu in missing if owner == folder]
        batches += [(folder, own[start : start + GPUS_PER_BATCH]) for start in range(0, len(own), GPUS_PER_BATCH)]
    if not batches:
        return
    results = each_in_parallel(label, [batch for _, batch in batches], workers=workers, backend="loky")
    with closing(results):
        for position, table in results:
            if table is None:
                continue
            folder, batch = batches[position]
            buffer = io.BytesIO()
            table.to_parquet(buffer, index=False)
            write_atomically(folder / f"{prefix}{_digest([key for key, _ in batch])}.parquet", buffer.getvalue())
            yield _by_key(table)


def _read_labels(folder: Path, prefix: str) -> Iterator[tuple[str, pd.DataFrame]]:
    for path in sorted(folder.glob(f"{prefix}*.parquet")):
        try:
            table = pd.read_parquet(path)
        except READ_ERRORS as error:
            raise InputError(
                f"labels of recorded GPUs must be a readable Parquet file. {path}: {error}.",
                file=str(path),
                hint="delete the file: its labels are simulated again",
            ) from error
        yield from _by_key(table).items()


def _by_key(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {str(key): rows.drop(columns=_KEY) for key, rows in table.groupby(_KEY, sort=False)}


def _joined(gpus: Mapping[str, RecordedGpu], labels: Mapping[str, pd.DataFrame], num_others: int) -> RecordedRows:
    """Join the rows of all GPUs: workloads are scenarios, and GPUs of one workload its searches."""
    if not labels:
        raise InputError(
            f"recorded GPUs must be such that the twin can simulate them. Of {len(gpus)}, it can simulate none.",
            field="from-rejections",
            hint="look at the lengths of prompts and the context of these GPUs",
        )
    workloads = {key: number for number, key in enumerate(dict.fromkeys(gpus[key].workload for key in labels))}
    searches: dict[str, int] = {}
    tables = []
    for key, rows in labels.items():
        workload = gpus[key].workload
        searches[workload] = searches.get(workload, -1) + 1
        tables.append(rows.assign(scenario=workloads[workload], search=searches[workload]))
    starves = {key: bool(rows.loc[rows["row"] == 0, "starved_share"].iloc[0] >= 0.5) for key, rows in labels.items()}
    facts: dict[str, Any] = {"gpus": len(labels), "workloads": len(workloads), "rows": sum(map(len, tables))}
    for verdict in ("rejected", "accepted"):
        chosen = [starves[key] for key in labels if gpus[key].verdict.verdict == verdict]
        facts[verdict] = len(chosen)
        facts[f"{verdict}_that_starve"] = round(sum(chosen) / len(chosen), 5) if chosen else None
    facts |= {"other_profiles": num_others, "unlabelled": len(gpus) - len(labels)}
    return RecordedRows(pd.concat(tables, ignore_index=True), facts)


def _require_some(
    folder: Path, found: Mapping[str, RecordedGpu], own: Mapping[str, RecordedGpu], identity: dict[str, str]
) -> None:
    if own:
        return
    others = sorted({f"{gpu.profile.get('name')} ({gpu.profile.get('fingerprint')})" for gpu in found.values()})
    raise InputError(
        f"a folder of recorded GPUs must have some of the profile that is trained for, {identity['name']} "
        f"({identity['fingerprint']}). {folder} has {'those of ' + ', '.join(others) if others else 'none'}.",
        file=str(folder),
        field="profile" if others else "from-rejections",
        value=others or str(folder),
        hint="record some with `placer solve PROBLEM --record-rejections FOLDER`",
    )


def _prefix(settings: LabelSettings, identity: dict[str, str]) -> str:
    """Return what names of label files begin with: labels of other settings, or of another twin, are others."""
    content = [
        identity["fingerprint"],
        SAMPLER_VERSION,
        FEATURE_SCHEMA.version,
        settings.seed,
        settings.num_seeds,
        settings.horizon_s,
        settings.warmup_s,
    ]
    return f"labels-{_digest(content)}-"


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
