"""Certified bounds: no accepted set is worth more than is said, and no placement needs fewer GPUs."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from predictors.features import FEATURE_SCHEMA, FeatureSchema
from predictors.surrogate import InflatedSurrogate, Surrogate, SurrogateOutput, ThresholdSurrogate
from solvers.adapter_types import exact_types
from solvers.budget import Budget
from solvers.feasibility import NUM_ADAPTERS_COLUMN, FeasibilityModel
from solvers.patterns.box_bounds import BoxBound, box_bound_for
from solvers.patterns.boxes import NUM_AGGREGATES, Propagation, feature_corners, root_boxes
from solvers.patterns.farley import FarleySearch, farley_bound
from solvers.patterns.questions import PatternModel
from solvers.patterns.relaxation import Relaxation
from solvers.problem import Limits, Problem
from solvers.run import SolverRun
from solvers.surrogate_per_gpu_type import SurrogatePerGpuType
from tests.solvers.analytic import AnalyticSurrogate, ClosedFormSurrogate
from tests.solvers.oracle import least_objective
from tests.solvers.problems import GPU, make_problem, random_problem, with_objective

SURROGATES: list[type[AnalyticSurrogate]] = [AnalyticSurrogate, ClosedFormSurrogate]
TWO_TYPES = (GPU, GPU.model_copy(update={"name": "other", "cost_per_hour": 2.0}))


class DeclaredSurrogate:
    """A surrogate that declares in general that more is never better, and no feature by name."""

    schema: FeatureSchema = FEATURE_SCHEMA
    is_monotone: bool = True

    def predict(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Return what the analytic surrogate does."""
        return AnalyticSurrogate().predict(features)


class OpaqueSurrogate:
    """A surrogate that declares nothing."""

    schema: FeatureSchema = FEATURE_SCHEMA

    def predict(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Return what the analytic surrogate does."""
        return AnalyticSurrogate().predict(features)


def certificates(model: FeasibilityModel) -> BoxBound:
    """Return the certificates of the first GPU type, which there must be."""
    bound = box_bound_for(model, 0)
    assert bound is not None
    return bound


def random_sets(problem: Problem, seed: int, count: int) -> list[tuple[int, ...]]:
    """Return random sets of adapters of all sizes."""
    generator = np.random.default_rng(seed)
    everybody = len(problem.adapters)
    sizes = generator.integers(1, everybody + 1, count)
    return [tuple(sorted(int(i) for i in generator.choice(everybody, size, replace=False))) for size in sizes]


def sums_of(problem: Problem, sets: list[tuple[int, ...]]) -> NDArray[np.float64]:
    """Return the aggregates of sets, float64 [N, K]."""
    return np.array([problem.aggregates[list(members)].sum(axis=0) for members in sets])


def accepted_sets(problem: Problem, surrogate: Surrogate, sets: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Return those of `sets` that fit a GPU of the first type."""
    ranks = np.array([problem.ranks[list(members)].max() for members in sets])
    feasible = FeasibilityModel(problem, surrogate).best_choice(sums_of(problem, sets), ranks, 0, sets).feasible
    return [members for members, holds in zip(sets, feasible, strict=True) if holds]


def worth_bound(problem: Problem, surrogate: Surrogate, values: NDArray[np.float64], most_boxes: int) -> float:
    """Return the certified bound on what an accepted set is worth, given the values of the adapters."""
    model = PatternModel(SolverRun(problem, surrogate, Budget(), None), exact_types(problem))
    search = FarleySearch(model, (certificates(model.run.model),), np.ones(1))
    of_types = np.array([values[members[0]] for members in model.types.members])
    return search.most_worth(of_types, enough=1e-3, most_boxes=most_boxes).value


@pytest.mark.parametrize("kind", SURROGATES)
@pytest.mark.parametrize("seed", range(6))
def test_no_accepted_set_is_worth_more_than_the_bound(kind: type[AnalyticSurrogate], seed: int) -> None:
    """All sets of eight adapters, random values: the bound holds however early the search stops."""
    problem = random_problem(seed, 8, load_gpus=2.0)
    values = np.random.default_rng(seed).uniform(0.0, 1.0, 8)
    sets = [members for size in range(1, 9) for members in combinations(range(8), size)]
    best = max(float(values[list(members)].sum()) for members in accepted_sets(problem, kind(), sets))
    bounds = [worth_bound(problem, kind(), values, most_boxes) for most_boxes in (0, 30, 400)]
    assert min(bounds) >= best
    assert bounds == sorted(bounds, reverse=True)


@pytest.mark.parametrize("kind", SURROGATES)
@pytest.mark.parametrize("seed", range(3))
def test_no_random_accepted_set_of_many_adapters_is_worth_more(kind: type[AnalyticSurrogate], seed: int) -> None:
    """Sets of any size of 200 adapters, also with latency limits."""
    problem = random_problem(seed, 200, load_gpus=2.0)
    problem = make_problem(problem.adapters, limits=Limits(itl_p95_ms=36.0) if seed else None)
    values = exact_types(problem).work * np.random.default_rng(seed).uniform(0.8, 1.2, 200)
    accepted = accepted_sets(problem, kind(), random_sets(problem, seed, 3000))
    assert len(accepted) > 100
    best = max(float(values[list(members)].sum()) for members in accepted)
    assert worth_bound(problem, kind(), values, 200) >= best


@pytest.mark.parametrize("kind", SURROGATES)
@pytest.mark.parametrize("objective", ["fewest_gpus", "least_cost"])
@pytest.mark.parametrize("seed", range(8))
def test_the_bound_is_at_most_the_brute_force_optimum(kind: type[AnalyticSurrogate], objective: str, seed: int) -> None:
    """Whatever the prices, also bad ones, and for both objectives."""
    problem = random_problem(seed, 8, load_gpus=1.9)
    is_least_cost = objective == "least_cost"
    if is_least_cost:
        problem = with_objective(problem, "least_cost", TWO_TYPES)
    optimum = least_objective(problem, kind())
    assert optimum is not None
    generator = np.random.default_rng(seed)
    for prices in (generator.uniform(0.0, 1.0, 8), exact_types(problem).work):
        model = PatternModel(SolverRun(problem, kind(), Budget(), None), exact_types(problem))
        costs = np.array([3.0, 2.0]) if is_least_cost else np.ones(1)
        ordered = np.array([prices[members[0]] for members in model.types.members])
        bound = farley_bound(model, ordered, costs=costs, goal=50.0, most_boxes=300, is_least_cost=is_least_cost)
        assert bound is not None
        assert (bound.proof, bound.model) == ("farley", "surrogate")
        if is_least_cost:
            assert bound.cost_per_hour is not None
            assert bound.cost_per_hour <= optimum
        else:
            assert bound.value <= optimum


@pytest.mark.parametrize("seed", range(4))
def test_a_general_declaration_of_monotony_is_enough_for_a_bound(seed: int) -> None:
    """It certifies boxes without a word about single features, and never too much."""
    problem = random_problem(seed, 8, load_gpus=1.9)
    surrogate = DeclaredSurrogate()
    optimum = least_objective(problem, surrogate)
    assert optimum is not None
    types = exact_types(problem)
    model = PatternModel(SolverRun(problem, surrogate, Budget(), None), types)
    bound = farley_bound(model, types.work, costs=np.ones(1), goal=50.0, most_boxes=600)
    assert bound is not None
    assert 1 < bound.value <= optimum


@pytest.mark.parametrize("kind", SURROGATES)
def test_the_bound_is_near_the_optimum(kind: type[AnalyticSurrogate]) -> None:
    """With the adapters' own shares as prices it is not far: more than 80 % of what all of them need together."""
    problem = random_problem(0, 300, load_gpus=8.0)
    types = exact_types(problem)
    model = PatternModel(SolverRun(problem, kind(), Budget(), None), types)
    tokens = types.rows @ np.where(np.array(FEATURE_SCHEMA.names[:NUM_AGGREGATES]) == "sum_output_tps", 3e-4, 0.0)
    prompts = types.rows @ np.where(np.array(FEATURE_SCHEMA.names[:NUM_AGGREGATES]) == "sum_prompt_tps", 3e-5, 0.0)
    bound = farley_bound(model, tokens + prompts, costs=np.ones(1), goal=50.0, most_boxes=600)
    assert bound is not None
    assert bound.value >= 0.8 * float((tokens + prompts) @ types.counts)


@pytest.mark.parametrize("kind", SURROGATES)
@pytest.mark.parametrize("fixed_slots", [None, 16])
def test_every_accepted_set_lies_in_a_root_that_is_not_empty(
    kind: type[AnalyticSurrogate], fixed_slots: int | None
) -> None:
    """Together the roots hold all sets with their settings, and no certificate empties a root with an accepted set."""
    problem = make_problem(random_problem(3, 120, load_gpus=2.0).adapters, fixed_max_loras=fixed_slots)
    model = FeasibilityModel(problem, kind())
    roots = root_boxes(model, exact_types(problem), 0)
    lower, upper = feature_corners(model, roots)
    cuts = certificates(model).cuts(lower, upper, np.array([box.is_tied for box in roots]))
    sets = random_sets(problem, 0, 300)
    ranks = np.array([problem.ranks[list(members)].max() for members in sets])
    choices = model.best_choice(sums_of(problem, sets), ranks, 0, sets)
    for position in np.flatnonzero(choices.feasible):
        settings = model.settings(0, int(choices.max_loras[position]), int(choices.max_lora_rank[position]))
        row = model.features(sums_of(problem, [sets[position]]), settings)[0].astype(np.float64)
        holds = ((lower * (1 - 1e-6) <= row) & (row <= upper * (1 + 1e-6))).all(axis=1)
        assert holds.any()
        assert not cuts.is_empty[holds].any()
        kept = np.einsum("bmf,bf->bm", cuts.gradients[holds], row - lower[holds]) <= cuts.slack[holds] + 1e-6
        assert kept.all()


@pytest.mark.parametrize("kind", SURROGATES)
@settings(max_examples=30)
@given(data=st.data())
def test_no_accepted_row_lies_in_an_empty_box(kind: type[AnalyticSurrogate], data: st.DataObject) -> None:
    """Random boxes of features: what is certified to be empty refuses its rows, cuts are kept by those accepted."""
    model = FeasibilityModel(random_problem(0, 8, load_gpus=1.0), kind())
    generator = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    scale = np.array([1e3, 20, 100, 4e3, 4e3, 2e6, 1e6, 20, 60, 100, *([10] * 8), 64, 64, 256, 2048, 3e5, 100, 1])
    corner = generator.uniform(0.0, 1.0, len(scale)) * scale
    width = generator.uniform(0.0, 0.5, len(scale)) * scale
    slots = FEATURE_SCHEMA.index("max_loras")
    corner[slots], width[slots] = generator.integers(1, 64), generator.integers(0, 3)
    rows = corner + generator.uniform(0.0, 1.0, (200, len(scale))) * width
    rows[:, slots] = corner[slots] + generator.integers(0, int(width[slots]) + 1, 200)
    rows = rows.astype(np.float32).astype(np.float64)
    lower, upper = np.minimum(corner, rows.min(axis=0)), np.maximum(corner + width, rows.max(axis=0))
    cuts = certificates(model).cuts(lower[None], upper[None], np.zeros(1, dtype=np.bool_))
    output = model.surrogate.predict(rows.astype(np.float32))
    accepted = (output.starvation_probability < 0.5) & (output.throughput_ratio >= np.float32(0.9))
    if accepted.any():
        assert not cuts.is_empty[0]
        assert ((rows[accepted] - lower) @ cuts.gradients[0].T <= cuts.slack[0] + 1e-6).all()


@given(seed=st.integers(0, 1000), copies=st.lists(st.integers(0, 5), min_size=8, max_size=8))
def test_propagation_keeps_every_set(seed: int, copies: list[int]) -> None:
    """What a bound of one sum implies for the others holds for any set within all bounds."""
    rows = random_problem(seed % 5, 8, load_gpus=1.0).aggregates
    sums = np.array(copies) @ rows
    generator = np.random.default_rng(seed)
    lower = sums * generator.uniform(0.0, 1.0, len(sums))
    upper = np.where(generator.uniform(size=len(sums)) < 0.3, np.inf, sums * generator.uniform(1.0, 2.0, len(sums)))
    tight_lower, tight_upper = Propagation(rows).tightened(lower[None], upper[None])
    assert np.all(tight_lower[0] <= sums * (1 + 1e-6))
    assert np.all(tight_upper[0] >= sums * (1 - 1e-6))
    assert np.all(tight_lower[0] >= lower)
    assert np.all(tight_upper[0] <= upper)


@pytest.mark.parametrize("seed", range(5))
def test_the_relaxation_is_above_every_set_in_the_box(seed: int) -> None:
    """The bound that its prices give holds for whole counts."""
    problem = random_problem(seed, 8, load_gpus=1.0)
    generator = np.random.default_rng(seed)
    values = generator.uniform(0.0, 1.0, 8)
    relaxation = Relaxation(values, problem.aggregates, np.ones(8, dtype=np.int64), 1)
    sums = sums_of(problem, random_sets(problem, seed, 60))
    sets = random_sets(problem, seed, 60)
    for middle in sums[:20]:
        lower, upper = 0.7 * middle, 1.2 * middle
        gradient = generator.uniform(0.0, 1.0, (1, NUM_AGGREGATES)) / np.maximum(sums.mean(axis=0), 1e-9)
        limit = gradient @ middle
        inside = (lower <= sums).all(axis=1) & (sums <= upper).all(axis=1) & (sums @ gradient[0] <= limit[0] + 1e-9)
        best = max(float(values[list(sets[index])].sum()) for index in np.flatnonzero(inside))
        relaxed = relaxation.solve(lower, upper, gradient, limit, np.ones(8, dtype=np.bool_))
        assert relaxed.value >= best


def test_dividing_a_box_loses_no_set() -> None:
    """A set is in one of the halves; slots that equal the number of adapters follow it."""
    problem = random_problem(0, 40, load_gpus=1.0)
    model = FeasibilityModel(problem, AnalyticSurrogate())
    for box in root_boxes(model, exact_types(problem), 0):
        if box.lower[NUM_ADAPTERS_COLUMN] == box.upper[NUM_ADAPTERS_COLUMN]:
            continue
        middle = 0.5 * float(box.lower[NUM_ADAPTERS_COLUMN] + box.upper[NUM_ADAPTERS_COLUMN])
        below, above = box.halves(NUM_ADAPTERS_COLUMN, middle)
        assert below.upper[NUM_ADAPTERS_COLUMN] + 1 == above.lower[NUM_ADAPTERS_COLUMN]
        if box.is_tied:
            assert (below.slots[0], above.slots[1]) == box.slots
            assert below.slots[1] == below.upper[NUM_ADAPTERS_COLUMN]
            assert above.slots[0] == above.lower[NUM_ADAPTERS_COLUMN]


@pytest.mark.parametrize(
    ("surrogate", "certificate"),
    [
        (OpaqueSurrogate(), None),
        (AnalyticSurrogate(), "monotone"),
        (ClosedFormSurrogate(), "closed form"),
        (InflatedSurrogate(ClosedFormSurrogate(), 1.1), "monotone"),
        (ThresholdSurrogate(AnalyticSurrogate(), 0.3), "monotone"),
        (SurrogatePerGpuType((AnalyticSurrogate(),)), "monotone"),
    ],
)
def test_only_what_declares_something_is_certified(surrogate: Surrogate, certificate: str | None) -> None:
    """A margin or threshold keeps what never helps; nothing is guessed about the others."""
    bound = box_bound_for(FeasibilityModel(random_problem(0, 8, load_gpus=1.0), surrogate), 0)
    assert (bound.certificate if bound else None) == certificate


def test_a_fleet_with_one_uncertified_type_has_no_bound() -> None:
    """A bound of a mixed fleet needs a statement about every type."""
    problem = with_objective(random_problem(0, 8, load_gpus=1.0), "fewest_gpus", TWO_TYPES)
    surrogate = SurrogatePerGpuType((AnalyticSurrogate(), OpaqueSurrogate()))
    model = PatternModel(SolverRun(problem, surrogate, Budget(), None), exact_types(problem))
    assert farley_bound(model, np.ones(8), costs=np.ones(2), goal=5.0, most_boxes=10) is None
