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
from predictors.targets import TrainingRows, training_rows
from twin.errors import InputError
from twin.profile import PerformanceProfile

LEAST_SCENARIOS = 30


@dataclass(frozen=True)
class TrainingData:
    """Rows and where they are from.

    Attributes
    ----------
    rows
        Those of recorded GPUs come last.
    is_recorded
        Which rows those are, bool [N].
    datasets
        Of each data set the rows and the settings.
    recorded
        See `predictors.recorded_rows.RecordedRows`; ``None``: no folder of recorded GPUs was given.
    """

    rows: TrainingRows
    is_recorded: NDArray[np.bool_]
    datasets: list[dict[str, Any]]
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
    recorded: Sequence[str | Path] = (),
    workers: int | None = None,
    observer: Callable[[GpusLabelled], None] = lambda event: None,  # noqa: ARG005 - nobody watches
) -> TrainingData:
    """Return the rows of all data sets, and of recorded GPUs, which are labelled as the first data set is.

    Scenarios of each source are numbered on.

    Parameters
    ----------
    recorded, workers, observer
        See `predictors.recorded_rows.recorded_rows`.

    Raises
    ------
    InputError
        When there is no such data set, it was labelled with another profile, all together have too few scenarios, or
        recorded GPUs cannot be used.
    """
    tables, sources, settings = _read_datasets(datasets, profile)
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
        labels = LabelSettings(settings.seed, settings.seeds, settings.horizon_s, settings.warmup_s)
        found = recorded_rows(recorded, profile, labels, workers=workers, observer=observer)
        facts = found.facts
        tables.append(found.table)
    rows = training_rows(pd.concat(_numbered_on(tables), ignore_index=True))
    return TrainingData(rows, np.arange(len(rows)) >= num_sampled, sources, facts)


def _read_datasets(
    datasets: Sequence[str | Path], profile: PerformanceProfile
) -> tuple[list[pd.DataFrame], list[dict[str, Any]], Settings]:
    """Return the rows and the settings of all data sets, and the settings of the first."""
    tables, sources, settings = [], [], []
    for dataset in datasets:
        table, manifest = load_dataset(dataset)
        _check_profile(manifest.settings.profile, profile, str(dataset))
        tables.append(table)
        settings.append(manifest.settings)
        sources.append({"rows": len(table), **manifest.settings.model_dump(mode="json")})
    return tables, sources, settings[0]


def _numbered_on(tables: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """Return the tables with scenarios that no other one has."""
    numbered, first = [], 0
    for table in tables:
        numbered.append(table.assign(scenario=table["scenario"].astype("int64") + first))
        first = int(numbered[-1]["scenario"].max()) + 1
    return numbered


def _check_profile(labelled_with: dict[str, str], profile: PerformanceProfile, dataset: str) -> None:
    expected = profile_identity(profile)
    if labelled_with != expected:
        raise InputError(
            f"a data set must have been labelled with the profile it is used for, {expected}. "
            f"{dataset} was labelled with {labelled_with}.",
            file=dataset,
            field="profile",
            value=labelled_with,
            hint="sample a new data set: the profile is another one, or has been refitted since",
        )
