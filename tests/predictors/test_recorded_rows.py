"""Recorded GPUs become rows: labelled as those of a data set are, once, and with whole workloads held together."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from predictors.dataset import rows_table
from predictors.features import FEATURE_SCHEMA, adapter_aggregates, build_features, engine_row
from predictors.labelling import ROWS_PER_SEARCH, LabelSettings, label_scenario
from predictors.recorded_gpus import write_recorded
from predictors.recorded_rows import GpusLabelled, recorded_rows
from tests.predictors.recorded import adapters_of, record_of, record_some, small_replica
from twin.errors import InputError
from twin.lengths import LengthDistribution
from twin.profile import PerformanceProfile, load_profile

SETTINGS = LabelSettings(seed=3, num_seeds=2, horizon_s=80.0, warmup_s=10.0)
NUM_ROWS = ROWS_PER_SEARCH[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return four recorded GPUs of three workloads."""
    return record_some(tmp_path_factory.mktemp("recorded") / "gpus", load_profile("llama-3.1-8b-h100-64gb"))


@pytest.fixture(scope="module")
def table(folder: Path) -> pd.DataFrame:
    """Return their rows."""
    return recorded_rows([folder], load_profile("llama-3.1-8b-h100-64gb"), SETTINGS, workers=1).table


def test_rows_are_those_of_a_data_set(table: pd.DataFrame, profile: PerformanceProfile) -> None:
    """Same columns, same meaning of the features; each GPU is one search of packed rows."""
    sampled = rows_table(label_scenario(profile, 0, LabelSettings(num_seeds=1, horizon_s=70.0, warmup_s=10.0)))
    assert sorted(table.columns) == sorted(sampled.columns)
    assert len(table) == 4 * NUM_ROWS
    assert set(table["family"]) == {"packed"}
    assert (table["num_seeds"] == SETTINGS.num_seeds).all()
    assert (table.groupby(["scenario", "search"]).size() == NUM_ROWS).all()


def test_the_first_row_is_the_load_that_was_planned(table: pd.DataFrame, profile: PerformanceProfile) -> None:
    """Its features are those that the surrogate was asked about."""
    replica = small_replica(profile, 3)
    aggregate = adapter_aggregates(adapters_of(3)).sum(axis=0)
    expected = build_features(aggregate, engine_row(replica.engine, kv_tokens=replica.memory().kv_tokens))[0]
    own = table[(table["row"] == 0) & (table["num_adapters"] == 3)]
    assert len(own) == 1
    assert own[list(FEATURE_SCHEMA.names)].to_numpy(np.float32)[0] == pytest.approx(expected, rel=1e-5)


def test_loads_lie_on_both_sides_of_the_border(table: pd.DataFrame) -> None:
    """A GPU near its border is bracketed in few rows, and the others show how far it is."""
    known = table[np.isfinite(table["log_border"])]
    assert known["scenario"].nunique() == 3
    assert (known.groupby(["scenario", "search"])["log_border"].agg(["min", "max"]) * [-1, 1] > 0).all(axis=None)
    assert (known["log_border"].abs() < 0.16).mean() > 0.4


def test_gpus_of_a_workload_stay_together(table: pd.DataFrame) -> None:
    """They are alike: a test row of one whose sibling was fitted to would be no test."""
    assert sorted(table.groupby("scenario")["search"].nunique()) == [1, 1, 2]


def test_labels_are_simulated_once(folder: Path, table: pd.DataFrame, profile: PerformanceProfile) -> None:
    """A second training reads them, and the rows are the same."""
    before = sorted(path.name for path in folder.glob("labels-*"))
    events: list[GpusLabelled] = []
    again = recorded_rows([folder], profile, SETTINGS, workers=1, observer=events.append)
    assert events == [GpusLabelled(4, 4)]
    pd.testing.assert_frame_equal(again.table, table)
    assert sorted(path.name for path in folder.glob("labels-*")) == before


def test_rows_do_not_depend_on_what_else_was_recorded(
    folder: Path, table: pd.DataFrame, profile: PerformanceProfile, tmp_path: Path
) -> None:
    """A GPU alone has the labels that it has among others: an interruption changes nothing."""
    write_recorded(tmp_path, record_of(profile, 3))
    alone = recorded_rows([tmp_path], profile, SETTINGS, workers=1).table
    among = table[table["num_adapters"] == 3]
    names = [name for name in table.columns if name not in ("scenario", "search")]
    pd.testing.assert_frame_equal(alone[names], among[names].reset_index(drop=True))
    both = recorded_rows([folder, tmp_path], profile, SETTINGS, workers=1)
    assert both.facts["gpus"] == 4


def test_other_settings_have_labels_of_their_own(
    folder: Path, table: pd.DataFrame, profile: PerformanceProfile
) -> None:
    """Rows of another horizon would not go with those of the data set."""
    other = recorded_rows([folder], profile, replace(SETTINGS, horizon_s=100.0), workers=1).table
    assert len(other) == len(table)
    assert not np.array_equal(other["throughput_tps"], table["throughput_tps"])


def test_facts_count_what_plans_said(folder: Path, table: pd.DataFrame, profile: PerformanceProfile) -> None:
    """Rejected and accepted GPUs, and how many of each starve under the labels."""
    facts = recorded_rows([folder], profile, SETTINGS, workers=1).facts
    assert (facts["gpus"], facts["rejected"], facts["accepted"], facts["workloads"]) == (4, 3, 1, 3)
    assert facts["rows"] == len(table)
    assert facts["accepted_that_starve"] == 0.0
    first = table[table["row"] == 0]
    assert facts["rejected_that_starve"] == pytest.approx((first["starved_share"] >= 0.5).sum() / 3, abs=1e-5)
    assert (facts["other_profiles"], facts["unlabelled"]) == (0, 0)


def test_gpus_of_another_profile_are_passed_over_or_refused(profile: PerformanceProfile, tmp_path: Path) -> None:
    """Beside those of the profile they do not matter; alone they are no data for it."""
    other = load_profile("qwen2.5-7b-h100-64gb")
    write_recorded(tmp_path, record_of(other, 2))
    with pytest.raises(InputError, match=r"qwen2\.5-7b-h100-64gb") as caught:
        recorded_rows([tmp_path], profile, SETTINGS)
    assert caught.value.field == "profile"
    write_recorded(tmp_path, record_of(profile, 2))
    facts = recorded_rows([tmp_path], profile, SETTINGS, workers=1).facts
    assert (facts["gpus"], facts["other_profiles"]) == (1, 1)


def test_an_empty_folder_is_refused(profile: PerformanceProfile, tmp_path: Path) -> None:
    """Nothing to learn from is an error, and the message says how to record."""
    with pytest.raises(InputError, match="has none") as caught:
        recorded_rows([tmp_path], profile, SETTINGS)
    assert "--record-rejections" in (caught.value.hint or "")


def test_a_gpu_that_cannot_be_simulated_is_counted(profile: PerformanceProfile, tmp_path: Path) -> None:
    """Prompts that may be longer than the context: other seeds than the plan's meet one."""
    gpu = record_of(profile, 2)
    long = LengthDistribution(mean=150_000.0)
    hopeless = gpu.model_copy(
        update={"adapters": tuple(one.model_copy(update={"prompt_tokens": long}) for one in gpu.adapters)}
    )
    write_recorded(tmp_path, type(gpu).model_validate(hopeless.model_dump()))
    with pytest.raises(InputError, match="can simulate none"):
        recorded_rows([tmp_path], profile, SETTINGS, workers=1)
    write_recorded(tmp_path, gpu)
    facts = recorded_rows([tmp_path], profile, SETTINGS, workers=1).facts
    assert (facts["gpus"], facts["unlabelled"]) == (1, 1)


def test_damaged_labels_are_named(profile: PerformanceProfile, tmp_path: Path) -> None:
    """The file, and that deleting it is enough."""
    write_recorded(tmp_path, record_of(profile, 2))
    recorded_rows([tmp_path], profile, SETTINGS, workers=1)
    (path,) = tmp_path.glob("labels-*.parquet")
    path.write_bytes(b"no table")
    with pytest.raises(InputError, match=path.name) as caught:
        recorded_rows([tmp_path], profile, SETTINGS, workers=1)
    assert "delete the file" in (caught.value.hint or "")
