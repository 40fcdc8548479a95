"""Budgets: an injected clock, a deterministic limit, and what is refused."""

import pytest

from solvers.budget import Budget
from solvers.result import Bound, Solution, SolveResult, SolveStatistics, Termination
from twin.errors import InputError


def test_time_ends_by_the_given_clock() -> None:
    """Tests and services bring their own clock."""
    now = [100.0]
    running = Budget(seconds=5.0).start(lambda: now[0])
    assert running.exhausted(10**9) is None
    now[0] = 104.9
    assert running.exhausted(0) is None
    now[0] = 105.0
    assert running.exhausted(0) is Termination.TIME_LIMIT
    assert running.elapsed_s == 5.0


def test_evaluations_end_before_time_is_looked_at() -> None:
    """Where both limits are reached, the one that is the same everywhere is reported."""
    running = Budget(seconds=0.0, max_evaluations=7).start(lambda: 0.0)
    assert running.exhausted(6) is Termination.TIME_LIMIT
    assert running.exhausted(7) is Termination.ITERATION_LIMIT


def test_no_limits_never_end() -> None:
    """Without limits a heuristic runs to its end."""
    assert Budget().start().exhausted(10**12) is None


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_impossible_seconds_are_refused(seconds: float) -> None:
    """NaN would compare false for ever."""
    with pytest.raises(InputError, match="a budget's seconds must be at least 0"):
        Budget(seconds=seconds)


def test_impossible_evaluations_are_refused() -> None:
    """A negative number is a mistake, not "none"."""
    with pytest.raises(InputError, match=r"a budget's evaluations must be at least 0. Got -1"):
        Budget(max_evaluations=-1)


def test_a_result_cannot_contradict_itself() -> None:
    """Optimal without a bound, or feasible without a placement, is a bug of the solver."""
    nothing = SolveStatistics(num_evaluations=0, runtime_s=0.0, num_iterations=0)
    for solution in (Solution.FEASIBLE, Solution.OPTIMAL):
        with pytest.raises(AssertionError):
            SolveResult(solution, Termination.COMPLETED, None, None, Bound(1, "work", "twin"), nothing)
