"""Make small calibration tables from known coefficients, by simulating the benchmarks request by request."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from twin.hardware import SHIPPED_MODELS
from twin.memory import GIB, MIB, slot_bytes
from twin.profile import StepTimeCoefficients
from twin.step_time import step_time_ms

TOKENS_PER_STEP = 2048

# What the tables are made from. The terms of the host that closed loops do not identify are 0.
TRUE_COEFFICIENTS = StepTimeCoefficients(
    base_ms=10.0,
    token_ms=0.02,
    request_ms=0.01,
    context_token_ms=5e-5,
    large_batch_ms=3.0,
    lora_base_ms=1.5,
    lora_active_ms=0.5,
    lora_token_ms=0.004,
    expand_tile_ms=0.01,
    shrink_tile_ms=0.008,
    adapter_ms=0.3,
    adapter_shrink_ms=0.05,
)
# Of the scheduler's time per step, per waiting request.
TRUE_SCAN_MS = 3e-4
TRUE_OVERHEAD_GIB = 1.1
TRUE_SLOT_MIB = 5.0
TRUE_ACTIVATION_GIB = 0.5
TRUE_BYTES_PER_LOGIT = 14.0
SEND_SECONDS = 4.0


@dataclass
class LoopRequest:
    """A request of a closed loop and what has been done for it."""

    prompt_tokens: int
    output_tokens: int
    computed: int = 0
    generated: int = 0


@dataclass(frozen=True)
class LoopStep:
    """What one step of a closed loop held; `gaps` counts the tokens that follow an earlier one of their request."""

    tokens: int
    requests: int
    context_tokens: int
    has_prefill: bool
    gaps: int


def run_loop(num_requests: int, prompt_tokens: int, output_tokens: int, max_num_seqs: int) -> list[LoopStep]:
    """Serve equal requests that all wait from the start, first come first served, and return every step."""
    waiting = [LoopRequest(prompt_tokens, output_tokens) for _ in range(num_requests)]
    running: list[LoopRequest] = []
    steps = []
    while waiting or running:
        budget, scheduled = TOKENS_PER_STEP, []
        for request in running:
            given = min(request.prompt_tokens + request.generated - request.computed, budget)
            if given:
                scheduled.append((request, given))
                budget -= given
        while budget and waiting and len(running) < max_num_seqs:
            request = waiting.pop(0)
            running.append(request)
            given = min(request.prompt_tokens, budget)
            scheduled.append((request, given))
            budget -= given
        steps.append(
            LoopStep(
                tokens=sum(given for _, given in scheduled),
                requests=len(scheduled),
                context_tokens=sum(request.computed for request, _ in scheduled),
                has_prefill=any(not request.generated for request, _ in scheduled),
                gaps=sum(request.generated > 0 for request, _ in scheduled),
            )
        )
        for request, given in scheduled:
            request.computed += given
            request.generated += request.computed == request.prompt_tokens + request.generated
        running = [request for request in running if request.generated < request.output_tokens]
    return steps


def true_time_ms(step: LoopStep, *, adapters: int, slots: int, rank: int) -> float:
    """Return the time of a step by the true coefficients; all adapters of the batch are in the CPU cache."""
    is_changed = step.has_prefill
    queue = 0
    return step_time_ms(
        TRUE_COEFFICIENTS.as_array(),
        *(step.tokens, step.requests, step.context_tokens, adapters),
        step.has_prefill,
        is_changed,
        *(queue, slots, rank, adapters),
    )


def true_kv_bytes(model: str, *, slots: int, rank: int, max_num_seqs: int) -> float:
    """Return the KV cache that the true memory settings leave at 90 % of 63.43 GiB."""
    architecture = SHIPPED_MODELS[model]
    weights = architecture.num_parameters * architecture.dtype_bytes
    sampler = TRUE_BYTES_PER_LOGIT * architecture.vocab_size * max_num_seqs
    peak = max(TRUE_ACTIVATION_GIB * GIB, sampler)
    slot_total = slots * (slot_bytes(architecture, rank) + TRUE_SLOT_MIB * MIB) if slots else 0.0
    return 63.43 * GIB * 0.9 - weights - slot_total - TRUE_OVERHEAD_GIB * GIB - peak


def write_tables(folder: Path, *, model: str = "llama-3.1-8b", table_model: str = "llama-3.1-8b-instruct") -> None:
    """Write all six tables of a calibration folder for one model."""
    runs: list[dict[str, Any]] = []
    logs: list[pd.DataFrame] = []
    bins: list[dict[str, Any]] = []
    base: dict[str, Any] = {"model": table_model, "kv_usage_max": 0.1, "num_prompts": 300}

    def add_run(sub: str, kind: str, **values: Any) -> str:
        path = f"{kind}/{sub}/{len(runs)}"
        runs.append(base | {"path": path, "sub": sub, "kind": kind} | values)
        return path

    overhead, default = "predictor_latency_overhead", "predictor_default_latency"
    # Logged loops: with and without LoRA, below and above 128 tokens; one whose tokens are those of no closed loop.
    for sequences, slots, adapters in ((40, 0, 0), (200, 0, 0), (40, 60, 30), (200, 60, 1), (200, 60, 50), (40, 60, 1)):
        lora = {"slots": slots, "max_lora_rank": 8} if slots else {}
        path = add_run("loop", overhead, max_num_seqs=sequences, out_tokens=60, in_tokens=1500, **lora)
        steps = run_loop(300, 5, 60, sequences)
        times = [true_time_ms(step, adapters=adapters, slots=slots, rank=8) for step in steps]
        logs.append(_log(path, [step.tokens for step in steps], adapters, times))
    path = add_run("loop", overhead, max_num_seqs=40, out_tokens=60, in_tokens=1500)
    logs.append(_log(path, [7] * 40, 0, [99.0] * 40))
    # One request at a time.
    for rank in (8, 16, 32):
        path = add_run("loading", "predictor_loading", slots=1, max_lora_rank=rank, out_tokens=50, in_tokens=300 * 111)
        step = LoopStep(tokens=1, requests=1, context_tokens=136, has_prefill=False, gaps=1)
        logs.append(_log(path, [-1] * 9, 1, [true_time_ms(step, adapters=1, slots=1, rank=rank)] * 9))
    # Decode-only loops that report a median: steps without LoRA, latencies with it. One did not finish, one preempted.
    for sequences in (50, 200, 400, 600, 800):
        kv_tokens = true_kv_bytes(model, slots=0, rank=8, max_num_seqs=sequences) / _kv_bytes(model)
        values = {"max_num_seqs": sequences, "out_tokens": 100, "in_tokens": 1500, "kv_tokens": kv_tokens}
        path = add_run("output", default, **values)
        step = LoopStep(sequences, sequences, sequences * 55, has_prefill=False, gaps=sequences)
        bins.append({"path": path, "sub": "output", "dt_p50_ms": true_time_ms(step, adapters=0, slots=0, rank=0)})
    add_run("output", default, max_num_seqs=50, out_tokens=100, in_tokens=1500)
    path = add_run("output", default, max_num_seqs=50, out_tokens=100, in_tokens=1500, kv_usage_max=0.999)
    bins.append({"path": path, "sub": "output", "dt_p50_ms": 99.0})
    for sequences in (32, 96):
        for rank in (8, 16, 32):
            step = LoopStep(sequences, sequences, sequences * 55, has_prefill=False, gaps=sequences)
            add_run(
                "overhead/output",
                overhead,
                max_num_seqs=sequences,
                slots=100,
                max_lora_rank=rank,
                distinct_adapters_requested=1,
                out_tokens=100,
                in_tokens=1500,
                itl_p50_ms=true_time_ms(step, adapters=1, slots=100, rank=rank),
            )
    # Prefill-only loops: the client first sends its prompts, then steps of 2048 tokens follow each other.
    for slots, rank in ((0, 0), (100, 8), (100, 32)):
        for prompt in (128, 256, 512):
            step = LoopStep(2048, 2048 // prompt, 0, has_prefill=True, gaps=0)
            step_ms = true_time_ms(step, adapters=min(slots, 1), slots=slots, rank=rank)
            lora = {"slots": slots, "max_lora_rank": rank, "distinct_adapters_requested": 1} if slots else {}
            add_run(
                "overhead/input" if slots else "input",
                overhead,
                max_num_seqs=32,
                out_tokens=1,
                num_prompts=4096,
                in_tokens=4096 * prompt,
                duration_s=SEND_SECONDS + 2 * prompt * step_ms / 1000,
                **lora,
            )
    # Loops of long prompts and outputs.
    for prompt, output, sequences in ((200, 50, 20), (400, 30, 100), (100, 100, 150)):
        steps = run_loop(300, prompt, output, sequences)
        gaps = sum(step.gaps for step in steps)
        mean = sum(step.gaps * true_time_ms(step, adapters=0, slots=0, rank=0) for step in steps) / gaps
        values = {"max_num_seqs": sequences, "out_tokens": output, "in_tokens": 300 * prompt, "itl_mean_ms": mean}
        add_run("grouped", default, **values)
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(runs).to_csv(folder / "calib_runs.csv", index=False)
    pd.DataFrame(bins).assign(tok_mean=float("nan")).to_csv(folder / "calib_step_bins.csv.gz", index=False)
    pd.concat(logs).to_parquet(folder / "calib_steps_lora.parquet")
    _memory_table(model, table_model).to_csv(folder / "calib_mem_max.csv", index=False)
    _load_table(table_model).to_csv(folder / "calib_loading_points.csv.gz", index=False)
    _scheduler_table().to_csv(folder / "calib_scheduler_runs.csv.gz", index=False)


def _kv_bytes(model: str) -> int:
    return SHIPPED_MODELS[model].kv_bytes_per_token


def _log(path: str, tokens: list[int], adapters: int, times: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"path": path, "step": range(len(tokens)), "tok": tokens, "uniq": adapters, "dt_ms": times})


def _memory_table(model: str, table_model: str) -> pd.DataFrame:
    rows = []
    for rank in (8, 16, 32):
        for slots in (8, 64, 128, 256, 384):
            kv_bytes = true_kv_bytes(model, slots=slots, rank=rank, max_num_seqs=2048)
            tokens = int(kv_bytes // (_kv_bytes(model) * 16) * 16)
            row: dict[str, Any] = {"model": table_model, "slots": slots, "max_lora_rank": rank}
            if kv_bytes <= 0:
                rows.append(row | {"status": "oom_no_kv"})
            elif tokens < SHIPPED_MODELS[model].max_model_len:
                rows.append(row | {"status": "oom_kv_lt_maxlen", "avail_kv_gib": kv_bytes / GIB})
            else:
                step = LoopStep(1, 1, 0, has_prefill=False, gaps=1)
                latency = true_time_ms(step, adapters=0, slots=slots, rank=rank)
                measured = {"kv_tokens": tokens, "init_engine_s": 100.0 + 3.5 * slots, "bs1_itl_p50_ms": latency}
                rows.append(row | {"status": "ok"} | measured)
    return pd.DataFrame(rows)


def _load_table(table_model: str) -> pd.DataFrame:
    rows = []
    for rank in (8, 16, 32):
        for slot_rank in (8, 16, 32):
            if slot_rank < rank:
                continue
            for swap, milliseconds in ((0, 50.0), (1, 6.0 + slot_rank / rank), (1, 6.0 + slot_rank / rank), (1, 900.0)):
                rows.append(("cpu_to_gpu", swap, rank, slot_rank, milliseconds))
            rows.append(("disk_to_cpu", 0, rank, slot_rank, 60.0 + rank))
    columns = ["type", "is_runtime_swap", "adapter_rank", "max_lora_rank", "ms"]
    return pd.DataFrame(rows, columns=columns).assign(model=table_model)


def _scheduler_table() -> pd.DataFrame:
    """Return runs whose slots are all taken, and one whose slots are not: its scheduler does not look at the queue."""
    rows = [
        {
            "gpu_loras": slots,
            "mean_loras_by_batch": float(slots),
            "avg_batch_size": float(requests),
            "avg_waiting_queue": float(waiting),
            "sched_ms_per_step": 0.1 + 0.002 * requests + TRUE_SCAN_MS * waiting + 1e-5 * requests * slots,
        }
        for slots in (8, 16, 32)
        for requests, waiting in ((40, 0), (60, 500), (90, 2000), (120, 100))
    ]
    rows.append(rows[0] | {"mean_loras_by_batch": 3.0, "sched_ms_per_step": 99.0})
    return pd.DataFrame(rows)
