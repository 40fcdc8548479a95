"""An ONNX graph under construction: nodes and constants by small methods, for operator sets that are widely known."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

# Old enough for every ONNX Runtime that the project supports (1.20), new enough for Split with `num_outputs`.
OPSET = 18
ML_OPSET = 3
IR_VERSION = 9


@dataclass
class GraphBuilder:
    """An ONNX graph under construction; values are names of float32 tensors, or numbers.

    A quantity of N questions is a row [1, N]: rows are contiguous, so that splitting and joining them costs little.
    """

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    _constants: dict[float, str] = field(default_factory=dict)

    def constant(self, value: float) -> str:
        """Return the name of the scalar constant `value`, adding it once."""
        if value not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._constants[value] = name
            self.initializers.append(numpy_helper.from_array(np.array([value], dtype=np.float32), name))
        return self._constants[value]

    def vector(self, values: NDArray[np.float64]) -> str:
        """Add the constant column `values`, float64 [K], and return its name: a tensor [K, 1] for all questions."""
        name = f"vector_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(values.astype(np.float32)[:, np.newaxis], name))
        return name

    def node(self, operator: str, *inputs: str | float, axes: list[int] | None = None) -> str:
        """Add a node with one output and return the output's name."""
        name = f"{operator.lower()}_{len(self.nodes)}"
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        if axes is not None:
            names.append(self._integers(axes))
        self.nodes.append(helper.make_node(operator, names, [name]))
        return name

    def _integers(self, values: list[int]) -> str:
        name = f"integers_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.array(values, dtype=np.int64), name))
        return name

    def transpose(self, value: str) -> str:
        """Return the transpose of a matrix."""
        name = f"transpose_{len(self.nodes)}"
        self.nodes.append(helper.make_node("Transpose", [value], [name], perm=[1, 0]))
        return name

    def split(self, value: str, outputs: list[str]) -> list[str]:
        """Split `value` [K, N] into its K rows, each [1, N], named `outputs`."""
        self.nodes.append(helper.make_node("Split", [value], outputs, axis=0, num_outputs=len(outputs)))
        return outputs

    def rows(self, value: str, start: int, stop: int) -> str:
        """Return the rows from `start` to before `stop` of `value`."""
        return self.node("Slice", value, self._integers([start]), self._integers([stop]), self._integers([0]))

    def columns(self, value: str, start: int, stop: int) -> str:
        """Return the columns from `start` to before `stop` of `value`."""
        return self.node("Slice", value, self._integers([start]), self._integers([stop]), self._integers([1]))

    def column(self, value: str, index: int) -> str:
        """Return the column `index` of `value` [N, K] as [N]."""
        name = f"column_{len(self.nodes)}"
        place = f"place_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.array(index, dtype=np.int64), place))
        self.nodes.append(helper.make_node("Gather", [value, place], [name], axis=1))
        return name

    def concat(self, values: list[str]) -> str:
        """Return the rows of `values`, one below the other."""
        name = f"concat_{len(self.nodes)}"
        self.nodes.append(helper.make_node("Concat", values, [name], axis=0))
        return name

    def flatten(self, value: str, *, output: str | None = None) -> str:
        """Return `value` [N, 1] or [1, N] as [N], under the name `output` if given."""
        name = output or f"flat_{len(self.nodes)}"
        self.nodes.append(helper.make_node("Reshape", [value, self._integers([-1])], [name]))
        return name

    def add(self, *terms: str | float) -> str:
        """Return the sum of `terms`, left to right."""
        total = terms[0]
        for term in terms[1:]:
            total = self.node("Add", total, term)
        assert isinstance(total, str)
        return total

    def multiply(self, left: str | float, right: str | float) -> str:
        """Return the product."""
        return self.node("Mul", left, right)

    def divide(self, above: str | float, below: str | float) -> str:
        """Return the quotient."""
        return self.node("Div", above, below)

    def largest(self, *values: str | float) -> str:
        """Return the elementwise maximum."""
        return self.node("Max", *values)

    def smallest(self, *values: str | float) -> str:
        """Return the elementwise minimum."""
        return self.node("Min", *values)

    def rename(self, outputs: dict[str, str]) -> None:
        """Give values the names of the graph's outputs, by new name, without nodes that only copy."""
        new_names = {old: new for new, old in outputs.items()}
        for node in self.nodes:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    names[index] = new_names.get(name, name)

    def tensor(self, values: NDArray[np.float32]) -> str:
        """Add a constant float32 array and return its name."""
        name = f"tensor_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(values, dtype=np.float32), name))
        return name

    def gemm(self, value: str, weights: NDArray[np.float32], biases: NDArray[np.float32]) -> str:
        """Return ``value @ weights + biases``: [N, in] times [in, out] plus [out]."""
        return self.node("Gemm", value, self.tensor(weights), self.tensor(biases))

    def matrix_product(self, value: str, weights: NDArray[np.float32]) -> str:
        """Return ``value @ weights``: [N, in] times [in, out], or times [in], which is [N]."""
        return self.node("MatMul", value, self.tensor(weights))


def make_model(graph: onnx.GraphProto) -> onnx.ModelProto:
    """Return a checked model with the operator sets that the graphs here are written for."""
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, producer_name="placer")
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model)
    return model
