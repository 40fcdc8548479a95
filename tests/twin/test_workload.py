"""Workloads: what arrives, when, for whom; and what is refused."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from twin.errors import InputError
from twin.lengths import LengthDistribution
from twin.workload import Adapter, Phase, RequestTable, Workload, adapter_generator

SECOND_NS = 10**9
PROMPTS = LengthDistribution(mean=200.0, std=150.0, max=1000)
OUTPUTS = LengthDistribution(mean=50.0, std=20.0, max=400)


def _adapter(name: str = "a", rate_rps: float = 1.0, **fields: object) -> Adapter:
    return Adapter.model_validate(
        {"name": name, "rank": 8, "rate_rps": rate_rps, "prompt_tokens": PROMPTS, "output_tokens": OUTPUTS, **fields}
    )


def _table(arrival_ns: list[int], adapter: list[int] | None = None, **columns: list[int]) -> RequestTable:
    count = len(arrival_ns)
    return RequestTable(
        np.array(arrival_ns, dtype=np.int64),
        np.array(adapter if adapter is not None else [0] * count, dtype=np.int32),
        np.array(columns.get("prompt_tokens", [5] * count), dtype=np.int32),
        np.array(columns.get("output_tokens", [3] * count), dtype=np.int32),
    )


def _requests_of(table: RequestTable, index: int) -> list[tuple[int, int, int]]:
    own = table.select(table.adapter == index)
    columns = (own.arrival_ns.tolist(), own.prompt_tokens.tolist(), own.output_tokens.tolist())
    return list(zip(*columns, strict=True))


def _counts(workload: Workload, *, horizon_s: float, num_seeds: int) -> list[int]:
    return [len(workload.requests(horizon_s=horizon_s, seed=seed)) for seed in range(num_seeds)]


# --- adapters ---------------------------------------------------------------------------------------------------------


def test_the_offered_load_is_rate_times_tokens() -> None:
    """Prompt and output tokens count alike."""
    assert _adapter(rate_rps=0.5).offered_tps == pytest.approx(0.5 * 250.0)


@pytest.mark.parametrize(
    ("fields", "location"),
    [
        ({"name": ""}, "name"),
        ({"rank": 12}, "rank"),
        ({"rate_rps": -1.0}, "rate_rps"),
        ({"rate_rps": math.nan}, "rate_rps"),
        ({"rate_rps": math.inf}, "rate_rps"),
        ({"gap_cv": -0.5}, "gap_cv"),
        ({"gap_cv": 21.0}, "gap_cv"),
        ({"gap_law": "weibull"}, "gap_law"),
        ({"prompt_tokens": {"mean": 0}}, "prompt_tokens"),
        ({"rate": 3.0}, "rate"),
    ],
)
def test_what_is_no_adapter_is_refused_by_its_field(fields: dict[str, object], location: str) -> None:
    """The boundary turns the location into a place in the file."""
    with pytest.raises(ValidationError) as caught:
        _adapter(**fields)  # type: ignore[arg-type]  # wrong types are what is tested
    assert caught.value.errors()[0]["loc"][0] == location


# --- request tables ---------------------------------------------------------------------------------------------------


def test_columns_must_have_one_length() -> None:
    """A short column would shift lengths to other requests."""
    with pytest.raises(InputError, match="one length"):
        _table([0, 1], adapter=[0])


@pytest.mark.parametrize("arrival_ns", [[5, 4], [-1, 0]])
def test_arrivals_must_be_sorted_and_not_negative(arrival_ns: list[int]) -> None:
    """Engines walk the table once."""
    with pytest.raises(InputError, match="sorted and not negative") as caught:
        _table(arrival_ns)
    assert caught.value.field == "arrival_ns"


@pytest.mark.parametrize("field", ["prompt_tokens", "output_tokens"])
def test_requests_must_have_tokens(field: str) -> None:
    """The message names the request."""
    with pytest.raises(InputError, match=r"Got 0 \(request 1\)") as caught:
        _table([0, 1, 2], **{field: [4, 0, 4]})
    assert (caught.value.field, caught.value.value) == (field, 0)


def test_an_adapter_index_is_at_least_minus_one() -> None:
    """-1 is the base model; below it, numpy would count from the end."""
    assert len(_table([0], adapter=[-1])) == 1
    with pytest.raises(InputError, match=r"`adapter` must be at least -1\. Got -2 \(request 1\)") as caught:
        _table([0, 1], adapter=[0, -2])
    assert caught.value.field == "adapter"


def test_a_horizon_cuts_the_table_before_it() -> None:
    """The end is outside: two runs of an hour are not one of two hours with a request counted twice."""
    table = _table([0, SECOND_NS - 1, SECOND_NS, 2 * SECOND_NS])
    assert table.until(1.0).arrival_ns.tolist() == [0, SECOND_NS - 1]
    assert len(RequestTable.empty().until(1.0)) == 0


# --- workloads --------------------------------------------------------------------------------------------------------


def test_a_workload_needs_adapters() -> None:
    """There is nothing to place."""
    with pytest.raises(InputError, match="at least one adapter"):
        Workload(())


def test_adapter_names_must_be_unique() -> None:
    """The message names both places."""
    with pytest.raises(InputError, match="'a' is the name of adapters 0 and 2") as caught:
        Workload((_adapter("a"), _adapter("b"), _adapter("a")))
    assert (caught.value.field, caught.value.value) == ("adapters.2.name", "a")


@pytest.mark.parametrize("starts", [[10.0, 5.0], [5.0, 5.0]])
def test_phases_must_follow_each_other(starts: list[float]) -> None:
    """Two phases at one time would contradict each other."""
    with pytest.raises(InputError, match="strictly increasing"):
        Workload((_adapter(),), phases=tuple(Phase(start_s=start, rate_scale=1.0) for start in starts))


def test_a_trace_names_adapters_of_the_workload_only() -> None:
    """An index beyond the adapters would fail deep inside an engine."""
    with pytest.raises(InputError, match="adapters of the workload only"):
        Workload((_adapter(),), trace=_table([0], adapter=[1]))


@given(
    rates=st.lists(st.floats(0.0, 5.0), min_size=1, max_size=6),
    horizon_s=st.floats(0.1, 50.0),
    seed=st.integers(0, 2**32),
)
def test_requests_are_a_valid_table_within_the_horizon(rates: list[float], horizon_s: float, seed: int) -> None:
    """Sorted, inside ``[0, horizon)``, lengths within their bounds, the same under the same seed."""
    workload = Workload(tuple(_adapter(f"a{index}", rate) for index, rate in enumerate(rates)))
    table = workload.requests(horizon_s=horizon_s, seed=seed)
    if len(table):
        assert table.arrival_ns[0] >= 0
        assert table.arrival_ns[-1] < round(horizon_s * SECOND_NS)
        assert np.all(np.diff(table.arrival_ns) >= 0)
        assert table.prompt_tokens.max() <= 1000
        assert 0 <= table.adapter.min() <= table.adapter.max() < len(rates)
    again = workload.requests(horizon_s=horizon_s, seed=seed)
    assert np.array_equal(table.arrival_ns, again.arrival_ns)
    assert np.array_equal(table.output_tokens, again.output_tokens)


@given(
    rates=st.lists(st.floats(0.0, 5.0), min_size=2, max_size=6),
    order=st.randoms(use_true_random=False),
    laws=st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=6, max_size=6),
)
def test_an_adapter_has_the_same_requests_in_any_company(rates: list[float], order: object, laws: list[float]) -> None:
    """Placements are compared on the same traffic: who else is on the GPU, and in which order, does not matter."""
    workload = Workload(
        tuple(_adapter(f"a{index}", rate, gap_cv=laws[index]) for index, rate in enumerate(rates)),
        phases=(Phase(start_s=5.0, rate_scale=2.0),),
    )
    chosen = list(range(len(rates)))
    order.shuffle(chosen)  # type: ignore[attr-defined]
    chosen = chosen[: max(1, len(chosen) // 2)]
    whole = workload.requests(horizon_s=20.0, seed=9)
    part = workload.subset(chosen).requests(horizon_s=20.0, seed=9)
    for position, index in enumerate(chosen):
        assert _requests_of(part, position) == _requests_of(whole, index)


def test_the_subset_of_a_trace_keeps_its_requests() -> None:
    """Renumbered in the order asked for; requests of the base model and of others stay behind."""
    adapters = tuple(_adapter(name) for name in "abc")
    trace = _table([0, 1, 2, 3, 4], adapter=[0, 1, 2, -1, 0], prompt_tokens=[10, 11, 12, 13, 14])
    part = Workload(adapters, trace=trace).subset([2, 0])
    assert [adapter.name for adapter in part.adapters] == ["c", "a"]
    assert part.trace is not None
    assert part.trace.adapter.tolist() == [1, 0, 1]
    assert part.trace.prompt_tokens.tolist() == [10, 12, 14]


def test_a_trace_is_replayed_whatever_the_seed() -> None:
    """The rates of the adapters then only describe it."""
    workload = Workload((_adapter(rate_rps=100.0),), trace=_table([0, 3 * SECOND_NS]))
    assert workload.requests(horizon_s=10.0, seed=5).arrival_ns.tolist() == [0, 3 * SECOND_NS]
    assert len(workload.requests(horizon_s=3.0)) == 1


def test_seeds_and_names_give_independent_traffic() -> None:
    """Two adapters of one rate must not burst together."""
    draws = [adapter_generator(name, seed).random(1000) for name, seed in [("a", 0), ("b", 0), ("a", 1)]]
    correlations = np.asarray(np.corrcoef(draws))
    assert np.all(np.abs(correlations - np.eye(3)) < 0.15)


# --- arrivals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gap_law", ["gamma", "lognormal"])
@pytest.mark.parametrize("gap_cv", [0.0, 0.3, 1.0, 2.0, 5.0])
def test_the_rate_is_kept_whatever_the_gaps(gap_cv: float, gap_law: str) -> None:
    """Starting at an arrival would add (cv^2 - 1) / 2 requests; starting inside a gap adds none."""
    workload = Workload((_adapter(rate_rps=0.5, gap_cv=gap_cv, gap_law=gap_law),))
    counts = _counts(workload, horizon_s=200.0, num_seeds=1000)
    error = max(float(np.std(counts)), 0.5) / math.sqrt(len(counts))
    assert abs(float(np.mean(counts)) - 100.0) < 5 * error


@pytest.mark.parametrize("gap_law", ["gamma", "lognormal"])
@pytest.mark.parametrize("gap_cv", [0.3, 0.7, 1.0, 2.0])
def test_the_gaps_have_their_coefficient_of_variation(gap_cv: float, gap_law: str) -> None:
    """Burstiness is what the law is for."""
    workload = Workload((_adapter(rate_rps=2.0, gap_cv=gap_cv, gap_law=gap_law),))
    gaps_s = np.diff(workload.requests(horizon_s=50_000.0, seed=4).arrival_ns) / SECOND_NS
    assert gaps_s.mean() == pytest.approx(0.5, rel=0.05)
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(gap_cv, rel=0.1)


def test_regular_gaps_are_all_alike() -> None:
    """Only the first arrival is left to chance."""
    arrivals = Workload((_adapter(rate_rps=4.0, gap_cv=0.0),)).requests(horizon_s=100.0, seed=1).arrival_ns
    assert np.all(np.abs(np.diff(arrivals) - SECOND_NS // 4) <= 1)
    assert len(arrivals) in {399, 400, 401}


@pytest.mark.parametrize("gap_cv", [1e-200, 1e-9])
def test_almost_regular_gaps_are_drawn_too(gap_cv: float) -> None:
    """A tiny variation must not overflow its law's shape."""
    arrivals = Workload((_adapter(rate_rps=4.0, gap_cv=gap_cv),)).requests(horizon_s=100.0, seed=1).arrival_ns
    assert np.all(np.abs(np.diff(arrivals) - SECOND_NS // 4) <= 1000)


def test_counts_of_poisson_arrivals_have_their_variance() -> None:
    """The variance of a Poisson count is its mean."""
    counts = _counts(Workload((_adapter(rate_rps=1.0),)), horizon_s=50.0, num_seeds=2000)
    assert np.mean(counts) == pytest.approx(50.0, rel=0.02)
    assert np.var(counts) == pytest.approx(50.0, rel=0.15)


@pytest.mark.parametrize("gap_cv", [0.0, 1.0, 3.0])
def test_phases_rescale_the_rates(gap_cv: float) -> None:
    """Before the first phase the scale is 1; a phase of 0 is silent; each lasts until the next."""
    phases = tuple(
        Phase(start_s=start, rate_scale=scale) for start, scale in [(100.0, 3.0), (200.0, 0.0), (300.0, 0.5)]
    )
    workload = Workload((_adapter(rate_rps=1.0, gap_cv=gap_cv),), phases=phases)
    counts = np.zeros(4)
    num_seeds = 300
    for seed in range(num_seeds):
        arrivals_s = workload.requests(horizon_s=400.0, seed=seed).arrival_ns / SECOND_NS
        counts += np.histogram(arrivals_s, bins=[0, 100, 200, 300, 400])[0]
    assert counts / num_seeds == pytest.approx([100.0, 300.0, 0.0, 50.0], rel=0.07)


def test_a_phase_at_the_start_and_one_beyond_the_end() -> None:
    """The first replaces the scale of 1 at once, the second never comes."""
    phases = (Phase(start_s=0.0, rate_scale=2.0), Phase(start_s=1000.0, rate_scale=0.0))
    counts = _counts(Workload((_adapter(rate_rps=1.0),), phases=phases), horizon_s=100.0, num_seeds=300)
    assert np.mean(counts) == pytest.approx(200.0, rel=0.02)


@pytest.mark.parametrize(
    "silence",
    [
        lambda: Workload((_adapter(rate_rps=0.0),)),
        lambda: Workload((_adapter(),), phases=(Phase(start_s=0.0, rate_scale=0.0),)),
        lambda: Workload((_adapter(),), trace=RequestTable.empty()),
    ],
)
def test_silence_is_an_empty_table(silence: Callable[[], Workload]) -> None:
    """No requests are no error: an adapter may rest for an hour."""
    assert len(silence().requests(horizon_s=100.0)) == 0


def test_lengths_have_the_adapters_own_means() -> None:
    """Each adapter draws from its own distributions."""
    short = _adapter("short", 20.0, prompt_tokens={"mean": 10, "std": 5, "max": 50})
    table = Workload((_adapter("long", 20.0), short)).requests(horizon_s=1000.0, seed=2)
    means = [table.prompt_tokens[table.adapter == index].mean() for index in (0, 1)]
    assert means == pytest.approx([200.0, 10.0], rel=0.03)
    assert table.output_tokens.mean() == pytest.approx(50.0, rel=0.02)
