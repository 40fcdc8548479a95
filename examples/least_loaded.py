"""A solver of one's own in forty lines: the most demanding adapter first, always onto the GPU with the least traffic.

placer solve examples/azure-llama-400.yaml --solver examples/least_loaded.py:LeastLoaded
"""

from __future__ import annotations

import numpy as np

from predictors.surrogate import Surrogate
from solvers.bounds import work_bound
from solvers.budget import Budget
from solvers.interface import Capability, Observer
from solvers.placement import GpuAssignment, Placement
from solvers.problem import Problem
from solvers.result import SolveResult, Termination
from solvers.run import SolverRun


class LeastLoaded:
    """An even spread by requests/s over as few GPUs as the surrogate accepts."""

    name = "least_loaded"
    capabilities = frozenset({Capability.ANYTIME})

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
        """Try one GPU more until all of them are accepted (`solvers.interface.Solver`)."""
        del seed, warm_start  # nothing is drawn, and no start is needed
        run = SolverRun(problem, surrogate, budget, observer)
        bound = work_bound(problem)
        for num_gpus in range(bound.value, len(problem.adapters) + 1):
            if (ended := run.exhausted()) is not None:
                return run.result(ended, bound)
            placement = self._spread(run, num_gpus)
            if placement is not None and run.record(placement):
                break
        return run.result(Termination.COMPLETED, bound)

    def _spread(self, run: SolverRun, num_gpus: int) -> Placement | None:
        """Spread the adapters over so many GPUs of the first type; None if the surrogate refuses one of them."""
        rates = np.array([adapter.rate_rps for adapter in run.problem.adapters])
        groups: list[list[int]] = [[] for _ in range(num_gpus)]
        loads = np.zeros(num_gpus)
        for adapter in np.argsort(-rates, kind="stable"):
            gpu = int(np.argmin(loads))
            groups[gpu].append(int(adapter))
            loads[gpu] += rates[adapter]
        # One question for all GPUs: which slots would serve each set, if any?
        sums = np.array([run.model.aggregates[group].sum(axis=0) for group in groups])
        ranks = np.array([run.problem.ranks[group].max() for group in groups])
        choices = run.model.best_choice(sums, ranks, 0)
        if not choices.feasible.all():
            return None
        return Placement(
            tuple(
                GpuAssignment(0, tuple(sorted(group)), int(slots), int(rank))
                for group, slots, rank in zip(groups, choices.max_loras, choices.max_lora_rank, strict=True)
            )
        )
