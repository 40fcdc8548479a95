"""The interface that every placement algorithm implements."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Protocol

from predictors.surrogate import Surrogate
from solvers.budget import Budget
from solvers.placement import Placement
from solvers.problem import Problem
from solvers.result import Incumbent, SolveResult

Observer = Callable[[Incumbent], None]


class Capability(Enum):
    """What a solver can do; what is not declared is not done."""

    ANYTIME = "anytime"
    """Reports incumbents before it ends, and returns the last one when its budget ends or Ctrl-C comes."""
    WARM_START = "warm_start"
    """Never returns a worse placement than a feasible one it was given. Without it, `warm_start` is ignored."""
    MIXED_GPU_TYPES = "mixed_gpu_types"
    """May use several GPU types in one placement."""
    RANDOMISED = "randomised"
    """The answer depends on the seed."""
    BOUND = "bound"
    """Proves a lower bound."""
    CONSTRAINTS = "constraints"
    """Keeps the problem's `constraints` and its replicas apart. Without it, a problem with either is refused."""


class Solver(Protocol):
    """A placement algorithm.

    Solvers are stateless between calls: a constructor stores configuration, `solve` is pure in its inputs and re-
    entrant.
    """

    @property
    def name(self) -> str:
        """Name in the registry."""
        ...

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What this solver can do."""
        ...

    def solve(
        self,
        problem: Problem,
        surrogate: Surrogate,
        *,
        budget: Budget,
        seed: int = 0,
        warm_start: Placement | None = None,
        observer: Observer | None = None,
    ) -> SolveResult:
        """Look for a placement that `surrogate` accepts and that the problem's objective prefers.

        Parameters
        ----------
        problem, surrogate
            What to place, and whom to ask.
        budget
            When to stop.
        seed
            Of the solver's own randomness.
        warm_start
            A placement to start from.
        observer
            Called with every new incumbent. Ctrl-C raised while it runs counts as Ctrl-C of the solve.

        Returns
        -------
        SolveResult
            Infeasible, out of time and interrupted are results, not exceptions.

        Raises
        ------
        InputError
            When some adapter fits no GPU alone.
        """
        ...
