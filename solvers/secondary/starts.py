"""The current placement as a start: who is new finds a place, who is too much leaves, and GPUs are emptied."""

from __future__ import annotations

import numpy as np

from predictors.surrogate import Surrogate
from solvers.alone import feasible_alone
from solvers.budget import Budget
from solvers.current import CurrentFleet
from solvers.local_search.solver import LocalSearchSolver
from solvers.objective import objective_value
from solvers.open_fleet import OpenFleet
from solvers.packing import Packing
from solvers.placement import Placement
from solvers.problem import Problem
from solvers.result import Incumbent, Termination
from solvers.run import SolverRun
from solvers.secondary.search import Gpus, accepted_gpus
from twin.errors import InputError


def from_current(run: SolverRun, current: CurrentFleet) -> list[Gpus]:
    """Return placements near the current one, if there are any: as it is but for the new, and with GPUs emptied.

    Parameters
    ----------
    run
        Whose problem, questions and budget these are; every placement is recorded in it.
    current
        What is in place.
    """
    packing = Packing(run, is_best_fit=True)
    fleet = OpenFleet(run.model, packing.work)
    waiting = _take_over(run, current, fleet)
    order = waiting[np.lexsort((waiting, -packing.work[0, waiting], -run.problem.ranks[waiting]))]
    costs = [gpu_type.cost_per_hour for gpu_type in run.problem.gpu_types]
    try:
        packing.best_fit.fits_alone = feasible_alone(run.model)
    except InputError:
        # Under a limit on the latency that only sets keep.
        return []
    types = sorted(range(len(costs)), key=lambda index: (costs[index], index))
    if packing.best_fit.insert(fleet, order, types=types) < len(order) or not run.record(fleet.placement()):
        return []
    starts = [fleet.placement().gpus]
    packing.improve(fleet)
    assert run.incumbent is not None
    return list(dict.fromkeys([*starts, run.incumbent.placement.gpus]))


def _take_over(run: SolverRun, current: CurrentFleet, fleet: OpenFleet) -> np.ndarray:
    """Put who may stay on GPUs of the fleet, which is empty; return the others, int64 [N]."""
    problem, home, size = run.problem, current.homes, current.placed
    sets: list[tuple[int, list[int]]] = []
    # The fullest first: where fewer GPUs of a type may be used than are, the others go.
    sizes = np.array([size[home == index].sum() for index in range(len(current.gpu_type))])
    for gpu in np.argsort(-sizes, kind="stable"):
        gpu_type = int(current.gpu_type[gpu])
        own = np.flatnonzero(home == gpu).tolist()
        limit = None if gpu_type < 0 else problem.gpu_types[gpu_type].max_count
        if gpu_type >= 0 and own and (limit is None or sum(1 for kind, _ in sets if kind == gpu_type) < limit):
            sets.append((gpu_type, own))
    accepted = accepted_gpus(run.model, sets)
    fleet.load_placement(Placement(tuple(gpu for gpu in accepted if gpu is not None)))
    for (gpu_type, own), gpu in zip(sets, accepted, strict=True):
        if gpu is None and run.exhausted() is None:
            _fill(fleet, gpu_type, own)
    placed = [adapter for adapters in fleet.members for adapter in adapters]
    return np.setdiff1d(np.arange(len(problem.adapters)), placed)


def _fill(fleet: OpenFleet, gpu_type: int, adapters: list[int]) -> None:
    """Open a GPU for as many of its adapters as it takes, the smallest first."""
    ordered = np.array(sorted(adapters, key=lambda index: (fleet.work[gpu_type, index], index)), dtype=np.int64)
    gpu = fleet.open(gpu_type, int(ordered[0]))
    if gpu is not None and len(ordered) > 1:
        fleet.add_longest_prefix(gpu, ordered[1:])


def search_down(
    problem: Problem, surrogate: Surrogate, start: Gpus, goal: tuple[float, float], *, budget: Budget, seed: int
) -> tuple[Gpus | None, int, int]:
    """Look for a placement that is as good as `goal`, in steps from `start`, which changes little of it.

    Parameters
    ----------
    problem, surrogate
        Of an objective that counts GPUs or costs.
    start
        A placement that is accepted.
    goal
        A value of the objective (`objective_value`).
    budget, seed
        Of the local search.

    Returns
    -------
    The first such placement, or ``None``; and the rows and questions that it took.

    Raises
    ------
    KeyboardInterrupt
        On Ctrl-C before there is one.
    """
    found: list[Placement] = []

    def stop_at_goal(incumbent: Incumbent) -> None:
        if objective_value(problem, incumbent.evaluation) <= goal:
            found.append(incumbent.placement)
            # As Ctrl-C would: what is better still is not looked for.
            raise KeyboardInterrupt

    result = LocalSearchSolver(builds_first=False).solve(
        problem, surrogate, budget=budget, seed=seed, warm_start=Placement(start), observer=stop_at_goal
    )
    if result.termination is Termination.INTERRUPTED and not found:
        raise KeyboardInterrupt
    statistics = result.statistics
    return (found[0].gpus if found else None), statistics.num_evaluations, statistics.num_calls
