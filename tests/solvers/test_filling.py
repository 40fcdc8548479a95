"""GPUs that are filled type by type: as full as by asking about one adapter after the other, with few questions."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from solvers.adapter_types import exact_types
from solvers.budget import Budget
from solvers.patterns.filling import Filling
from solvers.patterns.questions import BudgetSpentError, PatternModel
from solvers.problem import Problem
from solvers.rate_scenarios import RateScenario, RateScenarios
from solvers.run import SolverRun
from tests.solvers.analytic import AnalyticSurrogate
from tests.solvers.problems import make_adapter, make_problem
from twin.engine import LoraRank

RANKS: tuple[LoraRank, ...] = (8, 16, 64)
RATES = (2.0, 0.7, 0.3, 0.1, 0.02)


def many_types(seed: int) -> Problem:
    """Return a problem with two classes of outputs, up to 15 adapters of each rank and rate."""
    generator = np.random.default_rng(seed)
    return make_problem(
        [
            make_adapter(f"r{rank}-{rate}-{output}-{index}", rank=rank, rate_rps=rate, output=output)
            for rank in RANKS
            for rate in RATES
            for output in (50.0, 300.0)
            for index in range(int(generator.integers(1, 16)))
        ]
    )


def model_of(problem: Problem, budget: Budget | None = None) -> PatternModel:
    """Return the analytic surrogate's view, which is monotone, of a problem's exact types."""
    return PatternModel(SolverRun(problem, AnalyticSurrogate(), budget or Budget(), None), exact_types(problem))


def filled_one_by_one(model: PatternModel, pattern: NDArray[np.int64], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return what a pattern becomes if each type is added singly until it is refused."""
    pattern = pattern.copy()
    for kind in order[order >= 0]:
        while pattern[kind] < model.types.counts[kind]:
            more = pattern + np.eye(len(pattern), dtype=np.int64)[kind]
            if not model.feasible(more[None], 0)[0]:
                break
            pattern = more
    return pattern


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("estimate", [1.0, 0.05, 20.0])
def test_gpus_are_as_full_as_one_by_one(seed: int, estimate: float) -> None:
    """However wrong the estimates of the shares are: they say where to look first, not what fits."""
    generator = np.random.default_rng(seed)
    model = model_of(many_types(seed))
    alone = 1.0 / model.capacities(np.zeros(model.types.num_types), 0)
    orders = np.array([generator.permutation(model.types.num_types) for _ in range(5)])
    orders[1, 10:] = -1
    starts = np.zeros_like(orders)
    starts[2, orders[2, 0]] = 1
    found = Filling(model, 0, alone).fill(starts, orders, model.types.counts, alone * estimate)
    expected = [filled_one_by_one(model, start, order) for start, order in zip(starts, orders, strict=True)]
    assert found.tolist() == np.array(expected).tolist()
    assert not starts[0].any()


@pytest.mark.parametrize("scenarios", [None, RateScenarios(cases=(RateScenario(name="as given"),))])
def test_what_is_no_lighter_than_what_was_refused_is_not_asked_about(scenarios: RateScenarios | None) -> None:
    """Once the lightest type of the smallest rank is refused, nothing fits, and only few questions were needed."""
    model = model_of(replace(many_types(0), scenarios=scenarios))
    types = model.types
    alone = 1.0 / model.capacities(np.zeros(types.num_types), 0)
    lightest = int(np.lexsort((types.loads.sum(axis=1), types.ranks))[0])
    order = np.concatenate([[lightest], np.delete(np.arange(types.num_types), lightest)])
    demand = np.where(np.arange(types.num_types) == lightest, 5000, types.counts)
    before = model.run.model.num_calls
    filled = Filling(model, 0, alone).fill(np.zeros((1, types.num_types), dtype=np.int64), order[None], demand, alone)
    in_turn = model.run.model.num_calls - before
    assert np.flatnonzero(filled[0]).tolist() == [lightest]
    assert in_turn < types.num_types // 2


def test_filling_ends_with_the_budget() -> None:
    """The exception leaves what was given as it was."""
    model = model_of(many_types(1), Budget(max_evaluations=40))
    starts = np.zeros((1, model.types.num_types), dtype=np.int64)
    orders = np.arange(model.types.num_types)[None]
    with pytest.raises(BudgetSpentError):
        Filling(model, 0, np.full(model.types.num_types, 0.1)).fill(
            starts, orders, model.types.counts, np.full(model.types.num_types, 0.1)
        )
    assert not starts.any()


def test_guessed_capacities_are_about_those_that_are_searched() -> None:
    """With guesses of the right size the answers differ by no more than their precision, and take fewer rows."""
    model = model_of(many_types(2))
    alone = model.capacities(np.zeros(model.types.num_types), 0)
    base = np.zeros(model.types.num_types)
    base[-1] = 0.5 * alone[-1]
    before = model.run.model.num_evaluations
    searched = model.capacities(base, 0)
    between = model.run.model.num_evaluations
    kinds = np.flatnonzero((searched > 0.03 * alone) & (searched < 0.65 * alone))
    guessed = model.capacities(base, 0, kinds=kinds, guesses=alone[kinds])
    rows = model.run.model.num_evaluations - between
    assert len(kinds) > 5
    assert guessed == pytest.approx(searched[kinds], rel=0.08)
    assert rows / len(kinds) < (between - before) / len(searched)
