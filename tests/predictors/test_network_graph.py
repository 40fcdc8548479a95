"""Graphs of networks are recognised node for node; nothing else is."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from predictors.catalog import shipped_surrogate
from predictors.contract import probe_features
from predictors.network_graph import network_in, recognised_network
from predictors.neural_file import read_network
from predictors.onnx_surrogate import OnnxSurrogate
from twin.profile import load_profile, shipped_profiles


def shipped_model(name: str = "llama-3.1-8b-h100-64gb") -> onnx.ModelProto:
    """Return the model of a shipped surrogate."""
    return onnx.load(str(shipped_surrogate(name)))


@pytest.mark.parametrize("name", shipped_profiles())
def test_shipped_surrogates_show_the_network_that_a_fit_reads(name: str) -> None:
    """Two readers, one network."""
    file = shipped_surrogate(name)
    assert file is not None
    shown, read = OnnxSurrogate.load(file).network, read_network(file, load_profile(name))
    assert shown is not None
    assert all(np.array_equal(one, other) for one, other in zip(shown.weights, read.weights, strict=True))
    np.testing.assert_allclose(shown.raw(probe_features(50)), read.raw(probe_features(50)), rtol=1e-3, atol=1e-3)


def _other_function(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Sigmoid"


def _other_column(model: onnx.ModelProto) -> None:
    gather = next(node for node in model.graph.node if "throughput_ratio" in node.output)
    gather.input[1] = next(node for node in model.graph.node if "itl_s" in node.output).input[1]


def _attribute(model: onnx.ModelProto) -> None:
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    gemm.attribute.append(onnx.helper.make_attribute("alpha", 2.0))


def _skipped_layer(model: onnx.ModelProto) -> None:
    relus = [node for node in model.graph.node if node.op_type == "Relu"]
    relus[1].input[0] = relus[0].input[0]


def _not_finite(model: onnx.ModelProto) -> None:
    tensor = next(item for item in model.graph.initializer if len(item.dims) == 2)
    array = onnx.numpy_helper.to_array(tensor).copy()
    array[0, 0] = np.inf
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


@pytest.mark.parametrize("change", [_other_function, _other_column, _attribute, _not_finite])
def test_a_graph_with_one_thing_changed_is_another(change: Callable[[onnx.ModelProto], None]) -> None:
    """A proof about the network must not be told of it."""
    model = shipped_model()
    assert recognised_network(model) is not None
    change(model)
    assert recognised_network(model) is None


def test_a_skipped_layer_is_seen() -> None:
    """Whatever is recognised is what the graph computes, here a network with one layer fewer."""
    model = shipped_model()
    _skipped_layer(model)
    network = recognised_network(model)
    assert network is not None
    assert len(network.weights) == 2


def test_what_is_no_file_or_no_network_has_none(tmp_path: Path) -> None:
    """Nothing is claimed about it."""
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    assert network_in(str(tmp_path / "absent.onnx")) is None
    assert network_in(str(broken)) is None
