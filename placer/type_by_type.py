"""Solvers that place on GPUs of one type only: each type is solved for itself, and the best answer is taken."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from predictors.surrogate import Surrogate
from solvers.budget import Budget
from solvers.merging import merged_problem
from solvers.objective import objective_value
from solvers.placement import Placement
from solvers.problem import Problem
from solvers.result import SolveResult, Termination
from solvers.surrogate_per_gpu_type import SurrogatePerGpuType
from twin.errors import InputError

SolveOne = Callable[[Problem, Surrogate, Budget], SolveResult]


def solve_each_type(problem: Problem, surrogate: Surrogate, budget: Budget, solve_one: SolveOne) -> SolveResult:
    """Solve a problem with GPUs of each of its types in turn, an equal share of the budget each.

    Parameters
    ----------
    problem, surrogate, budget
        Of all types.
    solve_one
        Runs the solver on the problem of one type.

    Returns
    -------
    SolveResult
        That which the objective prefers; after Ctrl-C, of those that there are.

    Raises
    ------
    InputError
        When no GPU type can hold all adapters.
    """
    results: list[SolveResult | InputError] = []
    for index in range(len(problem.gpu_types)):
        result = _solve_type(problem, surrogate, budget, index, solve_one)
        results.append(result)
        if isinstance(result, SolveResult) and result.termination is Termination.INTERRUPTED:
            return replace(_best_of(problem, results), termination=Termination.INTERRUPTED)
    return _best_of(problem, results)


def _solve_type(
    problem: Problem, surrogate: Surrogate, budget: Budget, gpu_type: int, solve_one: SolveOne
) -> SolveResult | InputError:
    """Solve with GPUs of one type only; an error when some adapter fits no GPU of that type."""
    gpu_types, profiles = (problem.gpu_types[gpu_type],), (problem.profiles[gpu_type],)
    only = merged_problem(replace(problem.unmerged, gpu_types=gpu_types, profiles=profiles))
    own = surrogate.for_gpu_type(gpu_type) if isinstance(surrogate, SurrogatePerGpuType) else surrogate
    try:
        result = solve_one(only, own, budget.share(1.0 / len(problem.gpu_types)))
    except InputError as error:
        return error
    if result.placement is None:
        return result
    return replace(
        result,
        placement=_on_type(result.placement, gpu_type),
        before_secondary=None if result.before_secondary is None else _on_type(result.before_secondary, gpu_type),
    )


def _on_type(placement: Placement, gpu_type: int) -> Placement:
    """Return a placement of a problem with one GPU type as one of a problem that has it in another place."""
    return Placement(tuple(replace(gpu, gpu_type=gpu_type) for gpu in placement.gpus))


def _best_of(problem: Problem, results: list[SolveResult | InputError]) -> SolveResult:
    """Return the result that the objective prefers; raise the first error when no GPU type can hold all adapters."""
    solved = [result for result in results if isinstance(result, SolveResult)]
    placed = [result for result in solved if result.evaluation is not None]
    if placed:
        return min(
            placed,
            key=lambda result: (
                objective_value(problem, result.evaluation) if result.evaluation is not None else (math.inf, math.inf)
            ),
        )
    if solved:
        return solved[0]
    raise next(result for result in results if isinstance(result, InputError))
