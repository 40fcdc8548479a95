"""Stretches of serving of which counts and a mean step time are known, and the kinds of steps that they hold.

A window is what two scrapes of a server's metrics, or a benchmark's result, say. Its totals (steps, decoded tokens,
prompts, prompt tokens) are counted; which of them were in one step is not. `window_observations` lays them out as kinds
of steps:

- Prompts begin independently of each other, so that their number in a step is Poisson distributed.
- Decodes beside a prompt are as many as elsewhere. A prompt beyond the token budget takes several steps.
- Requests end independently, too: a step after one that ended a request, or had a prompt, is a changed batch.
- Context, adapters and queue are the window's means in all of its steps.

A mean inter-token latency weighs each step by its decodes, and so are the kinds then.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from twin.calibration.observations import StepObservations
from twin.calibration.step_table import no_steps, observations_of, regime_names

# Windows are alike, and become one measurement, where what was counted agrees in steps of the first factor, and what
# was seen at single times in steps of the second: chance moves that more, and its mean over windows moves less.
COUNTED_FACTOR = 1.2
SAMPLED_FACTOR = 1.5
# Steps with more prompts than this count as having this many.
MOST_PROMPTS = 8
# A kind with a smaller share of its measurement is left out.
LEAST_SHARE = 1e-4
# Classes of requests per step, for error tables.
REQUEST_CLASSES = ((8.0, "up to 8 requests"), (64.0, "9 to 64 requests"), (math.inf, "more than 64 requests"))

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ServingWindow:
    """A stretch of serving under one kind of load.

    Attributes
    ----------
    source
        How it was measured, for error tables.
    group
        Windows of one group are not independent of each other.
    steps
        Steps that gave a token, > 0.
    decode_tokens
        Output tokens but the first of each request, > 0.
    first_tokens
        Requests whose prompt was done.
    prompt_tokens
        Prompt tokens that were computed for them.
    finished
        Requests that ended.
    time_ms
        Mean time of a step, > 0.
    is_token_mean
        Each step counts as often as it decodes (inter-token latency); else once.
    busy_share
        Share of the prompts that other requests were decoding beside, in [0, 1].
    context_per_request
        Tokens in the KV cache per decoding request.
    waiting, adapters, cached_adapters
        Requests in the queue, distinct adapters in the batch, adapters in the CPU cache.
    slots, max_rank
        `max_loras` and `max_lora_rank`; 0 without LoRA.
    max_num_batched_tokens
        Token budget of a step; ``None``: unknown, no prompt was split.
    """

    source: str
    group: str
    steps: float
    decode_tokens: float
    first_tokens: float
    prompt_tokens: float
    finished: float
    time_ms: float
    is_token_mean: bool
    busy_share: float
    context_per_request: float
    waiting: float
    adapters: float
    slots: int
    max_rank: int
    cached_adapters: float
    max_num_batched_tokens: int | None = None

    @property
    def is_sound(self) -> bool:
        """Whether every number is finite and not negative, as damaged samples do not make them."""
        counts = (self.steps, self.decode_tokens, self.first_tokens, self.prompt_tokens, self.finished, self.time_ms)
        levels = (self.busy_share, self.context_per_request, self.waiting, self.adapters, self.cached_adapters)
        return self.steps > 0 and all(0.0 <= value < math.inf for value in (*counts, *levels, self.decodes_per_step))

    @property
    def decodes_per_step(self) -> float:
        """Decodes of the steps that decode at all."""
        return self.decode_tokens / max(self.steps - self.lone_prompts, 1e-9)

    @property
    def lone_prompts(self) -> float:
        """Steps that hold a prompt and nothing else."""
        return min(self.first_tokens * (1.0 - self.busy_share), 0.99 * self.steps)


@dataclass(frozen=True)
class _Kind:
    """Steps alike: how many, what is in one of them, and how many of its tokens are decodes."""

    count: float
    tokens: float
    requests: float
    decodes: float
    prompt_context: float
    has_prefill: bool


def merge_alike(windows: Iterable[ServingWindow]) -> tuple[ServingWindow, ...]:
    """Return one window for all that are alike: hours of the same load say no more than minutes of it."""
    alike: dict[tuple[object, ...], list[ServingWindow]] = defaultdict(list)
    for window in windows:
        alike[_likeness(window)].append(window)
    return tuple(_merged(group) for group in alike.values())


def window_observations(windows: Sequence[ServingWindow]) -> StepObservations:
    """Return a measurement per window: its kinds of steps, whose mean time is the window's."""
    if not windows:
        return no_steps()
    frames = [_window_frame(window) for window in windows]
    frame = pd.concat(frames, ignore_index=True)
    measurement = np.repeat(np.arange(len(frames), dtype=np.int64), [len(part) for part in frames])
    return observations_of(frame, measurement)


def _window_frame(window: ServingWindow) -> pd.DataFrame:
    kinds = _kinds(window)
    weight = np.array([kind.count * (kind.decodes if window.is_token_mean else 1.0) for kind in kinds])
    kept = weight > LEAST_SHARE * weight.sum()
    chosen = [kind for kind, is_kept in zip(kinds, kept.tolist(), strict=True) if is_kept]
    prefill = np.array([float(kind.has_prefill) for kind in chosen])
    prefill_share = sum(kind.count for kind in kinds if kind.has_prefill) / max(window.steps, 1e-9)
    changed = 1.0 - (1.0 - min(prefill_share, 1.0)) * math.exp(-window.finished / window.steps)
    requests = np.array([kind.requests for kind in chosen])
    frame = pd.DataFrame(
        {
            "tokens": [kind.tokens for kind in chosen],
            "requests": requests,
            "context_tokens": [kind.decodes * window.context_per_request + kind.prompt_context for kind in chosen],
            "adapters": np.minimum(window.adapters, requests) if window.slots else 0.0,
            "prefill": prefill,
            "changed": np.maximum(prefill, changed),
            "waiting": window.waiting,
            "slots": window.slots,
            "max_rank": window.max_rank if window.slots else 0,
            "cached_adapters": window.cached_adapters,
            "time_ms": window.time_ms,
            "weight": weight[kept],
            "group": window.group,
        }
    )
    lora = regime_names(frame)[0].partition(", ")[2]
    load = next(name for most, name in REQUEST_CLASSES if window.decodes_per_step <= most)
    return frame.assign(regime=f"{window.source}, {lora}, {load}")


def _kinds(window: ServingWindow) -> list[_Kind]:
    """Return steps by their number of prompts, all prompts of the mean length; a prompt alone is a kind of its own."""
    decodes = window.decodes_per_step
    prompt = window.prompt_tokens / max(window.first_tokens, 1e-9)
    budget = math.inf if window.max_num_batched_tokens is None else window.max_num_batched_tokens
    room = max(budget - decodes, 1.0)
    # In so many steps the token budget lets a prompt be computed.
    chunks = max(1.0, prompt / room)

    def kind(count: float, decodes: float, number: float) -> _Kind:
        scheduled = min(number * prompt / chunks, room)
        context = 0.5 * (chunks - 1.0) * scheduled
        return _Kind(count, decodes + scheduled, decodes + number, decodes, context, has_prefill=number > 0)

    steps = window.steps - window.lone_prompts
    shares = _poisson_shares(window.first_tokens * window.busy_share * chunks / steps)
    kinds = [kind(steps * share, decodes, number) for number, share in enumerate(shares)]
    kinds.append(kind(window.lone_prompts * chunks, 0.0, 1.0))
    return [one for one in kinds if one.count > 0]


def _poisson_shares(mean: float) -> list[float]:
    """Return the probabilities of 0 to `MOST_PROMPTS`, the last one with all that is left."""
    shares = [math.exp(-mean) * mean**number / math.factorial(number) for number in range(MOST_PROMPTS)]
    return [*shares, max(1.0 - sum(shares), 0.0)]


def _likeness(window: ServingWindow) -> tuple[object, ...]:
    """Return what windows have in common that are alike."""
    prompt = window.prompt_tokens / window.first_tokens if window.first_tokens else 0.0
    return (
        *(window.source, window.is_token_mean, window.slots, window.max_rank, window.max_num_batched_tokens),
        *(window.cached_adapters, window.adapters == window.slots),
        *(_level(value, COUNTED_FACTOR) for value in (window.decodes_per_step, prompt)),
        # Shares, on a scale whose smallest step is a few percent.
        *(_level(4.0 * share, COUNTED_FACTOR) for share in (window.first_tokens / window.steps, window.busy_share)),
        *(_level(value, SAMPLED_FACTOR) for value in (window.context_per_request, window.waiting, window.adapters)),
    )


def _level(value: float, factor: float) -> int:
    return round(math.log1p(value) / math.log(factor))


def _merged(windows: Sequence[ServingWindow]) -> ServingWindow:
    if len(windows) == 1:
        return windows[0]
    steps = np.array([window.steps for window in windows])
    decoded = np.array([window.decode_tokens for window in windows])
    counted = decoded if windows[0].is_token_mean else steps

    def total(name: str) -> float:
        return float(sum(getattr(window, name) for window in windows))

    def mean(name: str, weight: Floats) -> float:
        return float(np.average([getattr(window, name) for window in windows], weights=weight))

    return replace(
        windows[0],
        steps=total("steps"),
        decode_tokens=total("decode_tokens"),
        first_tokens=total("first_tokens"),
        prompt_tokens=total("prompt_tokens"),
        finished=total("finished"),
        time_ms=mean("time_ms", counted),
        busy_share=mean("busy_share", steps),
        context_per_request=mean("context_per_request", decoded),
        waiting=mean("waiting", steps),
        # All slots, or the mean of what is between.
        adapters=windows[0].adapters if windows[0].adapters == windows[0].slots else mean("adapters", steps),
    )
