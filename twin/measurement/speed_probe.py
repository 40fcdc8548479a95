"""A fixed piece of work, by which one can see how fast the processor is at the moment.

CPU time is no steady measure of work: on a shared machine the other threads of a core, and what they leave of its
caches, make the same step take up to twice as long. What slows vLLM's steps slows this piece too. Runs in vLLM's
interpreter: only the standard library and NumPy are used here.
"""

from __future__ import annotations

import time

import numpy as np

# What the piece takes on a processor that is taken for the steady one, in CPU seconds.
REFERENCE_S = 0.0005
# Steps lose more than the piece, whose code and data are small: by this power of what the piece loses. Over windows of
# 40 to 200 steps of vLLM 0.32 on a busy machine it was 1.2 to 1.3, in three sets of 2,000 to 29,000 steps.
SENSITIVITY = 1.2

NUM_OBJECTS = 300
NUM_PRODUCTS = 10


class SpeedProbe:
    """Does the piece of work: small objects as an engine's Python code makes them, and small matrix products."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        self._rows = generator.standard_normal((8, 128), dtype=np.float32)
        self._weights = generator.standard_normal((128, 512), dtype=np.float32)

    def __call__(self) -> float:
        """Return the CPU time that the piece of work took, in seconds."""
        begin = time.process_time()
        entries = [_Entry(number) for number in range(NUM_OBJECTS)]
        total = sum(entry.places[entry.number] for entry in entries)
        for _ in range(NUM_PRODUCTS):
            self._rows @ self._weights  # the work is the purpose
        assert total == NUM_OBJECTS
        return time.process_time() - begin


class _Entry:
    __slots__ = ("number", "places")

    def __init__(self, number: int) -> None:
        self.number = number
        self.places = {number: 1}
