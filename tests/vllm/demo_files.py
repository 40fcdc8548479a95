"""What the tests of measuring serve: a tiny model with 16 adapters, commands in this process, and things that break."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from typer.testing import CliRunner

from placer.cli.application import app
from twin.measurement.demo import WORKLOAD_FILE, make_demo
from twin.measurement.records import ShardReader

NUM_ADAPTERS = 16
MAX_LORAS = 4
# Of a server of the demo: small, and started in a minute on a CPU.
SERVER_ENGINE = {
    "max_loras": MAX_LORAS,
    "max_lora_rank": 16,
    "max_cpu_loras": NUM_ADAPTERS,
    "max_num_seqs": 32,
    "max_num_batched_tokens": 512,
    "max_model_len": 512,
    "block_size": 32,
    "gpu_memory_utilization": 0.1,
}
# So small that a test takes seconds; blocks are of multiples of 32 tokens on a CPU.
LENGTHS = {"prompt_tokens": {"mean": 24, "std": 8, "max": 64}, "output_tokens": {"mean": 8, "std": 4, "max": 24}}


def make_files(folder: Path, *, rate_rps: float) -> Path:
    """Make a demo, and return the path of its workload with short requests of equally popular adapters."""
    make_demo(folder, num_adapters=NUM_ADAPTERS, ranks=(8, 16), rate_rps=rate_rps, seed=0)
    path = folder / WORKLOAD_FILE
    content = yaml.safe_load(path.read_text("utf-8"))
    content["engine"] |= {"block_size": 32, "max_model_len": 512}
    content["adapters"] = [adapter | LENGTHS | {"rate_rps": rate_rps / NUM_ADAPTERS} for adapter in content["adapters"]]
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def run(*arguments: str | Path) -> tuple[int, str, str]:
    """Run `placer measure` in this process; return exit code, standard output and standard error."""
    texts = [str(argument) for argument in arguments]
    result = CliRunner().invoke(app, ["measure", *texts], prog_name="placer")
    return result.exit_code, result.stdout, result.stderr


def num_records(folder: Path, table: str) -> int:
    """Return how many records of a table a measurement has so far."""
    return sum(1 for _ in ShardReader(folder / "shards").records(table))


@contextmanager
def when_recorded(folder: Path, table: str, count: int, action: Callable[[], object]) -> Iterator[None]:
    """Do something to a measurement as soon as it has that many records of a table."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            if num_records(folder, table) >= count:
                action()
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def workers_of(parent: int) -> list[int]:
    """Return the processes that a process has started to run vLLM's engine."""
    children = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat, command = (entry / "stat").read_text("utf-8"), (entry / "cmdline").read_bytes()
            except OSError:
                continue
            is_child = int(stat.rpartition(")")[2].split()[1]) == parent
            if is_child and b"twin.measurement.worker" in command:
                children.append(int(entry.name))
    return children


def wait_until(holds: Callable[[], bool], *, limit_s: float = 120.0) -> None:
    """Wait for something, but not for ever."""
    until = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < until, f"it did not happen within {limit_s:g} s"
        time.sleep(0.05)


def is_gone(process: int) -> bool:
    """Return whether a process has ended, reaped or not."""
    try:
        return (Path("/proc") / str(process) / "stat").read_text("utf-8").rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def status_of(folder: Path) -> tuple[str, str | None]:
    """Return what a measurement's manifest says: its status, and the reason."""
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    return manifest["status"], manifest["reason"]
