"""Values of adapter types that are linear in their aggregates: as good in large fleets, and easier to bound.

The dual values of the master are one number for each type. Where a surrogate looks at sums of aggregates only, few
numbers for the aggregates say nearly as much, and without the noise of which patterns happen to be known: what a set is
worth is then a plane in the space that the search for a bound divides (`farley`), and fewer boxes certify the same.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from solvers.adapter_types import AdapterTypes
from solvers.linear_program import LinearProgram
from solvers.patterns.master import UNCOVERED_COST, Column
from twin.errors import SolverError


def linear_prices(
    columns: list[Column], costs: NDArray[np.float64], types: AdapterTypes
) -> tuple[float, NDArray[np.float64]]:
    """Return what all adapters are worth together, and one of each type, float64 [T], >= 0.

    No known pattern is worth more than its GPU costs. Of the values that are linear in the aggregates these are worth
    most together, found as the prices of a program that covers the sums of all adapters instead of their counts.

    Parameters
    ----------
    columns
        The known patterns.
    costs
        Of a GPU of each type, float64 [G], > 0.
    types
        What the patterns count.

    Returns
    -------
    Zeros when HiGHS gives up.
    """
    totals = types.counts @ types.loads
    offered = np.flatnonzero(totals > 0.0)
    # Sums are measured in parts of what all adapters add up to.
    rows = types.loads[:, offered] / totals[offered]
    program = LinearProgram(np.ones(len(offered)), np.ones(len(offered)))
    for column in columns:
        program.add_column(float(costs[column.gpu_type]), column.pattern @ rows)
    for row in rows:
        # More than all may be covered, so that no price is negative, and less for more than a GPU.
        program.add_column(0.0, -row)
        program.add_column(UNCOVERED_COST * float(costs.max()), row)
    try:
        solution = program.solve()
    except SolverError:
        solution = None
    if solution is None:
        return 0.0, np.zeros(types.num_types)
    prices = np.maximum(rows @ solution.row_prices, 0.0)
    return float(prices @ types.counts), prices
