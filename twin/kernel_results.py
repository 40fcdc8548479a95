"""What a step of the fast engine gives: tokens, gaps between them, finished requests (compiled).

The rules are those of twin/semantics.md, "Results of a step".
"""

from __future__ import annotations

import numpy as np

from twin.kernel_batch import end_steady, remove_running, serve_steady, start_leaving, start_steady
from twin.kernel_compile import compiled
from twin.kernel_state import (
    ADMISSION,
    ADMISSION_CLOSED_TO_QUEUE,
    ADMISSION_OPEN,
    CALENDAR_NEXT,
    COMPUTED,
    DECODES,
    FINISH_NS,
    FINISH_TOKENS,
    FINISHED_REQUESTS,
    FINISHED_TOKENS,
    FIRST_OTHER,
    FIRST_TOKEN_NS,
    LAST_TOKEN_NS,
    NEXT,
    NUM_STEADY,
    NUM_TOKENS,
    NUM_WAITING,
    REQUEST_ADAPTER,
    SET_CHANGED,
    STEADY_OF,
    STEP_SHARE,
    Array,
    Decodes,
    Settings,
)
from twin.replica import ADAPTER_BIN_FACTOR, GAP_DECADES, GAP_LOWEST_NS, NUM_GAP_BINS


@compiled
def gap_bin(gap_ns: int) -> int:
    """Return the bin of a gap between two tokens."""
    position = int(np.floor(np.log10(gap_ns / GAP_LOWEST_NS) * NUM_GAP_BINS / GAP_DECADES))
    return min(max(position, 0), NUM_GAP_BINS - 1)


@compiled
def _finish(s: Settings, requests: Array, adapters: Array, c: Array, r: int, end: int) -> None:
    """Let `r`, which is not steady any more, leave after its last token."""
    requests[r, FINISH_NS] = end
    c[FINISHED_REQUESTS] += 1
    c[FINISHED_TOKENS] += requests[r, NUM_TOKENS]
    if s.async_scheduling:
        start_leaving(s, requests, adapters, c, r)
    else:
        remove_running(s, requests, adapters, c, r)
    c[ADMISSION] = ADMISSION_CLOSED_TO_QUEUE if c[NUM_WAITING] == 0 else ADMISSION_OPEN
    if not s.load_in_set_order:
        # The first request of an adapter, which decides its place in the order of the batch, may have left.
        c[SET_CHANGED] = 1


@compiled
def _finish_steady(
    s: Settings, requests: Array, adapters: Array, decodes: Decodes, c: Array, day: int, end: int
) -> None:
    """Let the steady requests leave that got their last token in this step."""
    r = decodes.calendar[day]
    while r >= 0:
        following = requests[r, CALENDAR_NEXT]
        end_steady(s, requests, adapters, decodes, c, r, end)
        _finish(s, requests, adapters, c, r, end)
        r = following


@compiled
def _advance_others(
    s: Settings,
    requests: Array,
    adapters: Array,
    decodes: Decodes,
    gaps: Array,
    c: Array,
    now: int,
    end: int,
    step_bin: int,
) -> None:
    """Advance the requests that are not steady one by one; the first of them become steady if they sampled a token."""
    are_steady = True
    following = c[FIRST_OTHER]
    while following >= 0:
        r = following
        following = requests[r, NEXT]
        if s.keeps_steady_order and adapters[STEADY_OF, requests[r, REQUEST_ADAPTER]] == 0:
            # Its number of tokens, which may be another one in the next step, decides its adapter's place.
            c[SET_CHANGED] = 1
        requests[r, COMPUTED] += requests[r, STEP_SHARE]
        if requests[r, COMPUTED] < requests[r, NUM_TOKENS]:
            are_steady = False
            continue
        requests[r, NUM_TOKENS] += 1
        last = requests[r, LAST_TOKEN_NS]
        if last < 0:
            requests[r, FIRST_TOKEN_NS] = end
        else:
            position = step_bin if last == now else gap_bin(end - last)
            gaps[position] += 1
            if s.counts_adapter_gaps:
                decodes.adapter_gaps[requests[r, REQUEST_ADAPTER], position // ADAPTER_BIN_FACTOR] += 1
        requests[r, LAST_TOKEN_NS] = end
        if requests[r, NUM_TOKENS] >= requests[r, FINISH_TOKENS]:
            _finish(s, requests, adapters, c, r, end)
        elif are_steady:
            start_steady(s, requests, adapters, decodes, c)


@compiled
def apply_results(
    s: Settings,
    requests: Array,
    adapters: Array,
    decodes: Decodes,
    gaps: Array,
    c: Array,
    now: int,
    end: int,
    step_bin: int,
) -> None:
    """Advance the scheduled requests, sample tokens, let finished requests leave; `step_bin` is the step's own."""
    if c[NUM_STEADY] > 0:
        gaps[step_bin] += c[NUM_STEADY]
        serve_steady(s, decodes, c, step_bin // ADAPTER_BIN_FACTOR)
        day = c[DECODES] & (len(decodes.calendar) - 1)
        if decodes.calendar[day] >= 0:
            _finish_steady(s, requests, adapters, decodes, c, day, end)
    if c[FIRST_OTHER] >= 0:
        _advance_others(s, requests, adapters, decodes, gaps, c, now, end, step_bin)
