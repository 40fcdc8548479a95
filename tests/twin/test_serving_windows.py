"""Kinds of steps laid out for a window: their totals are the window's, and their times the simulated engine's."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.twin.simulated_serving import adapters_of, samples, scrapes, serve
from twin.calibration.metrics_series import SampleCollector
from twin.calibration.metrics_windows import read_windows
from twin.calibration.serving_settings import expected_adapters, parse_settings
from twin.calibration.serving_windows import LEAST_SHARE, ServingWindow, merge_alike, window_observations
from twin.calibration.step_fit import predicted_ms
from twin.engine import EngineConfig
from twin.lengths import LengthDistribution
from twin.profile import load_profile

WINDOW = ServingWindow(
    source="test",
    group="g",
    steps=1000.0,
    decode_tokens=8000.0,
    first_tokens=80.0,
    prompt_tokens=16000.0,
    finished=80.0,
    time_ms=20.0,
    is_token_mean=False,
    busy_share=1.0,
    context_per_request=300.0,
    waiting=0.0,
    adapters=3.0,
    slots=4,
    max_rank=16,
    cached_adapters=6.0,
)


@example(decodes=1.0, prompts_per_step=1.0 / 128.0, prompt=234.0, busy=0.9921875)
@given(
    decodes=st.floats(1.0, 200.0),
    prompts_per_step=st.floats(0.0, 0.5),
    prompt=st.floats(1.0, 900.0),
    busy=st.floats(0.5, 1.0),
)
def test_totals_of_the_kinds_are_the_windows(
    decodes: float, prompts_per_step: float, prompt: float, busy: float
) -> None:
    """Steps, decoded tokens and prompt tokens add up but for rare kinds; a step has fewer adapters than requests."""
    first = 1000.0 * prompts_per_step
    window = replace(
        WINDOW,
        decode_tokens=1000.0 * decodes,
        first_tokens=first,
        prompt_tokens=first * prompt,
        busy_share=busy,
    )
    observed = window_observations([window])
    weight, steps = observed.weight, observed.steps
    assert weight.sum() == pytest.approx(window.steps, rel=1e-3)
    # Left out may be the steps with a prompt alone, and those with two.
    rare = 3.0 * prompt * LEAST_SHARE * window.steps
    assert (weight * steps.tokens).sum() == pytest.approx(
        window.decode_tokens + window.prompt_tokens, rel=0.01, abs=rare
    )
    assert (steps.adapters <= steps.requests).all()
    assert (steps.changed >= steps.prefill).all()
    assert observed.time_ms.tolist() == [20.0]


def test_a_prompt_beyond_the_budget_takes_several_steps() -> None:
    """Each of its parts fills the step, and reads what the parts before it computed."""
    window = replace(WINDOW, first_tokens=10.0, prompt_tokens=10.0 * 2000, max_num_batched_tokens=508)
    observed = window_observations([window])
    is_prefill = observed.steps.prefill > 0
    assert observed.steps.tokens.max() == 508
    # Four steps of 500 tokens each per prompt.
    assert observed.weight[is_prefill].sum() == pytest.approx(40.0, rel=0.03)
    decodes_context = window.decodes_per_step * window.context_per_request
    assert observed.steps.context_tokens[is_prefill][0] == pytest.approx(decodes_context + 750.0)


def test_a_token_mean_weighs_steps_by_their_decodes() -> None:
    """A step of a prompt alone gives no gap between tokens."""
    observed = window_observations([replace(WINDOW, is_token_mean=True, busy_share=0.5)])
    assert observed.weight.sum() == pytest.approx(WINDOW.decode_tokens, rel=1e-3)
    assert (observed.steps.requests >= WINDOW.decodes_per_step).all()


def test_windows_of_other_loads_stay_apart() -> None:
    """Twice the batch, the prompts or the adapters is another measurement; a few percent are not."""
    assert len(merge_alike([WINDOW, replace(WINDOW, decode_tokens=8100.0, context_per_request=305.0)])) == 1
    for changes in ({"decode_tokens": 16000.0}, {"prompt_tokens": 32000.0}, {"adapters": 1.0}, {"slots": 8}):
        assert len(merge_alike([WINDOW, replace(WINDOW, **changes)])) == 2


@pytest.mark.parametrize(
    ("budget", "prompt_tokens", "most_percent"), [(8192, 300, 2.0), (512, 800, 2.0), (1024, 3000, 6.0)]
)
def test_windows_have_the_time_of_the_steps_in_them(budget: int, prompt_tokens: int, most_percent: float) -> None:
    """Under the true coefficients the kinds take what the simulated server took, whether prompts are split or not."""
    profile = load_profile("llama-3.1-8b-h100-64gb")
    engine = {"enable_lora": False, "max_num_seqs": 256, "max_num_batched_tokens": budget, "max_model_len": 16384}
    prompt = LengthDistribution(mean=prompt_tokens, std=prompt_tokens / 2, min=4, max=8000)
    adapters = adapters_of(3, 3.0, prompt=prompt, output=LengthDistribution(mean=100, std=80, min=4, max=1000))
    served = serve(profile, EngineConfig.model_validate(engine), adapters, horizon_s=200)
    collector = SampleCollector()
    for page in scrapes(served, [10.0 * index for index in range(21)]):
        for name, labels, value in samples(page, served, has_lora=False):
            collector.add("server", page["time_s"], name, labels, value)
    reading = read_windows(collector.series(), parse_settings({"engine": engine}, file="settings.yaml"))
    observed = window_observations(merge_alike(reading.windows))
    errors = 100.0 * (predicted_ms(observed, profile.step_time.model_dump()) / observed.time_ms - 1.0)
    assert len(errors) > 5
    assert abs(errors.mean()) < most_percent


@given(number=st.integers(1, 40), requests=st.floats(0.0, 100.0))
def test_expected_adapters_are_bounded_by_both(number: int, requests: float) -> None:
    """Never more than there are, nor than there are requests (from one on)."""
    expected = expected_adapters([1.0 / number] * number, requests)
    assert 0.0 <= expected <= number
    assert expected <= max(requests, 1.0) + 1e-9


def test_expected_adapters_are_the_mean_of_draws() -> None:
    """As drawn, with unequal shares."""
    shares = np.array([0.5, 0.25, 0.15, 0.1])
    drawn = np.random.default_rng(0).choice(4, (20000, 3), p=shares)
    distinct = np.mean([len(set(row)) for row in drawn.tolist()])
    assert expected_adapters(shares.tolist(), 3.0) == pytest.approx(distinct, rel=0.01)
