"""Intervals through ONNX graphs: what ONNX Runtime computes in a box lies between them, or the graph is not read."""

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from predictors.answer_bounds import Quotients
from predictors.derived import DERIVED_NAMES, derived_model
from predictors.features import FEATURE_SCHEMA
from predictors.interval_graph import IntervalGraph
from predictors.intervals import Intervals
from predictors.onnx_graph import GraphBuilder, make_model
from twin.profile import load_profile

NUM_FEATURES = len(FEATURE_SCHEMA.names)
OPERATIONS: dict[str, Callable[[GraphBuilder, list[str]], str]] = {
    "sums": lambda graph, columns: graph.add(*columns[:5], 0.1),
    "differences": lambda graph, columns: graph.node("Sub", columns[0], graph.multiply(columns[1], 3.0)),
    "products": lambda graph, columns: graph.multiply(graph.node("Sub", columns[0], columns[1]), columns[2]),
    "quotients": lambda graph, columns: graph.divide(columns[0], graph.largest(columns[1], 1e-9)),
    "signs": lambda graph, columns: graph.divide(graph.node("Sub", columns[0], 5.0), graph.add(columns[1], 1.0)),
    "limits": lambda graph, columns: graph.smallest(graph.largest(columns[0], columns[1]), columns[2]),
    "functions": lambda graph, columns: graph.node("Sigmoid", graph.node("Log", graph.add(columns[0], 0.5))),
    "powers": lambda graph, columns: graph.node("Exp", graph.node("Neg", columns[3])),
    "rectified": lambda graph, columns: graph.node("Relu", graph.node("Sub", columns[3], columns[4])),
}


def graph_of(make: Callable[[GraphBuilder, list[str]], str]) -> bytes:
    """Return a model of one output."""
    builder = GraphBuilder()
    columns = builder.split(builder.transpose("features"), list(FEATURE_SCHEMA.names))
    builder.flatten(make(builder, columns), output="output")
    graph = helper.make_graph(
        builder.nodes,
        "one",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", NUM_FEATURES])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N"])],
        builder.initializers,
    )
    return bytes(make_model(graph).SerializeToString())


def random_boxes(generator: np.random.Generator, count: int = 20) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return corners of boxes of all sizes."""
    lower = generator.exponential(10.0, (count, NUM_FEATURES))
    return lower, lower * (1.0 + generator.choice([0.0, 1e-6, 0.1, 2.0], (count, 1)))


@pytest.mark.parametrize("name", OPERATIONS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_values_lie_between_their_ends(name: str, seed: int) -> None:
    """Of every operation, for rows in boxes."""
    generator = np.random.default_rng(seed)
    content = graph_of(OPERATIONS[name])
    graph = IntervalGraph.read(onnx.load_model_from_string(content), ["output"])
    assert graph is not None
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    lower, upper = random_boxes(generator)
    ends = graph.bounds(lower, upper, Quotients.unknown())["output"]
    for share in (0.0, 0.3, 1.0):
        rows = (lower + share * generator.uniform(0.0, 1.0, lower.shape) * (upper - lower)).astype(np.float32)
        (values,) = session.run(None, {"features": rows})
        assert (ends.lower <= values).all()
        assert (values <= ends.upper).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_derived_columns_lie_between_their_ends_for_sums_of_adapters(seed: int) -> None:
    """With what their quotients keep; where all adapters have the same lengths, these are known exactly."""
    generator = np.random.default_rng(seed)
    model = derived_model(load_profile("llama-3.1-8b-h100-64gb"))
    graph = IntervalGraph.read(model, ["derived"])
    assert graph is not None
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    aggregates = np.tile([1.0, 1.0, 1.0, 200.0, 150.0, 3e4, 9e4, 1.0, 1.0, 1.0, *[0.0] * 8], (30, 1))
    aggregates[:, [1, 3, 4, 5, 6, 7]] *= generator.exponential(1.0, (30, 1))
    aggregates[:, 2] = aggregates[:, 1] ** 2
    chosen = generator.uniform(size=(50, 30)) < generator.uniform(0.1, 0.9, (50, 1))
    chosen[:, 0] = True
    sums = chosen @ aggregates
    rows = np.concatenate([sums, np.tile([8.0, 32.0, 256.0, 2048.0, 2e5, 30.0, 1.0], (50, 1))], axis=1)
    lower, upper = rows.min(axis=0)[np.newaxis], rows.max(axis=0)[np.newaxis]
    ends = graph.bounds(lower, upper, Quotients.of(aggregates))["derived"]
    (values,) = session.run(None, {"features": rows.astype(np.float32)})
    assert (ends.lower <= values).all()
    assert (values <= ends.upper).all()
    width = dict(zip(DERIVED_NAMES, (ends.upper - ends.lower)[0] / np.abs(values).max(axis=0), strict=True))
    assert width["prompt_tokens_per_request"] < 1e-4
    assert width["held_tokens_per_request"] < 1e-4


def test_a_cut_off_numerator_is_no_feature() -> None:
    """What is lifted to a constant may exceed any quotient of single adapters; a lifted divisor only lowers one."""
    content = graph_of(lambda graph, columns: graph.divide(graph.largest(columns[1], 1e-7), columns[0]))
    graph = IntervalGraph.read(onnx.load_model_from_string(content), ["output"])
    assert graph is not None
    nothing = np.zeros((1, NUM_FEATURES))
    lower, upper = nothing.copy(), nothing.copy()
    lower[0, 0], upper[0, :2] = 1.0, (2.0, 1e-9)
    aggregates = np.zeros((3, 18))
    aggregates[:, :2] = (1.0, 1e-12)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (values,) = session.run(None, {"features": lower.astype(np.float32)})
    ends = graph.bounds(lower, upper, Quotients.of(aggregates))["output"]
    assert ends.lower <= values <= ends.upper


def test_a_graph_with_another_node_is_not_read() -> None:
    """Nor one whose outputs are others; nodes that no output needs do not matter."""
    unknown = onnx.load_model_from_string(graph_of(lambda graph, columns: graph.node("Sin", columns[0])))
    assert IntervalGraph.read(unknown, ["output"]) is None
    known = onnx.load_model_from_string(graph_of(OPERATIONS["sums"]))
    assert IntervalGraph.read(known, ["another"]) is None
    known.graph.node.append(helper.make_node("Sin", [known.graph.node[0].output[0]], ["unused"]))
    assert IntervalGraph.read(known, ["output"]) is not None


def test_trees_of_double_precision_are_not_read() -> None:
    """Their numbers stand in tensors, and they compare in another precision."""
    trees = helper.make_node(
        "TreeEnsembleRegressor",
        ["features"],
        ["output"],
        domain="ai.onnx.ml",
        nodes_treeids=[0, 0, 0],
        nodes_nodeids=[0, 1, 2],
        nodes_featureids=[0, 0, 0],
        nodes_values_as_tensor=numpy_helper.from_array(np.array([1.5, 0.0, 0.0]), "values"),
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"],
        nodes_truenodeids=[1, 0, 0],
        nodes_falsenodeids=[2, 0, 0],
        target_treeids=[0, 0],
        target_nodeids=[1, 2],
        target_ids=[0, 0],
        target_weights_as_tensor=numpy_helper.from_array(np.array([0.0, 1.0]), "weights"),
        n_targets=1,
    )
    graph = helper.make_graph([trees], "trees", [], [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)])
    assert IntervalGraph.read(helper.make_model(graph), ["output"]) is None


def test_what_may_divide_by_nothing_says_nothing() -> None:
    """And infinities times 0 are no number, but an interval."""
    everything = Intervals(np.array([1.0]), np.array([2.0])) / Intervals(np.array([-1.0]), np.array([1.0]))
    assert (everything.lower[0], everything.upper[0]) == (-np.inf, np.inf)
    product = everything * Intervals(np.array([0.0]), np.array([0.0]))
    assert product.lower[0] <= 0.0 <= product.upper[0]
