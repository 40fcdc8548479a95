"""Networks read back from the files that they were exported to."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from predictors.catalog import shipped_surrogate
from predictors.contract import probe_features
from predictors.domain import Domain
from predictors.export import export_model
from predictors.families import FAMILIES
from predictors.features import inflate
from predictors.fitted_model import FittedModel
from predictors.neural import ITL, RATIO, NeuralNetwork
from predictors.neural_file import read_network, read_start
from predictors.neural_fit import fit_network
from predictors.neural_training import NeuralSettings
from predictors.onnx_surrogate import OnnxSurrogate
from predictors.risk import Calibration
from tests.predictors.made_up_rows import NEEDS_TORCH, SMALL, known_rows
from twin.errors import SurrogateError
from twin.profile import PerformanceProfile, load_profile, shipped_profiles


def write_model(model: FittedModel, profile: PerformanceProfile, file: Path) -> Path:
    """Export a model with a calibration that changes nothing, and with metadata of little rows."""
    domain = Domain.from_rows(probe_features(50))
    exported = export_model(model, Calibration(), profile=profile, domain=domain, training={"rows": 7}, producer={})
    onnx.save(exported, str(file))
    return file


@pytest.mark.parametrize("name", shipped_profiles())
def test_a_network_read_back_says_what_its_file_says(name: str) -> None:
    """The same ratio and probability for rows in and around the domain."""
    file = shipped_surrogate(name)
    assert file is not None
    features = np.concatenate([inflate(probe_features(100), factor) for factor in (0.1, 1.0, 3.0)])
    said, raw = OnnxSurrogate.load(file).predict(features), read_network(file, load_profile(name)).raw(features)
    np.testing.assert_allclose(np.minimum(np.exp(raw[:, 0]), 1.0), said.throughput_ratio, atol=1e-4)
    np.testing.assert_allclose(1.0 / (1.0 + np.exp(-raw[:, 1])), said.starvation_probability, atol=1e-3)


def test_step_times_of_another_profile_are_refused() -> None:
    """The network sees what a load means under the profile's numbers: under others it is another network."""
    ours, other = shipped_profiles()[:2]
    file = shipped_surrogate(ours)
    assert file is not None
    with pytest.raises(SurrogateError, match="behind the step times of its own profile") as caught:
        read_network(file, load_profile(other))
    assert caught.value.value == other


def test_models_that_are_no_networks_are_refused(tmp_path: Path) -> None:
    """Trees have no weights to go on from, whatever else their file has."""
    profile = load_profile("llama-3.1-8b-h100-64gb")
    tree = FAMILIES["tree"].fit(known_rows(300), profile, SMALL["tree"], seed=0, time_limit_s=1.0)
    file = write_model(tree, profile, tmp_path / "tree.onnx")
    with pytest.raises(SurrogateError, match="holds another model") as caught:
        read_start(file, profile)
    assert caught.value.field == "start"


@NEEDS_TORCH
def test_a_fit_goes_on_from_a_network() -> None:
    """Few rows that say little new change little, where a network fitted to them alone knows little."""
    profile = load_profile("llama-3.1-8b-h100-64gb")
    settings = NeuralSettings(**SMALL["neural"])
    many, few, asked = known_rows(2000), known_rows(60, seed=4), known_rows(300, seed=8)
    first = fit_network(many, profile, settings=settings)
    gentle = replace(settings, widths=(8,), epochs=5, learning_rate=2e-4)
    alone, further = (fit_network(few, profile, start=start, settings=gentle) for start in (None, first))
    assert [weights.shape for weights in further.weights] == [weights.shape for weights in first.weights]

    def error(network: NeuralNetwork) -> float:
        return float(np.abs(np.exp(network.raw(asked.features)[:, RATIO]) - asked.completed_ratio).mean())

    assert error(further) < 1.5 * error(first) < error(alone)


@NEEDS_TORCH
def test_what_a_fit_goes_on_from_follows_rows_that_contradict_it() -> None:
    """All latencies have doubled since: after enough steps the network says so."""
    profile = load_profile("llama-3.1-8b-h100-64gb")
    settings = NeuralSettings(**SMALL["neural"])
    rows, asked = known_rows(1000), known_rows(200, seed=8)
    doubled = replace(rows, log_itl=rows.log_itl + np.log(2.0))
    first = fit_network(rows, profile, settings=settings)
    further = fit_network(doubled, profile, start=first, settings=replace(settings, learning_rate=1e-3))
    shift = further.raw(asked.features)[:, ITL] - first.raw(asked.features)[:, ITL]
    assert shift.mean() == pytest.approx(np.log(2.0), abs=0.1)
