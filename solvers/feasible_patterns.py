"""All sets of adapters that one GPU can hold, found by asking about every one: no assumption about the surrogate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solvers.adapter_types import AdapterTypes, exact_types, single_types
from solvers.choices import Choices
from solvers.feasibility import FeasibilityModel
from solvers.result import Termination
from solvers.run import SolverRun

# Sets in one question, each with a few slot options: few enough that a budget and Ctrl-C are noticed.
BATCH_SETS = 128


@dataclass(frozen=True)
class Patterns:
    """Sets that a GPU can hold, as counts per adapter type; P rows, one for each set and GPU type.

    Attributes
    ----------
    counts
        int64 [P, T].
    gpu_type, max_loras, max_lora_rank
        int64 [P].
    """

    counts: NDArray[np.int64]
    gpu_type: NDArray[np.int64]
    max_loras: NDArray[np.int64]
    max_lora_rank: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of patterns."""
        return len(self.counts)

    def take(self, rows: NDArray[np.int64]) -> Patterns:
        """Return some of the patterns, by their rows, also repeatedly."""
        return Patterns(self.counts[rows], self.gpu_type[rows], self.max_loras[rows], self.max_lora_rank[rows])


def interchangeable_types(model: FeasibilityModel) -> AdapterTypes:
    """Return the types whose members the model's surrogate cannot tell apart."""
    return single_types(model.problem) if model.uses_members else exact_types(model.problem)


def num_sets(types: AdapterTypes) -> int:
    """Return how many different sets of adapters there are, the empty one included."""
    return math.prod(int(count) + 1 for count in types.counts)


def ask_patterns(
    model: FeasibilityModel, types: AdapterTypes, counts: NDArray[np.int64], gpu_type: int | NDArray[np.int64]
) -> Choices:
    """Ask about N sets, int64 [N, T], on a GPU type (of all, or int64 [N]), in one batch."""
    members = None
    if model.uses_members:
        members = [
            tuple(sorted(adapter for mine, count in zip(types.members, row, strict=True) for adapter in mine[:count]))
            for row in counts
        ]
    return model.best_choice(types.aggregates(counts), types.max_ranks(counts), gpu_type, members)


def feasible_patterns(run: SolverRun, types: AdapterTypes) -> Patterns | Termination:
    """Ask about every set on every GPU type; return the accepted ones, or why there was no time to ask."""
    shape = tuple(int(count) + 1 for count in types.counts)
    parts: list[Patterns] = []
    for gpu_type in range(len(run.problem.gpu_types)):
        for start in range(1, math.prod(shape), BATCH_SETS):
            if (ended := run.exhausted()) is not None:
                return ended
            codes = np.arange(start, min(start + BATCH_SETS, math.prod(shape)))
            counts = np.stack(np.unravel_index(codes, shape), axis=1).astype(np.int64)
            parts.append(accepted(counts, gpu_type, ask_patterns(run.model, types, counts, gpu_type)))
    return join_patterns(parts)


def accepted(counts: NDArray[np.int64], gpu_type: int, choices: Choices) -> Patterns:
    """Return those of N sets, int64 [N, T], that were accepted."""
    mine = np.flatnonzero(choices.feasible)
    return Patterns(
        counts=counts[mine],
        gpu_type=np.full(len(mine), gpu_type, dtype=np.int64),
        max_loras=choices.max_loras[mine],
        max_lora_rank=choices.max_lora_rank[mine],
    )


def join_patterns(parts: list[Patterns]) -> Patterns:
    """Return the patterns of several parts, at least one, as one."""
    return Patterns(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("counts", "gpu_type", "max_loras", "max_lora_rank")
        )
    )
