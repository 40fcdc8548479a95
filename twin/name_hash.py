"""CPython's hash of a string under a given PYTHONHASHSEED, for many strings at once.

vLLM keeps a step's adapters in a Python set whose members hash as their names (`LoRARequest.__hash__` in vllm/lora/
request.py), so the order in which a replica loads them depends on these hashes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# PYTHONHASHSEED is a number below this one; 0 means that hashing is not randomised.
NUM_HASH_SEEDS = 1 << 32

_BLOCK_BYTES = 8
_INITIAL_STATE = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)

_State = list[NDArray[np.uint64]]


def adapter_name_hashes(names: Sequence[str], hash_seed: int) -> NDArray[np.uint64]:
    """Return the hashes that a Python process with ``PYTHONHASHSEED=hash_seed`` gives to adapter names.

    SipHash-1-3 of the characters as CPython stores them (Python/pyhash.c and Objects/unicodeobject.c of 3.11 and
    later, 64 bits, little endian).

    Parameters
    ----------
    names
        Any strings.
    hash_seed
        PYTHONHASHSEED, modulo 2**32 (CPython takes no larger one), >= 0.

    Returns
    -------
    uint64 [A]; CPython's ``hash`` is the same 64 bits with a sign.
    """
    messages = [_stored_characters(name) for name in names]
    num_blocks = np.array([len(message) // _BLOCK_BYTES + 1 for message in messages], dtype=np.int64)
    width = int(num_blocks.max(initial=1)) * _BLOCK_BYTES
    # The last byte of the last block is the length; what is between that and the characters is zero.
    padded = b"".join(_padded(message).ljust(width, b"\0") for message in messages)
    blocks = np.frombuffer(padded, dtype="<u8").reshape(len(messages), width // _BLOCK_BYTES)
    keys = hash_keys(hash_seed)
    state = [
        np.full(len(messages), constant ^ keys[position % 2], dtype=np.uint64)
        for position, constant in enumerate(_INITIAL_STATE)
    ]
    for column in range(blocks.shape[1]):
        state = [
            np.where(num_blocks > column, after, before)
            for after, before in zip(_absorb(state, blocks[:, column]), state, strict=True)
        ]
    state[2] = state[2] ^ np.uint64(0xFF)
    for _ in range(3):
        state = _round(state)
    hashes: NDArray[np.uint64] = state[0] ^ state[1] ^ state[2] ^ state[3]
    # CPython: an empty string hashes to 0, and -1 means an error.
    hashes[[not message for message in messages]] = 0
    hashes[hashes == np.uint64(2**64 - 1)] = 2**64 - 2
    return hashes


def hash_keys(hash_seed: int) -> tuple[int, int]:
    """Return the two keys that CPython derives from PYTHONHASHSEED (`lcg_urandom` in Python/bootstrap_hash.c)."""
    seed = hash_seed % NUM_HASH_SEEDS
    if seed == 0:
        return 0, 0
    secret = bytearray()
    for _ in range(2 * _BLOCK_BYTES):
        seed = (seed * 214013 + 2531011) % NUM_HASH_SEEDS
        secret.append(seed >> 16 & 0xFF)
    return int.from_bytes(secret[:_BLOCK_BYTES], "little"), int.from_bytes(secret[_BLOCK_BYTES:], "little")


def _stored_characters(name: str) -> bytes:
    """Return the characters with one, two or four bytes each, as the largest of them demands."""
    largest = 0 if name.isascii() else max(map(ord, name))
    if largest < 1 << 8:
        return name.encode("latin-1")
    return name.encode("utf-16-le" if largest < 1 << 16 else "utf-32-le", "surrogatepass")


def _padded(message: bytes) -> bytes:
    body = len(message) // _BLOCK_BYTES * _BLOCK_BYTES + _BLOCK_BYTES - 1
    return message.ljust(body, b"\0") + bytes([len(message) % 256])


def _absorb(state: _State, block: NDArray[np.uint64]) -> _State:
    v0, v1, v2, v3 = _round([state[0], state[1], state[2], state[3] ^ block])
    return [v0 ^ block, v1, v2, v3]


def _round(state: _State) -> _State:
    v0, v1, v2, v3 = state
    v0, v2 = v0 + v1, v2 + v3
    v1, v3 = _rotated(v1, 13) ^ v0, _rotated(v3, 16) ^ v2
    v0 = _rotated(v0, 32)
    v2, v0 = v2 + v1, v0 + v3
    v1, v3 = _rotated(v1, 17) ^ v2, _rotated(v3, 21) ^ v0
    return [v0, v1, _rotated(v2, 32), v3]


def _rotated(value: NDArray[np.uint64], by: int) -> NDArray[np.uint64]:
    return (value << np.uint64(by)) | (value >> np.uint64(64 - by))
