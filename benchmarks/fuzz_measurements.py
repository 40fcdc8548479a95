"""Readers of measurements and of tables to calibrate to: valid files for each, how they are damaged and read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import fuzz_mutations as mutations
from benchmarks.fuzz_target import NUM_ROWS, Target, both, copied, text_file
from placer.calibration_settings import SettingsReader
from twin.calibration.evidence import read_evidence
from twin.calibration.measured_folders import read_folder
from twin.calibration.step_table import find_tables, read_steps
from twin.calibration.tables import read_table as read_calibration_table
from twin.measurement.folder import create_folder
from twin.measurement.folder import open_folder as open_measurement
from twin.measurement.manifest import InProcessSettings, Manifest, WorkloadFacts
from twin.measurement.preparation import require_adapters
from twin.measurement.records import ShardWriter
from twin.measurement.tables import consolidate, read_table
from twin.validation.published import read_published
from twin.validation.runs import read_runs
from twin.workload import NANOSECONDS, Adapter, RequestTable, Workload

_STEPS = "tokens,requests,context_tokens,time_ms,adapters,max_loras,max_lora_rank,has_prefill\n" + "".join(
    f"{8 * n + 1},{n + 1},{100 * n},{10 + n},1,4,16,{int(n % 2)}\n" for n in range(NUM_ROWS)
)
_PROMETHEUS = {
    "status": "success",
    "data": {
        "resultType": "matrix",
        "result": [
            {
                "metric": {"__name__": name, "model_name": "demo", "engine": "0"},
                "values": [[1000.0 + 5 * n, str(value * n)] for n in range(4)],
            }
            for name, value in (
                ("vllm:num_requests_running", 2),
                ("vllm:generation_tokens_total", 100),
                ("vllm:prompt_tokens_total", 50),
                ("vllm:iteration_tokens_total_count", 40),
                ("vllm:iteration_tokens_total_sum", 150),
                ("vllm:time_to_first_token_seconds_count", 5),
                ("vllm:inter_token_latency_seconds_count", 95),
                ("vllm:inter_token_latency_seconds_sum", 2),
                ("vllm:kv_cache_usage_perc", 0),
            )
        ],
    },
}
_PEFT = {"r": 16, "peft_type": "LORA", "lora_alpha": 32, "target_modules": ["q_proj"]}


def _adapter(name: str, rank: Any) -> Adapter:
    return Adapter.model_validate(
        {"name": name, "rank": rank, "rate_rps": 1.0, "prompt_tokens": {"mean": 20}, "output_tokens": {"mean": 5}}
    )


def _measurement(folder: Path) -> None:
    """Write a whole measurement of made-up records, with its shards beside the tables."""
    workload = Workload((_adapter("a", 16), _adapter("b", 8)))
    numbers = np.arange(NUM_ROWS)
    requests = RequestTable(
        (numbers * 0.5 * NANOSECONDS).astype(np.int64),
        (numbers % 2).astype(np.int32),
        np.full(NUM_ROWS, 20, dtype=np.int32),
        np.full(NUM_ROWS, 5, dtype=np.int32),
    )
    facts = WorkloadFacts(adapters=workload.adapters, num_requests=NUM_ROWS, horizon_s=10.0, seed=0)
    manifest = Manifest(workload=facts, settings=InProcessSettings(model="none", engine={"max_loras": 2}))
    measured = create_folder(folder / "measured", manifest, requests, workload)
    writer = ShardWriter(measured.shards, 1)
    for number in range(NUM_ROWS):
        base = {"request": number, "attempt": 0, "adapter": "ab"[number % 2], "prompt_tokens": 20, "output_tokens": 5}
        times = {"arrival_s": number * 0.5, "sent_s": number * 0.5}
        writer.write("sent", base | times)
        writer.write("requests", base | times | {"generated_tokens": 5, "ttft_s": 0.1, "status": "ok", "itl_s": [0.1]})
        step = {"tokens": 8, "requests": 2, "context_tokens": 10 * number, "time_ms": 10.0 + number, "adapters": 1}
        slots = {"max_loras": 2, "max_lora_rank": 16, "has_prefill": False, "is_batch_changed": False}
        writer.write("steps", step | slots | {"waiting": 0, "cached_adapters": 2, "group": "1 0", "step": number})
    writer.close()
    consolidate(measured.shards, measured.path)


def _adapter_folder(folder: Path) -> None:
    (folder / "a").mkdir()
    (folder / "a" / "adapter_model.safetensors").write_bytes(b"")
    (folder / "a" / "adapter_config.json").write_text(json.dumps(_PEFT), encoding="utf-8")


def _read_shards(folder: Path) -> None:
    consolidate(folder / "measured" / "shards", folder / "measured")


def _calibration_csv(folder: Path) -> None:
    columns = {"model": ["llama-3.1-8b-instruct"] * 4, "slots": [8, 16, 32, 64], "kv_tokens": [1000, 900, 800, 700]}
    pd.DataFrame(columns).to_csv(folder / "calib_mem_max.csv", index=False)


def _evidence(name: str) -> Callable[[Path], object]:
    return lambda folder: read_evidence(folder / name, model="llama-3.1-8b", settings_of=SettingsReader(None))


def _read_steps(folder: Path) -> None:
    for table in find_tables(folder).values():
        read_steps(table)


def measurement_targets() -> Iterator[Target]:
    """Yield the readers."""
    measured = "measured"
    yield Target(
        "measurement, manifest",
        f"{measured}/manifest.json",
        _measurement,
        mutations.mutate_json,
        lambda f: read_folder(f / measured),
    )
    yield Target(
        "measurement, schedule",
        f"{measured}/schedule.parquet",
        _measurement,
        mutations.mutate_parquet,
        lambda f: open_measurement(f / measured).schedule(),
    )
    yield Target(
        "measurement, table",
        f"{measured}/requests.parquet",
        _measurement,
        mutations.mutate_parquet,
        lambda f: read_table(f / measured, "requests"),
    )
    for table in ("requests", "sent", "steps"):
        yield Target(
            f"measurement, shard of {table}",
            f"{measured}/shards/{table}-0001.jsonl",
            _measurement,
            mutations.mutate_json_lines,
            _read_shards,
        )
    yield Target(
        "measurement to calibrate to",
        f"{measured}/steps.parquet",
        _measurement,
        mutations.mutate_parquet,
        lambda f: _read_steps(f / measured),
    )
    yield Target("steps, CSV", "steps.csv", text_file("steps.csv", _STEPS), mutations.mutate_csv, _read_steps)
    settings = copied("settings.yaml")
    yield Target(
        "settings of a server",
        "settings.yaml",
        settings,
        mutations.mutate_yaml,
        lambda f: SettingsReader(f / "settings.yaml")(f),
    )
    yield Target(
        "pages of metrics",
        "pages.txt",
        both(copied("pages.txt"), settings),
        mutations.mutate_text,
        _evidence("pages.txt"),
    )
    answer = both(text_file("answer.json", json.dumps(_PROMETHEUS)), settings)
    yield Target("answer of Prometheus", "answer.json", answer, mutations.mutate_json, _evidence("answer.json"))
    bench = both(copied("bench.json"), settings)
    yield Target("benchmark result", "bench.json", bench, mutations.mutate_json, _evidence("bench.json"))
    yield Target(
        "calibration table",
        "calib_mem_max.csv",
        _calibration_csv,
        mutations.mutate_csv,
        lambda f: read_calibration_table(f, "calib_mem_max.csv"),
    )
    yield Target(
        "measured runs", "runs.csv", copied("runs.csv"), mutations.mutate_csv, lambda f: read_runs(f / "runs.csv")
    )
    published = text_file("published.csv", "run_id,twin_total_throughput,twin_itl\nR1,1400.0,35.0\nR2,100,3\n")
    yield Target(
        "published outputs",
        "published.csv",
        published,
        mutations.mutate_csv,
        lambda f: read_published(f / "published.csv"),
    )
    yield Target(
        "adapter_config.json",
        "a/adapter_config.json",
        _adapter_folder,
        mutations.mutate_json,
        lambda f: require_adapters(f, Workload((_adapter("a", 16),))),
    )
