"""Traffic that is drawn once is the traffic that a workload draws each time."""

import numpy as np
import pytest

from twin.drawn_traffic import DrawnTraffic
from twin.lengths import LengthDistribution
from twin.workload import Adapter, Phase, RequestTable, Workload

LENGTHS = LengthDistribution(mean=50, std=40, max=400)
WORKLOAD = Workload(
    tuple(
        Adapter(name=f"a{index}", rank=8, rate_rps=rate_rps, prompt_tokens=LENGTHS, output_tokens=LENGTHS, gap_cv=cv)
        for index, (rate_rps, cv) in enumerate([(1.0, 1.0), (0.5, 3.0), (0.0, 1.0), (2.0, 0.0)])
    ),
    phases=(Phase(start_s=30.0, rate_scale=2.0),),
)


def _assert_equal(expected: RequestTable, actual: RequestTable) -> None:
    for name in ("arrival_ns", "adapter", "prompt_tokens", "output_tokens"):
        assert getattr(expected, name).dtype == getattr(actual, name).dtype
        np.testing.assert_array_equal(getattr(expected, name), getattr(actual, name))


@pytest.mark.parametrize("most_kept", [0, 40, 10**6])
def test_drawn_traffic_is_that_of_the_workload(most_kept: int) -> None:
    """Of any subset, in any order, for any horizon, asked for the first time or again, kept or not."""
    traffic = DrawnTraffic(3, most_kept=most_kept)
    for indices in ([0, 1, 2, 3], [3, 1], [1, 3], [2], [0, 1, 2, 3]):
        for horizon_s in (60.0, 20.0):
            subset = WORKLOAD.subset(indices)
            _assert_equal(subset.requests(horizon_s=horizon_s, seed=3), traffic.requests(subset, horizon_s=horizon_s))
    assert traffic.num_kept <= most_kept


def test_what_was_drawn_is_kept() -> None:
    """A second question draws nothing."""
    traffic = DrawnTraffic(0)
    traffic.requests(WORKLOAD, horizon_s=60.0)
    kept = traffic.num_kept
    traffic.requests(WORKLOAD.subset([1, 3]), horizon_s=60.0)
    assert kept == traffic.num_kept == len(WORKLOAD.requests(horizon_s=60.0))


def test_the_requests_of_a_trace_are_its_own() -> None:
    """Nothing is drawn."""
    traced = Workload(WORKLOAD.adapters, trace=WORKLOAD.requests(horizon_s=60.0))
    _assert_equal(traced.requests(horizon_s=30.0), DrawnTraffic(1).requests(traced, horizon_s=30.0))


def test_other_rates_are_other_requests() -> None:
    """Adapters with uncertain rates have one rate for each GPU that they are tried on."""
    traffic = DrawnTraffic(0)
    for factor in (1.0, 1.5, 1.0):
        scaled = WORKLOAD.scaled(factor)
        _assert_equal(scaled.requests(horizon_s=60.0), traffic.requests(scaled, horizon_s=60.0))
