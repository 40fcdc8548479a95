"""Turn benchmarks' results into windows of known load: closed loops, and runs whose every request was written down.

Which requests decoded together is known of a detailed result: from each request's first token to its last. Each gap
between its tokens is a step that all of them shared. Of a closed loop (``--max-concurrency``) without details, the mean
is known: requests decode for (output tokens - 1) x time per token of the run's duration.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twin.calibration.bench_files import BenchResult
from twin.calibration.serving_settings import ServingSettings, expected_adapters
from twin.calibration.serving_windows import ServingWindow

SOURCE = "bench serve"
# A detailed result is cut into parts of this length: the load within one is nearly constant.
PART_S = 5.0
# Fewer tokens in a part, and chance decides their mean.
LEAST_TOKENS = 50
# A closed loop with fewer requests per place is mostly its beginning and end.
LEAST_ROUNDS = 3.0

EVEN_LOOP = "Requests of a closed loop are spread evenly: their number in a step is that of the run's mean."
CLIENT = "Time per output token is the client's, and as the engine's: nothing between them adds to it."
SHARED_ADAPTERS = "Adapters in a batch are as many as independent requests would have: results do not name them."
INDEPENDENT = "Prompts begin, and requests end, in steps that are independent of each other."
NO_CHUNKS = "No prompt was split into parts: `max_num_batched_tokens` is not given."

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Load:
    """What a part of a run held, as `ServingWindow` has it."""

    steps: float
    decode_tokens: float
    first_tokens: float
    prompt_tokens: float
    finished: float
    time_ms: float
    busy_share: float
    context_per_request: float
    in_flight: float


def closed_loop_windows(result: BenchResult, settings: ServingSettings, group: str) -> tuple[ServingWindow, ...] | str:
    """Return the one window of a closed loop, or why there is none."""
    assert result.max_concurrency is not None
    decoded = result.total_output_tokens - result.completed
    # Requests with short answers, which prompts interrupt most, count as much as long ones in a time per output token.
    gap_ms = result.mean_itl_ms or result.mean_tpot_ms
    if not gap_ms or decoded <= 0:
        return "no time per output token"
    places = min(result.max_concurrency, settings.engine.max_num_seqs) if _limits(settings) else result.max_concurrency
    if result.completed < LEAST_ROUNDS * places:
        return f"fewer than {LEAST_ROUNDS:g} requests per place of the closed loop"
    seconds = decoded * gap_ms / 1000.0
    decoding = min(max(seconds / result.duration, 1.0), float(places))
    load = _Load(
        steps=decoded / decoding,
        decode_tokens=float(decoded),
        first_tokens=float(result.completed),
        prompt_tokens=float(result.total_input_tokens),
        finished=float(result.completed),
        time_ms=gap_ms,
        # One request in so many places begins while no other decodes.
        busy_share=1.0 - 1.0 / places,
        context_per_request=(result.total_input_tokens + 0.5 * decoded) / result.completed,
        in_flight=float(result.max_concurrency),
    )
    # A prompt alone in its step is none of the steps that decode.
    lone = load.first_tokens * (1.0 - load.busy_share)
    return (_window(load, settings, group, lone),)


def detailed_windows(result: BenchResult, settings: ServingSettings, group: str) -> tuple[ServingWindow, ...] | str:
    """Return a window per part of a detailed result, or why there is none."""
    served = np.array([length > 1 for length in result.output_lens]) & (np.array(result.ttfts) > 0)
    served &= np.array([len(gaps) > 0 for gaps in result.itls])
    if not served.any():
        return "no request of two tokens or more"
    chosen = np.flatnonzero(served)
    outputs = np.array(result.output_lens, dtype=np.float64)[chosen]
    prompts = np.array(result.input_lens, dtype=np.float64)[chosen]
    sent_s = np.array(result.start_times)[chosen] - min(result.start_times)
    first_s = sent_s + np.array(result.ttfts)[chosen]
    tokens = _tokens([result.itls[index] for index in chosen.tolist()], first_s, outputs)
    last_s = first_s + np.array([sum(result.itls[index]) for index in chosen.tolist()])
    decoding = np.maximum(_num_at(tokens.middle_s, first_s, last_s), 1.0)
    part = (tokens.middle_s // PART_S).astype(np.int64)
    windows = []
    for number in np.unique(part).tolist():
        own = part == number
        if own.sum() < LEAST_TOKENS:
            continue
        begun = (first_s // PART_S).astype(np.int64) == number
        is_beside = _num_at(first_s[begun] - 1e-6, first_s, last_s) > 0
        weight = 1.0 / decoding[own]
        load = _Load(
            steps=float(weight.sum()),
            decode_tokens=float(own.sum()),
            first_tokens=float(is_beside.sum()),
            prompt_tokens=float(prompts[begun][is_beside].sum()),
            finished=float(((last_s // PART_S).astype(np.int64) == number).sum()),
            time_ms=1000.0 * float(tokens.gap_s[own].mean()),
            busy_share=1.0,
            context_per_request=float((prompts[tokens.request[own]] + tokens.number[own]).mean()),
            in_flight=float(np.average(_num_at(tokens.middle_s[own], sent_s, last_s), weights=weight)),
        )
        windows.append(_window(load, settings, group, 0.0))
    return tuple(windows) if windows else f"no {PART_S:g} seconds with {LEAST_TOKENS} tokens"


def assumptions(result: BenchResult, settings: ServingSettings) -> tuple[str, ...]:
    """Return what the windows of a result assume."""
    assumed = [INDEPENDENT, CLIENT]
    if not result.has_details:
        assumed.append(EVEN_LOOP)
    if settings.engine.num_slots and settings.shares:
        assumed.append(SHARED_ADAPTERS)
        if len(settings.shares) > settings.engine.num_slots:
            assumed.append(
                f"Loads of adapters are part of the step times: {len(settings.shares)} adapters share "
                f"{settings.engine.num_slots} slots."
            )
    if "max_num_batched_tokens" not in settings.given:
        assumed.append(NO_CHUNKS)
    return tuple(assumed)


@dataclass(frozen=True)
class _Tokens:
    """Output tokens but the first of each request: float64 or int64 [T] each."""

    request: NDArray[np.int64]
    number: Floats
    gap_s: Floats
    middle_s: Floats


def _tokens(gaps: list[tuple[float, ...]], first_s: Floats, outputs: Floats) -> _Tokens:
    """Return every token's gap; tokens that came in one chunk share its gap."""
    request, number, gap_s, middle_s = [], [], [], []
    for index, own in enumerate(gaps):
        ends = np.cumsum(own)
        count = int(outputs[index]) - 1
        # The end of each token, evenly between those of the chunks.
        chunk = np.arange(1, count + 1) * len(own) / count
        token_ends = np.interp(chunk, np.arange(len(own) + 1), np.concatenate([[0.0], ends]))
        token_gaps = np.diff(token_ends, prepend=0.0)
        request.append(np.full(count, index, dtype=np.int64))
        number.append(np.arange(1, count + 1, dtype=np.float64))
        gap_s.append(token_gaps)
        middle_s.append(first_s[index] + token_ends - 0.5 * token_gaps)
    return _Tokens(*(np.concatenate(part) for part in (request, number, gap_s, middle_s)))


def _num_at(times_s: Floats, start_s: Floats, end_s: Floats) -> Floats:
    """Return float64 [times], how many of the intervals [start, end) hold each time."""
    started = np.searchsorted(np.sort(start_s), times_s, side="right")
    ended = np.searchsorted(np.sort(end_s), times_s, side="right")
    return (started - ended).astype(np.float64)


def _window(load: _Load, settings: ServingSettings, group: str, lone_prompts: float) -> ServingWindow:
    engine, slots = settings.engine, settings.engine.num_slots
    decoding = load.decode_tokens / load.steps
    adapters = min(expected_adapters(settings.shares, decoding), slots) if slots else 0.0
    limit = engine.max_num_seqs if _limits(settings) else load.in_flight
    return ServingWindow(
        source=SOURCE,
        group=group,
        steps=load.steps + lone_prompts,
        decode_tokens=load.decode_tokens,
        first_tokens=load.first_tokens,
        prompt_tokens=load.prompt_tokens,
        finished=load.finished,
        time_ms=load.time_ms,
        is_token_mean=True,
        busy_share=load.busy_share,
        context_per_request=load.context_per_request,
        waiting=max(load.in_flight - limit, 0.0),
        adapters=adapters,
        slots=slots,
        max_rank=engine.max_lora_rank if slots else 0,
        cached_adapters=float(min(len(settings.shares), engine.cpu_capacity)) if slots else 0.0,
        max_num_batched_tokens=engine.max_num_batched_tokens if "max_num_batched_tokens" in settings.given else None,
    )


def _limits(settings: ServingSettings) -> bool:
    return "max_num_seqs" in settings.given
