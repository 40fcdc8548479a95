"""From twin runs to a surrogate, end to end on little data: training exports what it fitted."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from predictors import training
from predictors.contract import check_load_monotone, check_surrogate
from predictors.dataset import ROWS_PER_SHARD, load_dataset, sample_dataset
from predictors.errors import error_table, near_border
from predictors.features import FEATURE_SCHEMA
from predictors.onnx_surrogate import OnnxSurrogate
from predictors.provenance import profile_fingerprint
from predictors.surrogate import OUTPUT_NAMES, SurrogateOutput
from predictors.training import split_scenarios, train_surrogate
from twin.errors import InputError, SurrogateError
from twin.profile import PerformanceProfile, load_profile

HORIZON_S, WARMUP_S = 40.0, 10.0
NUM_ROWS = 4 * ROWS_PER_SHARD


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set of four shards of very short simulations."""
    path = tmp_path_factory.mktemp("data") / "set"
    sample_dataset(
        load_profile("llama-3.1-8b-h100-64gb"),
        rows=NUM_ROWS,
        output=path,
        seed=7,
        seeds=1,
        horizon_s=HORIZON_S,
        warmup_s=WARMUP_S,
        workers=1,
    )
    return path


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
    assert facts["rows"] == NUM_ROWS
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
            "log_border": np.log(np.array([1.0, 1.9, 2.1, 9.0]) / 2.0),
            "starved_share": [0.0, 0.33, 0.67, 1.0],
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
