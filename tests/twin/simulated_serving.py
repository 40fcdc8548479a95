"""What a server would show of a simulated run: scrapes of vLLM's metrics, and results of `vllm bench serve`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from twin.calibration.observations import Steps
from twin.calibration.serving_fit import simulated_steps
from twin.calibration.step_fit import step_terms
from twin.engine import EngineConfig
from twin.hardware import SHIPPED_MODELS, GpuType
from twin.kernel import run_kernel
from twin.lengths import LengthDistribution
from twin.profile import PerformanceProfile, StepTimeCoefficients
from twin.replica import Replica, ReplicaInputs, ReplicaTrace, build_inputs
from twin.workload import NANOSECONDS, Adapter, RequestTable, Workload

LLAMA = SHIPPED_MODELS["llama-3.1-8b"]
TOKEN_EDGES = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
# More than any closed loop takes.
LOOP_HORIZON_S = 1e5
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Served:
    """A simulated run.

    Attributes
    ----------
    step, request
        int64 [E], every time that a request was scheduled.
    emitted, is_first
        bool [E], whether it then got a token, and whether that was its first.
    computed
        int64 [E], its tokens computed after it.
    end_ns
        int64 [K], ends of the steps.
    gap_ns
        int64 [E], time since its token before.
    """

    inputs: ReplicaInputs
    requests: RequestTable
    trace: ReplicaTrace
    steps: Steps
    end_ns: Counts
    step: Counts
    request: Counts
    emitted: NDArray[np.bool_]
    is_first: NDArray[np.bool_]
    computed: Counts
    gap_ns: Counts

    def mean_step_ms(self, coefficients: StepTimeCoefficients) -> float:
        """Return the mean time of all steps under some coefficients."""
        return float((step_terms(self.steps) @ coefficients.as_array()).mean())


def adapters_of(
    number: int, rate_rps: float, *, prompt: LengthDistribution, output: LengthDistribution
) -> tuple[Adapter, ...]:
    """Return equally popular adapters of rank 16 that share a rate."""
    return tuple(
        Adapter(
            name=f"adapter-{index}", rank=16, rate_rps=rate_rps / number, prompt_tokens=prompt, output_tokens=output
        )
        for index in range(number)
    )


def serve(
    profile: PerformanceProfile,
    engine: EngineConfig,
    adapters: Sequence[Adapter],
    *,
    horizon_s: float,
    seed: int = 0,
    requests: RequestTable | None = None,
) -> Served:
    """Simulate adapters on one replica and follow every token of it."""
    table = Workload(tuple(adapters)).requests(horizon_s=horizon_s, seed=seed) if requests is None else requests
    inputs = _inputs(profile, engine, adapters, table, horizon_s)
    trace = run_kernel(inputs, log_steps=True, keep_step_table=True)
    log = trace.step_log
    assert log is not None
    assert trace.step_table is not None
    assert trace.num_preemptions == 0
    end_ns = log.start_ns + log.duration_ns
    step = np.repeat(np.arange(len(end_ns)), np.diff(log.running_offset))
    was_scheduled = log.running_tokens > 0
    step, request = step[was_scheduled], log.running_request[was_scheduled].astype(np.int64)
    tokens = log.running_tokens[was_scheduled].astype(np.int64)
    computed = pd.Series(tokens).groupby(request).cumsum().to_numpy()
    emitted = computed >= table.prompt_tokens[request]
    order = pd.Series(emitted).groupby(request).cumsum().to_numpy()
    ends = end_ns[step]
    gap_ns = pd.Series(ends).groupby(request).diff().fillna(0).to_numpy(dtype=np.int64)
    return Served(
        *(inputs, table, trace, simulated_steps(trace.step_table, inputs), end_ns, step, request),
        *(emitted, emitted & (order == 1), computed, gap_ns),
    )


def scrapes(served: Served, times_s: Sequence[float], *, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return what the counters and gauges would be at some times; adapters by name."""
    step, ends = served.step, served.end_ns[served.step]
    prompts, outputs = served.requests.prompt_tokens, served.requests.output_tokens
    recorded = np.where(served.is_first, prompts[served.request] + 1, served.emitted)
    per_step = np.bincount(step, weights=recorded, minlength=len(served.end_ns))
    is_last = served.computed >= prompts[served.request] + outputs[served.request] - 1
    log = served.trace.step_log
    assert log is not None
    pages = []
    for time_s in times_s:
        now = int(time_s * NANOSECONDS)
        past = ends <= now
        counted = per_step[(served.end_ns <= now) & (per_step > 0)]
        last = int(np.searchsorted(served.end_ns, now, side="right")) - 1
        is_running = (step == last) & ~is_last
        running = served.request[is_running]
        blocks = np.ceil(served.computed[is_running] / served.inputs.block_size).sum()
        in_queue = slice(*log.waiting_offset[last : last + 2]) if last >= 0 else slice(0)
        queue = log.waiting_request[in_queue]
        firsts = past & served.is_first
        gaps = past & served.emitted & ~served.is_first
        pages.append(
            {
                "time_s": time_s,
                "steps": [int((counted <= edge).sum()) for edge in TOKEN_EDGES] + [len(counted)],
                "step_tokens": float(counted.sum()),
                "gap_s": float(served.gap_ns[gaps].sum()) / NANOSECONDS,
                "gaps": int(gaps.sum()),
                "generated": int((past & served.emitted).sum()),
                "first_tokens": int(firsts.sum()),
                "prompt_tokens": int(prompts[served.request[firsts]].sum()),
                "finished": int((past & is_last).sum()),
                "running": len(running),
                "waiting": len(queue),
                "kv_usage": float(blocks) / (served.inputs.num_blocks - 1),
                # 0.32 lists every adapter with a request in both labels.
                "adapters": sorted({names[index] for index in served.inputs.adapter[[*running, *queue]]})
                if names and len(running) + len(queue)
                else [],
            }
        )
    return pages


def samples(page: dict[str, Any], served: Served, *, has_lora: bool = True) -> list[tuple[str, dict[str, str], float]]:
    """Return a scrape as vLLM 0.32 names its samples."""
    own = {"model_name": "llama", "engine": "0"}
    edges = [*(f"{edge:.1f}" for edge in TOKEN_EDGES), "+Inf"]
    rows: list[tuple[str, dict[str, str], float]] = [
        ("vllm:iteration_tokens_total_bucket", own | {"le": edge}, count)
        for edge, count in zip(edges, page["steps"], strict=True)
    ]
    rows += [
        ("vllm:iteration_tokens_total_count", own, page["steps"][-1]),
        ("vllm:iteration_tokens_total_sum", own, page["step_tokens"]),
        ("vllm:inter_token_latency_seconds_sum", own, page["gap_s"]),
        ("vllm:inter_token_latency_seconds_count", own, page["gaps"]),
        ("vllm:generation_tokens_total", own, page["generated"]),
        ("vllm:time_to_first_token_seconds_count", own, page["first_tokens"]),
        ("vllm:prompt_tokens_total", own, page["prompt_tokens"]),
        ("vllm:request_success_total", own | {"finished_reason": "length"}, page["finished"]),
        ("vllm:request_success_total", own | {"finished_reason": "stop"}, 0),
        ("vllm:num_preemptions_total", own, 0),
        ("vllm:num_requests_running", own, page["running"]),
        ("vllm:num_requests_waiting", own, page["waiting"]),
        ("vllm:kv_cache_usage_perc", own, page["kv_usage"]),
        (
            "vllm:cache_config_info",
            {
                "engine": "0",
                "num_gpu_blocks": str(served.inputs.num_blocks),
                "block_size": str(served.inputs.block_size),
            },
            1,
        ),
        ("process_start_time_seconds", {}, 7.0),
        ("python_info", {"version": "3.12"}, 1),
    ]
    if has_lora:
        label = ",".join(page["adapters"])
        labels = {
            "max_lora": str(served.inputs.num_slots),
            "running_lora_adapters": label,
            "waiting_lora_adapters": label,
        }
        # A combination that held before stays on the page.
        old = {"max_lora": labels["max_lora"], "running_lora_adapters": "", "waiting_lora_adapters": ""}
        rows += [("vllm:lora_requests_info", old, 1.0), ("vllm:lora_requests_info", labels, 2.0 + page["time_s"])]
    return rows


def write_pages(path: Path, pages: Sequence[dict[str, Any]], served: Served, *, start_s: float = 1.75e9) -> Path:
    """Write scrapes one after the other as text."""
    lines = []
    for page in pages:
        lines += [f"# scraped_at {start_s + page['time_s']}", "# HELP vllm:num_requests_running Some help."]
        for name, labels, value in samples(page, served, has_lora=served.inputs.num_slots > 0):
            inner = ",".join(f'{key}="{text}"' for key, text in labels.items())
            lines.append(f"{name}{{{inner}}} {value}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_answer(path: Path, pages: Sequence[dict[str, Any]], served: Served, *, start_s: float = 1.75e9) -> Path:
    """Write scrapes as Prometheus answers a range selector."""
    series: dict[str, dict[str, Any]] = {}
    for page in pages:
        for name, labels, value in samples(page, served, has_lora=served.inputs.num_slots > 0):
            metric = {"__name__": name, "instance": "10.0.0.1:8000", "job": "vllm", **labels}
            entry = series.setdefault(json.dumps(metric), {"metric": metric, "values": []})
            entry["values"].append([start_s + page["time_s"], str(value)])
    content = {"status": "success", "data": {"resultType": "matrix", "result": list(series.values())}}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_table(path: Path, pages: Sequence[dict[str, Any]], served: Served) -> Path:
    """Write scrapes as `placer measure` does."""
    rows = [
        {"time_s": page["time_s"], "duration_s": 0.01, "name": name, "labels": json.dumps(labels, sort_keys=True)}
        | {"value": float(value), "error": None, "segment": 1}
        for page in pages
        for name, labels, value in samples(page, served, has_lora=served.inputs.num_slots > 0)
    ]
    failed = {
        "time_s": 0.5,
        "duration_s": 0.1,
        "name": None,
        "labels": None,
        "value": None,
        "error": "no page",
        "segment": 1,
    }
    pd.DataFrame([failed, *rows]).to_parquet(path)
    return path


def bench_result(served: Served, *, rate: float | str, concurrency: int | None, has_details: bool) -> dict[str, Any]:
    """Return a finished run as `vllm bench serve` writes it."""
    trace, table = served.trace, served.requests
    done = np.flatnonzero(trace.finish_ns >= 0)
    first_s = (trace.first_token_ns - table.arrival_ns)[done] / NANOSECONDS
    decode_s = (trace.finish_ns - trace.first_token_ns)[done] / NANOSECONDS
    outputs, prompts = trace.generated_tokens[done], table.prompt_tokens[done]
    tpot = decode_s[outputs > 1] / (outputs[outputs > 1] - 1)
    duration = float(trace.finish_ns.max() - table.arrival_ns.min()) / NANOSECONDS
    gaps = served.emitted & ~served.is_first
    result: dict[str, Any] = {
        "date": "20260101-000000",
        "backend": "vllm",
        "model_id": "llama",
        "num_prompts": len(table),
        "request_rate": rate,
        "burstiness": 1.0,
        "max_concurrency": concurrency,
        "duration": duration,
        "completed": len(done),
        "failed": 0,
        "total_input_tokens": int(prompts.sum()),
        "total_output_tokens": int(outputs.sum()),
        "request_throughput": len(done) / duration,
        "output_throughput": float(outputs.sum()) / duration,
        "mean_tpot_ms": 1000.0 * float(tpot.mean()),
        "mean_itl_ms": 1000.0 * float(served.gap_ns[gaps].mean()) / NANOSECONDS,
        "mean_ttft_ms": 1000.0 * float(first_s.mean()),
    }
    if has_details:
        by_request = pd.Series(served.gap_ns[gaps] / NANOSECONDS).groupby(served.request[gaps]).apply(list).to_dict()
        result |= {
            "input_lens": prompts.tolist(),
            "output_lens": outputs.tolist(),
            "ttfts": first_s.tolist(),
            "itls": [by_request.get(index, []) for index in done.tolist()],
            "start_times": (table.arrival_ns[done] / NANOSECONDS + 1000.0).tolist(),
            "errors": [""] * len(done),
        }
    return result


def closed_loop_requests(
    profile: PerformanceProfile, engine: EngineConfig, adapters: Sequence[Adapter], *, places: int, number: int
) -> RequestTable:
    """Return requests that each arrive when one of the `places` becomes free."""
    generator = np.random.default_rng(3)
    prompts = adapters[0].prompt_tokens.sample(number, generator)
    outputs = adapters[0].output_tokens.sample(number, generator)
    owners = generator.integers(0, len(adapters), number).astype(np.int32)
    arrival = np.zeros(number, dtype=np.int64)
    for known in range(places, number):
        table = RequestTable(arrival[:known], owners[:known], prompts[:known], outputs[:known])
        # What ended before an arrival does not depend on it.
        finish_ns = run_kernel(_inputs(profile, engine, adapters, table, LOOP_HORIZON_S)).finish_ns
        arrival[known] = np.sort(finish_ns)[known - places]
    return RequestTable(arrival, owners, prompts, outputs)


def _inputs(
    profile: PerformanceProfile,
    engine: EngineConfig,
    adapters: Sequence[Adapter],
    requests: RequestTable,
    horizon_s: float,
) -> ReplicaInputs:
    gpu = GpuType(name=profile.gpu, memory_gib=profile.gpu_memory_gib)
    return build_inputs(Workload(tuple(adapters)), requests, Replica(LLAMA, gpu, engine, profile), horizon_s=horizon_s)
