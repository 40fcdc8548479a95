"""Polyhedra in the sums: what a file says of them is what its graph computes, and no load is accepted beyond them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from placer.testing import check_surrogate
from predictors.features import FEATURE_SCHEMA
from predictors.onnx_surrogate import OnnxSurrogate
from predictors.polyhedra import METADATA_KEY, NUM_AGGREGATES, SETTING_COLUMNS, Polyhedra, parse_polyhedra
from predictors.polyhedra_fit import PolyhedraSettings, fit_polyhedra
from predictors.targets import TrainingRows
from tests.predictors.polyhedra import PROFILE, polyhedra_file, polyhedra_model, random_polyhedra, random_rows
from twin.errors import SurrogateError


def test_a_file_answers_as_its_polyhedra_do(tmp_path: Path) -> None:
    """ONNX Runtime in float32, the arrays in float64."""
    polyhedra = random_polyhedra(1)
    surrogate = polyhedra_file(polyhedra, tmp_path)
    rows = random_rows(1, 2000)
    output = surrogate.predict(rows)
    log_ratio, log_odds = polyhedra.answers(rows)
    np.testing.assert_allclose(output.throughput_ratio, np.exp(log_ratio), rtol=1e-4)
    np.testing.assert_allclose(output.starvation_probability, 1.0 / (1.0 + np.exp(-log_odds)), atol=1e-4)
    assert 0.1 < (output.starvation_probability < 0.5).mean() < 0.9


def test_a_file_shows_its_polyhedra_to_the_bit(tmp_path: Path) -> None:
    """Certificates are about the numbers in the graph."""
    polyhedra = random_polyhedra(2)
    shown = polyhedra_file(polyhedra, tmp_path).polyhedra
    assert shown is not None
    for name in Polyhedra.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(polyhedra, name), getattr(shown, name), err_msg=name)


def test_a_file_passes_the_checks_of_surrogates(tmp_path: Path) -> None:
    """Also any number of rows, in any order, and more load never helps."""
    polyhedra_file(random_polyhedra(3), tmp_path)
    report = check_surrogate(tmp_path / "polyhedra.onnx", profile=PROFILE)
    assert "more_load" not in {check.name for check in report.warnings}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.0, 1.0))
def test_every_part_of_an_accepted_load_is_accepted(seed: int, share: float) -> None:
    """The accepted region is downward closed in each sum alone."""
    polyhedra = random_polyhedra(seed)
    rows = random_rows(seed, 50)
    parts = rows.copy()
    generator = np.random.default_rng(seed)
    parts[:, :NUM_AGGREGATES] *= np.where(generator.uniform(size=(50, NUM_AGGREGATES)) < 0.5, share, 1.0)
    (more_ratio, more_odds), (less_ratio, less_odds) = polyhedra.answers(rows), polyhedra.answers(parts)
    assert (less_odds <= more_odds + 1e-9).all()
    assert (less_ratio >= more_ratio - 1e-9).all()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), width=st.floats(0.0, 1.5), answer=st.floats(-3.0, 3.0))
def test_planes_of_a_box_hold_for_all_settings_in_it(seed: int, width: float, answer: float) -> None:
    """Rows that answer at most so much keep ``weights @ aggregates + constants <= most``, computed in float32."""
    polyhedra = random_polyhedra(seed)
    rows = random_rows(seed, 40)
    values = rows[:, SETTING_COLUMNS].astype(np.float64)
    generator = np.random.default_rng(seed)
    least = values * np.exp(-width * generator.uniform(size=values.shape))
    most = values * np.exp(width * generator.uniform(size=values.shape))
    weights, constants = polyhedra.least_sums(least, most)
    sums = np.einsum("bpk,bk->bp", weights, rows[:, :NUM_AGGREGATES].astype(np.float64)) + constants
    planes = _float32_planes(polyhedra, rows)
    limits = polyhedra.most_sums(slice(None), answer)
    assert (sums <= limits)[planes <= np.float32(answer)].all()
    if width == 0.0:
        exceeds = planes > answer + 1e-3 * np.abs(polyhedra.slopes)
        assert (sums > limits)[exceeds].all()


def _float32_planes(polyhedra: Polyhedra, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the planes' answers as a graph computes them, float32 [N, P]."""
    logs = np.log(rows[:, SETTING_COLUMNS] * polyhedra.scales + polyhedra.offsets)
    terms = np.exp(logs @ polyhedra.powers) * (rows[:, :NUM_AGGREGATES] @ polyhedra.rates + polyhedra.constants)
    planes: NDArray[np.float32] = (
        np.log(terms @ polyhedra.weights + polyhedra.floors) * polyhedra.slopes + polyhedra.intercepts
    )
    assert planes.dtype == np.float32
    return planes


def test_calibration_changes_the_log_odds_alone() -> None:
    """Slope and offset, as Platt scaling has them."""
    polyhedra, rows = random_polyhedra(4), random_rows(4, 100)
    (ratio, odds), (same, calibrated) = polyhedra.answers(rows), polyhedra.calibrated(1.3, -0.2).answers(rows)
    np.testing.assert_array_equal(ratio, same)
    np.testing.assert_allclose(calibrated, 1.3 * odds - 0.2, rtol=1e-5, atol=1e-5)


def test_a_file_that_claims_other_polyhedra_is_refused(tmp_path: Path) -> None:
    """Weights of which some are halved say that less is accepted than is: seen by asking."""
    model = polyhedra_model(random_polyhedra(5))
    content = json.loads(_metadata(model)[METADATA_KEY])
    content["weights"] = [[2.0 * value for value in row] for row in content["weights"]]
    _refused(_with_claim(model, content), tmp_path, "rows of its domain")


def test_a_file_that_differs_where_nobody_asked_proves_nothing(tmp_path: Path) -> None:
    """A slight change that no sampled row shows is found in the graph, before anything is proven with it."""
    model = polyhedra_model(random_polyhedra(6))
    content = json.loads(_metadata(model)[METADATA_KEY])
    content["floors"][0] *= 1.0001
    file = tmp_path / "changed.onnx"
    onnx.save(_with_claim(model, content), str(file))
    surrogate = OnnxSurrogate.load(file)
    with pytest.raises(SurrogateError, match="node for node") as caught:
        _ = surrogate.polyhedra
    assert caught.value.field == METADATA_KEY


@pytest.mark.parametrize("operator", ["Neg", "ReduceMin", "Exp"])
def test_a_graph_with_another_node_is_refused(tmp_path: Path, operator: str) -> None:
    """The same arrays, and a graph that does something else with them."""
    model = polyhedra_model(random_polyhedra(7))
    chosen = [node for node in model.graph.node if node.op_type == operator][-1]
    chosen.op_type = {"Neg": "Abs", "ReduceMin": "ReduceMax", "Exp": "Sigmoid"}[operator]
    file = tmp_path / "changed.onnx"
    onnx.save(model, str(file))
    with pytest.raises(SurrogateError, match="polyhedra"):
        _ = OnnxSurrogate.load(file).polyhedra


def test_changed_numbers_in_the_graph_are_refused(tmp_path: Path) -> None:
    """The graph is what plans are made with: the metadata must follow it, not the other way round."""
    model = polyhedra_model(random_polyhedra(8))
    shape = [len(FEATURE_SCHEMA.names), 7]
    rates = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == shape)
    rates.CopyFrom(numpy_helper.from_array(0.5 * numpy_helper.to_array(rates), rates.name))
    _refused(model, tmp_path, "polyhedra")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("weights", -1.0, "`weights` must be >= 0"),
        ("slopes", 0.0, "`slopes` must be > 0"),
        ("floors", float("nan"), "`floors` must be"),
    ],
)
def test_arrays_that_would_let_more_load_look_better_are_refused(name: str, value: float, words: str) -> None:
    """Signs are what the proofs rest on."""
    array = getattr(random_polyhedra(9), name).copy()
    array.flat[0] = value
    text = replace(random_polyhedra(9), **{name: array}).as_json()
    with pytest.raises(SurrogateError, match=words):
        parse_polyhedra(text, file="a.onnx")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"num_pieces": 0}'])
def test_texts_that_are_no_polyhedra_are_refused(text: str) -> None:
    """With the key and the file in the message."""
    with pytest.raises(SurrogateError, match=r"`polyhedra`.*a\.onnx"):
        parse_polyhedra(text, file="a.onnx")


class Shown:
    """A teacher that says what polyhedra say."""

    def __init__(self, polyhedra: Polyhedra) -> None:
        self._polyhedra = polyhedra

    def raw(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the raw outputs of a network, of which latencies are unknown."""
        log_ratio, log_odds = self._polyhedra.answers(features)
        return np.stack([log_ratio, log_odds, *np.zeros((3, len(features)))], axis=1)


def labelled(features: NDArray[np.float32]) -> TrainingRows:
    """Return rows of which only the features are looked at."""
    unknown = np.zeros(len(features))
    names = np.full(len(features), "few")
    labels = (unknown, unknown, unknown, unknown, unknown, unknown, unknown.astype(np.int64), names, unknown + 1.0)
    return TrainingRows(features, *labels)


def test_a_fit_comes_close_to_polyhedra_that_it_is_shown() -> None:
    """After a few passes over few rows: much better than saying of all what is true on average."""
    pytest.importorskip("torch")
    teacher, rows = Shown(random_polyhedra(10)), labelled(random_rows(10, 200))
    chosen = PolyhedraSettings(
        pieces=2, planes=3, ratio_planes=3, free_terms=4, epochs=10, learning_rate=0.06, batch_rows=50
    )
    fitted = fit_polyhedra(rows, teacher, chosen)
    fresh = random_rows(11, 400)
    expected, said = (1.0 / (1.0 + np.exp(-it.answers(fresh)[1])) for it in (random_polyhedra(10), fitted))
    assert np.mean((said - expected) ** 2) < 0.3 * np.var(expected)


def test_a_fit_repeats_to_the_bit() -> None:
    """Same rows, same seed."""
    pytest.importorskip("torch")
    teacher, rows = Shown(random_polyhedra(12)), labelled(random_rows(12, 100))
    chosen = PolyhedraSettings(pieces=2, planes=2, ratio_planes=2, free_terms=2, epochs=2, batch_rows=64, seed=3)
    first, again = (fit_polyhedra(rows, teacher, chosen) for _ in range(2))
    for name in Polyhedra.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))


def _metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def _with_claim(model: onnx.ModelProto, content: dict[str, object]) -> onnx.ModelProto:
    """Return a model whose metadata claim other polyhedra."""
    helper.set_model_props(model, {**_metadata(model), METADATA_KEY: json.dumps(content)})
    return model


def _refused(model: onnx.ModelProto, folder: Path, words: str) -> None:
    file = folder / "changed.onnx"
    onnx.save(model, str(file))
    with pytest.raises(SurrogateError, match=words):
        OnnxSurrogate.load(file)
