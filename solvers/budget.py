"""How long a solver may search: seconds of an injected clock, and a machine-independent number of evaluations."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from solvers.result import Termination
from twin.errors import InputError


@dataclass(frozen=True)
class Budget:
    """Limits of one solve; ``None``: unlimited.

    Attributes
    ----------
    seconds
        Wall time, >= 0.
    max_evaluations
        Rows that the surrogate may be asked for, >= 0. Unlike seconds, the same budget gives the same answer
        everywhere.
    """

    seconds: float | None = None
    max_evaluations: int | None = None

    def __post_init__(self) -> None:
        """Refuse limits that are negative or not a number."""
        if self.seconds is not None and (math.isnan(self.seconds) or self.seconds < 0):
            raise InputError(
                f"a budget's seconds must be at least 0. Got {self.seconds}.", field="budget", value=self.seconds
            )
        if self.max_evaluations is not None and self.max_evaluations < 0:
            raise InputError(
                f"a budget's evaluations must be at least 0. Got {self.max_evaluations}.",
                field="max_evaluations",
                value=self.max_evaluations,
            )

    def start(self, clock: Callable[[], float] = time.monotonic) -> RunningBudget:
        """Start to count, on `clock` (seconds, non-decreasing)."""
        return RunningBudget(self, clock, clock())


class RunningBudget:
    """A budget whose time is running."""

    def __init__(self, budget: Budget, clock: Callable[[], float], started_s: float) -> None:
        self.budget = budget
        self._clock = clock
        self._started_s = started_s

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started_s

    @property
    def remaining_s(self) -> float | None:
        """Seconds that are left, at least 0; ``None``: unlimited."""
        return None if self.budget.seconds is None else max(0.0, self.budget.seconds - self.elapsed_s)

    def exhausted(self, num_evaluations: int) -> Termination | None:
        """Return why to stop after `num_evaluations`, or ``None`` while something is left."""
        limit = self.budget.max_evaluations
        if limit is not None and num_evaluations >= limit:
            return Termination.ITERATION_LIMIT
        if self.budget.seconds is not None and self.elapsed_s >= self.budget.seconds:
            return Termination.TIME_LIMIT
        return None
