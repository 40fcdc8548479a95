"""YAML from outside: plain values only, a key once, and no more of them than a document has room for."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any

import yaml

# The C parser is ten times faster; PyYAML is also built without it.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MERGE_TAG = "tag:yaml.org,2002:merge"

# A problem has 8 levels.
MOST_LEVELS = 64
# Whatever the length of the text; without aliases, a text has fewer values than characters.
LEAST_MOST_VALUES = 100_000


class DuplicateKeyError(Exception):
    """A key stands twice in one mapping; lines count from 1, 0 is unknown."""

    def __init__(self, key: str, line: int, first_line: int) -> None:
        super().__init__(key)
        self.key = key
        self.line = line
        self.first_line = first_line


class DocumentError(Exception):
    """A document is no plain values, or has too many of them; `line` counts from 1."""

    def __init__(self, problem: str, line: int) -> None:
        super().__init__(problem)
        self.problem = problem
        self.line = line


class _UniqueKeyLoader(_Loader):  # type: ignore[misc]  # the loader is chosen at run time
    """PyYAML's safe loader, except that a repeated key is an error instead of a silent loss.

    Each scalar is constructed once: thousands of adapters share keys and most values.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._scalars: dict[tuple[str, str], Any] = {}

    def construct_object(self, node: yaml.Node, *, deep: bool = False) -> Any:
        """Build the value of `node`; scalars are immutable, so that those of one tag and text may be one object."""
        if type(node) is not yaml.ScalarNode:
            return super().construct_object(node, deep=deep)
        key = node.tag, node.value
        if key not in self._scalars:
            try:
                self._scalars[key] = super().construct_object(node, deep=deep)
            except (ValueError, LookupError, OverflowError, AttributeError, TypeError) as error:
                # PyYAML converts what looks like a number or a date, and lets through what Python says against it.
                shown = f"{node.value[:40]!r} is no {node.tag.rpartition(':')[2]}"
                raise DocumentError(shown, node.start_mark.line + 1) from error
        return self._scalars[key]

    def construct_mapping(self, node: yaml.MappingNode, *, deep: bool = False) -> dict[Hashable, Any]:
        """Build the mapping of `node` after looking for keys that stand in it twice."""
        first_line: dict[object, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == _MERGE_TAG:
                continue
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else id(key_node)
            line = key_node.start_mark.line + 1
            if key in first_line:
                raise DuplicateKeyError(str(key), line, first_line[key])
            first_line[key] = line
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def parse_yaml(text: str) -> Any:
    """Return the plain values of a YAML document.

    Raises
    ------
    yaml.YAMLError
        When it is none, or has tags beyond those of plain values.
    DuplicateKeyError
        When a mapping has a key twice.
    DocumentError
        When a number or a date is none; when aliases repeat values so often that there are more than characters (and
        than `LEAST_MOST_VALUES`), or more than `MOST_LEVELS` are inside one another.
    """
    loader = _UniqueKeyLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        # Before anything is made of the nodes: merge keys and aliases multiply them.
        require_values(node, _inner_nodes, most=max(LEAST_MOST_VALUES, len(text)))
        return loader.construct_document(node)
    finally:
        loader.dispose()


def require_values(root: Any, inner: Callable[[Any], Iterable[Any]], *, most: int) -> None:
    """Raise DocumentError for a document of too many values, or too many of them inside one another.

    Parameters
    ----------
    root
        The outermost value, or node.
    inner
        Gives the values in one.
    most
        Values, counted as often as they stand there.
    """
    count, waiting = 0, [(root, 1)]
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if depth > MOST_LEVELS or count > most:
            mark = getattr(root, "start_mark", None)
            line = 1 if mark is None else mark.line + 1
            too_many = f"its aliases stand for more than {most:,} values"
            problem = "it is nested too deep" if depth > MOST_LEVELS else too_many
            raise DocumentError(problem, line)
        waiting += [(one, depth + 1) for one in inner(value)]


def inner_values(value: Any) -> Iterable[Any]:
    """Return the plain values in a plain value."""
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _inner_nodes(node: yaml.Node) -> Iterable[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [one for pair in node.value for one in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else ()
