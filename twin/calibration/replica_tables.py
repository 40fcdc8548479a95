"""Read a user's tables of adapter loads, KV capacity and start-up into the parts of a profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd

from twin.calibration.step_reports import rounded
from twin.calibration.step_table import Floats, Table
from twin.errors import InputError
from twin.hardware import ModelArchitecture
from twin.memory import GIB, MIB, slot_bytes
from twin.profile import LoadTime, MeasuredKvTokens, MemoryCalibration, PerformanceProfile, Startup

LOAD_KINDS = ("cpu_to_gpu", "disk_to_cpu")


def fit_load_times(
    tables: Sequence[Table], prior: PerformanceProfile
) -> tuple[tuple[LoadTime, ...], dict[str, list[int]]]:
    """Return the load times of all ranks that the tables or the prior have, and by kind the ranks that are the prior's.

    A measured time is the median of its rank, and of its `max_lora_rank` if its table has that column. What was not
    measured at a rank is the prior's there times measured / prior at the nearest measured rank, and between what was
    measured at smaller and at larger ranks.

    Raises
    ------
    InputError
        When a cell cannot be used.
    """
    if not tables:
        return prior.load_times, {kind: sorted({entry.rank for entry in prior.load_times}) for kind in LOAD_KINDS}
    rows = pd.concat([_load_rows(table) for table in tables])
    reads = rows.groupby("rank")["disk_to_cpu"].median().dropna()
    copies = rows.groupby(["rank", "max_lora_rank"])["cpu_to_gpu"].median().dropna().reset_index()
    measured = {(int(rank), int(slot) or None): float(ms) for rank, slot, ms in copies.itertuples(index=False)}
    copied_ranks = {rank for rank, _ in measured}
    # A rank's own measurements replace all that the prior says about it.
    pairs = {(entry.rank, entry.max_lora_rank) for entry in prior.load_times if entry.rank not in copied_ranks}
    pairs |= set(measured) | {(rank, None) for rank in set(rows["rank"]) - copied_ranks - {rank for rank, _ in pairs}}
    ordered = sorted(pairs, key=lambda pair: (pair[0], pair[1] or 0))
    ranks = sorted({rank for rank, _ in ordered})
    disk_ms = _completed(
        dict(zip(reads.index.tolist(), reads.tolist(), strict=True)),
        {rank: prior.load_time_ms(rank, rank)[1] for rank in ranks},
    )
    copy_ms = {}
    for ratio in {(slot or rank) / rank for rank, slot in ordered}:
        copy_ms[ratio] = _completed(
            _at_ratio(measured, ratio, prior),
            {rank: prior.load_time_ms(rank, round(rank * ratio))[0] for rank in ranks},
        )
    times = tuple(
        LoadTime(
            rank=rank,
            max_lora_rank=slot,
            cpu_to_gpu_ms=rounded(copy_ms[(slot or rank) / rank][rank]),
            disk_to_cpu_ms=rounded(disk_ms[rank]),
        )
        for rank, slot in ordered
    )
    estimated = {
        "cpu_to_gpu": [rank for rank in ranks if rank not in copied_ranks],
        "disk_to_cpu": [rank for rank in ranks if rank not in reads.index],
    }
    return times, estimated


def fit_startup(tables: Sequence[Table], prior: PerformanceProfile) -> Startup:
    """Return the start-up time; with one number of slots only, the prior's time per slot (InputError)."""
    if not tables:
        return prior.startup
    for table in tables:
        table.require("max_loras", "seconds")
    slots = np.concatenate([table.counts("max_loras") for table in tables])
    seconds = np.concatenate([table.numbers("seconds") for table in tables])
    per_slot_s = prior.startup.per_slot_s
    if len(set(slots.tolist())) > 1:
        per_slot_s = max(float(np.polyfit(slots, seconds, 1)[0]), 0.0)
    base_s = max(float((seconds - per_slot_s * slots).mean()), 0.0)
    return Startup(base_s=round(base_s, 2), per_slot_s=round(per_slot_s, 4))


@dataclass(frozen=True)
class _Capacities:
    """Tables of KV capacities: float64 [N] each; `kv_tokens` is NaN where the replica did not start."""

    slots: Floats
    ranks: Floats
    sequences: Floats
    utilization: Floats
    kv_tokens: Floats


def fit_memory_table(
    tables: Sequence[Table], model: ModelArchitecture, prior: PerformanceProfile, gpu_memory_gib: float
) -> tuple[MemoryCalibration, dict[str, Any]]:
    """Return the prior's memory with the overhead, and the slots' extra bytes if their number varies, as measured.

    All rows count in these. The capacities of the most frequent `gpu_memory_utilization` and `max_num_seqs` are kept as
    they are; of repeated settings the least, which is that of a replica that did not start.

    Returns
    -------
    The memory, and which rows were used how, for the provenance; nothing without tables.

    Raises
    ------
    InputError
        When a cell cannot be used, or the capacities leave too little memory for the weights.
    """
    if not tables:
        return prior.memory.model_copy(update={"measured": ()}), {}
    parts = [_read_capacities(table) for table in tables]
    rows = _Capacities(*(np.concatenate([getattr(part, item.name) for part in parts]) for item in fields(_Capacities)))
    overhead_gib, extra_mib = _fit_overhead(rows, model, prior.memory, gpu_memory_gib)
    if overhead_gib < 0:
        files = ", ".join(table.file for table in tables)
        raise InputError(
            f"the KV cache must leave room for weights, slots and activations. {files} leaves "
            f"{-overhead_gib:.2f} GiB less than they take on {gpu_memory_gib:g} GiB.",
            file=files,
            field="kv_tokens",
            hint="check `kv_tokens` (tokens, not blocks), the model, and --gpu-memory-gib",
        )
    settings = list(zip(rows.utilization.tolist(), rows.sequences.astype(int).tolist(), strict=True))
    chosen = max(sorted(set(settings)), key=settings.count)
    capacities: dict[tuple[int, int], list[int | None]] = {}
    for slots, rank, tokens, setting in zip(rows.slots, rows.ranks, rows.kv_tokens, settings, strict=True):
        if slots > 0 and setting == chosen:
            capacities.setdefault((int(slots), int(rank)), []).append(None if np.isnan(tokens) else int(tokens))
    kept = {key: None if None in values else min(value or 0 for value in values) for key, values in capacities.items()}
    memory = prior.memory.model_copy(
        update={
            "overhead_gib": round(overhead_gib, 4),
            "slot_overhead_mib": round(extra_mib, 4),
            "measured_utilization": chosen[0],
            "measured_max_num_seqs": chosen[1],
            "measured": tuple(
                MeasuredKvTokens(max_loras=slots, max_lora_rank=rank, kv_tokens=tokens)
                for (slots, rank), tokens in sorted(kept.items())
            ),
        }
    )
    report = {
        "rows": len(settings),
        "other_settings": len(settings) - settings.count(chosen),
        "contradicting": sum(len(values) for values in capacities.values() if len(set(values)) > 1),
    }
    return memory, report


def _completed(measured: Mapping[int, float], believed: Mapping[int, float]) -> dict[int, float]:
    """Return a time per rank of `believed` (ascending): measured, or believed at the measured scale and increasing."""
    completed: dict[int, float] = {}
    for rank, believed_ms in believed.items():
        if rank in measured:
            completed[rank] = measured[rank]
            continue
        scale = 1.0
        if measured:
            nearest = min(measured, key=lambda other: (abs(other - rank), other))
            scale = measured[nearest] / believed[nearest] if believed[nearest] > 0 else 1.0
        least = max(completed.values(), default=0.0)
        most = min((value for other, value in measured.items() if other > rank), default=np.inf)
        completed[rank] = float(min(max(scale * believed_ms, least), most))
    return completed


def _at_ratio(
    measured: Mapping[tuple[int, int | None], float], ratio: float, prior: PerformanceProfile
) -> dict[int, float]:
    """Return the copy time per measured rank into a slot of `ratio` times the rank.

    Where another ratio was measured, the nearest one's time takes the prior's factor between the two.
    """
    times = {}
    for rank in {rank for rank, _ in measured}:
        slots = [slot for other, slot in measured if other == rank]
        nearest = min(slots, key=lambda slot: abs(np.log((slot or rank * ratio) / (rank * ratio))))
        believed_ms = prior.load_time_ms(rank, nearest or rank)[0]
        factor = prior.load_time_ms(rank, round(rank * ratio))[0] / believed_ms if nearest and believed_ms else 1.0
        times[rank] = measured[rank, nearest] * factor
    return times


def _load_rows(table: Table) -> pd.DataFrame:
    """Return `rank`, `max_lora_rank` (0: any) and a column per kind of load, NaN where the row has none."""
    table.require("rank")
    ranks = table.counts("rank", least=1)
    slots = np.zeros_like(ranks)
    if table.has("max_lora_rank"):
        slots = table.slot_ranks(is_used=np.ones(len(table), dtype=np.bool_))
        table.refuse("max_lora_rank", slots < ranks, "must be at least the adapter's `rank`")
    if not table.has("kind"):
        table.require(*(f"{kind}_ms" for kind in LOAD_KINDS))
        columns = {kind: table.optional_numbers(f"{kind}_ms") for kind in LOAD_KINDS}
    else:
        table.require("ms")
        kinds, times = table.words("kind"), table.numbers("ms")
        table.refuse("kind", ~np.isin(kinds, LOAD_KINDS), f"must be {' or '.join(LOAD_KINDS)}")
        columns = {kind: np.where(kinds == kind, times, np.nan) for kind in LOAD_KINDS}
    return pd.DataFrame({"rank": ranks.astype(np.int64), "max_lora_rank": slots.astype(np.int64), **columns})


def _read_capacities(table: Table) -> _Capacities:
    table.require("max_loras", "max_lora_rank", "max_num_seqs", "gpu_memory_utilization", "kv_tokens")
    slots = table.counts("max_loras")
    ranks = table.slot_ranks(is_used=slots > 0)
    utilization = table.numbers("gpu_memory_utilization")
    table.refuse("gpu_memory_utilization", (utilization <= 0) | (utilization > 1), "must be in (0, 1]")
    sequences = table.counts("max_num_seqs", least=1)
    return _Capacities(slots, ranks, sequences, utilization, table.optional_numbers("kv_tokens"))


def _fit_overhead(
    rows: _Capacities, model: ModelArchitecture, memory: MemoryCalibration, gpu_memory_gib: float
) -> tuple[float, float]:
    """Return (overhead in GiB, extra MiB per slot): what the known parts leave of the memory that is not KV cache."""
    has_started = ~np.isnan(rows.kv_tokens)
    if not has_started.any():
        return memory.overhead_gib, memory.slot_overhead_mib
    slots = rows.slots[has_started]
    sampler = memory.sampler_bytes_per_logit * model.vocab_size * rows.sequences[has_started]
    peak = np.maximum(memory.activation_gib * GIB, sampler)
    reserved = slots * [slot_bytes(model, int(rank)) for rank in rows.ranks[has_started]]
    known = model.num_parameters * model.dtype_bytes + reserved + peak
    kv_bytes = rows.kv_tokens[has_started] * model.kv_bytes_per_token
    rest = gpu_memory_gib * GIB * rows.utilization[has_started] - known - kv_bytes
    extra = memory.slot_overhead_mib * MIB
    if len(set(slots.tolist())) > 1:
        extra = max(float(np.polyfit(slots, rest, 1)[0]), 0.0)
    return float((rest - extra * slots).mean()) / GIB, extra / MIB
