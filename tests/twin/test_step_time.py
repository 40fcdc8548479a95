"""The step-time form: its terms, its steps at 128 and 512 tokens, and that adding to a batch never saves time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from twin.profile import StepTimeCoefficients, load_profile, shipped_profiles
from twin.step_time import COEFFICIENT_NAMES, step_time_ms

# (tokens, requests, context tokens, adapters, prefills, their tokens, context tokens and attention, waiting, slots, max
# rank)
Step = tuple[int, int, int, int, int, int, int, int, int, int, int]
ADAPTERS, WAITING, SLOTS = 3, 8, 9


def coefficients(**values: float) -> NDArray[np.float64]:
    """Return a coefficient array that is 0 but for `values`."""
    return StepTimeCoefficients.model_validate(
        {"base_ms": 0.0, "token_ms": 0.0, "request_ms": 0.0, "context_token_ms": 0.0} | values
    ).as_array()


# 100 tokens are padded to 104: two tiles of 64, four of 32; 3 slots and the base model's make a grid of 4; rank 32 is
# one unit above 16.
SMALL_STEP: Step = (100, 7, 900, 3, 0, 0, 0, 0, 2, 3, 32)
MEDIUM_STEP: Step = (300, 7, 900, 3, 2, 295, 40, 30_000, 2, 3, 32)
LARGE_STEP: Step = (1000, 7, 900, 3, 2, 995, 40, 300_000, 2, 3, 32)


@pytest.mark.parametrize(
    ("name", "small", "medium", "large"),
    [
        ("base_ms", 1, 1, 1),
        ("token_ms", 100, 300, 1000),
        ("request_ms", 7, 7, 7),
        ("context_token_ms", 900, 900, 900),
        ("large_batch_ms", 0, 0, 1),
        ("lora_base_ms", 1, 1, 1),
        ("slot_ms", 4, 4, 4),
        ("slot_tile_ms", 4 * 2, 4 * 5, 4 * 16),
        ("slot_tile_rank_ms", 4 * 2, 4 * 5, 4 * 16),
        ("adapter_ms", 3, 3, 3),
        ("adapter_rank_ms", 3, 3, 3),
        ("lora_token_ms", 100, 300, 1000),
        ("lora_token_rank_ms", 100, 300, 1000),
        ("lora_request_rank_ms", 7, 7, 7),
        ("small_slot_tile_ms", 4 * 4, 0, 0),
        ("small_slot_tile_rank_ms", 4 * 4, 0, 0),
        ("small_adapter_ms", 3, 0, 0),
        ("small_adapter_rank_ms", 3, 0, 0),
        ("small_batch_ms", 1, 0, 0),
        ("mixed_step_ms", 0, 1, 1),
        ("mixed_context_token_ms", 0, 900, 900),
        ("lora_large_batch_ms", 0, 0, 1),
        ("blocked_waiting_ms", 2, 2, 2),
    ],
)
def test_term_counts_what_its_name_says(name: str, small: int, medium: int, large: int) -> None:
    """One coefficient of 1 ms at a time, in each of the three ranges of tokens."""
    only = coefficients(**{name: 1.0})
    assert [step_time_ms(only, *step) for step in (SMALL_STEP, MEDIUM_STEP, LARGE_STEP)] == [small, medium, large]


def test_every_coefficient_has_a_table_row_and_a_field() -> None:
    """The array's order and the profile's fields are the same names."""
    assert tuple(StepTimeCoefficients.model_fields) == COEFFICIENT_NAMES


def test_ranks_up_to_16_cost_the_same() -> None:
    """The LoRA kernels pad smaller ranks to 16."""
    everything = np.ones(len(COEFFICIENT_NAMES))
    times = {step_time_ms(everything, *SMALL_STEP[:10], rank) for rank in (8, 16)}
    assert len(times) == 1


@pytest.mark.parametrize(("tokens", "tiles"), [(64, 1), (65, 2), (512, 8), (513, 9), (577, 10)])
def test_tiles_are_counted_after_padding_to_eight_tokens(tokens: int, tiles: int) -> None:
    """Padding ends at 512 tokens, where CUDA graphs end; tiles of 64 never start early by it."""
    step = (tokens, 1, 0, 1, 0, 0, 0, 0, 0, 1, 16)
    assert step_time_ms(coefficients(slot_tile_ms=1.0), *step) == 2 * tiles


def test_without_lora_only_the_dense_terms_count() -> None:
    """No slots: no LoRA kernels, and no adapter can block a request."""
    everything = np.ones(len(COEFFICIENT_NAMES))
    step = (600, 7, 900, 0, 1, 594, 0, 176_715, 4, 0, 16)
    assert step_time_ms(everything, *step) == 1 + 600 + 7 + 900 + 1 + 1 + 900


@st.composite
def steps(draw: st.DrawFn) -> Step:
    """Draw a step on which adapters may take all slots or not."""
    num_slots = draw(st.integers(1, 400))
    return (
        draw(st.integers(1, 4096)),
        draw(st.integers(1, 512)),
        draw(st.integers(0, 400_000)),
        draw(st.one_of(st.just(num_slots), st.integers(0, num_slots))),
        draw(st.integers(0, 64)),
        draw(st.integers(0, 4096)),
        draw(st.integers(0, 100_000)),
        draw(st.integers(0, 10_000_000)),
        draw(st.integers(0, 10_000)),
        num_slots,
        draw(st.sampled_from([8, 16, 32, 64])),
    )


def test_waiting_requests_cost_time_only_where_adapters_take_all_slots() -> None:
    """A queue that waits for KV blocks or sequences is free; one that is looked through for adapters is not."""
    per_waiting = coefficients(blocked_waiting_ms=1.0)
    times = [
        step_time_ms(per_waiting, 9, 9, 90, num_adapters, 0, 0, 0, 0, 7, num_slots, 16)
        for num_adapters, num_slots in ((3, 3), (2, 3), (0, 0))
    ]
    assert times == [7, 0, 0]


@given(profile=st.sampled_from(shipped_profiles()), step=steps(), column=st.integers(1, 9), more=st.integers(1, 500))
def test_more_requests_context_adapters_prefill_waiting_or_slots_never_take_less_time(
    profile: str, step: Step, column: int, more: int
) -> None:
    """All terms but the small-batch constant are non-negative, so whatever is added costs time or nothing.

    One exception: slots for which nobody waits any more; there the queue is left out.
    """
    array = load_profile(profile).step_time.as_array()
    smaller = list(step)
    if column == SLOTS and step[ADAPTERS] == step[SLOTS]:
        smaller[WAITING] = 0
    larger = smaller.copy()
    larger[column] += more
    larger[ADAPTERS] = min(larger[ADAPTERS], larger[SLOTS])
    assert step_time_ms(array, *larger) >= step_time_ms(array, *smaller) > 0


@given(profile=st.sampled_from(shipped_profiles()), step=steps(), rank=st.sampled_from([16, 32, 64, 128, 256]))
def test_larger_maximum_rank_never_takes_less_time(profile: str, step: Step, rank: int) -> None:
    """Slots of a larger rank cost at least as much."""
    array = load_profile(profile).step_time.as_array()
    low, high = sorted([step[10], rank])
    assert step_time_ms(array, *step[:10], high) >= step_time_ms(array, *step[:10], low)


@given(
    profile=st.sampled_from(shipped_profiles()),
    step=steps(),
    regime=st.sampled_from([(1, 127), (128, 512), (513, 4096)]),
    data=st.data(),
)
def test_more_tokens_within_a_regime_never_take_less_time(
    profile: str, step: Step, regime: tuple[int, int], data: st.DataObject
) -> None:
    """Between the kernel switches at 128 and 512 tokens, time does not fall with the tokens."""
    array = load_profile(profile).step_time.as_array()
    low, high = sorted(data.draw(st.tuples(st.integers(*regime), st.integers(*regime))))
    assert step_time_ms(array, high, *step[1:]) >= step_time_ms(array, low, *step[1:])
