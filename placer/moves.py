"""How many adapters change their GPU between two placements whose GPUs have no names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from twin.errors import InputError


def count_moves(before: Sequence[Sequence[int]], after: Sequence[Sequence[int]]) -> int:
    """Return the adapters of both placements that move, with GPUs matched such that they are the fewest.

    Parameters
    ----------
    before, after
        For each GPU the indices of its adapters; an adapter is on one GPU at most.

    Raises
    ------
    InputError
        When SciPy, which matches them, is not installed.
    """
    home = {adapter: gpu for gpu, adapters in enumerate(before) for adapter in adapters}
    overlaps = Counter(
        (home[adapter], gpu) for gpu, adapters in enumerate(after) for adapter in adapters if adapter in home
    )
    if not overlaps:
        return 0
    try:
        from scipy.optimize import linear_sum_assignment  # noqa: PLC0415 - comes with an extra
    except ImportError as error:
        raise InputError(
            f"counting moves needs the extra `train`. {error}.",
            field="previous",
            hint="pip install 'lora-placer[train]'",
        ) from error
    shared = np.zeros((len(before), len(after)))
    for (old, new), count in overlaps.items():
        shared[old, new] = count
    rows, columns = linear_sum_assignment(shared, maximize=True)
    return int(overlaps.total() - shared[rows, columns].sum())
