"""What a tree ensemble of an ONNX graph may give in a box of its inputs.

Each leaf is reached from a box of inputs. Of every tree, the smallest and the largest leaf that a box touches are
added: exact for one tree, and for all together what can be said without looking at which leaves go together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictors.intervals import ROUNDING, Intervals

Array = NDArray[np.float64]

# Boxes times leaves times inputs that are compared at once: 64 MiB of booleans.
_MOST_COMPARED = 2**26
_REGRESSOR, _CLASSIFIER = "TreeEnsembleRegressor", "TreeEnsembleClassifier"


class UnsupportedTreesError(Exception):
    """Trees that compare or add otherwise than those here."""


@dataclass(frozen=True)
class TreeIntervals:
    """An ensemble with one target, as leaves.

    Attributes
    ----------
    above, upto
        A leaf is reached by inputs in ``(above, upto]``, float64 [L, D].
    values
        Of the leaves, float64 [L], ordered by tree.
    starts
        First leaf of each tree, int64 [T].
    base
        Added to the sum.
    is_classifier
        Whether the ensemble gives the scores of two classes, of which the sum is the second one.
    """

    above: Array
    upto: Array
    values: Array
    starts: NDArray[np.int64]
    base: float
    is_classifier: bool

    @classmethod
    def of(cls, operator: str, attributes: Mapping[str, Any]) -> TreeIntervals:
        """Read the attributes of an ONNX node (operator set ai.onnx.ml 1 to 4).

        Raises
        ------
        UnsupportedTreesError
            For several targets, other comparisons than ``<=``, another sum than the plain one, or a transformed one.
        """
        is_classifier = operator == _CLASSIFIER
        kind = "class" if is_classifier else "target"
        # Those of double precision have their numbers in tensors.
        _require("nodes_values" in attributes, f"{kind}_weights" in attributes)
        numbers = set(attributes[f"{kind}_ids"])
        _require(
            operator in {_REGRESSOR, _CLASSIFIER},
            len(numbers) == 1,
            attributes.get("post_transform", b"NONE") == b"NONE",
            attributes.get("aggregate_function", b"SUM") == b"SUM",
            attributes.get("n_targets", 1) == 1,
            not is_classifier or list(attributes.get("classlabels_int64s", ())) == [0, 1],
            set(attributes["nodes_modes"]) <= {b"BRANCH_LEQ", b"LEAF"},
        )
        base = list(attributes.get("base_values", [0.0]))
        _require(len(base) == 1)
        weights: dict[tuple[int, int], float] = defaultdict(float)
        for tree, node, weight in zip(
            attributes[f"{kind}_treeids"], attributes[f"{kind}_nodeids"], attributes[f"{kind}_weights"], strict=True
        ):
            weights[tree, node] += weight
        num_inputs = max(attributes["nodes_featureids"]) + 1
        above: list[Array] = []
        upto: list[Array] = []
        values: list[float] = []
        starts: list[int] = []
        for tree, nodes in _trees(attributes).items():
            starts.append(len(values))
            for low, high, node in _leaves(nodes, num_inputs):
                above.append(low)
                upto.append(high)
                values.append(weights[tree, node])
        return cls(np.array(above), np.array(upto), np.array(values), np.array(starts), float(base[0]), is_classifier)

    def bounds(self, inputs: Intervals) -> Intervals:
        """Return what the ensemble gives in each of B boxes of `inputs` [B, D]: [B, 1], of a classifier [B, 2]."""
        size = max(1, _MOST_COMPARED // max(1, self.above.size))
        parts = [
            self._sums(Intervals(inputs.lower[start : start + size], inputs.upper[start : start + size]))
            for start in range(0, len(inputs.lower), size)
        ]
        lower = np.concatenate([part.lower for part in parts])[:, np.newaxis]
        upper = np.concatenate([part.upper for part in parts])[:, np.newaxis]
        if not self.is_classifier:
            return Intervals(lower, upper)
        # The first class has the rest to 1, or the opposite, which depends on the signs of all weights.
        return Intervals(np.hstack([-upper, lower]), np.hstack([1.0 - lower, upper]))

    def _sums(self, inputs: Intervals) -> Intervals:
        asked = self.above.shape[1]
        touched = (inputs.lower[:, np.newaxis, :asked] <= self.upto).all(axis=2)
        touched &= (inputs.upper[:, np.newaxis, :asked] > self.above).all(axis=2)
        least = np.minimum.reduceat(np.where(touched, self.values, np.inf), self.starts, axis=1)
        most = np.maximum.reduceat(np.where(touched, self.values, -np.inf), self.starts, axis=1)
        magnitude = np.maximum(np.abs(least), np.abs(most)).sum(axis=1) + abs(self.base)
        error = ROUNDING * (len(self.starts) + 1) * magnitude
        return Intervals(least.sum(axis=1) + self.base - error, most.sum(axis=1) + self.base + error)


_Node = tuple[bool, int, float, int, int]


def _trees(attributes: Mapping[str, Any]) -> dict[int, dict[int, _Node]]:
    """Return by tree and number of the node: whether it is a leaf, its input and threshold, and where it leads."""
    trees: dict[int, dict[int, _Node]] = defaultdict(dict)
    columns = ("treeids", "nodeids", "modes", "featureids", "values", "truenodeids", "falsenodeids")
    for tree, node, mode, *place in zip(*(attributes[f"nodes_{column}"] for column in columns), strict=True):
        trees[tree][node] = (mode == b"LEAF", *place)
    return trees


def _leaves(nodes: dict[int, _Node], num_inputs: int) -> list[tuple[Array, Array, int]]:
    """Return the box of inputs that leads to each leaf of a tree, and its number; the first node is the root."""
    leaves = []
    open_nodes = [(next(iter(nodes)), np.full(num_inputs, -np.inf), np.full(num_inputs, np.inf))]
    while open_nodes:
        number, above, upto = open_nodes.pop()
        is_leaf, column, threshold, if_true, if_false = nodes[number]
        if is_leaf:
            leaves.append((above, upto, number))
            continue
        below, beyond = upto.copy(), above.copy()
        below[column] = min(upto[column], threshold)
        beyond[column] = max(above[column], threshold)
        open_nodes += [(if_true, above, below), (if_false, beyond, upto)]
    return leaves


def _require(*claims: bool) -> None:
    if not all(claims):
        raise UnsupportedTreesError
