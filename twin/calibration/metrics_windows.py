"""Which mean step times successive scrapes of a server's metrics give.

Between two scrapes the counters give the steps, the decoded tokens, the prompts and their tokens, and the sum of the
gaps between tokens: the mean inter-token latency is the mean time of a step, each counted as often as it decodes. It
holds however long the server was idle. Without it, the steps share the time between the scrapes, which is only theirs
if the server was never idle. Context, queue and adapters are known at the scrapes only; their mean at the ends at which
requests ran stands for the window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from twin.calibration.metrics_series import EngineSeries, column, counter_columns
from twin.calibration.serving_settings import ServingSettings, expected_adapters
from twin.calibration.serving_windows import ServingWindow
from twin.errors import InputError

# Windows that are this many times as long as usual have scrapes missing.
LONGEST_GAP = 2.5
# Fewer steps, or fewer tokens after the first, and chance decides the mean.
LEAST_STEPS = 20
# Steps that take this many times the window in all are not steps of one engine.
MOST_BUSY = 1.3
SOURCE = "server metrics"
# Windows in a row that are not independent of each other.
GROUP_WINDOWS = 20

RESTART = "across a restart of the server"
GAP = "scrapes missing in them"
NO_VALUE = "a metric missing at one of the scrapes"
IDLE = "no request running when it was scraped"
PREEMPTED = "requests preempted: what is computed again is not counted"
SPECULATIVE = "speculative decoding: several tokens a step"
FEW_STEPS = f"fewer than {LEAST_STEPS} steps or decoded tokens"
TOO_BUSY = "more steps counted than one engine can have made: several API servers count each step"

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass
class MetricsReading:
    """What the scrapes of some engines give.

    Attributes
    ----------
    num_windows
        Between successive scrapes.
    dropped
        Windows that are not used, by reason.
    assumed
        What had to be assumed, each once.
    """

    num_windows: int = 0
    windows: list[ServingWindow] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    assumed: dict[str, None] = field(default_factory=dict)

    def assume(self, sentence: str) -> None:
        """Note an assumption."""
        self.assumed[sentence] = None


@dataclass(frozen=True)
class _Lora:
    """Slots, their rank, the CPU cache, and the distinct adapters of the batch at each scrape."""

    slots: int
    max_rank: int
    cached: float
    adapters: Floats


def read_windows(series: Sequence[EngineSeries], settings: ServingSettings) -> MetricsReading:
    """Return the usable windows of all engines, and why the others are not.

    Raises
    ------
    InputError
        When the server has LoRA and a setting that metrics do not tell is not given.
    """
    reading = MetricsReading()
    for engine in series:
        _read_engine(engine, settings, reading)
    return reading


def _read_engine(series: EngineSeries, settings: ServingSettings, reading: MetricsReading) -> None:
    series = _without_repeats(series)
    frame = series.frame
    if len(frame) < 2:
        return
    delta = {name: np.diff(column(frame, name)) for name in ["time_s", *counter_columns(frame)]}
    has_gaps = "gap_s" in delta and "gaps" in delta
    time_ms, is_kept = _step_times(series, delta, reading, has_gaps=has_gaps)
    if not is_kept.any():
        return
    _assume_times(reading, has_gaps=has_gaps)
    prompt_tokens = _computed_prompts(delta, reading)
    lora = _lora(series, settings, reading, delta["generated"] / np.maximum(delta["steps"], 1.0))
    context = _context_per_request(series, delta, is_kept, settings, reading)
    budget = settings.engine.max_num_batched_tokens if "max_num_batched_tokens" in settings.given else None
    if budget is None:
        reading.assume("No prompt was split into parts: `max_num_batched_tokens` is not given.")
    finished = delta.get("finished", delta["first_tokens"])
    waiting, running = column(frame, "waiting", 0.0), column(frame, "running")
    for index in np.flatnonzero(is_kept).tolist():
        ends = slice(index, index + 2)
        seconds = float(delta["time_s"][index])
        busy = float(delta["steps"][index]) * float(time_ms[index]) / 1000.0 / seconds if has_gaps else 1.0
        is_busy = (running[ends] > 0).astype(np.float64)
        adapters = lora.adapters[ends]
        window = ServingWindow(
            source=SOURCE,
            group=f"{series.name} {index // GROUP_WINDOWS}",
            steps=float(delta["steps"][index]),
            decode_tokens=float(delta["generated"][index] - delta["first_tokens"][index]),
            first_tokens=float(delta["first_tokens"][index]),
            prompt_tokens=float(prompt_tokens[index]),
            finished=float(finished[index]),
            time_ms=float(time_ms[index]),
            is_token_mean=has_gaps,
            busy_share=min(busy, 1.0),
            context_per_request=float(context[index]),
            waiting=float(np.average(waiting[ends], weights=is_busy)),
            adapters=float(np.average(adapters, weights=is_busy)),
            slots=lora.slots,
            max_rank=lora.max_rank,
            cached_adapters=max(lora.cached, float(adapters.max())),
            max_num_batched_tokens=budget,
        )
        if window.is_sound:
            reading.windows.append(window)
        else:
            reading.dropped[NO_VALUE] = reading.dropped.get(NO_VALUE, 0) + 1


def _without_repeats(series: EngineSeries) -> EngineSeries:
    """Return the series without scrapes that repeat the one before while requests run.

    A range query asks at its own times, and gets the sample before.
    """
    frame = series.frame
    values = frame[counter_columns(frame)].to_numpy(dtype=np.float64)
    is_repeat = np.zeros(len(frame), dtype=np.bool_)
    is_repeat[1:] = (values[1:] == values[:-1]).all(axis=1) & (column(frame, "running")[1:] > 0)
    return replace(series, frame=frame[~is_repeat].reset_index(drop=True))


def _step_times(
    series: EngineSeries, delta: dict[str, Floats], reading: MetricsReading, *, has_gaps: bool
) -> tuple[Floats, Flags]:
    """Return the mean step time of each window in ms, and which windows are used; count those that are not."""
    frame = series.frame
    seconds = delta["time_s"]
    counters = [delta[name] for name in counter_columns(frame)]
    started = np.diff(column(frame, "started_s", 0.0))
    running = column(frame, "running")
    decoded = delta["generated"] - delta["first_tokens"]
    with np.errstate(all="ignore"):
        time_ms = 1000.0 * (delta["gap_s"] / delta["gaps"] if has_gaps else seconds / delta["steps"])
        busy = delta["steps"] * time_ms / 1000.0 / seconds
    needed = [delta[name] for name in ("steps", "generated", "first_tokens", "prompt_tokens")]
    needed += [running[:-1], running[1:], *([delta["gap_s"], delta["gaps"]] if has_gaps else [])]
    if "adapters" in frame:
        needed += [column(frame, "adapters")[:-1], column(frame, "adapters")[1:]]
    waiting = column(frame, "waiting", 0.0)
    needed += [np.where(values >= 0, values, np.nan) for values in (waiting[:-1], waiting[1:])]
    slots = np.diff(column(frame, "max_loras", 0.0))
    is_idle = running <= 0
    # Idle time is no step time, but gaps between tokens have none of it.
    idle = is_idle[:-1] & is_idle[1:] if has_gaps else is_idle[:-1] | is_idle[1:]
    reasons: list[tuple[str, Flags]] = [
        (RESTART, np.any([values < 0 for values in counters], axis=0) | (started > 0) | (np.abs(slots) > 0)),
        (GAP, seconds > LONGEST_GAP * np.median(seconds)),
        (NO_VALUE, np.any([~np.isfinite(values) for values in needed], axis=0)),
        (IDLE, idle),
        (PREEMPTED, delta.get("preemptions", np.zeros_like(seconds)) > 0),
        (SPECULATIVE, delta.get("drafts", np.zeros_like(seconds)) > 0),
        (FEW_STEPS, ~((delta["steps"] >= LEAST_STEPS) & (decoded >= LEAST_STEPS) & (time_ms > 0))),
        (TOO_BUSY, busy > MOST_BUSY),
    ]
    is_kept = np.ones(len(seconds), dtype=np.bool_)
    for reason, applies in reasons:
        count = int((is_kept & applies).sum())
        if count:
            reading.dropped[reason] = reading.dropped.get(reason, 0) + count
        is_kept &= ~applies
    reading.num_windows += len(seconds)
    return time_ms, is_kept


def _assume_times(reading: MetricsReading, *, has_gaps: bool) -> None:
    reading.assume("Prompts begin, and requests end, in steps that are independent of each other.")
    reading.assume("Context, queue and adapters of a window are the means of what its busy scrapes show.")
    if not has_gaps:
        reading.assume(
            "The server was never idle between two scrapes at which requests ran: inter-token latencies are not there."
        )


def _computed_prompts(delta: dict[str, Floats], reading: MetricsReading) -> Floats:
    """Return the prompt tokens that the engine computed itself, per window."""
    if "computed_prompt_tokens" in delta:
        return delta["computed_prompt_tokens"]
    cached = delta.get("cached_prompt_tokens")
    if cached is not None and (cached > 0).any():
        reading.assume("Prompt tokens found in the prefix cache were not computed; all others were.")
        return np.maximum(delta["prompt_tokens"] - cached, delta["first_tokens"])
    return delta["prompt_tokens"]


def _context_per_request(
    series: EngineSeries, delta: dict[str, Floats], is_kept: Flags, settings: ServingSettings, reading: MetricsReading
) -> Floats:
    """Return the KV tokens of a running request, per window."""
    frame = series.frame
    running = column(frame, "running")
    blocks = column(frame, "num_gpu_blocks")
    size = column(frame, "block_size", float(settings.engine.block_size))
    # One block is never used (vllm/v1/core/block_pool.py), and the last one of a request is half full.
    used = column(frame, "kv_usage") * (blocks - 1.0) * size - 0.5 * (size - 1.0) * running
    pair: Callable[[Floats], Floats] = lambda values: values[:-1] + values[1:]  # noqa: E731
    with np.errstate(all="ignore"):
        context = pair(np.maximum(used, 0.0)) / pair(running)
        guess = delta["prompt_tokens"] / delta["first_tokens"] + 0.5 * (delta["generated"] / delta["first_tokens"])
    is_missing = ~np.isfinite(context)
    if (is_missing & is_kept).any():
        if not np.isfinite(guess[is_missing & is_kept]).all():
            raise InputError(
                f"the context of running requests must be known. {series.name} has neither vllm:kv_cache_usage_perc "
                "with vllm:cache_config_info, nor prompts that ended in each window.",
                field="vllm:kv_cache_usage_perc",
                hint="ask for both metrics",
            )
        reading.assume(
            "A running request holds its prompt and half of its answer, by the means of each window: "
            "vllm:kv_cache_usage_perc with vllm:cache_config_info is not there."
        )
    if "cached_prompt_tokens" in delta and (delta["cached_prompt_tokens"][is_kept] > 0).any():
        reading.assume("Requests that share KV blocks by the prefix cache read each block once.")
    return np.where(is_missing, guess, context)


def _lora(series: EngineSeries, settings: ServingSettings, reading: MetricsReading, requests: Floats) -> _Lora:
    """Return slots and adapters; `requests` are those per step of each window."""
    frame = series.frame
    nothing = np.zeros(len(frame))
    is_told = "max_loras" in frame
    if series.shares_lora_info and not settings.has_no_lora:
        settings.require("max_loras", why="several engines share one vllm:lora_requests_info")
    if settings.has_no_lora or not (is_told or "max_loras" in settings.given):
        if is_told or not settings.has_no_lora:
            reading.assume("The server has no LoRA: there is no vllm:lora_requests_info, and no `max_loras` is given.")
        return _Lora(0, 0, 0.0, nothing)
    settings.require("max_lora_rank", why="the server has LoRA and metrics do not tell the rank of its slots")
    slots = int(np.nanmax(column(frame, "max_loras"))) if is_told else settings.engine.max_loras
    if is_told:
        adapters = np.minimum(np.minimum(column(frame, "adapters"), slots), column(frame, "running"))
        if (column(frame, "is_running_told", 1.0) == 0).any():
            reading.assume(
                "Where requests wait, all adapters with requests are in the batch, up to `max_loras`: "
                "vllm:lora_requests_info does not tell running from waiting ones."
            )
    elif settings.shares:
        per_scrape = np.concatenate([requests, requests[-1:]])
        adapters = np.array([min(expected_adapters(settings.shares, count), slots) for count in per_scrape.tolist()])
        reading.assume("Adapters in a batch are as many as independent requests would have: see `adapters` given.")
    else:
        raise InputError(
            f"the adapters of a server with LoRA must be known. {series.name} has no vllm:lora_requests_info, and "
            "no `adapters` are given.",
            field="adapters",
            hint="ask for that metric, or give `adapters` by --settings",
        )
    served = len(series.adapter_names) or len(settings.shares)
    if served > slots:
        reading.assume(
            f"Loads of adapters are part of the step times: {served} adapters share {slots} slots ({series.name})."
        )
    return _Lora(slots, settings.engine.max_lora_rank, _cached(served, slots, settings, reading), adapters)


def _cached(served: int, slots: int, settings: ServingSettings, reading: MetricsReading) -> float:
    """Return how many adapters the CPU cache holds."""
    if settings.engine.max_cpu_loras is not None:
        return float(min(served, settings.engine.max_cpu_loras))
    reading.assume("`max_cpu_loras` is `max_loras`, vLLM's default; the CPU cache holds adapters that had requests.")
    return float(min(served, slots))
