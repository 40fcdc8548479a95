"""ONNX surrogates: what is refused and how it is said, and what the accepted ones answer."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from predictors.features import FEATURE_SCHEMA
from predictors.onnx_surrogate import METADATA_KEYS, REFUSED_LATENCY_S, OnnxSurrogate
from predictors.surrogate import OUTPUT_NAMES
from tests.predictors.handmade import NUM_FEATURES, capacity_model, linear_model, metadata, save
from twin.errors import SurrogateError


def rows(*values: float) -> NDArray[np.float32]:
    """Return one row per value, with that many adapters and nothing else."""
    features = np.zeros((len(values), NUM_FEATURES), dtype=np.float32)
    features[:, FEATURE_SCHEMA.index("num_adapters")] = values
    return features


def refusal(model: Any, path: Path, values: dict[str, Any] | None = None) -> SurrogateError:
    """Return the error that loading the model raises."""
    with pytest.raises(SurrogateError) as caught:
        OnnxSurrogate.load(save(model, path, values))
    assert str(path) in caught.value.message
    return caught.value


@pytest.mark.parametrize("key", METADATA_KEYS)
def test_a_missing_metadata_key_is_named(key: str, tmp_path: Path) -> None:
    """Without schema, domain or origin a model's numbers mean nothing; the message says what is missing."""
    values = {name: value for name, value in metadata().items() if name != key}
    error = refusal(linear_model(), tmp_path / "m.onnx", values)
    assert error.field == key
    assert f"`{key}` is missing" in error.message


@pytest.mark.parametrize("key", METADATA_KEYS)
@pytest.mark.parametrize("text", ["{", "[]"])
def test_metadata_that_is_no_json_object_is_refused(key: str, text: str, tmp_path: Path) -> None:
    """Somebody else's key of the same name is not ours."""
    assert refusal(linear_model(), tmp_path / "m.onnx", {**metadata(), key: text}).field == key


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    """Columns of another version may have the same names and other meanings."""
    values = {**metadata(), "feature_schema": {**FEATURE_SCHEMA.as_json(), "version": 1}}
    error = refusal(linear_model(), tmp_path / "m.onnx", values)
    assert (error.field, error.value) == ("feature_schema.version", 1)


@pytest.mark.parametrize("field", ["names", "units"])
def test_other_feature_names_or_units_are_refused(field: str, tmp_path: Path) -> None:
    """Two columns that changed places are the error that no number reveals."""
    schema = FEATURE_SCHEMA.as_json()
    schema[field] = list(reversed(schema[field]))
    error = refusal(linear_model(), tmp_path / "m.onnx", {**metadata(), "feature_schema": schema})
    assert error.field == f"feature_schema.{field}"


def test_a_profile_without_a_name_is_refused(tmp_path: Path) -> None:
    """The name is what says whether a surrogate belongs to a problem."""
    assert refusal(linear_model(), tmp_path / "m.onnx", {**metadata(), "profile": {}}).field == "profile"


def test_a_domain_of_other_features_is_refused(tmp_path: Path) -> None:
    """A bound that is not there cannot be checked later."""
    domain = {"features": {name: [0.0, 1.0] for name in FEATURE_SCHEMA.names[1:]}, "ratios": []}
    error = refusal(linear_model(), tmp_path / "m.onnx", {**metadata(), "domain": domain})
    assert (error.field, error.value) == ("domain", ["num_adapters"])


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"input_name": "x"}, "input"),
        ({"output_names": OUTPUT_NAMES[:4]}, "output"),
        ({"output_names": (*OUTPUT_NAMES[:4], "latency")}, "output"),
        ({"num_features": NUM_FEATURES + 1}, "features"),
        ({"batch": 1}, "features"),
        ({"output_rank": 2}, "throughput_ratio"),
    ],
)
def test_another_signature_is_refused(arguments: dict[str, Any], field: str, tmp_path: Path) -> None:
    """Names, types and shapes are checked at loading, not in the middle of a search."""
    assert refusal(linear_model(**arguments), tmp_path / "m.onnx").field == field


def test_an_output_of_undeclared_rank_is_found_by_asking(tmp_path: Path) -> None:
    """A file may declare [N] (or nothing) and answer [N, 1]."""
    model = linear_model(output_rank=2)
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    assert refusal(model, tmp_path / "m.onnx").field == "throughput_ratio"


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    """A truncated download gives a message, not a traceback of the runtime."""
    path = tmp_path / "m.onnx"
    path.write_bytes(linear_model().SerializeToString()[:200])
    with pytest.raises(SurrogateError, match="must be an ONNX model"):
        OnnxSurrogate.load(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """The message names the path and what could be meant instead."""
    with pytest.raises(SurrogateError) as caught:
        OnnxSurrogate.load(tmp_path / "none.onnx")
    assert caught.value.file == str(tmp_path / "none.onnx")
    assert caught.value.hint is not None


def test_a_linear_model_answers_its_columns(tmp_path: Path) -> None:
    """The outputs are taken by name, not by position."""
    scales = {"throughput_ratio": 0.01, "starvation_probability": 0.002, "itl_s": 0.001, "ttft_s": 0.5}
    surrogate = OnnxSurrogate.load(save(linear_model(scales=scales), tmp_path / "m.onnx"))
    output = surrogate.predict(rows(10.0, 40.0))
    np.testing.assert_allclose(output.throughput_ratio, [0.1, 0.4], rtol=1e-6)
    np.testing.assert_allclose(output.starvation_probability, [0.02, 0.08], rtol=1e-6)
    np.testing.assert_allclose(output.throughput_tps, [10.0, 40.0], rtol=1e-6)
    np.testing.assert_allclose(output.itl_s, [0.01, 0.04], rtol=1e-6)
    np.testing.assert_allclose(output.ttft_s, [5.0, 20.0], rtol=1e-6)


def bounded(most: float) -> dict[str, Any]:
    """Return metadata of a model that was fitted on 1 to `most` adapters."""
    values = metadata()
    values["domain"]["features"]["num_adapters"] = [1.0, most]
    return values


def test_a_row_outside_with_nan_counts_as_infeasible(tmp_path: Path) -> None:
    """A solver must never take "not a number" for "not starved"; the other rows of the batch keep their answers."""
    model = linear_model(log_outputs=("itl_s",), scales={"starvation_probability": 0.01})
    surrogate = OnnxSurrogate.load(save(model, tmp_path / "m.onnx", bounded(600.0)))
    output = surrogate.predict(rows(-1.0, 0.0, 20.0))
    assert output.throughput_ratio.tolist() == [0.0, 0.0, 20.0]
    np.testing.assert_allclose(output.starvation_probability, [1.0, 1.0, 0.2], rtol=1e-6)
    assert output.throughput_tps.tolist() == [0.0, 0.0, 20.0]
    assert output.ttft_s.tolist() == [REFUSED_LATENCY_S, REFUSED_LATENCY_S, 20.0]


def test_a_row_inside_with_nan_is_an_error(tmp_path: Path) -> None:
    """Where it was said to hold, a model without an answer is broken; file, output, value and set are named."""
    model = linear_model(log_outputs=("itl_s",), scales={"itl_s": -1.0})
    path = save(model, tmp_path / "m.onnx", bounded(600.0))
    with pytest.raises(SurrogateError, match="must give numbers inside its domain") as caught:
        OnnxSurrogate.load(path).predict(rows(-1.0, 5.0, 7.0))
    assert (caught.value.file, caught.value.field) == (str(path), "itl_s")
    for text in (str(path), "nan for `itl_s` of 5 adapters", "2 of 3 sets"):
        assert text in caught.value.message


@pytest.mark.parametrize(
    ("statements", "found"),
    [
        pytest.param(
            """two = Constant <value_ints = [2]> ()
               pair = Reshape (offered, two)
               sum = ReduceSum <keepdims = 0> (pair)
               ttft_s = Add (sum, step)""",
            "m.onnx fails for 1: ",
            id="the graph stops",
        ),
        pytest.param(
            """two = Constant <value_ints = [2]> ()
               ttft_s = Expand (one, two)""",
            "gives shape [2] for 1 rows",
            id="two answers",
        ),
        pytest.param(
            """start = Constant <value_ints = [0]> ()
               two = Constant <value_ints = [2]> ()
               ttft_s = Slice (offered, start, two)""",
            "gives shape [2] for 3 rows",
            id="two answers at most",
        ),
    ],
)
def test_a_model_for_two_rows_only_is_an_error(statements: str, found: str, tmp_path: Path) -> None:
    """It must not answer, or crash, for one or three; what it does for how many rows is told."""
    model = capacity_model(statements={"ttft_s": statements})
    path = save(model, tmp_path / "m.onnx")
    with pytest.raises(SurrogateError) as caught:
        OnnxSurrogate.load(path).predict(rows(1.0, 2.0, 3.0))
    assert caught.value.file == str(path)
    assert found in caught.value.message


def test_probabilities_and_ratios_are_cut_to_their_range(tmp_path: Path) -> None:
    """A regression may overshoot; what leaves the surrogate does not."""
    surrogate = OnnxSurrogate.load(save(linear_model(scales={"throughput_ratio": -1.0}), tmp_path / "m.onnx"))
    output = surrogate.predict(rows(3.0))
    assert output.throughput_ratio.tolist() == [0.0]
    assert output.starvation_probability.tolist() == [1.0]


def test_no_rows_give_no_predictions(tmp_path: Path) -> None:
    """An empty batch is what a search asks when nothing is left."""
    surrogate = OnnxSurrogate.load(save(linear_model(), tmp_path / "m.onnx"))
    assert len(surrogate.predict(rows())) == 0


def test_features_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    """Trees send NaN down some branch and answer something; the caller's mistake is named instead."""
    surrogate = OnnxSurrogate.load(save(linear_model(), tmp_path / "m.onnx"))
    features = rows(1.0, 2.0)
    features[1, FEATURE_SCHEMA.index("sum_rate_rps")] = np.nan
    with pytest.raises(SurrogateError, match="`sum_rate_rps` of row 1 is nan"):
        surrogate.predict(features)


def test_features_of_another_shape_are_refused(tmp_path: Path) -> None:
    """A row without its engine columns is a caller's mistake, too."""
    surrogate = OnnxSurrogate.load(save(linear_model(), tmp_path / "m.onnx"))
    with pytest.raises(SurrogateError, match="must be float32"):
        surrogate.predict(np.zeros((2, NUM_FEATURES - 1), dtype=np.float32))


def test_rows_outside_the_domain_are_marked_and_strictly_refused(tmp_path: Path) -> None:
    """Outside of its domain a model still answers; only the mask tells that the answer is a guess."""
    surrogate = OnnxSurrogate.load(save(linear_model(), tmp_path / "m.onnx", bounded(600.0)))
    assert surrogate.outside_domain(rows(1.0, 600.0, 601.0, 0.0)).tolist() == [False, False, True, True]
    assert len(surrogate.predict_strictly(rows(1.0))) == 1
    with pytest.raises(SurrogateError, match="outside its domain"):
        surrogate.predict_strictly(rows(1.0, 601.0))


def test_the_profile_is_read_from_the_file(tmp_path: Path) -> None:
    """Which profile a model was distilled from decides which problems it may be used for."""
    values = {**metadata(), "profile": {"name": "p", "fingerprint": "abc"}}
    surrogate = OnnxSurrogate.load(save(linear_model(), tmp_path / "m.onnx", values))
    assert (surrogate.profile_name, surrogate.profile_fingerprint) == ("p", "abc")
    assert set(surrogate.metadata) == set(METADATA_KEYS)


def test_reading_the_module_does_not_load_the_runtime() -> None:
    """A plan with the exact surrogate must not pay for ONNX Runtime."""
    script = "import json, sys, predictors.onnx_surrogate; print(json.dumps('onnxruntime' in sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert json.loads(run.stdout) is False
