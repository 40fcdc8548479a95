"""What the twin says of measured workloads, beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.loop_cases import TARGETS_PERCENT, Case, Quantity, Run, again
from placer.calibration import GUESSED_PRIOR, Calibration, CalibrationRequest, calibrate_profile
from twin.hardware import GpuType, ModelArchitecture
from twin.measurement.folder import MeasurementFolder
from twin.measurement.manifest import InProcessSettings
from twin.measurement.summary import summarise
from twin.measurement.tables import read_table
from twin.profile import MeasuredKvTokens, MemoryCalibration, PerformanceProfile
from twin.replica import Replica
from twin.report import SimulationReport
from twin.simulate import simulate_in_detail
from twin.workload import Workload

# The CPU engine's KV cache is set, not what is left of the memory; this is only what the profile is labelled with.
MEMORY_GIB = 16.0


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
        Compared("ITL mean, ms", float(gaps.mean()), milliseconds(report.itl.mean_s), targets.get("ITL")),
        Compared("ITL p95, ms", float(np.percentile(gaps, 95)), milliseconds(report.itl.p95_s)),
        Compared("TTFT mean, ms", _ttft_ms(requests, horizon_s), milliseconds(report.ttft.mean_s)),
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


def pace_change(first: MeasurementFolder, second: MeasurementFolder) -> float:
    """Return by which share the mean time between tokens differs in two measurements of the same requests, >= 0."""
    means = []
    for folder in (first, second):
        requests = read_table(folder.path, "requests")
        means.append(float(_gaps_ms(requests, folder.manifest.workload.horizon_s).mean()))
    return abs(means[1] / means[0] - 1.0)


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


def milliseconds(value_s: float | None) -> float:
    """Return seconds in ms; NaN for none."""
    return float("nan") if value_s is None else 1000.0 * value_s


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


def with_slower_steps(profile: PerformanceProfile, factor: float) -> PerformanceProfile:
    """Return a profile whose steps and loads take `factor` times as long."""
    content = profile.model_dump(mode="json")
    content["step_time"] = {name: factor * value for name, value in content["step_time"].items()}
    for load in content["load_times"]:
        load |= {name: factor * load[name] for name in ("cpu_to_gpu_ms", "disk_to_cpu_ms")}
    return PerformanceProfile.model_validate(content)
