"""The search for the least fleet: the least number of GPUs of a rule, whatever the rule, within the budget."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solvers.baselines.fleet import BudgetSpentError, FleetTask, Groups
from solvers.baselines.least_fleet import Baseline, BaselineSolver, LeastFleet
from solvers.budget import Budget
from solvers.result import Incumbent, Solution, Termination
from tests.solvers.analytic import AnalyticSurrogate
from tests.solvers.baselines.tasks import make_task
from tests.solvers.problems import GPU, make_adapter, make_problem, with_objective
from twin.errors import InputError

NUM_ADAPTERS = 24
# Light enough for one GPU: the rule alone decides what is accepted.
LIGHT = make_problem([make_adapter(f"a{index}", rate_rps=0.01) for index in range(NUM_ADAPTERS)])


def rule_for(accepted: set[int]) -> Baseline:
    """Return a baseline that works with some numbers of GPUs only, and spreads the adapters evenly."""

    def place(task: FleetTask, num_gpus: int) -> Groups | None:
        if num_gpus not in accepted:
            return None
        return [list(range(gpu, task.num_adapters, num_gpus)) for gpu in range(num_gpus)]

    return Baseline(name="scripted", summary="for tests", place=place)


@given(accepted=st.sets(st.integers(1, NUM_ADAPTERS)))
def test_the_least_accepted_number_is_found_however_irregular_they_are(accepted: set[int]) -> None:
    """More GPUs are not always better for a rule; every number below the answer was tried, none twice."""
    search = LeastFleet(rule_for(accepted), make_task(LIGHT))
    assert search.search(NUM_ADAPTERS) == min(accepted, default=None)
    assert set(search.tried) >= set(range(1, min(accepted, default=NUM_ADAPTERS) + 1))
    assert search.task.run.num_iterations == len(search.tried)


def test_numbers_are_doubled_then_bisected_then_tried_from_the_top_down() -> None:
    """A good fleet is found in few tries; what is left of a budget goes to the numbers just below it."""
    search = LeastFleet(rule_for({3, *range(13, 25)}), make_task(LIGHT))
    assert search.search(NUM_ADAPTERS) == 3
    doubled, bisected, downwards = [1, 2, 4, 8, 16], [12, 14, 13], [11, 10, 9, 7, 6, 5, 3]
    assert list(search.tried) == doubled + bisected + downwards


def test_a_budget_keeps_the_best_fleet_so_far() -> None:
    """The search is anytime: what the doubling found is there when the evaluations end."""
    seen: list[Incumbent] = []
    solver = BaselineSolver(rule_for({*range(13, 25)}))
    # 24 adapters alone, and a fleet of 16 GPUs: first their best slots, then these.
    budget = Budget(max_evaluations=24 + 2 * 16)
    result = solver.solve(LIGHT, AnalyticSurrogate(), budget=budget, observer=seen.append)
    assert (result.solution, result.termination) == (Solution.FEASIBLE, Termination.ITERATION_LIMIT)
    assert [incumbent.evaluation.num_gpus for incumbent in seen] == [16]
    assert result.placement == seen[0].placement


def test_a_rule_can_end_with_the_budget() -> None:
    """Long rules look at the budget in their loops."""
    with pytest.raises(BudgetSpentError) as caught:
        make_task(LIGHT, budget=Budget(max_evaluations=0)).require_budget()
    assert caught.value.termination is Termination.ITERATION_LIMIT


@pytest.mark.parametrize(("seconds", "expected"), [(None, None), (0.0, 0.0)])
def test_the_seconds_left_are_those_of_the_budget(seconds: float | None, expected: float | None) -> None:
    """A library is given the rest of the time, never a negative one."""
    assert make_task(LIGHT, budget=Budget(seconds=seconds)).remaining_s == expected


def test_nothing_found_says_how_much_was_tried() -> None:
    """The message names the rule and the number of GPUs, and the tries."""
    result = BaselineSolver(rule_for(set())).solve(LIGHT, AnalyticSurrogate(), budget=Budget())
    assert (result.solution, result.termination) == (Solution.NONE, Termination.COMPLETED)
    assert "No fleet that scripted builds of at most 24 GPUs of type 'h100-64gb' keeps the limits." in result.message
    assert "Fleets tried and refused as a whole: 24." in result.message


def test_no_more_gpus_than_there_are_are_tried() -> None:
    """`max_count` ends the search."""
    scarce = with_objective(LIGHT, "fewest_gpus", (GPU.model_copy(update={"max_count": 5}),))
    result = BaselineSolver(rule_for({6, 7, 8})).solve(scarce, AnalyticSurrogate(), budget=Budget())
    assert result.placement is None
    assert result.statistics.num_iterations == 5


def test_empty_gpus_are_not_used() -> None:
    """A rule may leave GPUs empty; they are not paid for."""
    baseline = Baseline(
        "scripted", "for tests", lambda task, gpus: [list(range(task.num_adapters))] + [[]] * (gpus - 1)
    )
    placement = BaselineSolver(baseline).solve(LIGHT, AnalyticSurrogate(), budget=Budget()).placement
    assert placement is not None
    assert placement.num_gpus == 1


def test_slots_that_memory_does_not_allow_are_refused_without_asking() -> None:
    """A replica that would not start is not a question for the surrogate."""
    task = make_task(LIGHT)
    assert task.accepted([list(range(NUM_ADAPTERS))], [10_000]) is None
    assert task.run.model.num_evaluations == 0


def test_what_the_surrogate_refuses_is_no_placement() -> None:
    """The slots of a rule are asked about as they are."""
    heavy = make_task(make_problem([make_adapter(f"a{index}", rate_rps=9.0) for index in range(2)]))
    assert heavy.accepted([[0, 1]], [2]) is None
    assert heavy.accepted([[0], [1]], [1, 1]) is not None


def test_an_adapter_that_fits_nowhere_is_bad_input() -> None:
    """It is named before any fleet is built."""
    problem = make_problem([make_adapter("light"), make_adapter("heavy", rate_rps=30.0)])
    with pytest.raises(InputError, match="'heavy'"):
        BaselineSolver(rule_for({1, 2})).solve(problem, AnalyticSurrogate(), budget=Budget())


def test_the_cheaper_of_two_types_is_taken() -> None:
    """Each type has a search of its own, and the objective decides."""
    types = (GPU, GPU.model_copy(update={"name": "cheap", "cost_per_hour": 1.0}))
    problem = with_objective(LIGHT, "least_cost", types)
    placement = BaselineSolver(rule_for({2})).solve(problem, AnalyticSurrogate(), budget=Budget()).placement
    assert placement is not None
    assert [gpu.gpu_type for gpu in placement.gpus] == [1, 1]


@given(members=st.sets(st.integers(0, NUM_ADAPTERS - 1), min_size=1))
def test_free_memory_shrinks_with_adapters(members: set[int]) -> None:
    """Every further adapter takes a slot, as long as slots fit."""
    task = make_task(LIGHT)
    free = task.free_kv_tokens(sorted(members))
    assert 0 < free <= task.free_kv_tokens([min(members)])
    assert np.isclose(task.rates_rps.sum(), 0.01 * NUM_ADAPTERS)
