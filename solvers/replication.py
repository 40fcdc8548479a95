"""The `replication` section of a problem file: which adapters may be on several GPUs, each with a share of the traffic.

Adapters are named as in `constraints`. How shares become adapters that solvers place is in `solvers.shares`; who finds
the numbers that are left open is `placer.replicas`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from solvers.constraints import Patterns, matching_adapters

MOST_REPLICAS = 256

NumReplicas = Annotated[int, Field(ge=1, le=MOST_REPLICAS)]


class ReplicasRule(BaseModel):
    """Adapters that are on so many GPUs each, with equal shares of their traffic."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    adapters: Patterns
    replicas: NumReplicas


class AutomaticRule(BaseModel):
    """Adapters that are divided into the fewest equal shares that a GPU serves, if none serves them whole.

    Attributes
    ----------
    max_replicas
        Most GPUs that one of them is on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    adapters: Patterns = ("*",)
    max_replicas: NumReplicas = MOST_REPLICAS


class Replication(BaseModel):
    """Which adapters are on several GPUs; all others are on one.

    Attributes
    ----------
    given
        Numbers of replicas that are fixed; they come before `automatic`.
    automatic
        Adapters whose number of replicas is looked for. Several rules about one adapter all hold.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    given: tuple[ReplicasRule, ...] = ()
    automatic: tuple[AutomaticRule, ...] = ()

    @property
    def is_asked(self) -> bool:
        """Whether there is any rule."""
        return bool(self.given or self.automatic)


NOT_REPLICATED = Replication()


def given_replicas(replication: Replication, names: Sequence[str]) -> list[int]:
    """Return the number of replicas of each adapter as far as it is fixed, else 1."""
    counts = [1] * len(names)
    for rule in replication.given:
        for adapter in matching_adapters(rule.adapters, names):
            counts[adapter] = rule.replicas
    return counts


def most_replicas(replication: Replication, names: Sequence[str]) -> dict[int, int]:
    """Return the largest number of replicas of each adapter, by index, whose number is looked for."""
    most: dict[int, int] = {}
    for rule in replication.automatic:
        for adapter in matching_adapters(rule.adapters, names):
            most[adapter] = min(rule.max_replicas, most.get(adapter, MOST_REPLICAS))
    for fixed in replication.given:
        for adapter in matching_adapters(fixed.adapters, names):
            most.pop(adapter, None)
    return most
