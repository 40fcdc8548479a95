"""Fit the step-time coefficients to measured steps: non-negative least squares of relative errors.

`twin.step_time.step_time_ms` is linear in its coefficients, so a measurement is a row of term values and a time. A
measurement may also be a mean over many steps (an inter-token latency); its row is then the same mean of the steps'
rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twin.errors import ProfileError
from twin.step_time import (
    COEFFICIENT_NAMES,
    LARGE_BATCH_TOKENS,
    PADDING_TOKENS,
    RANK_UNIT,
    SMALL_BATCH_TOKENS,
    SMALL_TILE_TOKENS,
    TILE_TOKENS,
)

# The only coefficient that may be negative: another kernel configuration may as well be faster.
SIGNED_COEFFICIENT = "small_batch_ms"


@dataclass(frozen=True)
class StepObservations:
    """Measured step times: N measurements over K >= N kinds of steps.

    Attributes
    ----------
    tokens, requests, context_tokens, adapters
        float64 [K], scheduled tokens, scheduled requests, KV tokens read, distinct adapters.
    prefill
        float64 [K], share of the steps with a prefill.
    slots, max_rank
        int64 [K], `max_loras` and `max_lora_rank`; 0 without LoRA.
    weight
        float64 [K], how often the kind of step counts in its measurement.
    measurement
        int64 [K], index in 0..N-1 of the measurement.
    time_ms
        float64 [N], weighted mean time of the measurement's steps.
    regime
        str [N], kind of benchmark, for error tables.
    without_adapter
        bool [N], slots are allocated but no adapter is in the batch.
    """

    tokens: NDArray[np.float64]
    requests: NDArray[np.float64]
    context_tokens: NDArray[np.float64]
    adapters: NDArray[np.float64]
    prefill: NDArray[np.float64]
    slots: NDArray[np.int64]
    max_rank: NDArray[np.int64]
    weight: NDArray[np.float64]
    measurement: NDArray[np.int64]
    time_ms: NDArray[np.float64]
    regime: NDArray[np.str_]
    without_adapter: NDArray[np.bool_]


@dataclass(frozen=True)
class RegimeError:
    """In-sample relative errors of one regime, in percent."""

    regime: str
    num_rows: int
    mape_percent: float
    bias_percent: float
    max_percent: float


@dataclass(frozen=True)
class StepFit:
    """Fitted coefficients and what they leave unexplained.

    Attributes
    ----------
    coefficients
        By name, in ms per unit.
    no_adapter_ms
        What a step without any adapter saves although slots are allocated; the step-time form has no such term.
    errors
        One row per regime, and one named "all".
    """

    coefficients: dict[str, float]
    no_adapter_ms: float
    errors: tuple[RegimeError, ...]


def design_matrix(observations: StepObservations) -> NDArray[np.float64]:
    """Return float64 [N, len(COEFFICIENT_NAMES)]: the terms of `twin.step_time.step_time_ms` per measurement.

    No measurement has waiting requests, so the last column is 0.
    """
    o = observations
    has_lora = (o.slots > 0).astype(np.float64)
    is_large = (o.tokens > LARGE_BATCH_TOKENS).astype(np.float64)
    is_small = (o.tokens < SMALL_BATCH_TOKENS) * has_lora
    padded = np.where(is_large > 0, o.tokens, np.ceil(o.tokens / PADDING_TOKENS) * PADDING_TOKENS)
    rank_excess = np.maximum(o.max_rank - RANK_UNIT, 0.0) / RANK_UNIT
    grid_slots = (o.slots + 1) * has_lora
    tiles = grid_slots * np.ceil(padded / TILE_TOKENS)
    small_tiles = grid_slots * np.ceil(padded / SMALL_TILE_TOKENS) * is_small
    adapters, lora_tokens = o.adapters * has_lora, o.tokens * has_lora
    columns = {
        "base_ms": np.ones_like(o.tokens),
        "token_ms": o.tokens,
        "request_ms": o.requests,
        "context_token_ms": o.context_tokens,
        "large_batch_ms": is_large,
        "lora_base_ms": has_lora,
        "slot_ms": grid_slots,
        "slot_tile_ms": tiles,
        "slot_tile_rank_ms": tiles * rank_excess,
        "adapter_ms": adapters,
        "adapter_rank_ms": adapters * rank_excess,
        "lora_token_ms": lora_tokens,
        "lora_token_rank_ms": lora_tokens * rank_excess,
        "lora_request_rank_ms": rank_excess * o.requests * has_lora,
        "small_slot_tile_ms": small_tiles,
        "small_slot_tile_rank_ms": small_tiles * rank_excess,
        "small_adapter_ms": adapters * is_small,
        "small_adapter_rank_ms": adapters * is_small * rank_excess,
        "small_batch_ms": is_small,
        "mixed_step_ms": o.prefill,
        "mixed_context_token_ms": o.prefill * o.context_tokens,
        "lora_large_batch_ms": has_lora * is_large,
        "blocked_waiting_ms": np.zeros_like(o.tokens),
    }
    steps = np.stack([columns[name] for name in COEFFICIENT_NAMES], axis=1)
    sums = np.zeros((len(o.time_ms), steps.shape[1]))
    np.add.at(sums, o.measurement, steps * o.weight[:, None])
    totals = np.bincount(o.measurement, weights=o.weight, minlength=len(o.time_ms))
    means: NDArray[np.float64] = sums / totals[:, None]
    return means


def fit_step_time(observations: StepObservations, *, excluded: frozenset[str] = frozenset()) -> StepFit:
    """Fit all coefficients but the `excluded` ones (they are 0) to the measurements, each weighted by 1 / its time.

    Raises
    ------
    ProfileError
        When scipy is not installed (extra ``train``).
    """
    try:
        from scipy.optimize import nnls  # noqa: PLC0415  scipy is an optional extra that only this function needs
    except ImportError as error:
        raise ProfileError(
            "fitting a profile needs scipy, which is not installed.", hint="install the extra: lora-placer[train]"
        ) from error
    terms = design_matrix(observations)
    names = [name for name in COEFFICIENT_NAMES if name not in excluded]
    columns = [terms[:, COEFFICIENT_NAMES.index(name)] for name in names]
    # Two more columns: the negative part of the signed coefficient, and what is saved where no adapter is in the batch.
    columns += [
        -terms[:, COEFFICIENT_NAMES.index(SIGNED_COEFFICIENT)],
        np.where(observations.without_adapter, -1.0, 0.0),
    ]
    matrix = np.stack(columns, axis=1) / observations.time_ms[:, None]
    scale = np.abs(matrix).max(axis=0)
    scale[scale == 0] = 1.0
    solution = nnls(matrix / scale, np.ones(len(matrix)), maxiter=100 * matrix.shape[1])[0] / scale
    coefficients = dict.fromkeys(COEFFICIENT_NAMES, 0.0)
    coefficients.update({name: float(value) for name, value in zip(names, solution[: len(names)], strict=True)})
    if SIGNED_COEFFICIENT in names:
        coefficients[SIGNED_COEFFICIENT] -= float(solution[-2])
    return StepFit(coefficients, float(solution[-1]), error_table(observations, coefficients))


def error_table(observations: StepObservations, coefficients: Mapping[str, float]) -> tuple[RegimeError, ...]:
    """Return the relative errors (predicted / measured - 1) of `coefficients` per regime, and over all measurements."""
    vector = np.array([coefficients[name] for name in COEFFICIENT_NAMES])
    relative = 100.0 * (design_matrix(observations) @ vector / observations.time_ms - 1.0)
    rows = []
    for regime in [*sorted(set(observations.regime.tolist())), "all"]:
        part = relative if regime == "all" else relative[observations.regime == regime]
        magnitudes = np.abs(part)
        rows.append(
            RegimeError(regime, len(part), float(magnitudes.mean()), float(part.mean()), float(magnitudes.max()))
        )
    return tuple(rows)
