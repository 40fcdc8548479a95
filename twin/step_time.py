"""How long one engine step takes, as a function of what is in the batch.

The form and its terms follow reference measurements of vLLM LoRA replicas on an H100 (dense decode and prefill cost, KV
reads, the LoRA kernels' grid of token tiles x (slots + 1), the distinct adapters' weights). The function takes scalars
and a coefficient array only, so that the compiled engine and the readable engine evaluate the very same floating-point
operations.
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
    "lora_base_ms",
    "slot_ms",
    "slot_tile_ms",
    "slot_tile_rank_ms",
    "adapter_ms",
    "adapter_rank_ms",
    "lora_token_ms",
    "lora_token_rank_ms",
    "lora_request_rank_ms",
    "small_slot_tile_ms",
    "small_slot_tile_rank_ms",
    "small_adapter_ms",
    "small_adapter_rank_ms",
    "small_batch_ms",
    "mixed_step_ms",
    "mixed_context_token_ms",
    "lora_large_batch_ms",
    "blocked_waiting_ms",
)

LARGE_BATCH_TOKENS = 512
SMALL_BATCH_TOKENS = 128
PADDING_TOKENS = 8
TILE_TOKENS = 64
SMALL_TILE_TOKENS = 32
RANK_UNIT = 16.0


def step_time_ms(
    coefficients: NDArray[np.float64] | Any,
    num_tokens: int,
    num_requests: int,
    context_tokens: int,
    num_adapters: int,
    num_prefills: int,
    prefill_tokens: int,  # noqa: ARG001 - reported for forms that tell prefills apart
    prefill_context_tokens: int,  # noqa: ARG001 - reported for forms that tell prefills apart
    prefill_attention: int,  # noqa: ARG001 - reported for forms that tell prefills apart
    num_waiting: int,
    num_slots: int,
    max_lora_rank: int,
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
    num_prefills
        Scheduled requests that still had prompt (or, after a preemption, recomputed) tokens to process, i.e. got more
        than their one decode token or had no output yet.
    prefill_tokens
        Tokens of these requests in the step.
    prefill_context_tokens
        Tokens of these requests computed before the step.
    prefill_attention
        Query-key pairs of causal attention of these requests: the sum of ``n * computed + n * (n + 1) // 2`` for n
        tokens after `computed` ones.
    num_waiting
        Waiting requests at the end of scheduling; they cost time where adapters take all slots.
    num_slots
        `max_loras`, or 0 without LoRA.
    max_lora_rank
        Rank at which the slots are reserved.
    """
    c = coefficients
    step = c[0] + c[1] * num_tokens + c[2] * num_requests + c[3] * context_tokens
    if num_tokens > LARGE_BATCH_TOKENS:
        step += c[4]
    if num_prefills > 0:
        step += c[19] + c[20] * context_tokens
    if num_slots > 0:
        padded = num_tokens
        if num_tokens <= LARGE_BATCH_TOKENS:
            padded = (num_tokens + PADDING_TOKENS - 1) // PADDING_TOKENS * PADDING_TOKENS
        rank_excess = 0.0
        if max_lora_rank > RANK_UNIT:
            rank_excess = (max_lora_rank - RANK_UNIT) / RANK_UNIT
        grid_slots = num_slots + 1
        tiles = (padded + TILE_TOKENS - 1) // TILE_TOKENS
        step += c[5] + c[6] * grid_slots
        step += grid_slots * tiles * (c[7] + c[8] * rank_excess)
        step += num_adapters * (c[9] + c[10] * rank_excess)
        step += num_tokens * (c[11] + c[12] * rank_excess) + c[13] * rank_excess * num_requests
        if num_tokens < SMALL_BATCH_TOKENS:
            small_tiles = (padded + SMALL_TILE_TOKENS - 1) // SMALL_TILE_TOKENS
            step += grid_slots * small_tiles * (c[14] + c[15] * rank_excess)
            step += num_adapters * (c[16] + c[17] * rank_excess) + c[18]
        if num_tokens > LARGE_BATCH_TOKENS:
            step += c[21]
        if num_adapters == num_slots:
            step += c[22] * num_waiting
    return step  # type: ignore[no-any-return]
