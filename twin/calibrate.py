"""Turn a folder of micro-benchmark tables into a performance profile, with a report of how well it fits.

``python -m twin.calibrate DATA --model llama-3.1-8b --output FILE`` writes the profile and prints the report. The same
tables give the same profile, to the last digit: nothing is drawn at random.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twin.calibration_data import model_rows, read_table, step_observations
from twin.calibration_memory import fit_memory
from twin.errors import PlacerError, ProfileError
from twin.hardware import SHIPPED_MODELS
from twin.profile import LoadTime, PerformanceProfile, Startup, StepTimeCoefficients, save_profile
from twin.step_fit import StepFit, fit_step_time

GPU_NAME = "h100-64gb"
GPU_MEMORY_GIB = 63.43
VLLM_VERSION = "0.8.5"

TABLES = (
    "calib_runs.csv",
    "calib_steps_lora.parquet",
    "calib_step_bins.csv.gz",
    "calib_mem_max.csv",
    "calib_loading_points.csv.gz",
)

# Terms that only real serving shows, from the reference study of step times, which fitted them to one-hour runs of
# Llama-3.1-8B. They are poorly separated from each other: together they describe serving, one by one they are not
# physics.
STUDY_MODEL = "llama-3.1-8b"
STUDY_BASE_MS = 11.96
STUDY_SERVING_TERMS = {
    "mixed_step_ms": 1.4,
    "mixed_context_token_ms": 4.1e-5,
    "lora_large_batch_ms": 6.0,
    "blocked_waiting_ms": 2.9e-4,
}

# What the benchmarks of a model identify of them: only Qwen's have long prompts and outputs in one loop.
IDENTIFIED_SERVING_TERMS = {"qwen2.5-7b": frozenset({"mixed_step_ms", "mixed_context_token_ms"})}


# Told apart from `lora_base_ms` only by batches of 128 tokens or more with few slots, which the benchmarks lack.
NOT_IDENTIFIED = frozenset({"small_batch_ms"})


def calibrate(data: Path, *, model: str) -> PerformanceProfile:
    """Fit a profile of a shipped model to a folder of calibration tables.

    Parameters
    ----------
    data
        Folder with the ``calib_*`` tables, or the one that holds it under the name ``calibration``.
    model
        Name of a shipped model that the tables cover.

    Raises
    ------
    ProfileError
        When a table is missing or has no rows of the model, or scipy (extra ``train``) is not installed.
    """
    folder = data / "calibration" if (data / "calibration").is_dir() else data
    identified = IDENTIFIED_SERVING_TERMS.get(model, frozenset())
    steps = step_observations(folder, model)
    fit = fit_step_time(steps, excluded=(NOT_IDENTIFIED | STUDY_SERVING_TERMS.keys()) - identified)
    ratio = 1.0 if model == STUDY_MODEL else fit.coefficients["base_ms"] / STUDY_BASE_MS
    carried = {name: value * ratio for name, value in STUDY_SERVING_TERMS.items() if name not in identified}
    coefficients = {name: _rounded(value) for name, value in (fit.coefficients | carried).items()}
    memory, memory_report = fit_memory(folder, SHIPPED_MODELS[model], gpu_memory_gib=GPU_MEMORY_GIB)
    startup, startup_report = _startup(folder, model)
    load_times, load_report = _load_times(folder, model)
    return PerformanceProfile(
        name=f"{model}-{GPU_NAME}",
        model=model,
        gpu=GPU_NAME,
        gpu_memory_gib=GPU_MEMORY_GIB,
        vllm_version=VLLM_VERSION,
        step_time=StepTimeCoefficients(**coefficients),
        load_times=load_times,
        memory=memory,
        startup=startup,
        provenance={
            "tool": "python -m twin.calibrate",
            "seed": "none: the fit is deterministic",
            "sources": _sources(folder),
            "step_time": _step_report(fit, carried, identified, ratio),
            "memory": memory_report,
            "load_times": load_report,
            "startup": startup_report,
        },
    )


def _step_report(fit: StepFit, carried: dict[str, float], identified: frozenset[str], ratio: float) -> dict[str, Any]:
    origin = "taken from the reference step-time study of Llama-3.1-8B (fitted there to one-hour serving runs)"
    if ratio != 1.0:
        origin += f", scaled by the ratio of base_ms, {ratio:.4g}"
    return {
        "method": "non-negative least squares of relative errors (weights 1/y), one row per measurement",
        "left_out": sorted(NOT_IDENTIFIED),
        "not_fitted": {"names": sorted(carried), "values": origin},
        "serving_terms_fitted": sorted(identified),
        "no_adapter_ms": _rounded(fit.no_adapter_ms),
        "no_adapter_note": "a step with slots but no adapter in it is faster by this; the form has no such term",
        "in_sample_percent": {
            error.regime: {
                "rows": error.num_rows,
                "mape": round(error.mape_percent, 2),
                "bias": round(error.bias_percent, 2),
                "max": round(error.max_percent, 2),
            }
            for error in fit.errors
        },
        "in_sample_note": "errors of the fitted terms alone, without those not fitted",
    }


def _load_times(folder: Path, model: str) -> tuple[tuple[LoadTime, ...], dict[str, Any]]:
    """Return load times per adapter rank.

    A copy to the GPU takes longer into a slot of a larger rank than the adapter's: the mean over the measured slot
    ranks of the median swap of a running replica. A read from disk does not depend on the slot: the median of all.
    """
    points = model_rows(read_table(folder, "calib_loading_points.csv.gz"), model)
    swaps = points[(points["type"] == "cpu_to_gpu") & (points["is_runtime_swap"] == 1)]
    copies = swaps.groupby(["adapter_rank", "max_lora_rank"])["ms"].median().groupby("adapter_rank").mean()
    reads = points[points["type"] == "disk_to_cpu"].groupby("adapter_rank")["ms"].median()
    if not set(copies.index) == set(reads.index):
        raise ProfileError(
            "calib_loading_points.csv.gz must have swaps and disk reads of the same adapter ranks. "
            f"Got {sorted(copies.index)} and {sorted(reads.index)}.",
            field="adapter_rank",
        )
    times = tuple(
        LoadTime(rank=int(rank), cpu_to_gpu_ms=_rounded(copies[rank]), disk_to_cpu_ms=_rounded(reads[rank]))
        for rank in sorted(copies.index)
    )
    report = {
        "rows": len(points),
        "cpu_to_gpu": "median swap of a running replica, mean over the slot ranks measured",
        "disk_to_cpu": "median",
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


def _rounded(value: float) -> float:
    """Six significant digits: far below the noise, and readable in a file."""
    return float(f"{value:.6g}")


def fit_report(profile: PerformanceProfile) -> str:
    """Return the in-sample errors that a calibrated profile's provenance holds, as a text table."""
    lines = [
        f"{profile.name}: step time, relative error in percent",
        f"{'regime':<28}{'rows':>6}{'MAPE':>8}{'bias':>8}{'max':>8}",
    ]
    for regime, error in profile.provenance["step_time"]["in_sample_percent"].items():
        lines.append(f"{regime:<28}{error['rows']:>6}{error['mape']:>8.2f}{error['bias']:>8.2f}{error['max']:>8.2f}")
    memory = profile.provenance["memory"]
    lines.append(
        f"KV tokens by the formula: MAPE {memory['formula_mape_percent']:.2f} %, "
        f"max {memory['formula_max_percent']:.2f} % over {memory['rows_started']} replicas that started"
    )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, or 2 on bad input."""
    parser = argparse.ArgumentParser(prog="python -m twin.calibrate", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with the calib_* tables")
    parser.add_argument("--model", required=True, help="shipped model name, for example llama-3.1-8b")
    parser.add_argument("--output", type=Path, required=True, help="profile JSON file to write")
    options = parser.parse_args(arguments)
    try:
        profile = calibrate(options.data, model=options.model)
        save_profile(profile, options.output)
    except PlacerError as error:
        hint = f"\nhint: {error.hint}" if error.hint else ""
        sys.stderr.write(f"error: {error.message}{hint}{os.linesep}")
        return 2
    sys.stdout.write(fit_report(profile) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
