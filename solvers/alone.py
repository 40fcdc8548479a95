"""Adapters that no GPU can serve alone: found before anything is packed, with the share of each that would fit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from solvers import acceptance
from solvers.feasibility import FeasibilityModel
from solvers.problem import Problem
from twin.errors import InputError

LISTED_ADAPTERS = 10
REPLICATE_HINT = "replicate it with --replicas auto or the section `replication` of the problem file, or remove it"
MORE_REPLICAS_HINT = "raise its `replicas` in the section `replication` of the problem file, or remove it"


class UnplaceableError(InputError):
    """No GPU can serve some adapters alone.

    Attributes
    ----------
    adapters
        By index, of the problem that was solved, before groups were merged.
    """

    def __init__(self, message: str, *, problem: Problem, adapters: Sequence[int], hint: str | None = None) -> None:
        told = problem.told_index(adapters[0])
        if hint is None:
            shares = problem.unmerged.shares
            is_divided = shares is not None and shares.counts[told] > 1
            hint = MORE_REPLICAS_HINT if is_divided else REPLICATE_HINT
        super().__init__(
            message, field=f"adapters.{told}.rate_rps", value=problem.told.adapters[told].rate_rps, hint=hint
        )
        self.adapters = tuple(problem.members_of((adapter,))[0] for adapter in adapters)


def fits_alone(model: FeasibilityModel, adapters: Sequence[int]) -> NDArray[np.bool_]:
    """Return for each GPU type and each of some adapters whether it fits an empty GPU, bool [T, len(adapters)]."""
    problem, chosen = model.problem, list(adapters)
    members = [(adapter,) for adapter in chosen] if model.uses_members else None
    return np.array(
        [
            model.best_choice(model.aggregates[chosen], problem.ranks[chosen], gpu_type, members).feasible
            for gpu_type in range(len(problem.gpu_types))
        ]
    )


def feasible_alone(model: FeasibilityModel) -> NDArray[np.bool_]:
    """Return for each GPU type and adapter whether the adapter alone fits an empty GPU, bool [T, A].

    Raises
    ------
    UnplaceableError
        When some adapter fits no GPU type; it names them, their load, the largest share that fits, and what to do.
    """
    fits = fits_alone(model, range(len(model.problem.adapters)))
    without = np.flatnonzero(~fits.any(axis=0))
    if len(without):
        raise _unplaceable(model, [int(index) for index in without])
    return fits


def largest_share(model: FeasibilityModel, adapter: int) -> float:
    """Return the largest share (in whole percent) of an adapter's load that fits an empty GPU of some type; 0: none.

    Tens of percent first, then single ones: a surrogate may be the twin, for which every question is a simulation.
    """
    tens = _largest_accepted(model, adapter, range(100, 0, -10))
    return max(tens, _largest_accepted(model, adapter, range(tens + 9, tens, -1)) if tens < 100 else 100) / 100


def _largest_accepted(model: FeasibilityModel, adapter: int, percents: range) -> int:
    """Return the largest of `percents` (descending) of the adapter's load that some GPU type accepts; 0: none."""
    problem = model.problem
    rank = int(problem.ranks[adapter])
    best = 0
    limits = model.limits_of(model.aggregates[[adapter]], repeats=len(percents))
    for gpu_type in (index for index in range(len(problem.gpu_types)) if problem.may_serve(index, adapter)):
        for slots in model.slot_options(gpu_type, 1, rank):
            one = model.settings(gpu_type, slots, model.slots.rank_of_slots(rank))
            settings = one.take(np.zeros(len(percents), dtype=np.int64))
            rows = np.repeat(model.aggregates[[adapter]], len(percents), axis=0)
            accepted = acceptance.accepts(limits, model.predict(rows, settings, load=np.array(percents) / 100))
            if accepted.any():
                best = max(best, percents[int(np.argmax(accepted))])
    return best


def _unplaceable(model: FeasibilityModel, adapters: list[int]) -> UnplaceableError:
    problem = model.problem
    lines = []
    for index in adapters[:LISTED_ADAPTERS]:
        adapter = problem.adapters[index]
        share = largest_share(model, index)
        fits = (
            f"at most {share:.0%} of it fits, replicate it at least {int(np.ceil(1 / share - 1e-9))} times"
            if share
            else "no share of it fits, also not 1 %"
        )
        lines.append(
            f"{adapter.name!r} (rank {adapter.rank}, {adapter.rate_rps:g} requests/s, "
            f"{adapter.offered_tps:,.0f} tokens/s): {fits}"
        )
    more = f"; and {len(adapters) - LISTED_ADAPTERS} more" if len(adapters) > LISTED_ADAPTERS else ""
    is_group = len(problem.members_of((adapters[0],))) > 1
    if problem.constraint_table is not None:
        more += (
            ". With `constraints`, only the types that they allow count, limits are the strictest of any adapter, and "
            "who must be together is served as one"
        )
    return UnplaceableError(
        f"every adapter must fit a GPU alone. {len(adapters)} of {len(problem.adapters)} {_verb(adapters)}: "
        f"{'; '.join(lines)}{more}. Replicate such an adapter (its requests then go to several GPUs), relax `limits`, "
        "or exclude it.",
        problem=problem,
        adapters=adapters,
        hint="take adapters out of the group in `together`" if is_group else None,
    )


def _verb(adapters: list[int]) -> str:
    return "does not" if len(adapters) == 1 else "do not"
