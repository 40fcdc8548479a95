"""Several replicas on one GPU: how long their steps take, by three assumptions of how much of a step is shared.

A step is the sum of terms (twin/step_time.py). While R replicas are in a step at once, what reads the GPU's memory or
computes there takes R times as long, because they share its bandwidth and its multiprocessors; what the engine's own
Python process does on the host overlaps with the other replicas. A profile is fitted to times of whole steps and does
not say which is which: of the terms below, some are the GPU's by what they count, some the host's, and for the others
it cannot be told. Hence three cases, of which the first and the last are bounds:

- ``least``: replicas take turns ideally. A step takes as long as alone, but R replicas do not finish R steps in less
  than R times the part that is the GPU's for certain.
- ``assumed``: all replicas are always in a step at once. What is the GPU's takes R times as long, all else as alone.
- ``most``: nothing overlaps. A step takes R times as long as alone.

Of the constant of a step (`base_ms`), reading the weights once is the GPU's: at the bandwidth of its datasheet for
``least``, at the share of it that kernels reach for ``assumed``. Without a datasheet none of it is the GPU's for
``least``, and all of it for ``assumed``. Loads of adapters take as long as alone.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from twin.calibration.datasheets import DATASHEETS
from twin.calibration.prior import WEIGHTS_SHARE, weights_reading_ms
from twin.hardware import ModelArchitecture
from twin.profile import PerformanceProfile
from twin.step_time import COEFFICIENT_NAMES

SharedCase = Literal["least", "assumed", "most"]
SHARED_CASES: tuple[SharedCase, ...] = ("least", "assumed", "most")

# Terms that count what the GPU reads or computes. Terms of the engine's Python code, and those that may be either's
# (sampling, launches of kernels, the tiles and the bookkeeping of adapters), are not among them.
DEVICE_TERMS = frozenset(
    {
        "token_ms",
        "context_token_ms",
        "large_batch_token_ms",
        "mixed_context_token_ms",
        "expand_tile_ms",
        "shrink_tile_ms",
        "adapter_ms",
        "adapter_shrink_ms",
    }
)


def shared_coefficients(
    profile: PerformanceProfile, model: ModelArchitecture, *, num_replicas: int, case: SharedCase
) -> tuple[NDArray[np.float64], ...]:
    """Return coefficients of a replica's step while `num_replicas` (>= 1) share the GPU.

    Returns
    -------
    One array for each of the times that a step cannot be shorter than, float64 [len(COEFFICIENT_NAMES)]: the step takes
    the longest of them.
    """
    alone = profile.step_time.as_array()
    if case == "most":
        return (alone * num_replicas,)
    on_device = alone * _device_shares(profile, model, case=case)
    if case == "least":
        return alone, on_device * num_replicas
    return (alone + on_device * (num_replicas - 1),)


def weights_read_ms(profile: PerformanceProfile, model: ModelArchitecture) -> float | None:
    """Return how long the GPU takes to read the weights once at its full bandwidth; ``None`` without a datasheet."""
    sheet = DATASHEETS.get(profile.gpu)
    return None if sheet is None else weights_reading_ms(model, sheet) * WEIGHTS_SHARE


def _device_shares(
    profile: PerformanceProfile, model: ModelArchitecture, *, case: Literal["least", "assumed"]
) -> NDArray[np.float64]:
    """Return which part of each term is the GPU's, float64 [len(COEFFICIENT_NAMES)] in [0, 1]."""
    shares = np.array([1.0 if name in DEVICE_TERMS else 0.0 for name in COEFFICIENT_NAMES])
    read_ms, base_ms = weights_read_ms(profile, model), profile.step_time.base_ms
    base = COEFFICIENT_NAMES.index("base_ms")
    if read_ms is None:
        shares[base] = 0.0 if case == "least" else 1.0
    elif base_ms > 0.0:
        shares[base] = min(read_ms / (1.0 if case == "least" else WEIGHTS_SHARE) / base_ms, 1.0)
    return shares
