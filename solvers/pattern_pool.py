"""A pool of sets that one GPU can hold, where there are too many to list: those of placements, and random full ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from solvers.adapter_types import AdapterTypes
from solvers.feasible_patterns import Patterns, accepted, ask_patterns, join_patterns
from solvers.placement import Placement
from solvers.result import Termination
from solvers.run import SolverRun

# Random patterns of each GPU type, all grown together: each round is one question.
RANDOM_PATTERNS = 96
# Adapters that are tried one by one after the longest beginning of a random sequence that fits.
LAST_ADAPTERS = 12


def patterns_of(placement: Placement, types: AdapterTypes) -> Patterns:
    """Return the GPUs of a placement as patterns."""
    gpus = placement.gpus
    return Patterns(
        counts=np.array([types.pattern_of(gpu.adapters) for gpu in gpus]),
        gpu_type=np.array([gpu.gpu_type for gpu in gpus], dtype=np.int64),
        max_loras=np.array([gpu.max_loras for gpu in gpus], dtype=np.int64),
        max_lora_rank=np.array([gpu.max_lora_rank for gpu in gpus], dtype=np.int64),
    )


def pattern_pool(run: SolverRun, types: AdapterTypes, generator: np.random.Generator) -> Patterns | Termination:
    """Return the patterns of the best placement so far and random ones, or why there was no time for them."""
    parts = [] if run.incumbent is None else [patterns_of(run.incumbent.placement, types)]
    for gpu_type in range(len(run.problem.gpu_types)):
        drawn = _random_patterns(run, types, gpu_type, generator)
        if isinstance(drawn, Termination):
            return drawn
        parts.append(drawn)
    pool = join_patterns(parts)
    _, first = np.unique(np.column_stack([pool.gpu_type, pool.counts]), axis=0, return_index=True)
    return pool.take(np.sort(first))


def _random_patterns(
    run: SolverRun, types: AdapterTypes, gpu_type: int, generator: np.random.Generator
) -> Patterns | Termination:
    """Fill GPUs with adapters in random orders: by halving as far as that goes, then one by one past what is refused.

    Whether a longer beginning fits is guessed from shorter ones; every pattern that is returned was accepted itself.
    """
    sequences = np.array([generator.permutation(types.type_of) for _ in range(RANDOM_PATTERNS)])
    low = np.zeros(len(sequences), dtype=np.int64)
    high = np.full(len(sequences), sequences.shape[1] + 1, dtype=np.int64)
    counts = np.zeros((len(sequences), types.num_types), dtype=np.int64)
    parts: list[Patterns] = []
    while (open_ones := np.flatnonzero(high - low > 1)).size:
        if (ended := run.exhausted()) is not None:
            return ended
        middle = (low[open_ones] + high[open_ones]) // 2
        tried = np.array(
            [_beginning(sequences[row], int(size), types) for row, size in zip(open_ones, middle, strict=True)]
        )
        choices = ask_patterns(run.model, types, tried, gpu_type)
        fits = choices.feasible
        counts[open_ones[fits]] = tried[fits]
        low[open_ones[fits]] = middle[fits]
        high[open_ones[~fits]] = middle[~fits]
        parts.append(accepted(tried, gpu_type, choices))
    for step in range(LAST_ADAPTERS):
        if (ended := run.exhausted()) is not None:
            return ended
        rows = np.flatnonzero(high + step < sequences.shape[1])
        if not len(rows):
            break
        tried = counts[rows].copy()
        tried[np.arange(len(rows)), sequences[rows, high[rows] + step]] += 1
        choices = ask_patterns(run.model, types, tried, gpu_type)
        counts[rows[choices.feasible]] = tried[choices.feasible]
        parts.append(accepted(tried, gpu_type, choices))
    kept = join_patterns(parts)
    grown = {tuple(row) for row in counts.tolist()}
    is_grown = np.array([tuple(row) in grown for row in kept.counts.tolist()], dtype=np.bool_)
    return kept.take(np.flatnonzero(is_grown))


def _beginning(sequence: NDArray[np.int64], length: int, types: AdapterTypes) -> NDArray[np.int64]:
    return np.bincount(sequence[:length], minlength=types.num_types).astype(np.int64)
