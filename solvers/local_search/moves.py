"""Moves between a GPU and the pool, compiled: which exchanges to try, and what the GPUs' aggregates become.

A GPU's aggregates are sums over its adapters, so a move changes a row by one vector, and its largest rank follows from
the counts per rank. Importing this module loads Numba.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from predictors.features import AGGREGATE_NAMES
from twin.engine import SUPPORTED_RANKS
from twin.kernel_compile import compiled_entry

FIRST_RANK_COLUMN = AGGREGATE_NAMES.index(f"num_rank_{SUPPORTED_RANKS[0]}")
NUM_RANKS = len(SUPPORTED_RANKS)
# In place of an adapter: nobody leaves, or nobody was found who could join.
NOBODY = -1
# Of the work that leaves: equal adapters are not exchanged for the sake of rounding errors.
LEAST_GAIN_SHARE = 1e-9


class GpuState(NamedTuple):
    """What exchanges are drawn by.

    Attributes
    ----------
    offsets, members
        Adapters of GPU g: ``members[offsets[g]:offsets[g + 1]]``; int64 [G + 1] and [sum of sizes].
    max_rank
        Largest rank on each GPU, int64 [G].
    room
        Work that each GPU is known to refuse in addition to what it has, float64 [G]; infinite: nothing is known.
    """

    offsets: NDArray[np.int64]
    members: NDArray[np.int64]
    max_rank: NDArray[np.int64]
    room: NDArray[np.float64]


class Pool(NamedTuple):
    """Adapters without a GPU, and what is known of all adapters.

    Attributes
    ----------
    adapters, sorted_work
        By work, ascending: int64 [P], float64 [P].
    work, ranks
        Of all adapters: float64 [A], int64 [A].
    """

    adapters: NDArray[np.int64]
    sorted_work: NDArray[np.float64]
    work: NDArray[np.float64]
    ranks: NDArray[np.int64]


@compiled_entry
def exchanged_rows(
    rows: NDArray[np.float64],
    aggregates: NDArray[np.float64],
    exchanges: NDArray[np.int64],
    result: NDArray[np.float64],
    result_rank: NDArray[np.int64],
) -> None:
    """Write what each exchange would make of its GPU: aggregates and largest rank.

    Parameters
    ----------
    rows, aggregates
        Of the GPUs and of the adapters, float64 [G, K] and [A, K].
    exchanges
        int64 [M, 3]: GPU, adapter that leaves it or `NOBODY`, adapter that joins it.
    result, result_rank
        float64 [M, K] and int64 [M]: written.
    """
    for index in range(len(exchanges)):
        gpu, leaving, joining = exchanges[index]
        for column in range(aggregates.shape[1]):
            value = rows[gpu, column] + aggregates[joining, column]
            if leaving >= 0:
                value -= aggregates[leaving, column]
            result[index, column] = value
        result_rank[index] = 0
        for position in range(NUM_RANKS - 1, -1, -1):
            if result[index, FIRST_RANK_COLUMN + position] > 0.5:
                result_rank[index] = SUPPORTED_RANKS[position]
                break


@compiled_entry
def draw_exchanges(
    gpus: GpuState,
    pool: Pool,
    uniforms: NDArray[np.float64],
    exchanges: NDArray[np.int64],
    gains: NDArray[np.float64],
) -> None:
    """Draw exchanges that make a GPU fuller: an adapter of the pool joins, and one with less work leaves for the pool.

    The one that leaves is drawn from the GPU's members and nobody; the one that joins from those of the pool that add
    some work, and less than the GPU is known to refuse. Who would raise the GPU's largest rank does not join.

    Parameters
    ----------
    gpus, pool
        Neither is changed.
    uniforms
        Random numbers in [0, 1), float64 [M, 2].
    exchanges
        int64 [M, 3], as `exchanged_rows` takes them: the GPUs are given, the adapters are written, with `NOBODY` as the
        one that joins where none was found.
    gains
        Work that each adds to its GPU, float64 [M]: written.
    """
    sorted_work = pool.sorted_work
    for index in range(len(exchanges)):
        gpu = exchanges[index, 0]
        start = gpus.offsets[gpu]
        num_members = gpus.offsets[gpu + 1] - start
        drawn = int(uniforms[index, 0] * (num_members + 1))
        leaving = gpus.members[start + drawn] if drawn < num_members else NOBODY
        leaving_work = pool.work[leaving] if leaving >= 0 else 0.0
        least, most = leaving_work * (1.0 + LEAST_GAIN_SHARE), leaving_work + gpus.room[gpu]
        # The first position with more work than the one that leaves, and the first with too much; both by bisection.
        first, beyond = 0, len(sorted_work)
        while first < beyond:
            middle = (first + beyond) // 2
            if sorted_work[middle] <= least:
                first = middle + 1
            else:
                beyond = middle
        end, beyond = first, len(sorted_work)
        while end < beyond:
            middle = (end + beyond) // 2
            if sorted_work[middle] < most:
                end = middle + 1
            else:
                beyond = middle
        exchanges[index, 1] = leaving
        exchanges[index, 2] = NOBODY
        gains[index] = 0.0
        if first < end:
            joining = pool.adapters[first + int(uniforms[index, 1] * (end - first))]
            if pool.ranks[joining] <= gpus.max_rank[gpu]:
                exchanges[index, 2] = joining
                gains[index] = pool.work[joining] - leaving_work
