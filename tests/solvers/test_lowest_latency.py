"""The objective `lowest_latency`: against all partitions, with every kind of solver."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from predictors.surrogate import Surrogate
from solvers.acceptance import accepts
from solvers.budget import Budget
from solvers.feasibility import FeasibilityModel
from solvers.interface import Observer, Solver
from solvers.lowest_latency import PRECISION
from solvers.objective import evaluate, objective_value
from solvers.placement import validate_placement
from solvers.problem import Problem
from solvers.problem_file import LatencyMetric
from solvers.registry import get_solver
from solvers.result import Incumbent, Solution, Termination
from tests.solvers.analytic import AnalyticSurrogate
from tests.solvers.problems import GPU, random_problem

SOLVERS = ("bfd", "exact", "local_search", "portfolio", "cpsat", "milp")


def latency_problem(
    seed: int, *, num_adapters: int = 6, num_gpus: int = 3, metric: LatencyMetric = "itl_p95_ms"
) -> Problem:
    """Return a random problem on at most `num_gpus` GPUs."""
    problem = random_problem(seed, num_adapters, load_gpus=1.3)
    limited = (GPU.model_copy(update={"max_count": num_gpus}),)
    return replace(problem, gpu_types=limited, objective="lowest_latency", latency_metric=metric)


def least_latency(problem: Problem, surrogate: Surrogate) -> float | None:
    """Return the optimum in seconds by brute force: all subsets, all slots, the best partition; None: there is none."""
    num_adapters, num_gpus = len(problem.adapters), problem.gpu_types[0].max_count
    assert num_gpus is not None
    model = FeasibilityModel(problem, surrogate)
    own: dict[int, float] = {}
    for size in range(1, num_adapters + 1):
        for members in combinations(range(num_adapters), size):
            row = problem.aggregates[list(members)].sum(axis=0)[np.newaxis]
            rank = int(problem.ranks[list(members)].max())
            slots = model.slot_options(0, size, rank)
            features = [
                model.features(row, model.settings(0, number, model.slots.rank_of_slots(rank))) for number in slots
            ]
            output = model.ask(0, np.concatenate(features))
            values = output.itl_s if problem.latency_metric == "itl_p95_ms" else output.ttft_s
            kept = accepts(problem.limits, output)
            if kept.any():
                own[sum(1 << member for member in members)] = float(values[kept].min())
    reached = {0: 0.0}
    for _ in range(num_gpus):
        grown = dict(reached)
        for mask, value in reached.items():
            for block, block_value in own.items():
                if not block & mask:
                    worst = max(value, block_value)
                    grown[mask | block] = min(worst, grown.get(mask | block, np.inf))
        reached = grown
    return reached.get((1 << num_adapters) - 1)


@pytest.mark.parametrize("metric", ["itl_p95_ms", "ttft_p95_ms"])
@pytest.mark.parametrize("seed", range(4))
def test_the_exact_solver_finds_the_lowest_latency(seed: int, metric: LatencyMetric) -> None:
    """Within the precision of the search, and never below the optimum."""
    problem = latency_problem(seed, metric=metric)
    optimum = least_latency(problem, AnalyticSurrogate())
    result = get_solver("exact").solve(problem, AnalyticSurrogate(), budget=Budget())
    if optimum is None:
        assert result.solution is Solution.NONE
        return
    assert result.evaluation is not None
    assert optimum <= objective_value(problem, result.evaluation)[0] <= optimum * (1.0 + 2.0 * PRECISION)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("seed", range(2))
def test_every_solver_keeps_the_rules(name: str, seed: int) -> None:
    """A placement on the GPUs that there are, evaluated by the one evaluator, never better than the optimum."""
    problem = latency_problem(seed)
    surrogate = AnalyticSurrogate()
    seen: list[float] = []
    result = get_solver(name).solve(
        problem,
        surrogate,
        budget=Budget(max_evaluations=20_000),
        observer=lambda incumbent: seen.append(objective_value(problem, incumbent.evaluation)[0]),
    )
    optimum = least_latency(problem, surrogate)
    assert result.placement is not None
    assert result.evaluation is not None
    assert optimum is not None
    validate_placement(problem, result.placement)
    assert result.evaluation == evaluate(problem, result.placement, surrogate)
    assert result.evaluation.num_gpus <= 3
    reached = objective_value(problem, result.evaluation)[0]
    assert reached >= optimum
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == reached
    assert result.termination is not Termination.INTERRUPTED
    again = get_solver(name).solve(problem, surrogate, budget=Budget(max_evaluations=20_000))
    assert again.placement == result.placement


def test_it_is_faster_than_the_fewest_gpus() -> None:
    """GPUs that are there anyway are used."""
    problem = latency_problem(0, num_adapters=40, num_gpus=6)
    surrogate = AnalyticSurrogate()
    tight = get_solver("bfd").solve(replace(problem, objective="fewest_gpus"), surrogate, budget=Budget())
    fast = get_solver("bfd").solve(problem, surrogate, budget=Budget())
    assert tight.evaluation is not None
    assert fast.evaluation is not None
    assert fast.evaluation.num_gpus > tight.evaluation.num_gpus
    assert objective_value(problem, fast.evaluation)[0] < objective_value(problem, tight.evaluation)[0]


def test_a_warm_start_never_makes_it_worse() -> None:
    """What was given is the first incumbent."""
    problem = latency_problem(1)
    best = get_solver("exact").solve(problem, AnalyticSurrogate(), budget=Budget())
    assert best.placement is not None
    assert best.evaluation is not None
    again = get_solver("local_search").solve(
        problem, AnalyticSurrogate(), budget=Budget(max_evaluations=50), warm_start=best.placement
    )
    assert again.evaluation is not None
    assert objective_value(problem, again.evaluation) <= objective_value(problem, best.evaluation)


def test_ctrl_c_keeps_what_there_is() -> None:
    """Whoever listens may end the search with its first placement."""
    problem = latency_problem(0)

    def stop(_incumbent: Incumbent) -> None:
        raise KeyboardInterrupt

    listener: Observer = stop
    solver: Solver = get_solver("portfolio")
    result = solver.solve(problem, AnalyticSurrogate(), budget=Budget(), observer=listener)
    assert result.termination is Termination.INTERRUPTED
    assert result.placement is not None


def test_nothing_is_honest() -> None:
    """Too few GPUs: no placement, and the inner solver's words."""
    problem = latency_problem(0, num_adapters=40, num_gpus=1)
    result = get_solver("bfd").solve(problem, AnalyticSurrogate(), budget=Budget())
    assert result.solution is Solution.NONE
    assert result.message


def test_one_limit_that_cannot_be_kept_does_not_take_the_whole_budget() -> None:
    """The automatic budget is for improving: limits that nothing keeps must leave rows for the others."""
    problem = latency_problem(0, num_adapters=40, num_gpus=6)
    surrogate = AnalyticSurrogate()
    fast = get_solver("bfd").solve(problem, surrogate, budget=Budget())
    automatic = get_solver("portfolio").solve(problem, surrogate, budget=Budget.automatic(40))
    assert fast.evaluation is not None
    assert automatic.evaluation is not None
    reached = objective_value(problem, automatic.evaluation)[0]
    assert reached <= 1.05 * objective_value(problem, fast.evaluation)[0]
    assert automatic.statistics.num_evaluations <= 40_000
