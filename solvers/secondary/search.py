"""The state of a search for better secondary values: the GPUs, how they rank, and which changes are taken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from solvers.bounds import adapter_work, unavoidable_costs
from solvers.current import CurrentFleet
from solvers.feasibility import FeasibilityModel
from solvers.headroom import COARSE_FACTORS, FINE_FACTORS, headrooms
from solvers.placement import GpuAssignment, Placement
from solvers.problem import Problem
from solvers.problem_file import SecondaryName
from solvers.run import SolverRun

Gpus = tuple[GpuAssignment, ...]
# What becomes of GPUs, by their position; None: the GPU is empty and goes.
Change = Mapping[int, GpuAssignment | None]

# GPUs with much room are asked about few factors at a time.
FACTORS_PER_QUESTION = 8


def fleet_value(problem: Problem, gpus: Gpus) -> tuple[float, float]:
    """Return number and cost of GPUs, what the objective counts first; latencies are not looked at."""
    cost = math.fsum(problem.gpu_types[gpu.gpu_type].cost_per_hour for gpu in gpus)
    return (cost, float(len(gpus))) if problem.objective == "least_cost" else (float(len(gpus)), cost)


class Ranking:
    """How placements rank: by the problem's objective, then by the secondary ones; smaller is better.

    Parameters
    ----------
    run
        Whose problem and whose questions these are.
    names
        Secondary objectives, the most important first.
    current
        What is in place now.
    """

    def __init__(self, run: SolverRun, names: Sequence[SecondaryName], current: CurrentFleet) -> None:
        self.run = run
        self.names = tuple(names)
        self.current = current
        factors = COARSE_FACTORS if run.model.uses_members else FINE_FACTORS
        self.factors: NDArray[np.float64] = factors[factors >= 1.0]
        self._rooms: dict[GpuAssignment, float] = {}

    def primary(self, gpus: Gpus) -> tuple[float, float]:
        """Return what the objective says of GPUs that are accepted; the limits of the search keep the latency."""
        return fleet_value(self.run.problem, gpus)

    def value(self, name: SecondaryName, gpus: Gpus) -> tuple[float, float]:
        """Return what a secondary objective minimises, and what shows progress where that is equal."""
        if name == "moves":
            return float(self.current.num_moves(gpus)), 0.0
        rooms = self.rooms(gpus)
        least = min(rooms)
        return -least, float(rooms.count(least))

    def rank(self, gpus: Gpus, phase: int) -> tuple[float, ...]:
        """Return the objective and the secondary values up to that of a phase, and that one's progress."""
        values = [self.value(name, gpus) for name in self.names[: phase + 1]]
        return (*self.primary(gpus), *(value for value, _ in values), *values[-1][1:])

    def rooms(self, gpus: Gpus) -> list[float]:
        """Return the headroom of each GPU, at least 0 for those that are accepted; each is asked about once."""
        missing = [gpu for gpu in dict.fromkeys(gpus) if gpu not in self._rooms]
        if missing:
            found = headrooms(self.run.model, missing, self.factors, factors_per_question=FACTORS_PER_QUESTION)
            self._rooms.update((gpu, -1.0 if room is None else room) for gpu, room in zip(missing, found, strict=True))
        return [self._rooms[gpu] for gpu in gpus]


class Search:
    """One phase: the GPUs, which only changes for the better replace.

    Parameters
    ----------
    ranking
        What is better.
    phase
        Which secondary objective is improved; those before it must not get worse.
    gpus
        A complete placement.
    generator
        Draws what is tried.

    Attributes
    ----------
    work
        Of each adapter on each GPU type, float64 [T, A]; a measure of size.
    """

    def __init__(self, ranking: Ranking, phase: int, gpus: Gpus, generator: np.random.Generator) -> None:
        self.ranking = ranking
        self.run = ranking.run
        self.problem = ranking.run.problem
        self.current = ranking.current
        self.phase = phase
        self.gpus = gpus
        self.generator = generator
        types = range(len(self.problem.gpu_types))
        self.work = np.array(
            [adapter_work(self.problem, unavoidable_costs(self.problem, gpu_type)) for gpu_type in types]
        )
        self.size: NDArray[np.float64] = self.work.mean(axis=0)
        self._rank = ranking.rank(gpus, phase)

    @property
    def is_over(self) -> bool:
        """Whether the budget has ended."""
        return self.run.exhausted() is not None

    def take(self, change: Change) -> bool:
        """Make a change of which the surrogate accepts each GPU, if that is better; return whether it is."""
        changed = {index: change.get(index, gpu) for index, gpu in enumerate(self.gpus)}
        gpus = tuple(gpu for gpu in changed.values() if gpu is not None)
        rank = self.ranking.rank(gpus, self.phase)
        if rank >= self._rank:
            return False
        self.gpus, self._rank = gpus, rank
        self.run.num_iterations += 1
        return True

    def owners(self) -> NDArray[np.int64]:
        """Return on which GPU each adapter is, int64 [A]."""
        owners = np.empty(len(self.problem.adapters), dtype=np.int64)
        for index, gpu in enumerate(self.gpus):
            owners[list(gpu.adapters)] = index
        return owners


def accepted_gpus(model: FeasibilityModel, sets: Sequence[tuple[int, Sequence[int]]]) -> list[GpuAssignment | None]:
    """Return for each set of adapters on a GPU of a type the GPU with the best slots, if the surrogate accepts it.

    Parameters
    ----------
    model
        Who is asked, in one batch.
    sets
        GPU type and adapters, at least one.
    """
    if not sets:
        return []
    members = [tuple(sorted(adapters)) for _, adapters in sets]
    rows = np.array([model.aggregates[list(own)].sum(axis=0) for own in members])
    ranks = np.array([model.problem.ranks[list(own)].max() for own in members], dtype=np.int64)
    types = np.array([gpu_type for gpu_type, _ in sets], dtype=np.int64)
    choices = model.best_choice(rows, ranks, types, members if model.uses_members else None)
    return [
        GpuAssignment(int(types[index]), own, int(choices.max_loras[index]), int(choices.max_lora_rank[index]))
        if choices.feasible[index]
        else None
        for index, own in enumerate(members)
    ]


def as_placement(gpus: Gpus) -> Placement:
    """Return GPUs as a placement."""
    return Placement(gpus)
