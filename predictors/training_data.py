"""What a surrogate is fitted to: the rows of data sets, and of GPUs that were recorded while plans were made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from predictors.dataset import load_dataset
from predictors.dataset_folder import Settings
from predictors.labelling import LabelSettings
from predictors.provenance import profile_identity
from predictors.recorded_rows import GpusLabelled, recorded_rows
from predictors.targets import KinRows, TrainingRows, training_rows
from twin.errors import InputError
from twin.profile import PerformanceProfile

LEAST_SCENARIOS = 30


@dataclass(frozen=True)
class TrainingData:
    """Rows and where they are from.

    Attributes
    ----------
    rows
        Measured as long as those of the first data set of the profile, which the surrogate is then about; those of
        recorded GPUs come last.
    is_recorded
        Which rows those are, bool [N].
    datasets
        Of each data set the rows and the settings.
    kin, kin_datasets
        Rows that other profiles labelled or that were measured longer or shorter, only fitted to; and the same
        of their data sets.
    recorded
        See `predictors.recorded_rows.RecordedRows`; ``None``: no folder of recorded GPUs was given.
    """

    rows: TrainingRows
    is_recorded: NDArray[np.bool_]
    datasets: list[dict[str, Any]]
    kin: tuple[KinRows, ...]
    kin_datasets: list[dict[str, Any]]
    recorded: dict[str, Any] | None

    @property
    def num_sets(self) -> int:
        """Sets of adapters that the rows are of."""
        num_sampled = len(np.unique(self.rows.scenario[~self.is_recorded]))
        return num_sampled + (0 if self.recorded is None else int(self.recorded["gpus"]))


def read_training_data(
    datasets: Sequence[str | Path],
    profile: PerformanceProfile,
    *,
    kin: Sequence[PerformanceProfile] = (),
    recorded: Sequence[str | Path] = (),
    workers: int | None = None,
    observer: Callable[[GpusLabelled], None] = lambda event: None,  # noqa: ARG005 - nobody watches
) -> TrainingData:
    """Return the rows of all data sets, and of recorded GPUs, which are labelled as the first data set is.

    Scenarios of each source are numbered on.

    Parameters
    ----------
    datasets
        The first one that `profile` labelled has the window that the surrogate is about.
    kin
        Other profiles that may have labelled some of the data sets.
    recorded, workers, observer
        See `predictors.recorded_rows.recorded_rows`.

    Raises
    ------
    InputError
        When there is no such data set, it was labelled with none of the profiles, two hold the same scenarios, those of
        `profile` and the window have too few scenarios all together, or recorded GPUs cannot be used.
    """
    read = [_read_dataset(dataset, [profile, *kin]) for dataset in datasets]
    _require_other_scenarios(read)
    window_s = next((one.window_s for one in read if one.profile is profile), 1.0)
    own = [one for one in read if one.profile is profile and one.window_s == window_s]
    tables = [one.table for one in own]
    num_scenarios = sum(table["scenario"].nunique() for table in tables)
    if num_scenarios < LEAST_SCENARIOS:
        raise InputError(
            f"a data set must have at least {LEAST_SCENARIOS} scenarios to be trained on. Got {num_scenarios}.",
            field="rows",
            value=num_scenarios,
            hint="sample more rows with `placer dataset`",
        )
    num_sampled = sum(map(len, tables))
    facts = None
    if recorded:
        settings = own[0].settings
        labels = LabelSettings(settings.seed, settings.seeds, settings.horizon_s, settings.warmup_s)
        found = recorded_rows(recorded, profile, labels, workers=workers, observer=observer)
        facts = found.facts
        tables.append(found.table)
    rows = training_rows(pd.concat(_numbered_on(tables), ignore_index=True))
    others = [one for one in read if one not in own]
    return TrainingData(
        rows,
        np.arange(len(rows)) >= num_sampled,
        [one.facts for one in own],
        tuple(KinRows(training_rows(one.table), one.profile, one.window_s / window_s) for one in others),
        [one.facts for one in others],
        facts,
    )


@dataclass(frozen=True, eq=False)
class _Dataset:
    file: str
    table: pd.DataFrame
    settings: Settings
    profile: PerformanceProfile

    @property
    def window_s(self) -> float:
        """Seconds of a simulation that were measured."""
        return self.settings.horizon_s - self.settings.warmup_s

    @property
    def facts(self) -> dict[str, Any]:
        return {"rows": len(self.table), **self.settings.model_dump(mode="json")}


def _read_dataset(dataset: str | Path, profiles: Sequence[PerformanceProfile]) -> _Dataset:
    """Return a data set and which of the profiles labelled it."""
    table, manifest = load_dataset(dataset)
    labelled_with = manifest.settings.profile
    for profile in profiles:
        if profile_identity(profile) == labelled_with:
            return _Dataset(str(dataset), table, manifest.settings, profile)
    expected = ", or ".join(str(profile_identity(profile)) for profile in profiles)
    raise InputError(
        f"a data set must have been labelled with a profile it is used for, {expected}. "
        f"{dataset} was labelled with {labelled_with}.",
        file=str(dataset),
        field="profile",
        value=labelled_with,
        hint="sample a new data set: the profile is another one, or has been refitted since; name another profile that "
        "labelled one with --kin",
    )


def _require_other_scenarios(datasets: Sequence[_Dataset]) -> None:
    """Raise when two data sets of a profile are of one seed: their scenarios would be fitted to and judged by."""
    seen: dict[tuple[str, int], str] = {}
    for one in datasets:
        key = (one.profile.name, one.settings.seed)
        if key in seen:
            raise InputError(
                f"data sets must not hold the same scenarios. {seen[key]} and {one.file} were both sampled with seed "
                f"{one.settings.seed}.",
                file=one.file,
                field="seed",
                value=one.settings.seed,
                hint="sample one of them with another --seed, or name one folder only",
            )
        seen[key] = one.file


def _numbered_on(tables: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """Return the tables with scenarios that no other one has."""
    numbered, first = [], 0
    for table in tables:
        numbered.append(table.assign(scenario=table["scenario"].astype("int64") + first))
        first = int(numbered[-1]["scenario"].max()) + 1
    return numbered
