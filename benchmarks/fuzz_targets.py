"""Every reader of files that come from outside: a valid file for each, how it is damaged, and how it is read."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks import fuzz_mutations as mutations
from benchmarks.fuzz_measurements import measurement_targets
from benchmarks.fuzz_onnx import mutate_onnx
from benchmarks.fuzz_target import NUM_ROWS, PROFILE, ROOT, SEEDS, Target, both, copied, frame_file, text_file
from placer.comparison_document import Comparison
from placer.comparison_report import read_previous
from placer.files import load_plan, load_problem, read_document
from placer.instances.user_files import read_instances
from placer.measure_workload import load_measured_workload
from placer.record_folder import RecordFolder, RecordKind
from placer.replan_document import Replan
from placer.report.documents import kind_of, read_as
from placer.whatif.document import Cell, WhatIf
from placer.whatif.scenario import read_scenarios
from predictors.configuration import ConfigurationModel
from predictors.dataset import load_dataset
from predictors.dataset_folder import Manifest as DatasetManifest
from predictors.dataset_folder import Settings, check_folder, write_shard
from predictors.interval_graph import intervals_in
from predictors.network_graph import network_in
from predictors.neural_file import read_start
from predictors.onnx_surrogate import OnnxSurrogate
from predictors.recorded_gpus import read_recorded
from predictors.surrogate import OUTPUT_NAMES
from twin.engine import EngineConfig
from twin.hardware import load_model
from twin.popularity import parse_popularity, read_popularity
from twin.profile import load_profile
from twin.traces import TraceColumns, read_servegen_rates, read_trace

_REQUESTS = "time,prompt,output,adapter\n" + "".join(f"{n * 0.5},{20 + n},{5 + n},a{n % 3}\n" for n in range(NUM_ROWS))
_CONFIG = {
    "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 512,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32, "vocab_size": 1000,
    "max_position_embeddings": 2048, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
    "model_type": "llama",
}  # fmt: skip
_COLUMNS = TraceColumns(time="time", prompt="prompt", output="output", adapter="adapter")


def _dataset(folder: Path) -> None:
    """Write a data set of one shard."""
    count = 8
    table = pd.DataFrame({"scenario": np.arange(count), "memory_verdict": ["starts"] * count, "ratio": np.ones(count)})
    entry = write_shard(folder, 0, table, num_unstartable=0)
    settings = Settings(
        sampler_version=1, feature_schema_version=1, profile={"name": "p", "fingerprint": "f"}, seed=0, seeds=1,
        horizon_s=60.0, warmup_s=10.0, families=("zipf",), scenarios_per_shard=count,
    )  # fmt: skip
    DatasetManifest(settings=settings, num_shards=1, versions=({},), shards=(entry,)).write(folder)


def _recorded(folder: Path) -> None:
    adapter = {"rank": 8, "rate_rps": 1.0, "prompt_tokens": {"mean": 20}, "output_tokens": {"mean": 5}}
    verdict = {
        "engine": "fast", "horizon_s": 60.0, "warmup_s": 10.0, "seed": 0, "throughput_ratio": 1.0,
        "num_starved_adapters": 0, "verdict": "accepted",
    }  # fmt: skip
    content = {
        "schema_version": 1, "profile": {"name": "p", "fingerprint": "f"}, "workload": "0" * 16, "memory_gib": 60.0,
        "engine": EngineConfig().model_dump(mode="json"), "adapters": [adapter], "verdict": verdict,
    }  # fmt: skip
    (folder / "gpu-0123456789abcdef.json").write_text(json.dumps(content), encoding="utf-8")


def _onnx(folder: Path) -> None:
    shutil.copy(ROOT / "predictors" / "models" / f"{PROFILE}.onnx", folder / "surrogate.onnx")


def _read_onnx(folder: Path) -> None:
    """Load a surrogate, ask it, and read its graph in the two ways in which solvers do."""
    path = folder / "surrogate.onnx"
    surrogate = OnnxSurrogate.load(path)
    rows: NDArray[np.float32] = np.ones((3, len(surrogate.schema.names)), dtype=np.float32)
    surrogate.predict(rows)
    surrogate.outside_domain(rows)
    network_in(str(path))
    intervals_in(str(path), OUTPUT_NAMES)


def _read_report(folder: Path) -> None:
    path = folder / "document.json"
    kind, data = kind_of(path)
    models: dict[str, Any] = {"comparison": Comparison, "what-if study": WhatIf, "migration": Replan}
    if kind in models:
        read_as(models[kind], path, data, name=kind)


def _read_records(folder: Path) -> None:
    kind = RecordKind(record=Cell, name_of=lambda cell: cell.label, whole="study", part="cell")
    RecordFolder(folder, {"seed": 0}, kind).finished()


def _records(folder: Path) -> None:
    (folder / "cells").mkdir()
    shutil.copy(SEEDS / "whatif_cell.json", folder / "cells" / "cell-00000.json")
    (folder / "configuration.json").write_text('{"seed": 0}', encoding="utf-8")


def _read_dataset(folder: Path) -> None:
    check_folder(folder)
    load_dataset(folder)


def _targets() -> Iterator[Target]:
    damaged_json, damaged_csv = mutations.mutate_json, mutations.mutate_csv
    problem = "problem.yaml"
    yield Target("problem, YAML", problem, copied(problem), mutations.mutate_yaml, lambda f: load_problem(f / problem))
    yield Target(
        "problem, JSON", "problem.json", _problem_json, damaged_json, lambda f: load_problem(f / "problem.json")
    )
    trace = both(copied("trace.yaml"), text_file("requests.csv", _REQUESTS))
    yield Target(
        "problem of a trace", "trace.yaml", trace, mutations.mutate_yaml, lambda f: load_problem(f / "trace.yaml")
    )
    yield Target("trace of a problem", "requests.csv", trace, damaged_csv, lambda f: load_problem(f / "trace.yaml"))
    yield Target(
        "workload to measure",
        problem,
        copied(problem),
        mutations.mutate_yaml,
        lambda f: load_measured_workload(f / problem),
    )
    yield Target("plan", "plan.json", copied("plan.json"), damaged_json, lambda f: load_plan(f / "plan.json"))
    for name in ("plan", "comparison", "whatif", "replan"):
        prepare = copied(f"{name}.json", "document.json")
        yield Target(f"document of a report, {name}", "document.json", prepare, damaged_json, _read_report)
    yield Target(
        "previous placement",
        "p.json",
        text_file("p.json", '{"gpus": [[0, 2], [1]]}'),
        damaged_json,
        lambda f: read_previous(f / "p.json"),
    )
    scenarios = "scenarios.yaml"
    yield Target(
        "what-if scenarios",
        scenarios,
        copied(scenarios),
        mutations.mutate_yaml,
        lambda f: read_scenarios(f / scenarios),
    )
    yield Target("finished what-if cell", "cells/cell-00000.json", _records, damaged_json, _read_records)
    yield Target("configuration of a study", "configuration.json", _records, damaged_json, _read_records)
    yield Target("arena instance", "instance.json", copied("instance.json"), damaged_json, read_instances)
    yield from _trace_targets()
    yield Target(
        "config.json",
        "config.json",
        text_file("config.json", json.dumps(_CONFIG)),
        damaged_json,
        lambda f: load_model(str(f)),
    )
    yield Target("profile", "profile.json", _profile, damaged_json, lambda f: load_profile(str(f / "profile.json")))
    yield from _predictor_targets()
    yield from measurement_targets()


def _problem_json(folder: Path) -> None:
    data, _ = read_document(SEEDS / "problem.yaml")
    (folder / "problem.json").write_text(json.dumps(data), encoding="utf-8")


def _profile(folder: Path) -> object:
    return shutil.copy(ROOT / "twin" / "profiles" / f"{PROFILE}.json", folder / "profile.json")


def _trace_targets() -> Iterator[Target]:
    azure = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
        f"2023-11-16 18:17:{n:02d}.9799600,{100 + n},{10 + n}\n" for n in range(NUM_ROWS)
    )
    mooncake = "timestamp_ms,input_length,output_length,n_hash_blocks\n" + "".join(
        f"{n * 100},{100 + n},{10 + n},1\n" for n in range(NUM_ROWS)
    )
    lines = "".join(
        json.dumps({"timestamp": n * 100, "input_length": 100 + n, "output_length": 10, "hash_ids": [n]}) + "\n"
        for n in range(NUM_ROWS)
    )
    servegen = "client,window_start_s,rate_rps,cv,pattern,arg1,arg2\n" + "".join(
        f"{n % 3},{600 * n},0.{n + 1},1.1,{'Gamma' if n % 2 else 'Weibull'},0.7,0.04\n" for n in range(NUM_ROWS)
    )
    numbers = np.arange(NUM_ROWS)
    columns = {"time": numbers * 0.5, "prompt": numbers + 20, "output": numbers + 5, "adapter": ["a"] * NUM_ROWS}
    yield Target(
        "trace, Azure",
        "a.csv",
        text_file("a.csv", azure),
        mutations.mutate_csv,
        lambda f: read_trace(f / "a.csv", trace_format="azure"),
    )
    yield Target(
        "trace, Mooncake CSV",
        "m.csv",
        text_file("m.csv", mooncake),
        mutations.mutate_csv,
        lambda f: read_trace(f / "m.csv"),
    )
    yield Target(
        "trace, Mooncake JSON lines",
        "m.jsonl",
        text_file("m.jsonl", lines),
        mutations.mutate_json_lines,
        lambda f: read_trace(f / "m.jsonl", sort=True, drop_empty=True),
    )
    yield Target(
        "trace, CSV",
        "t.csv",
        text_file("t.csv", _REQUESTS),
        mutations.mutate_csv,
        lambda f: read_trace(f / "t.csv", columns=_COLUMNS, sort=True),
    )
    yield Target(
        "trace, CSV, compressed",
        "t.csv.gz",
        _compressed,
        mutations.mutate_bytes,
        lambda f: read_trace(f / "t.csv.gz", columns=_COLUMNS),
    )
    yield Target(
        "trace, Parquet",
        "t.parquet",
        frame_file("t.parquet", columns),
        mutations.mutate_parquet,
        lambda f: read_trace(f / "t.parquet", columns=_COLUMNS),
    )
    yield Target(
        "ServeGen rates",
        "s.csv",
        text_file("s.csv", servegen),
        mutations.mutate_csv,
        lambda f: read_servegen_rates(f / "s.csv").mean_rate_rps(),
    )
    counts = text_file("p.csv", "lora_rank,requests\n8,100\n16,50\n8,3\n")
    yield Target(
        "popularity", "p.csv", counts, mutations.mutate_csv, lambda f: read_popularity(f / "p.csv").probabilities(2)
    )
    words = text_file("words.txt", "zipf:0.9")
    yield Target("name of a popularity", "words.txt", words, mutations.mutate_text, _read_popularity_name)


def _compressed(folder: Path) -> None:
    pd.read_csv(io.StringIO(_REQUESTS)).to_csv(folder / "t.csv.gz", index=False)


def _read_popularity_name(folder: Path) -> None:
    text = (folder / "words.txt").read_bytes().decode("utf-8", errors="surrogateescape")
    parse_popularity(text, base_directory=folder).probabilities(3)


def _configuration(folder: Path) -> object:
    return shutil.copy(ROOT / "predictors" / "models" / f"{PROFILE}.configuration.json", folder / "c.json")


def _predictor_targets() -> Iterator[Target]:
    profile = load_profile(PROFILE)
    yield Target("surrogate, ONNX", "surrogate.onnx", _onnx, mutate_onnx, _read_onnx)
    yield Target(
        "start of a fit, ONNX",
        "surrogate.onnx",
        _onnx,
        mutate_onnx,
        lambda f: read_start(f / "surrogate.onnx", profile),
    )
    yield Target(
        "configuration model",
        "c.json",
        _configuration,
        mutations.mutate_json,
        lambda f: ConfigurationModel.load(f / "c.json"),
    )
    yield Target("data set, manifest", "manifest.json", _dataset, mutations.mutate_json, _read_dataset)
    yield Target("data set, shard", "shard-00000.parquet", _dataset, mutations.mutate_parquet, _read_dataset)
    yield Target("recorded GPU", "gpu-0123456789abcdef.json", _recorded, mutations.mutate_json, read_recorded)


TARGETS: tuple[Target, ...] = tuple(_targets())
