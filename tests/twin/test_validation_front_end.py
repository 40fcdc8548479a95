"""The API server's stalls: what they delay, merge and hide."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.twin.handmade import coefficients, make_inputs
from twin.kernel import run_kernel
from twin.replica import NUM_GAP_BINS, ReplicaInputs, ReplicaTrace
from twin.validation.front_end import (
    FrontEnd,
    PageGrowth,
    Stalls,
    client_view,
    page_growth,
    poll_page,
    predict_stalls,
    through_stalls,
)
from twin.workload import NANOSECONDS


def _stalls(*windows: tuple[float, float]) -> Stalls:
    return Stalls(np.array([start for start, _ in windows]), np.array([length for _, length in windows]))


def _run(num_requests: int, num_adapters: int, horizon_s: float = 60.0) -> tuple[ReplicaInputs, ReplicaTrace]:
    """Return a replica under evenly spread requests of 20 output tokens, and what it does."""
    arrivals_s = np.linspace(0.0, 0.8 * horizon_s, num_requests)
    inputs = make_inputs(
        [(int(arrival_s * NANOSECONDS), index % num_adapters, 16, 20) for index, arrival_s in enumerate(arrivals_s)],
        hashes=range(num_adapters),
        num_slots=num_adapters,
        cpu_capacity=num_adapters,
        step_coefficients=coefficients(base_ms=20.0),
        horizon_ns=int(horizon_s * NANOSECONDS),
    )
    return inputs, run_kernel(inputs)


def test_times_within_a_stall_move_to_its_end_and_no_others() -> None:
    """A stall is a closed door: who comes meanwhile enters when it opens, in order."""
    stalls = _stalls((1.0, 0.5), (3.0, 0.25))
    times_ns = np.array([0.5, 1.0, 1.2, 1.5, 2.9, 3.1, 9.0]) * NANOSECONDS
    expected = np.array([0.5, 1.5, 1.5, 1.5, 2.9, 3.25, 9.0]) * NANOSECONDS
    assert expected.tolist() == stalls.delayed_ns(times_ns.astype(np.int64)).tolist()


@given(st.lists(st.tuples(st.floats(0.01, 5.0), st.floats(0.0, 2.0)), min_size=1, max_size=20), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_delays_keep_the_order_and_never_advance(gaps: list[tuple[float, float]], seed: int) -> None:
    """Nobody arrives before they were sent or overtakes another, whatever the stalls."""
    starts, now = [], 0.0
    for gap, length in gaps:
        now += gap
        starts.append((now, length))
        now += length
    times_ns = np.sort(np.random.default_rng(seed).integers(0, int(20 * NANOSECONDS), 50))
    delayed = _stalls(*starts).delayed_ns(times_ns)
    assert np.all(delayed >= times_ns)
    assert np.all(np.diff(delayed) >= 0)


def _lines(inputs: ReplicaInputs, trace: ReplicaTrace) -> set[tuple[frozenset[int], frozenset[int]]]:
    """Return the distinct (waiting, running) sets of adapters at the ends and starts of steps, by brute force."""
    horizon = inputs.horizon_ns
    first = np.where(trace.first_token_ns >= 0, trace.first_token_ns, horizon)
    finish = np.where(trace.finish_ns >= 0, trace.finish_ns, horizon)
    times = {*trace.finish_ns.tolist(), *trace.first_token_ns.tolist(), *trace.first_scheduled_ns.tolist()} - {-1}

    def names(start: NDArray[np.int64], end: NDArray[np.int64], now: int) -> frozenset[int]:
        return frozenset(inputs.adapter[(start <= now) & (now < end)].tolist())

    return {(names(inputs.arrival_ns, first, now), names(first, finish, now)) for now in sorted(times)}


@pytest.mark.parametrize("num_adapters", [1, 3, 12])
def test_stalls_grow_by_the_distinct_sets_of_names(num_adapters: int) -> None:
    """With a line's time and no time per name, the last stall is as long as all lines written so far."""
    inputs, trace = _run(40, num_adapters)
    stalls = predict_stalls(inputs, trace, FrontEnd(poll_interval_s=0.5, label_s=0.001, label_name_s=0.0))
    assert stalls.duration_s[0] <= 0.001
    assert np.all(np.diff(stalls.duration_s) >= 0.0)
    assert 0.001 * len(_lines(inputs, trace)) == pytest.approx(stalls.duration_s[-1], abs=0.0011)


def test_names_make_lines_longer() -> None:
    """A line costs in proportion to the names in it: with one adapter there is one name at most in each label."""
    inputs, trace = _run(40, 1)
    without = predict_stalls(inputs, trace, FrontEnd(poll_interval_s=0.5, label_s=0.001, label_name_s=0.0))
    with_names = predict_stalls(inputs, trace, FrontEnd(poll_interval_s=0.5, label_s=0.001, label_name_s=0.001))
    assert without.duration_s[-1] < with_names.duration_s[-1] <= 3.0 * without.duration_s[-1]


@pytest.mark.parametrize("num_adapters", [1, 3, 12])
def test_the_page_has_a_line_per_distinct_set_of_names(num_adapters: int) -> None:
    """All lines that the brute force finds are written within the run, none twice."""
    inputs, trace = _run(40, num_adapters)
    growth = page_growth(inputs, trace)
    assert len(_lines(inputs, trace)) == growth.new_lines.sum()
    assert growth.names.max() <= 2 * num_adapters


def test_the_next_poll_waits_for_the_answer() -> None:
    """A page that never grows takes as long every time, and polls start an answer and a wait apart."""
    growth = PageGrowth(100 * NANOSECONDS, np.array([0, 100]) * NANOSECONDS, np.array([10, 0]), np.array([5, 5]))
    stalls = poll_page(growth, FrontEnd(poll_interval_s=2.0, label_s=0.03, label_name_s=0.004))
    assert stalls.duration_s == pytest.approx(np.full(40, 0.5))
    assert stalls.start_s == pytest.approx(2.5 * np.arange(40))


def test_a_server_that_nobody_polls_hides_nothing() -> None:
    """Without stalls, the client sees the engine's gaps, and the first token the overhead later."""
    inputs, trace = _run(30, 3)
    seen = client_view(trace, inputs.arrival_ns, _stalls((0.0, 0.0)), FrontEnd(overhead_s=0.0))
    done = trace.finish_ns >= 0
    assert seen.itl_mean_ms == pytest.approx(trace.adapter_gap_sum_ns.sum() / trace.gap_histogram.sum() / 1e6)
    assert seen.ttft_p50_ms == pytest.approx(np.median((trace.first_token_ns - inputs.arrival_ns)[done]) / 1e6)


def test_merged_tokens_make_gaps_fewer_and_longer_but_not_in_large_batches() -> None:
    """Up to 128 requests a stall's tokens come as one chunk; with more they come one by one, quickly."""
    inputs, trace = _run(30, 3)
    stalls = _stalls(*((2.0 * index, 1.0) for index in range(20)))
    direct = client_view(trace, inputs.arrival_ns, _stalls((0.0, 0.0)), FrontEnd())
    merged = client_view(trace, inputs.arrival_ns, stalls, FrontEnd(poll_interval_s=1.0))
    quick = client_view(trace, inputs.arrival_ns, stalls, FrontEnd(poll_interval_s=1.0, outputs_per_slice=0))
    assert direct.itl_mean_ms is not None
    assert merged.itl_mean_ms is not None
    assert merged.itl_mean_ms > 1.3 * direct.itl_mean_ms
    assert quick.itl_mean_ms == pytest.approx(direct.itl_mean_ms)
    assert direct.itl_p50_ms is not None
    assert quick.itl_p50_ms is not None
    assert quick.itl_p50_ms <= direct.itl_p50_ms


def test_nothing_generated_has_no_latency() -> None:
    """A run without tokens has nothing to show, and no stalls beyond the first poll of nothing."""
    inputs, trace = _run(5, 1)
    empty = replace(
        trace,
        finish_ns=np.full_like(trace.finish_ns, -1),
        gap_histogram=np.zeros(NUM_GAP_BINS, dtype=np.int64),
        adapter_gap_sum_ns=np.zeros_like(trace.adapter_gap_sum_ns),
    )
    seen = client_view(empty, inputs.arrival_ns, _stalls((0.0, 0.0)), FrontEnd())
    assert (seen.itl_mean_ms, seen.itl_p50_ms, seen.ttft_p50_ms) == (None, None, None)


def test_requests_come_through_the_door_in_order() -> None:
    """The engine's inputs keep all requests and their order."""
    inputs, _ = _run(30, 3)
    passed = through_stalls(inputs, _stalls((0.0, 2.0), (5.0, 1.0)))
    assert len(inputs.arrival_ns) == len(passed.arrival_ns)
    assert np.all(np.diff(passed.arrival_ns) >= 0)
    assert np.all(passed.arrival_ns >= inputs.arrival_ns)
