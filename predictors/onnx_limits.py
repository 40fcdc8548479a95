"""What an ONNX file may not have: files beside it, code of others, and graphs within graphs, which may run forever.

The format is Protocol Buffers, of which the messages are walked here without the library `onnx`: it is not in the core,
and ONNX Runtime answers such questions only after it has loaded everything.
"""

from __future__ import annotations

from collections.abc import Iterator

# Operators of ONNX itself, of its machine-learning part, and those that ONNX Runtime brings along.
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
MOST_OPSET = 64
MOST_NODES = 100_000

# Numbers of fields in the messages of onnx.proto: of a model,
_GRAPH, _OPSET, _FUNCTIONS = 7, 8, 25
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
# of a graph,
_NODE, _INITIALIZER, _SPARSE_INITIALIZER = 1, 5, 15
# of a node, of an attribute,
_OPERATOR, _ATTRIBUTE, _DOMAIN = 4, 5, 7
_TENSOR, _SUBGRAPH, _TENSORS, _SUBGRAPHS, _SPARSE, _SPARSES = 5, 6, 10, 11, 22, 23
# of a tensor and of a sparse one.
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_SPARSE_PARTS = (1, 2)

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
Field = tuple[int, int | memoryview]


class _MalformedError(Exception):
    """The bytes are no such message: ONNX Runtime says what is wrong with them."""


def forbidden_part(content: bytes) -> str | None:
    """Return what in an ONNX file may not be there, as half a sentence; None: nothing, or it is no such file.

    Parameters
    ----------
    content
        Of the whole file.
    """
    try:
        return next(_forbidden(memoryview(content)), None)
    except _MalformedError:
        return None


def _forbidden(model: memoryview) -> Iterator[str]:
    for number, value in _fields(model):
        if number == _OPSET:
            yield from _forbidden_opset(_message(value))
        elif number == _FUNCTIONS:
            yield "it has functions of its own"
        elif number == _GRAPH:
            yield from _forbidden_in_graph(_message(value))


def _forbidden_opset(opset: memoryview) -> Iterator[str]:
    values = dict(_fields(opset))
    domain, version = _text(values.get(_OPSET_DOMAIN)), values.get(_OPSET_VERSION, 0)
    if domain not in DOMAINS:
        yield f"it needs operators of {domain[:60]!r}, and only those of ONNX and ONNX Runtime are there"
    if isinstance(version, int) and version > MOST_OPSET:
        yield f"it needs version {version} of ONNX's operators, which is above {MOST_OPSET}"


def _forbidden_in_graph(graph: memoryview) -> Iterator[str]:
    num_nodes = 0
    for number, value in _fields(graph):
        if number == _NODE:
            num_nodes += 1
            if num_nodes > MOST_NODES:
                yield f"it has more than {MOST_NODES:,} nodes"
            yield from _forbidden_in_node(_message(value))
        elif number == _INITIALIZER:
            yield from _external(_message(value))
        elif number == _SPARSE_INITIALIZER:
            yield from _external_sparse(_message(value))


def _forbidden_in_node(node: memoryview) -> Iterator[str]:
    domain, operator, attributes = "", "", []
    for number, value in _fields(node):
        if number == _DOMAIN:
            domain = _text(value)
        elif number == _OPERATOR:
            operator = _text(value)
        elif number == _ATTRIBUTE:
            attributes.append(_message(value))
    if domain not in DOMAINS:
        yield f"its operator {operator[:60]!r} is of {domain[:60]!r}, and only those of ONNX and ONNX Runtime are there"
    for attribute in attributes:
        for number, value in _fields(attribute):
            if number in {_SUBGRAPH, _SUBGRAPHS}:
                yield f"its operator {operator[:60]!r} has a graph of its own, such as a loop or a branch"
            elif number in {_TENSOR, _TENSORS}:
                yield from _external(_message(value))
            elif number in {_SPARSE, _SPARSES}:
                yield from _external_sparse(_message(value))


def _external(tensor: memoryview) -> Iterator[str]:
    for number, value in _fields(tensor):
        if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0):
            yield "it has data in another file"
            return


def _external_sparse(tensor: memoryview) -> Iterator[str]:
    for number, value in _fields(tensor):
        if number in _SPARSE_PARTS:
            yield from _external(_message(value))


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise _MalformedError
    return value


def _text(value: int | memoryview | None) -> str:
    return "" if value is None else bytes(_message(value)).decode("utf-8", errors="replace")


def _fields(message: memoryview) -> Iterator[Field]:
    """Yield the number and the value of each field: an int, or the bytes of a text, a message or packed numbers."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, position = _varint(message, position)
            yield number, value
            continue
        if kind == _BYTES:
            size, position = _varint(message, position)
        elif kind in {_FIXED32, _FIXED64}:
            size = 4 if kind == _FIXED32 else 8
        else:
            raise _MalformedError
        if position + size > len(message):
            raise _MalformedError
        yield number, message[position : position + size]
        position += size


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return the number at a position, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise _MalformedError
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _MalformedError
