"""Fill many GPUs type by type, all asking together: as many adapters of each type, in a given order, as fit.

Nearly all questions could be about types of which none fits any more. So a type that is refused closes the GPU for all
types that are no lighter in any sum and need no smaller slots: a surrogate that then accepts one of them all the same
loses a pattern, not an answer. Numbers of adapters are first looked for near what the room that is left suggests.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from predictors.features import AGGREGATE_NAMES
from solvers.patterns.questions import PatternModel
from twin.engine import SUPPORTED_RANKS

# Counts of one type that a GPU asks about at once.
NUM_CANDIDATES = 3
# Counts that are asked about first, in parts of what the room that is left suggests; after a single one.
FIRST_PARTS = (0.8, 1.1)
# How much more than what fits an empty GPU, by estimate, is tried.
MOST_SHARE = 1.1
# Sums that differ less, relatively, are equal.
ROUNDING = 1e-9

# Of aggregates, at the problem's rates or under a scenario.
_RANK_COLUMNS = np.array([AGGREGATE_NAMES.index(f"num_rank_{rank}") for rank in SUPPORTED_RANKS])


class Filling:
    """Fills GPUs of one type.

    Parameters
    ----------
    model
        Who is asked.
    gpu_type
        Of all GPUs.
    alone
        Share of an empty GPU that one adapter of each type takes, float64 [T], > 0.
    """

    def __init__(self, model: PatternModel, gpu_type: int, alone: NDArray[np.float64]) -> None:
        self._model = model
        self._gpu_type = gpu_type
        self._ranks = model.types.ranks
        # Loads, and what rules count: more of it never helps. Ranks are compared with those that are on the GPU.
        starts = np.array(model.run.problem.count_columns)
        own = np.delete(model.types.rows, starts[:, None] + _RANK_COLUMNS, axis=1)
        self._is_no_lighter = np.array([(own >= row * (1.0 - ROUNDING)).all(axis=1) for row in own])
        self._most = np.ceil(MOST_SHARE / alone).astype(np.int64)

    def fill(
        self,
        patterns: NDArray[np.int64],
        orders: NDArray[np.int64],
        demand: NDArray[np.int64],
        shares: NDArray[np.float64],
    ) -> NDArray[np.int64]:
        """Return what S patterns, int64 [S, T], become.

        Parameters
        ----------
        orders
            Types that each pattern is offered, the first ones first, padded with -1, int64 [S, L].
        demand
            Most adapters of each type, int64 [T].
        shares
            Of a GPU that one adapter of each type takes by estimate, float64 [T], > 0.

        Raises
        ------
        BudgetSpentError
            When the budget ends.
        """
        state = _State.of(patterns, orders)
        while (turns := self._next_turns(state, demand)).any():
            active = np.flatnonzero(turns)
            is_first = state.high[active] < 0
            started = active[is_first]
            kinds = state.kinds(active)
            state.low[started] = 0
            left = demand[kinds[is_first]] - state.patterns[started, kinds[is_first]]
            state.high[started] = np.minimum(left, self._most[kinds[is_first]])
            counts = _between(state.low[active], state.high[active])
            room = np.maximum(1.0 - state.patterns[active] @ shares, 0.0) / shares[kinds]
            counts[is_first] = _near(room[is_first], state.high[started])
            self._ask(state, active, kinds, counts)
            self._settle(state, active, kinds)
        return state.patterns

    def _next_turns(self, state: _State, demand: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Move each pattern without a type to the next one that may fit; return which patterns have one, bool [S]."""
        waiting = np.flatnonzero(state.high < 0)
        orders = state.orders[waiting]
        rows = waiting[:, None]
        may_fit = (orders >= 0) & ~state.is_closed[rows, orders]
        may_fit &= np.arange(orders.shape[1]) >= state.position[rows]
        may_fit &= demand[orders] > state.patterns[rows, orders]
        state.position[waiting] = np.where(may_fit.any(axis=1), may_fit.argmax(axis=1), orders.shape[1])
        return np.asarray(state.position < state.orders.shape[1])

    def _ask(
        self, state: _State, active: NDArray[np.int64], kinds: NDArray[np.int64], counts: NDArray[np.int64]
    ) -> None:
        """Ask for ascending numbers [A, C] of the active patterns' types, equal ones once; narrow what is possible."""
        is_new = np.diff(counts, axis=1, prepend=-1) > 0
        owners, columns = np.nonzero(is_new)
        asked = state.patterns[active[owners]]
        asked[np.arange(len(asked)), kinds[owners]] += counts[owners, columns]
        answers = self._model.feasible(asked, self._gpu_type)
        fits = answers[np.cumsum(is_new).reshape(is_new.shape) - 1]
        state.low[active] = np.where(fits, counts, state.low[active, None]).max(axis=1)
        state.is_refused[active] |= ~fits.all(axis=1)
        refused = np.where(fits, state.high[active, None], counts - 1).min(axis=1)
        state.high[active] = np.maximum(refused, state.low[active])

    def _settle(self, state: _State, active: NDArray[np.int64], kinds: NDArray[np.int64]) -> None:
        """Add the numbers that are known, and close the patterns for what is no lighter than what was refused."""
        known = state.low[active] == state.high[active]
        done, kinds = active[known], kinds[known]
        state.patterns[done, kinds] += state.low[done]
        largest = np.where(state.patterns[done] > 0, self._ranks, 0).max(axis=1, initial=0)[:, None]
        needs_no_less = np.maximum(self._ranks, largest) >= np.maximum(self._ranks[kinds][:, None], largest)
        is_closed = state.is_refused[done][:, None] & self._is_no_lighter[kinds] & needs_no_less
        state.is_closed[done] |= is_closed
        state.position[done] += 1
        state.high[done] = -1
        state.is_refused[done] = False


@dataclass(frozen=True)
class _State:
    """S patterns that are being filled.

    Attributes
    ----------
    patterns, orders
        As `Filling.fill` takes them.
    position
        In its order of the type that each is asked about, int64 [S].
    low, high
        Number of it that fits, and that may fit, int64 [S]; -1: nothing is asked about.
    is_refused
        Whether more of it was refused, bool [S].
    is_closed
        Types that fit no more, bool [S, T].
    """

    patterns: NDArray[np.int64]
    orders: NDArray[np.int64]
    position: NDArray[np.int64]
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    is_refused: NDArray[np.bool_]
    is_closed: NDArray[np.bool_]

    @classmethod
    def of(cls, patterns: NDArray[np.int64], orders: NDArray[np.int64]) -> _State:
        """Return patterns, which are copied, that are offered the first types of their orders."""
        num = len(patterns)
        return cls(
            patterns=patterns.copy(),
            orders=orders,
            position=np.zeros(num, dtype=np.int64),
            low=np.zeros(num, dtype=np.int64),
            high=np.full(num, -1, dtype=np.int64),
            is_refused=np.zeros(num, dtype=np.bool_),
            is_closed=np.zeros(patterns.shape, dtype=np.bool_),
        )

    def kinds(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the types that some patterns are asked about, int64 [len(rows)]."""
        return self.orders[rows, self.position[rows]]


def _between(low: NDArray[np.int64], high: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return ascending counts above `low`, the last one `high`, int64 [N, C]."""
    steps = np.arange(1, NUM_CANDIDATES + 1)
    return np.asarray(low[:, None] - (-steps * (high - low)[:, None] // NUM_CANDIDATES), dtype=np.int64)


def _near(room: NDArray[np.float64], most: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return ascending counts of which the largest one that fits is probably near `room`, int64 [N, C], in 1..most."""
    guesses = np.ceil(room[:, None] * np.array(FIRST_PARTS))
    counts = np.concatenate([np.ones((len(room), 1)), guesses], axis=1)
    return np.asarray(np.clip(counts, 1, most[:, None]), dtype=np.int64)
