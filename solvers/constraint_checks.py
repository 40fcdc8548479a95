"""Whether the constraints of a problem file can hold at all: names that exist, and rules that do not contradict."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from solvers.constraints import LIMIT_NAMES, Constraints, joined_groups, matching_adapters
from solvers.limits import Limits
from solvers.problem_errors import Location, ProblemSource

RuleKind = Literal["gpu_type", "together", "apart", "limits"]
LISTED_NAMES = 5


def check_constraints(
    constraints: Constraints,
    *,
    adapters: Sequence[str],
    gpu_types: Sequence[str],
    limits: Limits,
    source: ProblemSource,
) -> None:
    """Raise InputError, with field and value, for the first rule that cannot hold.

    Parameters
    ----------
    constraints
        By the names of adapters and GPU types.
    adapters, gpu_types
        The names that there are.
    limits
        Those of all GPUs.
    source
        Where the rules stand.
    """
    if not constraints.are_given:
        return
    checks = _Checks(constraints, adapters, gpu_types, source)
    checks.names()
    checks.types()
    checks.limits(limits)
    checks.groups()


def require_known(
    patterns: Sequence[str], *, adapters: Sequence[str], source: ProblemSource, location: Location
) -> None:
    """Raise InputError for the first of a rule's `patterns`, which stand at `location`, that names no adapter."""
    for number, pattern in enumerate(patterns):
        if not matching_adapters([pattern], adapters):
            raise source.error(
                f"`adapters` of a rule must be names of adapters, or patterns that some of them match. Got {pattern!r}",
                location=(*location, number),
                value=pattern,
                hint=_closest(pattern, adapters)
                or "a pattern has *, ? or [...], as in 'support-*'; `adapters` of the file has the names",
            )


@dataclass(frozen=True)
class _Checks:
    """The checks, and what they are about."""

    constraints: Constraints
    adapters: Sequence[str]
    gpu_types: Sequence[str]
    source: ProblemSource

    def names(self) -> None:
        """Refuse entries that name no adapter."""
        kinds: tuple[RuleKind, ...] = ("gpu_type", "together", "apart", "limits")
        for kind in kinds:
            for position, rule in enumerate(getattr(self.constraints, kind)):
                require_known(
                    rule.adapters,
                    adapters=self.adapters,
                    source=self.source,
                    location=("constraints", kind, position, "adapters"),
                )

    def types(self) -> None:
        """Refuse GPU types that do not exist, and adapters that no type may serve."""
        allowed = dict.fromkeys(range(len(self.adapters)), frozenset(self.gpu_types))
        for position, rule in enumerate(self.constraints.gpu_type):
            for number, name in enumerate(rule.types):
                if name not in self.gpu_types:
                    raise self.source.error(
                        f"`types` must be names of `gpu_types`: {', '.join(self.gpu_types)}. Got {name!r}",
                        location=("constraints", "gpu_type", position, "types", number),
                        value=name,
                        hint=_closest(name, self.gpu_types),
                    )
            for adapter in matching_adapters(rule.adapters, self.adapters):
                before = allowed[adapter]
                allowed[adapter] = before & set(rule.types)
                if not allowed[adapter]:
                    raise self.source.error(
                        f"rules of `gpu_type` about one adapter must have a type in common. {self.adapters[adapter]!r} "
                        f"may only be on {_listed(sorted(before))} by earlier rules, and on "
                        f"{_listed(sorted(rule.types))} by this one",
                        location=("constraints", "gpu_type", position, "types"),
                        value=rule.types,
                        hint="remove one of the rules, or give both a common type",
                    )
        for group in self._together():
            common = frozenset(self.gpu_types).intersection(*(allowed[adapter] for adapter in group))
            if not common:
                pinned = [(self.adapters[adapter], sorted(allowed[adapter])) for adapter in group]
                first = next(entry for entry in pinned if len(entry[1]) < len(self.gpu_types))
                other = next(entry for entry in pinned if not set(entry[1]) & set(first[1]))
                raise self.source.error(
                    f"adapters that must be together must have a GPU type in common. {first[0]!r} may only be on "
                    f"{_listed(first[1])}, and {other[0]!r} on {_listed(other[1])}",
                    location=self._location_of_together(group),
                    value=tuple(self.adapters[adapter] for adapter in group),
                    hint="pin all of them to one type in `gpu_type`, or take one of them out of the group",
                )

    def limits(self, common: Limits) -> None:
        """Refuse own limits that are no stricter than the one of all GPUs: they would change nothing."""
        for position, rule in enumerate(self.constraints.limits):
            for name in LIMIT_NAMES:
                own, all_gpus = getattr(rule, name), getattr(common, name)
                if own is not None and all_gpus is not None and own > all_gpus:
                    raise self.source.error(
                        f"`{name}` of single adapters must be at most that of all GPUs, {all_gpus:g}. Got {own:g}",
                        location=("constraints", "limits", position, name),
                        value=own,
                        hint=f"raise limits.{name}, and give every other adapter the stricter limit here",
                    )

    def groups(self) -> None:
        """Refuse groups that must share a GPU and must not."""
        for position, rule in enumerate(self.constraints.apart):
            apart = set(matching_adapters(rule.adapters, self.adapters))
            for group in self._together():
                both = [self.adapters[adapter] for adapter in group if adapter in apart]
                if len(both) > rule.at_most:
                    raise self.source.error(
                        f"at most {rule.at_most} of these adapters may be on a GPU, and {len(both)} of them must be "
                        f"together: {_listed(both)}",
                        location=("constraints", "apart", position, "adapters"),
                        value=tuple(both),
                        hint=f"raise `at_most` to {len(both)}, or take adapters out of one of the two groups",
                    )

    def _together(self) -> list[tuple[int, ...]]:
        return joined_groups(matching_adapters(rule.adapters, self.adapters) for rule in self.constraints.together)

    def _location_of_together(self, group: tuple[int, ...]) -> Location:
        for position, rule in enumerate(self.constraints.together):
            if set(matching_adapters(rule.adapters, self.adapters)) & set(group):
                return ("constraints", "together", position, "adapters")
        raise AssertionError("a group comes from a rule")


def _closest(name: str, names: Sequence[str]) -> str | None:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else None


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED_NAMES} more" if len(names) > LISTED_NAMES else ""
    return ", ".join(repr(name) for name in names[:LISTED_NAMES]) + more
