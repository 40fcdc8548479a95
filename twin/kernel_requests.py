"""The fast engine's table of requests: how it is filled before a run, and what is read from it afterwards (compiled).

A row of the table is two cache lines, and a run has tens of thousands of rows: all columns are written, and read, in
one pass over them.
"""

from __future__ import annotations

import numpy as np

from twin.kernel_compile import compiled
from twin.kernel_state import (
    COMPUTED,
    FINISH_NS,
    FINISH_TOKENS,
    FIRST_SCHEDULED_NS,
    FIRST_TOKEN_NS,
    LAST_TOKEN_NS,
    NEXT,
    NUM_TOKENS,
    PREEMPTIONS,
    PROMPT,
    REQUEST_ADAPTER,
    RUNNING_HEAD,
    Settings,
    State,
)


@compiled
def fill_requests(s: Settings, state: State) -> None:
    """Write the table of requests that have not arrived yet."""
    requests, asked, base_model = state.requests, state.asked, state.adapters.shape[1] - 1
    for r in range(np.uint64(len(requests))):
        row = requests[r]
        row[:] = -1
        adapter = np.int64(asked.adapter[r])
        row[REQUEST_ADAPTER] = adapter if adapter >= 0 else base_model
        prompt = np.int64(asked.prompt_tokens[r])
        row[PROMPT] = prompt
        row[NUM_TOKENS] = prompt
        row[FINISH_TOKENS] = min(prompt + np.int64(asked.output_tokens[r]), np.int64(s.max_model_len))
        row[COMPUTED] = 0
        row[PREEMPTIONS] = 0


@compiled
def read_requests(state: State) -> None:
    """Write what became of the requests into the outcome.

    Gaps telescope: their sum over a request is its last minus its first token, preempted or not.
    """
    requests, outcome = state.requests, state.outcome
    for r in range(np.uint64(len(requests))):
        row = requests[r]
        first_token_ns = row[FIRST_TOKEN_NS]
        generated = row[NUM_TOKENS] - row[PROMPT]
        outcome.first_scheduled_ns[r] = row[FIRST_SCHEDULED_NS]
        outcome.first_token_ns[r] = first_token_ns
        outcome.finish_ns[r] = row[FINISH_NS]
        outcome.generated_tokens[r] = generated
        outcome.preemptions[r] = row[PREEMPTIONS]
        if generated > 1:
            a = row[REQUEST_ADAPTER]
            outcome.gap_sum_ns[a] += row[LAST_TOKEN_NS] - first_token_ns
            outcome.gap_count[a] += generated - 1
    r = state.counters[RUNNING_HEAD]
    while r >= 0:
        outcome.is_running[r] = True
        r = requests[r, NEXT]
