"""The search for the border of starvation, on oracles whose border is known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.border import NEAR_DISTANCE, NEAR_ROWS, BorderSearch, border_of, most_served


def searched(border_rps: float, first_rps: float, *, num_rows: int, seed: int, noise: float = 0.0) -> BorderSearch:
    """Run a search on a replica that starves beyond `border_rps`, with chance within a factor of exp(`noise`)."""
    generator = np.random.default_rng(seed)
    search = BorderSearch(first_rps, num_rows=num_rows, generator=np.random.default_rng(seed + 1))
    for _ in range(num_rows):
        load = search.next_load()
        verdicts = load * np.exp(noise * generator.uniform(-1.0, 1.0, 3)) > border_rps
        search.tell(load, float(verdicts.mean()))
    return search


@given(st.floats(0.01, 500.0), st.floats(-2.5, 2.5), st.integers(0, 1000))
def test_the_border_is_found_and_surrounded(border_rps: float, distance: float, seed: int) -> None:
    """Within the last bracket, with at least the promised rows close to it on both sides or within one step."""
    search = searched(border_rps, border_rps * math.exp(distance), num_rows=14, seed=seed)
    assert search.border_rps is not None
    assert abs(math.log(search.border_rps / border_rps)) < 0.1
    distances = np.log(np.array(search._loads) / search.border_rps)
    assert (np.abs(distances) <= NEAR_DISTANCE + 0.1).sum() >= NEAR_ROWS


def test_a_border_that_depends_on_chance_is_found() -> None:
    """Seeds that contradict each other near the border do not lead the search astray."""
    for seed in range(20):
        border_rps = searched(7.0, 3.0, num_rows=14, seed=seed, noise=0.1).border_rps
        assert border_rps is not None
        assert abs(math.log(border_rps / 7.0)) < 0.15


@pytest.mark.parametrize("border_rps", [math.inf, 0.0])
def test_without_a_border_the_loads_go_on_and_none_is_claimed(border_rps: float) -> None:
    """A replica that never or always starves has no border: the loads move towards where it could be."""
    search = searched(border_rps, 1.0, num_rows=8, seed=0)
    assert search.border_rps is None
    loads = search._loads[:-1]
    assert loads == sorted(loads, reverse=border_rps == 0.0)
    assert loads[:4] == [1.0, 2.0, 4.0, 16.0] if border_rps else loads[:4] == [1.0, 0.5, 0.25, 0.0625]


def test_no_load_is_beyond_the_limit() -> None:
    """A replica that never starves must not be asked about ever longer queues: the search gives up and looks around."""
    search = BorderSearch(1.0, num_rows=14, generator=np.random.default_rng(0), largest_rps=20.0)
    for _ in range(14):
        search.tell(search.next_load(), 0.0)
    assert search.border_rps is None
    assert search._loads[:5] == [1.0, 2.0, 4.0, 16.0, 20.0]
    assert max(search._loads[5:]) < 5.0


@pytest.mark.parametrize(
    ("loads", "shares", "expected"),
    [
        pytest.param([1.0, 4.0], [0.0, 1.0], 2.0, id="two"),
        pytest.param([4.0, 1.0, 2.0], [1.0, 0.0, 0.0], math.sqrt(8.0), id="any order"),
        pytest.param([1.0, 2.0, 4.0, 8.0], [0.0, 0.67, 0.33, 1.0], math.sqrt(8.0), id="contradiction"),
        pytest.param([1.0, 2.0], [0.33, 0.0], None, id="none starves"),
        pytest.param([1.0, 2.0], [1.0, 0.67], None, id="all starve"),
        pytest.param([], [], None, id="nothing known"),
    ],
)
def test_the_border_separates_the_verdicts(loads: list[float], shares: list[float], expected: float | None) -> None:
    """The geometric mean of the two neighbours where a step fits the shares best."""
    assert border_of(loads, shares) == (None if expected is None else pytest.approx(expected))


@given(st.integers(1, 1000), st.integers(0, 1000))
def test_a_packer_stops_at_the_last_adapter_that_fits(count: int, border: int) -> None:
    """As many as are served, all if that is all there are, and never none; few questions."""
    asked: list[int] = []

    def starves(number: int) -> bool:
        asked.append(number)
        return number > border

    assert most_served(count, starves) == max(1, min(count, border))
    assert len(asked) == len(set(asked)) <= 2 * math.ceil(math.log2(count + 1)) + 1
    assert all(1 <= number <= count for number in asked)
