"""Where a replica begins to starve: loads to try in turn, and what the verdicts on them say."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

# Once the border is known to this factor, loads are placed around it.
BRACKET_FACTOR = 1.08
# Natural logarithm of how far from the border they lie at most.
NEAR_DISTANCE = 0.15
# Rows of a search that are kept for loads near the border, and for one far from it.
NEAR_ROWS = 4
FAR_ROWS = 1
LEAST_LOADS = NEAR_ROWS + FAR_ROWS + 1
FAR_LOADS = (0.04, 3.0)


class BorderSearch:
    """Loads for the rows of one search: bracket the border by factors of two and four, bisect, then stay near it.

    Parameters
    ----------
    first_rps
        Load to begin with, in requests per second.
    largest_rps
        Load beyond which none is asked for: what no replica serves.
    num_rows
        Loads that will be asked for, at least `LEAST_LOADS`.
    generator
        Of the loads that are not decided by verdicts.
    """

    def __init__(
        self, first_rps: float, *, num_rows: int, generator: np.random.Generator, largest_rps: float = math.inf
    ) -> None:
        assert num_rows >= LEAST_LOADS, num_rows
        self._first_rps = min(first_rps, largest_rps)
        self._largest_rps = largest_rps
        self._num_rows = num_rows
        self._generator = generator
        self._loads: list[float] = []
        self._starved_shares: list[float] = []
        self._near_places: list[float] = []

    @property
    def border_rps(self) -> float | None:
        """Best guess of the load at which starvation begins; None until both verdicts were met."""
        return border_of(self._loads, self._starved_shares)

    def next_load(self) -> float:
        """Return the next load to simulate, in requests per second."""
        return min(self._choose_load(), self._largest_rps)

    def _choose_load(self) -> float:
        remaining = self._num_rows - len(self._loads)
        assert remaining > 0, self._num_rows
        lower, upper = self._bracket()
        is_at_limit = upper is None and bool(self._loads) and max(self._loads) >= self._largest_rps
        if remaining <= FAR_ROWS or is_at_limit:
            centre = self.border_rps or self._loads[0]
            return centre * float(np.exp(self._generator.uniform(*np.log(FAR_LOADS))))
        if lower is None or upper is None:
            if not self._loads:
                return self._first_rps
            # Far from the border rows are of little use, so that the steps grow.
            factor = 2.0 if len(self._loads) <= 2 else 4.0
            return max(self._loads) * factor if upper is None else min(self._loads) / factor
        if upper > BRACKET_FACTOR * lower and remaining > NEAR_ROWS + FAR_ROWS:
            return math.sqrt(lower * upper)
        return self._near_load(remaining - FAR_ROWS)

    def tell(self, load_rps: float, starved_share: float) -> None:
        """Learn the share of the seeds with which a load starves, in [0, 1]."""
        self._loads.append(load_rps)
        self._starved_shares.append(starved_share)

    def _bracket(self) -> tuple[float | None, float | None]:
        """Return the largest load before, and the smallest beyond, the border."""
        verdicts = sorted(zip(self._loads, self._starved_shares, strict=True))
        border = self.border_rps
        if border is None:
            is_starved = bool(verdicts) and verdicts[0][1] >= 0.5
            return (None, verdicts[0][0]) if is_starved else (verdicts[-1][0] if verdicts else None, None)
        lower = max(load for load, _ in verdicts if load <= border)
        upper = min(load for load, _ in verdicts if load > border)
        return lower, upper

    def _near_load(self, num_left: int) -> float:
        """Return a load near the border: one in each of equal parts of the range, in random order."""
        if not self._near_places:
            places = (np.arange(num_left) + self._generator.random(num_left)) / num_left
            self._generator.shuffle(places)
            self._near_places = places.tolist()
        border = self.border_rps
        assert border is not None
        return border * math.exp(NEAR_DISTANCE * (2.0 * self._near_places.pop() - 1.0))


def border_of(loads_rps: Sequence[float], starved_shares: Sequence[float]) -> float | None:
    """Return the load that separates the verdicts best; None where none or all of them say that it starves.

    Parameters
    ----------
    loads_rps, starved_shares
        N loads in requests per second, in any order, and the share of the seeds with which each starves.

    Returns
    -------
    The geometric mean of the two neighbouring loads between which a step from 0 to 1 has the least absolute distance
    from the shares; of equally good ones, their geometric mean. Near the border, chance makes verdicts contradict each
    other.
    """
    order = np.argsort(loads_rps, kind="stable")
    loads = np.asarray(loads_rps, dtype=np.float64)[order]
    shares = np.asarray(starved_shares, dtype=np.float64)[order]
    if not len(loads) or (shares < 0.5).all() or (shares >= 0.5).all():
        return None
    # Position k: the first k loads are said to be served, the others to starve.
    misses = np.concatenate([[0.0], np.cumsum(shares)]) + np.concatenate([np.cumsum((1.0 - shares)[::-1])[::-1], [0.0]])
    inner = misses[1:-1]
    best = 1 + np.flatnonzero(inner <= inner.min() + 1e-9)
    return float(np.exp(np.mean(0.5 * np.log(loads[best - 1] * loads[best]))))


def most_served(count: int, starves: Callable[[int], bool]) -> int:
    """Return the largest n in ``[1, count]`` for which the first n adapters do not starve, by bisection; at least 1.

    Parameters
    ----------
    count
        How many adapters there are, >= 1.
    starves
        Whether the first n starve; asked about once for each n, and believed to be monotone.
    """
    low, high = 0, count + 1
    while high - low > 1:
        # Doubling first: most sets end far before the last adapter.
        middle = min(2 * low + 1, count) if high == count + 1 else (low + high) // 2
        if starves(middle):
            high = middle
        else:
            low = middle
    return max(low, 1)
