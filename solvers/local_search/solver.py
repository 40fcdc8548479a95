"""Local search: empty a few GPUs, fill them again in another order, exchange adapters; keep what is no worse."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from predictors.surrogate import Surrogate
from solvers.bounds import work_bound
from solvers.budget import Budget
from solvers.constrained_solve import constrained
from solvers.interface import Capability, Observer
from solvers.local_search.refill import refill
from solvers.local_search.ruin import draw_gpus, draw_order
from solvers.local_search.shares import gpu_shares
from solvers.open_fleet import OpenFleet
from solvers.packing import Packing
from solvers.placement import Placement
from solvers.problem import Problem
from solvers.result import SolveResult, Termination
from solvers.run import SolverRun

if TYPE_CHECKING:
    from solvers.local_search.exchange import Exchange

# Steps back whose score the next one is compared with (late acceptance).
LATENESS = 30
# Without a new best score, the search ends after so many rows, or steps (which may ask nothing).
VAIN_ROWS = 2000
VAIN_ROWS_PER_ADAPTER = 50
VAIN_STEPS = 1000
# Share of the steps that exchange adapters before they fill GPUs again.
EXCHANGE_SHARE = 0.5

Score = tuple[float, float, float]


class LocalSearchSolver:
    """Large-neighbourhood search from best fit or from a warm start.

    Parameters
    ----------
    builds_first
        Whether a feasible warm start is improved only after best fit was tried from scratch, too.
    """

    name = "local_search"
    capabilities = frozenset(
        {
            Capability.ANYTIME,
            Capability.WARM_START,
            Capability.MIXED_GPU_TYPES,
            Capability.RANDOMISED,
            Capability.CONSTRAINTS,
        }
    )

    def __init__(self, *, builds_first: bool = True) -> None:
        self.builds_first = builds_first

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
        """Search until the budget ends, the bound is met, or nothing new was found for long."""
        run = SolverRun(problem, surrogate, budget, observer)
        try:
            packing = Packing(run, is_best_fit=True)
            if warm_start is None or self.builds_first or not run.record(warm_start):
                termination = packing.search(warm_start)
            else:
                termination = Termination.COMPLETED
            if termination is Termination.COMPLETED and run.incumbent is not None:
                termination = _Search(run, gpu_shares(run, packing.work), seed).search(run.incumbent.placement)
        except KeyboardInterrupt:
            termination = Termination.INTERRUPTED
        return run.result(termination)


class _Search:
    """One search; every improvement of the objective is recorded in its run."""

    def __init__(self, run: SolverRun, work: np.ndarray, seed: int) -> None:
        self.run = run
        self.problem = run.problem
        self.work = work
        self.size = work.mean(axis=0)
        self.generator = np.random.default_rng(seed)
        self.num_steps = 0
        # Steps and rows when the best score was found.
        self.last_success = (0, 0)

    def search(self, start: Placement) -> Termination:
        """Improve `start`; return why the search ended."""
        fleet = OpenFleet(self.run.model, self.work)
        fleet.load_placement(start)
        current = best = self._score(fleet)
        history = [current] * LATENESS
        least = self._least_objective()
        self._note_success()
        exchange = self._exchange()
        while (ended := self.run.exhausted()) is None:
            if best[0] <= least or fleet.num_open < 2 or self._is_in_vain():
                return Termination.COMPLETED
            position = self.num_steps % LATENESS
            self.num_steps += 1
            attempt = self._step(fleet, exchange)
            if attempt is not None:
                score = self._score(attempt)
                if score[:2] < best[:2] and not self.run.record(attempt.placement()):
                    continue
                if score <= current or (score[:2] <= current[:2] and score <= history[position]):
                    fleet, current = attempt, score
                if score < best:
                    best = score
                    self._note_success()
            history[position] = current
        return ended

    def _note_success(self) -> None:
        self.last_success = (self.num_steps, self.run.model.num_evaluations)

    def _is_in_vain(self) -> bool:
        """Return whether nothing better was found for long."""
        steps, rows = self.last_success
        vain_rows = VAIN_ROWS + VAIN_ROWS_PER_ADAPTER * len(self.problem.adapters)
        return self.num_steps - steps > VAIN_STEPS or self.run.model.num_evaluations - rows > vain_rows

    def _step(self, fleet: OpenFleet, exchange: Exchange) -> OpenFleet | None:
        """Return a changed copy of the fleet, or None where the step came to nothing."""
        attempt = fleet.copy(keeps_refusals=True)
        does_exchange = self.generator.random() < EXCHANGE_SHARE
        if does_exchange:
            gpus = attempt.open_gpus
            emptied = gpus[np.argsort(attempt.load[gpus], kind="stable")[:3]]
            chosen = self.generator.choice(emptied, size=1)
        else:
            chosen = draw_gpus(attempt, self.generator)
        pool = np.array([adapter for gpu in chosen for adapter in attempt.close(int(gpu))], dtype=np.int64)
        if does_exchange:
            pool = exchange.apply(attempt, pool)
        order = draw_order(pool, self.problem.ranks, self.work, self.generator)
        return attempt if refill(self.run, attempt, order, self._types()) else None

    def _types(self) -> list[int]:
        """Return the GPU types in the order in which new ones are opened: by cost, often with another one first."""
        costs = [gpu_type.cost_per_hour for gpu_type in self.problem.gpu_types]
        preferred = int(self.generator.integers(len(costs)))
        return sorted(range(len(costs)), key=lambda index: (index != preferred, costs[index], index))

    def _score(self, fleet: OpenFleet) -> Score:
        """Return the objective's two numbers, and then how unevenly the work is spread; smaller is better."""
        gpus = fleet.open_gpus
        cost = sum(self.problem.gpu_types[int(index)].cost_per_hour for index in fleet.gpu_type[gpus])
        spread = -float(np.sum(fleet.load[gpus] ** 2))
        if self.problem.objective == "least_cost":
            return cost, float(len(gpus)), spread
        return float(len(gpus)), cost, spread

    def _least_objective(self) -> float:
        """Return a value of the objective below which the twin would accept no plan."""
        bound = work_bound(self.problem)
        if self.problem.objective == "least_cost" and bound.cost_per_hour is not None:
            return bound.cost_per_hour
        return float(bound.value)

    def _exchange(self) -> Exchange:
        from solvers.local_search.exchange import Exchange  # noqa: PLC0415 - loads Numba, which a solve may not need

        return Exchange(self.run, self.size, self.generator)
