"""Certificates of networks: no accepted row breaks one, whatever float32 makes of it; bounds are below optima."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from predictors.catalog import shipped_surrogate
from predictors.contract import probe_features
from predictors.features import FEATURE_SCHEMA
from predictors.neural import MOST, NeuralNetwork
from predictors.onnx_surrogate import OnnxSurrogate
from predictors.surrogate import InflatedSurrogate, Surrogate, ThresholdSurrogate
from solvers import acceptance
from solvers.adapter_types import exact_types
from solvers.budget import Budget
from solvers.constraints import ApartRule, Constraints, LimitsRule
from solvers.feasibility import FeasibilityModel
from solvers.patterns.box_bounds import box_bound_for
from solvers.patterns.boxes import NUM_AGGREGATES
from solvers.patterns.farley import farley_bound
from solvers.patterns.network_bounds import NetworkPlanes
from solvers.patterns.physics_planes import inflated_planes
from solvers.patterns.planes import Boxes
from solvers.patterns.questions import PatternModel
from solvers.problem import Limits
from solvers.run import SolverRun
from tests.solvers.constrained_problems import constrained_optimum
from tests.solvers.heavy_problems import heavy_problem, sums_and_settings
from tests.solvers.oracle import least_objective
from tests.solvers.problems import PROFILE, make_adapter, make_problem, random_problem
from twin.profile import shipped_profiles


@cache
def surrogate(profile: str = PROFILE) -> OnnxSurrogate:
    """Return a shipped surrogate."""
    file = shipped_surrogate(profile)
    assert file is not None
    return OnnxSurrogate.load(file)


@cache
def network(profile: str = PROFILE) -> NeuralNetwork:
    """Return the network in its file."""
    found = surrogate(profile).network
    assert found is not None
    return found


@cache
def probes() -> NDArray[np.float32]:
    """Return rows in and around the domain."""
    return probe_features(200)


def outputs_of(rows: NDArray[np.float32], profile: str = PROFILE) -> NDArray[np.float64]:
    """Return what ONNX Runtime makes of rows as raw outputs, float64 [N, 4]; those that are cut off are NaN."""
    said = surrogate(profile).predict(rows)
    probability = said.starvation_probability.astype(np.float64)
    with np.errstate(divide="ignore"):
        columns = np.stack(
            [
                np.where(said.throughput_ratio < 1.0, np.log(said.throughput_ratio.astype(np.float64)), np.nan),
                np.log(probability) - np.log1p(-probability),
                np.log(said.itl_s.astype(np.float64)),
                np.log(said.ttft_s.astype(np.float64)),
            ]
        )
    return np.where((np.abs(columns[1]) < 5.0) | (np.arange(4) != 1)[:, None], columns, np.nan).T


@pytest.mark.parametrize("profile", shipped_profiles())
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), width=st.sampled_from([0.0, 1e-6, 0.01, 0.1, 1.0]))
def test_outputs_lie_between_their_planes(profile: str, seed: int, width: float) -> None:
    """Of ONNX Runtime and of NumPy, both in float32, for rows in random boxes of any features."""
    generator = np.random.default_rng(seed)
    lower = probes()[generator.integers(200)].astype(np.float64) * generator.uniform(0.5, 1.0)
    boxes = Boxes(lower[None], (lower * (1.0 + width))[None])
    features = inflated_planes(boxes, np.eye(len(lower))[None], boxes, 1.0)
    planes = NetworkPlanes.of(network(profile))
    both = np.concatenate([np.eye(len(MOST)), -np.eye(len(MOST))])
    slopes, offsets, holds = planes.below(boxes, features, both)
    assert holds.all()
    exact = boxes.lower + generator.uniform(0.0, 1.0, (100, len(lower))) * boxes.width
    rows = exact.astype(np.float32)
    values = offsets[0] + (exact - lower) @ slopes[0].T
    raw = network(profile).raw(rows)
    said = np.concatenate([outputs_of(rows, profile), raw[:, 4:]], axis=1)
    # The functions at the end of the graph are rounded too; the limits have slack for that.
    for truth, slack in ((raw, 0.0), (np.where(np.isnan(said), raw, said), 1e-4)):
        assert (values[:, :5] <= truth + slack).all()
        assert (-values[:, 5:] >= truth - slack).all()
    if width <= 1e-6:
        assert float((-values[:, 5:] - values[:, :5]).max()) < 0.3


@pytest.mark.parametrize("factor", [1.0, 1.3])
@pytest.mark.parametrize("threshold", [0.5, 0.05])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.0, 1.0), is_tied=st.booleans())
def test_no_accepted_set_breaks_a_cut(
    factor: float, threshold: float, seed: int, share: float, *, is_tied: bool
) -> None:
    """Boxes around some of many random sets, with margins, thresholds and latency limits."""
    generator = np.random.default_rng(seed)
    limits = Limits(itl_p95_ms=40.0, ttft_p95_ms=2_000.0) if seed % 3 else None
    problem = heavy_problem(seed, 40, rate_rps=float(generator.uniform(0.2, 2.0)), limits=limits)
    judged: Surrogate = ThresholdSurrogate(InflatedSurrogate(surrogate(), factor), threshold)
    model = FeasibilityModel(problem, judged)
    bound = box_bound_for(model, 0)
    assert bound is not None
    assert bound.certificate == "network"
    rows, given_settings = sums_and_settings(problem, model, generator, 150, is_tied=is_tied)
    features = model.features(rows, given_settings)
    exact = np.concatenate([rows, features[:, NUM_AGGREGATES:].astype(np.float64)], axis=1)
    accepted = acceptance.accepts(problem.limits, judged.predict(features))
    # All of them, or those that are near one of them.
    near = np.abs(exact / np.maximum(exact[0], 1e-9) - 1.0)[:, :6].max(axis=1) <= share
    inside = exact[near]
    cuts = bound.cuts(inside.min(axis=0)[None], inside.max(axis=0)[None], np.array([is_tied]))
    kept = (inside - inside.min(axis=0)) @ cuts.gradients[0].T <= cuts.slack[0] + 1e-9
    assert kept[accepted[near]].all()


@pytest.mark.parametrize("seed", range(6))
def test_the_bound_is_at_most_the_brute_force_optimum(seed: int) -> None:
    """Of eight adapters that need a few GPUs, with prices of different quality."""
    problem = heavy_problem(seed, 8, rate_rps=9.0)
    optimum = least_objective(problem, surrogate())
    assert optimum is not None
    generator = np.random.default_rng(seed)
    types = exact_types(problem)
    bounds = []
    for prices in (generator.uniform(0.0, 1.0, 8), types.work[[members[0] for members in types.members]]):
        model = PatternModel(SolverRun(problem, surrogate(), Budget(), None), types)
        bound = farley_bound(model, prices, costs=np.ones(1), goal=50.0, most_boxes=100)
        assert bound is not None
        assert (bound.proof, bound.model) == ("farley", "surrogate")
        bounds.append(bound.value)
    assert max(bounds) <= optimum


@pytest.mark.parametrize("seed", range(3))
def test_constraints_are_no_features_of_the_network(seed: int) -> None:
    """Their columns follow those that the network sees; the bound holds, as it does without them."""
    rules = Constraints(
        apart=(ApartRule(adapters=("a0", "a1", "a2")),), limits=(LimitsRule(adapters=("a3",), itl_p95_ms=60.0),)
    )
    problem = replace(heavy_problem(seed, 7, rate_rps=9.0), constraints=rules)
    optimum = constrained_optimum(problem, surrogate())
    assert optimum is not None
    types = exact_types(problem)
    model = PatternModel(SolverRun(problem, surrogate(), Budget(), None), types)
    prices = types.work[[members[0] for members in types.members]]
    bound = farley_bound(model, prices, costs=np.ones(1), goal=50.0, most_boxes=100)
    assert bound is not None
    assert bound.value <= optimum[0]


def test_the_bound_of_equal_adapters_is_near_the_optimum() -> None:
    """A fleet that the surrogate accepts is not much above what is proven."""
    problem = make_problem([make_adapter(f"a{index}", rate_rps=1.0) for index in range(160)])
    model = PatternModel(SolverRun(problem, surrogate(), Budget(), None), exact_types(problem))
    most = int(model.feasible(np.arange(1, 160)[:, None], 0).nonzero()[0].max()) + 1
    bound = farley_bound(model, np.ones(1), costs=np.ones(1), goal=160.0 / most, most_boxes=1_000)
    assert bound is not None
    assert 0.8 * 160 / most <= bound.value <= np.ceil(160 / most)


def test_a_problem_with_lengths_apart_has_more_coordinates() -> None:
    """Columns in proportion for all adapters are one coordinate; random lengths make them differ."""
    same = make_problem([make_adapter(f"a{index}", rate_rps=0.1 * (index + 1)) for index in range(8)])
    for problem, differ in ((same, False), (random_problem(0, 8, load_gpus=1.0), True)):
        bound = box_bound_for(FeasibilityModel(problem, surrogate()), 0)
        assert bound is not None
        column = FEATURE_SCHEMA.index("sum_output_tps")
        lower = np.zeros((1, len(FEATURE_SCHEMA.names)))
        lower[:, NUM_AGGREGATES:] = (8.0, 32.0, 256.0, 2048.0, 2e5, 8.0, 1.0)
        upper = lower.copy()
        upper[:, :NUM_AGGREGATES] = problem.aggregates.sum(axis=0)
        gradients = bound.cuts(lower, upper, np.zeros(1, dtype=np.bool_)).gradients
        assert bool(gradients[0, :, column].any()) == differ
