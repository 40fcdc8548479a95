"""What a measurement amounts to: counts, throughput, latencies, and how punctual the client was."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from twin.latency_summary import LatencySummary
from twin.measurement.manifest import Lateness, MeasurementSummary, Segment
from twin.measurement.records import FAILURES, LOST, OK, UNFINISHED
from twin.measurement.tables import read_table
from twin.workload import NANOSECONDS, RequestTable

# Requests of the schedule that no segment has sent.
UNSENT = "unsent"
# From here on, what a client measured is partly its own: as late as this, or as busy.
LATE_S = 0.05
SATURATED_SHARE = 0.9
# From here on, prompts are others than the workload's.
MISCOUNTED_SHARE = 0.01


def summarise(
    folder: Path, schedule: RequestTable, segments: Iterable[Segment], horizon_s: float
) -> MeasurementSummary:
    """Return the summary of the tables in a folder (InputError if one cannot be read)."""
    requests, steps, client = (read_table(folder, table) for table in ("requests", "steps", "client"))
    last = requests.drop_duplicates("request", keep="last")
    windows = [(segment.start_s, _measured_until_s(segment, horizon_s)) for segment in segments]
    measured_s = float(sum(max(end - start, 0.0) for start, end in windows))
    unsent = len(schedule) - len(last)
    counts = {str(status): int(count) for status, count in last["status"].value_counts().items()}
    failed = requests[requests["status"].isin(FAILURES)]
    finished = last[last["status"] == OK]
    has_steps = len(steps) > 0
    return MeasurementSummary(
        measured_s=round(measured_s, 6),
        requests=dict(sorted(({**counts, UNSENT: unsent} if unsent else counts).items())),
        failures=_failures(failed),
        offered_tps=_rate(_tokens_arrived(schedule, windows), measured_s),
        throughput_tps=_rate(_tokens_finished(finished, horizon_s), measured_s),
        ttft=_latency(finished["ttft_s"].to_numpy(dtype=np.float64)),
        itl=_latency(_flat(finished["itl_s"])),
        lateness=_lateness(requests, client) if len(client) else None,
        num_steps=len(steps) if has_steps else None,
        busy_s=round(float(steps["duration_ms"].sum()) / 1000.0, 6) if has_steps else None,
        num_preemptions=int(steps["preemptions"].sum()) if has_steps else None,
        gpu_loads=int(steps["gpu_loads"].sum()) if has_steps else None,
        disk_loads=int(steps["disk_loads"].sum()) if has_steps else None,
    )


def summary_warnings(summary: MeasurementSummary, folder: Path) -> list[str]:
    """Return what a reader of the numbers should know about them."""
    warnings = []
    num_failed = sum(summary.failures.values())
    if num_failed:
        reasons = ", ".join(f"{count} x {what}" for what, count in summary.failures.items())
        warnings.append(f"{num_failed} {'attempt' if num_failed == 1 else 'attempts'} failed: {reasons}")
    cut_off = {status: count for status, count in summary.requests.items() if status in {UNFINISHED, LOST}}
    if cut_off:
        counts = ", ".join(f"{count} {status}" for status, count in cut_off.items())
        warnings.append(f"{sum(cut_off.values())} requests have no outcome and are not sent again: {counts}")
    lateness = summary.lateness
    if lateness is not None and max(lateness.p99_s or 0.0, lateness.timer_max_s or 0.0) > LATE_S:
        warnings.append(
            f"the client was late: it sent up to {lateness.max_s or 0.0:.3f} s after the due time, and its timer was "
            f"up to {lateness.timer_max_s or 0.0:.3f} s late; latencies are as uncertain as that"
        )
    client = read_table(folder, "client")
    if len(client) and float(client["cpu_share"].quantile(0.9)) > SATURATED_SHARE:
        warnings.append("the client's processor was saturated: a slower schedule or a faster client is needed")
    metrics = read_table(folder, "metrics")
    pages = metrics[["segment", "time_s"]].drop_duplicates()
    bad = metrics[metrics["error"].notna()][["segment", "time_s", "error"]]
    if len(bad):
        times = len(bad[["segment", "time_s"]].drop_duplicates())
        warnings.append(f"{times} of {len(pages)} pages of metrics could not be had or read: {bad['error'].iloc[0]}")
    return warnings + _token_warnings(read_table(folder, "requests"))


def served_any(summary: MeasurementSummary) -> bool:
    """Return whether a request was served, or none was sent."""
    return OK in summary.requests or not summary.requests.keys() - {UNSENT}


def nothing_served(summary: MeasurementSummary) -> list[str]:
    """Return that no request was served, if some were sent."""
    if served_any(summary):
        return []
    sent = {status: count for status, count in summary.requests.items() if status != UNSENT}
    counts = ", ".join(f"{count} {status}" for status, count in sent.items())
    warning = (
        f"NO REQUEST WAS SERVED: of {sum(sent.values())} that were sent, {counts}. Nothing here says how fast the "
        "server is; look at `error` in requests.parquet, remove the cause, and measure again"
    )
    return [warning]


def _token_warnings(requests: pd.DataFrame) -> list[str]:
    """Return what is odd about the tokens that were received."""
    warnings = []
    mismatched = int((requests["counting"] == "mismatch").sum())
    if mismatched:
        warnings.append(
            f"{mismatched} requests got several tokens in a chunk and the server did not say how many: there are no "
            "times between tokens for them"
        )
    assumed = int((requests["counting"] == "assumed").sum())
    if assumed:
        warnings.append(
            f"the server did not say how many tokens {assumed} requests got: each of their chunks counts as one"
        )
    finished = requests[requests["status"] == OK]
    counted = finished[finished["counted_prompt_tokens"].notna()]
    sent, received = (int(counted[name].sum()) for name in ("prompt_tokens", "counted_prompt_tokens"))
    if abs(received - sent) > MISCOUNTED_SHARE * sent:
        warnings.append(
            f"the server counted {received / sent:.2f} times the prompt tokens that were meant: loads and throughputs "
            "count what was meant"
        )
    short = int((finished["generated_tokens"] < finished["output_tokens"]).sum())
    if short:
        warnings.append(
            f"{short} of {len(finished)} answers are shorter than asked for: less was asked of the server than the "
            "offered load says"
        )
    return warnings


def _failures(failed: pd.DataFrame) -> dict[str, int]:
    what = [
        status if np.isnan(code) else f"{status} (HTTP {int(code)})"
        for status, code in zip(failed["status"], failed["http_status"].astype("float64"), strict=True)
    ]
    counts = pd.Series(what, dtype="object").value_counts()
    return {str(name): int(count) for name, count in counts.items()}


def _measured_until_s(segment: Segment, horizon_s: float) -> float:
    if segment.status == "complete":
        # It may end before, when nothing more arrives until the horizon: that time counts, as it does in the twin.
        return horizon_s
    return min(segment.start_s if segment.end_s is None else segment.end_s, horizon_s)


def _tokens_arrived(schedule: RequestTable, windows: list[tuple[float, float]]) -> int:
    arrival_s = schedule.arrival_ns / NANOSECONDS
    is_in = np.zeros(len(schedule), dtype=np.bool_)
    for start, end in windows:
        is_in |= (arrival_s >= start) & (arrival_s < end)
    return int(schedule.prompt_tokens[is_in].sum(dtype=np.int64) + schedule.output_tokens[is_in].sum(dtype=np.int64))


def _tokens_finished(finished: pd.DataFrame, horizon_s: float) -> int:
    in_time = finished[finished["finish_s"] <= horizon_s]
    return int(in_time["prompt_tokens"].sum() + in_time["generated_tokens"].sum())


def _rate(tokens: int, seconds: float) -> float:
    return round(tokens / seconds, 6) if seconds > 0 else 0.0


def _flat(lists: pd.Series) -> NDArray[np.float64]:
    arrays = [np.asarray(values, dtype=np.float64) for values in lists if values is not None]
    return np.concatenate(arrays) if arrays else np.empty(0)


def _latency(values_s: NDArray[np.float64]) -> LatencySummary:
    known = values_s[np.isfinite(values_s)]
    if len(known) == 0:
        return LatencySummary()
    p50, p95, p99 = np.percentile(known, [50, 95, 99])
    return LatencySummary(
        mean_s=round(float(known.mean()), 9), p50_s=round(p50, 9), p95_s=round(p95, 9), p99_s=round(p99, 9)
    )


def _lateness(requests: pd.DataFrame, client: pd.DataFrame) -> Lateness:
    first = requests[requests["attempt"] == 0]
    late = (first["sent_s"] - first["arrival_s"]).to_numpy(dtype=np.float64)
    late = late[np.isfinite(late)]
    timer_max_s = float(client["lag_s"].max())
    if len(late) == 0:
        return Lateness(timer_max_s=timer_max_s)
    p50, p99 = np.percentile(late, [50, 99])
    return Lateness(
        p50_s=round(p50, 9), p99_s=round(p99, 9), max_s=round(float(late.max()), 9), timer_max_s=timer_max_s
    )
