"""Uncertain rates: the quantile of a set's load, against drawn rates and by hand."""

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placer.comparison_run import RunSettings, problem_and_surrogate
from placer.planning import plan
from placer.surrogates import at_the_quantile
from predictors.features import inflate, offered_tps
from predictors.surrogate import InflatedSurrogate, declares_monotone, keeps_order, unwrapped
from predictors.uncertainty import ChanceConstrainedSurrogate, RateUncertainty
from solvers.budget import Budget
from solvers.feasibility import FeasibilityModel
from solvers.patterns.box_bounds import box_bound_for
from solvers.registry import get_solver
from tests.placer.small_fleets import fair_surrogate, small_problem
from tests.solvers.analytic import AnalyticSurrogate
from tests.solvers.problems import random_problem
from twin.errors import InputError

RATES = st.lists(st.floats(0.01, 5.0), min_size=1, max_size=60)


class MonotoneSurrogate(AnalyticSurrogate):
    """Says that more is never better."""

    is_monotone = True
    feature_signs: ClassVar[dict[str, int]] = {"sum_rate_rps": 1}


def factor_of(uncertainty: RateUncertainty, rates: list[float]) -> float:
    """Return the factor of one set."""
    array = np.array(rates)
    return float(uncertainty.factor(np.array([array.sum()]), np.array([(array**2).sum()]))[0])


def test_the_factor_is_exceeded_as_often_as_it_says() -> None:
    """Drawn rates of 30 unequal adapters: 5 % of the totals are above the 95 % quantile."""
    generator = np.random.default_rng(0)
    rates = 1.0 / np.arange(1, 31)
    uncertainty = RateUncertainty(rate_cv=0.3, common_cv=0.1, probability=0.95)
    drawn = rates * (1.0 + 0.3 * generator.standard_normal((100_000, 30)))
    drawn *= 1.0 + 0.1 * generator.standard_normal((100_000, 1))
    share = float((drawn.sum(axis=1) > rates.sum() * factor_of(uncertainty, rates.tolist())).mean())
    assert 0.045 < share < 0.06


@given(RATES, st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.floats(0.5, 0.999))
def test_the_factor_has_the_order_that_it_should(
    rates: list[float], rate_cv: float, common_cv: float, probability: float
) -> None:
    """Never below 1, the same for all rates doubled, and for n equal adapters smaller than for one."""
    uncertainty = RateUncertainty(rate_cv=rate_cv, common_cv=common_cv, probability=probability)
    factor = factor_of(uncertainty, rates)
    assert factor >= 1.0
    assert factor == pytest.approx(factor_of(uncertainty, [2.0 * rate for rate in rates]))
    assert factor_of(uncertainty, [1.0] * len(rates)) <= factor_of(uncertainty, [1.0]) + 1e-12
    assert factor_of(uncertainty, [0.0]) == 1.0


def test_the_surrogate_is_asked_about_the_quantile() -> None:
    """Each row with its own factor; what is scaled back is the throughput."""
    problem = random_problem(0, 12, load_gpus=1.0)
    rows = np.stack([problem.aggregates[:4].sum(axis=0), problem.aggregates.sum(axis=0)])
    uncertainty = RateUncertainty(rate_cv=0.4)
    inner = AnalyticSurrogate()
    model = FeasibilityModel(problem, inner)
    features = model.features(rows, model.settings(0, 4, 32))
    factors = uncertainty.factor(rows[:, 1], rows[:, 2])
    assert factors[0] != factors[1]
    told = ChanceConstrainedSurrogate(inner, uncertainty).predict(features)
    expected = inner.predict(inflate(features, factors))
    np.testing.assert_array_equal(told.starvation_probability, expected.starvation_probability)
    np.testing.assert_allclose(told.throughput_tps / offered_tps(features), expected.throughput_ratio, rtol=1e-5)


def test_what_the_inner_surrogate_declares_is_not_passed_on() -> None:
    """A larger load of one kind may have a smaller factor, so that no proof may rest on monotony."""
    problem = random_problem(0, 6, load_gpus=1.0)
    inner = MonotoneSurrogate()
    outer = InflatedSurrogate(ChanceConstrainedSurrogate(inner, RateUncertainty(rate_cv=0.4)), 1.1)
    assert unwrapped(outer) is inner
    assert keeps_order(InflatedSurrogate(inner, 1.1))
    assert declares_monotone(InflatedSurrogate(inner, 1.1))
    assert not declares_monotone(outer)
    assert box_bound_for(FeasibilityModel(problem, inner), 0) is not None
    assert box_bound_for(FeasibilityModel(problem, outer), 0) is None


def test_more_doubt_takes_more_gpus() -> None:
    """With a common factor each GPU has less room."""
    problem = random_problem(1, 80, load_gpus=4.0)
    doubtful = replace(problem, uncertainty=RateUncertainty(rate_cv=0.2, common_cv=0.3))
    gpus = []
    for asked in (problem, doubtful):
        result = get_solver("bfd").solve(asked, at_the_quantile(AnalyticSurrogate(), asked), budget=Budget())
        assert result.evaluation is not None
        gpus.append(result.evaluation.num_gpus)
    assert gpus[1] > gpus[0]


def test_a_plan_is_simulated_at_the_quantile(tmp_path: Path) -> None:
    """The twin sees the load that the surrogate was asked about, and the plan says so."""
    doubt = {"rate_cv": 0.5, "common_cv": 0.2, "probability": 0.9}
    problem = small_problem(tmp_path, total_rps=6.0, uncertainty=doubt)
    made = plan(problem, solver="bfd", surrogate=fair_surrogate(), horizon_s=600.0, warmup_s=100.0)
    assert made.configuration.uncertainty == RateUncertainty(**doubt)
    traffic = problem.traffic_of(range(len(problem.adapters)))
    rates = [adapter.rate_rps for adapter in problem.adapters]
    expected = sum(rates) * factor_of(RateUncertainty(**doubt), rates)
    assert sum(adapter.rate_rps for adapter in traffic.adapters) == pytest.approx(expected)
    for gpu in made.gpus:
        assert gpu.verification is not None
        assert gpu.verification.offered_tps > 1.1 * gpu.offered_tps


@pytest.mark.parametrize(
    ("doubt", "field"), [({"rate_cv": -0.1}, "rate_cv"), ({"probability": 1.0}, "probability"), ({"cv": 0.9}, "cv")]
)
def test_bad_input_is_refused(tmp_path: Path, doubt: dict[str, float], field: str) -> None:
    """With the field's name."""
    with pytest.raises(InputError, match=field) as raised:
        small_problem(tmp_path, uncertainty=doubt)
    assert raised.value.field == f"uncertainty.{field}"


def test_a_comparison_does_not_drop_the_uncertainty_of_a_problem(tmp_path: Path) -> None:
    """A function that says yes or no is asked about sums, which have no quantile: refused rather than ignored."""
    problem = small_problem(tmp_path, uncertainty={"rate_cv": 0.5})
    with pytest.raises(InputError, match="uncertain") as raised:
        problem_and_surrogate(problem, RunSettings(surrogate="tests.placer.foreign:Oracle"))
    assert raised.value.field == "uncertainty"
    _, surrogate = problem_and_surrogate(problem, RunSettings())
    assert isinstance(surrogate, ChanceConstrainedSurrogate)
