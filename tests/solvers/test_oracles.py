"""Every solver with a function of sums as surrogate: somebody else's model decides, about the slots too."""

from dataclasses import replace

import numpy as np
import pytest

from predictors.aggregate_oracle import AggregateOracle
from predictors.features import AGGREGATE_NAMES
from solvers.budget import Budget
from solvers.choices import Settings
from solvers.feasibility import FeasibilityModel
from solvers.objective import evaluate
from solvers.problem import Problem
from solvers.registry import get_solver, solver_entries
from tests.solvers.oracle import least_objective
from tests.solvers.problems import random_problem

NAMES = [entry.name for entry in solver_entries() if entry.availability().is_available]


def feasible(  # noqa: PLR0917 - the signature that users write
    n: int, sum_rate: float, sum_rate_sq: float, sum_rate_prompt: float, sum_rate_output: float, max_rank: int
) -> tuple[bool, int]:
    """Decide by a work of tokens and adapters; odd numbers of slots, as no grid of ours has them."""
    del sum_rate, sum_rate_sq
    for slots in (7, 21, 63):
        work = 3.3e-5 * sum_rate_prompt + 3.3e-4 * sum_rate_output + 0.004 * max(0, n - slots)
        if work * (1.0 + slots * max_rank / 20_000.0) <= 1.0:
            return True, slots
    return False, 0


def asked(problem: Problem, members: tuple[int, ...]) -> tuple[bool, int]:
    """Ask the function about some adapters, with sums of our own."""
    chosen = [problem.adapters[index] for index in members]
    rates = [adapter.rate_rps for adapter in chosen]
    return feasible(
        len(chosen),
        sum(rates),
        sum(rate * rate for rate in rates),
        sum(adapter.rate_rps * adapter.prompt_tokens.effective_mean for adapter in chosen),
        sum(adapter.rate_rps * adapter.output_tokens.effective_mean for adapter in chosen),
        max(adapter.rank for adapter in chosen),
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("seed", "num_adapters", "load"), [(0, 8, 1.2), (1, 8, 1.9), (2, 120, 2.5)])
def test_solvers_return_what_the_function_accepts(name: str, seed: int, num_adapters: int, load: float) -> None:
    """Each GPU of an answer is accepted when its sums are added up anew, and none is below the optimum."""
    problem = random_problem(seed, num_adapters, load_gpus=load)
    surrogate = AggregateOracle(feasible)
    result = get_solver(name).solve(problem, surrogate, budget=Budget(seconds=3.0, max_evaluations=5_000))
    if result.placement is None:
        assert result.message
        return
    assert evaluate(problem, result.placement, surrogate).is_feasible
    assert all(asked(problem, gpu.adapters)[0] for gpu in result.placement.gpus)
    if num_adapters == 8:
        optimum = least_objective(problem, surrogate)
        assert optimum is None or result.placement.num_gpus >= optimum


def test_best_fit_takes_the_slots_that_the_function_names() -> None:
    """They are on no grid of ours."""
    problem = random_problem(3, 60, load_gpus=1.5)
    result = get_solver("bfd").solve(problem, AggregateOracle(feasible), budget=Budget())
    assert result.placement is not None
    assert [gpu.max_loras for gpu in result.placement.gpus] == [
        asked(problem, gpu.adapters)[1] for gpu in result.placement.gpus
    ]


def test_a_model_asks_an_oracle_without_slot_options() -> None:
    """One row per set: the function chooses the slots, so options of ours are not tried."""
    problem = random_problem(4, 30, load_gpus=1.0)
    model = FeasibilityModel(problem, AggregateOracle(feasible))
    choices = model.best_choice(np.cumsum(problem.aggregates, axis=0), np.maximum.accumulate(problem.ranks), 0)
    assert model.num_evaluations == 30
    for count in range(1, 31):
        expected = asked(problem, tuple(range(count)))
        assert bool(choices.feasible[count - 1]) == expected[0]
        if expected[0]:
            assert choices.max_loras[count - 1] == expected[1]


def test_a_fixed_rank_is_what_the_function_hears() -> None:
    """Slots are reserved at the rank that the problem fixes, whatever the adapters' own ranks."""
    heard: list[float] = []

    def watch(*arguments: float) -> tuple[bool, int]:
        heard.append(arguments[-1])
        return True, 1

    problem = random_problem(5, 4, load_gpus=0.5)
    fixed = replace(problem, fixed_max_lora_rank=64)
    model = FeasibilityModel(fixed, AggregateOracle(watch))
    rows = fixed.aggregates[:1]
    model.best_choice(rows, fixed.ranks[:1], 0)
    model.predict(rows, Settings(*(np.array([value]) for value in (0, 1, 64, 100_000))))
    assert set(heard) == {64}
    assert rows.shape == (1, len(AGGREGATE_NAMES))
