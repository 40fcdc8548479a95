"""Exchanges of a pattern: some adapters of one type for some of another, those first that gain most."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# How much fuller a GPU may look after an exchange, as a share of it. Estimates are those of a typical GPU: one that
# holds few large adapters may have more room. Of the exchanges up to each of these as many are asked about.
EXCHANGE_SLACKS = (0.04, 0.12, 0.36)
# Gains below this are rounding.
LEAST_GAIN = 1e-7


def best_exchanges(
    pattern: NDArray[np.int64],
    *,
    values: NDArray[np.float64],
    shares: NDArray[np.float64],
    demand: NDArray[np.int64],
    most: int,
) -> NDArray[np.int64]:
    """Return what a pattern may become by one exchange, the most valuable first, int64 [M, T].

    One adapter leaves for as many of another type as take its share of the GPU, or one more; or as many leave as one of
    another type needs, or one less; or nobody leaves and one enters.

    Parameters
    ----------
    pattern
        Counts, int64 [T].
    values, shares
        Of one adapter of each type: what it is worth, and the estimated share of a GPU that it takes, float64 [T].
    demand
        Most adapters of each type, int64 [T].
    most
        Of the patterns to return.
    """
    entering = np.flatnonzero((values > 0.0) & (demand > pattern))
    leaving = np.flatnonzero(pattern)
    num_out, num_in = _amounts(shares[leaving][:, None] / shares[entering][None])
    # The last row is that nobody leaves.
    nobody = np.zeros((len(num_out), 1, len(entering)), dtype=np.int64)
    num_out, num_in = np.append(num_out, nobody, axis=1), np.append(num_in, nobody + 1, axis=1)
    source = np.append(leaving, 0)
    gain = num_in * values[entering] - num_out * values[source][:, None]
    fuller = num_in * shares[entering] - num_out * shares[source][:, None]
    allowed = (num_out <= pattern[source][:, None]) & (num_in <= (demand - pattern)[entering])
    allowed &= (gain > LEAST_GAIN) & (fuller < EXCHANGE_SLACKS[-1])
    allowed &= (source[:, None] != entering) | (num_out == 0)
    kinds, rows, columns = np.nonzero(allowed)
    bands = np.searchsorted(EXCHANGE_SLACKS, fuller[kinds, rows, columns], side="right")
    by_gain = np.argsort(-gain[kinds, rows, columns], kind="stable")
    order = np.concatenate(
        [by_gain[bands[by_gain] == band][: most // len(EXCHANGE_SLACKS)] for band in range(len(EXCHANGE_SLACKS))]
    )
    kinds, rows, columns = kinds[order], rows[order], columns[order]
    changed = np.repeat(pattern[None], len(order), axis=0)
    positions = np.arange(len(order))
    changed[positions, source[rows]] -= num_out[kinds, rows, columns]
    changed[positions, entering[columns]] += num_in[kinds, rows, columns]
    return changed


def _amounts(ratios: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return how many leave and how many enter, int64 [4, S, E] both, for ratios of shares float64 [S, E]."""
    one = np.ones_like(ratios)
    inverse = 1.0 / ratios
    leave = np.stack([one, one, np.maximum(np.ceil(inverse), 1.0), np.maximum(np.floor(inverse), 1.0)])
    enter = np.stack([np.maximum(np.floor(ratios), 1.0), np.floor(ratios) + 1.0, one, one])
    return leave.astype(np.int64), enter.astype(np.int64)
