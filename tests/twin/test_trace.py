"""The trace as a value: its checks, windows, rate scaling and replication."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.errors import InputError
from twin.trace import Trace, observed_duration_s, purpose_generator, replicate


def _trace(arrivals: list[float], *, duration_s: float, labels: list[str] | None = None) -> Trace:
    """Return a trace whose request i has i + 1 prompt tokens and 2 output tokens."""
    return Trace(
        np.array(arrivals, dtype=np.float64),
        np.arange(1, len(arrivals) + 1, dtype=np.int64),
        np.full(len(arrivals), 2, dtype=np.int64),
        duration_s,
        None if labels is None else np.array(labels, dtype=np.object_),
    )


def test_columns_of_different_lengths_are_refused() -> None:
    """A column that is cut off would otherwise be paired with the wrong requests."""
    with pytest.raises(InputError, match=r"one length\. Got \[1, 2\]"):
        Trace(np.zeros(2), np.ones(2, np.int64), np.ones(1, np.int64), 1.0)
    with pytest.raises(InputError, match="one length"):
        _trace([0.0, 0.5], duration_s=1.0, labels=["a"])


def test_a_trace_without_requests_is_refused() -> None:
    """Rates and lengths of nothing are undefined."""
    with pytest.raises(InputError, match="at least one request"):
        _trace([], duration_s=1.0)


@pytest.mark.parametrize("arrivals", [[1.0, 0.5], [-1.0, 0.0], [0.0, float("nan")], [0.0, float("inf")]])
def test_times_must_be_sorted_finite_and_not_negative(arrivals: list[float]) -> None:
    """Whoever builds a trace by hand gets the same care as a file."""
    with pytest.raises(InputError, match="finite, not negative and sorted") as caught:
        _trace(arrivals, duration_s=10.0)
    assert caught.value.field == "arrival_s"


@pytest.mark.parametrize(
    ("duration_s", "rule"), [(float("nan"), "finite"), (-1.0, "not negative"), (0.5, "above the last arrival")]
)
def test_the_duration_must_cover_the_requests(duration_s: float, rule: str) -> None:
    """A duration below the last arrival would overstate every rate."""
    with pytest.raises(InputError, match=rule) as caught:
        _trace([0.0, 0.5], duration_s=duration_s)
    assert caught.value.field == "duration_s"


@pytest.mark.parametrize("tokens", [0, -4, 2**31])
def test_token_counts_must_fit_a_request(tokens: int) -> None:
    """The message names the request by its place, counted from 1."""
    with pytest.raises(InputError, match=rf"Got {tokens} \(request 2\)") as caught:
        Trace(np.array([0.0, 1.0]), np.array([5, tokens]), np.array([1, 1]), 2.0)
    assert (caught.value.field, caught.value.value) == ("prompt_tokens", tokens)


def test_observed_duration_adds_one_mean_gap() -> None:
    """Five requests a second apart cover four gaps; the rate of such a stream is one per second, not 5 / 4."""
    assert observed_duration_s(np.arange(5.0)) == 5.0
    assert observed_duration_s(np.zeros(1)) == 0.0


def test_the_rate_of_an_instant_is_refused() -> None:
    """One request says nothing about a rate; dividing by zero says it wrongly."""
    with pytest.raises(InputError, match="need its duration"):
        _ = _trace([0.0], duration_s=0.0).rate_rps


def test_a_window_keeps_its_requests_and_counts_from_its_start() -> None:
    """The start is inside, the end is outside, labels stay with their requests."""
    window = _trace([0.0, 1.0, 2.0, 3.0], duration_s=4.0, labels=list("abcd")).between(1.0, 3.0)
    assert window.arrival_s.tolist() == [0.0, 1.0]
    assert window.prompt_tokens.tolist() == [2, 3]
    assert window.adapter is not None
    assert window.adapter.tolist() == ["b", "c"]
    assert (window.duration_s, window.rate_rps) == (2.0, 1.0)


@pytest.mark.parametrize(("start_s", "end_s"), [(-1.0, 2.0), (2.0, 2.0), (3.0, 1.0), (0.0, 4.5), (float("nan"), 2.0)])
def test_a_window_outside_the_trace_is_refused(start_s: float, end_s: float) -> None:
    """Silence after the end of a trace is not an observation of silence."""
    with pytest.raises(InputError, match="0 <= start < end <= 4 s"):
        _trace([0.0, 3.0], duration_s=4.0).between(start_s, end_s)


def test_a_window_without_requests_is_refused() -> None:
    """The message names the window, so that it can be moved."""
    with pytest.raises(InputError, match="none between 1 and 2 s"):
        _trace([0.0, 3.0], duration_s=4.0).between(1.0, 2.0)


@given(factor=st.floats(0.01, 100.0), gaps=st.lists(st.floats(0.0, 50.0), min_size=1, max_size=20))
def test_scaling_multiplies_the_rate(factor: float, gaps: list[float]) -> None:
    """Only time changes: the same requests, `factor` times as fast."""
    times = np.cumsum(gaps)
    trace = _trace((times - times[0]).tolist(), duration_s=float(times[-1]) + 1.0)
    scaled = trace.scale_rate(factor)
    assert scaled.rate_rps == pytest.approx(factor * trace.rate_rps)
    assert scaled.prompt_tokens.tolist() == trace.prompt_tokens.tolist()


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_factor_must_be_positive(factor: float) -> None:
    """A factor of zero would ask for an endless trace."""
    with pytest.raises(InputError, match="rate factor"):
        _trace([0.0, 1.0], duration_s=2.0).scale_rate(factor)


@given(
    copies=st.integers(1, 5), jitter_s=st.floats(0.0, 20.0), seed=st.integers(0, 2**32), num_requests=st.integers(2, 40)
)
def test_replication_repeats_every_request_inside_the_trace(
    copies: int, jitter_s: float, seed: int, num_requests: int
) -> None:
    """Each request occurs `copies` times, in order of time, within the span, with its own label."""
    arrivals = np.linspace(0.0, 19.0, num_requests)
    labels = [f"adapter-{position}" for position in range(1, num_requests + 1)]
    trace = _trace(arrivals.tolist(), duration_s=20.0, labels=labels)
    result = replicate(trace, copies=copies, jitter_s=jitter_s, seed=seed)
    counts = np.bincount(result.prompt_tokens, minlength=num_requests + 1)
    assert counts.tolist() == [0] + [copies] * num_requests
    assert result.duration_s == trace.duration_s
    assert result.adapter is not None
    assert all(label == f"adapter-{tokens}" for label, tokens in zip(result.adapter, result.prompt_tokens, strict=True))


def test_shifts_stay_within_the_jitter_and_do_not_pile_up_at_the_ends() -> None:
    """A dense stream stays even up to its ends: clipping would put half of the jitter's share on one instant."""
    trace = _trace(np.arange(0.0, 100.0, 0.01).tolist(), duration_s=100.0)
    result = replicate(trace, copies=20, jitter_s=5.0, seed=3)
    original_s = (result.prompt_tokens - 1) * 0.01
    reflected = np.minimum(result.arrival_s + original_s, 200.0 - result.arrival_s - original_s)
    assert np.all((np.abs(result.arrival_s - original_s) <= 5.0) | (reflected <= 5.0))
    counts, _ = np.histogram(result.arrival_s, bins=100, range=(0.0, 100.0))
    assert np.all(np.abs(counts - 2000) < 6 * np.sqrt(2000))
    assert np.count_nonzero(result.arrival_s == 0.0) == 20 - 19


def test_one_copy_is_the_trace_itself() -> None:
    """Jitter is for the copies; a single one needs none."""
    trace = _trace([0.0, 1.0], duration_s=2.0)
    assert replicate(trace, copies=1) is trace


def test_replication_repeats_under_its_seed() -> None:
    """Same seed, same traffic; another seed, another."""
    trace = _trace(np.arange(100.0).tolist(), duration_s=100.0)
    first, same, other = (replicate(trace, copies=3, seed=seed).arrival_s for seed in (7, 7, 8))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("copies", "jitter_s", "field"),
    [(0, 5.0, "copies"), (2, -1.0, "jitter_s"), (2, float("nan"), "jitter_s"), (2, 11.0, "jitter_s")],
)
def test_replication_refuses_impossible_arguments(copies: int, jitter_s: float, field: str) -> None:
    """A jitter beyond the trace cannot be reflected into it."""
    with pytest.raises(InputError) as caught:
        replicate(_trace([0.0, 1.0], duration_s=10.0), copies=copies, jitter_s=jitter_s)
    assert caught.value.field == field


def test_purposes_draw_independently() -> None:
    """With one stream for two purposes, jitter and adapter choice would move together."""
    first, second = (purpose_generator(purpose, 0).random(2000) for purpose in ("replicate", "assign"))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1


def test_a_negative_seed_is_refused() -> None:
    """Numpy's own message would not say which setting is meant."""
    with pytest.raises(InputError, match="`seed` must not be negative"):
        purpose_generator("assign", -1)
