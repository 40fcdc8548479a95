"""Adapters that are interchangeable, as types with counts: what methods that count instead of naming adapters work on.

A surrogate sees sums of aggregates, so adapters with equal aggregates are interchangeable, and a set is a vector of
counts per type. With continuous rates nearly every adapter is a type of its own; `cluster_types` then groups those that
are alike and lets one row stand for each group. Which row is a matter of purpose:

- ``mean``: the sums of a whole group are exact, so that patterns are neither too full nor too empty on the whole. A
  single GPU may get more than its pattern says: who uses these types must ask about the real adapters, and repair. This
  is what looks for placements: heaviest members would pay for load that nobody offers, about a quarter of it with 15
  levels over three decades of rates.
- ``heaviest``: the largest value of each column. A surrogate that never accepts more load after refusing less accepts
  the real adapters wherever it accepts the pattern.
- ``lightest``: the smallest value of each column; what no pattern of these types can do, no placement can, for such a
  surrogate. This is what proves.

A surrogate that looks at the members of a set (the twin) may answer differently for adapters of one type: their
traffic is drawn apart.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from predictors.features import AGGREGATE_NAMES
from solvers.bounds import adapter_work, unavoidable_costs
from solvers.placement import GpuAssignment, Placement
from solvers.problem import Problem

Representative = Literal["mean", "heaviest", "lightest"]

# Levels by rate inside one rank and one class of lengths.
RATE_LEVELS = 15
# Levels of each of the quantities that describe an adapter's requests: prompt, output, burstiness.
SHAPE_LEVELS = 3

_RATE_COLUMN = AGGREGATE_NAMES.index("sum_rate_rps")
_SHAPE_COLUMNS = [AGGREGATE_NAMES.index(name) for name in ("sum_prompt_tps", "sum_output_tps", "sum_rate_cv_sq")]
# Quotients of rounded sums are equal up to this many significant digits.
_SHAPE_DIGITS = 6


@dataclass(frozen=True)
class AdapterTypes:
    """The adapters of a problem, grouped.

    Types are in the order of rank descending, then mean rate descending, whatever stands for them.

    Attributes
    ----------
    members
        Indices into the problem's adapters of each type, the one with the most work first; every adapter is in one.
    counts
        Number of members, int64 [T].
    rows
        Aggregates that stand for one adapter of each type, float64 [T, K], in the order of `AGGREGATE_NAMES`, then the
        columns of constraints, as those of `Problem.aggregates`; constraints are the same for all of a type.
    ranks
        int64 [T].
    rates_rps
        Of the rows, float64 [T].
    type_of
        Type of each adapter, int64 [A].
    work
        Each adapter's unavoidable GPU-seconds per second on the first GPU type, float64 [A].
    is_exact
        All members of every type have its row, so a pattern that is feasible is feasible with any members.
    """

    members: tuple[tuple[int, ...], ...]
    counts: NDArray[np.int64]
    rows: NDArray[np.float64]
    ranks: NDArray[np.int64]
    rates_rps: NDArray[np.float64]
    type_of: NDArray[np.int64]
    work: NDArray[np.float64]
    is_exact: bool

    @property
    def loads(self) -> NDArray[np.float64]:
        """The rows without what they say of constraints, float64 [T, len(AGGREGATE_NAMES)]."""
        return self.rows[:, : len(AGGREGATE_NAMES)]

    @property
    def num_types(self) -> int:
        """Number of types."""
        return len(self.members)

    @property
    def num_adapters(self) -> int:
        """Number of adapters in all types."""
        return len(self.type_of)

    def aggregates(self, patterns: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the aggregates of N patterns (counts per type, int64 [N, T]), float64 [N, K].

        The sums are exact for exact types, as those of `Problem.aggregates` are.
        """
        sums: NDArray[np.float64] = patterns.astype(np.float64) @ self.rows
        return sums

    def max_ranks(self, patterns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the largest rank in each of N patterns, int64 [N]; 0 for an empty one."""
        largest: NDArray[np.int64] = np.where(patterns > 0, self.ranks, 0).max(axis=1, initial=0)
        return largest

    def pattern_of(self, adapters: Sequence[int]) -> NDArray[np.int64]:
        """Return how many of each type are among `adapters`, int64 [T]."""
        types = self.type_of[np.asarray(adapters, dtype=np.int64)]
        return np.bincount(types, minlength=self.num_types).astype(np.int64)


def exact_types(problem: Problem) -> AdapterTypes:
    """Group the adapters that no surrogate of features can tell apart: those with equal aggregates."""
    _, labels = np.unique(problem.aggregates, axis=0, return_inverse=True)
    return _types(problem, labels.reshape(-1), "mean")


def single_types(problem: Problem) -> AdapterTypes:
    """Make every adapter a type of its own, for surrogates that tell apart even those with equal aggregates."""
    return _types(problem, np.arange(len(problem.adapters), dtype=np.int64), "mean")


def cluster_types(
    problem: Problem,
    *,
    levels: int = RATE_LEVELS,
    shape_levels: int = SHAPE_LEVELS,
    representative: Representative = "mean",
) -> AdapterTypes:
    """Group adapters of one rank with similar requests and similar rates.

    Requests are described by their mean prompt, mean output and burstiness. Where a rank has no more than
    `shape_levels` values of one of these, or a class of requests no more than `levels` rates, the values themselves
    are the levels; otherwise levels have equal width on a logarithmic scale. With few distinct values the types are
    those of `exact_types`.

    Parameters
    ----------
    problem
        Whose adapters.
    levels, shape_levels
        At least 1.
    representative
        Which row stands for a group; see the module.
    """
    rates = problem.aggregates[:, _RATE_COLUMN]
    labels = problem.ranks.copy()
    constraints = problem.aggregates[:, problem.constraint_columns]
    if constraints.shape[1]:
        labels = _combine(labels, np.unique(constraints, axis=0, return_inverse=True)[1].reshape(-1))
    shapes = problem.aggregates[:, _SHAPE_COLUMNS] / np.maximum(rates, np.finfo(np.float64).tiny)[:, None]
    parts = [_refine(labels, _rounded(column), shape_levels) for column in shapes.T]
    for part in parts:
        labels = _combine(labels, part)
    labels = _combine(labels, _refine(labels, rates, levels))
    return _types(problem, labels, representative)


def expand_patterns(types: AdapterTypes, patterns: NDArray[np.int64]) -> list[tuple[int, ...]]:
    """Choose the adapters of each GPU.

    Members of a type are dealt out heaviest first, each to the GPU that lacks most work per adapter that it still
    needs: so that GPUs come close to the mean work that their patterns promise.

    Parameters
    ----------
    types
        Whose members.
    patterns
        Counts of G GPUs, int64 [G, T]; the sum of each column is the type's count.

    Returns
    -------
    The sorted adapter indices of each GPU.
    """
    assert np.array_equal(patterns.sum(axis=0), types.counts), "every adapter must be dealt out once"
    chosen: list[list[int]] = [[] for _ in patterns]
    excess = np.zeros(len(patterns))
    for index, members in enumerate(types.members):
        mean_work = float(types.work[list(members)].mean())
        left = patterns[:, index].copy()
        heap = [(float(excess[gpu] / left[gpu]), int(gpu)) for gpu in np.flatnonzero(left)]
        heapq.heapify(heap)
        for adapter in members:
            _, gpu = heapq.heappop(heap)
            chosen[gpu].append(adapter)
            left[gpu] -= 1
            excess[gpu] += types.work[adapter] - mean_work
            if left[gpu]:
                heapq.heappush(heap, (float(excess[gpu] / left[gpu]), gpu))
    return [tuple(sorted(adapters)) for adapters in chosen]


def placement_of_patterns(
    types: AdapterTypes,
    patterns: NDArray[np.int64],
    *,
    gpu_types: NDArray[np.int64],
    max_loras: NDArray[np.int64],
    max_lora_ranks: NDArray[np.int64],
) -> Placement:
    """Return the placement with these patterns (int64 [G, T]) and settings (int64 [G]) of each GPU; none is empty."""
    return Placement(
        tuple(
            GpuAssignment(
                gpu_type=int(gpu_types[gpu]),
                adapters=adapters,
                max_loras=int(max_loras[gpu]),
                max_lora_rank=int(max_lora_ranks[gpu]),
            )
            for gpu, adapters in enumerate(expand_patterns(types, patterns))
        )
    )


def _types(problem: Problem, labels: NDArray[np.int64], representative: Representative) -> AdapterTypes:
    work = adapter_work(problem, unavoidable_costs(problem, 0))
    # By label, then the heaviest first; the index makes the order total.
    order = np.lexsort((np.arange(len(labels)), -work, labels))
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    rows = np.array([_stand_in(problem.aggregates[group], representative) for group in groups])
    ranks = np.array([problem.ranks[group[0]] for group in groups], dtype=np.int64)
    rates = rows[:, _RATE_COLUMN]
    mean_rates = np.array([problem.aggregates[group, _RATE_COLUMN].mean() for group in groups])
    ranking = np.lexsort((np.arange(len(groups)), -mean_rates, -ranks))
    members = tuple(tuple(int(index) for index in groups[position]) for position in ranking)
    type_of = np.empty(len(labels), dtype=np.int64)
    for index, group in enumerate(members):
        type_of[list(group)] = index
    return AdapterTypes(
        members=members,
        counts=np.array([len(group) for group in members], dtype=np.int64),
        rows=rows[ranking],
        ranks=ranks[ranking],
        rates_rps=rates[ranking],
        type_of=type_of,
        work=work,
        is_exact=bool(np.array_equal(rows[ranking][type_of], problem.aggregates)),
    )


def _stand_in(rows: NDArray[np.float64], representative: Representative) -> NDArray[np.float64]:
    """Return the row that stands for a group [M, K]; that of its members where they are equal."""
    lightest, heaviest = rows.min(axis=0), rows.max(axis=0)
    if representative == "lightest":
        chosen = lightest
    elif representative == "heaviest":
        chosen = heaviest
    else:
        # A mean of equal values may be rounded; it never leaves their range.
        chosen = np.clip(rows.mean(axis=0), lightest, heaviest)
    return np.asarray(chosen, dtype=np.float64)


def _combine(labels: NDArray[np.int64], parts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return labels that differ wherever either of two does, int64 [A]."""
    _, combined = np.unique(np.stack([labels, parts]), axis=1, return_inverse=True)
    return combined.reshape(-1).astype(np.int64)


def _refine(labels: NDArray[np.int64], values: NDArray[np.float64], levels: int) -> NDArray[np.int64]:
    """Return the level of each of `values` (>= 0) among those of its label, int64 [A]."""
    parts = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        mine = labels == label
        parts[mine] = _levels(values[mine], levels)
    return parts


def _levels(values: NDArray[np.float64], levels: int) -> NDArray[np.int64]:
    """Return the level of each of `values`: the value itself when there are few, else a logarithmic bin; 0 is apart."""
    distinct, labels = np.unique(values, return_inverse=True)
    if len(distinct) <= levels:
        return labels.reshape(-1).astype(np.int64)
    positive = distinct[distinct > 0.0]
    edges = np.geomspace(positive[0], positive[-1], levels + 1)[1:-1]
    bins = 1 + np.searchsorted(edges, values, side="right")
    return np.where(values > 0.0, bins, 0).astype(np.int64)


def _rounded(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return `values` to a few significant digits, so that quotients of rounded sums compare equal."""
    return np.array([float(f"{value:.{_SHAPE_DIGITS}g}") for value in values], dtype=np.float64)
