"""Whether the `replication` of a problem file can hold at all: names that exist, and numbers that do not contradict."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from solvers.constraint_checks import require_known
from solvers.constraints import Constraints, matching_adapters
from solvers.problem_errors import ProblemSource
from solvers.replication import Replication


def check_replication(
    replication: Replication,
    constraints: Constraints,
    *,
    adapters: Sequence[str],
    gpus_for: Callable[[int], int | None],
    source: ProblemSource,
) -> None:
    """Raise InputError, with field and value, for the first rule that cannot hold.

    Parameters
    ----------
    replication, constraints
        By the names of adapters.
    adapters
        The names that there are.
    gpus_for
        Returns how many GPUs may serve an adapter; ``None``: any number.
    source
        Where the rules stand.
    """
    for position, automatic in enumerate(replication.automatic):
        location = ("replication", "automatic", position, "adapters")
        require_known(automatic.adapters, adapters=adapters, source=source, location=location)
    known: dict[int, int] = {}
    for position, rule in enumerate(replication.given):
        place = ("replication", "given", position)
        require_known(rule.adapters, adapters=adapters, source=source, location=(*place, "adapters"))
        for adapter in matching_adapters(rule.adapters, adapters):
            name = adapters[adapter]
            if known.setdefault(adapter, rule.replicas) != rule.replicas:
                raise source.error(
                    f"an adapter must have one number of replicas. {name!r} has {known[adapter]} by an earlier rule, "
                    f"and {rule.replicas} by this one",
                    location=(*place, "replicas"),
                    value=rule.replicas,
                    hint="name each adapter in one rule",
                )
            gpus = gpus_for(adapter)
            if gpus is not None and rule.replicas > gpus:
                raise source.error(
                    f"`replicas` must be at most the {gpus} GPUs that may serve the adapter. Got {rule.replicas} for "
                    f"{name!r}",
                    location=(*place, "replicas"),
                    value=rule.replicas,
                    hint="ask for fewer replicas, or raise `max_count` of a GPU type that may serve it",
                )
            if rule.replicas > 1 and _is_grouped(constraints, adapters, adapter):
                raise source.error(
                    f"adapters that must be together must be on one GPU. {name!r} is in a group of "
                    f"`constraints.together`, and has {rule.replicas} replicas",
                    location=(*place, "adapters"),
                    value=name,
                    hint="take it out of the group, or give it no replicas",
                )


def _is_grouped(constraints: Constraints, adapters: Sequence[str], adapter: int) -> bool:
    groups = [matching_adapters(rule.adapters, adapters) for rule in constraints.together]
    return any(adapter in group and len(group) > 1 for group in groups)
