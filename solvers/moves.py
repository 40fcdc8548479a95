"""How many adapters change their GPU between two placements whose GPUs have no names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from twin.errors import InputError


def count_moves(before: Sequence[Sequence[int]], after: Sequence[Sequence[int]]) -> int:
    """Return the adapters of both placements that move, with GPUs matched such that they are the fewest.

    Parameters
    ----------
    before, after
        For each GPU the indices of its adapters; an adapter is on one GPU at most. Any GPU may stand for any other one.

    Raises
    ------
    InputError
        When SciPy, which matches them, is not installed.
    """
    home = {adapter: gpu for gpu, adapters in enumerate(before) for adapter in adapters}
    shared = np.zeros((len(before), len(after)), dtype=np.int64)
    for gpu, adapters in enumerate(after):
        for adapter in adapters:
            if adapter in home:
                shared[home[adapter], gpu] += 1
    return int(shared.sum()) - num_staying(shared, match_gpus(shared))


def match_gpus(shared: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return which GPU of before each GPU of after stands for, so that the most adapters stay where they are.

    Parameters
    ----------
    shared
        Adapters that each GPU of before has in common with each of after, int64 [B, A]; 0 where the two must not stand
        for each other.

    Returns
    -------
    int64 [A], each GPU of before at most once; -1 for those that have nothing in common with the one left to them.

    Raises
    ------
    InputError
        When SciPy is not installed.
    """
    matched = np.full(shared.shape[1], -1, dtype=np.int64)
    if not shared.any():
        return matched
    rows, columns = require_matcher()(shared, maximize=True)
    kept = shared[rows, columns] > 0
    matched[columns[kept]] = rows[kept]
    return matched


def require_matcher() -> Callable[..., tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return SciPy's solver of assignment problems; InputError where SciPy is not installed."""
    try:
        from scipy.optimize import linear_sum_assignment  # noqa: PLC0415 - comes with an extra
    except ImportError as error:
        raise InputError(
            f"counting moves needs the extra `train`. {error}.",
            field="previous",
            hint="pip install 'lora-placer[train]'",
        ) from error
    matcher: Callable[..., tuple[NDArray[np.int64], NDArray[np.int64]]] = linear_sum_assignment
    return matcher


def num_staying(shared: NDArray[np.int64], matched: NDArray[np.int64]) -> int:
    """Return how many adapters stay on their GPU when those of after stand for `matched` of before."""
    columns = np.flatnonzero(matched >= 0)
    return int(shared[matched[columns], columns].sum())
