"""The fit of step times: known coefficients come back, and a prior holds what the data do not say."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.twin.random_steps import EVERY_COEFFICIENT, as_values, observed, random_steps
from twin.calibration import step_fit
from twin.calibration.observations import StepObservations
from twin.calibration.prior import coefficient_prior, prior_profile
from twin.calibration.step_fit import (
    CoefficientPrior,
    data_shares,
    design_matrix,
    error_table,
    fit_step_time,
    intervals,
    leave_one_out,
    predicted_ms,
    relative_design,
    step_terms,
)
from twin.calibration.step_table import no_steps
from twin.errors import ProfileError
from twin.hardware import SHIPPED_MODELS
from twin.step_time import COEFFICIENT_NAMES, step_time_ms

# Nothing of the truth: what decides must come from the data.
BELIEF = coefficient_prior(prior_profile(SHIPPED_MODELS["qwen2.5-7b"], "a100-80gb"))


def _without_lora(observations: StepObservations) -> StepObservations:
    return observations.select(observations.steps.slots == 0)


@given(seed=st.integers(0, 10_000))
def test_terms_times_coefficients_are_the_step_time(seed: int) -> None:
    """The vectorised terms and the scalar function that both engines call are one model."""
    steps = random_steps(20, seed)
    array = EVERY_COEFFICIENT.as_array()
    times = [
        step_time_ms(
            array,
            *(int(steps.tokens[row]), int(steps.requests[row]), int(steps.context_tokens[row])),
            int(steps.adapters[row]),
            bool(steps.prefill[row]),
            bool(steps.changed[row]),
            *(int(steps.waiting[row]), int(steps.slots[row]), int(steps.max_rank[row])),
            int(steps.cached_adapters[row]),
        )
        for row in range(len(steps))
    ]
    assert step_terms(steps) @ array == pytest.approx(times, rel=1e-12)


def test_known_coefficients_are_recovered() -> None:
    """Every coefficient comes back from noise-free steps."""
    fit = fit_step_time(observed(random_steps(2000, seed=2)))
    assert fit.coefficients == pytest.approx(as_values(EVERY_COEFFICIENT), rel=1e-6)
    assert fit.errors[-1].max_percent < 1e-6


def test_noise_moves_the_predictions_little_and_no_coefficient_below_zero() -> None:
    """With 2 % noise the fit's error is the noise's, and that of its predictions a fraction of it."""
    steps = random_steps(2000, seed=3)
    fit = fit_step_time(observed(steps, noise=0.02, seed=4))
    assert fit.errors[-1].mape_percent == pytest.approx(2.0 * np.sqrt(2.0 / np.pi), rel=0.1)
    assert min(fit.coefficients.values()) >= 0.0
    assert error_table(observed(steps), fit.coefficients)[-1].mape_percent < 0.5


def test_large_systems_have_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reducing the rows is a matter of speed only."""
    data = observed(random_steps(400, seed=15), noise=0.03, seed=15)
    whole = fit_step_time(data).coefficients
    monkeypatch.setattr(step_fit, "MOST_ROWS", 50)
    assert fit_step_time(data).coefficients == pytest.approx(whole, rel=1e-6, abs=1e-12)


def test_fixed_coefficients_keep_their_values_and_the_rest_fits_around_them() -> None:
    """What another source gives is neither fitted nor forgotten."""
    given_values = {"cached_adapter_ms": 2e-4, "slot_lookup_ms": 3e-5}
    fit = fit_step_time(observed(random_steps(1000, seed=5)), fixed=given_values)
    assert {name: fit.coefficients[name] for name in given_values} == given_values
    assert fit.fixed == frozenset(given_values)
    assert fit.coefficients == pytest.approx(as_values(EVERY_COEFFICIENT), rel=1e-6)


def test_a_measurement_of_many_steps_is_their_weighted_mean() -> None:
    """An inter-token latency over kinds of steps is fitted as well as the steps themselves."""
    single = observed(random_steps(600, seed=6))
    measurement = np.repeat(np.arange(200), 3)
    weight = np.tile([1.0, 5.0, 0.5], 200)
    joined = replace(
        single,
        weight=weight,
        measurement=measurement,
        time_ms=np.bincount(measurement, weights=weight * single.time_ms) / 6.5,
        regime=single.regime[:200],
        group=single.group[:200],
    )
    assert fit_step_time(joined).coefficients == pytest.approx(as_values(EVERY_COEFFICIENT), rel=1e-5)


def test_intervals_cover_the_truth() -> None:
    """A 95 % interval misses the truth rarely: 19 coefficients x 5 data sets, with room for bad luck."""
    truth = as_values(EVERY_COEFFICIENT)
    missed = 0
    for seed in range(5):
        bounds = intervals(observed(random_steps(500, seed=seed), noise=0.03, seed=seed), resamples=60)
        missed += sum(not low <= truth[name] <= high for name, (low, high) in bounds.items())
    assert missed <= 14


def test_intervals_shrink_with_data_and_resample_whole_groups() -> None:
    """Ten copies of each step are no new information where they are one group."""
    steps = random_steps(300, seed=7)
    few = observed(steps, noise=0.03, seed=1)
    copies = observed(
        type(steps)(**{name: np.tile(getattr(steps, name), 10) for name in type(steps).__dataclass_fields__})
    )
    copies = replace(copies, time_ms=np.tile(few.time_ms, 10), group=np.tile(few.group, 10))
    many = observed(random_steps(3000, seed=7), noise=0.03, seed=1)
    widths = [high - low for low, high in (intervals(data, resamples=60)["base_ms"] for data in (few, copies, many))]
    assert widths[1] == pytest.approx(widths[0], rel=1e-6)
    assert widths[2] < 0.6 * widths[0]


def test_leaving_a_regime_out_judges_a_fit_that_has_not_seen_it() -> None:
    """Times of one rank are wrong: only leaving it out shows how wrong."""
    steps = random_steps(1500, seed=8)
    data = observed(steps)
    is_odd = steps.max_rank == 64
    data = replace(data, time_ms=np.where(is_odd, 1.3 * data.time_ms, data.time_ms))
    (left_out,) = leave_one_out(data, {"rank 64": is_odd, "nothing": np.zeros(len(steps), dtype=np.bool_)})
    assert (left_out.regime, left_out.num_rows) == ("rank 64", int(is_odd.sum()))
    assert left_out.bias_percent == pytest.approx(100.0 * (1.0 / 1.3 - 1.0), abs=1e-6)


def test_without_data_the_fit_is_the_prior() -> None:
    """Values, intervals and shares of no measurement at all."""
    fit = fit_step_time(no_steps(), prior=BELIEF)
    assert list(fit.coefficients.values()) == pytest.approx(BELIEF.values.tolist())
    assert fit.errors == ()
    bounds = intervals(no_steps(), prior=BELIEF, resamples=400)
    base, deviation = BELIEF.values[0], BELIEF.deviations[0]
    assert bounds["base_ms"] == pytest.approx((base - 1.96 * deviation, base + 1.96 * deviation), rel=0.15)
    assert set(data_shares(relative_design(no_steps()), BELIEF).values()) == {0.0}


def test_data_take_over_from_the_prior_as_rows_grow() -> None:
    """One row moves the prediction a part of the way, many rows bring the coefficients to the truth."""
    truth = observed(random_steps(3000, seed=9))
    judged = observed(random_steps(500, seed=10))
    errors = [
        error_table(judged, fit_step_time(data, prior=BELIEF).coefficients)[-1].mape_percent
        for data in (no_steps(), *(truth.select(np.arange(3000) < count) for count in (3, 30, 300, 3000)))
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 5.0
    assert errors[-1] < 0.1
    fit = fit_step_time(truth, prior=BELIEF)
    assert fit.coefficients == pytest.approx(as_values(EVERY_COEFFICIENT), rel=0.1)


@given(base_ms=st.floats(2.0, 60.0))
def test_a_few_rows_leave_the_answer_between_prior_and_data(base_ms: float) -> None:
    """Two equal measurements of an empty step: the answer lies between what is believed and what is measured."""
    steps = random_steps(2, seed=0)
    alone = type(steps)(
        **{name: np.zeros(2, dtype=getattr(steps, name).dtype) for name in type(steps).__dataclass_fields__}
    )
    data = replace(observed(alone), time_ms=np.full(2, base_ms))
    fitted = fit_step_time(data, prior=BELIEF).coefficients["base_ms"]
    low, high = sorted([base_ms, float(BELIEF.values[0])])
    assert low - 1e-9 <= fitted <= high + 1e-9
    # 3 % noise weighs more than a band of tens of percent.
    assert abs(fitted - base_ms) <= 0.2 * abs(BELIEF.values[0] - base_ms) + 1e-9


def test_what_the_data_do_not_show_stays_the_priors_and_is_known_to() -> None:
    """Without LoRA in the data, LoRA's coefficients are the prior's exactly, and the data's share of them is 0."""
    data = _without_lora(observed(random_steps(2000, seed=11)))
    fit = fit_step_time(data, prior=BELIEF)
    shares = data_shares(relative_design(data), BELIEF)
    believed = dict(zip(COEFFICIENT_NAMES, BELIEF.values.tolist(), strict=True))
    unseen = [name for name in COEFFICIENT_NAMES if not design_matrix(data)[:, COEFFICIENT_NAMES.index(name)].any()]
    assert "adapter_ms" in unseen
    assert {name: fit.coefficients[name] for name in unseen} == pytest.approx({name: believed[name] for name in unseen})
    assert [shares[name] for name in unseen] == pytest.approx([0.0] * len(unseen), abs=1e-12)
    assert shares["base_ms"] > 0.99
    assert fit.coefficients["base_ms"] == pytest.approx(EVERY_COEFFICIENT.base_ms, rel=0.02)


def test_shares_grow_with_every_row() -> None:
    """Rows of another kind of measurement count as the steps' do, and one row decides no more than one coefficient."""
    data = _without_lora(observed(random_steps(2000, seed=11)))
    rows = relative_design(data)
    further = relative_design(observed(random_steps(200, seed=12)))
    with_lora = further[further[:, COEFFICIENT_NAMES.index("adapter_ms")] > 0][:1]
    alone, joint = data_shares(rows, BELIEF), data_shares(np.vstack([rows, with_lora]), BELIEF)
    assert all(joint[name] >= alone[name] - 1e-9 for name in COEFFICIENT_NAMES)
    assert 0.0 < sum(joint.values()) - sum(alone.values()) <= 1.0 + 1e-9
    assert joint["adapter_ms"] > 0.0 == alone["adapter_ms"]
    assert "base_ms" not in data_shares(rows, BELIEF, fixed={"base_ms": 12.0})


def test_intervals_of_few_rows_are_between_those_of_the_prior_and_of_many() -> None:
    """What is uncertain looks uncertain, even where every resample holds the same single group."""
    truth = observed(random_steps(2000, seed=12))
    small = truth.select((truth.steps.slots == 0) & (truth.steps.tokens < 128))
    few = small.select(np.arange(len(small.time_ms)) < 4)
    few = replace(few, group=np.array(["one run"] * 4, dtype=np.str_))
    widths = []
    for data in (no_steps(), few, truth):
        low, high = intervals(data, prior=BELIEF, resamples=150)["base_ms"]
        widths.append(high - low)
    assert widths[0] > widths[1] > widths[2] > 0.0


def test_drawn_priors_are_never_negative() -> None:
    """A draw below 0 is cut: no coefficient saves time."""
    wide = CoefficientPrior(np.full(len(COEFFICIENT_NAMES), 0.1), np.full(len(COEFFICIENT_NAMES), 5.0))
    assert wide.drawn(np.random.default_rng(0)).values.min() == 0.0


def test_predictions_are_means_over_the_steps_of_a_measurement() -> None:
    """The predicted time of noise-free data is the measured one."""
    data = observed(random_steps(50, seed=13))
    assert predicted_ms(data, as_values(EVERY_COEFFICIENT)) == pytest.approx(data.time_ms)


def test_fit_without_scipy_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is an optional extra: running a profile does not need it, fitting one does."""
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ProfileError, match="needs scipy") as caught:
        fit_step_time(observed(random_steps(10, seed=14)))
    assert caught.value.hint == "install the extra: lora-placer[train]"
