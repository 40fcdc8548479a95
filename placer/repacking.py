"""Many rejected GPUs at once: pack their adapters again, more carefully, instead of mending GPU by GPU.

A solver packs GPUs to the brim of what the surrogate accepts, and there the twin rejects many. Mending each of them
costs about a dozen simulations; packing what is on them again, with a more careful surrogate, one for each new GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placer.surrogates import inflated, threshold_for, uses_simulation, with_threshold
from predictors.surrogate import Surrogate
from solvers.alone import fits_alone
from solvers.best_fit import BestFit
from solvers.bounds import adapter_work, unavoidable_costs
from solvers.budget import Budget
from solvers.feasibility import FeasibilityModel
from solvers.open_fleet import OpenFleet
from solvers.placement import GpuAssignment, Placement
from solvers.problem import Problem
from solvers.run import SolverRun
from twin.errors import SurrogateError

# Fewer rejected GPUs than this are mended one by one, which gives back no more than it has to; unless they are what is
# left after a repacking.
LEAST_REJECTED = 6
# Of the GPUs that the twin accepts, the emptiest one, and one more for so many rejected ones, take adapters as well.
REJECTED_PER_NEIGHBOUR = 10
# A repacking that leaves more than this share of the load on rejected GPUs does not help.
MOST_LOAD_LEFT = 0.75
# Steps of caution: risks whose thresholds a surrogate may know; of others, by how much rates are taken to be larger.
RISK_STEPS = (0.2, 0.1, 0.05, 0.02, 0.01)
MARGIN_STEPS = (0.05, 0.12, 0.25)
# Steps that may be tried in a row without success.
STEPS_TRIED = 2


@dataclass(frozen=True)
class Repacked:
    """A fleet in which the adapters of rejected GPUs are packed anew.

    Attributes
    ----------
    gpus
        All GPUs: those that are as they were first.
    num_moved
        Adapters of the rejected GPUs that are no longer there.
    """

    gpus: tuple[GpuAssignment, ...]
    num_moved: int


def cautious_surrogates(surrogate: Surrogate, *, threshold: float, margin: float) -> tuple[Surrogate, ...]:
    """Return surrogates that accept less and less, each less than `surrogate` with the threshold and the margin.

    Parameters
    ----------
    surrogate
        Without margin and threshold. Where its files know thresholds for risks, those are the steps.
    threshold, margin
        That the plan was packed with, in (0, 0.5] and > -1.

    Returns
    -------
    None for a surrogate that simulates: whatever is asked, it asks the twin.
    """
    if uses_simulation(surrogate):
        return ()
    thresholds = [known for risk in RISK_STEPS if (known := _threshold(surrogate, risk)) is not None]
    if thresholds:
        steps = sorted({known for known in thresholds if known < threshold}, reverse=True)
        return tuple(inflated(with_threshold(surrogate, step), 1.0 + margin) for step in steps)
    believed = with_threshold(surrogate, threshold)
    return tuple(inflated(believed, (1.0 + margin) * (1.0 + step)) for step in MARGIN_STEPS)


def _threshold(surrogate: Surrogate, risk: float) -> float | None:
    """Return the threshold for a risk; ``None`` when the surrogate knows none, which nobody has asked for."""
    try:
        return threshold_for(surrogate, risk)
    except SurrogateError:
        return None


def repack(
    problem: Problem, surrogate: Surrogate, gpus: Sequence[GpuAssignment], rejected: Sequence[GpuAssignment]
) -> Repacked | None:
    """Pack the adapters of rejected GPUs anew by best fit, on new GPUs and on the emptiest of the others.

    Parameters
    ----------
    problem, surrogate
        The surrogate is asked as it is: with the caution that is wanted.
    gpus, rejected
        All GPUs, and those of them whose adapters move. A rejected GPU with an adapter that the surrogate refuses even
        alone stays as it is.

    Returns
    -------
    ``None`` when all rejected GPUs stay, or the GPUs that may be used do not suffice.
    """
    run = SolverRun(problem, surrogate, Budget(), None)
    fits = _fits_on_types(run.model, rejected)
    moved = [gpu for gpu in rejected if fits[gpu.gpu_type, list(gpu.adapters)].all()]
    if not moved:
        return None
    dissolved = set(moved)
    kept = tuple(gpu for gpu in gpus if gpu not in dissolved)
    work = np.array(
        [adapter_work(problem, unavoidable_costs(problem, index)) for index in range(len(problem.gpu_types))]
    )
    fleet = OpenFleet(run.model, work)
    fleet.load_placement(Placement(kept))
    neighbours = _emptiest(fleet, kept, set(rejected), count=1 + len(moved) // REJECTED_PER_NEIGHBOUR)
    fleet.refused_work[np.setdiff1d(fleet.open_gpus, neighbours)] = 0.0
    best_fit = BestFit(run, fits)
    for gpu_type in sorted({gpu.gpu_type for gpu in moved}):
        adapters = np.array([index for gpu in moved if gpu.gpu_type == gpu_type for index in gpu.adapters])
        order = adapters[np.lexsort((adapters, -work[gpu_type, adapters], -problem.ranks[adapters]))]
        if best_fit.insert(fleet, order, types=_types_from(problem, gpu_type)) < len(order):
            return None
    return Repacked(_assignments(fleet, kept), sum(len(gpu.adapters) for gpu in moved))


def _fits_on_types(model: FeasibilityModel, gpus: Sequence[GpuAssignment]) -> NDArray[np.bool_]:
    """Return for each GPU type and adapter of `gpus` whether it fits an empty GPU, bool [T, A]; False for others."""
    problem = model.problem
    chosen = sorted({adapter for gpu in gpus for adapter in gpu.adapters})
    fits = np.zeros((len(problem.gpu_types), len(problem.adapters)), dtype=np.bool_)
    fits[:, chosen] = fits_alone(model, chosen)
    return fits


def _emptiest(
    fleet: OpenFleet, kept: Sequence[GpuAssignment], rejected: set[GpuAssignment], *, count: int
) -> NDArray[np.int64]:
    """Return the positions of the least loaded GPUs that are not rejected, int64, at most `count`."""
    accepted = np.array([index for index, gpu in enumerate(kept) if gpu not in rejected], dtype=np.int64)
    return accepted[np.argsort(fleet.load[accepted], kind="stable")][:count]


def _types_from(problem: Problem, first: int) -> list[int]:
    """Return all GPU types: `first`, then the others, cheapest first."""
    costs = [gpu_type.cost_per_hour for gpu_type in problem.gpu_types]
    return sorted(range(len(costs)), key=lambda index: (index != first, costs[index], index))


def _assignments(fleet: OpenFleet, kept: Sequence[GpuAssignment]) -> tuple[GpuAssignment, ...]:
    """Return the GPUs of a fleet, of which `kept` are the first; those that took nothing are the very same."""
    packed = fleet.placement().gpus
    same = (
        before if len(before.adapters) == len(after.adapters) else after
        for before, after in zip(kept, packed, strict=False)
    )
    return (*same, *packed[len(kept) :])
