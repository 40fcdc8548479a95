"""Certificates of polyhedra: no set that a surrogate accepts breaks them, and no placement is below their bound."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from predictors.surrogate import InflatedSurrogate, Surrogate, ThresholdSurrogate
from solvers.adapter_types import exact_types
from solvers.budget import Budget
from solvers.feasibility import FeasibilityModel
from solvers.patterns.box_bounds import box_bound_for
from solvers.patterns.boxes import feature_corners, root_boxes
from solvers.patterns.farley import FarleySearch
from solvers.patterns.polyhedra_cuts import PolyhedraBoxBound
from solvers.patterns.questions import PatternModel
from solvers.patterns.solver import PatternsSolver
from solvers.problem import Problem
from solvers.run import SolverRun
from tests.predictors.polyhedra import polyhedra_file, random_polyhedra
from tests.solvers.oracle import least_objective
from tests.solvers.problems import make_adapter, make_problem
from twin.engine import LoraRank

RANKS: list[LoraRank] = [8, 16, 64]
CARE: dict[str, Callable[[Surrogate], Surrogate]] = {
    "plain": lambda inner: inner,
    "margin": lambda inner: InflatedSurrogate(inner, 1.2),
    "threshold": lambda inner: ThresholdSurrogate(inner, 0.2),
    "both": lambda inner: ThresholdSurrogate(InflatedSurrogate(inner, 1.1), 0.3),
}


def random_adapters(seed: int, count: int) -> Problem:
    """Return a problem with rates over two decades."""
    generator = np.random.default_rng(seed)
    rates = np.exp(generator.uniform(np.log(0.02), np.log(2.0), count))
    return make_problem(
        [
            make_adapter(f"a{index}", rank=RANKS[int(generator.integers(3))], rate_rps=float(rate))
            for index, rate in enumerate(rates)
        ]
    )


@pytest.mark.parametrize("care", CARE)
@pytest.mark.parametrize("seed", range(2))
def test_accepted_sets_keep_the_cuts_of_every_root(seed: int, care: str, tmp_path: Path) -> None:
    """Random sets with each number of slots: what is accepted is in some piece and in what the union says."""
    problem = random_adapters(seed, 60)
    surrogate: Surrogate = CARE[care](polyhedra_file(random_polyhedra(seed), tmp_path))
    model = FeasibilityModel(problem, surrogate)
    bound = box_bound_for(model, 0)
    assert isinstance(bound, PolyhedraBoxBound)
    boxes = root_boxes(model, exact_types(problem), 0)
    lower, upper = feature_corners(model, boxes)
    is_tied = np.array([box.is_tied for box in boxes])
    union = bound.cuts(lower, upper, is_tied)
    pieces = [piece.cuts(lower, upper, is_tied) for piece in bound.pieces]
    num_accepted = num_refused = num_excluded = 0
    generator = np.random.default_rng(seed)
    for _ in range(150):
        members = generator.choice(60, int(generator.integers(1, 25)), replace=False)
        row, rank = problem.aggregates[members].sum(axis=0), int(problem.ranks[members].max())
        for index, box in enumerate(boxes):
            slots = len(members) if box.is_tied else box.slots[0]
            reaches = box.slots[0] <= slots <= box.slots[1] and box.lower[0] <= len(members) <= box.upper[0]
            if box.slot_rank != rank or not reaches:
                continue
            choice = model.choice_with_slots(
                row[None], np.array([rank]), np.array([0]), np.array([slots], dtype=np.int64)
            )
            features = np.append(row[: len(box.lower)], lower[index, len(box.lower) :])
            keeps = [
                bool((cuts.gradients[index] @ (features - lower[index]) <= cuts.slack[index]).all())
                for cuts in (union, *pieces)
            ]
            if choice.feasible[0]:
                num_accepted += 1
                assert keeps[0]
                assert any(keeps[1:])
            else:
                num_refused += 1
                num_excluded += not any(keeps[1:])
                # With its settings fixed, what no plane excludes is accepted.
                assert box.is_tied or care in {"margin", "both"} or not any(keeps[1:])
    assert num_accepted > 20
    assert num_excluded > 0.5 * num_refused > 10


@pytest.mark.parametrize("care", CARE)
@pytest.mark.parametrize("seed", range(2))
def test_no_accepted_set_is_worth_more_than_the_bound(seed: int, care: str, tmp_path: Path) -> None:
    """All sets of nine adapters, random values; and what is bounded is not far from the best of them."""
    problem = random_adapters(seed, 9)
    surrogate: Surrogate = CARE[care](polyhedra_file(random_polyhedra(seed, load=0.3), tmp_path))
    values = np.random.default_rng(seed).uniform(0.0, 1.0, 9)
    sets = [list(members) for size in range(1, 10) for members in combinations(range(9), size)]
    rows = np.array([problem.aggregates[members].sum(axis=0) for members in sets])
    ranks = np.array([problem.ranks[members].max() for members in sets])
    accepted = FeasibilityModel(problem, surrogate).best_choice(rows, ranks, 0).feasible
    best = max(float(values[sets[index]].sum()) for index in np.flatnonzero(accepted))
    patterns = PatternModel(SolverRun(problem, surrogate, Budget(), None), exact_types(problem))
    bound = box_bound_for(patterns.run.model, 0)
    assert bound is not None
    assert bound.certificate == "polyhedra"
    search = FarleySearch(patterns, (bound,), np.ones(1))
    of_types = np.array([values[members[0]] for members in patterns.types.members])
    worth = [search.most_worth(of_types, enough=1e-3, most_boxes=most).value for most in (0, 50, 500)]
    assert min(worth) >= best
    assert worth[-1] < values.sum()


@pytest.mark.parametrize("seed", [0, 2, 3])
def test_the_bound_is_at_most_the_optimum(seed: int, tmp_path: Path) -> None:
    """Brute force over all divisions of eight adapters, of whom two or three fit on a GPU."""
    problem = random_adapters(seed, 8)
    surrogate = polyhedra_file(random_polyhedra(seed, load=0.5), tmp_path)
    optimum = least_objective(problem, surrogate)
    assert optimum is not None
    result = PatternsSolver().solve(problem, surrogate, budget=Budget())
    assert result.bound is not None
    assert 1 <= result.bound.value <= optimum
