"""The steps that vLLM took on some of the configurations, as a file: for machines without vLLM.

``python -m tests.vllm.golden`` records it anew, where vLLM is (docs/vllm-engine.md).
"""

from __future__ import annotations

import json
import lzma
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.vllm.configurations import CONFIGURATIONS
from twin.atomic_write import write_atomically
from twin.headless.frames import Arrays, archive, pack, unarchive, unpack_inputs, unpack_trace
from twin.replica import ReplicaInputs, ReplicaTrace

PATH = Path(__file__).parents[1] / "data" / "vllm_steps.npz.xz"
ABOUT = "about"


@dataclass(frozen=True)
class GoldenRun:
    """What a replica was given and what vLLM made of it, step log and step table included."""

    inputs: ReplicaInputs
    trace: ReplicaTrace


def read_golden() -> dict[str, GoldenRun]:
    """Return the recorded runs by the name of their configuration."""
    arrays = _read()
    return {
        name: GoldenRun(
            unpack_inputs(_part(arrays, f"{index}/inputs/")), unpack_trace(_part(arrays, f"{index}/trace/"))
        )
        for index, name in enumerate(_about(arrays)["configurations"])
    }


def recorded_version() -> str:
    """Return the version of vLLM that was recorded."""
    return str(_about(_read())["vllm"])


def record_golden() -> None:
    """Run vLLM on the configurations and write the file."""
    from twin.vllm_engine import run_vllm, vllm_python  # reading needs no vLLM

    chosen = [configuration for configuration in CONFIGURATIONS if configuration.is_recorded]
    about = {"vllm": vllm_python().version, "configurations": [configuration.name for configuration in chosen]}
    arrays: Arrays = {ABOUT: np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)}
    for index, configuration in enumerate(chosen):
        inputs = configuration.inputs()
        trace = run_vllm(inputs, log_steps=True, keep_step_table=True)
        for part, record in (("inputs", inputs), ("trace", trace)):
            arrays |= {f"{index}/{part}/{name}": array for name, array in pack(record).items()}
    PATH.parent.mkdir(exist_ok=True)
    write_atomically(PATH, lzma.compress(archive(arrays)))
    sys.stderr.write(f"wrote {PATH.name} with {len(chosen)} configurations, {PATH.stat().st_size / 1024:.0f} KiB\n")


def _read() -> Arrays:
    return unarchive(lzma.decompress(PATH.read_bytes()))


def _about(arrays: Arrays) -> dict[str, Any]:
    about: dict[str, Any] = json.loads(arrays[ABOUT].tobytes())
    return about


def _part(arrays: Arrays, prefix: str) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


if __name__ == "__main__":
    record_golden()
