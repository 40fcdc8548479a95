"""CPython's hash of names under a hash seed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from twin.name_hash import NUM_HASH_SEEDS, adapter_name_hashes, hash_keys

# One, two and four bytes per character; lengths around the blocks of eight bytes; nothing; half of a surrogate pair.
NAMES = (
    "",
    "a",
    "adapter-001",
    "été",
    "支持-客服",
    "🦜 parrot",
    "\udc80",
    *("x" * length for length in (7, 8, 9, 15, 16, 17, 255, 256, 300)),
    *(f"lora-{index}" for index in range(200)),
)


@pytest.mark.parametrize("hash_seed", [0, 1, 2, 31337, NUM_HASH_SEEDS - 1])
def test_hashes_are_those_of_a_process_with_that_seed(hash_seed: int) -> None:
    """Every name hashes as in a real Python process, whatever its length and characters."""
    script = "import json, sys; print(json.dumps([hash(name) % 2**64 for name in json.load(sys.stdin)]))"
    process = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(NAMES),
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONHASHSEED": str(hash_seed)},
    )
    assert adapter_name_hashes(NAMES, hash_seed).tolist() == json.loads(process.stdout)


def test_no_name_has_a_hash() -> None:
    """A replica without adapters has an empty column."""
    assert adapter_name_hashes([], 1).tolist() == []


def test_seeds_wrap_around() -> None:
    """CPython takes seeds below 2**32; larger ones of a simulation mean the rest."""
    assert hash_keys(NUM_HASH_SEEDS + 5) == hash_keys(5) != hash_keys(6)
    assert hash_keys(NUM_HASH_SEEDS) == (0, 0)
