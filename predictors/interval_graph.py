"""What an ONNX graph may give in a box of its features, by interval arithmetic through its nodes.

Meant for the trees behind quotients that `placer train` exports, and for any graph of the operators here. Sums of
adapters have one more property that intervals alone do not see: the quotient of two sums lies between the smallest and
the largest quotient of a single adapter. Where a graph divides one feature by another, that is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from predictors.answer_bounds import Quotients
from predictors.interval_trees import TreeIntervals, UnsupportedTreesError
from predictors.intervals import Intervals, exponential, largest, logarithm, sigmoid, smallest
from predictors.surrogate_file import INPUT_NAME
from twin.bounded_read import MOST_MODEL_BYTES, read_bounded

Array = NDArray[np.float64]
Labels = NDArray[np.int64]

# A label of values that are no single feature, and what is added to the label of a feature that was cut off from below.
_UNKNOWN = -1
_CUT_OFF = 1_000_000
# By so much the quotient of two sums in float32 may leave what the adapters allow, whose sums are rounded as well.
QUOTIENT_ROUNDING = 2.0**-20
# Largest constant below which a divisor is cut off that is otherwise a feature.
_TINY = 1e-6


@dataclass(frozen=True)
class _Value:
    """A tensor for N boxes: between which ends it lies, and which feature it is, if it is one."""

    ends: Intervals
    labels: Labels

    @classmethod
    def unknown(cls, ends: Intervals) -> _Value:
        return cls(ends, np.full(ends.lower.shape, _UNKNOWN))

    def moved(self, function: Callable[[NDArray[Any]], NDArray[Any]]) -> _Value:
        """Return what a function that only moves entries makes of it."""
        return _Value(self.ends.each(function), function(self.labels))


class _Node:
    """A node of the graph with its attributes and those inputs that are constant."""

    def __init__(self, node: onnx.NodeProto, constants: Mapping[str, NDArray[Any]]) -> None:
        self.operator = node.op_type
        self.inputs = tuple(node.input)
        self.outputs = tuple(node.output)
        self.attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        self.constants = {index: constants[name] for index, name in enumerate(node.input) if name in constants}
        self.trees: TreeIntervals | None = None

    def constant(self, index: int) -> NDArray[Any]:
        """Return a constant input; KeyError when it is not constant."""
        return self.constants[index]

    def attribute(self, name: str, default: Any) -> Any:
        """Return an attribute."""
        return self.attributes.get(name, default)


class IntervalGraph:
    """A graph all of whose nodes are understood; make it with `read`.

    Parameters
    ----------
    nodes
        In the order in which they can be computed.
    """

    def __init__(self, nodes: Sequence[_Node]) -> None:
        self._nodes = tuple(nodes)

    @classmethod
    def read(cls, model: onnx.ModelProto, outputs: Sequence[str]) -> IntervalGraph | None:
        """Return what a model computes for some of its outputs; None when that needs a node that is not understood."""
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        needed = set(outputs)
        nodes: list[_Node] = []
        for proto in reversed(model.graph.node):
            if needed.isdisjoint(proto.output):
                continue
            node = _Node(proto, constants)
            if not _is_understood(node):
                return None
            needed.update(proto.input)
            nodes.append(node)
        given = {name for node in nodes for name in node.outputs} | {INPUT_NAME} | set(constants)
        return cls(nodes[::-1]) if set(outputs) <= given else None

    def bounds(self, lower: Array, upper: Array, quotients: Quotients) -> dict[str, Intervals]:
        """Return between which ends every value of the graph lies, for features in boxes.

        Parameters
        ----------
        lower, upper
            Corners of B boxes, float64 [B, F], before they are rounded to float32.
        quotients
            Of the sets of adapters that are asked about.

        Returns
        -------
        By name, the outputs [B] among them.
        """
        labels = np.broadcast_to(np.arange(lower.shape[1]), lower.shape)
        values = {INPUT_NAME: _Value(Intervals(lower, upper).widened(), labels)}
        for node in self._nodes:
            values.update(zip(node.outputs, _computed(node, values, quotients), strict=False))
        return {name: value.ends for name, value in values.items()}


def intervals_in(path: str, outputs: Sequence[str]) -> IntervalGraph | None:
    """Return the graph in an ONNX file; None when there is no such file, or a node in it is not understood."""
    try:
        model = onnx.load_model_from_string(read_bounded(path, most_bytes=MOST_MODEL_BYTES))
    except (OSError, ValueError):
        return None
    except Exception as error:
        # Protocol buffers have no types to import: their own exception is named.
        if type(error).__name__ == "DecodeError":
            return None
        raise
    return IntervalGraph.read(model, outputs)


def _is_understood(node: _Node) -> bool:
    if node.operator in {"TreeEnsembleRegressor", "TreeEnsembleClassifier"}:
        try:
            node.trees = TreeIntervals.of(node.operator, node.attributes)
        except UnsupportedTreesError:
            return False
        return True
    if node.operator in _MOVES:
        # All but the first input say how to move.
        return node.operator == "Concat" or set(node.constants) == set(range(1, len(node.inputs)))
    if node.operator in {"MatMul", "Gemm"}:
        plain = all(node.attribute(name, 1.0) == 1.0 for name in ("alpha", "beta")) and not node.attribute("transA", 0)
        return plain and 0 not in node.constants and set(range(1, len(node.inputs))) == set(node.constants)
    if node.operator == "ReduceMax":
        return len(node.inputs) == 1 or set(node.constants) == {1}
    return node.operator in _ELEMENTWISE or node.operator in _FUNCTIONS


def _computed(node: _Node, values: Mapping[str, _Value], quotients: Quotients) -> list[_Value]:
    """Return what a node gives."""
    inputs = [
        _Value.unknown(Intervals.exactly(node.constants[index])) if index in node.constants else values[name]
        for index, name in enumerate(node.inputs)
    ]
    if node.operator in _MOVES:
        return _MOVES[node.operator](node, inputs)
    ends = _ends(node, [value.ends for value in inputs])
    if node.operator == "Div":
        return [_Value.unknown(_of_sums(inputs[0], inputs[1], ends, quotients))]
    if node.operator == "Max":
        return [_Value(ends, _cut_off_labels(inputs, ends))]
    # A classifier gives the class first, which nobody asks about.
    return [_Value.unknown(ends)] * len(node.outputs)


def _ends(node: _Node, inputs: list[Intervals]) -> Intervals:
    """Return between which ends lies what a node computes, from those of its inputs."""
    if node.trees is not None:
        return node.trees.bounds(inputs[0])
    if node.operator in _FUNCTIONS:
        return _FUNCTIONS[node.operator](inputs[0])
    if node.operator in {"MatMul", "Gemm"}:
        return _product(node, inputs[0])
    return _reduced(node, inputs[0]) if node.operator == "ReduceMax" else _ELEMENTWISE[node.operator](inputs)


def _of_sums(above: _Value, below: _Value, quotient: Intervals, quotients: Quotients) -> Intervals:
    """Return a quotient within what sums of adapters allow, where it is one of two features."""
    top, bottom = np.broadcast_arrays(above.labels, below.labels)
    # A numerator that is cut off from below is no sum of adapters any more.
    is_known = (top != _UNKNOWN) & (top < _CUT_OFF) & (bottom != _UNKNOWN)
    places = np.where(is_known, top, 0), np.where(is_known, bottom % _CUT_OFF, 0)
    known = Intervals(quotients.lower[places], quotients.upper[places]).widened(QUOTIENT_ROUNDING)
    # A divisor that is cut off from below makes the quotient smaller.
    holds_below = is_known & (np.broadcast_to(below.ends.lower, top.shape) > _TINY)
    return Intervals(
        np.where(holds_below, np.maximum(quotient.lower, known.lower), quotient.lower),
        np.where(is_known, np.minimum(quotient.upper, known.upper), quotient.upper),
    )


def _cut_off_labels(inputs: Sequence[_Value], result: Intervals) -> Labels:
    """Return the labels of a maximum: of a feature and a tiny constant it is the feature, as long as that is larger."""
    if len(inputs) == 2:
        for value, other in (tuple(inputs), tuple(reversed(inputs))):
            is_tiny = (other.ends.upper <= _TINY) & (other.labels == _UNKNOWN)
            if is_tiny.all():
                labels = np.broadcast_to(value.labels, result.lower.shape)
                return np.where((labels == _UNKNOWN) | (labels >= _CUT_OFF), labels, labels + _CUT_OFF)
    return np.full(result.lower.shape, _UNKNOWN)


def _product(node: _Node, value: Intervals) -> Intervals:
    weights = np.asarray(node.constant(1), dtype=np.float64)
    result = value @ (weights.T if node.attribute("transB", 0) else weights)
    return result + Intervals.exactly(node.constant(2)) if len(node.inputs) == 3 else result


def _reduced(node: _Node, value: Intervals) -> Intervals:
    axes = node.constants[1].tolist() if len(node.inputs) == 2 else node.attribute("axes", None)
    keeps = bool(node.attribute("keepdims", 1))
    over = None if axes is None else tuple(axes)
    return value.each(lambda ends: np.asarray(ends.max(axis=over, keepdims=keeps)))


def _transposed(node: _Node, inputs: Sequence[_Value]) -> list[_Value]:
    return [inputs[0].moved(lambda values: values.transpose(node.attribute("perm", None)))]


def _split(node: _Node, inputs: Sequence[_Value]) -> list[_Value]:
    axis, count = node.attribute("axis", 0), len(node.outputs)
    size = -(-inputs[0].labels.shape[axis] // count)
    places = np.cumsum(node.constant(1))[:-1] if len(node.inputs) == 2 else size * np.arange(1, count)

    def part(number: int) -> Callable[[NDArray[Any]], NDArray[Any]]:
        return lambda values: np.split(values, places, axis=axis)[number]

    return [inputs[0].moved(part(number)) for number in range(count)]


def _sliced(node: _Node, inputs: Sequence[_Value]) -> list[_Value]:
    starts, stops = node.constant(1).tolist(), node.constant(2).tolist()
    axes = node.constant(3).tolist() if len(node.inputs) > 3 else range(len(starts))
    steps = node.constant(4).tolist() if len(node.inputs) > 4 else [1] * len(starts)
    places = [slice(None)] * inputs[0].labels.ndim
    for axis, start, stop, step in zip(axes, starts, stops, steps, strict=True):
        places[axis] = slice(start, stop, step)
    return [inputs[0].moved(lambda values: values[tuple(places)])]


def _joined(node: _Node, inputs: Sequence[_Value]) -> list[_Value]:
    axis = node.attribute("axis", 0)
    ends = [value.ends for value in inputs]
    joined = Intervals(
        np.concatenate([end.lower for end in ends], axis=axis), np.concatenate([end.upper for end in ends], axis=axis)
    )
    return [_Value(joined, np.concatenate([value.labels for value in inputs], axis=axis))]


def _reshaped(node: _Node, inputs: Sequence[_Value]) -> list[_Value]:
    wanted = [old if new == 0 else new for old, new in zip(inputs[0].labels.shape, node.constant(1), strict=False)]
    wanted += node.constant(1).tolist()[len(wanted) :]
    return [inputs[0].moved(lambda values: values.reshape(wanted))]


def _gathered(node: _Node, inputs: Sequence[_Value]) -> list[_Value]:
    return [inputs[0].moved(lambda values: np.take(values, node.constant(1), axis=node.attribute("axis", 0)))]


def _same(node: _Node, inputs: Sequence[_Value]) -> list[_Value]:
    del node
    return [inputs[0]]


def _sum(values: list[Intervals]) -> Intervals:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


# Operators that only move entries.
_MOVES: Mapping[str, Callable[[_Node, Sequence[_Value]], list[_Value]]] = {
    "Transpose": _transposed,
    "Split": _split,
    "Slice": _sliced,
    "Concat": _joined,
    "Reshape": _reshaped,
    "Gather": _gathered,
    "Identity": _same,
}
_ELEMENTWISE: Mapping[str, Callable[[list[Intervals]], Intervals]] = {
    "Add": _sum,
    "Sum": _sum,
    "Sub": lambda values: values[0] - values[1],
    "Mul": lambda values: values[0] * values[1],
    "Div": lambda values: values[0] / values[1],
    "Min": smallest,
    "Max": largest,
}
_FUNCTIONS: Mapping[str, Callable[[Intervals], Intervals]] = {
    "Exp": exponential,
    "Log": logarithm,
    "Sigmoid": sigmoid,
    "Relu": lambda values: values.each(lambda ends: np.maximum(ends, 0.0)),
    "Neg": lambda values: Intervals(-values.upper, -values.lower),
}
