"""Which patterns fit a GPU: counts of types as questions to the surrogate, in batches that respect the budget."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from solvers.adapter_types import AdapterTypes
from solvers.result import Termination
from solvers.run import SolverRun

# Patterns of one batch: enough to amortise a call, few enough that a budget is not overdrawn by much.
BATCH_PATTERNS = 128
# A capacity is searched to this relative precision.
CAPACITY_PRECISION = 0.01
# Copies of one type below and beyond which its capacity is not searched.
LEAST_COPIES = 1e-2
MOST_COPIES = 4096.0
# Where a capacity is guessed: the smallest and the largest part of the guess that it may be, and its precision.
GUESSED_PARTS = (0.02, 0.7)
GUESSED_PRECISION = 0.06


class BudgetSpentError(Exception):
    """The search must end now; `termination` says why."""

    def __init__(self, termination: Termination) -> None:
        super().__init__(termination.value)
        self.termination = termination


class PatternModel:
    """The surrogate's view of patterns.

    Parameters
    ----------
    run
        Counts the questions and knows the budget.
    types
        What patterns count.
    """

    def __init__(self, run: SolverRun, types: AdapterTypes) -> None:
        self.run = run
        self.types = types

    def check_budget(self) -> None:
        """Raise BudgetSpentError when nothing is left of the budget."""
        if (ended := self.run.exhausted()) is not None:
            raise BudgetSpentError(ended)

    def feasible(self, patterns: NDArray[np.int64], gpu_type: int) -> NDArray[np.bool_]:
        """Return for each of N patterns (int64 [N, T]) whether it fits a GPU of a type with some slots, bool [N].

        An empty pattern fits. Where the surrogate looks at members, the first of each type are asked about.

        Raises
        ------
        BudgetSpentError
            Before the first batch that the budget does not allow.
        """
        fits = np.ones(len(patterns), dtype=np.bool_)
        asked = np.flatnonzero(patterns.any(axis=1))
        for start in range(0, len(asked), BATCH_PATTERNS):
            self.check_budget()
            batch = asked[start : start + BATCH_PATTERNS]
            chosen = patterns[batch]
            model = self.run.model
            members = [self._first_members(pattern) for pattern in chosen] if model.uses_members else None
            rows, max_ranks = self.types.aggregates(chosen), self.types.max_ranks(chosen)
            fits[batch] = model.best_choice(rows, max_ranks, gpu_type, members).feasible
        return fits

    def capacities(
        self,
        base: NDArray[np.float64],
        gpu_type: int,
        *,
        kinds: NDArray[np.int64] | None = None,
        guesses: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float64]:
        """Return how many copies of types fit beside `base` (real counts, float64 [T]), as real numbers [K].

        Aggregates are sums, so a surrogate of features can be asked about parts of an adapter. Found by bisection on a
        logarithmic scale; for estimates, not for placements.

        Parameters
        ----------
        base
            What is on the GPU.
        gpu_type
            Of the GPU.
        kinds
            The K types that are asked about, int64 [K]; default: all.
        guesses
            Capacities that are known to be of the right size, float64 [K], > 0, of which the answers are a part
            (`GUESSED_PARTS`), found to a coarser precision; default: nothing is known.
        """
        types, model = self.types, self.run.model
        kinds = np.arange(types.num_types) if kinds is None else kinds
        base_row = base @ types.rows
        # A mixture is about loads: no GPU serves all of those in it that constraints keep apart.
        base_row[model.problem.constraint_columns] = 0.0
        counts = model.problem.count_columns
        base_rank = int(np.where(base > 0, types.ranks, 0).max(initial=0))
        max_ranks = np.maximum(types.ranks[kinds], base_rank)
        low = np.full(len(kinds), np.log(LEAST_COPIES))
        high = np.full(len(kinds), np.log(MOST_COPIES))
        precision = CAPACITY_PRECISION
        if guesses is not None:
            low, high = (np.log(np.clip(part * guesses, LEAST_COPIES, MOST_COPIES)) for part in GUESSED_PARTS)
            precision = GUESSED_PRECISION
        while float((high - low).max(initial=0.0)) > precision:
            middle = 0.5 * (low + high)
            rows = base_row + np.exp(middle)[:, None] * types.rows[kinds]
            # A set has at least one adapter; slots are options of its whole number.
            rows[:, counts] = np.maximum(rows[:, counts], 1.0)
            fits = np.zeros(len(kinds), dtype=np.bool_)
            for start in range(0, len(kinds), BATCH_PATTERNS):
                self.check_budget()
                part = slice(start, start + BATCH_PATTERNS)
                fits[part] = model.best_choice(rows[part], max_ranks[part], gpu_type).feasible
            low, high = np.where(fits, middle, low), np.where(fits, high, middle)
        return np.asarray(np.exp(low), dtype=np.float64)

    def _first_members(self, pattern: NDArray[np.int64]) -> tuple[int, ...]:
        present = np.flatnonzero(pattern)
        return tuple(sorted(index for kind in present for index in self.types.members[kind][: pattern[kind]]))
