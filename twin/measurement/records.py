"""What is written down while a measurement runs: tables, their columns, and shards that survive the process.

A shard is a file of JSON lines, one per record, handed to the operating system record by record: killing the process
loses at most the line that was being written. Only the standard library is used, because vLLM's interpreter writes
shards too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

ColumnKind = Literal["int32", "int64", "float64", "bool", "string", "list<int32>", "list<float64>"]

# How the outcome of a request reads.
OK = "ok"
UNFINISHED = "unfinished"
LOST = "lost"
FAILURES = ("error", "timeout", "unreachable", "disconnected", "malformed")
STATUSES = (OK, UNFINISHED, LOST, *FAILURES)

# Records of the same window of the clock are one group: chance that lasts seconds hits them together.
GROUP_S = 10.0


@dataclass(frozen=True)
class Column:
    """A column of a table: its name, its type, and what it means (docs/measure.md shows the same words)."""

    name: str
    kind: ColumnKind
    meaning: str


_SEGMENT = Column("segment", "int32", "part of the measurement, from 1; each starts with an empty engine or client")

# The tables that a measurement can hold. `steps`, `loads`, `memory` and `startup` start with the columns that
# `placer calibrate` reads (twin/calibration/step_table.py).
TABLES: dict[str, tuple[Column, ...]] = {
    "requests": (
        Column("request", "int64", "row of the schedule"),
        Column("attempt", "int32", "0, and one more per retry: every attempt is a row"),
        _SEGMENT,
        Column("adapter", "string", "name; empty for the base model"),
        Column("prompt_tokens", "int32", "tokens sent"),
        Column("output_tokens", "int32", "tokens asked for"),
        Column("generated_tokens", "int32", "tokens received"),
        Column("arrival_s", "float64", "when it was due"),
        Column("sent_s", "float64", "when the client sent it; in process: `arrival_s`"),
        Column("first_scheduled_s", "float64", "start of the step that first scheduled it; empty over HTTP"),
        Column("ttft_s", "float64", "first token, from `sent_s`"),
        Column("itl_s", "list<float64>", "time to each further token; 0 for those of the same chunk"),
        Column("finish_s", "float64", "last token, or when it failed"),
        Column("status", "string", "one of " + ", ".join(STATUSES)),
        Column("error", "string", "what went wrong"),
        Column("http_status", "int32", "of the answer; empty in process, and without an answer"),
        Column("chunk_tokens", "list<int32>", "tokens of each chunk; empty in process"),
        Column("counting", "string", "how the tokens of a chunk were counted; empty in process"),
        Column("counted_prompt_tokens", "int32", "prompt tokens by the server's count"),
        Column("preemptions", "int32", "times it lost its KV blocks; empty over HTTP"),
    ),
    "steps": (
        Column("tokens", "int32", "scheduled tokens"),
        Column("requests", "int32", "scheduled requests"),
        Column("context_tokens", "int64", "tokens computed before the step, over its requests"),
        Column("time_ms", "float64", "duration without adapter loads, by the measurement's clock"),
        Column("adapters", "int32", "distinct adapters of the scheduled requests"),
        Column("max_loras", "int32", "slots"),
        Column("max_lora_rank", "int32", "rank of the slots; 0 without LoRA"),
        Column("has_prefill", "bool", "a request has no token yet, or got more than one scheduled"),
        Column("is_batch_changed", "bool", "a prefill in this step or the one before, or another number of requests"),
        Column("waiting", "int32", "requests in the queue after scheduling"),
        Column("cached_adapters", "int32", "adapters in the CPU cache after the step"),
        Column("group", "string", f"segment and window of {GROUP_S:g} s"),
        Column("step", "int64", "number in its segment, from 0"),
        _SEGMENT,
        Column("start_s", "float64", "when it began"),
        Column("duration_ms", "float64", "duration with adapter loads"),
        Column("load_ms", "float64", "adapter loads in it"),
        Column("wall_ms", "float64", "duration by the wall clock"),
        Column("cpu_ms", "float64", "CPU time of the process in it"),
        Column("scale", "float64", "what its time was multiplied by; 1 but on the steady clock"),
        Column("running", "int32", "running requests after scheduling"),
        Column("free_blocks", "int32", "free KV blocks after scheduling"),
        Column("preemptions", "int32", "requests that lost their KV blocks"),
        Column("gpu_loads", "int32", "adapters copied into a slot"),
        Column("disk_loads", "int32", "adapters read from disk"),
        Column("gpu_load_ranks", "list<int32>", "ranks of the adapters copied"),
        Column("disk_load_ranks", "list<int32>", "ranks of the adapters read"),
    ),
    "loads": (
        Column("rank", "int32", "of the adapter"),
        Column("max_lora_rank", "int32", "of the slot"),
        Column("cpu_to_gpu_ms", "float64", "copy into the slot; empty without one"),
        Column("disk_to_cpu_ms", "float64", "read, parsed and packed; empty if it was in the CPU cache"),
        Column("adapter", "string", "name"),
        Column("step", "int64", "step that needed it"),
        _SEGMENT,
        Column("start_s", "float64", "start of that step"),
    ),
    "memory": (
        Column("max_loras", "int32", "slots"),
        Column("max_lora_rank", "int32", "rank of the slots; 0 without LoRA"),
        Column("max_num_seqs", "int32", "as vLLM has it"),
        Column("gpu_memory_utilization", "float64", "as vLLM has it"),
        Column("kv_tokens", "int64", "KV blocks x block size; empty where the engine did not start"),
        Column("num_gpu_blocks", "int64", "KV blocks"),
        Column("block_size", "int32", "tokens per block"),
        Column("message", "string", "why it did not start"),
        _SEGMENT,
    ),
    "startup": (
        Column("max_loras", "int32", "slots; 0 without LoRA"),
        Column("seconds", "float64", "from the start of the process until requests can be added, by the wall clock"),
        Column("import_s", "float64", "part of it until vLLM was imported"),
        Column("engine_s", "float64", "part of it that made the engine"),
        _SEGMENT,
    ),
    "metrics": (
        Column("time_s", "float64", "when the page was asked for"),
        Column("duration_s", "float64", "until it was there"),
        Column("name", "string", "of the sample; empty where a page could not be had"),
        Column("labels", "string", "JSON object, keys sorted"),
        Column("value", "float64", "of the sample"),
        Column("error", "string", "why there is no page, or what in it cannot be read"),
        _SEGMENT,
    ),
    "client": (
        Column("time_s", "float64", "end of the interval"),
        Column("lag_s", "float64", "how late the client's own timer was at most: its times are as uncertain"),
        Column("cpu_share", "float64", "CPU time per second of the client; near 1 it is saturated"),
        Column("in_flight", "int32", "requests sent and not done"),
        _SEGMENT,
    ),
    "adapter_calls": (
        Column("adapter", "string", "name"),
        Column("action", "string", "load or unload"),
        Column("seconds", "float64", "until the server answered"),
        Column("http_status", "int32", "of the answer"),
        Column("error", "string", "what the server said against it"),
        _SEGMENT,
    ),
}

# Written before a request's outcome is known; what has no outcome in the end is lost.
SENT = "sent"


class ShardWriter:
    """Appends records to the shards of one segment: `FOLDER/TABLE-SEGMENT.jsonl`.

    Raises
    ------
    OSError
        When a record cannot be written, such as on a full disk.
    """

    def __init__(self, folder: Path, segment: int) -> None:
        self._folder = folder
        self._segment = segment
        self._files: dict[str, int] = {}

    def write(self, table: str, record: Mapping[str, Any]) -> None:
        """Append one record; it is the operating system's when this returns."""
        if table not in self._files:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            self._files[table] = os.open(shard_path(self._folder, table, self._segment), flags, 0o644)
        line = json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        while line:
            line = line[os.write(self._files[table], line) :]

    def close(self) -> None:
        """Close the files; nothing is lost without it."""
        for file in self._files.values():
            os.close(file)
        self._files.clear()


@dataclass
class ShardReader:
    """Reads the records of a table, segment by segment.

    Attributes
    ----------
    unreadable
        Lines that held no record: at most the last one of each shard, unless a file is damaged.
    """

    folder: Path
    unreadable: int = 0

    def records(self, table: str) -> Iterator[dict[str, Any]]:
        """Yield the records of a table with their segment, in the order in which they were written."""
        for path in sorted(self.folder.glob(f"{table}-*.jsonl")):
            segment = int(path.stem.rpartition("-")[2])
            with path.open("rb") as lines:
                for line in lines:
                    record = self._parsed(line)
                    if record is not None:
                        yield {**record, "segment": segment}

    def _parsed(self, line: bytes) -> dict[str, Any] | None:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        # A line without its end may be a shorter one that happens to be valid.
        if not isinstance(record, dict) or not line.endswith(b"\n"):
            self.unreadable += 1
            return None
        return record


def shard_path(folder: Path, table: str, segment: int) -> Path:
    """Return the path of a shard."""
    return folder / f"{table}-{segment:04d}.jsonl"


def seconds(value: float) -> float:
    """Return seconds as they are recorded: whole nanoseconds."""
    return round(value, 9)


def milliseconds(value_s: float) -> float:
    """Return seconds as recorded milliseconds: whole nanoseconds."""
    return round(value_s * 1000.0, 6)
