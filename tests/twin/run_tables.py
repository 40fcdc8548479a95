"""Small tables of measured runs, written as the large one is."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twin.validation.runs import MeasuredRun, read_runs

# Four adapters on two slots, a minute of light traffic.
RUN = {
    "run_id": "R1",
    "model": "llama-3.1-8b-instruct",
    "status": "ok",
    "slots": 2,
    "n_served": 4,
    "max_lora_rank": 16,
    "ranks": "8 16",
    "rates_counts": "0.5:1;1.0:3",
    "pool_mean_in": 222.7,
    "pool_mean_out": 196.1,
    "total_time": 60,
    "max_num_seqs": 256,
    "max_num_batched_tokens": 2048,
    "tok_per_s": 1450.0,
    "itl_mean_ms": 17.0,
    "itl_p50_ms": 15.0,
    "tpot_mean_ms": 16.5,
    "ttft_p50_ms": 40.0,
    "running_mean": 11.0,
    "waiting_mean": 0.0,
    "kv_usage_mean": 0.01,
    "goodput_ratio": 0.97,
    "starved": 0,
    "client_collapse": 0,
    "informative": 1,
    "split": "valid",
    "offered_tok_per_s": 1500.0,
}
# What a run that did not start leaves empty.
MEASURED = (
    *("rates_counts", "pool_mean_in", "pool_mean_out", "tok_per_s", "itl_mean_ms", "itl_p50_ms", "tpot_mean_ms"),
    *("ttft_p50_ms", "running_mean", "waiting_mean", "kv_usage_mean", "goodput_ratio", "starved", "client_collapse"),
)


def out_of_memory_row(**changes: Any) -> dict[str, Any]:
    """Return a row of a server that did not start: 384 slots of rank 16 do not fit."""
    empty: dict[str, Any] = dict.fromkeys(MEASURED, "")
    return RUN | empty | {"run_id": "R9", "status": "oom", "slots": 384, "n_served": 384, "informative": 0} | changes


def write_runs(path: Path, rows: Sequence[dict[str, Any]], *, columns: Sequence[str] = tuple(RUN)) -> Path:
    """Write rows as a CSV file and return its path."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_published(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write what another twin said as a CSV file and return its path."""
    return write_runs(path, rows, columns=("run_id", "twin_total_throughput", "twin_itl"))


def measured_run(folder: Path, **changes: Any) -> MeasuredRun:
    """Return one run as it is read from a table."""
    (run,) = read_runs(write_runs(folder / "one_run.csv", [RUN | changes])).runs
    return run
