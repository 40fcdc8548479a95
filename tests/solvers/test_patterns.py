"""Column generation: patterns that fit and pay, a master that covers, fleets that are accepted and never worse."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from predictors.surrogate import SurrogateOutput
from solvers.adapter_types import cluster_types, exact_types
from solvers.budget import Budget
from solvers.objective import evaluate, objective_value
from solvers.patterns.dive import Patterns, dive
from solvers.patterns.generation import Demand, generate
from solvers.patterns.master import Column, Master
from solvers.patterns.pricing import Pricer, PricingTask
from solvers.patterns.questions import BudgetSpentError, PatternModel
from solvers.patterns.repair import accepted_part
from solvers.patterns.solver import PatternsSolver
from solvers.problem import Problem
from solvers.registry import get_solver
from solvers.result import Solution, Termination
from solvers.run import SolverRun
from tests.solvers.analytic import AnalyticSurrogate, ClosedFormSurrogate
from tests.solvers.oracle import least_objective
from tests.solvers.problems import GPU, make_adapter, make_problem, random_problem, with_objective
from twin.engine import LoraRank

UNLIMITED = Budget()
TWO_TYPES = (GPU, GPU.model_copy(update={"name": "other", "cost_per_hour": 2.0}))


class UndeclaredSurrogate(AnalyticSurrogate):
    """The analytic surrogate without certificates."""

    @property
    def is_monotone(self) -> bool:
        """Whether it declares that more load never helps: it does not."""
        return False

    @property
    def feature_signs(self) -> Mapping[str, int]:
        """Nothing."""
        raise AttributeError


def discrete_problem(counts: Mapping[tuple[LoraRank, float], int], *, output: float = 200.0) -> Problem:
    """Return a problem with so many adapters of each rank and rate."""
    return make_problem(
        [
            make_adapter(f"r{rank}-{rate}-{index}", rank=rank, rate_rps=rate, output=output)
            for (rank, rate), count in counts.items()
            for index in range(count)
        ]
    )


def pattern_model(problem: Problem, *, budget: Budget = UNLIMITED) -> PatternModel:
    """Return the analytic surrogate's view of the problem's exact types."""
    return PatternModel(SolverRun(problem, AnalyticSurrogate(), budget, None), exact_types(problem))


class MemberwiseSurrogate(AnalyticSurrogate):
    """The analytic surrogate that is told which adapters are in a set, and refuses to be asked without."""

    def predict_members(self, members: Sequence[tuple[int, ...]], features: NDArray[np.float32]) -> SurrogateOutput:
        """Answer for sets that are not empty."""
        assert all(members)
        return self.predict(features)


def test_members_that_matter_are_no_types() -> None:
    """Adapters with equal sums may differ for such a surrogate: the answer is best fit's, and the message says why."""
    problem = discrete_problem({(8, 0.5): 30, (16, 0.2): 40})
    result = PatternsSolver().solve(problem, MemberwiseSurrogate(), budget=UNLIMITED)
    assert result.evaluation is not None
    assert "tells sets apart by their members" in result.message


def all_patterns(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return every pattern of the adapters that there are, int64 [N, T]."""
    axes = np.meshgrid(*(np.arange(count + 1) for count in counts), indexing="ij")
    return np.stack([axis.reshape(-1) for axis in axes], axis=1)


@pytest.mark.parametrize("seed", range(8))
def test_pricing_finds_the_best_of_all_patterns_or_nearly(seed: int) -> None:
    """Four types, up to eight of each: never infeasible, never worth more than possible, found when it is sought."""
    generator = np.random.default_rng(seed)
    rates = generator.uniform(0.3, 4.0, 4).round(2)
    ranks: list[LoraRank] = [8, 16, 32, 64]
    counts = {(rank, float(rate)): int(generator.integers(2, 9)) for rank, rate in zip(ranks, rates, strict=True)}
    model = pattern_model(discrete_problem(counts))
    values = model.types.rates_rps * generator.uniform(0.8, 1.2, 4)
    patterns = all_patterns(model.types.counts)
    best = float((patterns @ values)[model.feasible(patterns, 0)].max())
    pricer = Pricer(model, 0, np.random.default_rng(0))
    found = pricer.price(PricingTask(values, model.types.counts, 0.98 * best, num_shakes=5))
    worth = found @ values
    assert len(found)
    assert model.feasible(found, 0).all()
    assert (found <= model.types.counts).all()
    assert worth.tolist() == sorted(worth, reverse=True)
    assert worth[0] <= best + 1e-9


@settings(max_examples=20)
@given(seed=st.integers(0, 100), threshold=st.floats(0.1, 2.0))
def test_priced_patterns_are_distinct_and_worth_more_than_asked(seed: int, threshold: float) -> None:
    """What does not pay is not returned, and neither is anything twice."""
    model = pattern_model(random_problem(seed % 4, 12, load_gpus=1.5))
    values = np.random.default_rng(seed).uniform(0.0, 0.5, model.types.num_types)
    found = Pricer(model, 0, np.random.default_rng(0)).price(PricingTask(values, model.types.counts, threshold))
    assert (found @ values > threshold).all()
    assert len(np.unique(found, axis=0)) == len(found)


def test_the_masters_prices_explain_its_value() -> None:
    """Strong duality: the demand is worth the mixture's cost, and no known column is worth more than its cost."""
    generator = np.random.default_rng(0)
    master = Master(np.array([1.0, 1.5]), np.array([np.inf, 2.0]), 4)
    demand = np.array([7, 3, 9, 5])
    for gpu_type in (0, 1, 0, 1, 0, 0):
        assert master.add(Column(generator.integers(0, 3 + 2 * gpu_type, 4) + np.eye(4, dtype=np.int64)[0], gpu_type))
    assert not master.add(master.columns[0])
    limits = np.array([np.inf, 2.0])
    solution = master.solve(demand, limits)
    assert solution.value == pytest.approx(solution.prices @ demand - solution.surcharges[1] * 2.0)
    covered = sum(amount * column.pattern for amount, column in zip(solution.amounts, master.columns, strict=True))
    assert (covered + solution.uncovered >= demand - 1e-6).all()
    for column in master.columns:
        cost = master.costs[column.gpu_type] + solution.surcharges[column.gpu_type]
        assert column.pattern @ solution.prices <= cost + 1e-6


def generated(problem: Problem) -> tuple[PatternModel, Master, list[Pricer], Demand]:
    """Return what a dive needs, after column generation from single adapters."""
    model = pattern_model(problem)
    master = Master(np.ones(1), np.array([np.inf]), model.types.num_types)
    for pattern in np.eye(model.types.num_types, dtype=np.int64):
        master.add(Column(pattern, 0))
    pricers = [Pricer(model, 0, np.random.default_rng(0))]
    demand = Demand(model.types.counts, np.array([np.inf]))
    generate(master, pricers, demand)
    return model, master, pricers, demand


def test_every_generated_column_fits() -> None:
    """Also after many rounds, and the master ends at or above what the whole load divided by the best GPU is."""
    model, master, pricers, demand = generated(discrete_problem({(8, 1.0): 30, (16, 0.3): 40, (32, 0.05): 60}))
    assert model.feasible(np.array([column.pattern for column in master.columns]), 0).all()
    solution = master.solve(demand.adapters, demand.gpus)
    best = pricers[0].price(PricingTask(solution.prices, demand.adapters, 0.0))[0] @ solution.prices
    assert best == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("seed", [None, 3])
def test_a_dive_shares_out_all_adapters(seed: int | None) -> None:
    """At each of its points, what is fixed and what is left is the demand; at the end nothing is left."""
    _, master, pricers, demand = generated(discrete_problem({(8, 1.0): 30, (16, 0.3): 40, (32, 0.05): 60}))
    generator = None if seed is None else np.random.default_rng(seed)
    stages = list(dive(master, pricers, demand, generator))
    for stage in stages:
        assert (stage.counts.sum(axis=0) + stage.left).tolist() == demand.adapters.tolist()
        assert stage.counts.any(axis=1).all()
    assert not stages[-1].left.any()
    assert sorted(len(stage.counts) for stage in stages) == [len(stage.counts) for stage in stages]


def test_a_dive_without_enough_gpus_ends_with_something_left() -> None:
    """One GPU where three are needed."""
    _, master, pricers, demand = generated(discrete_problem({(8, 1.0): 30, (16, 0.3): 40}))
    *_, last = dive(master, pricers, Demand(demand.adapters, np.array([1.0])))
    assert len(last.counts) <= 1
    assert last.left.any()


@settings(max_examples=15)
@given(seed=st.integers(0, 50))
def test_repair_keeps_only_what_is_accepted_and_loses_nobody(seed: int) -> None:
    """Random patterns of clusters, many of them too full."""
    problem = random_problem(seed % 5, 60, load_gpus=2.5)
    types = cluster_types(problem, levels=3, shape_levels=1)
    generator = np.random.default_rng(seed)
    shares = np.array([generator.multinomial(count, [0.35, 0.35, 0.2, 0.1]) for count in types.counts]).T
    counts = shares[:3][shares[:3].any(axis=1)]
    run = SolverRun(problem, AnalyticSurrogate(), UNLIMITED, None)
    part, left = accepted_part(run, types, Patterns(counts, np.zeros(len(counts), dtype=np.int64), shares[3]))
    placed = [adapter for gpu in part.gpus for adapter in gpu.adapters]
    assert sorted([*placed, *left]) == list(range(60))
    for gpu in part.gpus:
        rank = int(problem.ranks[list(gpu.adapters)].max())
        assert gpu.max_lora_rank == rank
        row = problem.aggregates[list(gpu.adapters)].sum(axis=0)[None]
        output = run.model.predict(row, run.model.settings(0, gpu.max_loras, rank))
        assert output.starvation_probability[0] < 0.5


def test_repair_takes_the_least_adapter_that_is_enough() -> None:
    """A GPU that is too full by less than its smallest adapter loses that one."""
    problem = make_problem([make_adapter(f"a{index}", rate_rps=rate) for index, rate in enumerate((7.0, 6.0, 2.0))])
    types = exact_types(problem)
    run = SolverRun(problem, AnalyticSurrogate(), UNLIMITED, None)
    everything = Patterns(types.counts[None], np.zeros(1, dtype=np.int64), np.zeros_like(types.counts))
    part, left = accepted_part(run, types, everything)
    assert [gpu.adapters for gpu in part.gpus] == [(0, 1)]
    assert left.tolist() == [2]


def test_questions_stop_when_the_budget_is_spent() -> None:
    """The batch that crosses the limit is the last one."""
    model = pattern_model(random_problem(0, 30, load_gpus=1.0), budget=Budget(max_evaluations=10))
    patterns = np.eye(30, dtype=np.int64)
    model.feasible(patterns, 0)
    with pytest.raises(BudgetSpentError) as caught:
        model.feasible(patterns, 0)
    assert caught.value.termination is Termination.ITERATION_LIMIT


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("objective", ["fewest_gpus", "least_cost"])
def test_the_answer_is_never_worse_than_best_fits(seed: int, objective: str) -> None:
    """Continuous rates and lengths, both objectives, two GPU types with costs."""
    problem = random_problem(seed, 100, load_gpus=3.4)
    if objective == "least_cost":
        problem = with_objective(problem, "least_cost", TWO_TYPES)
    ours, best_fit = (
        get_solver(name).solve(problem, UndeclaredSurrogate(), budget=Budget(max_evaluations=60_000))
        for name in ("patterns", "bfd")
    )
    assert ours.evaluation is not None
    assert best_fit.evaluation is not None
    assert objective_value(problem, ours.evaluation) <= objective_value(problem, best_fit.evaluation)
    assert ours.placement is not None
    assert evaluate(problem, ours.placement, UndeclaredSurrogate()).is_feasible


def test_planted_patterns_are_found_where_best_fit_misses_them() -> None:
    """The classic trap of decreasing orders: a half, two kinds of quarters, and fillers, which fit in 18 GPUs."""
    whole, excess = 14.6, 0.02
    sizes = {0.5 + excess: 12, 0.25 + 2 * excess: 12, 0.25 + excess: 12, 0.25 - 2 * excess: 24}
    problem = discrete_problem({(8, round(whole * share, 4)): count for share, count in sizes.items()})
    found = {}
    for name in ("patterns", "bfd"):
        result = get_solver(name).solve(problem, UndeclaredSurrogate(), budget=UNLIMITED)
        assert result.evaluation is not None
        found[name] = result.evaluation.num_gpus
    assert found["patterns"] == 18
    assert found["bfd"] > 18


@pytest.mark.parametrize("seed", range(10))
def test_small_problems_are_solved_to_the_brute_force_optimum(seed: int) -> None:
    """Eight adapters on two or three GPUs; where the bound meets the answer, it is called optimal."""
    problem = random_problem(seed, 8, load_gpus=1.9)
    result = get_solver("patterns").solve(problem, ClosedFormSurrogate(), budget=UNLIMITED)
    assert result.evaluation is not None
    assert result.bound is not None
    assert result.evaluation.num_gpus == least_objective(problem, ClosedFormSurrogate())
    assert result.bound.value <= result.evaluation.num_gpus
    if result.bound.model == "surrogate":
        assert (result.solution is Solution.OPTIMAL) == (result.bound.value == result.evaluation.num_gpus)


def test_a_certified_bound_closes_a_discrete_problem() -> None:
    """With few types the bound is tight enough to prove the answer."""
    problem = discrete_problem({(8, 1.6): 40, (16, 0.4): 60, (32, 0.05): 100})
    result = get_solver("patterns").solve(problem, ClosedFormSurrogate(), budget=UNLIMITED)
    assert (result.solution, result.termination) == (Solution.OPTIMAL, Termination.PROVEN)
    assert result.bound is not None
    assert (result.bound.proof, result.bound.model) == ("farley", "surrogate")


def test_without_certificates_the_bound_is_the_twins_work() -> None:
    """A surrogate that declares nothing gets no bound of its own, and nothing is called optimal."""
    problem = discrete_problem({(8, 1.6): 40, (16, 0.4): 60})
    result = get_solver("patterns").solve(problem, UndeclaredSurrogate(), budget=UNLIMITED)
    assert result.bound is not None
    assert (result.bound.proof, result.bound.model) == ("work", "twin")
    assert result.solution is Solution.FEASIBLE


def test_without_building_first_a_warm_start_is_where_it_begins() -> None:
    """As a later stage of a portfolio: the warm start's placement is kept, and best fit not redone."""
    problem = random_problem(1, 80, load_gpus=2.0)
    first = get_solver("bfd").solve(problem, UndeclaredSurrogate(), budget=UNLIMITED)
    assert first.placement is not None
    solver = PatternsSolver(builds_first=False)
    none_left = solver.solve(
        problem, UndeclaredSurrogate(), budget=Budget(max_evaluations=0), warm_start=first.placement
    )
    assert none_left.placement == first.placement
    result = solver.solve(
        problem, UndeclaredSurrogate(), budget=Budget(max_evaluations=30_000), warm_start=first.placement
    )
    assert result.evaluation is not None
    assert first.evaluation is not None
    assert result.evaluation.num_gpus <= first.evaluation.num_gpus
