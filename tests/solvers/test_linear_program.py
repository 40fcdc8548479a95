"""The wrapped linear program: optimum, prices, and changes between solves."""

import numpy as np
import pytest

from solvers.linear_program import LinearProgram


def covering() -> LinearProgram:
    """Return: cover rows of 4 and 6 with columns (1, 0), (0, 1) at cost 1 and (1, 1) at cost 1.5."""
    program = LinearProgram(np.array([4.0, 6.0]), np.array([np.inf, np.inf]))
    for cost, coefficients in ((1.0, [1.0, 0.0]), (1.0, [0.0, 1.0]), (1.5, [1.0, 1.0])):
        program.add_column(cost, np.array(coefficients))
    return program


def test_the_optimum_comes_with_prices_that_explain_it() -> None:
    """Four pairs and two single ones."""
    solution = covering().solve()
    assert solution is not None
    assert solution.value == pytest.approx(8.0)
    assert solution.columns == pytest.approx([0.0, 2.0, 4.0])
    assert solution.row_prices @ [4.0, 6.0] == pytest.approx(solution.value)


def test_bounds_and_coefficients_can_be_changed_between_solves() -> None:
    """Each change counts at the next solve, from whatever basis it starts."""
    program = covering()
    values = []
    for change in (
        lambda: program.set_row(0, 0.0, np.inf),
        lambda: program.set_columns(np.array([1], dtype=np.int32), np.zeros(1), np.array([1.0])),
        lambda: program.set_coefficient(1, 2, 2.0),
        lambda: program.add_column(0.1, np.array([0.0, 1.0]), upper=2.0),
    ):
        change()
        solution = program.solve()
        assert solution is not None
        values.append(solution.value)
    assert values == pytest.approx([6.0, 8.5, 4.5, 3.2])


def test_an_infeasible_program_has_no_solution() -> None:
    """And it is feasible again when the bound is."""
    program = covering()
    program.set_columns(np.arange(3, dtype=np.int32), np.zeros(3), np.ones(3))
    assert program.solve() is None
    program.set_columns(np.arange(3, dtype=np.int32), np.zeros(3), np.full(3, np.inf))
    assert program.solve() is not None


def test_a_bound_that_is_no_number_is_a_bug() -> None:
    """HiGHS would leave the program as it was, and a bound would be about another box."""
    with pytest.raises(AssertionError):
        covering().set_columns(np.array([0], dtype=np.int32), np.array([np.nan]), np.array([1.0]))
