"""How long one engine step takes, as a function of what is in the batch.

Each term stands for work that vLLM does in a step and has its reason in docs/twin-model.md: the model's own cost
(weights, tokens, KV reads), the LoRA kernels' grid of token tiles x (slots + 1), the weights of the distinct adapters,
and what the engine's Python code does per step (bookkeeping of a changed batch, looking adapters up). The function
takes scalars and a coefficient array only, so that the compiled engine and the readable engine evaluate the very same
floating-point operations.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Order of the coefficient array; the names are the fields of twin.profile.StepTimeCoefficients.
COEFFICIENT_NAMES: tuple[str, ...] = (
    "base_ms",
    "token_ms",
    "request_ms",
    "context_token_ms",
    "large_batch_ms",
    "large_batch_token_ms",
    "mixed_context_token_ms",
    "changed_request_ms",
    "lora_base_ms",
    "lora_active_ms",
    "lora_token_ms",
    "expand_tile_ms",
    "shrink_tile_ms",
    "adapter_ms",
    "adapter_shrink_ms",
    "adapter_request_ms",
    "cached_adapter_ms",
    "slot_lookup_ms",
    "blocked_waiting_ms",
)

# Up to here vLLM replays CUDA graphs, captured for batches of multiples of 8 tokens; larger ones run layer by layer.
LARGE_BATCH_TOKENS = 512
PADDING_TOKENS = 8
# Tile heights of the LoRA kernels (vllm/lora/ops/triton_ops: BLOCK_M of expand and of shrink), and the width of a tile
# of ranks in shrink (BLOCK_N).
EXPAND_TILE_TOKENS = 64
SHRINK_TILE_TOKENS = 32
SHRINK_TILE_RANKS = 16
# Shrink splits its sums 64 ways below this many tokens and 8 ways from there on (SPLIT_K of lora_shrink).
SMALL_BATCH_TOKENS = 128
LARGE_SPLIT_SHARE = 0.125


def step_time_ms(
    coefficients: NDArray[np.float64] | Any,
    num_tokens: int,
    num_requests: int,
    context_tokens: int,
    num_adapters: int,
    has_prefill: bool,
    is_batch_changed: bool,
    num_waiting: int,
    num_slots: int,
    max_lora_rank: int,
    num_cached_adapters: int,
) -> float:
    """Return the time of one step without adapter loads, in milliseconds.

    Parameters
    ----------
    coefficients
        float64 [len(COEFFICIENT_NAMES)], in the order of `COEFFICIENT_NAMES`, in ms per unit.
    num_tokens
        Tokens scheduled in the step, >= 1.
    num_requests
        Requests scheduled in the step.
    context_tokens
        Tokens computed before the step, summed over the scheduled requests.
    num_adapters
        Distinct adapters of the scheduled requests.
    has_prefill
        Whether any scheduled request still had prompt (or, after a preemption, recomputed) tokens to process, i.e. got
        more than its one decode token or had no output yet.
    is_batch_changed
        Whether the step has a prefill, the step before had one, or the two differ in the number of scheduled requests:
        the engine then rebuilds what it keeps per batch.
    num_waiting
        Waiting requests at the end of scheduling; the scheduler looks at all of them where adapters take all slots.
    num_slots
        `max_loras`, or 0 without LoRA.
    max_lora_rank
        Rank at which the slots are reserved.
    num_cached_adapters
        Adapters that the CPU cache holds once all have been used: the smaller of `max_cpu_loras` and the number served.
    """
    c = coefficients
    step = c[0] + c[1] * num_tokens + c[2] * num_requests + c[3] * context_tokens
    padded = num_tokens
    if num_tokens > LARGE_BATCH_TOKENS:
        step += c[4] + c[5] * (num_tokens - LARGE_BATCH_TOKENS)
    else:
        padded = (num_tokens + PADDING_TOKENS - 1) // PADDING_TOKENS * PADDING_TOKENS
    if has_prefill:
        step += c[6] * context_tokens
    if is_batch_changed:
        step += c[7] * num_requests
    if num_slots > 0:
        split = 1.0 if num_tokens < SMALL_BATCH_TOKENS else LARGE_SPLIT_SHARE
        shrink = split * ((max_lora_rank + SHRINK_TILE_RANKS - 1) // SHRINK_TILE_RANKS)
        expand_tiles = (padded + EXPAND_TILE_TOKENS - 1) // EXPAND_TILE_TOKENS
        shrink_tiles = (padded + SHRINK_TILE_TOKENS - 1) // SHRINK_TILE_TOKENS
        step += c[8] + c[10] * num_tokens + (num_slots + 1) * (c[11] * expand_tiles + c[12] * shrink_tiles * shrink)
        if num_adapters > 0:
            step += c[9]
        step += num_adapters * (c[13] + c[14] * shrink + c[15] * num_requests + c[16] * num_cached_adapters)
        if is_batch_changed:
            step += c[17] * (num_tokens + num_requests) * min(num_slots, num_cached_adapters)
        if num_adapters == num_slots:
            step += c[18] * num_waiting
    return step  # type: ignore[no-any-return]
