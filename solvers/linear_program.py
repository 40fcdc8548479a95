"""A small linear program that changes and is solved again and again, in HiGHS (the extra ``milp``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twin.errors import SolverError


@dataclass(frozen=True)
class LinearSolution:
    """An optimum.

    Attributes
    ----------
    value
        Of the objective.
    columns
        float64 [C].
    row_prices
        Change of the value per unit of each row's bound, float64 [R].
    """

    value: float
    columns: NDArray[np.float64]
    row_prices: NDArray[np.float64]


class LinearProgram:
    """Minimise a linear cost of columns within bounds, under two-sided rows; starts from its last basis.

    Parameters
    ----------
    row_lower, row_upper
        Bounds of the rows, float64 [R]; infinite: none.
    """

    def __init__(self, row_lower: NDArray[np.float64], row_upper: NDArray[np.float64]) -> None:
        # Loaded here: listing solvers, and making one, stays quick.
        self._highs = _highs_library().Highs()
        # As in solvers/milp_native.py: instances with different threads do not get on in one process.
        self._highs.setOptionValue("threads", 1)
        self._highs.setOptionValue("output_flag", False)  # noqa: FBT003 - HiGHS's own signature
        self.num_rows = len(row_lower)
        self.num_columns = 0
        nothing = np.empty(0, dtype=np.int32)
        for low, high in zip(row_lower, row_upper, strict=True):
            _require(self._highs.addRow(float(low), float(high), 0, nothing, nothing.astype(np.float64)))

    def add_column(
        self, cost: float, coefficients: NDArray[np.float64], *, lower: float = 0.0, upper: float = np.inf
    ) -> int:
        """Add a column between its bounds with its coefficients in the rows, float64 [R]; return its index."""
        rows = np.flatnonzero(coefficients).astype(np.int32)
        _require(self._highs.addCol(float(cost), float(lower), float(upper), len(rows), rows, coefficients[rows]))
        self.num_columns += 1
        return self.num_columns - 1

    def set_row(self, row: int, lower: float, upper: float) -> None:
        """Change the bounds of a row."""
        _require(self._highs.changeRowBounds(row, float(lower), float(upper)))

    def set_columns(self, columns: NDArray[np.int32], lower: NDArray[np.float64], upper: NDArray[np.float64]) -> None:
        """Change the bounds of some columns, float64 [len(columns)]."""
        _require(self._highs.changeColsBounds(len(columns), columns, lower, upper))

    def set_coefficient(self, row: int, column: int, value: float) -> None:
        """Change one coefficient."""
        _require(self._highs.changeCoeff(row, column, float(value)))

    def solve(self) -> LinearSolution | None:
        """Return an optimum, or None when there is no point within the bounds.

        Raises
        ------
        SolverError
            When HiGHS gives up.
        """
        highspy = _highs_library()
        status = self._run()
        if status != highspy.HighsModelStatus.kOptimal:
            # The last basis may be of no use for the changed bounds: what was said of it is confirmed from scratch.
            self._highs.clearSolver()
            status = self._run()
        if status == highspy.HighsModelStatus.kInfeasible:
            return None
        if status != highspy.HighsModelStatus.kOptimal:
            raise SolverError(f"HiGHS must solve a bounded linear program. It said {status}.", field="solver")
        solution = self._highs.getSolution()
        return LinearSolution(
            value=float(self._highs.getInfo().objective_function_value),
            columns=np.array(solution.col_value, dtype=np.float64),
            row_prices=np.array(solution.row_dual, dtype=np.float64),
        )

    def _run(self) -> Any:
        self._highs.run()
        return self._highs.getModelStatus()


def _require(status: Any) -> None:
    """Assert that HiGHS took a change: what it refuses, such as a bound that is not a number, it leaves as it was."""
    assert status != _highs_library().HighsStatus.kError, status


def _highs_library() -> Any:
    import highspy  # noqa: PLC0415 - comes with an extra

    return highspy
