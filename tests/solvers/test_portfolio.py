"""The portfolio: never worse than its first stage, one budget and one incumbent for all stages, honest ends."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers.bounds import work_bound
from solvers.budget import Budget
from solvers.greedy import GreedySolver
from solvers.local_search.solver import LocalSearchSolver
from solvers.objective import objective_value
from solvers.packing import PackingSolver
from solvers.placement import GpuAssignment, Placement
from solvers.portfolio import PortfolioSolver, Stage, default_stages
from solvers.registry import solver_entries
from solvers.result import Incumbent, Solution, SolveResult, Termination
from tests.solvers.analytic import AnalyticSurrogate
from tests.solvers.problems import GPU, make_adapter, make_problem, random_problem, with_objective
from tests.solvers.test_local_search import triplets

FIRST_AND_LAST = (
    Stage(PackingSolver("ffd")),
    Stage(GreedySolver()),
    Stage(LocalSearchSolver(builds_first=False), needs_placement=True),
)


@settings(max_examples=10)
@given(seed=st.integers(0, 10_000), num_evaluations=st.sampled_from([None, 100, 2000]))
def test_it_is_never_worse_than_best_fit(seed: int, num_evaluations: int | None) -> None:
    """With the same budget, what best fit has the portfolio has, too."""
    problem = random_problem(seed, 60, load_gpus=2.5)
    budget = Budget(max_evaluations=num_evaluations)
    packed = PackingSolver("bfd").solve(problem, AnalyticSurrogate(), budget=budget)
    found = PortfolioSolver().solve(problem, AnalyticSurrogate(), budget=budget, seed=seed)
    if packed.evaluation is not None:
        assert found.evaluation is not None
        assert objective_value(problem, found.evaluation) <= objective_value(problem, packed.evaluation)


def test_later_stages_improve_on_the_first() -> None:
    """Best fit needs six GPUs for what local search puts on five."""
    found = PortfolioSolver().solve(triplets(0, num_gpus=5), AnalyticSurrogate(), budget=Budget())
    assert found.evaluation is not None
    assert found.evaluation.num_gpus == 5


def test_incumbents_of_all_stages_are_one_sequence() -> None:
    """Observers see strictly better placements, whose evaluations are counted over all stages."""
    problem = triplets(1, num_gpus=5)
    seen: list[Incumbent] = []
    surrogate = AnalyticSurrogate()
    solver = PortfolioSolver(stages=lambda: FIRST_AND_LAST)
    result = solver.solve(problem, surrogate, budget=Budget(), observer=seen.append)
    values = [objective_value(problem, incumbent.evaluation) for incumbent in seen]
    assert values == sorted(set(values), reverse=True)
    counts = [incumbent.num_evaluations for incumbent in seen]
    assert counts == sorted(counts)
    first = PackingSolver("ffd").solve(problem, AnalyticSurrogate(), budget=Budget())
    assert counts[-1] > first.statistics.num_evaluations
    assert result.placement == seen[-1].placement
    assert result.statistics.num_calls <= surrogate.num_calls


@pytest.mark.parametrize("limit", [0, 200, 1500])
def test_one_budget_is_for_all_stages(limit: int) -> None:
    """The evaluations of all stages together keep the limit, but for one batch."""
    problem = triplets(2, num_gpus=5)
    budget = Budget(max_evaluations=limit)
    result = PortfolioSolver(stages=lambda: FIRST_AND_LAST).solve(problem, AnalyticSurrogate(), budget=budget)
    assert result.termination is Termination.ITERATION_LIMIT
    assert result.statistics.num_evaluations <= limit + 1000


def test_evaluations_before_the_first_placement_are_not_counted_as_improving() -> None:
    """The automatic budget must not cut short what finds the first placement."""
    problem = random_problem(5, 120, load_gpus=2.5)
    result = PortfolioSolver().solve(problem, AnalyticSurrogate(), budget=Budget(max_improving_evaluations=0))
    assert result.solution is Solution.FEASIBLE
    assert result.termination is Termination.ITERATION_LIMIT
    more = PortfolioSolver().solve(problem, AnalyticSurrogate(), budget=Budget(max_improving_evaluations=3000))
    spent = more.statistics.num_evaluations - result.statistics.num_evaluations
    assert 0 < spent <= 4000


def test_a_stage_with_a_share_leaves_the_rest_to_the_next() -> None:
    """A stage that spends its share does not end the search."""
    problem = triplets(0, num_gpus=5)
    stages = (
        Stage(PackingSolver("bfd")),
        Stage(LocalSearchSolver(builds_first=False), share=0.02, needs_placement=True),
        Stage(LocalSearchSolver(builds_first=False), needs_placement=True),
    )
    solver = PortfolioSolver(stages=lambda: stages)
    result = solver.solve(problem, AnalyticSurrogate(), budget=Budget(max_evaluations=20_000))
    assert result.evaluation is not None
    assert (result.evaluation.num_gpus, result.termination) == (5, Termination.COMPLETED)


def test_a_met_bound_is_a_proof_and_ends_the_search() -> None:
    """One GPU is always optimal: nothing is asked after the first placement."""
    problem = make_problem([make_adapter(f"a{index}", rate_rps=0.1) for index in range(10)])
    result = PortfolioSolver().solve(problem, AnalyticSurrogate(), budget=Budget())
    packed = PackingSolver("bfd").solve(problem, AnalyticSurrogate(), budget=Budget())
    assert (result.solution, result.termination) == (Solution.OPTIMAL, Termination.PROVEN)
    assert result.bound == replace(work_bound(problem), cost_per_hour=3.0)
    assert result.statistics.num_evaluations == packed.statistics.num_evaluations


def test_with_prices_the_cost_is_what_is_proven() -> None:
    """One GPU of the cheapest type cannot be beaten; one of a dearer type alone could be."""
    types = (GPU, GPU.model_copy(update={"name": "cheap", "cost_per_hour": 1.0}))
    adapters = [make_adapter(f"a{index}", rate_rps=0.1) for index in range(10)]
    problem = with_objective(make_problem(adapters), "least_cost", types)
    result = PortfolioSolver().solve(problem, AnalyticSurrogate(), budget=Budget(max_evaluations=2000))
    assert result.evaluation is not None
    assert (result.solution, result.evaluation.cost_per_hour) == (Solution.OPTIMAL, 1.0)
    none_cheap = (GPU, GPU.model_copy(update={"name": "cheap", "cost_per_hour": 1.0, "max_count": 0}))
    dear = with_objective(make_problem(adapters), "least_cost", none_cheap)
    result = PortfolioSolver().solve(dear, AnalyticSurrogate(), budget=Budget(max_evaluations=2000))
    assert result.evaluation is not None
    assert (result.solution, result.evaluation.cost_per_hour) == (Solution.FEASIBLE, 3.0)


def test_why_a_stage_found_nothing_is_not_said_when_another_one_found_something() -> None:
    """The message is about the answer, not about the way to it."""
    problem = triplets(0, num_gpus=5)
    alone = Placement(
        tuple(GpuAssignment(0, (index,), 1, adapter.rank) for index, adapter in enumerate(problem.adapters))
    )

    def solve(*stages: Stage) -> SolveResult:
        solver = PortfolioSolver(stages=lambda: stages)
        return solver.solve(problem, AnalyticSurrogate(), budget=Budget(), warm_start=alone)

    greedy = Stage(GreedySolver())
    without, with_answer = solve(greedy), solve(greedy, Stage(PackingSolver("bfd")))
    assert without.solution is Solution.NONE
    assert "warm start was ignored" in without.message
    assert with_answer.message == ""


def test_the_stages_are_those_that_can_run_here() -> None:
    """Patterns take part if they are registered and what they need is installed."""
    names = [stage.solver.name for stage in default_stages()]
    can_price = any(entry.name == "patterns" and entry.availability().is_available for entry in solver_entries())
    assert names == ["bfd", *(["patterns"] if can_price else []), "local_search"]
