"""Groups that must share a GPU, as one adapter each: a problem without such groups, which every solver can look at.

What a surrogate sees of a set are sums, so a group has those of its members, and a placement of the merged problem is
one of the problem that it comes from, and the other way round, on the same GPUs and with the same predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from twin.lengths import LengthDistribution
from twin.workload import Adapter, Workload

if TYPE_CHECKING:
    from solvers.problem import Problem


@dataclass(frozen=True)
class Merging:
    """What the adapters of a merged problem stand for.

    Attributes
    ----------
    origin
        The problem whose groups were merged.
    groups
        Adapters of `origin` that each adapter of the merged problem stands for, ascending; each is in one.
    """

    origin: Problem
    groups: tuple[tuple[int, ...], ...]

    @cached_property
    def item_of(self) -> NDArray[np.int64]:
        """Adapter of the merged problem that stands for each one of the origin, int64 [A]."""
        items = np.empty(len(self.origin.adapters), dtype=np.int64)
        for item, group in enumerate(self.groups):
            items[list(group)] = item
        return items

    def sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sums over the groups of what belongs to the origin's adapters, float64 [A] or [A, ...]."""
        sums = np.zeros((len(self.groups), *values.shape[1:]))
        np.add.at(sums, self.item_of, values)
        return sums

    def largest(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the largest in each group of what belongs to the origin's adapters, int64 [A], none below 0."""
        largest = np.zeros(len(self.groups), dtype=np.int64)
        np.maximum.at(largest, self.item_of, values)
        return largest

    def expanded(self, items: Sequence[int]) -> tuple[int, ...]:
        """Return the origin's adapters for which `items` stand, ascending."""
        return tuple(sorted(adapter for item in items for adapter in self.groups[item]))


def merged_problem(problem: Problem) -> Problem:
    """Return the problem in which groups that must share a GPU are one adapter each; itself where there are none."""
    table = problem.constraint_table
    if table is None or not table.together:
        return problem
    group_of = {member: group for group in table.together for member in group}
    groups = tuple(dict.fromkeys(group_of.get(index, (index,)) for index in range(len(problem.adapters))))
    workload = Workload(
        tuple(_merged_adapter([problem.adapters[index] for index in group]) for group in groups),
        phases=problem.workload.phases,
    )
    return replace(problem, workload=workload, merging=Merging(problem, groups))


def _merged_adapter(adapters: Sequence[Adapter]) -> Adapter:
    """Return an adapter with the rate and the tokens of several; its lengths have their means only."""
    if len(adapters) == 1:
        return adapters[0]
    rates = np.array([adapter.rate_rps for adapter in adapters])
    weights = rates if rates.any() else np.ones(len(rates))

    def mean(lengths: Sequence[LengthDistribution]) -> LengthDistribution:
        means = [distribution.effective_mean for distribution in lengths]
        return LengthDistribution(mean=float(np.average(means, weights=weights)))

    return Adapter(
        name=" + ".join(adapter.name for adapter in adapters),
        rank=max(adapter.rank for adapter in adapters),
        rate_rps=float(rates.sum()),
        prompt_tokens=mean([adapter.prompt_tokens for adapter in adapters]),
        output_tokens=mean([adapter.output_tokens for adapter in adapters]),
    )
