"""Solvers that begin with the placement of best fit, and then improve it or prove it."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from predictors.surrogate import Surrogate
from solvers.budget import Budget
from solvers.constrained_solve import constrained
from solvers.interface import Capability, Observer
from solvers.packing import PackingSolver
from solvers.placement import Placement
from solvers.problem import Problem
from solvers.result import Bound, Incumbent, SolveResult, Termination
from solvers.run import SolverRun

# What follows from the beginning, whatever comes after it.
SEEDED_CAPABILITIES = frozenset(
    {Capability.ANYTIME, Capability.WARM_START, Capability.MIXED_GPU_TYPES, Capability.CONSTRAINTS}
)


class SeededSolver(ABC):
    """A solver that always has an answer to begin with.

    Attributes
    ----------
    name, capabilities
        As in `solvers.interface.Solver`.
    """

    name: str
    capabilities: frozenset[Capability]

    @abstractmethod
    def improve(self, run: SolverRun, generator: np.random.Generator) -> tuple[Termination, Bound | None]:
        """Record better placements than the run's incumbent; return why the search ended, and what was proven.

        Parameters
        ----------
        run
            Its incumbent is best fit's placement, or ``None`` where the GPUs that `max_count` allows did not do.
        generator
            Of the solver's own randomness.
        """

    @constrained
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
        """Run best fit, from the warm start if there is one, then `improve`; see `solvers.interface.Solver`.

        Raises
        ------
        InputError
            When some adapter fits no GPU alone, or the warm start is not a placement of this problem.
        SolverError
            When a native library fails.
        """
        run = SolverRun(problem, surrogate, budget, observer)
        bound = None
        try:
            termination = _run_best_fit(run, budget, warm_start)
            if termination is Termination.COMPLETED:
                termination, bound = self.improve(run, np.random.default_rng(seed))
        except KeyboardInterrupt:
            termination = Termination.INTERRUPTED
        return run.result(termination, bound)


def _run_best_fit(run: SolverRun, budget: Budget, warm_start: Placement | None) -> Termination:
    """Let best fit record its placements, and the warm start's, in `run`, which has spent nothing yet."""

    def record(incumbent: Incumbent) -> None:
        run.model.num_evaluations = incumbent.num_evaluations
        run.record(incumbent.placement)

    result = PackingSolver("bfd").solve(
        run.problem, run.surrogate, budget=budget, warm_start=warm_start, observer=record
    )
    run.model.num_evaluations = result.statistics.num_evaluations
    run.model.num_calls = result.statistics.num_calls
    run.num_iterations += result.statistics.num_iterations
    if result.message and (result.placement is not None or result.termination is Termination.COMPLETED):
        run.notes.append(result.message)
    return result.termination
