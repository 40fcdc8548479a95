"""How long the readable engines' steps take: what twin/step_time.py asks about a step, counted from its requests."""

from __future__ import annotations

import math

from twin.recorder import Step
from twin.replica import ReplicaInputs, num_cached_adapters
from twin.step_time import step_time_ms


class StepClock:
    """Times the steps of one replica, one after the other.

    Parameters
    ----------
    inputs
        Coefficients and settings.
    """

    def __init__(self, inputs: ReplicaInputs) -> None:
        self._inputs = inputs
        # Python floats: numpy scalars are slow.
        self._coefficients = tuple(inputs.step_coefficients.tolist())
        self._before: Step | None = None

    def time(self, step: Step, *, num_waiting: int) -> None:
        """Write down on a scheduled step whose adapters are loaded how long it takes, and what that depends on."""
        step.context_tokens = sum(request.num_computed for request in step.tokens)
        step.has_prefill = any(
            tokens > 1 or request.generated + request.placeholders == 0 for request, tokens in step.tokens.items()
        )
        before = self._before
        step.is_batch_changed = (
            before is None or step.has_prefill or before.has_prefill or len(step.tokens) != len(before.tokens)
        )
        self._before = step
        milliseconds = step_time_ms(
            self._coefficients,
            sum(step.tokens.values()),
            len(step.tokens),
            step.context_tokens,
            len(step.adapters),
            step.has_prefill,
            step.is_batch_changed,
            num_waiting,
            self._inputs.num_slots,
            self._inputs.max_lora_rank,
            num_cached_adapters(self._inputs),
        )
        step.duration_ns = math.floor(milliseconds * 1e6 + 0.5) + step.load_ns
