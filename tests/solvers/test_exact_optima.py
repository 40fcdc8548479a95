"""The exact back ends against the optimum by brute force."""

from functools import cache

import pytest

from solvers.budget import Budget
from solvers.cpsat import refute
from solvers.objective import objective_value
from solvers.registry import get_solver
from solvers.result import Solution, Termination
from tests.solvers.analytic import AnalyticSurrogate
from tests.solvers.problems import random_problem
from tests.solvers.small_problems import FeaturesOnly, FickleSurrogate, best_objective, small_problem

BACK_ENDS = ("cpsat", "milp", "milp-cbc")
NUM_PROBLEMS = 200


@cache
def optimum_of(seed: int) -> tuple[float, float] | None:
    """Return the optimum of a small problem, for all back ends once."""
    return best_objective(small_problem(seed), AnalyticSurrogate())


@pytest.mark.no_cover  # brute force, which takes longer where covered lines are counted
@pytest.mark.parametrize("name", BACK_ENDS)
def test_the_optimum_of_200_small_problems_is_reached_and_proven(name: str) -> None:
    """Both objectives with their tie-breaks, one GPU type and two, scarce ones, equal adapters."""
    solver = get_solver(name)
    for seed in range(NUM_PROBLEMS):
        problem = small_problem(seed)
        result = solver.solve(problem, AnalyticSurrogate(), budget=Budget())
        value = None if result.evaluation is None else objective_value(problem, result.evaluation)
        assert (seed, value) == (seed, optimum_of(seed))
        assert result.termination is Termination.PROVEN
        assert result.solution is (Solution.NONE if value is None else Solution.OPTIMAL)


@pytest.mark.parametrize("name", BACK_ENDS)
def test_the_optimum_needs_no_monotone_surrogate(name: str) -> None:
    """Refusals of a surrogate that dislikes odd things are taken one by one."""
    for seed in range(6):
        problem = small_problem(seed)
        result = get_solver(name).solve(problem, FickleSurrogate(), budget=Budget(seconds=600.0))
        value = None if result.evaluation is None else objective_value(problem, result.evaluation)
        assert (seed, value) == (seed, best_objective(problem, FickleSurrogate()))


def test_the_proof_of_a_cost_is_in_money() -> None:
    """Whoever minimises cost is shown a bound on the cost."""
    seed = next(seed for seed in range(1, 200, 4) if optimum_of(seed) is not None)
    for name in BACK_ENDS:
        result = get_solver(name).solve(small_problem(seed), AnalyticSurrogate(), budget=Budget())
        assert result.bound is not None
        assert result.evaluation is not None
        assert result.bound.cost_per_hour == pytest.approx(result.evaluation.cost_per_hour)
        assert result.bound.model == "surrogate"


@pytest.mark.parametrize("is_declared", [True, False], ids=["monotone", "undeclared"])
def test_a_refutation_is_about_fewer_gpus_than_the_optimum(*, is_declared: bool) -> None:
    """One GPU fewer than the optimum is refuted, the optimum is not; what the proof relies on is said."""
    surrogate = AnalyticSurrogate() if is_declared else FeaturesOnly(AnalyticSurrogate())
    num_refuted = 0
    for seed in range(0, 40, 2):
        problem = small_problem(seed)
        optimum = optimum_of(seed)
        assert optimum is not None
        num_gpus = int(optimum[0])
        assert refute(problem, surrogate, num_gpus, budget=Budget()) is None
        if num_gpus > 1:
            refutation = refute(problem, surrogate, num_gpus - 1, budget=Budget())
            assert refutation is not None
            assert refutation.bound.value == num_gpus
            assert refutation.relies_on_monotonicity is is_declared
            num_refuted += 1
    assert num_refuted > 3


def test_many_different_adapters_are_refuted_by_lighter_ones() -> None:
    """Above the number of types that CP-SAT takes, groups of similar adapters stand for their members."""
    problem = random_problem(4, 200, load_gpus=4.0)
    refutation = refute(problem, AnalyticSurrogate(), 2, budget=Budget())
    assert refutation is not None
    assert refutation.bound.value == 3


def test_a_refutation_gives_up_with_its_budget() -> None:
    """Without evaluations nothing is proven."""
    assert (
        refute(random_problem(4, 60, load_gpus=2.0), AnalyticSurrogate(), 1, budget=Budget(max_evaluations=0)) is None
    )


@pytest.mark.parametrize("name", [*BACK_ENDS, "milp-capacity"])
def test_an_answer_is_no_worse_than_best_fits(name: str) -> None:
    """Where nothing can be proven, the back ends still start from best fit."""
    for seed in range(2):
        problem = random_problem(seed, 24, load_gpus=2.0)
        reference = get_solver("bfd").solve(problem, AnalyticSurrogate(), budget=Budget())
        result = get_solver(name).solve(problem, AnalyticSurrogate(), budget=Budget(max_evaluations=5000))
        assert reference.evaluation is not None
        assert result.evaluation is not None
        assert objective_value(problem, result.evaluation) <= objective_value(problem, reference.evaluation)
