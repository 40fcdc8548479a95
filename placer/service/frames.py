"""What the service and its worker processes send each other: a JSON header, and a body of bytes.

Nothing is pickled: what a worker says is data, whatever happened to it.
"""

from __future__ import annotations

import asyncio
import json
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

_LENGTHS = struct.Struct(">II")
MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class Frame:
    """One message.

    Attributes
    ----------
    kind
        From the service: ``job``, ``interrupt``. From a worker: ``ready``, ``started``, ``event``, ``result``,
        ``error``, ``interrupted``.
    fields
        Plain values that go with it.
    body
        A document, as it is kept.
    """

    kind: str
    fields: dict[str, Any]
    body: bytes = b""

    def encoded(self) -> bytes:
        """Return the bytes of the message."""
        header = json.dumps({"kind": self.kind, "fields": self.fields}).encode("ascii")
        return _LENGTHS.pack(len(header), len(self.body)) + header + self.body


def read_frame(stream: BinaryIO) -> Frame | None:
    """Return the next message; ``None`` at the end of the stream."""
    prefix = stream.read(_LENGTHS.size)
    if len(prefix) < _LENGTHS.size:
        return None
    header_size, body_size = _LENGTHS.unpack(prefix)
    content = stream.read(header_size + body_size)
    return None if len(content) < header_size + body_size else _decoded(content[:header_size], content[header_size:])


async def receive_frame(reader: asyncio.StreamReader) -> Frame | None:
    """Return the next message; ``None`` at the end of the stream, also in the middle of one."""
    try:
        header_size, body_size = _LENGTHS.unpack(await reader.readexactly(_LENGTHS.size))
        if max(header_size, body_size) > MOST_BYTES:
            return None
        header = await reader.readexactly(header_size)
        return _decoded(header, await reader.readexactly(body_size))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def _decoded(header: bytes, body: bytes) -> Frame:
    data = json.loads(header)
    return Frame(data["kind"], data["fields"], body)
