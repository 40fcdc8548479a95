"""All adapters on fewer GPUs than were found to do, the worst GPU as close to its limits as possible.

The GPUs with the most work of the best known placement are kept, and each other adapter goes where the surrogate then
sees the least pressure. It is no placement that anybody would want, but says where it breaks first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solvers.bounds import adapter_work, unavoidable_costs
from solvers.budget import RunningBudget
from solvers.feasibility import FeasibilityModel
from solvers.placement import GpuAssignment, Placement
from solvers.problem import Problem


@dataclass(frozen=True)
class Crowd:
    """A division of all adapters.

    Attributes
    ----------
    placement
        Of at most the GPUs that were asked for; each has an adapter.
    pressure
        How close each GPU is to the limit that it meets first, float64 [G]: 1 at it.
    is_accepted
        Whether the surrogate accepts each GPU, bool [G].
    """

    placement: Placement
    pressure: NDArray[np.float64]
    is_accepted: NDArray[np.bool_]


def crowd(
    model: FeasibilityModel, num_gpus: int, *, placement: Placement | None, budget: RunningBudget
) -> Crowd | None:
    """Put all adapters on at most `num_gpus` GPUs.

    Parameters
    ----------
    model
        Who is asked.
    num_gpus
        At least 1; fewer where `max_count` allows no more.
    placement
        Whose GPUs to begin with; ``None``: empty ones.
    budget
        When it ends, the rest goes to the GPUs with the least work, unasked.

    Returns
    -------
    ``None`` where some GPU does not start with what it was given.
    """
    problem = model.problem
    types = range(len(problem.gpu_types))
    work = np.array([adapter_work(problem, unavoidable_costs(problem, index)) for index in types])
    gpus = _Gpus(model, work, _start(problem, work, num_gpus, placement))
    placed = {adapter for members in gpus.members for adapter in members}
    least = work.min(axis=0)
    rest = [adapter for adapter in range(len(problem.adapters)) if adapter not in placed]
    for adapter in sorted(rest, key=lambda index: (-int(problem.ranks[index]), -float(least[index]), index)):
        is_asked = budget.exhausted(model.num_evaluations) is None
        gpus.add(adapter, gpus.best_for(adapter) if is_asked else int(np.argmin(gpus.load)))
    return gpus.crowd()


def _start(
    problem: Problem, work: NDArray[np.float64], num_gpus: int, placement: Placement | None
) -> list[tuple[int, tuple[int, ...]]]:
    """Return type and adapters of the GPUs to begin with: the fullest of the placement, then empty ones."""

    def load(gpu: GpuAssignment) -> float:
        return float(work[gpu.gpu_type, list(gpu.adapters)].sum())

    kept = sorted(placement.gpus if placement else (), key=load, reverse=True)[:num_gpus]
    start = [(gpu.gpu_type, gpu.adapters) for gpu in kept]
    # Where adapters need the least work, a GPU is worth the most.
    for gpu_type in np.argsort(work.sum(axis=1), kind="stable"):
        limit = problem.gpu_types[int(gpu_type)].max_count
        used = sum(1 for own, _ in start if own == gpu_type)
        room = num_gpus - len(start)
        start += [(int(gpu_type), ())] * (room if limit is None else max(0, min(room, limit - used)))
    return start


class _Gpus:
    """GPUs that take what they are given."""

    def __init__(
        self, model: FeasibilityModel, work: NDArray[np.float64], start: list[tuple[int, tuple[int, ...]]]
    ) -> None:
        self.model = model
        self.work = work
        self.gpu_type = np.array([gpu_type for gpu_type, _ in start], dtype=np.int64)
        self.members: list[list[int]] = [[] for _ in start]
        self.rows = np.zeros((len(start), model.aggregates.shape[1]))
        self.max_rank = np.zeros(len(start), dtype=np.int64)
        self.load = np.zeros(len(start))
        for gpu, (_, adapters) in enumerate(start):
            for adapter in adapters:
                self.add(adapter, gpu)

    def add(self, adapter: int, gpu: int) -> None:
        """Put an adapter on a GPU."""
        self.members[gpu].append(adapter)
        self.rows[gpu] += self.model.aggregates[adapter]
        self.max_rank[gpu] = max(int(self.max_rank[gpu]), int(self.model.problem.ranks[adapter]))
        self.load[gpu] += self.work[self.gpu_type[gpu], adapter]

    def best_for(self, adapter: int) -> int:
        """Return the GPU that is then under the least pressure, and of equal ones the one with the least work."""
        model = self.model
        members = [tuple(sorted((*own, adapter))) for own in self.members] if model.uses_members else None
        choices = model.best_choice(
            self.rows + model.aggregates[adapter],
            np.maximum(self.max_rank, model.problem.ranks[adapter]),
            self.gpu_type,
            members,
        )
        return int(np.lexsort((self.load, choices.pressure))[0])

    def crowd(self) -> Crowd | None:
        """Return what the GPUs hold, with the best slots for it."""
        used = np.array([gpu for gpu, own in enumerate(self.members) if own], dtype=np.int64)
        members = [tuple(sorted(self.members[gpu])) for gpu in used]
        choices = self.model.best_choice(
            self.rows[used],
            self.max_rank[used],
            self.gpu_type[used],
            members if self.model.uses_members else None,
        )
        if not choices.max_loras.all():
            return None
        gpus = tuple(
            GpuAssignment(
                int(self.gpu_type[gpu]), own, int(choices.max_loras[index]), int(choices.max_lora_rank[index])
            )
            for index, (gpu, own) in enumerate(zip(used, members, strict=True))
        )
        return Crowd(Placement(gpus), choices.pressure, choices.feasible)
