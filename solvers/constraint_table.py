"""Constraints as sums over adapters: the one place where it is asked whether a set of adapters keeps them.

Nearly every rule is about a number of adapters on a GPU: none of those that its type may not serve, at most k of a
group, and limits that hold as soon as one adapter has them. Such numbers are sums, as the aggregates are that a
surrogate sees, and so they are further columns of them (`Problem.aggregates`): whoever adds up adapters adds them up,
too, and adapters that differ in a rule differ in their aggregates. More adapters never repair a broken rule. Only
groups that must share a GPU are no such rule: they are merged (`solvers.merging`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from predictors.features import AGGREGATE_NAMES
from solvers.constraints import LIMIT_NAMES, Constraints, joined_groups, matching_adapters
from solvers.limits import Limits, RowLimits

NUM_AGGREGATES = len(AGGREGATE_NAMES)
# Sums of real multiples of adapters, which estimates ask about, may be rounded.
ROUNDING = 1e-9


@dataclass(frozen=True)
class ConstraintTable:
    """The constraints of a problem, compiled.

    Attributes
    ----------
    columns
        How much each adapter adds to each number, float64 [A, C]: first, if `num_types`, whether GPUs of each type may
        not serve it; then whether it is of each group of `at_most`; then whether it has each of the `levels`.
    num_types
        GPU types, or 0 where all types may serve all adapters.
    at_most
        Most adapters of each group on one GPU, float64 [J].
    levels
        (position in `LIMIT_NAMES`, value) of adapters' own limits; the strictest of each kind last.
    together
        Groups that must share a GPU, at least two adapters each.
    """

    columns: NDArray[np.float64]
    num_types: int
    at_most: NDArray[np.float64]
    levels: tuple[tuple[int, float], ...]
    together: tuple[tuple[int, ...], ...]

    @cached_property
    def has_own_limit(self) -> NDArray[np.bool_]:
        """Whether each adapter has limits of its own, bool [A]."""
        return np.asarray(self.columns[:, self._first_level :].any(axis=1))

    @cached_property
    def allowed_types(self) -> NDArray[np.bool_] | None:
        """Whether GPUs of each type may serve each adapter, bool [A, T]; ``None``: all may serve all."""
        return np.asarray(self.columns[:, : self.num_types] == 0.0) if self.num_types else None

    def allows(self, rows: NDArray[np.float64], gpu_types: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether GPUs of these types, int64 [N], may serve sets with these aggregates, bool [N].

        Parameters
        ----------
        rows
            Sums of `Problem.aggregates`, float64 [N, K + C]; without the columns of constraints, all are allowed.
        """
        own = rows[:, NUM_AGGREGATES:]
        if not own.shape[1]:
            return np.ones(len(rows), dtype=np.bool_)
        groups = own[:, self.num_types : self._first_level]
        allowed = (groups <= self.at_most * (1.0 + ROUNDING)).all(axis=1)
        if self.num_types:
            allowed &= own[np.arange(len(rows)), gpu_types] <= 0.0
        return np.asarray(allowed)

    def limits_of(self, rows: NDArray[np.float64], common: Limits) -> RowLimits:
        """Return what GPUs that serve sets with these aggregates, float64 [N, K + C], must keep."""
        limits = RowLimits.same(common, len(rows))
        own = rows[:, NUM_AGGREGATES + self._first_level :]
        if not own.shape[1]:
            return limits
        columns = [getattr(limits, name) for name in LIMIT_NAMES]
        for position, (kind, value) in enumerate(self.levels):
            columns[kind][own[:, position] > 0.0] = value
        return limits

    @property
    def _first_level(self) -> int:
        return self.num_types + len(self.at_most)

    def merged(self, columns: NDArray[np.float64]) -> ConstraintTable:
        """Return the table of merged adapters, with the sums of their columns."""
        return replace(self, columns=columns, together=())


def compile_constraints(
    constraints: Constraints,
    *,
    adapters: Sequence[str],
    gpu_types: Sequence[str],
    limits: Limits,
    alternatives: Sequence[Sequence[int]] = (),
) -> ConstraintTable | None:
    """Return what a placement must keep; None where nothing is constrained.

    Parameters
    ----------
    constraints
        By the names of adapters and GPU types.
    adapters, gpu_types
        Their names; shares of one adapter have its name.
    limits
        Those of all GPUs.
    alternatives
        Groups of adapters, by index, of which a GPU serves one at most: the shares of each divided adapter.
    """
    forbidden = np.zeros((len(adapters), len(gpu_types)))
    for pinned in constraints.gpu_type:
        outside = [index for index, name in enumerate(gpu_types) if name not in pinned.types]
        forbidden[np.ix_(matching_adapters(pinned.adapters, adapters), outside)] = 1.0
    num_types = len(gpu_types) if forbidden.any() else 0
    columns = list(forbidden.T[:num_types])
    at_most = []
    for apart in constraints.apart:
        group: Sequence[int] = matching_adapters(apart.adapters, adapters)
        if len(group) > apart.at_most:
            columns.append(_indicator(group, len(adapters)))
            at_most.append(float(apart.at_most))
    for group in alternatives:
        columns.append(_indicator(group, len(adapters)))
        at_most.append(1.0)
    levels: dict[tuple[int, float], NDArray[np.float64]] = {}
    for own in constraints.limits:
        indicator = _indicator(matching_adapters(own.adapters, adapters), len(adapters))
        for kind, name in enumerate(LIMIT_NAMES):
            value, common = getattr(own, name), getattr(limits, name)
            if value is not None and (common is None or value < common) and indicator.any():
                levels[kind, value] = np.maximum(levels.get((kind, value), 0.0), indicator)
    ordered = sorted(levels, reverse=True)
    columns += [levels[level] for level in ordered]
    together = joined_groups(matching_adapters(rule.adapters, adapters) for rule in constraints.together)
    if not columns and not together:
        return None
    return ConstraintTable(
        columns=np.stack(columns, axis=1) if columns else np.zeros((len(adapters), 0)),
        num_types=num_types,
        at_most=np.array(at_most, dtype=np.float64),
        levels=tuple(ordered),
        together=tuple(together),
    )


def _indicator(members: Sequence[int], length: int) -> NDArray[np.float64]:
    indicator = np.zeros(length)
    indicator[list(members)] = 1.0
    return indicator
