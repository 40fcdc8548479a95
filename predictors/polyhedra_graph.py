"""Polyhedra as nodes of an ONNX graph, and whether a graph computes just those: proofs about a file rest on it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from predictors.features import FEATURE_SCHEMA
from predictors.onnx_graph import GraphBuilder
from predictors.polyhedra import NUM_AGGREGATES, SETTING_COLUMNS, Polyhedra, not_computed
from predictors.surrogate_file import INPUT_NAME

# Outputs that decide what is accepted, besides latencies.
DECIDING_OUTPUTS = ("throughput_ratio", "starvation_probability")


def add_polyhedra(builder: GraphBuilder, polyhedra: Polyhedra, *, features: str) -> tuple[str, str]:
    """Add polyhedra to an ONNX graph; return the names of the ratio and of the log-odds, float32 [N] each."""
    num_features = len(FEATURE_SCHEMA.names)
    scales = np.zeros((num_features, len(polyhedra.scales)), dtype=np.float32)
    scales[SETTING_COLUMNS, np.arange(len(polyhedra.scales))] = polyhedra.scales
    rates = np.zeros((num_features, len(polyhedra.constants)), dtype=np.float32)
    rates[:NUM_AGGREGATES] = polyhedra.rates
    logs = builder.node("Log", builder.gemm(features, scales, polyhedra.offsets))
    factors = builder.node("Exp", builder.matrix_product(logs, polyhedra.powers))
    terms = builder.multiply(factors, builder.gemm(features, rates, polyhedra.constants))
    sums = builder.node("Log", builder.gemm(terms, polyhedra.weights, polyhedra.floors))
    sloped = builder.multiply(sums, builder.tensor(polyhedra.slopes))
    planes = builder.node("Add", sloped, builder.tensor(polyhedra.intercepts))
    first = polyhedra.num_ratio_planes
    largest = builder.node("ReduceMax", builder.columns(planes, 0, first), axes=[1])
    ratio = builder.node("Exp", builder.node("Neg", builder.node("Relu", builder.flatten(largest))))
    shape = [-1, polyhedra.num_pieces, polyhedra.planes_per_piece]
    pieces = builder.node("Reshape", builder.columns(planes, first, len(polyhedra.slopes)), axes=shape)
    odds = builder.node("ReduceMin", builder.node("ReduceMax", pieces, axes=[2]), axes=[1])
    return ratio, builder.flatten(odds)


def require_computed(path: str | Path, polyhedra: Polyhedra) -> None:
    """Raise SurrogateError unless a file computes its deciding outputs from these arrays, node for node."""
    if not _computes(path, polyhedra):
        raise not_computed(str(path), "node for node")


def _computes(path: str | Path, polyhedra: Polyhedra) -> bool:
    model = onnx.load_model_from_string(Path(path).read_bytes())
    if model.functions or any(opset.domain not in {"", "ai.onnx", "ai.onnx.ml"} for opset in model.opset_import):
        return False
    builder = GraphBuilder()
    ratio, odds = add_polyhedra(builder, polyhedra, features=INPUT_NAME)
    builder.rename(dict(zip(DECIDING_OUTPUTS, (ratio, builder.node("Sigmoid", odds)), strict=True)))
    own = onnx.helper.make_graph(builder.nodes, "expected", [], [], builder.initializers)
    expected, given = _digests(own), _digests(model.graph)
    return all(given.get(name, b"none") == expected[name] for name in DECIDING_OUTPUTS)


def _digests(graph: onnx.GraphProto) -> Mapping[str, bytes]:
    """Return for each value of a graph, whose nodes are in order, a hash of all that it is computed from.

    Two values have the same one only where the same nodes give them from the same constants; names do not matter.
    """
    digests = {INPUT_NAME: b"input"}
    for tensor in graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        shape = f"{array.dtype} {array.shape} ".encode()
        digests[tensor.name] = hashlib.sha256(b"constant " + shape + array.tobytes()).digest()
    for node in graph.node:
        attributes = sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
        content = [node.domain.encode(), node.op_type.encode(), *attributes, b"inputs"]
        content += [digests.get(name, b"missing") for name in node.input]
        for place, name in enumerate(node.output):
            parts = [*content, str(place).encode()]
            digests[name] = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()
    return digests
