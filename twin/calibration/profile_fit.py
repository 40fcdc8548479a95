"""Turn a folder of micro-benchmark tables, and serving runs if there are any, into a performance profile.

The same tables give the same profile: what is drawn at random (workloads of the runs, resampling for intervals) has
fixed seeds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twin.calibration.described_fit import CalibrationSources, ProfileFit, fit_described
from twin.calibration.memory import fit_memory
from twin.calibration.observations import StepObservations
from twin.calibration.step_fit import fit_step_time, solve_least_squares
from twin.calibration.step_reports import rounded
from twin.calibration.tables import model_rows, read_table, step_observations
from twin.errors import ProfileError
from twin.hardware import SHIPPED_MODELS
from twin.profile import LoadTime, PerformanceProfile, Startup, StepTimeCoefficients

GPU_NAME = "h100-64gb"
GPU_MEMORY_GIB = 63.43
VLLM_VERSION = "0.8.5"

TABLES = (
    "calib_runs.csv",
    "calib_steps_lora.parquet",
    "calib_step_bins.csv.gz",
    "calib_mem_max.csv",
    "calib_loading_points.csv.gz",
    "calib_scheduler_runs.csv.gz",
)

# Scheduler runs whose batches hold at least this share of the slots' adapters look at the whole queue in a step.
FULL_SLOTS_SHARE = 0.95


def calibrate(
    data: Path,
    *,
    model: str,
    sources: CalibrationSources = CalibrationSources(),  # noqa: B008 - frozen
    workers: int | None = None,
    on_iteration: Callable[[int, float], None] | None = None,
) -> ProfileFit:
    """Fit a profile of a shipped model to a folder of calibration tables.

    Parameters
    ----------
    data
        Folder with the ``calib_*`` tables, or the one that holds it under the name ``calibration``.
    model
        Name of a shipped model that the tables cover.
    sources
        Serving runs, or a profile that saw some.
    workers
        Processes for simulating serving runs; ``None``: one per core.
    on_iteration
        See `twin.calibration.serving_fit.fit_with_runs`.

    Raises
    ------
    ProfileError
        When a table is missing or has no rows of the model, or scipy (extra ``train``) is not installed.
    """
    folder = data / "calibration" if (data / "calibration").is_dir() else data
    steps = step_observations(folder, model)
    memory, memory_report = fit_memory(folder, SHIPPED_MODELS[model], gpu_memory_gib=GPU_MEMORY_GIB)
    startup, startup_report = _startup(folder, model)
    load_times, load_report = _load_times(folder, model)
    scan_ms, scan_report = _queue_scan(folder)
    fixed = {"blocked_waiting_ms": scan_ms} | sources.host_terms()
    alone = fit_step_time(steps, fixed=fixed)
    profile = PerformanceProfile(
        name=f"{model}-{GPU_NAME}",
        model=model,
        gpu=GPU_NAME,
        gpu_memory_gib=GPU_MEMORY_GIB,
        vllm_version=VLLM_VERSION,
        step_time=StepTimeCoefficients(**alone.coefficients),
        load_times=load_times,
        memory=memory,
        startup=startup,
        provenance={
            "tool": "placer calibrate",
            "sources": _sources(folder) | dict(sources.hashes),
            "memory": memory_report,
            "load_times": load_report,
            "startup": startup_report,
        },
    )
    described = fit_described(
        *(steps, profile, sources),
        fixed=fixed,
        left_out=regimes_to_leave_out(steps),
        workers=workers,
        on_iteration=on_iteration,
    )
    report = described.report | {
        "method": "non-negative least squares of relative errors (weights 1/y), one row per measurement",
        "context_ms_in_benchmarks": rounded(alone.coefficients["context_token_ms"]),
        "queue_scan": scan_report,
        "in_sample_note": "errors on the micro-benchmarks",
    }
    provenance = profile.provenance | {"step_time": report}
    fitted = profile.model_copy(update={"step_time": described.coefficients, "provenance": provenance})
    return ProfileFit(fitted, steps, described.rows)


def regimes_to_leave_out(observations: StepObservations) -> dict[str, NDArray[np.bool_]]:
    """Return the measurements, bool [N], of each rank, each number of slots, and each kind of step with LoRA."""
    rank = observations.means(observations.steps.max_rank)
    slots = observations.means(observations.steps.slots)
    prefill = observations.means(observations.steps.prefill)
    adapters = observations.means(observations.steps.adapters)
    regimes = {f"max_lora_rank {int(value)}": rank == value for value in sorted(set(rank[rank > 0].tolist()))}
    active = adapters > 0
    regimes |= {
        f"max_loras {int(value)}, adapters active": (slots == value) & active
        for value in sorted(set(slots[active].tolist()))
    }
    regimes["slots allocated, no adapter active"] = (slots > 0) & ~active
    regimes["prefill with LoRA"] = (slots > 0) & (prefill > 0)
    regimes["prefill without LoRA"] = (slots == 0) & (prefill > 0)
    return regimes


def _queue_scan(folder: Path) -> tuple[float, dict[str, Any]]:
    """Return the scheduler's milliseconds per waiting request of a step whose slots are all taken.

    Least squares of the scheduler's mean time per step on requests, queue, and requests x adapters. The table names no
    model: the scheduler is Python code.
    """
    rows = read_table(folder, "calib_scheduler_runs.csv.gz")
    rows = rows[rows["mean_loras_by_batch"] >= FULL_SLOTS_SHARE * rows["gpu_loras"]]
    if len(rows) < 8:
        raise ProfileError(
            f"calib_scheduler_runs.csv.gz must have at least 8 runs with all slots taken. It has {len(rows)}.",
            field="mean_loras_by_batch",
        )
    requests = rows["avg_batch_size"].to_numpy(dtype=np.float64)
    waiting = rows["avg_waiting_queue"].to_numpy(dtype=np.float64)
    adapters = rows["mean_loras_by_batch"].to_numpy(dtype=np.float64)
    matrix = np.stack([np.ones(len(rows)), requests, waiting, requests * adapters], axis=1)
    measured = rows["sched_ms_per_step"].to_numpy(dtype=np.float64)
    solution = solve_least_squares(matrix, measured)
    error = float(np.abs(matrix @ solution - measured).mean() / measured.mean() * 100.0)
    report = {"rows": len(rows), "mean_absolute_error_percent_of_mean": round(error, 1)}
    return rounded(float(solution[2])), report


def _load_times(folder: Path, model: str) -> tuple[tuple[LoadTime, ...], dict[str, Any]]:
    """Return load times per adapter rank and rank of the slots: medians.

    A copy to the GPU is that of a running replica; a read from disk does not depend on the slots, so that all of a
    rank count as one.
    """
    points = model_rows(read_table(folder, "calib_loading_points.csv.gz"), model)
    swaps = points[(points["type"] == "cpu_to_gpu") & (points["is_runtime_swap"] == 1)]
    copies = swaps.groupby(["adapter_rank", "max_lora_rank"])["ms"].median()
    reads = points[points["type"] == "disk_to_cpu"].groupby("adapter_rank")["ms"].median()
    copied_ranks = sorted(set(copies.index.get_level_values("adapter_rank")))
    if copied_ranks != sorted(reads.index):
        raise ProfileError(
            "calib_loading_points.csv.gz must have swaps and disk reads of the same adapter ranks. "
            f"Got {copied_ranks} and {sorted(reads.index)}.",
            field="adapter_rank",
        )
    times = tuple(
        LoadTime(
            rank=int(rank),
            max_lora_rank=int(max_lora_rank),
            cpu_to_gpu_ms=rounded(milliseconds),
            disk_to_cpu_ms=rounded(reads[rank]),
        )
        for rank, max_lora_rank, milliseconds in copies.sort_index().reset_index().itertuples(index=False)
    )
    report = {
        "rows": len(points),
        "cpu_to_gpu": "median swap of a running replica, by adapter rank and max_lora_rank",
        "disk_to_cpu": "median by adapter rank",
    }
    return times, report


def _startup(folder: Path, model: str) -> tuple[Startup, dict[str, Any]]:
    """Fit the seconds of engine initialisation against the number of slots."""
    rows = model_rows(read_table(folder, "calib_mem_max.csv"), model)
    rows = rows[rows["init_engine_s"].notna()]
    slots, seconds = rows["slots"].to_numpy(dtype=np.float64), rows["init_engine_s"].to_numpy(dtype=np.float64)
    per_slot_s, base_s = (float(value) for value in np.polyfit(slots, seconds, 1))
    mape = float(np.mean(np.abs((base_s + per_slot_s * slots) / seconds - 1.0)) * 100.0)
    report = {
        "rows": len(rows),
        "method": "least squares of init_engine_s; loading the weights is not in it",
        "mape_percent": round(mape, 2),
    }
    return Startup(base_s=round(base_s, 2), per_slot_s=round(per_slot_s, 4)), report


def _sources(folder: Path) -> dict[str, str]:
    return {name: "sha256:" + hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in TABLES}
