"""The one rule that says whether a prediction is good enough: starvation and latency limits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from predictors.surrogate import STARVED_PROBABILITY, SurrogateOutput
from solvers.limits import Limits, RowLimits


@dataclass(frozen=True)
class _Condition:
    """One condition for N predictions: is it kept, how close is it (1 at the limit), how to say that it is not."""

    kept: NDArray[np.bool_]
    pressure: NDArray[np.float64]
    text: str
    value: NDArray[np.float64]
    limit: NDArray[np.float64]


def judge(limits: Limits | RowLimits, output: SurrogateOutput) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return for each of N predictions whether it is accepted, bool [N], and how close it is to its nearest limit.

    The limits are those of all N, or of each. The pressure, float64 [N], is 0 far from every limit and 1 at one; NaN in
    a prediction that has a limit is never accepted.
    """
    conditions = list(_conditions(limits, output))
    accepted, pressure = conditions[0].kept, conditions[0].pressure
    for condition in conditions[1:]:
        accepted = accepted & condition.kept
        pressure = np.maximum(pressure, condition.pressure)
    return accepted, pressure


def accepts(limits: Limits | RowLimits, output: SurrogateOutput) -> NDArray[np.bool_]:
    """Return for each of N predictions whether it keeps every limit, bool [N]."""
    return judge(limits, output)[0]


def violations(limits: Limits | RowLimits, output: SurrogateOutput) -> list[tuple[str, ...]]:
    """Return for each of N predictions what it does not keep, in words."""
    conditions = list(_conditions(limits, output))
    return [
        tuple(
            condition.text.format(condition.value[row], condition.limit[row])
            for condition in conditions
            if not condition.kept[row]
        )
        for row in range(len(output))
    ]


def _conditions(limits: Limits | RowLimits, output: SurrogateOutput) -> Iterator[_Condition]:
    probability = output.starvation_probability.astype(np.float64)
    yield _Condition(
        kept=probability < STARVED_PROBABILITY,
        pressure=probability / STARVED_PROBABILITY,
        text="starvation probability {:.2f} must be below {:g}",
        value=probability,
        limit=np.full(len(probability), STARVED_PROBABILITY),
    )
    ratio = output.throughput_ratio.astype(np.float64)
    tolerance = np.broadcast_to(np.asarray(limits.starvation_tolerance, dtype=np.float64), ratio.shape)
    yield _Condition(
        kept=output.throughput_ratio >= (1.0 - tolerance).astype(np.float32),
        pressure=np.maximum(1.0 - ratio, 0.0) / np.maximum(tolerance, 1e-6),
        text="throughput / offered load {:.3f} must be at least {:g}",
        value=ratio,
        limit=1.0 - tolerance,
    )
    for name, given_ms, predicted_s in (
        ("ITL", limits.itl_p95_ms, output.itl_s),
        ("TTFT", limits.ttft_p95_ms, output.ttft_s),
    ):
        if given_ms is not None:
            limit_ms = np.broadcast_to(np.asarray(given_ms, dtype=np.float64), predicted_s.shape)
            predicted_ms = predicted_s.astype(np.float64) * 1000.0
            yield _Condition(
                # Rows without a limit are among others that have one.
                kept=(predicted_s <= (limit_ms / 1000.0).astype(np.float32)) | np.isinf(limit_ms),
                pressure=np.where(np.isinf(limit_ms), 0.0, predicted_ms) / limit_ms,
                text=f"{name} p95 {{:.1f}} ms must be at most {{:g}} ms",
                value=predicted_ms,
                limit=limit_ms,
            )
