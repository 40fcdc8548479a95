"""Certificates of a function of sums: no set that it accepts breaks them, and no placement is below their bound."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.closed_form_oracle import SLOTS, Oracle
from benchmarks.known_bounds import instance
from placer.foreign_surrogate import without_physics
from placer.instances.user_files import read_instances
from predictors.aggregate_oracle import SUM_COLUMNS, AggregateOracle
from solvers.adapter_types import exact_types
from solvers.budget import Budget
from solvers.feasibility import FeasibilityModel
from solvers.patterns.box_bounds import box_bound_for
from solvers.patterns.boxes import feature_corners, root_boxes
from solvers.patterns.farley import FarleySearch
from solvers.patterns.questions import PatternModel
from solvers.patterns.relaxation import MOST_COLUMNS
from solvers.patterns.solver import PatternsSolver
from solvers.problem import Problem
from solvers.result import Termination
from solvers.run import SolverRun
from tests.solvers.oracle import least_objective
from tests.solvers.problems import make_adapter, make_problem
from twin.engine import LoraRank

RANKS: list[LoraRank] = [8, 16, 64]


def certified(*, rate_factor: float = 1.0) -> AggregateOracle:
    """Return the benchmark's oracle with its certificates."""
    oracle = Oracle()
    return AggregateOracle(oracle.feasible, rate_factor=rate_factor, certificates=oracle)


def asked(oracle: Oracle, sums: NDArray[np.float64], rank: int) -> tuple[bool, int]:
    """Return what the oracle says about sums, float64 [5]."""
    return oracle.feasible(int(sums[0]), float(sums[1]), float(sums[2]), float(sums[3]), float(sums[4]), rank)


def random_adapters(seed: int, count: int) -> Problem:
    """Return a problem with rates over three decades."""
    generator = np.random.default_rng(seed)
    rates = np.exp(generator.uniform(np.log(0.003), np.log(2.5), count))
    return without_physics(
        make_problem(
            [
                make_adapter(f"a{index}", rank=RANKS[int(generator.integers(3))], rate_rps=float(rate))
                for index, rate in enumerate(rates)
            ]
        )
    )


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 100_000), width=st.floats(0.0, 3.0))
def test_accepted_sums_keep_the_inequalities_of_every_box_around_them(seed: int, width: float) -> None:
    """Whatever the box, also one point and one that reaches far beyond the sums."""
    generator = np.random.default_rng(seed)
    oracle = Oracle()
    n = int(generator.integers(1, 300))
    rate = float(np.exp(generator.uniform(-5.0, 2.5)))
    sums = np.array([n, rate, rate**2 * generator.uniform(1.0 / n, 1.0), rate * 223.0, rate * 197.0])
    rank = RANKS[int(generator.integers(3))]
    accepted, slots = asked(oracle, sums, rank)
    if not accepted:
        return
    lower = sums * np.exp(-width * generator.uniform(0.0, 1.0, (4, 5)))
    upper = sums * np.exp(width * generator.uniform(0.0, 1.0, (4, 5)))
    lower[:, 0] = np.maximum(np.floor(lower[:, 0]), 1.0)
    gradients, limits = oracle.accepted_sums(slots, rank, lower, upper)
    assert (gradients @ sums <= limits).all()


@pytest.mark.parametrize("slots", SLOTS[:9])
def test_inequalities_of_a_point_say_what_the_oracle_says(slots: int) -> None:
    """Certificates that never exclude anything would pass every other test; more slots of rank 16 leave no memory."""
    generator = np.random.default_rng(slots)
    oracle = Oracle()
    verdicts = set()
    for _ in range(200):
        n = int(generator.integers(1, 300))
        rate = float(generator.uniform(0.5, 12.0))
        sums = np.array([n, rate, rate**2 / n, rate * 223.0, rate * 197.0])
        gradients, limits = oracle.accepted_sums(slots, 16, sums[None], sums[None])
        keeps = bool((gradients[0] @ sums <= limits[0]).all())
        others = [count for count in SLOTS if count != slots]
        known = asked(oracle, sums, 16)
        if keeps:
            assert known[0]
        elif known[0]:
            assert known[1] in others
        verdicts.add(keeps)
    assert verdicts == {True, False}


@pytest.mark.parametrize("rate_factor", [1.0, 1.3])
@pytest.mark.parametrize("seed", range(3))
def test_no_accepted_set_is_worth_more_than_the_bound(seed: int, rate_factor: float) -> None:
    """All sets of nine adapters, random values, also with a margin on the rates."""
    problem = random_adapters(seed, 9)
    oracle = certified(rate_factor=rate_factor)
    model = FeasibilityModel(problem, oracle)
    values = np.random.default_rng(seed).uniform(0.0, 1.0, 9)
    sets = [list(members) for size in range(1, 10) for members in combinations(range(9), size)]
    rows = np.array([problem.aggregates[members].sum(axis=0) for members in sets])
    ranks = np.array([problem.ranks[members].max() for members in sets])
    accepted = model.best_choice(rows, ranks, 0).feasible
    best = max(float(values[sets[index]].sum()) for index in np.flatnonzero(accepted))
    patterns = PatternModel(SolverRun(problem, oracle, Budget(), None), exact_types(problem))
    bound = box_bound_for(patterns.run.model, 0)
    assert bound is not None
    search = FarleySearch(patterns, (bound,), np.ones(1))
    of_types = np.array([values[members[0]] for members in patterns.types.members])
    for most_boxes in (0, 50, 500):
        assert search.most_worth(of_types, enough=1e-3, most_boxes=most_boxes).value >= best


@pytest.mark.parametrize("seed", range(4))
def test_the_bound_is_at_most_the_optimum(seed: int) -> None:
    """Brute force over all divisions of eight adapters."""
    problem = random_adapters(seed, 8)
    result = PatternsSolver().solve(problem, certified(), budget=Budget())
    assert result.bound is not None
    optimum = least_objective(problem, certified())
    assert optimum is not None
    assert result.bound.value <= optimum


def test_roots_are_the_slots_that_the_oracle_knows() -> None:
    """Each set is in the box of its rank and of the slots that it is accepted with."""
    problem = random_adapters(5, 60)
    model = FeasibilityModel(problem, certified())
    boxes = root_boxes(model, exact_types(problem), 0)
    assert {box.slots for box in boxes} == {(slots, slots) for slots in SLOTS}
    lower, upper = feature_corners(model, boxes)
    generator = np.random.default_rng(5)
    for _ in range(50):
        members = generator.choice(60, int(generator.integers(1, 20)), replace=False)
        row, rank = problem.aggregates[members].sum(axis=0), int(problem.ranks[members].max())
        choice = model.best_choice(row[None], np.array([rank]), 0)
        if not choice.feasible[0]:
            continue
        slots = int(choice.max_loras[0])
        found = [i for i, box in enumerate(boxes) if box.slots == (slots, slots) and box.slot_rank == rank]
        assert len(found) == 1
        columns = SUM_COLUMNS
        assert (lower[found[0], columns] <= row[columns]).all()
        assert (row[columns] <= upper[found[0], columns]).all()


def test_a_bound_of_more_types_than_columns_holds() -> None:
    """With some types outside of the program, no random set that is accepted is worth more than the bound."""
    problem = random_adapters(7, MOST_COLUMNS + 300)
    oracle = certified()
    model = FeasibilityModel(problem, oracle)
    types = exact_types(problem)
    assert types.num_types > MOST_COLUMNS
    values = types.rates_rps + 0.01
    patterns = PatternModel(SolverRun(problem, oracle, Budget(), None), types)
    bound = box_bound_for(patterns.run.model, 0)
    assert bound is not None
    worth = FarleySearch(patterns, (bound,), np.ones(1)).most_worth(values, enough=1e-3, most_boxes=300).value
    generator = np.random.default_rng(7)
    best = 0.0
    for _ in range(300):
        order = generator.permutation(types.num_types)
        sums = np.cumsum(types.rows[order], axis=0)[:60]
        fits = model.best_choice(sums, np.maximum.accumulate(types.ranks[order])[:60], 0).feasible
        count = int(np.flatnonzero(fits)[-1]) + 1 if fits.any() else 0
        best = max(best, float(values[order[:count]].sum()))
    assert 0.3 * worth < best <= worth


def test_what_no_fleet_can_better_is_proven_with_values_of_a_complete_generation(tmp_path: Path) -> None:
    """The master's mixture is worth little more than six GPUs: only the best values prove that seven are needed."""
    file = tmp_path / "cold.json"
    file.write_text(json.dumps(instance("cold", 1350, seed=0)), encoding="utf-8")
    problem = without_physics(read_instances(file).instances[0].problem)
    result = PatternsSolver().solve(problem, certified(), budget=Budget(max_evaluations=100_000))
    assert result.evaluation is not None
    assert result.bound is not None
    assert (result.evaluation.num_gpus, result.bound.value) == (7, 7)
    assert result.termination is Termination.PROVEN
