"""Bounds of sets of few kinds of adapters: whole counts lose no set, and any network's acceptance is kept."""

from itertools import pairwise, product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from predictors.catalog import shipped_surrogate
from predictors.features import FEATURE_SCHEMA, FeatureSchema
from predictors.neural import ITL, MOST, RATIO, STARVATION, TTFT, NeuralNetwork
from predictors.onnx_surrogate import OnnxSurrogate
from predictors.surrogate import SurrogateOutput
from solvers.adapter_types import exact_types
from solvers.budget import Budget
from solvers.feasibility import NUM_ADAPTERS_COLUMN, FeasibilityModel
from solvers.patterns.box_bounds import box_bound_for
from solvers.patterns.boxes import RANK_COLUMNS, Propagation, root_boxes, whole_counts
from solvers.patterns.farley import FarleySearch
from solvers.patterns.questions import PatternModel
from solvers.problem import Problem
from solvers.run import SolverRun
from tests.solvers.problems import PROFILE, make_adapter, make_problem
from twin.engine import LoraRank

COPIES = 3


class WildSurrogate:
    """A network behind the shipped physics with other weights: more may be better, anywhere."""

    schema: FeatureSchema = FEATURE_SCHEMA

    def __init__(self, seed: int) -> None:
        file = shipped_surrogate(PROFILE)
        assert file is not None
        shipped = OnnxSurrogate.load(file).network
        assert shipped is not None
        generator = np.random.default_rng(seed)
        sizes = [len(shipped.layer.names), 12, 8, len(MOST)]
        weights = [
            generator.normal(0.0, 1.0 / np.sqrt(rows), (rows, columns)).astype(np.float32)
            for rows, columns in pairwise(sizes)
        ]
        biases = [generator.normal(0.0, 0.3, columns).astype(np.float32) for columns in sizes[1:]]
        # Only starvation, about half of the time, decides.
        weights[-1][:, RATIO], biases[-1][RATIO] = 0.0, 0.0
        weights[-1][:, STARVATION] *= 4.0
        self.network = NeuralNetwork(shipped.layer, tuple(weights), tuple(biases))

    def predict(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Return what the network says, as an exported one does."""
        raw = self.network.raw(features)
        powers = np.minimum(np.exp(raw), MOST)
        probability = 1.0 / (1.0 + np.exp(-raw[:, STARVATION]))
        columns = (powers[:, RATIO], probability, powers[:, RATIO], powers[:, ITL], powers[:, TTFT])
        return SurrogateOutput(*(column.astype(np.float32) for column in columns))


def kinds_problem(seed: int) -> Problem:
    """Return a problem of three kinds of adapters, `COPIES` of each."""
    generator = np.random.default_rng(seed)
    rates = generator.choice([0.02, 0.3, 2.0, 9.0], 3, replace=False)
    ranks: list[LoraRank] = [(8, 16, 32)[int(chosen)] for chosen in generator.integers(3, size=3)]
    adapters = [
        make_adapter(f"a{kind}-{copy}", rank=ranks[kind], rate_rps=float(rates[kind]))
        for kind in range(3)
        for copy in range(COPIES)
    ]
    return make_problem(adapters)


def all_sets(model: PatternModel) -> NDArray[np.int64]:
    """Return every set but the empty one, as counts of types, int64 [N, T]."""
    counts = [range(int(count) + 1) for count in model.types.counts]
    return np.array(list(product(*counts))[1:], dtype=np.int64)


def best_accepted(model: PatternModel, values: NDArray[np.float64]) -> float:
    """Return the most that any accepted set is worth, of all of them."""
    sets = all_sets(model)
    return float(np.where(model.feasible(sets, 0), sets @ values, 0.0).max())


def search_of(model: PatternModel) -> FarleySearch:
    """Return the search with the certificates of the only GPU type."""
    bound = box_bound_for(model.run.model, 0)
    assert bound is not None
    assert bound.certificate == "network"
    return FarleySearch(model, (bound,), np.ones(1))


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), most_boxes=st.sampled_from([0, 30, 150]))
def test_no_set_that_a_wild_network_accepts_is_worth_more_than_the_bound(seed: int, most_boxes: int) -> None:
    """All sets of a few kinds, networks that are not monotone, random values: wherever the search stops."""
    problem, judge = kinds_problem(seed), WildSurrogate(seed)
    model = PatternModel(SolverRun(problem, judge, Budget(), None), exact_types(problem))
    values = np.random.default_rng(seed).uniform(0.0, 1.0, model.types.num_types)
    worth = search_of(model).most_worth(values, enough=1e-3, most_boxes=most_boxes)
    assert worth.value >= best_accepted(model, values)


def test_wild_networks_accept_some_sets_and_refuse_larger_and_smaller_ones() -> None:
    """What the property above says is not empty, and its networks are not monotone."""
    is_monotone, share = [], []
    for seed in range(8):
        model = PatternModel(
            SolverRun(kinds_problem(seed), WildSurrogate(seed), Budget(), None), exact_types(kinds_problem(seed))
        )
        sets = all_sets(model)
        fits = model.feasible(sets, 0)
        larger, smaller = np.nonzero(np.all(sets[:, None] >= sets[None], axis=2))
        is_monotone.append(bool(fits[smaller][fits[larger]].all()))
        share.append(float(fits.mean()))
    assert 0.2 < np.mean(share) < 0.8
    assert not all(is_monotone)


@given(
    seed=st.integers(0, 1000),
    chosen=st.lists(st.booleans(), min_size=9, max_size=9),
    slack=st.floats(0.0, 1.0),
)
def test_whole_counts_keep_every_set(seed: int, chosen: list[bool], slack: float) -> None:
    """Bounds that hold for a set's sums still do when numbers of adapters are whole, and are no wider."""
    problem = kinds_problem(seed)
    sums = np.array(chosen, dtype=np.float64) @ problem.aggregates
    generator = np.random.default_rng(seed)
    lower = sums - slack * generator.uniform(0.0, 3.0, len(sums))
    upper = sums + slack * generator.uniform(0.0, 3.0, len(sums))
    low, high = whole_counts(*(side[0] for side in Propagation(problem.aggregates).tightened(lower[None], upper[None])))
    assert (low <= sums * (1.0 + 1e-9) + 1e-9).all()
    assert (high >= sums * (1.0 - 1e-9) - 1e-9).all()
    assert (np.floor(low[RANK_COLUMNS]) == low[RANK_COLUMNS]).all()
    assert low[NUM_ADAPTERS_COLUMN] >= low[RANK_COLUMNS].sum()
    assert high[NUM_ADAPTERS_COLUMN] <= high[RANK_COLUMNS].sum()


def test_counts_that_no_set_has_are_found() -> None:
    """Between two whole numbers is none; and what is not of one rank is of another."""
    problem = kinds_problem(0)
    lower, upper = np.zeros(problem.aggregates.shape[1]), problem.aggregates.sum(axis=0)
    lower[RANK_COLUMNS[0]], upper[RANK_COLUMNS[0]] = 0.2, 0.8
    low, high = whole_counts(lower, upper)
    assert (low > high).any()
    lower, upper = np.zeros(problem.aggregates.shape[1]), problem.aggregates.sum(axis=0)
    lower[NUM_ADAPTERS_COLUMN] = upper[NUM_ADAPTERS_COLUMN]
    low, high = whole_counts(lower, upper)
    assert np.array_equal(low[RANK_COLUMNS], high[RANK_COLUMNS])


def test_roots_hold_an_adapter_of_the_rank_of_their_slots() -> None:
    """Slots have the rank of the largest adapter, unless it is given."""
    problem = kinds_problem(1)
    choices: tuple[tuple[LoraRank | None, float], ...] = ((None, 1.0), (32, 0.0))
    for fixed_rank, fewest in choices:
        given_rank = make_problem(problem.adapters, fixed_max_lora_rank=fixed_rank)
        model = FeasibilityModel(given_rank, WildSurrogate(0))
        for box in root_boxes(model, exact_types(given_rank), 0):
            column = FEATURE_SCHEMA.index(f"num_rank_{box.slot_rank}")
            assert box.lower[column] == fewest
