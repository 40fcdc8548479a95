"""Steps drawn over all regimes, timed by known coefficients."""

from dataclasses import replace

import numpy as np

from twin.calibration.observations import StepObservations, Steps
from twin.calibration.step_fit import design_matrix
from twin.profile import StepTimeCoefficients
from twin.step_time import COEFFICIENT_NAMES

# All coefficients differ from 0, each of the size that it has on a GPU.
EVERY_COEFFICIENT = StepTimeCoefficients(
    base_ms=12.0,
    token_ms=0.015,
    request_ms=0.01,
    context_token_ms=8e-5,
    large_batch_ms=3.0,
    large_batch_token_ms=0.006,
    mixed_context_token_ms=2e-5,
    changed_request_ms=0.005,
    lora_base_ms=0.7,
    lora_active_ms=0.8,
    lora_token_ms=0.003,
    expand_tile_ms=0.011,
    shrink_tile_ms=0.01,
    adapter_ms=0.25,
    adapter_shrink_ms=0.13,
    adapter_request_ms=4e-4,
    cached_adapter_ms=2e-4,
    slot_lookup_ms=3e-5,
    blocked_waiting_ms=3e-4,
)


def random_steps(num_rows: int, seed: int) -> Steps:
    """Return steps drawn over all regimes."""
    random = np.random.default_rng(seed)
    tokens = random.choice([1, 60, 100, 127, 128, 300, 511, 512, 513, 900, 2048], num_rows)
    slots = random.choice([0, 8, 32, 100, 300], num_rows)
    adapters = np.where(random.random(num_rows) < 0.3, slots, np.minimum(random.integers(0, 100, num_rows), slots))
    prefill = random.integers(0, 2, num_rows)
    return Steps(
        tokens=tokens.astype(np.float64),
        requests=np.minimum(random.integers(1, 300, num_rows), tokens).astype(np.float64),
        context_tokens=random.integers(0, 200_000, num_rows).astype(np.float64),
        adapters=adapters.astype(np.float64),
        prefill=prefill.astype(np.float64),
        changed=np.maximum(prefill, random.integers(0, 2, num_rows)).astype(np.float64),
        waiting=random.choice([0, 0, 500, 3000], num_rows).astype(np.float64),
        slots=slots.astype(np.int64),
        max_rank=np.where(slots > 0, random.choice([8, 16, 32, 64], num_rows), 0).astype(np.int64),
        cached_adapters=(adapters + random.integers(0, 400, num_rows)).astype(np.float64),
    )


def observed(
    steps: Steps, coefficients: StepTimeCoefficients = EVERY_COEFFICIENT, *, noise: float = 0.0, seed: int = 0
) -> StepObservations:
    """Return the steps with the times that `coefficients` give them, each off by a normal relative `noise`."""
    rows = np.arange(len(steps))
    untimed = StepObservations(
        steps=steps,
        weight=np.ones(len(steps)),
        measurement=rows.astype(np.int64),
        time_ms=np.ones(len(steps)),
        regime=np.array(["drawn"] * len(steps), dtype=np.str_),
        group=np.array([f"step {row}" for row in rows], dtype=np.str_),
    )
    errors = np.random.default_rng(seed).normal(1.0, noise, len(steps))
    return replace(untimed, time_ms=design_matrix(untimed) @ coefficients.as_array() * errors)


def as_values(coefficients: StepTimeCoefficients) -> dict[str, float]:
    """Return the coefficients by name, in the order of the array."""
    return dict(zip(COEFFICIENT_NAMES, coefficients.as_array().tolist(), strict=True))
