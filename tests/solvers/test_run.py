"""What a solver's run says at its end."""

from __future__ import annotations

import pytest

from solvers.budget import Budget
from solvers.result import Solution, Termination
from solvers.run import SolverRun
from tests.solvers.analytic import AnalyticSurrogate
from tests.solvers.problems import make_adapter, make_problem


@pytest.mark.parametrize(
    ("termination", "num_placed", "is_paced"),
    [
        (Termination.TIME_LIMIT, 2, True),
        (Termination.TIME_LIMIT, 0, False),
        (Termination.ITERATION_LIMIT, 2, False),
        (Termination.INTERRUPTED, 2, False),
    ],
)
def test_a_run_without_time_says_what_its_pace_would_need(
    termination: Termination, num_placed: int, *, is_paced: bool
) -> None:
    """Whoever is asked for a larger budget wants to know how large."""
    run = SolverRun(
        make_problem([make_adapter(f"a{index}") for index in range(6)]), AnalyticSurrogate(), Budget(1.0), None
    )
    run.num_placed = num_placed
    result = run.result(termination)
    assert result.solution is Solution.NONE
    assert f"with {num_placed} of 6 adapters placed" in result.message
    assert ("At that pace all of them need" in result.message) is is_paced
