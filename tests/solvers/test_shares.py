"""Adapters divided into shares: indices, sums, rules, bounds, and every solver against brute force."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors.features import AGGREGATE_NAMES, RATE_LINEAR_NAMES
from solvers.bounds import work_bound
from solvers.budget import Budget
from solvers.constraints import ApartRule, Constraints, GpuTypeRule, LimitsRule, TogetherRule
from solvers.interface import Capability
from solvers.merging import merged_problem
from solvers.objective import objective_value
from solvers.placement import GpuAssignment, Placement, validate_placement
from solvers.problem import Problem
from solvers.registry import get_solver, solver_entries
from solvers.replication import AutomaticRule, ReplicasRule, Replication, given_replicas, most_replicas
from solvers.result import Solution
from solvers.shares import divided_problem, equal_shares
from tests.solvers.analytic import AnalyticSurrogate
from tests.solvers.constrained_problems import constrained_optimum
from tests.solvers.problems import GPU, make_adapter, make_problem, random_problem
from twin.errors import InputError, SolverError

KEEPERS = [entry.name for entry in solver_entries() if Capability.CONSTRAINTS in entry.capabilities]
ASKED = Replication(given=(ReplicasRule(adapters=("hot",), replicas=3),))


def hot_problem(*, hot_rps: float = 20.0, replicas: int = 3, num_others: int = 3) -> Problem:
    """Return a divided problem: an adapter of one and a third of an analytic GPU, and some light ones."""
    others = [make_adapter(f"a{index}", rate_rps=2.0 + index, rank=8) for index in range(num_others)]
    whole = replace(make_problem([make_adapter("hot", rate_rps=hot_rps), *others]), replication=ASKED)
    return divided_problem(whole, equal_shares([replicas] + [1] * num_others))


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=6))
def test_shares_know_their_adapters_and_adapters_their_shares(weights: list[list[int]]) -> None:
    """Both directions of the mapping agree, nothing is lost, and sums of shares are the adapter's."""
    problem = make_problem([make_adapter(f"a{index}", rate_rps=1.0 + index) for index in range(len(weights))])
    divided = divided_problem(problem, [[weight / sum(own) for weight in own] for own in weights])
    shares = divided.shares
    assert shares is not None
    assert len(divided.adapters) == sum(len(own) for own in weights)
    assert [index for adapter in range(len(weights)) for index in shares.indices_of(adapter)] == list(
        range(len(divided.adapters))
    )
    for index, adapter in enumerate(divided.adapters):
        origin = int(shares.adapter_of[index])
        assert index in shares.indices_of(origin)
        assert divided.told_name(index) == f"a{origin}"
        assert shares.indices_of(origin)[shares.number_of(index) - 1] == index
        assert adapter.rate_rps == pytest.approx(problem.adapters[origin].rate_rps * shares.size_of(index))
    columns = [AGGREGATE_NAMES.index(name) for name in RATE_LINEAR_NAMES]
    summed = np.zeros_like(problem.aggregates[:, columns])
    np.add.at(summed, shares.adapter_of, divided.aggregates[:, columns])
    assert summed == pytest.approx(problem.aggregates[:, columns], rel=1e-9)
    assert divided.told is problem
    assert [list(group) for group in shares.groups] == [
        list(shares.indices_of(index)) for index, own in enumerate(weights) if len(own) > 1
    ]


def test_rules_about_an_adapter_hold_for_its_shares() -> None:
    """Pins, limits and groups are given by the adapter's name, and a group counts adapters, not shares."""
    rules = Constraints(
        gpu_type=(GpuTypeRule(adapters=("hot",), types=("other",)),),
        limits=(LimitsRule(adapters=("hot",), itl_p95_ms=50.0),),
        apart=(ApartRule(adapters=("hot", "a0")), ApartRule(adapters=("hot", "a1", "a2"), at_most=2)),
        together=(TogetherRule(adapters=("a1", "a2")),),
    )
    types = (GPU, GPU.model_copy(update={"name": "other"}))
    whole = make_problem([make_adapter(name) for name in ("hot", "a0", "a1", "a2")], gpu_types=types)
    problem = divided_problem(replace(whole, constraints=rules, replication=ASKED), equal_shares([3, 1, 1, 1]))
    assert [problem.may_serve(0, index) for index in range(6)] == [False] * 3 + [True] * 3
    assert problem.limits_of((1, 4)).itl_p95_ms == 50.0
    assert problem.limits_of((3, 4)).itl_p95_ms is None

    def keeps(*groups: tuple[int, ...]) -> bool:
        try:
            validate_placement(problem, Placement(tuple(GpuAssignment(1, group, 2, 16) for group in groups)))
        except InputError:
            return False
        return True

    assert keeps((0,), (1,), (2,), (3,), (4, 5))
    assert keeps((0,), (1,), (2,), (3, 4, 5))
    assert not keeps((0,), (1,), (2, 3), (4, 5))
    assert not keeps((0,), (1,), (2, 4, 5), (3,))
    assert not keeps((0, 1), (2,), (3,), (4, 5))
    merged = merged_problem(problem)
    assert merged.members_of((0, 4)) == (0, 4, 5)
    assert [merged.told_name(index) for index in range(5)] == ["hot", "hot", "hot", "a0", "a1"]


def test_the_validator_names_an_adapter_with_two_replicas_on_a_gpu() -> None:
    """They would share the GPU's memory and gain nothing."""
    problem = hot_problem()
    gpus = (GpuAssignment(0, (0, 1), 2, 16), GpuAssignment(0, (2, 3, 4, 5), 2, 16))
    with pytest.raises(InputError, match="several shares of 'hot'") as caught:
        validate_placement(problem, Placement(gpus))
    assert caught.value.field == "gpus.0.adapters"


@pytest.mark.parametrize("name", KEEPERS)
def test_solvers_place_shares_as_brute_force_does(name: str) -> None:
    """For each number of replicas: nobody is below the optimum, and there is no answer where there is none."""
    for replicas in (1, 2, 3):
        problem = hot_problem(replicas=replicas)
        optimum = optimum_of(replicas)
        solver = get_solver(name)
        if optimum is None:
            assert replicas == 1
            with pytest.raises(InputError, match="'hot'"):
                solver.solve(problem, AnalyticSurrogate(), budget=Budget(max_evaluations=500))
            continue
        result = solver.solve(problem, AnalyticSurrogate(), budget=Budget(max_evaluations=500))
        assert result.placement is not None, result.message
        assert result.evaluation is not None
        validate_placement(problem, result.placement)
        homes = [index for index, gpu in enumerate(result.placement.gpus) for share in gpu.adapters if share < replicas]
        assert len(set(homes)) == replicas
        value = objective_value(problem, result.evaluation)
        assert value >= optimum
        if result.solution is Solution.OPTIMAL:
            assert value == optimum
        assert result.bound is None or result.bound.value <= optimum[0]


@cache
def optimum_of(replicas: int) -> tuple[float, float] | None:
    """Return the optimum by brute force over plain adapters of which a rule, checked by name, keeps some apart."""
    problem = hot_problem(replicas=replicas)
    names = tuple(adapter.name for adapter in problem.adapters if adapter.name.startswith("hot"))
    rules = Constraints(apart=(ApartRule(adapters=names),))
    return constrained_optimum(replace(problem, shares=None, constraints=rules), AnalyticSurrogate())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), counts=st.lists(st.integers(1, 4), min_size=5, max_size=5))
def test_the_work_bound_is_that_of_whole_adapters(seed: int, counts: Sequence[int]) -> None:
    """Work is a sum over requests: it does not matter how many GPUs an adapter's requests are sent to."""
    problem = random_problem(seed, 5, load_gpus=3.0)
    divided = divided_problem(problem, equal_shares(counts))
    assert work_bound(divided) == work_bound(problem)
    # Nothing is gained by leaving out who the shares belong to.
    forgotten = replace(divided, shares=None)
    assert work_bound(forgotten).value == work_bound(problem).value
    assert work_bound(forgotten).cost_per_hour == pytest.approx(work_bound(problem).cost_per_hour)


@pytest.mark.parametrize("name", ["bfd", "exact", "dlora"])
def test_replicas_that_nobody_has_divided_are_not_left_out(name: str) -> None:
    """A solver that is called by itself says what is missing instead of placing the adapter on one GPU."""
    problem = replace(make_problem([make_adapter("hot"), make_adapter("a0")]), replication=ASKED)
    with pytest.raises(SolverError, match="`replication`"):
        get_solver(name).solve(problem, AnalyticSurrogate(), budget=Budget(max_evaluations=100))


def test_numbers_by_rule() -> None:
    """Fixed numbers come before those that are looked for, and the smallest limit holds."""
    asked = Replication(
        given=(ReplicasRule(adapters=("a?",), replicas=2), ReplicasRule(adapters=("b0",), replicas=1)),
        automatic=(AutomaticRule(max_replicas=8), AutomaticRule(adapters=("c*",), max_replicas=3)),
    )
    names = ["a0", "b0", "c0", "d0"]
    assert given_replicas(asked, names) == [2, 1, 1, 1]
    assert most_replicas(asked, names) == {2: 3, 3: 8}
    assert asked.is_asked
    assert not Replication().is_asked
