"""What measured steps do not say: regimes without data, and coefficients that the data do not tell apart."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twin.calibration.step_fit import StepObservations, design_matrix
from twin.step_time import COEFFICIENT_NAMES, LARGE_BATCH_TOKENS, SMALL_BATCH_TOKENS

# Two columns of the design with a larger cosine cannot be told apart by data with a few percent of noise.
MOST_COSINE = 0.995
# A coefficient whose interval starts at 0 and ends at more than this many times its value is not identified.
WIDE_INTERVAL = 1.5
# An interval that starts at less than this share of the value touches 0.
TOUCHES_ZERO = 0.01
USUAL_RANKS = (8, 16, 32)


@dataclass(frozen=True)
class _Rule:
    """A kind of step, bool [K], and what is not known when no step is of that kind."""

    occurs: NDArray[np.bool_]
    warning: str


def coverage_warnings(observations: StepObservations, *, fixed: Collection[str] = ()) -> tuple[str, ...]:
    """Return one sentence for each regime without data; the queue is none where its coefficient is `fixed`."""
    steps = observations.steps
    if len(steps) == 0:
        return ("No step was measured: all step times are extrapolated.",)
    has_lora, has_adapters = steps.slots > 0, steps.adapters > 0
    has_prefill = steps.prefill > 0
    is_small = steps.tokens < SMALL_BATCH_TOKENS
    rules = [
        _Rule(~has_lora, "No steps without LoRA: what LoRA adds is not told apart from the model's own time."),
        _Rule(has_lora, "No steps with LoRA: every LoRA cost is extrapolated."),
        _Rule(has_prefill, "No steps with a prefill: large batches and mixed attention are extrapolated."),
        _Rule(~has_prefill, "No steps without a prefill: decodes are extrapolated."),
        _Rule(
            has_prefill & (steps.context_tokens > 0),
            "No mixed steps (a prefill beside decodes): `mixed_context_token_ms` is not seen.",
        ),
        _Rule(
            steps.tokens > LARGE_BATCH_TOKENS,
            f"No steps of more than {LARGE_BATCH_TOKENS} tokens: these run without CUDA graphs, and are extrapolated.",
        ),
    ]
    if has_lora.any():
        rules += [
            _Rule(has_lora & has_adapters, "No steps with an adapter in the batch: adapter costs are extrapolated."),
            _Rule(
                has_lora & ~has_adapters,
                "No steps with slots but no adapter: the cost of an active and of an idle replica are not told apart.",
            ),
            _Rule(
                has_lora & is_small,
                f"No LoRA steps below {SMALL_BATCH_TOKENS} tokens, where the kernels split their sums further.",
            ),
            _Rule(has_lora & ~is_small, f"No LoRA steps of {SMALL_BATCH_TOKENS} tokens or more."),
        ]
        if "blocked_waiting_ms" not in fixed:
            is_blocked = (steps.waiting > 0) & (steps.adapters == steps.slots) & has_lora
            rules.append(_Rule(is_blocked, "No steps with a queue while adapters take all slots."))
    warnings = [rule.warning for rule in rules if not rule.occurs.any()]
    if has_lora.any():
        warnings += _lora_range_warnings(steps.slots[has_lora], steps.max_rank[has_lora])
    return tuple(warnings)


def identification_warnings(
    observations: StepObservations,
    coefficients: Mapping[str, float],
    bounds: Mapping[str, tuple[float, float]],
) -> tuple[str, ...]:
    """Return one sentence per finding about fitted coefficients (those in `bounds`) that the data do not identify."""
    if len(observations.time_ms) == 0:
        return ()
    matrix = design_matrix(observations) / observations.time_ms[:, None]
    column = {name: matrix[:, index] for index, name in enumerate(COEFFICIENT_NAMES) if name in bounds}
    unseen = [name for name, values in column.items() if not values.any()]
    warnings = []
    if unseen:
        warnings.append(f"No step has what these coefficients stand for: {', '.join(unseen)}.")
    seen = {name: values / np.linalg.norm(values) for name, values in column.items() if name not in unseen}
    names = list(seen)
    warnings += [
        f"The data hardly tell `{one}` and `{other}` apart (cosine {cosine:.3f}): believe their sum, not each."
        for index, one in enumerate(names)
        for other in names[index + 1 :]
        for cosine in (float(seen[one] @ seen[other]),)
        if cosine > MOST_COSINE
    ]
    for name in names:
        low, high = bounds[name]
        value = coefficients[name]
        if low <= TOUCHES_ZERO * value and high > WIDE_INTERVAL * value and high > 0:
            warnings.append(f"`{name}` may as well be 0: its interval is {low:.3g} to {high:.3g} ms.")
    return tuple(warnings)


def _lora_range_warnings(slots: NDArray[np.int64], ranks: NDArray[np.int64]) -> list[str]:
    warnings = []
    numbers = sorted(set(slots.tolist()))
    if len(numbers) == 1:
        warnings.append(f"One number of slots only ({numbers[0]}): how the cost grows with slots is extrapolated.")
    missing = [rank for rank in USUAL_RANKS if rank not in ranks]
    if missing:
        measured = ", ".join(str(rank) for rank in sorted(set(ranks.tolist())))
        words = ", ".join(str(rank) for rank in missing)
        warnings.append(f"Slots of rank {words} are extrapolated from those of rank {measured}.")
    return warnings
