"""What exact methods conclude from a refusal: nothing that a GPU could hold is ever excluded."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from predictors.surrogate import SurrogateOutput
from solvers.adapter_types import exact_types
from solvers.feasibility import FeasibilityModel
from solvers.feasible_patterns import ask_patterns
from solvers.integer_objective import integer_objective
from solvers.load_columns import LoadColumns
from solvers.objective import evaluate, objective_value
from solvers.placement import GpuAssignment, Placement
from solvers.problem import Problem
from solvers.refusals import Cut, LoadCut, Refusals
from tests.solvers.analytic import AnalyticSurrogate
from tests.solvers.problems import GPU, make_adapter, make_problem, random_problem, with_objective
from tests.solvers.small_problems import TYPES, FickleSurrogate, small_problem
from twin.engine import LoraRank


def all_sets(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return every set of adapters but the empty one, as counts per type."""
    ranges = [range(int(count) + 1) for count in counts]
    return np.array([row for row in product(*ranges) if any(row)], dtype=np.int64)


def is_excluded(cut: Cut, counts: NDArray[np.int64], columns: LoadColumns) -> bool:
    """Return whether a cut forbids a set on GPUs of its type."""
    if isinstance(cut, LoadCut):
        parts = counts @ columns.units
        return all(parts[dimension] > most for dimension, most in cut.at_most)
    given_counts = np.array(cut.counts)
    return bool((counts >= given_counts).all() if cut.with_more else (counts == given_counts).all())


@pytest.mark.parametrize("surrogate", [AnalyticSurrogate(), FickleSurrogate()], ids=["monotone", "fickle"])
@pytest.mark.parametrize("seed", range(8))
def test_cuts_exclude_the_refused_set_and_no_accepted_one(seed: int, surrogate: AnalyticSurrogate) -> None:
    """Every set of a small problem is asked about; every cut from a refused one must agree with all answers."""
    problem = small_problem(seed)
    if seed == 7:
        problem = with_objective(random_problem(seed, 7, load_gpus=2.2), "least_cost", TYPES)
    model = FeasibilityModel(problem, surrogate)
    types = exact_types(problem)
    refusals = Refusals(model, types)
    sets = all_sets(types.counts)
    for gpu_type in range(len(problem.gpu_types)):
        feasible = ask_patterns(model, types, sets, gpu_type).feasible
        refused = sets[~feasible]
        where = np.full(len(refused), gpu_type, dtype=np.int64)
        cuts = [cut for cut in (*refusals.cuts(refused, where), *refusals.first_cuts()) if cut.gpu_type == gpu_type]
        for counts, holds in zip(sets, feasible, strict=True):
            excluded = [cut for cut in cuts if is_excluded(cut, counts, refusals.columns)]
            assert bool(excluded) != bool(holds), (counts, excluded)


class TwelveSlots(AnalyticSurrogate):
    """A monotone surrogate for which many adapters run on twelve slots only, and more than thirty never."""

    def predict(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Predict, and starve many adapters on other slots."""
        output = super().predict(features)
        adapters = features[:, self.schema.index("num_adapters")]
        refused = (adapters > 30) | ((adapters > 12) & (features[:, self.schema.index("max_loras")] != 12))
        return replace(output, starvation_probability=np.where(refused, np.float32(1.0), output.starvation_probability))


def test_slots_that_only_larger_ranks_try_are_asked_about() -> None:
    """Twenty adapters of rank 8 try 8, 16 and 20 slots and are refused; with one of rank 64, memory makes it twelve."""
    gpu = GPU.model_copy(update={"memory_gib": 41.0})
    adapters = [make_adapter(f"a{index}", rank=64 if index < 2 else 8, rate_rps=0.002) for index in range(40)]
    problem = make_problem(adapters, gpu_types=(gpu,))
    model = FeasibilityModel(problem, TwelveSlots())
    types = exact_types(problem)
    refusals = Refusals(model, types)
    sets = all_sets(types.counts)
    feasible = ask_patterns(model, types, sets, 0).feasible
    assert [bool(feasible[(sets == counts).all(axis=1)][0]) for counts in ([0, 20], [1, 20])] == [False, True]
    cuts = refusals.cuts(sets[~feasible], np.zeros(int((~feasible).sum()), dtype=np.int64))
    for counts, holds in zip(sets, feasible, strict=True):
        assert any(is_excluded(cut, counts, refusals.columns) for cut in cuts) != bool(holds)


@st.composite
def two_sets(draw: st.DrawFn) -> tuple[Problem, NDArray[np.int64], NDArray[np.int64]]:
    """Draw a problem and two of its sets."""
    problem = random_problem(draw(st.integers(0, 1000)), draw(st.integers(2, 12)), load_gpus=1.0)
    num_types = exact_types(problem).num_types
    sets = st.lists(st.integers(0, 1), min_size=num_types, max_size=num_types)
    return problem, np.array(draw(sets)), np.array(draw(sets))


@settings(max_examples=60, deadline=None)
@given(two_sets())
def test_a_rounded_load_above_a_threshold_is_really_no_smaller(
    drawn: tuple[Problem, NDArray[np.int64], NDArray[np.int64]],
) -> None:
    """Rounding to integers may only lose cuts, never sets."""
    problem, first, second = drawn
    types = exact_types(problem)
    columns = LoadColumns(types)
    loads = columns.loads_of(types.aggregates(np.stack([first, second])))
    above = first @ columns.units > columns.thresholds(loads[1])
    assert (loads[0][above] >= loads[1][above]).all()


def test_proportional_aggregates_are_one_dimension() -> None:
    """Requests that are alike make rates, tokens and KV steps one number; ranks count from above."""
    ranks: list[LoraRank] = [8, 16, 32]
    problem = make_problem(
        [make_adapter(f"a{index}", rank=rank, rate_rps=0.1 + 0.1 * index) for index, rank in enumerate(ranks)]
    )
    types = exact_types(problem)
    columns = LoadColumns(types)
    # The number of adapters; rate, squared rate and two windows; ranks of at least 16 and of at least 32.
    assert columns.num_dimensions == 7
    loads = columns.loads_of(types.aggregates(np.array([[1, 1, 1]])))
    assert loads[0, list(columns.ranks)].tolist() == [2.0, 1.0]
    rows, max_ranks = columns.aggregates_of(loads)
    np.testing.assert_allclose(rows[0], types.rows.sum(axis=0), rtol=1e-8)
    assert max_ranks.tolist() == [32]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=4), min_size=2, max_size=6),
    st.sampled_from(["fewest_gpus", "least_cost"]),
)
def test_weights_order_placements_as_the_objective_does(choices: list[list[int]], objective: str) -> None:
    """One integer says which of two placements is better, ties included."""
    base = random_problem(1, 4, load_gpus=0.5)
    problem = with_objective(base, "least_cost" if objective == "least_cost" else "fewest_gpus", TYPES)
    scored = []
    for chosen in choices:
        blocks = [tuple(range(index, 4, len(chosen))) for index in range(len(chosen))]
        placement = Placement(
            tuple(GpuAssignment(kind, block, 4, 32) for kind, block in zip(chosen, blocks, strict=True))
        )
        value = objective_value(problem, evaluate(problem, placement, AnalyticSurrogate()))
        scored.append((integer_objective(problem).weight(placement), value))
    for weight, value in scored:
        for other_weight, other_value in scored:
            assert (weight < other_weight) == (value < other_value)
