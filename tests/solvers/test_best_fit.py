"""Insertion in runs: the same answer as placing adapters one by one, in far fewer questions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers.alone import feasible_alone
from solvers.best_fit import BestFit, runs
from solvers.bounds import adapter_work, unavoidable_costs
from solvers.budget import Budget
from solvers.feasibility import FeasibilityModel
from solvers.open_fleet import RETRY_SHARE, OpenFleet
from solvers.placement import Placement
from solvers.problem import Problem
from solvers.run import SolverRun
from tests.solvers.analytic import AnalyticSurrogate
from tests.solvers.problems import make_adapter, make_problem, random_problem
from twin.engine import LoraRank


def work_of(problem: Problem) -> np.ndarray:
    """Return the work of each adapter, float64 [1, A]."""
    return adapter_work(problem, unavoidable_costs(problem, 0))[None, :]


def order_of(problem: Problem) -> np.ndarray:
    """Return the adapters by rank and work, descending."""
    return np.lexsort((-work_of(problem)[0], -problem.ranks))


def discrete_problem(seed: int, num_adapters: int) -> Problem:
    """Return a problem whose adapters are of a few kinds."""
    generator = np.random.default_rng(seed)
    ranks: list[LoraRank] = [8, 32]
    rates = (1.6, 0.4, 0.1, 0.02)
    return make_problem(
        [
            make_adapter(f"a{i}", rank=ranks[int(generator.integers(2))], rate_rps=float(generator.choice(rates)))
            for i in range(num_adapters)
        ]
    )


def insert_one_by_one(problem: Problem, *, is_best_fit: bool) -> tuple[Placement, int]:
    """Return the placement of plain best or first fit, all GPUs asked for every adapter, and the calls it took."""
    surrogate = AnalyticSurrogate()
    fleet = OpenFleet(FeasibilityModel(problem, surrogate), work_of(problem))
    for adapter in order_of(problem):
        gpus = fleet.may_hold(fleet.open_gpus, int(adapter))
        choices = fleet.ask(gpus, int(adapter)) if len(gpus) else None
        if choices is None or not choices.feasible.any():
            assert fleet.open(0, int(adapter)) is not None
            continue
        merit = fleet.fullness_with(gpus, int(adapter), choices) if is_best_fit else -gpus.astype(float)
        position = int(np.argmax(np.where(choices.feasible, merit, -np.inf)))
        fleet.add(int(gpus[position]), int(adapter), choices, position)
    return fleet.placement(), surrogate.num_calls


def insert_in_runs(problem: Problem, *, is_best_fit: bool) -> tuple[Placement, int]:
    """Return the placement of insertion in runs, and the calls it took."""
    surrogate = AnalyticSurrogate()
    run = SolverRun(problem, surrogate, Budget(), None)
    fleet = OpenFleet(run.model, work_of(problem))
    fits = feasible_alone(run.model)
    before = surrogate.num_calls
    placed = BestFit(run, fits, is_best_fit=is_best_fit).insert(fleet, order_of(problem), types=(0,))
    assert placed == len(problem.adapters)
    return fleet.placement(), surrogate.num_calls - before


@pytest.mark.parametrize("is_best_fit", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_identical_adapters_are_placed_as_if_one_by_one(seed: int, *, is_best_fit: bool) -> None:
    """Asking how many fit changes nothing where adapters are interchangeable, and takes a fraction of the calls."""
    problem = discrete_problem(seed, 300)
    expected, calls_one_by_one = insert_one_by_one(problem, is_best_fit=is_best_fit)
    actual, calls = insert_in_runs(problem, is_best_fit=is_best_fit)
    assert actual == expected
    assert calls * 3 < calls_one_by_one


@pytest.mark.parametrize("is_best_fit", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_merely_similar_adapters_take_no_more_gpus(seed: int, *, is_best_fit: bool) -> None:
    """A run of about equal work may be dealt out in another way, not to more GPUs."""
    problem = random_problem(seed, 300, load_gpus=6.0)
    expected, _ = insert_one_by_one(problem, is_best_fit=is_best_fit)
    actual, _ = insert_in_runs(problem, is_best_fit=is_best_fit)
    assert actual.num_gpus <= expected.num_gpus


@settings(max_examples=100)
@given(seed=st.integers(0, 10_000), num_adapters=st.integers(1, 60), spread=st.sampled_from([0.001, 0.02, 0.5]))
def test_runs_partition_the_order(seed: int, num_adapters: int, spread: float) -> None:
    """Every adapter is in one run, in order; a run is of one rank and of about equal work, and could not be longer."""
    generator = np.random.default_rng(seed)
    ranks = generator.choice(np.array([8, 16], dtype=np.int64), size=num_adapters)
    work = np.exp(generator.normal(0.0, spread, size=(2, num_adapters)))
    order = np.lexsort((-work[0], -ranks))
    parts = list(runs(ranks, work, order))
    assert np.array_equal(np.concatenate(parts), order)

    def are_equal(first: int, other: int) -> bool:
        ratios = work[:, other] / work[:, first]
        return bool(ranks[first] == ranks[other] and ((ratios >= RETRY_SHARE) & (ratios * RETRY_SHARE <= 1.0)).all())

    for position, part in enumerate(parts):
        assert all(are_equal(int(part[0]), int(other)) for other in part)
        if position + 1 < len(parts):
            assert not are_equal(int(part[0]), int(parts[position + 1][0]))


def test_what_finds_no_place_is_not_placed() -> None:
    """Without GPUs to open, the count tells how far the insertion came."""
    problem = discrete_problem(0, 50)
    run = SolverRun(problem, AnalyticSurrogate(), Budget(), None)
    fleet = OpenFleet(run.model, work_of(problem))
    insertion = BestFit(run, feasible_alone(run.model))
    order = order_of(problem)
    assert insertion.insert(fleet, order) == 0
    assert fleet.open(0, int(order[0])) == 0
    placed = insertion.insert(fleet, order[1:])
    assert sorted(fleet.members[0]) == sorted(order[: 1 + placed].tolist())
    assert 0 < placed < 49


def test_a_closed_gpu_is_opened_again() -> None:
    """A fleet that is emptied and filled for long does not grow beyond its adapters."""
    problem = discrete_problem(0, 3)
    fleet = OpenFleet(FeasibilityModel(problem, AnalyticSurrogate()), work_of(problem))
    for _ in range(3):
        assert fleet.open(0, 0) == 0
        assert fleet.open(0, 1) == 1
        fleet.close(0)
        assert fleet.open(0, 2) == 0
        np.testing.assert_array_equal(fleet.rows[0], problem.aggregates[2])
        fleet.close(1)
        fleet.close(0)
        assert fleet.open(0, 2) == 0
        fleet.close(0)
