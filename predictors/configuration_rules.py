"""The shallow tree of a configuration model in words."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from predictors.configuration import Tree
from predictors.configuration_features import FEATURE_NAMES, FEATURE_WORDS

_INDENT = "|   "


def rule_lines(tree: Tree) -> list[str]:
    """Return the whole tree as indented lines: conditions, and at the leaves what to multiply arithmetic with."""
    lines: list[str] = []

    def visit(node: int, depth: int) -> None:
        indent = _INDENT * depth
        if tree.is_leaf(node):
            lines.append(f"{indent}{leaf_text(tree, node)} ({tree.rows[node]} populations)")
            return
        words = FEATURE_WORDS[FEATURE_NAMES[tree.feature[node]]]
        threshold = number_text(tree.threshold[node])
        lines.append(f"{indent}if {words} <= {threshold}:")
        visit(tree.left[node], depth + 1)
        lines.append(f"{indent}else, {words} > {threshold}:")
        visit(tree.right[node], depth + 1)

    visit(0, 0)
    return lines


def path_lines(tree: Tree, path: Sequence[int], features: NDArray[np.float64]) -> list[str]:
    """Return the conditions that `features`, float64 [F], met on its path, each with its value, and the leaf."""
    lines = []
    for node, child in itertools.pairwise(path):
        index = tree.feature[node]
        relation = "<=" if child == tree.left[node] else ">"
        words = FEATURE_WORDS[FEATURE_NAMES[index]]
        lines.append(f"{words} = {number_text(features[index])} {relation} {number_text(tree.threshold[node])}")
    return [*lines, leaf_text(tree, path[-1])]


def leaf_text(tree: Tree, node: int) -> str:
    """Return what a leaf says: factors on arithmetic."""
    adapters, slots = (math.exp(value) for value in tree.value[node])
    return f"adapters = {adapters:.2f} x arithmetic, slots = {slots:.2f} x arithmetic"


def number_text(value: float) -> str:
    """Return a number with three significant digits, without an exponent where it is not tiny."""
    if value == 0.0 or abs(value) < 1e-4:
        return f"{value:.2g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"
