"""Read the micro-benchmark tables of a calibration folder as observations of step times, adapter loads and memory.

The tables log what was scheduled (tokens, distinct adapters) but not how many requests that were nor how long their
contexts were. The benchmarks are closed loops of equal requests that all wait from the start, so both follow from the
log: a step's tokens are one per request that is still generating, and the rest is prefill of the next requests in the
queue.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from twin.calibration.closed_loop import TOKENS_PER_STEP, reconstruct_closed_loop, replay_closed_loop
from twin.calibration.observations import StepObservations, Steps
from twin.errors import ProfileError
from twin.tables import READ_ERRORS

# Names that the tables use for the shipped models.
TABLE_MODELS = {"llama-3.1-8b": "llama-3.1-8b-instruct", "qwen2.5-7b": "qwen-2.5-7b-instruct"}

# Steps are grouped by their tokens, requests, adapters (to the nearest four) and context (to the nearest 4096 tokens);
# a group of fewer steps than this is a ramp-up or one of the profiler's own stalls and is left out.
ADAPTER_BIN = 4
CONTEXT_BIN = 4096
MIN_STEPS_PER_GROUP = 3

# Above this share of the KV cache requests are preempted, and the steps no longer follow from the request counts.
MAX_KV_USAGE = 0.985

# One row of a table, by column name.
Record = dict[str, Any]

# Columns of the tables of measured steps; `StepObservations` explains them. `weight` and `measurement` are added when
# tables are joined, unless a table has them already because its measurements are means over several kinds of steps.
STEP_COLUMNS = (
    "tokens",
    "requests",
    "context_tokens",
    "adapters",
    "prefill",
    "slots",
    "max_rank",
    "cached_adapters",
    "time_ms",
    "regime",
    "group",
)


def step_observations(folder: Path, model: str) -> StepObservations:
    """Return every measured step time of a model in a calibration folder.

    Raises
    ------
    ProfileError
        When a table is missing or has no rows of the model.
    """
    readers = (logged_steps, unlogged_decodes, prefill_runs, mixed_loops, idle_slots)
    tables = [table for table in (reader(folder, model) for reader in readers) if len(table)]
    return join_steps(tables)


def join_steps(tables: list[pd.DataFrame]) -> StepObservations:
    """Join tables with the columns `STEP_COLUMNS` (and `measurement`, `weight` where one measurement has many rows)."""
    parts, first = [], 0
    for table in tables:
        part = table if "measurement" in table else table.assign(measurement=np.arange(len(table)), weight=1.0)
        part = part.assign(measurement=pd.factorize(part["measurement"])[0] + first)
        first = int(part["measurement"].max()) + 1
        parts.append(part)
    steps = pd.concat(parts, ignore_index=True)
    measured = steps.drop_duplicates("measurement")
    values = {name: steps[name].to_numpy(dtype=np.float64) for name in STEP_COLUMNS[:8]}
    return StepObservations(
        steps=Steps(
            tokens=values["tokens"],
            requests=values["requests"],
            context_tokens=values["context_tokens"],
            adapters=values["adapters"],
            prefill=values["prefill"],
            # In a closed loop of equal requests the batch changes where a prefill joins it, hardly elsewhere.
            changed=values["prefill"],
            waiting=np.zeros(len(steps)),
            slots=values["slots"].astype(np.int64),
            max_rank=values["max_rank"].astype(np.int64),
            cached_adapters=values["cached_adapters"],
        ),
        weight=steps["weight"].to_numpy(dtype=np.float64),
        measurement=steps["measurement"].to_numpy(dtype=np.int64),
        time_ms=measured["time_ms"].to_numpy(dtype=np.float64),
        regime=measured["regime"].to_numpy(dtype=np.str_),
        group=measured["group"].to_numpy(dtype=np.str_),
    )


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """Read one table of the calibration folder (CSV or Parquet); ProfileError when it is missing or unreadable."""
    path = folder / name
    try:
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except READ_ERRORS as error:
        raise ProfileError(
            f"a calibration folder must hold the table {name}. It cannot be read in {folder}: {error}.",
            file=str(path),
            hint="give the folder that holds the calib_* tables",
        ) from error


def records(table: pd.DataFrame) -> list[Record]:
    """Return the rows of a table as dictionaries by column name."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict(orient="records")]


def model_rows(table: pd.DataFrame, model: str) -> pd.DataFrame:
    """Return the rows of one shipped model; ProfileError when the table has none."""
    if model not in TABLE_MODELS:
        raise ProfileError(
            f"`model` must be one of {', '.join(TABLE_MODELS)}: the calibration tables cover them. Got {model!r}.",
            field="model",
            value=model,
            hint="name a shipped model",
        )
    rows = table[table["model"] == TABLE_MODELS[model]]
    if rows.empty:
        raise ProfileError(f"a calibration table must have rows of {model!r}. It has none.", field="model", value=model)
    return rows


def logged_steps(folder: Path, model: str) -> pd.DataFrame:
    """Return one row per group of equal steps of the step log, with their median time (regimes "logged ...")."""
    runs = {run["path"]: run for run in records(model_rows(read_table(folder, "calib_runs.csv"), model))}
    steps = read_table(folder, "calib_steps_lora.parquet")
    frames = []
    for path, log in steps[steps["path"].isin(list(runs))].groupby("path", sort=True):
        run = runs[str(path)]
        frame = _loading_steps(log, run) if run["kind"] == "predictor_loading" else _closed_loop_steps(log, run)
        if frame is not None:
            frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _closed_loop_steps(log: pd.DataFrame, run: Record) -> pd.DataFrame | None:
    log = log.sort_values("step")
    tokens = log["tok"].to_numpy(dtype=np.int64)
    mean_prompt = int(run["in_tokens"] // run["num_prompts"])
    # The two models' adapters add a start token that the client does not count.
    for prompt_tokens in (mean_prompt, mean_prompt + 1):
        counts = reconstruct_closed_loop(tokens, prompt_tokens=prompt_tokens, output_tokens=int(run["out_tokens"]))
        if counts is not None:
            break
    else:
        return None
    requests, contexts, has_prefill = counts
    table = pd.DataFrame(
        {
            "tokens": tokens,
            "requests": requests,
            "context_tokens": contexts,
            "adapters": log["uniq"].to_numpy(),
            "prefill": has_prefill,
            "time_ms": log["dt_ms"].to_numpy(),
        }
    )
    keys = [table["tokens"], table["requests"], table["prefill"]]
    keys += [
        (table["adapters"] / ADAPTER_BIN).round().rename("bin"),
        (table["context_tokens"] // CONTEXT_BIN).rename("context_bin"),
    ]
    grouped = table.groupby(keys, sort=True)
    medians = grouped[["context_tokens", "adapters", "time_ms"]].median()
    medians = medians[grouped.size() >= MIN_STEPS_PER_GROUP].reset_index()
    slots, rank = _lora_settings(run)
    mode = np.where(medians["prefill"], "logged mixed step", "logged decode")
    cached = _requested_adapters(run, medians["adapters"].max())
    return medians.assign(slots=slots, max_rank=rank, cached_adapters=cached, regime=mode, group=run["path"])[
        list(STEP_COLUMNS)
    ]


def _loading_steps(log: pd.DataFrame, run: Record) -> pd.DataFrame:
    """One request at a time, each with its own adapter: the median step is a decode in the middle of the output."""
    slots, rank = _lora_settings(run)
    context = run["in_tokens"] / run["num_prompts"] + run["out_tokens"] / 2
    row = _row(
        tokens=1,
        requests=1,
        context_tokens=context,
        adapters=1,
        slots=slots,
        max_rank=rank,
        cached_adapters=1,
        time_ms=log["dt_ms"].median(),
        regime="one request, one slot",
        group=run["path"],
    )
    return pd.DataFrame([row])


def unlogged_decodes(folder: Path, model: str) -> pd.DataFrame:
    """Return decode-only closed loops without a step log: median step or inter-token latency (regimes "decode ...")."""
    runs = model_rows(read_table(folder, "calib_runs.csv"), model)
    bins = read_table(folder, "calib_step_bins.csv.gz")
    medians = bins[bins["tok_mean"].isna() & (bins["sub"] == "output")].set_index("path")["dt_p50_ms"]
    loops = runs[
        runs["sub"].isin(["output", "initial_points/output", "overhead/output"]) & (runs["kv_usage_max"] < MAX_KV_USAGE)
    ]
    rows: list[Record] = []
    for run in records(loops):
        logged = run["sub"] == "output"
        if logged and run["path"] not in medians.index:
            continue
        time_ms = medians[run["path"]] if logged else run["itl_p50_ms"]
        num = run["max_num_seqs"]
        context = num * (run["in_tokens"] / run["num_prompts"] + run["out_tokens"] / 2)
        slots, rank = _lora_settings(run)
        adapters = expected_distinct(run["distinct_adapters_requested"], num) if slots else 0.0
        row = _row(
            tokens=num,
            requests=num,
            context_tokens=context,
            adapters=adapters,
            slots=slots,
            max_rank=rank,
            cached_adapters=_requested_adapters(run, adapters),
            time_ms=time_ms,
            regime="decode with LoRA" if slots else "decode without LoRA",
            group=run["path"],
        )
        rows.append(row)
    return pd.DataFrame(rows, columns=list(STEP_COLUMNS))


def prefill_runs(folder: Path, model: str) -> pd.DataFrame:
    """Return prefill-only runs (one output token) as mean steps of 2048 tokens (regimes "prefill ...").

    The client's constant time to send its prompts, the median intercept of duration against the number of steps, is
    taken off.
    """
    runs = model_rows(read_table(folder, "calib_runs.csv"), model)
    kinds = ["input", "initial_points/input", "overhead/input"]
    runs = runs[runs["sub"].isin(kinds) & (runs["num_prompts"] > TOKENS_PER_STEP) & runs["duration_s"].notna()]
    rows: list[Record] = []
    for with_lora in (False, True):
        part = runs[runs["slots"].notna() == with_lora]
        part = part.assign(steps=part["in_tokens"] / TOKENS_PER_STEP)
        keys = [part[name].fillna(0) for name in ("max_lora_rank", "distinct_adapters_requested", "max_num_seqs")]
        lines = [
            np.polyfit(group["steps"], group["duration_s"], 1) for _, group in part.groupby(keys) if len(group) >= 3
        ]
        if not lines:
            continue
        offset_s = float(np.median([line[1] for line in lines]))
        for run in records(part):
            num = run["num_prompts"] / run["steps"]
            slots, rank = _lora_settings(run)
            adapters = expected_distinct(run["distinct_adapters_requested"], num) if slots else 0.0
            row = _row(
                tokens=TOKENS_PER_STEP,
                requests=num,
                context_tokens=0,
                adapters=adapters,
                slots=slots,
                max_rank=rank,
                cached_adapters=_requested_adapters(run, adapters),
                time_ms=(run["duration_s"] - offset_s) / run["steps"] * 1000,
                regime="prefill with LoRA" if slots else "prefill without LoRA",
                group=run["path"],
                prefill=1,
            )
            rows.append(row)
    return pd.DataFrame(rows, columns=list(STEP_COLUMNS))


def mixed_loops(folder: Path, model: str) -> pd.DataFrame:
    """Return closed loops with long prompts as mean inter-token latencies (regime "mixed loop, latency").

    All requests wait from the start, so which tokens are scheduled together does not depend on how long steps take: the
    loop is replayed by counting, and a latency is the mean of the steps weighted by the requests that generate in them.
    """
    runs = model_rows(read_table(folder, "calib_runs.csv"), model)
    runs = runs[runs["sub"].isin(["grouped", "grouped_per_step"]) & (runs["kv_usage_max"] < MAX_KV_USAGE)]
    replays: dict[tuple[int, int, int, int], pd.DataFrame] = {}
    frames = []
    for run in records(runs):
        prompt_tokens, output_tokens = int(run["in_tokens"] // run["num_prompts"]), int(run["out_tokens"])
        loop = (int(run["num_prompts"]), prompt_tokens, output_tokens, int(run["max_num_seqs"]))
        if loop not in replays:
            replays[loop] = replay_closed_loop(
                loop[0], prompt_tokens=prompt_tokens, output_tokens=output_tokens, max_num_seqs=loop[3]
            ).assign(adapters=0.0, slots=0, max_rank=0, cached_adapters=0.0)
        frames.append(
            replays[loop].assign(
                measurement=run["path"],
                time_ms=run["itl_mean_ms"],
                regime="mixed loop, latency",
                group=run["path"],
            )
        )
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(STEP_COLUMNS))


def idle_slots(folder: Path, model: str) -> pd.DataFrame:
    """Return the latency of one request without an adapter, per slots and rank (regime "one request, idle slots")."""
    rows = model_rows(read_table(folder, "calib_mem_max.csv"), model)
    measured = [
        _row(
            tokens=1,
            requests=1,
            context_tokens=0,
            adapters=0,
            slots=int(row["slots"]),
            max_rank=int(row["max_lora_rank"]),
            cached_adapters=0,
            time_ms=row["bs1_itl_p50_ms"],
            regime="one request, idle slots",
            group=f"idle slots {int(row['slots'])} of rank {int(row['max_lora_rank'])}",
        )
        for row in records(rows[rows["bs1_itl_p50_ms"].notna()])
    ]
    return pd.DataFrame(measured, columns=list(STEP_COLUMNS))


def expected_distinct(num_adapters: float, num_requests: float) -> float:
    """Return the expected number of distinct adapters when each request draws one of `num_adapters` uniformly."""
    return float(num_adapters * (1.0 - (1.0 - 1.0 / num_adapters) ** num_requests))


def _lora_settings(run: Record) -> tuple[int, int]:
    """Return (slots, max rank) of a run, (0, 0) without LoRA."""
    return (0, 0) if math.isnan(run["slots"]) else (int(run["slots"]), int(run["max_lora_rank"]))


def _requested_adapters(run: Record, at_least: float) -> float:
    """Return how many adapters a run used: all stay in the CPU cache; `at_least` where the table does not say."""
    requested = float(run["distinct_adapters_requested"])
    return at_least if math.isnan(requested) else requested


def _row(
    *,
    tokens: float,
    requests: float,
    context_tokens: float,
    adapters: float,
    slots: int,
    max_rank: int,
    cached_adapters: float,
    time_ms: float,
    regime: str,
    group: str,
    prefill: float = 0,
) -> Record:
    """Return one measurement of one kind of step, in the order of `STEP_COLUMNS`."""
    values = (
        tokens,
        requests,
        context_tokens,
        adapters,
        prefill,
        slots,
        max_rank,
        cached_adapters,
        time_ms,
        regime,
        group,
    )
    return dict(zip(STEP_COLUMNS, values, strict=True))
