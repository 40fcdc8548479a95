"""How long a step of the fast engine takes (compiled)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from twin import step_time
from twin.kernel_compile import compiled
from twin.kernel_state import (
    IS_BATCH_CHANGED,
    LAST_PREFILLS,
    LAST_REQUESTS,
    NUM_DISTINCT,
    NUM_WAITING,
    STEP_CONTEXT,
    STEP_LOAD_NS,
    STEP_PREFILLS,
    STEP_REQUESTS,
    STEP_TOKENS,
    Array,
    Settings,
)

_compiled_step_time_ms = compiled(step_time.step_time_ms)


@compiled
def duration_ns(s: Settings, coefficients: NDArray[np.float64], c: Array) -> int:
    """Return how long the step takes, and note whether its batch differs from the step before."""
    is_batch_changed = c[STEP_PREFILLS] + c[LAST_PREFILLS] > 0 or c[STEP_REQUESTS] != c[LAST_REQUESTS]
    c[IS_BATCH_CHANGED] = 1 if is_batch_changed else 0
    c[LAST_PREFILLS] = c[STEP_PREFILLS]
    c[LAST_REQUESTS] = c[STEP_REQUESTS]
    milliseconds = _compiled_step_time_ms(
        coefficients,
        c[STEP_TOKENS],
        c[STEP_REQUESTS],
        c[STEP_CONTEXT],
        c[NUM_DISTINCT],
        c[STEP_PREFILLS] > 0,
        is_batch_changed,
        c[NUM_WAITING],
        s.num_slots,
        s.max_lora_rank,
        s.num_cached_adapters,
    )
    return int(np.floor(milliseconds * 1e6 + 0.5)) + int(c[STEP_LOAD_NS])
