"""Workloads from traces: rates, smoothed lengths, the load that is kept, and records for a problem file."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twin.derive import adapters_to_records, build_workload, derive_workload, trace_workload
from twin.errors import InputError
from twin.lengths import LengthDistribution
from twin.popularity import Assignment, CountedPopularity, UniformPopularity, ZipfPopularity, read_popularity
from twin.trace import Trace
from twin.traces import read_azure
from twin.workload import Adapter, Workload


def _trace(prompts: list[int], outputs: list[int] | None = None, labels: list[str] | None = None) -> Trace:
    """Return a trace with one request per second."""
    count = len(prompts)
    return Trace(
        np.arange(count, dtype=np.float64),
        np.array(prompts, dtype=np.int64),
        np.array(outputs or [10] * count, dtype=np.int64),
        float(count),
        None if labels is None else np.array(labels, dtype=np.object_),
    )


def _assignment(owners: list[int], num_adapters: int) -> Assignment:
    return Assignment(np.array(owners, dtype=np.int32), tuple(f"a{index}" for index in range(num_adapters)))


@st.composite
def _observed(draw: st.DrawFn) -> tuple[Trace, Assignment]:
    """Draw a trace whose requests belong to some of up to eight adapters."""
    num_adapters = draw(st.integers(1, 8))
    rows = draw(
        st.lists(
            st.tuples(st.integers(1, 20_000), st.integers(1, 2_000), st.integers(0, num_adapters - 1)),
            min_size=1,
            max_size=60,
        )
    )
    prompts, outputs, owners = (list(column) for column in zip(*rows, strict=True))
    return _trace(prompts, outputs), _assignment(owners, num_adapters)


@given(observed=_observed(), prior_requests=st.sampled_from([0.0, 0.5, 20.0, 1e9]))
def test_the_offered_load_is_that_of_the_trace(observed: tuple[Trace, Assignment], prior_requests: float) -> None:
    """However strongly lengths are smoothed, requests and tokens per second do not change."""
    trace, assignment = observed
    workload = derive_workload(trace, assignment, [8] * len(assignment.names), prior_requests=prior_requests)
    tokens = int(trace.prompt_tokens.sum() + trace.output_tokens.sum())
    assert sum(adapter.offered_tps for adapter in workload.adapters) == pytest.approx(
        tokens / trace.duration_s, rel=1e-9
    )
    assert sum(adapter.rate_rps for adapter in workload.adapters) == pytest.approx(trace.rate_rps)


@given(observed=_observed(), prior_requests=st.sampled_from([0.0, 0.5, 20.0]))
def test_the_mean_square_length_is_that_of_the_trace(observed: tuple[Trace, Assignment], prior_requests: float) -> None:
    """Smoothing moves spread between adapters, and neither makes nor loses any."""
    trace, assignment = observed
    workload = derive_workload(trace, assignment, [8] * len(assignment.names), prior_requests=prior_requests)
    derived = 0.0
    for adapter in workload.adapters:
        lengths = adapter.prompt_tokens
        assert lengths.mean is not None
        derived += adapter.rate_rps * trace.duration_s * (lengths.mean**2 + lengths.std**2)
    assert derived == pytest.approx(float(np.sum(trace.prompt_tokens.astype(np.float64) ** 2)), rel=1e-9)


def test_without_smoothing_adapters_keep_their_own_figures() -> None:
    """Mean, population standard deviation and maximum, by hand."""
    workload = derive_workload(_trace([10, 20, 30, 500]), _assignment([0, 0, 0, 1], 2), [8, 16], prior_requests=0.0)
    own = workload.adapters[0].prompt_tokens
    assert own.mean == pytest.approx(20.0)
    assert own.std == pytest.approx(np.std([10, 20, 30]))
    assert own.max == 30
    assert workload.adapters[1].prompt_tokens == LengthDistribution(mean=500.0, std=0.0, max=500)
    assert [adapter.rank for adapter in workload.adapters] == [8, 16]
    assert [adapter.rate_rps for adapter in workload.adapters] == [0.75, 0.25]
    assert [adapter.gap_cv for adapter in workload.adapters] == [1.0, 1.0]


def test_a_rare_adapter_is_drawn_to_the_others_and_a_frequent_one_is_not() -> None:
    """One request of 9,000 tokens is no evidence for a mean of 9,000; a thousand of 100 tokens are for 100."""
    workload = derive_workload(_trace([100] * 1000 + [9000]), _assignment([0] * 1000 + [1], 2), [8, 8])
    frequent, rare = (adapter.prompt_tokens.mean for adapter in workload.adapters)
    assert frequent is not None
    assert rare is not None
    assert frequent == pytest.approx(100, rel=0.1)
    assert rare < 5000


@given(observed=_observed())
def test_stronger_smoothing_brings_the_means_together(observed: tuple[Trace, Assignment]) -> None:
    """With endless prior requests all adapters have the same mean."""
    trace, assignment = observed
    workload = derive_workload(trace, assignment, [8] * len(assignment.names), prior_requests=1e12)
    means = [adapter.prompt_tokens.mean for adapter in workload.adapters]
    assert means == pytest.approx([float(trace.prompt_tokens.mean())] * len(means), rel=1e-6)


@pytest.mark.parametrize("prior_requests", [0.0, 20.0])
def test_an_adapter_without_requests_has_no_rate_and_the_common_lengths(prior_requests: float) -> None:
    """It still needs a place, and lengths that make sense when its rate is scaled by hand."""
    workload = derive_workload(_trace([10, 30]), _assignment([0, 0], 2), [8, 8], prior_requests=prior_requests)
    idle = workload.adapters[1]
    assert idle.rate_rps == 0.0
    assert idle.prompt_tokens.mean == pytest.approx(20.0)


@given(observed=_observed())
def test_a_replay_has_the_requests_of_the_trace(observed: tuple[Trace, Assignment]) -> None:
    """Same adapters as the derived workload, and every request as it was, to the nanosecond."""
    trace, assignment = observed
    ranks = [8] * len(assignment.names)
    workload = trace_workload(trace, assignment, ranks)
    assert workload.adapters == derive_workload(trace, assignment, ranks).adapters
    table = workload.requests(horizon_s=trace.duration_s)
    assert np.array_equal(table.arrival_ns, np.round(trace.arrival_s * 1e9))
    assert np.array_equal(table.prompt_tokens, trace.prompt_tokens)
    assert np.array_equal(table.output_tokens, trace.output_tokens)
    assert np.array_equal(table.adapter, assignment.adapter)


@pytest.mark.parametrize(
    ("owners", "ranks", "field"), [([0], [8, 8], "assignment"), ([0, 0], [8], "ranks"), ([0, 2], [8, 8], "assignment")]
)
def test_an_assignment_of_another_trace_is_refused(owners: list[int], ranks: list[int], field: str) -> None:
    """Replicating after assigning would pair requests with the wrong adapters."""
    with pytest.raises(InputError) as caught:
        derive_workload(_trace([1, 2]), _assignment(owners, 2), ranks)
    assert caught.value.field == field


@pytest.mark.parametrize("prior_requests", [-1.0, float("nan"), float("inf")])
def test_the_strength_of_smoothing_is_a_number_of_requests(prior_requests: float) -> None:
    """Negative evidence does not exist."""
    with pytest.raises(InputError, match="`prior_requests`"):
        derive_workload(_trace([1]), _assignment([0], 1), [8], prior_requests=prior_requests)


def test_a_trace_of_one_instant_has_no_rates() -> None:
    """The reader cannot refuse it, because lengths alone may be all that is wanted."""
    one = np.ones(1, dtype=np.int64)
    with pytest.raises(InputError, match="need its duration"):
        derive_workload(Trace(np.zeros(1), one, one, 0.0), _assignment([0], 1), [8])


def test_labels_of_the_trace_become_adapters() -> None:
    """Without a popularity, names and rates are the trace's own, also when it is replicated."""
    workload = build_workload(
        _trace([5] * 4, labels=["x", "y", "x", "x"]), ranks=[16], popularity=None, copies=2, jitter_s=1.0
    )
    assert [adapter.name for adapter in workload.adapters] == ["x", "y"]
    assert [adapter.rate_rps for adapter in workload.adapters] == [1.5, 0.5]


def test_a_popularity_spreads_the_requests() -> None:
    """A counted popularity has its own number of adapters; another needs one."""
    trace = _trace([5] * 400)
    counted = build_workload(trace, ranks=[8, 16], popularity=CountedPopularity((3.0, 1.0, 1.0), "counts.csv"))
    assert len(counted.adapters) == 3
    assert counted.adapters[0].rate_rps == pytest.approx(0.6, abs=0.1)
    with pytest.raises(InputError, match="number of adapters must be given"):
        build_workload(trace, ranks=[8], popularity=UniformPopularity())
    with pytest.raises(InputError, match="follows from the trace's own labels"):
        build_workload(trace, ranks=[8], popularity=None, num_adapters=3)


def test_a_replayed_workload_holds_the_replicated_requests() -> None:
    """The same recipe, for the second step of a plan: the check on the requests themselves."""
    trace = _trace([5] * 50)
    replayed = build_workload(
        trace, ranks=[8], popularity=ZipfPopularity(1.0), num_adapters=4, copies=3, is_replayed=True
    )
    assert replayed.trace is not None
    assert len(replayed.trace) == 150


def test_records_have_the_schemas_keys_in_order_and_six_digits() -> None:
    """What a problem file shows of an adapter; defaults are left out."""
    adapters = (
        Adapter(
            name="a",
            rank=8,
            rate_rps=0.123456789,
            prompt_tokens=LengthDistribution(mean=1234.56789, std=0.000123456789, max=5000),
            output_tokens=LengthDistribution(mean=7.0),
        ),
        Adapter(
            name="b",
            rank=16,
            rate_rps=0.0,
            prompt_tokens=LengthDistribution(quantiles=(1.0, 2.5, 3.3333333333)),
            output_tokens=LengthDistribution(mean=10, std=2, min=4),
            gap_cv=2.0,
            gap_law="lognormal",
        ),
    )
    first, second = adapters_to_records(Workload(adapters))
    assert list(first) == ["name", "rank", "rate_rps", "prompt_tokens", "output_tokens"]
    assert first["rate_rps"] == 0.123457
    assert first["prompt_tokens"] == {"mean": 1234.57, "std": 0.000123457, "max": 5000}
    assert first["output_tokens"] == {"mean": 7.0}
    assert second["prompt_tokens"] == {"quantiles": [1.0, 2.5, 3.33333]}
    assert second["output_tokens"] == {"mean": 10.0, "std": 2.0, "min": 4}
    assert (second["gap_cv"], second["gap_law"]) == (2.0, "lognormal")


@given(observed=_observed())
def test_records_make_adapters_again(observed: tuple[Trace, Assignment]) -> None:
    """Rounding never makes an adapter invalid, and changes its load by less than a part in 100,000."""
    trace, assignment = observed
    workload = derive_workload(trace, assignment, [32] * len(assignment.names))
    again = [Adapter.model_validate(record) for record in adapters_to_records(workload)]
    for before, after in zip(workload.adapters, again, strict=True):
        assert (before.name, before.rank) == (after.name, after.rank)
        assert after.offered_tps == pytest.approx(before.offered_tps, rel=1e-5)


def test_rounding_does_not_push_a_mean_over_its_maximum() -> None:
    """A mean next to the maximum has more digits than six."""
    lengths = LengthDistribution(mean=1234566.9, std=5.0, max=1234567)
    adapter = Adapter(name="a", rank=8, rate_rps=1.0, prompt_tokens=lengths, output_tokens=lengths)
    (record,) = adapters_to_records(Workload((adapter,)))
    assert record["prompt_tokens"]["mean"] == 1234567.0
    assert Adapter.model_validate(record).prompt_tokens.max == 1234567


def test_the_public_conversation_trace_keeps_its_load(data_dir: Path) -> None:
    """400 adapters by the public popularity curve, replicated seven times: seven times the trace's load."""
    trace = read_azure(data_dir / "workloads" / "azure_llm2023_conv.csv")
    popularity = read_popularity(data_dir / "workloads" / "alibaba_genai2026_lora_popularity.csv")
    workload = build_workload(trace, ranks=[8, 16, 32], popularity=popularity, num_adapters=400, copies=7)
    tokens = int(trace.prompt_tokens.sum() + trace.output_tokens.sum())
    offered = sum(adapter.offered_tps for adapter in workload.adapters)
    assert offered == pytest.approx(7 * tokens / trace.duration_s, rel=1e-9)
    drawn = workload.requests(horizon_s=3600.0)
    drawn_tps = float(drawn.prompt_tokens.sum(dtype=np.int64) + drawn.output_tokens.sum(dtype=np.int64)) / 3600.0
    assert drawn_tps == pytest.approx(offered, rel=0.02)
