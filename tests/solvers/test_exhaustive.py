"""The enumeration of tiny problems: its optimum, its proof, and its limit."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from predictors.surrogate import SurrogateOutput
from solvers.budget import Budget
from solvers.exhaustive import MAX_SETS, ExhaustiveSolver
from solvers.objective import objective_value
from solvers.placement import GpuAssignment, Placement
from solvers.problem import Problem
from solvers.registry import get_solver
from solvers.result import Solution, SolveResult, Termination
from tests.solvers.analytic import AnalyticSurrogate
from tests.solvers.problems import GPU, make_adapter, make_problem, random_problem, with_objective
from tests.solvers.small_problems import FickleSurrogate, best_objective, small_problem


def solve(problem: Problem, surrogate: AnalyticSurrogate | None = None) -> SolveResult:
    """Solve without limits."""
    return ExhaustiveSolver().solve(problem, surrogate or AnalyticSurrogate(), budget=Budget())


@pytest.mark.parametrize("surrogate", [AnalyticSurrogate(), FickleSurrogate()], ids=["monotone", "fickle"])
def test_the_optimum_is_that_of_all_divisions(surrogate: AnalyticSurrogate) -> None:
    """Objective and tie-break, several GPU types, scarce ones, equal adapters, any surrogate: as brute force."""
    for seed in range(60):
        problem = small_problem(seed)
        optimum = best_objective(problem, surrogate)
        result = solve(problem, surrogate)
        assert result.termination is Termination.PROVEN
        assert (result.solution is Solution.OPTIMAL) == (optimum is not None)
        if result.evaluation is not None:
            assert objective_value(problem, result.evaluation) == optimum


def test_a_proof_of_cost_bounds_the_cost_and_the_gpus() -> None:
    """Under least cost the bound is in money; how few GPUs it implies depends on the dearest."""
    types = (GPU, GPU.model_copy(update={"name": "other", "cost_per_hour": 1.25}))
    problem = with_objective(random_problem(3, 8, load_gpus=1.9), "least_cost", types)
    result = solve(problem)
    assert result.bound is not None
    assert result.evaluation is not None
    assert (result.bound.proof, result.bound.model) == ("enumeration", "surrogate")
    assert result.bound.cost_per_hour == result.evaluation.cost_per_hour
    assert result.bound.value <= result.evaluation.num_gpus


def test_above_the_limit_the_answer_is_unproven_and_says_so() -> None:
    """Thirteen different adapters have more sets than are asked about; the answer is best fit's."""
    result = solve(random_problem(1, 13, load_gpus=1.5))
    assert (result.solution, result.termination, result.bound) == (Solution.FEASIBLE, Termination.COMPLETED, None)
    assert f"most {MAX_SETS:,}" in result.message


def test_many_adapters_of_few_kinds_are_tiny() -> None:
    """What counts are the sets that differ: sixty adapters of two kinds have 961."""
    problem = make_problem([make_adapter(f"a{index}", rate_rps=0.3 + 0.1 * (index % 2)) for index in range(60)])
    assert solve(problem).solution is Solution.OPTIMAL


def test_scarce_gpus_are_proven_to_be_too_few() -> None:
    """Infeasible is a result, with its proof."""
    problem = with_objective(
        random_problem(2, 8, load_gpus=1.9), "fewest_gpus", (GPU.model_copy(update={"max_count": 1}),)
    )
    result = solve(problem)
    assert (result.solution, result.termination) == (Solution.NONE, Termination.PROVEN)
    assert "No placement exists" in result.message


@pytest.mark.parametrize("name", ["exact", "cpsat", "milp"])
def test_nothing_is_proven_beside_a_better_warm_start_of_other_slots(name: str) -> None:
    """The proof is about the slots that planning tries; a user's own slots may do better, and are kept."""
    problem = random_problem(5, 4, load_gpus=0.4)
    pair, rest = (GpuAssignment(0, members, max_loras=5, max_lora_rank=32) for members in ((0, 1), (2, 3)))

    class OnlyFiveSlots(AnalyticSurrogate):
        """Accepts several adapters on five slots only, which planning does not try for so few."""

        def predict(self, features: NDArray[np.float32]) -> SurrogateOutput:
            """Predict, and starve sets on other slots, and sets of more than two."""
            output = super().predict(features)
            adapters = features[:, self.schema.index("num_adapters")]
            refused = (adapters > 2) | ((adapters > 1) & (features[:, self.schema.index("max_loras")] != 5))
            return replace(output, throughput_ratio=np.where(refused, np.float32(0.0), output.throughput_ratio))

    warm_start = Placement((pair, rest))
    result = get_solver(name).solve(problem, OnlyFiveSlots(), budget=Budget(), warm_start=warm_start)
    assert result.placement == warm_start
    assert (result.solution, result.bound) == (Solution.FEASIBLE, None)
    assert "slots that planning does not try" in result.message
