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


def test_improving_starts_with_the_first_placement() -> None:
    """Rows before it do not count; it is found once."""
    running = Budget(max_improving_evaluations=10).start()
    assert running.exhausted(10**6) is None
    running.improve_from(500)
    running.improve_from(505)
    assert running.exhausted(509) is None
    assert running.exhausted(510) is Termination.ITERATION_LIMIT
    assert running.remaining(507).max_improving_evaluations == 3


@pytest.mark.parametrize(("num_adapters", "expected"), [(1, 20_000), (400, 100_000), (100_000, 500_000)])
def test_the_automatic_budget_grows_with_the_adapters(num_adapters: int, expected: int) -> None:
    """Between a floor and a ceiling, and never longer than a minute."""
    budget = Budget.automatic(num_adapters)
    assert (budget.seconds, budget.max_evaluations, budget.max_improving_evaluations) == (60.0, None, expected)


def test_a_share_is_of_every_limit() -> None:
    """What is unlimited stays so."""
    assert Budget(10.0, 100, 50).share(0.5) == Budget(5.0, 50, 25)
    assert Budget().share(0.5) == Budget()


def test_what_is_left_is_never_negative() -> None:
    """A batch may cross a limit."""
    times = iter([0.0, 3.0])
    running = Budget(2.0, 10, 5).start(lambda: next(times))
    running.improve_from(4)
    assert running.remaining(12) == Budget(0.0, 0, 0)


def test_negative_evaluations_for_improving_are_refused() -> None:
    """As every other limit."""
    with pytest.raises(InputError, match="evaluations for improving must be at least 0"):
        Budget(max_improving_evaluations=-1)
