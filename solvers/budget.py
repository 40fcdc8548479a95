"""How long a solver may search: seconds of an injected clock, and machine-independent numbers of evaluations."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from solvers.result import Termination
from twin.errors import InputError

# The automatic budget: seconds, and rows for each adapter to improve a first placement, within limits.
AUTOMATIC_SECONDS = 60.0
AUTOMATIC_EVALUATIONS_PER_ADAPTER = 250
FEWEST_AUTOMATIC_EVALUATIONS = 20_000
MOST_AUTOMATIC_EVALUATIONS = 500_000


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
    max_improving_evaluations
        Rows that the surrogate may be asked for once there is a placement, >= 0; none of those before is counted.
    """

    seconds: float | None = None
    max_evaluations: int | None = None
    max_improving_evaluations: int | None = None

    @classmethod
    def automatic(cls, num_adapters: int) -> Budget:
        """Return the budget of a solve for which none is given: a first placement, and so much to improve it."""
        wanted = AUTOMATIC_EVALUATIONS_PER_ADAPTER * num_adapters
        return cls(
            seconds=AUTOMATIC_SECONDS,
            max_improving_evaluations=min(max(wanted, FEWEST_AUTOMATIC_EVALUATIONS), MOST_AUTOMATIC_EVALUATIONS),
        )

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
        if self.max_improving_evaluations is not None and self.max_improving_evaluations < 0:
            raise InputError(
                f"a budget's evaluations for improving must be at least 0. Got {self.max_improving_evaluations}.",
                field="max_improving_evaluations",
                value=self.max_improving_evaluations,
            )

    def share(self, share: float) -> Budget:
        """Return this share, in (0, 1], of every limit."""
        return Budget(
            None if self.seconds is None else self.seconds * share,
            None if self.max_evaluations is None else int(self.max_evaluations * share),
            None if self.max_improving_evaluations is None else int(self.max_improving_evaluations * share),
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
        self._improving_since: int | None = None

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started_s

    @property
    def remaining_s(self) -> float | None:
        """Seconds that are left, at least 0; ``None``: unlimited."""
        return None if self.budget.seconds is None else max(0.0, self.budget.seconds - self.elapsed_s)

    def improve_from(self, num_evaluations: int) -> None:
        """Say that there is a placement after `num_evaluations`; only the first time counts."""
        if self._improving_since is None:
            self._improving_since = num_evaluations

    def exhausted(self, num_evaluations: int) -> Termination | None:
        """Return why to stop after `num_evaluations`, or ``None`` while something is left."""
        left = self.remaining(num_evaluations)
        if left.max_evaluations == 0 or (self._improving_since is not None and left.max_improving_evaluations == 0):
            return Termination.ITERATION_LIMIT
        return Termination.TIME_LIMIT if left.seconds == 0.0 else None

    def remaining(self, num_evaluations: int) -> Budget:
        """Return what is left after `num_evaluations`, 0 of what is spent."""
        budget = self.budget
        improving = 0 if self._improving_since is None else num_evaluations - self._improving_since
        return Budget(
            seconds=None if budget.seconds is None else max(0.0, budget.seconds - self.elapsed_s),
            max_evaluations=_left(budget.max_evaluations, num_evaluations),
            max_improving_evaluations=_left(budget.max_improving_evaluations, improving),
        )


def _left(limit: int | None, used: int) -> int | None:
    return None if limit is None else max(0, limit - used)
