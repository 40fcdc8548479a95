"""How the twin and the process that runs vLLM talk: frames of a JSON header and arrays, through pipes.

A frame is a line of JSON, whose `size` says how many bytes follow: a NumPy archive without pickled objects, or nothing.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from twin.replica import ReplicaInputs, ReplicaTrace, StepLog

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Frame:
    """One message.

    Attributes
    ----------
    header
        What it is about (`kind`), and numbers and texts.
    arrays
        By name.
    """

    header: dict[str, Any]
    arrays: Arrays


def write_frame(file: IO[bytes], kind: str, arrays: Mapping[str, NDArray[Any]] | None = None, **header: Any) -> None:
    """Write one frame and flush the file."""
    content = b"" if arrays is None else archive(arrays)
    line = json.dumps({"kind": kind, **header, "size": len(content)}, separators=(",", ":"))
    file.write(line.encode() + b"\n" + content)
    file.flush()


def read_frame(file: IO[bytes]) -> Frame | None:
    """Return the next frame, or ``None`` when the other side is gone, in the middle of a frame perhaps."""
    line = file.readline()
    if not line.endswith(b"\n"):
        return None
    header = json.loads(line)
    content = file.read(header["size"])
    if len(content) < header["size"]:
        return None
    return Frame(header, unarchive(content) if content else {})


def archive(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return arrays as the bytes of a NumPy archive (.npz, not compressed)."""
    buffer = io.BytesIO()
    # Its type takes the names for its own options.
    save: Any = np.savez
    save(buffer, **arrays)
    return buffer.getvalue()


def unarchive(content: bytes) -> Arrays:
    """Return the arrays of `archive`."""
    with np.load(io.BytesIO(content), allow_pickle=False) as loaded:
        return {name: loaded[name] for name in loaded.files}


def pack(record: ReplicaInputs | ReplicaTrace | StepLog) -> Arrays:
    """Return the fields of a record as arrays: numbers without dimensions, texts as JSON, ``None`` left out.

    Those of a record within have names with a dot.
    """
    arrays: Arrays = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if value is None:
            continue
        if isinstance(value, tuple):
            arrays[field.name] = np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)
        elif is_dataclass(value):
            assert isinstance(value, StepLog)
            arrays.update({f"{field.name}.{name}": array for name, array in pack(value).items()})
        else:
            arrays[field.name] = np.asarray(value)
    return arrays


def unpack_inputs(arrays: Arrays) -> ReplicaInputs:
    """Return what `pack` made arrays of."""
    names = tuple(json.loads(arrays["adapter_names"].tobytes()))
    return ReplicaInputs(**{**_plain(arrays), "adapter_names": names})


def unpack_trace(arrays: Arrays) -> ReplicaTrace:
    """Return what `pack` made arrays of."""
    prefix = "step_log."
    log = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    rest = {name: array for name, array in arrays.items() if not name.startswith(prefix)}
    values = {"step_table": None, **_plain(rest)}
    return ReplicaTrace(**values, step_log=StepLog(**log) if log else None)


def _plain(arrays: Arrays) -> dict[str, Any]:
    """Return arrays, and numbers as Python's own."""
    return {name: array.item() if array.ndim == 0 else array for name, array in arrays.items()}
