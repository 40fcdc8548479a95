"""What the steps of a closed-loop benchmark hold: equal requests that all wait from the start, so that counting tells.

Which tokens are scheduled together does not depend on how long steps take. A step gives one token to every request that
is still generating; what is left of its tokens is prefill of the next requests in the queue.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

# vLLM's token budget of one step in every benchmark.
TOKENS_PER_STEP = 2048


def reconstruct_closed_loop(
    tokens: NDArray[np.int64], *, prompt_tokens: int, output_tokens: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]] | None:
    """Return (requests, context tokens, has prefill) of each step of a closed loop, or None if the log is not one.

    Parameters
    ----------
    tokens
        int64 [steps], scheduled tokens of consecutive steps from the first one on.
    prompt_tokens, output_tokens
        Of every request; the step that ends a prefill samples the first output token.
    """
    num_steps = len(tokens)
    finished_prefills = np.zeros(num_steps, dtype=np.int64)
    requests, contexts = np.zeros(num_steps, dtype=np.int64), np.zeros(num_steps, dtype=np.int64)
    has_prefill = np.zeros(num_steps, dtype=np.bool_)
    partial = 0
    for step in range(num_steps):
        first = max(0, step - output_tokens + 1)
        alive = finished_prefills[first:step]
        decodes = int(alive.sum())
        new = int(tokens[step]) - decodes
        if new < 0:
            return None
        complete, rest = divmod(partial + new, prompt_tokens)
        if rest and tokens[step] < TOKENS_PER_STEP:
            return None
        ages = step - np.arange(first, step)
        requests[step] = decodes + complete + (rest > 0)
        contexts[step] = int((alive * (prompt_tokens + ages - 1)).sum()) + partial
        has_prefill[step] = new > 0
        finished_prefills[step], partial = complete, rest
    return requests, contexts, has_prefill


def replay_closed_loop(num_requests: int, *, prompt_tokens: int, output_tokens: int, max_num_seqs: int) -> pd.DataFrame:
    """Return the kinds of steps of a closed loop of equal requests that all wait from the start.

    Returns
    -------
    Table with the columns tokens, prefill, requests, context_tokens (means), and weight: the inter-token gaps that end
    in steps of the kind.
    """
    rows: list[tuple[int, int, int, bool, int]] = []
    finished_prefills: list[int] = []
    queued, decodes, context, partial = num_requests, 0, 0, 0
    while queued or decodes:
        room = max_num_seqs - decodes
        new = min(TOKENS_PER_STEP - decodes, min(queued, room) * prompt_tokens - partial)
        complete, rest = divmod(partial + new, prompt_tokens)
        started = complete + (rest > 0)
        rows.append((decodes + new, decodes + (started if new else 0), context + partial, new > 0, decodes))
        finished_prefills.append(complete)
        queued -= complete
        partial = rest
        # A request that generates its last token leaves with the KV of all tokens but that one.
        leaving = finished_prefills[-output_tokens] if len(finished_prefills) >= output_tokens else 0
        context += decodes - leaving * (prompt_tokens + output_tokens - 1) + complete * prompt_tokens
        decodes += complete - leaving
    steps = pd.DataFrame(rows, columns=["tokens", "requests", "context_tokens", "prefill", "weight"])
    steps = steps[steps["weight"] > 0]
    weighted = steps.assign(
        requests=steps["requests"] * steps["weight"], context_tokens=steps["context_tokens"] * steps["weight"]
    )
    sums = weighted.groupby(["tokens", "prefill"], as_index=False).sum()
    for name in ("requests", "context_tokens"):
        sums[name] /= sums["weight"]
    return sums
