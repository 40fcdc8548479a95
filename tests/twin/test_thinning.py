"""Traffic divided among replicas: the moments of the gaps, the requests of a trace, and what stays as it is."""

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from twin.errors import InputError
from twin.lengths import LengthDistribution
from twin.thinning import divided_workload, share_name, thinned_adapter, thinned_gap_cv
from twin.workload import Adapter, RequestTable, Workload

LENGTHS = LengthDistribution(mean=10)


def adapter(name: str = "hot", **changes: object) -> Adapter:
    """Return an adapter with an arrival a second."""
    fields: dict[str, object] = {"name": name, "rank": 8, "rate_rps": 1.0}
    return Adapter.model_validate(fields | {"prompt_tokens": LENGTHS, "output_tokens": LENGTHS} | changes)


def squared_cv(arrival_ns: NDArray[np.int64]) -> float:
    """Return the squared coefficient of variation of the gaps between arrivals."""
    gaps = np.diff(arrival_ns).astype(np.float64)
    return float(gaps.var() / gaps.mean() ** 2)


@pytest.mark.parametrize("law", ["gamma", "lognormal"])
@pytest.mark.parametrize("gap_cv", [0.0, 0.4, 1.0, 1.5])
@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.2, 0.7, 0.1)])
def test_gaps_of_routed_requests_have_the_moments_of_the_formula(
    law: Literal["gamma", "lognormal"], gap_cv: float, shares: tuple[float, ...]
) -> None:
    """Requests that a router really draws for each share are as far apart as the share's own adapter draws them."""
    whole = Workload((adapter(gap_cv=gap_cv, gap_law=law),))
    horizon_s = 200_000.0
    trace = whole.requests(horizon_s=horizon_s, seed=5)
    replayed = divided_workload(Workload(whole.adapters, trace=trace), (shares,))
    drawn = divided_workload(whole, (shares,)).requests(horizon_s=horizon_s, seed=6)
    assert replayed.trace is not None
    for position, share in enumerate(shares):
        expected = 1.0 + share * (gap_cv**2 - 1.0)
        routed = replayed.trace.arrival_ns[replayed.trace.adapter == position]
        own = drawn.arrival_ns[drawn.adapter == position]
        assert len(routed) == pytest.approx(share * horizon_s, rel=0.03)
        assert len(own) == pytest.approx(share * horizon_s, rel=0.03)
        assert squared_cv(routed) == pytest.approx(expected, rel=0.08)
        assert squared_cv(own) == pytest.approx(expected, rel=0.08)


@given(gap_cv=st.floats(0.0, 20.0), share=st.floats(1e-3, 1.0), other=st.floats(1e-3, 1.0))
def test_thinning_twice_is_thinning_once(gap_cv: float, share: float, other: float) -> None:
    """A router behind a router is one router, and what a share leaves is nearer to Poisson arrivals."""
    once = thinned_gap_cv(gap_cv, share * other)
    assert thinned_gap_cv(thinned_gap_cv(gap_cv, share), other) == pytest.approx(once, rel=1e-9, abs=1e-9)
    assert abs(thinned_gap_cv(gap_cv, share) - 1.0) <= abs(gap_cv - 1.0) + 1e-9
    assert thinned_gap_cv(1.0, share) == 1.0


def test_a_share_keeps_all_but_rate_and_gaps() -> None:
    """Rank, lengths and law are the adapter's; the whole of it is the very same."""
    whole = adapter(gap_cv=2.0, rank=32)
    share = thinned_adapter(whole, 0.25, name="hot [1/4]")
    assert share.rate_rps == 0.25
    assert share.gap_cv == pytest.approx(np.sqrt(1.75))
    unchanged = {"name", "rate_rps", "gap_cv"}
    assert share.model_dump(exclude=unchanged) == whole.model_dump(exclude=unchanged)
    assert thinned_adapter(whole, 1.0, name="other") is whole


def test_a_trace_is_given_out_completely_and_the_same_way_each_time() -> None:
    """Every request has one replica, others' requests and the base model's stay where they are."""
    generator = np.random.default_rng(1)
    count = 3000
    table = RequestTable(
        np.sort(generator.integers(0, 10**12, count)),
        generator.integers(-1, 3, count).astype(np.int32),
        np.full(count, 5, np.int32),
        np.full(count, 7, np.int32),
    )
    workload = Workload((adapter("a"), adapter("b"), adapter("c")), trace=table)
    shares = ((1.0,), (0.5, 0.3, 0.2), (0.5, 0.5))
    divided, again = divided_workload(workload, shares), divided_workload(workload, shares)
    assert [each.name for each in divided.adapters] == ["a", "b [1/3]", "b [2/3]", "b [3/3]", "c [1/2]", "c [2/2]"]
    assert divided.trace is not None
    assert again.trace is not None
    assert np.array_equal(divided.trace.adapter, again.trace.adapter)
    origin = np.array([0, 1, 1, 1, 2, 2, -1])
    assert np.array_equal(origin[divided.trace.adapter], table.adapter)
    assert np.array_equal(divided.trace.arrival_ns, table.arrival_ns)
    assert divided.longest_horizon_s == workload.longest_horizon_s
    alone = divided_workload(workload.subset([1]), (shares[1],))
    assert alone.trace is not None
    mine = divided.trace.adapter[table.adapter == 1]
    assert np.array_equal(alone.trace.adapter, mine - 1)


def test_a_share_must_not_have_the_name_of_another_adapter() -> None:
    """Names of shares are made up; one that a user has taken is an error, not a mixture."""
    workload = Workload((adapter("hot"), adapter(share_name("hot", 2, 2))))
    with pytest.raises(InputError, match="names must be unique"):
        divided_workload(workload, ((0.5, 0.5), (1.0,)))
