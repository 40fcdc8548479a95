"""From twin runs to a surrogate, end to end on little data: sampling resumes, training exports what it fitted."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from predictors import dataset, training
from predictors.contract import check_load_monotone, check_surrogate
from predictors.dataset import MANIFEST_NAME, Progress, load_dataset, sample_dataset, shard_name
from predictors.errors import error_table, near_border
from predictors.features import FEATURE_SCHEMA
from predictors.onnx_surrogate import OnnxSurrogate
from predictors.provenance import profile_fingerprint
from predictors.surrogate import OUTPUT_NAMES, SurrogateOutput
from predictors.training import split_scenarios, train_surrogate
from twin.errors import InputError, SurrogateError
from twin.profile import PerformanceProfile, load_profile

HORIZON_S, WARMUP_S = 40.0, 10.0
SEED = 7
ROWS_PER_SHARD = dataset.ROWS_PER_SCENARIO * dataset.SCENARIOS_PER_SHARD


class StoppedError(Exception):
    """Somebody pressed Ctrl-C."""


def sample(profile: PerformanceProfile, folder: Path, *, shards: int, stop_after: int | None = None) -> list[Progress]:
    """Sample shards of very short simulations; raise after `stop_after` of them."""
    seen: list[Progress] = []

    def observe(progress: Progress) -> None:
        seen.append(progress)
        if len(seen) == stop_after:
            raise StoppedError

    sample_dataset(
        profile,
        rows=shards * ROWS_PER_SHARD,
        seed=SEED,
        output=folder,
        observer=observe,
        horizon_s=HORIZON_S,
        warmup_s=WARMUP_S,
    )
    return seen


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set of two shards, sampled with an interruption between them."""
    path = tmp_path_factory.mktemp("data") / "set"
    profile = load_profile("llama-3.1-8b-h100-64gb")
    with pytest.raises(StoppedError):
        sample(profile, path, shards=2, stop_after=1)
    assert [entry.name for entry in sorted(path.glob("shard-*"))] == [shard_name(0)]
    progress = sample(profile, path, shards=2)
    assert progress == [Progress(finished_shards=2, num_shards=2, num_rows=2 * ROWS_PER_SHARD)]
    return path


def test_an_interruption_changes_nothing(folder: Path, profile: PerformanceProfile, tmp_path: Path) -> None:
    """A shard depends on the seed and its number only: what was sampled in two calls equals what one call gives."""
    shutil.copy(folder / shard_name(0), tmp_path / shard_name(0))
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    (tmp_path / MANIFEST_NAME).write_text(json.dumps({**manifest, "shards": [0]}))
    sample(profile, tmp_path, shards=2)
    pd.testing.assert_frame_equal(load_dataset(folder)[0], load_dataset(tmp_path)[0])


def test_a_finished_data_set_is_left_alone(folder: Path, profile: PerformanceProfile) -> None:
    """Running the same command again is free."""
    before = {entry.name: entry.stat().st_mtime_ns for entry in folder.glob("shard-*")}
    assert sample(profile, folder, shards=2) == []
    assert {entry.name: entry.stat().st_mtime_ns for entry in folder.glob("shard-*")} == before


def test_the_rows_are_labelled_features(folder: Path) -> None:
    """Both verdicts occur, no label is missing, and no half-written file is left."""
    table, manifest = load_dataset(folder)
    assert len(table) == 2 * ROWS_PER_SHARD
    assert table[list(FEATURE_SCHEMA.names)].notna().all().all()
    assert 0.1 < table["has_starvation"].mean() < 0.9
    assert (table["is_starved"] <= table["has_starvation"]).all()
    assert manifest["shards"] == [0, 1]
    assert [entry.name for entry in folder.iterdir() if entry.name.endswith(".part")] == []


def test_loads_lie_around_the_border(folder: Path) -> None:
    """Most searches must have found both sides: that is where a plan is decided."""
    table, _ = load_dataset(folder)
    found = table.groupby(["scenario", "search"])["has_starvation"].nunique()
    assert (found == 2).mean() > 0.5
    assert near_border(table).mean() > 0.2


@pytest.mark.parametrize(("field", "value"), [("seed", 8), ("horizon_s", 99.0), ("profile", {"name": "other"})])
def test_another_data_set_is_not_continued(
    field: str, value: object, folder: Path, profile: PerformanceProfile, tmp_path: Path
) -> None:
    """Rows of two profiles or horizons in one folder would poison the fit."""
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    (tmp_path / MANIFEST_NAME).write_text(json.dumps({**manifest, field: value}))
    with pytest.raises(InputError) as caught:
        sample(profile, tmp_path, shards=1)
    assert caught.value.field == field


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_broken_manifest_is_named(text: str, profile: PerformanceProfile, tmp_path: Path) -> None:
    """A manifest that cannot be read is no reason to overwrite shards."""
    (tmp_path / MANIFEST_NAME).write_text(text)
    with pytest.raises(InputError, match=MANIFEST_NAME):
        sample(profile, tmp_path, shards=1)


def test_a_folder_that_cannot_be_made_is_named(profile: PerformanceProfile, tmp_path: Path) -> None:
    """The message says which folder, not only that something failed."""
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="must be a folder that can be written"):
        sample(profile, tmp_path / "file" / "set", shards=1)


def test_no_rows_is_no_data_set(profile: PerformanceProfile, tmp_path: Path) -> None:
    """Zero rows are a mistake of the caller."""
    with pytest.raises(InputError, match="`rows` must be at least 1"):
        sample_dataset(profile, rows=0, seed=0, output=tmp_path)


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    """Training names the command that makes a data set."""
    with pytest.raises(InputError) as caught:
        load_dataset(tmp_path)
    assert caught.value.hint == "make one with `python -m predictors.dataset`"


def test_the_command_line_samples(tmp_path: Path, folder: Path) -> None:
    """The command continues a data set that the library began, and reports bad settings as bad input."""
    arguments = ["--profile", "llama-3.1-8b-h100-64gb", "--output", str(folder), "--rows", "1", "--workers", "1"]
    short = ["--horizon", str(HORIZON_S), "--warmup", str(WARMUP_S)]
    assert dataset.main([*arguments, "--seed", str(SEED), *short]) == 0
    assert dataset.main([*arguments, "--seed", str(SEED + 1), *short]) == 2
    assert dataset.main(["--profile", "none", "--output", str(tmp_path)]) == 2


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> training.TrainingReport:
    """Return a surrogate trained on the small data set."""
    output = tmp_path_factory.mktemp("model") / "small.onnx"
    return train_surrogate(folder, load_profile("llama-3.1-8b-h100-64gb"), output=output)


def test_the_export_agrees_with_the_fit(trained: training.TrainingReport) -> None:
    """ONNX Runtime and scikit-learn give the same numbers, row by row."""
    assert trained.parity == dict.fromkeys(OUTPUT_NAMES, 0.0)


def test_a_trained_model_is_a_surrogate(trained: training.TrainingReport, profile: PerformanceProfile) -> None:
    """Even one of little data keeps the contract, its metadata, and the direction of the load."""
    surrogate = OnnxSurrogate.load(trained.file)
    assert (surrogate.profile_name, surrogate.profile_fingerprint) == (profile.name, profile_fingerprint(profile))
    check_surrogate(surrogate)
    check_load_monotone(surrogate)
    facts = json.loads(surrogate.metadata["training"])
    assert facts["rows"] == 2 * ROWS_PER_SHARD
    assert facts["errors"] == trained.errors
    assert json.loads(surrogate.metadata["feature_schema"])["outputs"]["itl_s"].startswith("95th percentile")


def test_it_has_learned_something(trained: training.TrainingReport) -> None:
    """Thirty sets are enough to beat a constant, because the physics is in the graph."""
    assert trained.errors["all"]["ratio_r2"] > 0.1
    assert trained.errors["all"]["starvation_f1"] > 0.6


def test_the_training_rows_are_in_the_domain(trained: training.TrainingReport, folder: Path) -> None:
    """The domain in the file is that of the data."""
    features = load_dataset(folder)[0][list(FEATURE_SCHEMA.names)].to_numpy(dtype=np.float32)
    assert not OnnxSurrogate.load(trained.file).outside_domain(features).any()


def test_the_card_states_the_errors_and_how_to_repeat(trained: training.TrainingReport) -> None:
    """A card without its numbers or its command is an advertisement."""
    card = trained.card.read_text()
    assert f"| starvation: F1 | {trained.errors['all']['starvation_f1']:.3f} |" in card
    assert f"--horizon {HORIZON_S:g} --warmup {WARMUP_S:g}" in card


def test_training_twice_gives_the_same_model(
    trained: training.TrainingReport, folder: Path, profile: PerformanceProfile, tmp_path: Path
) -> None:
    """Same data, same seed, same bytes."""
    again = train_surrogate(folder, profile, output=tmp_path / "again.onnx")
    assert again.file.read_bytes() == trained.file.read_bytes()


def test_another_profile_is_refused(folder: Path, tmp_path: Path) -> None:
    """Labels of one profile say nothing about another."""
    with pytest.raises(InputError) as caught:
        train_surrogate(folder, load_profile("qwen2.5-7b-h100-64gb"), output=tmp_path / "m.onnx")
    assert caught.value.field == "profile"


def test_an_unwritable_output_is_named(folder: Path, profile: PerformanceProfile, tmp_path: Path) -> None:
    """The path is in the message."""
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError) as caught:
        train_surrogate(folder, profile, output=tmp_path / "file" / "m.onnx")
    assert caught.value.field == "output"


def test_without_the_extra_the_message_names_it(
    folder: Path, profile: PerformanceProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The core installation runs surrogates; training one asks for what it lacks."""
    monkeypatch.delitem(sys.modules, "predictors.fitting", raising=False)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(SurrogateError) as caught:
        train_surrogate(folder, profile, output=tmp_path / "m.onnx")
    assert caught.value.hint == "pip install 'lora-placer[train]'"


def test_the_command_line_trains(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error table is on standard output as JSON; bad input has its own exit code."""
    profile_name = "llama-3.1-8b-h100-64gb"
    assert training.main([str(folder), "--profile", profile_name, "--output", str(tmp_path / "m.onnx")]) == 0
    assert set(json.loads(capsys.readouterr().out)["errors"]) == {"all", "near_border"}
    assert training.main([str(tmp_path), "--profile", profile_name, "--output", str(tmp_path / "n.onnx")]) == 2


def test_whole_scenarios_are_held_out() -> None:
    """Rows of one scenario are alike: a model tested on them would be tested on what it has seen."""
    scenarios = np.repeat(np.arange(50, dtype=np.int32), 12)
    held_out = split_scenarios(scenarios, seed=0)
    assert held_out.sum() == 10 * 12
    assert len(np.unique(scenarios[held_out])) == 10
    with pytest.raises(InputError, match="at least 10 scenarios"):
        split_scenarios(scenarios[:100], seed=0)


def test_error_figures_by_hand() -> None:
    """Four rows whose errors can be counted on one hand."""
    table = pd.DataFrame(
        {
            "scenario": 0,
            "search": 0,
            "sum_rate_rps": [1.0, 1.9, 2.1, 9.0],
            "has_starvation": [0.0, 0.0, 1.0, 1.0],
            "throughput_ratio": [1.0, 1.0, 0.8, 0.5],
            "itl_p95_s": [0.02, 0.04, 0.05, 0.05],
            "ttft_p95_s": [0.1, 0.2, 9.0, np.nan],
        }
    )
    column = np.array
    output = SurrogateOutput(
        throughput_ratio=column([1.0, 1.0, 1.0, 0.5], dtype=np.float32),
        starvation_probability=column([0.0, 0.9, 0.1, 1.0], dtype=np.float32),
        throughput_tps=column([0.0, 0.0, 0.0, 0.0], dtype=np.float32),
        itl_s=column([0.03, 0.04, 0.05, 0.05], dtype=np.float32),
        ttft_s=column([0.1, 0.1, 1.0, 1.0], dtype=np.float32),
    )
    assert near_border(table).tolist() == [False, True, True, False]
    figures = error_table(table, output)["all"]
    assert figures["ratio_mape"] == pytest.approx(100.0 * 0.25 / 4.0)
    assert figures["starvation_f1"] == 0.5
    assert (figures["false_accepts"], figures["false_rejects"]) == (0.5, 0.5)
    assert figures["itl_mape"] == pytest.approx(25.0, rel=1e-5)
    assert figures["ttft_mape"] == pytest.approx(25.0, rel=1e-5)
