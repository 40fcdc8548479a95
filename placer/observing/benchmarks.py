"""What results of ``vllm bench serve`` say about traffic: how many requests how fast, and how long they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from placer.observing.evidence import Observation
from placer.observing.variation import common_variation
from twin.calibration.bench_files import BenchResult, parse_results, read_json_values
from twin.errors import InputError
from twin.lengths import LengthDistribution


def read_benchmarks(paths: Sequence[Path]) -> Observation:
    """Read results; several are taken for parts of one workload, one after the other.

    Raises
    ------
    InputError
        When a file is unreadable or none of them, or no request completed.
    """
    results = [result for path in paths for result in parse_results(read_json_values(path), file=str(path))]
    names = tuple(str(path) for path in paths)
    num_requests = sum(result.completed + result.failed for result in results)
    if not sum(result.completed for result in results):
        raise InputError(
            f"a benchmark must have completed requests. {', '.join(names)} has none.", file=names[0], field="completed"
        )
    window_s = sum(_sending_s(result) for result in results)
    unknown = ["requests of each adapter: a result does not say which adapter a request asked for"]
    assumed = ["traffic is what the benchmark sent; its requests choose among the adapters evenly (vLLM's default)"]
    if any(not np.isfinite(result.request_rate) for result in results):
        assumed.append("requests sent all at once, or as others ended, arrive at the rate at which they were served")
    prompts, outputs = _lengths(results, is_prompt=True), _lengths(results, is_prompt=False)
    if not all(result.input_lens for result in results):
        unknown.append("the spread of lengths: --save-detailed has them, so all are as long as the mean here")
    return Observation(
        kind="benchmark",
        names=names,
        window_s=window_s,
        begin_s=None,
        num_requests=float(num_requests),
        adapters={},
        basis="shared evenly",
        prompt_tokens=prompts,
        output_tokens=outputs,
        common_cv=_variation(results),
        known=(f"{num_requests:,} requests in {window_s:,.0f} s, and the mean of their lengths",),
        unknown=tuple(unknown),
        assumed=tuple(assumed),
    )


def _sending_s(result: BenchResult) -> float:
    """Return the seconds in which requests were sent: the end of a run only waits for answers."""
    if np.isfinite(result.request_rate):
        return (result.completed + result.failed) / result.request_rate
    return result.duration


def _variation(results: Sequence[BenchResult]) -> float | None:
    if len(results) != 1 or not results[0].start_times or not np.isfinite(results[0].request_rate):
        return None
    times = np.sort(np.array(results[0].start_times))
    arrival_s = times - times[0]
    return common_variation(arrival_s, float(arrival_s[-1]) * (1.0 + 1e-9)) if arrival_s[-1] > 0.0 else None


def _lengths(results: Sequence[BenchResult], *, is_prompt: bool) -> LengthDistribution:
    pairs = [pair for result in results for pair in zip(result.input_lens, result.output_lens, strict=False)]
    # A request that failed has no output.
    lengths = [prompt if is_prompt else output for prompt, output in pairs if output > 0]
    total = sum(result.total_input_tokens if is_prompt else result.total_output_tokens for result in results)
    mean = max(total / sum(result.completed for result in results), 1.0)
    if len(lengths) < 2 or min(lengths) == max(lengths):
        return LengthDistribution(mean=mean)
    upper = max(lengths)
    return LengthDistribution(mean=min(mean, float(upper)), std=float(np.std(lengths)), max=upper)
