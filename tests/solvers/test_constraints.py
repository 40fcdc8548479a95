"""Constraints of a placement: every solver keeps them or refuses them, and exact ones find the constrained optimum."""

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers.budget import Budget
from solvers.constraints import ApartRule, Constraints, GpuTypeRule, LimitsRule, TogetherRule, joined_groups
from solvers.interface import Capability
from solvers.objective import evaluate, objective_value
from solvers.placement import GpuAssignment, Placement, validate_placement
from solvers.problem import Problem
from solvers.registry import get_solver, solver_entries
from solvers.result import Incumbent, Solution
from tests.solvers.analytic import AnalyticSurrogate
from tests.solvers.constrained_problems import (
    broken_rules,
    constrained_optimum,
    constrained_problem,
    keeps_limits,
    strictest,
)
from tests.solvers.problems import make_adapter, make_problem, with_objective
from tests.solvers.small_problems import TYPES
from twin.errors import InputError, SolverError

KEEPERS = [entry.name for entry in solver_entries() if Capability.CONSTRAINTS in entry.capabilities]
REFUSERS = [entry.name for entry in solver_entries() if Capability.CONSTRAINTS not in entry.capabilities]
EXACT = ["cpsat", "exact", "milp"]
BUDGET = Budget(max_evaluations=1000)
OPTIMA: dict[str, tuple[float, float] | None] = {}


def problem_of(constraints: Constraints, *, num_adapters: int = 4, num_types: int = 1) -> Problem:
    """Return a problem of light adapters a0, a1, ... that one GPU could serve."""
    problem = make_problem([make_adapter(f"a{index}", rate_rps=0.2) for index in range(num_adapters)])
    if num_types > 1:
        problem = with_objective(problem, "fewest_gpus", TYPES)
    return replace(problem, constraints=constraints)


def one_gpu(*groups: tuple[int, ...], gpu_type: int = 0) -> Placement:
    """Return a placement of these groups, with a slot for each adapter."""
    return Placement(tuple(GpuAssignment(gpu_type, group, len(group), 16) for group in groups))


def optimum_of(problem: Problem) -> tuple[float, float] | None:
    """Return the optimum by brute force; many solvers are compared with the same."""
    key = repr((problem.workload, problem.gpu_types, problem.objective, problem.constraints))
    if key not in OPTIMA:
        OPTIMA[key] = constrained_optimum(problem, AnalyticSurrogate())
    return OPTIMA[key]


def check(problem: Problem, placement: Placement) -> None:
    """Assert that a placement keeps every rule, by the validator and rule by rule."""
    validate_placement(problem, placement)
    assert broken_rules(problem, placement) == []
    assert evaluate(problem, placement, AnalyticSurrogate()).is_feasible
    assert keeps_limits(problem, placement, AnalyticSurrogate())


@pytest.mark.parametrize("name", KEEPERS)
@pytest.mark.parametrize(("seed", "num_types"), [(1, 2), (3, 2)])
def test_answers_keep_the_constraints_and_are_not_better_than_brute_force(name: str, seed: int, num_types: int) -> None:
    """What is found is allowed, and no better than the best division that is; exact solvers find that one."""
    problem = constrained_problem(seed, 5, num_types=num_types)
    solver = get_solver(name)
    if num_types > 1 and Capability.MIXED_GPU_TYPES not in solver.capabilities:
        problem = replace(problem, constraints=problem.constraints.model_copy(update={"gpu_type": ()}))
    result = solver.solve(problem, AnalyticSurrogate(), budget=BUDGET)
    optimum = optimum_of(problem)
    assert optimum is not None
    assert result.placement is not None, result.message
    assert result.evaluation == evaluate(problem, result.placement, AnalyticSurrogate())
    check(problem, result.placement)
    value = objective_value(problem, result.evaluation)
    assert value >= optimum
    if name in EXACT and result.solution is Solution.OPTIMAL:
        assert value[0] == pytest.approx(optimum[0])
    if result.bound is not None and result.bound.model == "surrogate":
        assert result.bound.value <= (optimum[0] if problem.objective == "fewest_gpus" else optimum[1])
        assert (result.bound.cost_per_hour or 0.0) <= optimum[0] + 1e-6 or problem.objective == "fewest_gpus"


@pytest.mark.parametrize("name", ["exact", "milp"])
@pytest.mark.parametrize("seed", range(4, 8))
def test_listing_all_sets_proves_the_constrained_optimum(name: str, seed: int) -> None:
    """Where every set is asked about, constraints leave nothing to chance."""
    problem = constrained_problem(seed, 5, num_types=1 + seed % 2)
    result = get_solver(name).solve(problem, AnalyticSurrogate(), budget=Budget())
    assert result.solution is Solution.OPTIMAL
    assert result.evaluation is not None
    assert objective_value(problem, result.evaluation) == pytest.approx(optimum_of(problem))


@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_adapters=st.integers(6, 24),
    num_types=st.integers(1, 2),
    name=st.sampled_from([name for name in KEEPERS if name not in {"exact", "milp-capacity", "milp-cbc"}]),
)
def test_no_placement_breaks_a_constraint(seed: int, num_adapters: int, num_types: int, name: str) -> None:
    """Whatever the rules and the solver, every incumbent keeps all of them."""
    problem = constrained_problem(seed, num_adapters, load_gpus=2.5, num_types=num_types)
    seen: list[Incumbent] = []
    # A group may be too much for a GPU, and not every solver mixes types.
    with suppress(InputError, SolverError):
        get_solver(name).solve(
            problem, AnalyticSurrogate(), budget=Budget(max_evaluations=1500), seed=seed, observer=seen.append
        )
    for incumbent in seen:
        check(problem, incumbent.placement)


@pytest.mark.parametrize("name", REFUSERS)
def test_who_does_not_keep_constraints_says_who_does(name: str) -> None:
    """Ignoring a rule would be worse than no answer."""
    problem = problem_of(Constraints(apart=(ApartRule(adapters=("a*",)),)))
    with pytest.raises(SolverError, match="constraints") as caught:
        get_solver(name).solve(problem, AnalyticSurrogate(), budget=BUDGET)
    assert "portfolio" in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["bfd", "local_search", "patterns", "greedy-repaired"])
def test_each_kind_of_rule_changes_the_answer_as_it_must(name: str) -> None:
    """Four light adapters fit one GPU; rules that forbid it cost exactly as many GPUs as they must."""
    cases = {
        Constraints(): 1,
        Constraints(apart=(ApartRule(adapters=("a*",)),)): 4,
        Constraints(apart=(ApartRule(adapters=("a*",), at_most=2),)): 2,
        Constraints(apart=(ApartRule(adapters=("a0", "a2")),), together=(TogetherRule(adapters=("a0", "a1")),)): 2,
    }
    for constraints, expected in cases.items():
        problem = problem_of(constraints)
        result = get_solver(name).solve(problem, AnalyticSurrogate(), budget=BUDGET)
        assert result.placement is not None
        assert result.placement.num_gpus == expected
        check(problem, result.placement)


def test_solvers_of_one_gpu_type_refuse_pins_to_several() -> None:
    """A fleet of one type cannot keep them, and the error names who can."""
    pins = tuple(GpuTypeRule(adapters=(f"a{index}",), types=(TYPES[index].name,)) for index in range(2))
    with pytest.raises(SolverError, match="several GPU types") as caught:
        get_solver("greedy-repaired").solve(
            problem_of(Constraints(gpu_type=pins), num_types=2), AnalyticSurrogate(), budget=BUDGET
        )
    assert "bfd" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("constraints", "placement", "field"),
    [
        (Constraints(apart=(ApartRule(adapters=("a0", "a1")),)), one_gpu((0, 1, 2, 3)), "gpus.0.adapters"),
        (Constraints(together=(TogetherRule(adapters=("a0", "a3")),)), one_gpu((0, 1), (2, 3)), "gpus.1.adapters"),
        (
            Constraints(gpu_type=(GpuTypeRule(adapters=("a2",), types=(TYPES[1].name,)),)),
            one_gpu((0, 1, 2, 3)),
            "gpus.0.gpu_type",
        ),
    ],
)
def test_the_validator_names_what_is_broken(constraints: Constraints, placement: Placement, field: str) -> None:
    """A placement from elsewhere, too, is held to the rules."""
    problem = problem_of(constraints, num_types=2)
    validate_placement(replace(problem, constraints=Constraints()), placement)
    with pytest.raises(InputError) as caught:
        validate_placement(problem, placement)
    assert caught.value.field == field


def test_a_gpu_keeps_the_strictest_limits_of_its_adapters() -> None:
    """Own limits hold for the GPU that serves the adapter, and for no other."""
    rules = (
        LimitsRule(adapters=("a0",), itl_p95_ms=30.0),
        LimitsRule(adapters=("a[01]",), itl_p95_ms=40.0, starvation_tolerance=0.02),
    )
    problem = problem_of(Constraints(limits=rules))
    for chosen in ((0,), (1,), (2, 3), (0, 1, 2), (1, 2)):
        assert problem.limits_of(chosen) == strictest(problem, chosen)


def test_a_warm_start_with_groups_is_improved() -> None:
    """A placement in which groups are together can be started from; the answer is told in the user's adapters."""
    problem = problem_of(Constraints(together=(TogetherRule(adapters=("a0", "a2")),)))
    seen: list[Incumbent] = []
    result = get_solver("bfd").solve(
        problem, AnalyticSurrogate(), budget=BUDGET, warm_start=one_gpu((0, 2), (1,), (3,)), observer=seen.append
    )
    assert seen[0].placement.num_gpus == 3
    assert result.placement is not None
    assert result.placement.num_gpus == 1
    check(problem, seen[-1].placement)


def test_groups_with_a_common_member_are_one() -> None:
    """Together is transitive."""
    assert joined_groups([(0, 1), (5,), (2, 3), (3, 0), (6, 7)]) == [(0, 1, 2, 3), (6, 7)]
