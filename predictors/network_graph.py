"""Recognise in an ONNX graph the network that `NeuralNetwork.add_to` makes, node for node.

Proofs about a surrogate rest on it: what is not exactly such a graph is not recognised.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from predictors.neural import ITL, ITL_MEAN, MOST, RATIO, STARVATION, TTFT, NeuralNetwork
from predictors.physics import PhysicsLayer
from predictors.surrogate_file import INPUT_NAME
from twin.bounded_read import MOST_MODEL_BYTES, read_bounded

Array = NDArray[np.float32]

# What each output must be, seen from the raw outputs: an entry of their cut exponentials, or the sigmoid of one.
_OUTPUTS = {"throughput_ratio": RATIO, "itl_s": ITL, "ttft_s": TTFT, "itl_mean_s": ITL_MEAN}


class _UnexpectedError(Exception):
    """The graph is another one."""


class _Reader:
    """The nodes of a graph by what they give."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self._by_output = {node.output[0]: node for node in graph.node if len(node.output) == 1}
        is_plain = all(node.domain in {"", "ai.onnx"} and len(node.output) == 1 for node in graph.node)
        has_own_names = len(self._by_output) == len(graph.node) and not set(self._by_output) & set(self._arrays)
        _expect(is_plain and has_own_names and INPUT_NAME not in {*self._by_output, *self._arrays})

    def step(self, name: str, operator: str, *, num_constants: int) -> tuple[str, list[Array]]:
        """Return what the node that gives `name` takes, one value and then constants."""
        node = self._by_output.get(name)
        if node is None or node.op_type != operator or len(node.input) != 1 + num_constants:
            raise _UnexpectedError
        _expect(not node.attribute or operator == "Gather")
        constants = [self._constant(constant) for constant in node.input[1:]]
        return node.input[0], constants

    def column(self, name: str) -> tuple[str, int]:
        """Return of which matrix the vector `name` is a column, and of which one."""
        node = self._by_output.get(name)
        if node is None or node.op_type != "Gather" or len(node.input) != 2:
            raise _UnexpectedError
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        index = self._arrays.get(node.input[1])
        _expect(attributes == {"axis": 1} and index is not None and index.ndim == 0)
        assert index is not None
        return node.input[0], int(index)

    def operator_of(self, name: str) -> str:
        """Return the operator that gives `name`; empty: none does."""
        node = self._by_output.get(name)
        return "" if node is None else node.op_type

    def _constant(self, name: str) -> Array:
        array = self._arrays.get(name)
        if array is None or array.dtype != np.float32 or not np.isfinite(array).all():
            raise _UnexpectedError
        return array


def network_in(path: str) -> NeuralNetwork | None:
    """Return the network in an ONNX file; None when there is no such file, or it computes anything else."""
    try:
        model = onnx.load_model_from_string(read_bounded(path, most_bytes=MOST_MODEL_BYTES))
    except (OSError, ValueError):
        return None
    except Exception as error:
        # Protocol buffers have no types to import: their own exception is named.
        if type(error).__name__ == "DecodeError":
            return None
        raise
    return recognised_network(model)


def recognised_network(model: onnx.ModelProto) -> NeuralNetwork | None:
    """Return the network that a model computes, with columns without names; None when it computes anything else."""
    try:
        return _network(_Reader(model.graph), {output.name for output in model.graph.output})
    except _UnexpectedError:
        return None


def _network(reader: _Reader, outputs: set[str]) -> NeuralNetwork:
    raw, starvation = _odds(reader)
    _expect(starvation == STARVATION)
    powers = ""
    for output, index in _OUTPUTS.items():
        if output in outputs:
            matrix, column = reader.column(output)
            _expect(column == index and powers in {"", matrix})
            powers = matrix
    exponentials, (most,) = reader.step(powers, "Min", num_constants=1)
    exponents, _ = reader.step(exponentials, "Exp", num_constants=0)
    _expect(exponents == raw and np.array_equal(most, MOST))
    columns, weights, biases = _layers(reader, raw)
    return NeuralNetwork(_physics(reader, columns), weights, biases)


def _odds(reader: _Reader) -> tuple[str, int]:
    logit, _ = reader.step("starvation_probability", "Sigmoid", num_constants=0)
    return reader.column(logit)


def _layers(reader: _Reader, raw: str) -> tuple[str, tuple[Array, ...], tuple[Array, ...]]:
    """Return what the first layer takes, and the weights and biases of all, the first one first."""
    pairs = []
    name, pair = reader.step(raw, "Gemm", num_constants=2)
    pairs.append(pair)
    while reader.operator_of(name) == "Relu":
        product, _ = reader.step(name, "Relu", num_constants=0)
        name, pair = reader.step(product, "Gemm", num_constants=2)
        pairs.append(pair)
    pairs.reverse()
    for weights, biases in pairs:
        _expect(weights.ndim == 2 and biases.shape == weights.shape[1:])
    sizes = [weights.shape[1] for weights, _ in pairs]
    _expect(len(pairs) > 1 and sizes[-1] == len(MOST))
    _expect([weights.shape[0] for weights, _ in pairs[1:]] == sizes[:-1])
    weights_of_all, biases_of_all = zip(*pairs, strict=True)
    return name, weights_of_all, biases_of_all


def _physics(reader: _Reader, columns: str) -> PhysicsLayer:
    sums_of_products, _ = reader.step(columns, "Log", num_constants=0)
    products, (coefficients,) = reader.step(sums_of_products, "MatMul", num_constants=1)
    exponents, _ = reader.step(products, "Exp", num_constants=0)
    logs, (powers,) = reader.step(exponents, "MatMul", num_constants=1)
    bases, _ = reader.step(logs, "Log", num_constants=0)
    floors = None
    if reader.operator_of(bases) == "Max":
        bases, (floors,) = reader.step(bases, "Max", num_constants=1)
    features, (sums, offsets) = reader.step(bases, "Gemm", num_constants=2)
    _expect(features == INPUT_NAME and sums.ndim == powers.ndim == coefficients.ndim == 2)
    _expect(offsets.shape == sums.shape[1:] and powers.shape[0] == sums.shape[1])
    _expect(coefficients.shape[0] == powers.shape[1])
    names = tuple(f"column_{index}" for index in range(coefficients.shape[1]))
    # Which sum is the offered load does not matter for what is accepted.
    return PhysicsLayer(names, sums, offsets, floors, powers, coefficients, offered=0)


def _expect(*claims: bool) -> None:
    if not all(claims):
        raise _UnexpectedError
