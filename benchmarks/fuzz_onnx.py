"""Damage ONNX models: metadata, operators, tensors, interfaces, versions and bytes."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from random import Random

import numpy as np
import onnx

from benchmarks.fuzz_mutations import JSON_PARTS, json_text, mutate_bytes, mutate_value


def mutate_onnx(content: bytes, random: Random) -> bytes:
    """Return a damaged ONNX model, or a whole one with other metadata, shapes, operators and places of data."""
    if random.randrange(2):
        return mutate_bytes(content, random)
    model = onnx.load_model_from_string(content)
    for _ in range(random.randrange(1, 4)):
        random.choice(_ONNX_CHANGES)(model, random)
    return bytes(model.SerializeToString())


def _change_metadata(model: onnx.ModelProto, random: Random) -> None:
    if not model.metadata_props:
        return
    entry = random.choice(model.metadata_props)
    try:
        text = json_text(mutate_value(json.loads(entry.value), random))
    except ValueError:
        text = random.choice(JSON_PARTS)
    entry.value = text.encode("utf-8", errors="replace").decode("utf-8")


def _change_node(model: onnx.ModelProto, random: Random) -> None:
    node = random.choice(model.graph.node)
    kind = random.randrange(5)
    if kind == 0:
        node.domain = random.choice(("com.microsoft", "custom.domain", "ai.onnx.ml", ""))
    elif kind == 1:
        node.op_type = random.choice(("Loop", "Exp", "Identity", "ConstantOfShape", "NoSuchOperator", "Tile", "Log"))
    elif kind == 2 and node.input:
        node.input[random.randrange(len(node.input))] = random.choice(("features", "", "nothing"))
    elif kind == 3 and node.output:
        node.output[0] = random.choice(("features", "", "itl_s"))
    else:
        model.graph.node.append(copy.deepcopy(node))


def _change_tensor(model: onnx.ModelProto, random: Random) -> None:
    if not model.graph.initializer:
        return
    tensor = random.choice(model.graph.initializer)
    kind = random.randrange(4)
    if kind == 0:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", random.choice(("../../../../etc/passwd", "/etc/passwd", "data.bin"))
    elif kind == 1:
        tensor.dims.append(random.choice((2**62, -1, 0, 3)))
    elif kind == 2:
        tensor.data_type = random.randrange(24)
    elif tensor.raw_data:
        values = np.frombuffer(tensor.raw_data, dtype=np.uint8).copy()
        values[random.randrange(len(values))] = random.randrange(256)
        tensor.raw_data = values.tobytes()


def _change_interface(model: onnx.ModelProto, random: Random) -> None:
    entry = random.choice([*model.graph.input, *model.graph.output])
    kind = random.randrange(4)
    if kind == 0:
        entry.name = random.choice(("features", "itl_s", "x", ""))
    elif kind == 1:
        entry.type.tensor_type.elem_type = random.randrange(24)
    elif kind == 2:
        entry.type.tensor_type.shape.dim.add().dim_value = random.choice((2**40, -1, 0, 1))
    else:
        model.graph.output.append(copy.deepcopy(entry))


def _change_versions(model: onnx.ModelProto, random: Random) -> None:
    if random.randrange(2):
        model.ir_version = random.choice((0, 3, 99, 2**40))
    else:
        entry = model.opset_import.add() if random.randrange(2) else model.opset_import[0]
        entry.domain, entry.version = random.choice(("", "custom", "ai.onnx.ml")), random.choice((0, 1, 99, 2**40))


_ONNX_CHANGES: Sequence[Callable[[onnx.ModelProto, Random], None]] = (
    _change_metadata,
    _change_node,
    _change_tensor,
    _change_interface,
    _change_versions,
)
