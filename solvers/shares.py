"""Adapters on several GPUs: each is divided into shares of its traffic, which are placed as adapters of their own.

A share has its part of the rate, with the gaps that a random router leaves (`twin.thinning`), and the adapter's rank,
lengths, pins and limits. Shares of one adapter are kept apart by the machinery of `solvers.constraints`: as equal ones
are alike in every column, methods that count see one type of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from twin.thinning import divided_workload
from twin.workload import Workload

if TYPE_CHECKING:
    from solvers.problem import Problem

AnyProblem = TypeVar("AnyProblem", bound="Problem")


@dataclass(frozen=True)
class Shares:
    """What the adapters of a problem are shares of.

    Attributes
    ----------
    origin
        The problem whose adapters were divided.
    of_adapter
        The shares of each of its adapters: at least one, each in (0, 1], 1 in sum.
    """

    origin: Problem
    of_adapter: tuple[tuple[float, ...], ...]

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Number of shares of each adapter of the origin, int64 [A]."""
        return np.array([len(own) for own in self.of_adapter], dtype=np.int64)

    @cached_property
    def first(self) -> NDArray[np.int64]:
        """First share of each adapter of the origin, int64 [A]; its others follow."""
        return np.concatenate([[0], np.cumsum(self.counts)[:-1]]).astype(np.int64)

    @cached_property
    def adapter_of(self) -> NDArray[np.int64]:
        """Adapter of the origin that each share belongs to, int64 [S]."""
        return np.repeat(np.arange(len(self.counts), dtype=np.int64), self.counts)

    @property
    def groups(self) -> list[range]:
        """Shares of each adapter that has several."""
        return [self.indices_of(int(adapter)) for adapter in np.flatnonzero(self.counts > 1)]

    def indices_of(self, adapter: int) -> range:
        """Return the shares of an adapter of the origin."""
        return range(int(self.first[adapter]), int(self.first[adapter] + self.counts[adapter]))

    def divided(self, workload: Workload) -> Workload:
        """Return a workload of the origin's adapters, at whatever rates, in which each adapter is its shares."""
        return divided_workload(workload, self.of_adapter)

    def number_of(self, share: int) -> int:
        """Return which of its adapter's shares one is, from 1."""
        return share - int(self.first[self.adapter_of[share]]) + 1

    def size_of(self, share: int) -> float:
        """Return which part of its adapter's requests a share has."""
        return self.of_adapter[int(self.adapter_of[share])][self.number_of(share) - 1]


def equal_shares(counts: Sequence[int]) -> tuple[tuple[float, ...], ...]:
    """Return the shares of adapters that are divided into so many equal ones."""
    return tuple((1.0 / count,) * count for count in counts)


def divided_problem(problem: AnyProblem, shares: Sequence[Sequence[float]]) -> AnyProblem:
    """Return the problem of placing the shares of adapters.

    Parameters
    ----------
    problem
        Neither merged nor divided.
    shares
        See `Shares.of_adapter`.
    """
    assert problem.merging is None
    assert problem.shares is None
    divided = Shares(problem, tuple(tuple(own) for own in shares))
    return replace(problem, workload=divided.divided(problem.workload), shares=divided)
