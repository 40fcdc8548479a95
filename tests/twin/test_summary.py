"""Summaries of traces and workloads."""

import json

import numpy as np
import pytest

from twin.errors import InputError
from twin.lengths import LengthDistribution
from twin.summary import LengthSummary, summarise_trace, summarise_workload
from twin.trace import Trace
from twin.workload import Adapter, RequestTable, Workload


def _adapter(name: str, rate_rps: float, rank: int = 8) -> Adapter:
    return Adapter.model_validate(
        {
            "name": name,
            "rank": rank,
            "rate_rps": rate_rps,
            "prompt_tokens": LengthDistribution.constant(100),
            "output_tokens": LengthDistribution.constant(50),
        }
    )


def _trace(labels: list[str] | None) -> Trace:
    prompts = np.arange(1, 21, dtype=np.int64)
    adapter = None if labels is None else np.array(labels, dtype=np.object_)
    return Trace(np.arange(20.0), prompts, np.full(20, 3, dtype=np.int64), 40.0, adapter)


def test_a_trace_is_counted() -> None:
    """Twenty requests of 1 to 20 prompt tokens in forty seconds."""
    summary = summarise_trace(_trace(None))
    assert (summary.source, summary.num_requests, summary.duration_s, summary.rate_rps) == ("trace", 20, 40.0, 0.5)
    assert summary.offered_tps == (210 + 60) / 40
    assert summary.output_tokens == LengthSummary(mean=3.0, p50=3.0, p95=3.0, max=3)
    assert summary.prompt_tokens is not None
    assert summary.prompt_tokens.p95 == pytest.approx(19.05)
    assert (summary.num_adapters, summary.top_10_share, summary.adapters_per_rank) == (None, None, ())


def test_the_share_of_the_top_ten_needs_labels() -> None:
    """Eleven adapters: ten with one or two requests are the top, one is not."""
    labels = [f"a{index % 11}" for index in range(20)]
    summary = summarise_trace(_trace(labels))
    assert (summary.num_adapters, summary.top_10_share) == (11, 19 / 20)


def test_a_drawn_workload_is_counted_over_its_horizon() -> None:
    """Rates, ranks and load of what arrives; the requests are those that any engine would get."""
    workload = Workload((_adapter("a", 3.0, 16), _adapter("b", 1.0), _adapter("c", 0.0)))
    summary = summarise_workload(workload, horizon_s=1000.0, seed=1)
    assert summary.source == "drawn"
    assert summary.num_requests == len(workload.requests(horizon_s=1000.0, seed=1))
    assert summary.rate_rps == pytest.approx(4.0, rel=0.1)
    assert summary.offered_tps == pytest.approx(150 * summary.rate_rps)
    assert (summary.num_adapters, summary.top_10_share) == (3, 1.0)
    assert summary.adapters_per_rank == ((8, 2), (16, 1))


def test_a_replayed_workload_is_counted_to_its_end() -> None:
    """The last request is inside the summary's own horizon."""
    table = RequestTable(
        np.array([0, 1, 2], dtype=np.int64) * 10**9,
        np.zeros(3, dtype=np.int32),
        np.full(3, 7, dtype=np.int32),
        np.full(3, 2, dtype=np.int32),
    )
    summary = summarise_workload(Workload((_adapter("a", 1.0),), trace=table))
    assert (summary.source, summary.num_requests, summary.duration_s, summary.rate_rps) == ("trace", 3, 3.0, 1.0)


@pytest.mark.parametrize("trace", [None, RequestTable.empty()])
def test_a_silent_workload_has_no_lengths(trace: RequestTable | None) -> None:
    """Nothing arrives: no mean to speak of, and no division by zero."""
    summary = summarise_workload(Workload((_adapter("a", 0.0),), trace=trace))
    assert (summary.num_requests, summary.rate_rps, summary.offered_tps) == (0, 0.0, 0.0)
    assert (summary.prompt_tokens, summary.output_tokens, summary.top_10_share) == (None, None, None)


@pytest.mark.parametrize("horizon_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_horizon_must_be_positive(horizon_s: float) -> None:
    """An endless horizon would draw endless requests."""
    with pytest.raises(InputError, match="`horizon_s`"):
        summarise_workload(Workload((_adapter("a", 1.0),)), horizon_s=horizon_s)


def test_a_summary_is_plain_values() -> None:
    """It goes into JSON as it is."""
    summary = summarise_workload(Workload((_adapter("a", 1.0, 16),)), horizon_s=100.0)
    content = json.loads(json.dumps(summary.to_dict()))
    assert content["adapters_per_rank"] == {"16": 1}
    assert content["prompt_tokens"]["max"] == 100
