"""What a baseline's rule is asked in tests."""

from collections.abc import Sequence
from typing import cast

from predictors.surrogate import Surrogate
from solvers.baselines.fleet import FleetTask, Groups
from solvers.budget import Budget
from solvers.problem import Problem
from solvers.run import SolverRun
from tests.solvers.analytic import AnalyticSurrogate
from tests.solvers.problems import make_adapter, make_problem
from twin.engine import LoraRank


def make_task(
    problem: Problem, *, surrogate: Surrogate | None = None, budget: Budget | None = None, seed: int = 0
) -> FleetTask:
    """Return the task of a search on the first GPU type."""
    budget = budget or Budget()
    return FleetTask(SolverRun(problem, surrogate or AnalyticSurrogate(), budget, None), 0, seed, budget.start())


def task_of(*adapters: tuple[int, float]) -> FleetTask:
    """Return a task with adapters of (rank, requests/s), all of 220 prompt and 200 output tokens."""
    return make_task(
        make_problem(
            [make_adapter(f"a{i}", rank=cast(LoraRank, rank), rate_rps=rate) for i, (rank, rate) in enumerate(adapters)]
        )
    )


def gpu_of(groups: Groups, num_adapters: int) -> list[int]:
    """Return the GPU of each adapter; every adapter must be on exactly one."""
    placed = {adapter: gpu for gpu, group in enumerate(groups) for adapter in group}
    assert sum(len(group) for group in groups) == len(placed) == num_adapters
    return [placed[adapter] for adapter in range(num_adapters)]


def loads(values: Sequence[float], groups: Groups) -> list[float]:
    """Return the sum of `values` [A] on each GPU."""
    return [sum(values[adapter] for adapter in group) for group in groups]
