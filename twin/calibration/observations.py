"""Measured step times: the kinds of steps, and the times that are means over them."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Steps:
    """K steps, or kinds of steps: what `twin.step_time.step_time_ms` depends on.

    Attributes
    ----------
    tokens, requests, context_tokens, adapters
        float64 [K], scheduled tokens, scheduled requests, KV tokens read, distinct adapters.
    prefill, changed
        float64 [K], share of the steps with a prefill, and of those whose batch differs from the step before.
    waiting
        float64 [K], requests in the queue.
    slots, max_rank
        int64 [K], `max_loras` and `max_lora_rank`; 0 without LoRA.
    cached_adapters
        float64 [K], adapters in the CPU cache.
    """

    tokens: NDArray[np.float64]
    requests: NDArray[np.float64]
    context_tokens: NDArray[np.float64]
    adapters: NDArray[np.float64]
    prefill: NDArray[np.float64]
    changed: NDArray[np.float64]
    waiting: NDArray[np.float64]
    slots: NDArray[np.int64]
    max_rank: NDArray[np.int64]
    cached_adapters: NDArray[np.float64]

    def __len__(self) -> int:
        """Return K."""
        return len(self.tokens)

    def select(self, mask: NDArray[np.bool_]) -> Steps:
        """Return the chosen steps (bool [K])."""
        return Steps(**{item.name: getattr(self, item.name)[mask] for item in fields(self)})


@dataclass(frozen=True)
class StepObservations:
    """Measured step times: N measurements over K >= N kinds of steps.

    Attributes
    ----------
    steps
        The kinds of steps.
    weight
        float64 [K], how often the kind of step counts in its measurement.
    measurement
        int64 [K], index in 0..N-1 of the measurement.
    time_ms
        float64 [N], weighted mean time of the measurement's steps.
    regime
        str [N], kind of benchmark, for error tables.
    group
        str [N], measurements of one group are not independent of each other (one run's steps): they are resampled
        together.
    """

    steps: Steps
    weight: NDArray[np.float64]
    measurement: NDArray[np.int64]
    time_ms: NDArray[np.float64]
    regime: NDArray[np.str_]
    group: NDArray[np.str_]

    def select(self, chosen: NDArray[np.bool_]) -> StepObservations:
        """Return the chosen measurements (bool [N]) with their steps."""
        mask = chosen[self.measurement]
        renumbered = (np.cumsum(chosen) - 1)[self.measurement[mask]]
        return StepObservations(
            self.steps.select(mask),
            self.weight[mask],
            renumbered,
            self.time_ms[chosen],
            self.regime[chosen],
            self.group[chosen],
        )

    def means(self, values: NDArray[np.float64] | NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the weighted mean over each measurement's steps, float64 [N], of per-step `values` [K]."""
        totals = np.bincount(self.measurement, weights=self.weight, minlength=len(self.time_ms))
        sums = np.bincount(self.measurement, weights=values * self.weight, minlength=len(self.time_ms))
        result: NDArray[np.float64] = sums / totals
        return result
