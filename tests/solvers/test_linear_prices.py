"""Values that are linear in the aggregates: a feasible dual of the master, below its optimum."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from solvers.adapter_types import AdapterTypes, exact_types
from solvers.patterns.linear_prices import linear_prices
from solvers.patterns.master import Column, Master
from tests.solvers.problems import make_adapter, make_problem, random_problem


def random_columns(types: AdapterTypes, seed: int, *, num_gpu_types: int) -> list[Column]:
    """Return each type alone, so that there is a mixture, and random patterns of up to all adapters."""
    generator = np.random.default_rng(seed)
    alone = [Column(row, 0) for row in np.eye(types.num_types, dtype=np.int64)]
    patterns = generator.integers(0, types.counts + 1, (12, types.num_types))
    return [*alone, *(Column(row, int(generator.integers(num_gpu_types))) for row in patterns if row.any())]


def mixture(columns: list[Column], costs: NDArray[np.float64], types: AdapterTypes) -> float:
    """Return the cost of the cheapest mixture of patterns."""
    master = Master(costs, np.full(len(costs), np.inf), types.num_types)
    for column in columns:
        master.add(column)
    return master.solve(types.counts, np.full(len(costs), np.inf)).value


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), is_mixed=st.booleans())
def test_no_pattern_is_worth_more_than_its_gpu_and_all_no_more_than_the_mixture(seed: int, *, is_mixed: bool) -> None:
    """Of one or two GPU types, random adapters and random patterns."""
    types = exact_types(random_problem(seed % 7, 10, load_gpus=2.0))
    costs = np.array([3.0, 2.0]) if is_mixed else np.ones(1)
    columns = random_columns(types, seed, num_gpu_types=len(costs))
    worth, prices = linear_prices(columns, costs, types)
    assert (prices >= 0.0).all()
    assert worth == pytest.approx(float(prices @ types.counts))
    assert 0.0 < worth <= mixture(columns, costs, types) * (1.0 + 1e-6)
    for column in columns:
        assert float(column.pattern @ prices) <= costs[column.gpu_type] * (1.0 + 1e-6)


@pytest.mark.parametrize("rates", [(0.1,), (0.1, 0.5), (0.1, 0.5, 2.0)])
def test_nothing_is_lost_with_fewer_rates_than_sums(rates: tuple[float, ...]) -> None:
    """Adapters of one rank whose aggregates are independent may have any values."""
    types = exact_types(make_problem([make_adapter(f"a{rate}-{i}", rate_rps=rate) for rate in rates for i in range(9)]))
    columns = random_columns(types, 1, num_gpu_types=1)
    worth, _ = linear_prices(columns, np.ones(1), types)
    assert worth == pytest.approx(mixture(columns, np.ones(1), types), rel=1e-6)


def test_values_are_a_plane_in_the_aggregates() -> None:
    """Ten rates of three ranks have more types than sums, and still no more values than sums."""
    adapters = [
        make_adapter(f"a{rank}-{level}", rank=rank, rate_rps=1.6 / 2**level)
        for rank in (8, 16, 32)
        for level in range(10)
    ]
    types = exact_types(make_problem(adapters))
    _, prices = linear_prices(random_columns(types, 0, num_gpu_types=1), np.ones(1), types)
    used = types.loads[:, types.loads.any(axis=0)]
    scaled = used / used.max(axis=0)
    plane, *_ = np.linalg.lstsq(scaled[prices > 0.0], prices[prices > 0.0], rcond=None)
    assert np.allclose((scaled @ plane)[prices > 0.0], prices[prices > 0.0], atol=1e-6)
