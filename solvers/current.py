"""The placement that is in place now: where each adapter is, and how many a new placement would move."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from solvers.moves import match_gpus, num_staying
from twin.memory import slot_bytes

if TYPE_CHECKING:
    from solvers.merging import Merging
    from solvers.placement import GpuAssignment
    from solvers.problem import Problem


class CurrentGpu(BaseModel):
    """A GPU that serves adapters now.

    Attributes
    ----------
    gpu_type
        Name of its type; one that the problem does not have any more is a GPU that is given back.
    adapters
        Names; those that the problem does not have any more are ignored.
    name
        How the plan shall call it; ``None``: it has no name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpu_type: str = Field(min_length=1)
    adapters: tuple[str, ...]
    name: str | None = None


def check_current(current: Sequence[CurrentGpu]) -> None:
    """Raise ValueError unless every GPU of `current` names each of its adapters once, and names of GPUs are unique."""
    names: set[str] = set()
    for position, gpu in enumerate(current):
        twice = next((name for name, count in Counter(gpu.adapters).items() if count > 1), None)
        if twice is not None:
            raise ValueError(f"a GPU of `current` must name each adapter once. {twice!r} is on GPU {position} twice.")
        if gpu.name in names:
            raise ValueError(f"names of GPUs in `current` must be unique. Two are called {gpu.name!r}.")
        names |= {gpu.name} if gpu.name is not None else set()


@dataclass(frozen=True)
class CurrentFleet:
    """What of the current placement concerns the adapters of a problem.

    Attributes
    ----------
    gpu_type
        Of each GPU that is in place, int64 [C]; -1 for types that the problem does not have.
    members
        How many of the adapters that each one stands for are on each GPU now, int64 [A, C]. Shares of one adapter can
        stand for each other: what a GPU must have is the adapter's weights.
    homes
        Where each adapter would stay, if most of what it stands for did, int64 [A]; of the shares of one adapter each
        on another GPU. -1: nowhere, it is new.
    placed
        How many of the adapters that each one stands for are on any GPU now, int64 [A].
    num_placed
        Adapters, or copies of divided ones, of the problem that are on a GPU now; of an adapter that has more copies
        now than shares in the problem, as many as it has shares.
    """

    gpu_type: NDArray[np.int64]
    members: NDArray[np.int64]
    homes: NDArray[np.int64]
    placed: NDArray[np.int64]
    num_placed: int

    def shared(self, gpus: Sequence[GpuAssignment]) -> NDArray[np.int64]:
        """Return how many adapters each GPU of now has in common with each of `gpus` of its type, int64 [C, N]."""
        columns = [
            np.where(self.gpu_type == gpu.gpu_type, self.members[list(gpu.adapters)].sum(axis=0), 0) for gpu in gpus
        ]
        return np.array(columns, dtype=np.int64).reshape(len(gpus), len(self.gpu_type)).T

    def matched(self, gpus: Sequence[GpuAssignment]) -> NDArray[np.int64]:
        """Return which GPU of now each of `gpus` stands for, int64 [N]; -1: a new one (see `match_gpus`)."""
        return match_gpus(self.shared(gpus))

    def num_moves(self, gpus: Sequence[GpuAssignment]) -> int:
        """Return how many adapters that are on a GPU now would be on another one."""
        shared = self.shared(gpus)
        return self.num_placed - num_staying(shared, match_gpus(shared))


def current_fleet(problem: Problem) -> CurrentFleet:
    """Return the current placement of a problem; without one, a fleet of no GPUs."""
    types = {gpu_type.name: index for index, gpu_type in enumerate(problem.gpu_types)}
    indices = {adapter.name: index for index, adapter in enumerate(problem.told.adapters)}
    copies = np.zeros((len(indices), len(problem.current)), dtype=np.int64)
    for position, gpu in enumerate(problem.current):
        known = [indices[name] for name in gpu.adapters if name in indices]
        copies[known, position] = 1
    shares = problem.unmerged.shares
    adapter_of = np.arange(len(indices)) if shares is None else shares.adapter_of
    members, counts = copies[adapter_of], np.bincount(adapter_of, minlength=len(indices))
    placed: NDArray[np.int64] = np.asarray(members.any(axis=1), dtype=np.int64)
    if problem.merging is not None:
        members, placed = _merged(problem.merging, members), _merged(problem.merging, placed)
    gpu_type = np.array([types.get(gpu.gpu_type, -1) for gpu in problem.current], dtype=np.int64)
    num_placed = int(np.minimum(copies.sum(axis=1), counts).sum())
    return CurrentFleet(gpu_type, members, _homes(problem, members), placed, num_placed)


def _merged(merging: Merging, counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return merging.sums(np.asarray(counts, dtype=np.float64)).astype(np.int64)


def _homes(problem: Problem, members: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each adapter would stay, int64 [A]; -1: nowhere. See `CurrentFleet`."""
    if not members.shape[1]:
        return np.full(len(members), -1, dtype=np.int64)
    homes: NDArray[np.int64] = np.where(members.any(axis=1), members.argmax(axis=1), -1)
    shares = problem.unmerged.shares
    if shares is None:
        return homes
    for item in range(len(members)):
        (share, *others) = problem.members_of((item,))
        # Members of a group are never divided.
        if not others and shares.size_of(share) < 1.0:
            places = np.flatnonzero(members[item])
            number = shares.number_of(share) - 1
            homes[item] = places[number] if number < len(places) else -1
    return homes


@dataclass(frozen=True)
class Moves:
    """What a placement changes about the current one, in the adapters that users know.

    Attributes
    ----------
    matched
        For each GPU of the placement, which of `Problem.current` it stands for; ``None``: a new GPU.
    num_placed, num_moved
        Adapters of the problem that are on a GPU now, and those of them that change it. An adapter that is to be on
        several GPUs counts with each of its copies.
    num_new
        Adapters that are on no GPU now, and copies beyond those that there are.
    loaded_bytes
        Weights of the adapters that must be loaded: those that move, and the new ones.
    """

    matched: tuple[int | None, ...]
    num_placed: int
    num_moved: int
    num_new: int
    loaded_bytes: int


def moves_of(problem: Problem, gpus: Sequence[GpuAssignment]) -> Moves:
    """Return what `gpus`, a complete placement of an unmerged problem, changes about its current one."""
    fleet = current_fleet(problem)
    matched = fleet.matched(gpus)
    stays = np.zeros(len(problem.adapters), dtype=np.bool_)
    for gpu, before in zip(gpus, matched, strict=True):
        if before >= 0:
            own = np.array(gpu.adapters, dtype=np.int64)
            stays[own] = fleet.members[own, before] > 0
    loaded = sum(slot_bytes(problem.model, problem.adapters[int(index)].rank) for index in np.flatnonzero(~stays))
    return Moves(
        matched=tuple(None if before < 0 else int(before) for before in matched),
        num_placed=fleet.num_placed,
        num_moved=fleet.num_placed - int(np.count_nonzero(stays)),
        num_new=len(problem.adapters) - fleet.num_placed,
        loaded_bytes=loaded,
    )
