"""The `constraints` section of a problem file: who may be where, with whom, without whom, and under which own limits.

Adapters are given by name or by a pattern with `*`, `?` and `[...]` (`fnmatch`, case matters); an entry that is the
name of an adapter means that one. What the rules mean for sums over adapters is in `solvers.constraint_table`;
whether they can hold at all is checked in `solvers.constraint_checks`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

Patterns = Annotated[tuple[str, ...], Field(min_length=1)]
LIMIT_NAMES = ("itl_p95_ms", "ttft_p95_ms", "starvation_tolerance")


class _Rule(BaseModel):
    """One rule about some adapters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    adapters: Patterns


class GpuTypeRule(_Rule):
    """Adapters that only GPUs of some types may serve; several rules about one adapter all hold.

    Attributes
    ----------
    types
        Names of GPU types.
    """

    types: Annotated[tuple[str, ...], Field(min_length=1)]


class TogetherRule(_Rule):
    """Adapters that must share one GPU; rules that have an adapter in common are one."""


class ApartRule(_Rule):
    """Adapters of which a GPU serves only so many.

    Attributes
    ----------
    at_most
        On one GPU.
    """

    at_most: int = Field(default=1, ge=1)


class LimitsRule(_Rule):
    """Stricter limits of some adapters; the GPU that serves one of them keeps the strictest of all its adapters.

    Attributes
    ----------
    itl_p95_ms, ttft_p95_ms, starvation_tolerance
        As in the problem's `limits`; ``None``: no own limit. At least one is given.
    """

    itl_p95_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    ttft_p95_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    starvation_tolerance: float | None = Field(default=None, ge=0, lt=1, allow_inf_nan=False)

    @model_validator(mode="after")
    def _check_some(self) -> LimitsRule:
        if all(getattr(self, name) is None for name in LIMIT_NAMES):
            raise ValueError(f"a rule of `limits` must have at least one of {', '.join(LIMIT_NAMES)}. It has none.")
        return self


class Constraints(BaseModel):
    """What a placement must keep besides the limits of all GPUs.

    Attributes
    ----------
    gpu_type
        Pinning: which GPU types may serve which adapters.
    together
        Groups that must share a GPU.
    apart
        Groups of which at most one adapter, or at most `at_most`, is on a GPU.
    limits
        Own latency limits and starvation tolerances of adapters.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpu_type: tuple[GpuTypeRule, ...] = ()
    together: tuple[TogetherRule, ...] = ()
    apart: tuple[ApartRule, ...] = ()
    limits: tuple[LimitsRule, ...] = ()

    @property
    def are_given(self) -> bool:
        """Whether there is any rule."""
        return bool(self.gpu_type or self.together or self.apart or self.limits)


UNCONSTRAINED = Constraints()


def matching_adapters(patterns: Iterable[str], names: Sequence[str]) -> list[int]:
    """Return the indices of the adapters that some pattern names, ascending; shares have one name together."""
    positions: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        positions.setdefault(name, []).append(index)
    found: set[int] = set()
    for pattern in patterns:
        if pattern in positions:
            found.update(positions[pattern])
        else:
            found.update(index for index, name in enumerate(names) if fnmatchcase(name, pattern))
    return sorted(found)


def joined_groups(groups: Iterable[Sequence[int]]) -> list[tuple[int, ...]]:
    """Return groups of at least two, those joined that share a member; each ascending, by their first member."""
    group_of: dict[int, set[int]] = {}
    for group in groups:
        joined = set(group).union(*(group_of[member] for member in group if member in group_of))
        group_of.update(dict.fromkeys(joined, joined))
    distinct = {tuple(sorted(group)) for group in group_of.values()}
    return sorted(group for group in distinct if len(group) > 1)
