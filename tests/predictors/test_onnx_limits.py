"""Files of surrogates that would read other files, run code of others, or run forever."""

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from predictors.neural_file import read_start
from predictors.onnx_limits import forbidden_part
from predictors.onnx_surrogate import OnnxSurrogate
from twin.errors import SurrogateError
from twin.profile import load_profile

SHIPPED = next((Path(__file__).resolve().parents[2] / "predictors" / "models").glob("*.onnx"))


def external(model: onnx.ModelProto) -> None:
    """Let a tensor be in a file of the system."""
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../../../etc/passwd"


def external_constant(model: onnx.ModelProto) -> None:
    """Let the tensor of a node be in another file."""
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[1])
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "weights.bin"
    model.graph.node.append(helper.make_node("Constant", [], ["unused"], value=tensor))


def custom_operator(model: onnx.ModelProto) -> None:
    """Let an operator be of a library."""
    model.graph.node[0].domain = "evil"


def custom_opset(model: onnx.ModelProto) -> None:
    """Ask for a library."""
    model.opset_import.append(helper.make_opsetid("evil", 1))


def newer_opset(model: onnx.ModelProto) -> None:
    """Ask for operators that do not exist yet."""
    model.opset_import[0].version = 10_000


def loop(model: onnx.ModelProto) -> None:
    """Run a graph again and again."""
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["trips", ""], ["unused"], body=body))


def function(model: onnx.ModelProto) -> None:
    """Define an operator."""
    node = helper.make_node("Exp", ["x"], ["y"])
    model.functions.append(helper.make_function("mine", "f", ["x"], ["y"], [node], [helper.make_opsetid("", 17)]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (external, "data in another file"),
        (external_constant, "data in another file"),
        (custom_operator, "'evil'"),
        (custom_opset, "'evil'"),
        (newer_opset, "version 10000"),
        (loop, "a graph of its own"),
        (function, "functions of its own"),
    ],
)
def test_what_reaches_beyond_the_file_is_refused(
    tmp_path: Path, change: Callable[[onnx.ModelProto], None], reason: str
) -> None:
    """ONNX Runtime never sees such a file, and the message says what is in it."""
    model = onnx.load(str(SHIPPED))
    change(model)
    path = tmp_path / "changed.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(SurrogateError, match="without loops") as caught:
        OnnxSurrogate.load(path)
    assert reason in caught.value.message
    assert caught.value.file == str(path)


def test_shipped_surrogates_have_nothing_of_it() -> None:
    """What is shipped is asked as before."""
    assert [forbidden_part(path.read_bytes()) for path in SHIPPED.parent.glob("*.onnx")] == [None, None]


def test_large_files_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit holds before ONNX Runtime sees anything."""
    monkeypatch.setattr("predictors.surrogate_file.MOST_MODEL_BYTES", 1000)
    with pytest.raises(SurrogateError, match="larger than"):
        OnnxSurrogate.load(SHIPPED)


def test_the_start_of_a_fit_says_what_it_was_made_of(tmp_path: Path) -> None:
    """Families of another form are refused by name."""
    model = onnx.load(str(SHIPPED))
    (entry,) = (entry for entry in model.metadata_props if entry.key == "training")
    entry.value = json.dumps(json.loads(entry.value) | {"families": [{"name": "neural"}]})
    path = tmp_path / "start.onnx"
    path.write_bytes(model.SerializeToString())
    profile = load_profile(SHIPPED.stem)
    with pytest.raises(SurrogateError) as caught:
        read_start(path, profile)
    assert caught.value.field == "training.families"


@given(content=st.binary(max_size=300))
def test_any_bytes_have_an_answer(content: bytes) -> None:
    """What is no ONNX file is left to ONNX Runtime."""
    assert forbidden_part(content) is None or isinstance(forbidden_part(content), str)
