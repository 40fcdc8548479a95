"""Certificates of tree ensembles: no accepted set lies in a box that is called empty; bounds are below optima."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors.domain import Domain
from predictors.export import export_model
from predictors.families import FAMILIES
from predictors.onnx_surrogate import OnnxSurrogate
from predictors.risk import Calibration
from predictors.surrogate import InflatedSurrogate, Surrogate, ThresholdSurrogate
from solvers import acceptance
from solvers.adapter_types import exact_types
from solvers.budget import Budget
from solvers.feasibility import FeasibilityModel
from solvers.patterns.box_bounds import box_bound_for
from solvers.patterns.boxes import NUM_AGGREGATES
from solvers.patterns.farley import farley_bound
from solvers.patterns.questions import PatternModel
from solvers.problem import Limits
from solvers.run import SolverRun
from tests.predictors.made_up_rows import SMALL, known_rows
from tests.solvers.heavy_problems import heavy_problem, sums_and_settings
from tests.solvers.oracle import least_objective
from tests.solvers.problems import PROFILE, make_adapter, make_problem
from twin.profile import load_profile

TREE_FAMILIES = ["boosting", "forest", "tree"]


@pytest.fixture(scope="module")
def surrogates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, OnnxSurrogate]:
    """Return a fitted surrogate of each family of trees."""
    rows, profile = known_rows(1200), load_profile(PROFILE)
    folder = tmp_path_factory.mktemp("trees")
    made = {}
    for name in TREE_FAMILIES:
        model = FAMILIES[name].fit(rows, profile, SMALL[name], seed=0, time_limit_s=60.0)
        exported = export_model(
            model,
            Calibration(1.2, 0.1),
            profile=profile,
            domain=Domain.from_rows(rows.features),
            training={},
            producer={},
        )
        (folder / f"{name}.onnx").write_bytes(exported.SerializeToString())
        made[name] = OnnxSurrogate.load(folder / f"{name}.onnx")
    return made


@cache
def limits_of(seed: int) -> Limits | None:
    """Return latency limits for some seeds."""
    return Limits(itl_p95_ms=30.0, ttft_p95_ms=200.0) if seed % 3 else None


@pytest.mark.parametrize("name", TREE_FAMILIES)
@pytest.mark.parametrize("factor", [1.0, 1.3])
@pytest.mark.parametrize("threshold", [0.5, 0.05])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.0, 0.5), is_tied=st.booleans())
def test_no_accepted_set_is_in_an_empty_box(
    surrogates: dict[str, OnnxSurrogate],
    *,
    name: str,
    factor: float,
    threshold: float,
    seed: int,
    share: float,
    is_tied: bool,
) -> None:
    """Boxes around some of many random sets, with margins, thresholds and latency limits."""
    generator = np.random.default_rng(seed)
    problem = heavy_problem(seed, 40, rate_rps=float(generator.uniform(0.2, 3.0)), limits=limits_of(seed))
    judged: Surrogate = ThresholdSurrogate(InflatedSurrogate(surrogates[name], factor), threshold)
    model = FeasibilityModel(problem, judged)
    bound = box_bound_for(model, 0)
    assert bound is not None
    assert bound.certificate == "intervals"
    rows, given_settings = sums_and_settings(problem, model, generator, 100, is_tied=is_tied)
    features = model.features(rows, given_settings)
    exact = np.concatenate([rows, features[:, NUM_AGGREGATES:].astype(np.float64)], axis=1)
    accepted = acceptance.accepts(problem.limits, judged.predict(features))
    # Around each set by itself, and around those that are near it.
    near = np.abs(exact[:, None] / np.maximum(exact, 1e-9) - 1.0)[:, :, :6].max(axis=2) <= share
    lower = np.array([exact[chosen].min(axis=0) for chosen in near])
    upper = np.array([exact[chosen].max(axis=0) for chosen in near])
    is_empty = bound.cuts(lower, upper, np.full(len(exact), is_tied)).is_empty
    assert not is_empty[(near & accepted).any(axis=1)].any()


@pytest.mark.parametrize("name", TREE_FAMILIES)
def test_boxes_without_width_are_told_apart(surrogates: dict[str, OnnxSurrogate], name: str) -> None:
    """Of single sets nearly each refused one is known to be refused."""
    generator = np.random.default_rng(1)
    problem = heavy_problem(2, 60, rate_rps=1.5)
    model = FeasibilityModel(problem, surrogates[name])
    bound = box_bound_for(model, 0)
    assert bound is not None
    rows, given_settings = sums_and_settings(problem, model, generator, 400, is_tied=False)
    features = model.features(rows, given_settings)
    exact = np.concatenate([rows, features[:, NUM_AGGREGATES:].astype(np.float64)], axis=1)
    accepted = acceptance.accepts(problem.limits, surrogates[name].predict(features))
    is_empty = bound.cuts(exact, exact, np.zeros(len(exact), dtype=np.bool_)).is_empty
    assert 0 < accepted.sum() < len(accepted)
    assert (is_empty != accepted).mean() > 0.98


@pytest.mark.parametrize("name", TREE_FAMILIES)
@pytest.mark.parametrize("seed", range(3))
def test_the_bound_is_at_most_the_brute_force_optimum(
    surrogates: dict[str, OnnxSurrogate], name: str, seed: int
) -> None:
    """Of eight adapters that need a few GPUs."""
    problem = heavy_problem(seed, 8, rate_rps=9.0)
    optimum = least_objective(problem, surrogates[name], max_gpus=8)
    assert optimum is not None
    types = exact_types(problem)
    model = PatternModel(SolverRun(problem, surrogates[name], Budget(), None), types)
    prices = types.work[[members[0] for members in types.members]]
    bound = farley_bound(model, prices, costs=np.ones(1), goal=50.0, most_boxes=200)
    assert bound is not None
    assert bound.value <= optimum


def test_the_bound_of_equal_adapters_is_near_the_optimum(surrogates: dict[str, OnnxSurrogate]) -> None:
    """A fleet that the surrogate accepts is not much above what is proven."""
    problem = make_problem([make_adapter(f"a{index}", rate_rps=1.0) for index in range(160)])
    model = PatternModel(SolverRun(problem, surrogates["boosting"], Budget(), None), exact_types(problem))
    most = int(model.feasible(np.arange(1, 160)[:, None], 0).nonzero()[0].max()) + 1
    bound = farley_bound(model, np.ones(1), costs=np.ones(1), goal=160.0 / most, most_boxes=1_000)
    assert bound is not None
    assert 0.8 * 160 / most <= bound.value <= np.ceil(160 / most)
