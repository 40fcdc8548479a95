"""Which lower bounds a plan states: what holds for the twin, and what the solver proved of the surrogate's problem."""

from __future__ import annotations

from solvers.problem import Problem
from solvers.result import Bound, SolveResult


def is_proven_infeasible(problem: Problem, bound: Bound) -> bool:
    """Return whether the bound is above all GPUs that may be used."""
    counts = [gpu_type.max_count for gpu_type in problem.gpu_types]
    return all(count is not None for count in counts) and bound.value > sum(count or 0 for count in counts)


def better_bound(problem: Problem, work: Bound, result: SolveResult | None) -> Bound:
    """Return the larger bound of those that hold for the twin; a bound on the surrogate's problem says less."""
    own = None if result is None else result.bound
    if own is None or own.model != "twin":
        return work
    if problem.objective == "least_cost":
        return max(work, own, key=lambda bound: bound.cost_per_hour or 0.0)
    return max(work, own, key=lambda bound: bound.value)


def surrogate_bound(told: Problem, work: Bound, result: SolveResult | None) -> Bound | None:
    """Return what the solver proved of the surrogate's problem, where it is more than what holds for the twin.

    Parameters
    ----------
    told
        As the user gave it: where numbers of replicas or values of `max_num_seqs` are looked for, the solver's bound is
        about one choice of them, and nothing is returned.
    """
    own = None if result is None else result.bound
    if own is None or own.model != "surrogate" or told.replication.automatic or told.max_num_seqs_options:
        return None
    is_dearer = told.objective == "least_cost" and (own.cost_per_hour or 0.0) > (work.cost_per_hour or 0.0)
    return own if own.value > work.value or is_dearer else None
