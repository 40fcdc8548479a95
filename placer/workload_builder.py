"""Make a problem file from a trace: adapters with observed rates and lengths, below a header that says whence.

Importing this module loads pandas; the command line does so only when a workload is built.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from twin.derive import adapters_to_records, build_workload
from twin.popularity import parse_popularity
from twin.traces import TraceColumns, read_trace
from twin.workload import Workload

SCHEMA_VERSION = 1
LABELS_OF_THE_TRACE = "given"
DEFAULT_MODEL = "llama-3.1-8b"
DEFAULT_JITTER_S = 5.0
DEFAULT_OBJECTIVE = "fewest_gpus"
DEFAULT_GPU: dict[str, Any] = {
    "name": "h100-64gb",
    "memory_gib": 63.43,
    "cost_per_hour": 3.0,
    "profile": "llama-3.1-8b-h100-64gb",
}
DEFAULT_ENGINE: dict[str, Any] = {
    "vllm_version": "0.8.5",
    "max_num_seqs": 256,
    "max_num_batched_tokens": 2048,
    "gpu_memory_utilization": 0.9,
}
DEFAULT_ENGINE_NOTE = (
    "engine: the scheduling rules of vLLM 0.8.5, the version that the shipped profiles were measured with"
)
DEFAULT_LIMITS: dict[str, Any] = {"starvation_tolerance": 0.1}

# What the publishers of a known file ask to be said, by the file's sha256.
PUBLISHED_SOURCES: dict[str, str] = {
    "2f1e5b666d4e3055fdbba98598ce2ec307767b9064e03e2fa46676dbcc7d0bf8": (
        "Azure LLM inference trace 2023, conversation (github.com/Azure/AzurePublicDataset), CC-BY-4.0; "
        "P. Patel et al., Splitwise, ISCA 2024"
    ),
    "54e9a6d2a4bd06ba1e060304b900abbc74cbea53de96506e60fe5bb4f2277fb6": (
        "Azure LLM inference trace 2023, code (github.com/Azure/AzurePublicDataset), CC-BY-4.0; "
        "P. Patel et al., Splitwise, ISCA 2024"
    ),
    "bbaa917729d1f526317972d40886f139e6da45ca1c8ae9a66864bb24a78f8063": (
        "Mooncake conversation trace (github.com/kvcache-ai/Mooncake), Apache-2.0; R. Qin et al., Mooncake, FAST 2025"
    ),
    "36742cd8a0fcaa8aa1a9fa70313ee266f1d9c65d7b8ce328a8fe8153e486e77c": (
        "requests per LoRA of a diffusion service, Alibaba cluster data 2026 (github.com/alibaba/clusterdata), "
        "whose publishers ask to be cited"
    ),
}


@dataclass(frozen=True, eq=False)
class ProblemDocument:
    """A problem file before it is text.

    Attributes
    ----------
    content
        Plain values with the keys of a problem file, in its order.
    header
        Lines of the comment above it: sources, licences, the command.
    workload
        The adapters, unrounded.
    """

    content: dict[str, Any]
    header: tuple[str, ...]
    workload: Workload


def build_problem_document(
    trace_path: str | Path,
    *,
    trace_format: str | None = None,
    columns: TraceColumns | None = None,
    sort: bool = False,
    drop_empty: bool = False,
    num_adapters: int | None = None,
    popularity: str = LABELS_OF_THE_TRACE,
    ranks: Sequence[int] = (16,),
    copies: int = 1,
    jitter_s: float = DEFAULT_JITTER_S,
    seed: int = 0,
    model: str = DEFAULT_MODEL,
    gpu: Mapping[str, Any] | None = None,
    engine: Mapping[str, Any] | None = None,
    objective: str = DEFAULT_OBJECTIVE,
    limits: Mapping[str, Any] | None = None,
    output_name: str = "workload.yaml",
) -> ProblemDocument:
    """Return the problem of serving the traffic of a trace.

    Parameters
    ----------
    trace_path, trace_format, columns, sort, drop_empty
        See `twin.traces.read_trace`.
    num_adapters, ranks, copies, jitter_s, seed
        See `twin.derive.build_workload`.
    popularity
        A form of `twin.popularity.parse_popularity`, or ``given``: the trace's own labels.
    model, gpu, engine, objective, limits
        The other sections of the problem file; ``None``: those of the shipped Llama profile.
    output_name
        Name of the file to be written, for the command in the header.

    Raises
    ------
    InputError
        When a file is unusable, or the arguments do not go together.
    """
    trace = read_trace(trace_path, trace_format=trace_format, columns=columns, sort=sort, drop_empty=drop_empty)
    workload = build_workload(
        trace,
        ranks=ranks,
        popularity=None if popularity == LABELS_OF_THE_TRACE else parse_popularity(popularity),
        num_adapters=num_adapters,
        copies=copies,
        jitter_s=jitter_s,
        seed=seed,
    )
    content = {
        "schema_version": SCHEMA_VERSION,
        "model": model,
        "gpu_types": [dict(gpu or DEFAULT_GPU)],
        "engine": dict(engine or DEFAULT_ENGINE),
        "objective": objective,
        "limits": dict(limits or DEFAULT_LIMITS),
        "adapters": adapters_to_records(workload),
    }
    command = [
        *("placer", "workload", Path(trace_path).name),
        *_option("--format", trace_format, None),
        *_column_options(columns),
        *(["--sort"] if sort else []),
        *(["--drop-empty"] if drop_empty else []),
        *_option("--adapters", num_adapters, None),
        *_option("--popularity", _popularity_by_name(popularity), None),
        *_option("--ranks", ",".join(map(str, ranks)), None),
        *_option("--replicate", copies, 1),
        *_option("--jitter", f"{jitter_s:g}", f"{DEFAULT_JITTER_S:g}"),
        *("--seed", str(seed)),
        *_option("--model", model, DEFAULT_MODEL),
        *("-o", output_name),
    ]
    header = (
        "Made by the command below; rates and lengths are derived from the files named here.",
        f"  {shlex.join(command)}",
        *_source_lines("trace", Path(trace_path)),
        *_popularity_lines(popularity),
        _load_line(workload),
        *([DEFAULT_ENGINE_NOTE] if content["engine"] == DEFAULT_ENGINE else []),
    )
    return ProblemDocument(content, header, workload)


def dump_problem(document: ProblemDocument) -> str:
    """Return the problem file as YAML: its header, then one line per GPU type and per adapter."""
    # Names in it may have line breaks: what follows one must be a comment, too.
    lines = ["# " + " ".join(line.splitlines()) for line in document.header]
    for key, value in document.content.items():
        if isinstance(value, list):
            lines.append(f"{key}:")
            lines.extend(f"  - {_flow(item)}" for item in value)
        else:
            lines.append(f"{key}: {_flow(value)}")
    return "\n".join(lines) + "\n"


def _flow(value: object) -> str:
    """Return `value` as one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=float("inf"), allow_unicode=True)
    # A bare scalar is followed by an end-of-document mark.
    return text.removesuffix("\n").removesuffix("\n...")


def _option(name: str, value: object, default: object) -> list[str]:
    return [] if value == default else [name, str(value)]


def _column_options(columns: TraceColumns | None) -> list[str]:
    if columns is None:
        return []
    roles = {"time": columns.time, "prompt": columns.prompt, "output": columns.output, "adapter": columns.adapter}
    mapping = ",".join(f"{role}={name}" for role, name in roles.items() if name is not None)
    return ["--columns", mapping, *_option("--time-unit", columns.time_unit, "s")]


def _popularity_path(popularity: str) -> Path | None:
    """Return the file that a popularity names, if it does."""
    path = Path(popularity.removeprefix("file:"))
    return path if path.is_file() else None


def _popularity_by_name(popularity: str) -> str:
    """Return the popularity without the folders of its file: they are this machine's."""
    path = _popularity_path(popularity)
    return f"file:{path.name}" if path is not None else popularity


def _popularity_lines(popularity: str) -> list[str]:
    path = _popularity_path(popularity)
    return _source_lines("popularity", path) if path is not None else []


def _source_lines(role: str, path: Path) -> list[str]:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    known = PUBLISHED_SOURCES.get(digest)
    return [f"{role}: {path.name}, sha256 {digest}", *([f"  {known}"] if known else [])]


def _load_line(workload: Workload) -> str:
    rate_rps = sum(adapter.rate_rps for adapter in workload.adapters)
    offered_tps = sum(adapter.offered_tps for adapter in workload.adapters)
    count = len(workload.adapters)
    return f"load: {count} adapters, {rate_rps:.4g} requests/s, {offered_tps:.0f} prompt + output tokens/s"
