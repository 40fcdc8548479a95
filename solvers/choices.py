"""Under which settings sets of adapters are asked about, and what is best for each: columns of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Settings:
    """Under which settings each of N sets is asked about; int64 [N] each.

    `max_num_seqs` is ``None`` where all have that of the problem's `engine`.
    """

    gpu_type: NDArray[np.int64]
    max_loras: NDArray[np.int64]
    max_lora_rank: NDArray[np.int64]
    kv_tokens: NDArray[np.int64]
    max_num_seqs: NDArray[np.int64] | None = None

    def take(self, rows: NDArray[np.int64]) -> Settings:
        """Return the settings of some of the sets, also repeatedly."""
        return Settings(
            self.gpu_type[rows],
            self.max_loras[rows],
            self.max_lora_rank[rows],
            self.kv_tokens[rows],
            None if self.max_num_seqs is None else self.max_num_seqs[rows],
        )


def joined(parts: Sequence[Settings]) -> Settings:
    """Return settings one after the other; all of them have the `engine`'s `max_num_seqs`."""
    columns = [np.empty((4, 0), dtype=np.int64)]
    columns += [np.array([part.gpu_type, part.max_loras, part.max_lora_rank, part.kv_tokens]) for part in parts]
    return Settings(*np.concatenate(columns, axis=1))


@dataclass(frozen=True)
class Choices:
    """For each of N sets the best slot option; arrays [N].

    Attributes
    ----------
    feasible
        bool; where it is False the other columns describe the least bad option, or, where no slots fit the memory,
        are 0 slots, ratio 0, probability 1 and infinite latencies and pressure.
    max_loras, max_lora_rank
        int64.
    throughput_ratio, starvation_probability, itl_s, ttft_s
        float64, what the surrogate predicts with these slots.
    pressure
        float64, how close the prediction is to the limit it would meet first: 0 far from it, 1 at it.
    """

    feasible: NDArray[np.bool_]
    max_loras: NDArray[np.int64]
    max_lora_rank: NDArray[np.int64]
    throughput_ratio: NDArray[np.float64]
    starvation_probability: NDArray[np.float64]
    itl_s: NDArray[np.float64]
    ttft_s: NDArray[np.float64]
    pressure: NDArray[np.float64]

    def __len__(self) -> int:
        """Return the number of sets."""
        return len(self.feasible)


def no_choices(num_sets: int) -> Choices:
    """Return what holds for N sets for which memory allows no slots."""
    return Choices(
        feasible=np.zeros(num_sets, dtype=np.bool_),
        max_loras=np.zeros(num_sets, dtype=np.int64),
        max_lora_rank=np.zeros(num_sets, dtype=np.int64),
        throughput_ratio=np.zeros(num_sets),
        starvation_probability=np.ones(num_sets),
        itl_s=np.full(num_sets, np.inf),
        ttft_s=np.full(num_sets, np.inf),
        pressure=np.full(num_sets, np.inf),
    )
