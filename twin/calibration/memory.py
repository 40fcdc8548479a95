"""Fit what the memory arithmetic needs beyond a model's dimensions, and collect the measured KV capacities."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from twin.calibration.tables import Record, model_rows, read_table, records
from twin.errors import ProfileError
from twin.hardware import ModelArchitecture
from twin.memory import GIB, MIB, slot_bytes
from twin.profile import MeasuredKvTokens, MemoryCalibration

UTILIZATION = 0.9
BLOCK_SIZE = 16

# The runs of calib_mem_max.csv served with vLLM's --max-num-seqs 2048; the KV capacity of other runs without LoRA
# confirms it.
MEASURED_MAX_NUM_SEQS = 2048

# Up to 200 sequences the layers' activations are the peak, from 400 on the sampler's: KV capacity is constant, then
# linear.
PLATEAU_MAX_NUM_SEQS = 200
LINEAR_MAX_NUM_SEQS = 400

# A replica that has memory for a KV cache but too little for one request of the model's length reports the memory.
TOO_SHORT_STATUS = "oom_kv_lt_maxlen"


def fit_memory(
    folder: Path, model: ModelArchitecture, *, gpu_memory_gib: float
) -> tuple[MemoryCalibration, dict[str, Any]]:
    """Return the memory calibration of a model and a report of its errors.

    The sampler's bytes and the layers' peak come from runs without LoRA at several `max_num_seqs`; the overhead and the
    slots' extra bytes from calib_mem_max.csv, by least squares of KV bytes, given those.
    """
    rows = model_rows(read_table(folder, "calib_mem_max.csv"), model.name)
    sampler_bytes_per_logit, activation_gib, sampler_rows = _fit_activations(folder, model)
    peak = max(activation_gib * GIB, sampler_bytes_per_logit * model.vocab_size * MEASURED_MAX_NUM_SEQS)
    started = rows[rows["kv_tokens"].notna()]
    slots = started["slots"].to_numpy(dtype=np.float64)
    kv_tokens = started["kv_tokens"].to_numpy(dtype=np.float64)
    ranks = started["max_lora_rank"].to_numpy(dtype=np.int64)
    known = slots * [slot_bytes(model, int(rank)) for rank in ranks] + model.num_parameters * model.dtype_bytes + peak
    free = gpu_memory_gib * GIB * UTILIZATION - known
    rest = free - kv_tokens * model.kv_bytes_per_token
    extra, overhead = (float(value) for value in np.polyfit(slots, rest, 1))
    if extra < 0:
        extra, overhead = 0.0, float(rest.mean())
    predicted = (free - overhead - extra * slots) / model.kv_bytes_per_token
    relative = 100.0 * np.abs(predicted / kv_tokens - 1.0)
    calibration = MemoryCalibration(
        overhead_gib=round(overhead / GIB, 4),
        slot_overhead_mib=round(extra / MIB, 4),
        activation_gib=round(activation_gib, 4),
        sampler_bytes_per_logit=round(sampler_bytes_per_logit, 3),
        measured_utilization=UTILIZATION,
        measured_max_num_seqs=MEASURED_MAX_NUM_SEQS,
        measured=tuple(_measured(row, model) for row in records(rows.sort_values(["max_lora_rank", "slots"]))),
    )
    report = {
        "rows": len(rows),
        "rows_started": len(started),
        "rows_without_lora": sampler_rows,
        "method": "least squares; sampler and layer peaks from runs without LoRA at several max_num_seqs",
        "formula_mape_percent": round(float(relative.mean()), 3),
        "formula_max_percent": round(float(relative.max()), 3),
        "formula_max_tokens": round(float(np.abs(predicted - kv_tokens).max())),
        "measured_note": "capacity of a replica refused for max_model_len: computed from the GiB it reported",
    }
    return calibration, report


def _fit_activations(folder: Path, model: ModelArchitecture) -> tuple[float, float, int]:
    """Return (sampler bytes per logit, layers' peak in GiB, rows) from the KV capacity of runs without LoRA."""
    runs = model_rows(read_table(folder, "calib_runs.csv"), model.name)
    runs = runs[runs["kv_tokens"].notna() & runs["slots"].isna() & runs["max_num_seqs"].notna()]
    kv_bytes = runs.groupby("max_num_seqs")["kv_tokens"].median() * model.kv_bytes_per_token
    plateau = kv_bytes[kv_bytes.index <= PLATEAU_MAX_NUM_SEQS]
    linear = kv_bytes[kv_bytes.index >= LINEAR_MAX_NUM_SEQS]
    if plateau.empty or len(linear) < 2:
        raise ProfileError(
            f"calib_runs.csv must have runs without LoRA at {PLATEAU_MAX_NUM_SEQS} sequences or fewer and at two "
            f"numbers from {LINEAR_MAX_NUM_SEQS} on. Got {sorted(kv_bytes.index)}.",
            field="max_num_seqs",
        )
    slope, intercept = np.polyfit(linear.index.to_numpy(dtype=np.float64), linear.to_numpy(dtype=np.float64), 1)
    crossing = (float(plateau.max()) - intercept) / slope
    return float(-slope / model.vocab_size), float(-slope * crossing / GIB), len(runs)


def _measured(row: Record, model: ModelArchitecture) -> MeasuredKvTokens:
    tokens: int | None = None
    if not math.isnan(row["kv_tokens"]):
        tokens = int(row["kv_tokens"])
    elif row["status"] == TOO_SHORT_STATUS:
        tokens = int(row["avail_kv_gib"] * GIB) // (model.kv_bytes_per_token * BLOCK_SIZE) * BLOCK_SIZE
    return MeasuredKvTokens(max_loras=int(row["slots"]), max_lora_rank=int(row["max_lora_rank"]), kv_tokens=tokens)
