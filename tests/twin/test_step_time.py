"""The step-time form: its terms, its steps at 128 and 512 tokens, and that adding to a batch never saves time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from twin.profile import StepTimeCoefficients, load_profile, shipped_profiles
from twin.step_time import COEFFICIENT_NAMES, step_time_ms

# (tokens, requests, context tokens, adapters, has prefill, is batch changed, waiting, slots, max rank, cached adapters)
Step = tuple[int, int, int, int, bool, bool, int, int, int, int]
TOKENS, REQUESTS, CONTEXT, ADAPTERS, WAITING, SLOTS, RANK, CACHED = 0, 1, 2, 3, 6, 7, 8, 9


def coefficients(**values: float) -> NDArray[np.float64]:
    """Return a coefficient array that is 0 but for `values`."""
    return StepTimeCoefficients.model_validate(
        {"base_ms": 0.0, "token_ms": 0.0, "request_ms": 0.0, "context_token_ms": 0.0} | values
    ).as_array()


# 100 tokens are padded to 104: two tiles of 64, four of 32; 3 slots and the base model's make a grid of 4; rank 32 is
# two tiles of ranks, whose sums are split 64 ways below 128 tokens and 8 ways from there on. Nothing changed in the
# small step; the others have prefills. Five adapters are in the CPU cache, three of them in the slots.
SMALL_STEP: Step = (100, 7, 900, 3, False, False, 2, 3, 32, 5)
MEDIUM_STEP: Step = (300, 7, 900, 3, True, True, 2, 3, 32, 5)
LARGE_STEP: Step = (1000, 7, 900, 3, True, True, 2, 3, 32, 5)


@pytest.mark.parametrize(
    ("name", "small", "medium", "large"),
    [
        ("base_ms", 1, 1, 1),
        ("token_ms", 100, 300, 1000),
        ("request_ms", 7, 7, 7),
        ("context_token_ms", 900, 900, 900),
        ("large_batch_ms", 0, 0, 1),
        ("large_batch_token_ms", 0, 0, 488),
        ("mixed_context_token_ms", 0, 900, 900),
        ("changed_request_ms", 0, 7, 7),
        ("lora_base_ms", 1, 1, 1),
        ("lora_active_ms", 1, 1, 1),
        ("lora_token_ms", 100, 300, 1000),
        ("expand_tile_ms", 4 * 2, 4 * 5, 4 * 16),
        ("shrink_tile_ms", 4 * 4 * 2, 4 * 10 * 2 / 8, 4 * 32 * 2 / 8),
        ("adapter_ms", 3, 3, 3),
        ("adapter_shrink_ms", 3 * 2, 3 * 2 / 8, 3 * 2 / 8),
        ("adapter_request_ms", 3 * 7, 3 * 7, 3 * 7),
        ("cached_adapter_ms", 3 * 5, 3 * 5, 3 * 5),
        ("slot_lookup_ms", 0, 307 * 3, 1007 * 3),
        ("blocked_waiting_ms", 2, 2, 2),
    ],
)
def test_term_counts_what_its_name_says(name: str, small: float, medium: float, large: float) -> None:
    """One coefficient of 1 ms at a time, in each of the three ranges of tokens."""
    only = coefficients(**{name: 1.0})
    assert [step_time_ms(only, *step) for step in (SMALL_STEP, MEDIUM_STEP, LARGE_STEP)] == [small, medium, large]


def test_every_coefficient_has_a_table_row_and_a_field() -> None:
    """The array's order and the profile's fields are the same names."""
    assert tuple(StepTimeCoefficients.model_fields) == COEFFICIENT_NAMES


def test_ranks_up_to_16_cost_the_same() -> None:
    """The LoRA kernels pad smaller ranks to 16."""
    everything = np.ones(len(COEFFICIENT_NAMES))
    times = {step_time_ms(everything, *changed(SMALL_STEP, RANK, rank)) for rank in (8, 16)}
    assert len(times) == 1


@pytest.mark.parametrize(("tokens", "tiles"), [(64, 1), (65, 2), (512, 8), (513, 9), (577, 10)])
def test_tiles_are_counted_after_padding_to_eight_tokens(tokens: int, tiles: int) -> None:
    """Padding ends at 512 tokens, where CUDA graphs end; tiles of 64 never start early by it."""
    step: Step = (tokens, 1, 0, 1, False, False, 0, 1, 16, 1)
    assert step_time_ms(coefficients(expand_tile_ms=1.0), *step) == 2 * tiles


@pytest.mark.parametrize(("slots", "cached", "looked_up"), [(8, 3, 3), (8, 8, 8), (8, 500, 8)])
def test_only_slots_that_can_be_used_are_searched(slots: int, cached: int, looked_up: int) -> None:
    """A replica with more slots than adapters searches those that hold one."""
    step: Step = (10, 2, 0, 1, True, True, 0, slots, 16, cached)
    assert step_time_ms(coefficients(slot_lookup_ms=1.0), *step) == (10 + 2) * looked_up


def test_without_lora_only_the_dense_terms_count() -> None:
    """No slots: no LoRA kernels, and no adapter can block a request."""
    everything = np.ones(len(COEFFICIENT_NAMES))
    step: Step = (600, 7, 900, 0, True, True, 4, 0, 16, 0)
    assert step_time_ms(everything, *step) == 1 + 600 + 7 + 900 + 1 + 88 + 900 + 7


def test_allocated_slots_without_an_adapter_cost_their_grid_only() -> None:
    """A base-model batch on a LoRA replica: no term of adapters, active LoRA or queue."""
    everything = np.ones(len(COEFFICIENT_NAMES))
    step: Step = (64, 2, 0, 0, False, False, 5, 3, 16, 9)
    assert step_time_ms(everything, *step) == 1 + 64 + 2 + 1 + 64 + 4 * 1 + 4 * 2


@st.composite
def steps(draw: st.DrawFn) -> Step:
    """Draw a step on which adapters may take all slots or not."""
    num_slots = draw(st.integers(1, 400))
    has_prefill = draw(st.booleans())
    num_adapters = draw(st.one_of(st.just(num_slots), st.integers(0, num_slots)))
    return (
        draw(st.integers(1, 4096)),
        draw(st.integers(1, 512)),
        draw(st.integers(0, 400_000)),
        num_adapters,
        has_prefill,
        has_prefill or draw(st.booleans()),
        draw(st.integers(0, 10_000)),
        num_slots,
        draw(st.sampled_from([8, 16, 32, 64])),
        num_adapters + draw(st.integers(0, 500)),
    )


def changed(step: Step, column: int, value: int) -> Step:
    """Return the step with another value in a column."""
    values = list(step)
    values[column] = value
    return tuple(values)  # type: ignore[return-value]  # of the same length and types


def test_waiting_requests_cost_time_only_where_adapters_take_all_slots() -> None:
    """A queue that waits for KV blocks or sequences is free; one that is looked through for adapters is not."""
    per_waiting = coefficients(blocked_waiting_ms=1.0)
    times = [
        step_time_ms(per_waiting, *step)
        for num_adapters, num_slots in ((3, 3), (2, 3), (0, 0))
        for step in [(9, 9, 90, num_adapters, False, False, 7, num_slots, 16, 3)]
    ]
    assert times == [7, 0, 0]


@given(
    profile=st.sampled_from(shipped_profiles()),
    step=steps(),
    column=st.sampled_from([REQUESTS, CONTEXT, ADAPTERS, WAITING, SLOTS, CACHED]),
    more=st.integers(1, 500),
)
def test_more_requests_context_adapters_waiting_slots_or_cache_never_take_less_time(
    profile: str, step: Step, column: int, more: int
) -> None:
    """All terms are non-negative, so whatever is added costs time or nothing.

    One exception: slots for which nobody waits any more; there the queue is left out.
    """
    array = load_profile(profile).step_time.as_array()
    if column == SLOTS and step[ADAPTERS] == step[SLOTS]:
        step = changed(step, WAITING, 0)
    most = step[SLOTS] if column == ADAPTERS else step[column] + more
    larger = changed(step, column, min(step[column] + more, most))
    assert step_time_ms(array, *larger) >= step_time_ms(array, *step) > 0


@given(profile=st.sampled_from(shipped_profiles()), step=steps())
def test_prefill_and_another_batch_never_take_less_time(profile: str, step: Step) -> None:
    """A prefill changes the batch, and both cost time."""
    array = load_profile(profile).step_time.as_array()
    plain, other, mixed = (
        step_time_ms(array, *step[:4], has_prefill, is_changed, *step[6:])
        for has_prefill, is_changed in ((False, False), (False, True), (True, True))
    )
    assert plain <= other <= mixed


@given(profile=st.sampled_from(shipped_profiles()), step=steps(), rank=st.sampled_from([16, 32, 64, 128, 256]))
def test_larger_maximum_rank_never_takes_less_time(profile: str, step: Step, rank: int) -> None:
    """Slots of a larger rank cost at least as much."""
    array = load_profile(profile).step_time.as_array()
    low, high = sorted([step[RANK], rank])
    assert step_time_ms(array, *changed(step, RANK, high)) >= step_time_ms(array, *changed(step, RANK, low))


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
    assert step_time_ms(array, *changed(step, TOKENS, high)) >= step_time_ms(array, *changed(step, TOKENS, low))
