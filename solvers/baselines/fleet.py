"""What a baseline sees of a problem, how its slots are chosen, and whether the surrogate accepts its fleet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from predictors.features import AGGREGATE_NAMES
from predictors.surrogate import SurrogateOutput
from solvers import acceptance
from solvers.bounds import adapter_work, unavoidable_costs
from solvers.budget import RunningBudget
from solvers.choices import Choices, Settings
from solvers.feasibility import FeasibilityModel
from solvers.placement import GpuAssignment, Placement
from solvers.problem import Problem
from solvers.result import Termination
from solvers.run import SolverRun

Groups = list[list[int]]
"""The adapters of each GPU; a rule may leave GPUs empty."""


class BudgetSpentError(Exception):
    """The budget ended inside a rule; `termination` says which limit."""

    def __init__(self, termination: Termination) -> None:
        super().__init__(termination.value)
        self.termination = termination


@dataclass(frozen=True)
class FleetTask:
    """One search for a fleet of GPUs of one type.

    Attributes
    ----------
    run
        Counts questions and knows the budget.
    gpu_type
        Index into the problem's GPU types.
    seed
        Of rules that draw.
    clock
        The running budget, for libraries that take a time limit.
    """

    run: SolverRun
    gpu_type: int
    seed: int
    clock: RunningBudget

    @property
    def problem(self) -> Problem:
        """What is placed."""
        return self.run.problem

    @property
    def model(self) -> FeasibilityModel:
        """Who is asked."""
        return self.run.model

    @property
    def num_adapters(self) -> int:
        """Adapters of the problem."""
        return len(self.problem.adapters)

    @property
    def remaining_s(self) -> float | None:
        """Seconds left of the budget, at least 0; ``None``: unlimited."""
        limit = self.clock.budget.seconds
        return None if limit is None else max(limit - self.clock.elapsed_s, 0.0)

    @cached_property
    def rates_rps(self) -> NDArray[np.float64]:
        """Mean requests per second of each adapter, float64 [A]."""
        return self.column("sum_rate_rps")

    @cached_property
    def offered_tps(self) -> NDArray[np.float64]:
        """Prompt + output tokens per second of each adapter, float64 [A]."""
        return self.column("sum_prompt_tps") + self.column("sum_output_tps")

    @cached_property
    def work(self) -> NDArray[np.float64]:
        """GPU-seconds per second that each adapter needs at least, float64 [A]; see `solvers.bounds`."""
        return adapter_work(self.problem, unavoidable_costs(self.problem, self.gpu_type))

    def column(self, name: str) -> NDArray[np.float64]:
        """Return one aggregate of each adapter, float64 [A]."""
        return np.asarray(self.problem.aggregates[:, AGGREGATE_NAMES.index(name)], dtype=np.float64)

    def require_budget(self) -> None:
        """Raise `BudgetSpentError` when nothing of the budget is left; long rules call it in their loops."""
        ended = self.run.exhausted()
        if ended is not None:
            raise BudgetSpentError(ended)

    def max_rank(self, members: Sequence[int]) -> int:
        """Return the largest rank of some adapters, at least one."""
        return int(self.problem.ranks[list(members)].max())

    def slots_limit(self, members: Sequence[int]) -> int:
        """Return the most slots with which a replica of these adapters starts; 0: it does not."""
        return self.model.slots.limit(self.gpu_type, self.max_rank(members))

    def free_kv_tokens(self, members: Sequence[int]) -> int:
        """Return the KV capacity that is left when each of these adapters, as far as memory goes, has a slot."""
        limit = self.slots_limit(members)
        if limit == 0:
            return 0
        slots = self.problem.fixed_max_loras or min(len(members), limit)
        return self.model.slots.kv_tokens(self.gpu_type, slots, self.model.slots.rank_of_slots(self.max_rank(members)))

    def best_choice(self, groups: Groups) -> Choices:
        """Ask for the best slots of each group (none empty), in one batch."""
        rows, ranks = self._rows(groups)
        members = [tuple(sorted(group)) for group in groups] if self.model.uses_members else None
        return self.model.best_choice(rows, ranks, self.gpu_type, members)

    def predict(self, groups: Groups, slots: Sequence[int]) -> SurrogateOutput:
        """Ask about each group (none empty) with given slots, in one batch; a replica must start with them."""
        rows, max_ranks = self._rows(groups)
        ranks = [self.model.slots.rank_of_slots(int(rank)) for rank in max_ranks]
        kv_tokens = [
            self.model.slots.kv_tokens(self.gpu_type, count, rank) for count, rank in zip(slots, ranks, strict=True)
        ]
        settings = Settings(
            gpu_type=np.full(len(groups), self.gpu_type, dtype=np.int64),
            max_loras=np.array(slots, dtype=np.int64),
            max_lora_rank=np.array(ranks, dtype=np.int64),
            kv_tokens=np.array(kv_tokens, dtype=np.int64),
        )
        members = [tuple(sorted(group)) for group in groups] if self.model.uses_members else None
        return self.model.predict(rows, settings, members=members)

    def accepted(self, groups: Groups, slots: Sequence[int]) -> Placement | None:
        """Return the placement of some groups (none empty), or None when a GPU does not start or is refused."""
        if any(count > self.slots_limit(group) for group, count in zip(groups, slots, strict=True)):
            return None
        if not acceptance.accepts(self.problem.limits, self.predict(groups, slots)).all():
            return None
        return Placement(
            tuple(
                GpuAssignment(
                    gpu_type=self.gpu_type,
                    adapters=tuple(sorted(group)),
                    max_loras=count,
                    max_lora_rank=self.model.slots.rank_of_slots(self.max_rank(group)),
                )
                for group, count in zip(groups, slots, strict=True)
            )
        )

    def _rows(self, groups: Groups) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        rows = np.array([self.model.aggregates[group].sum(axis=0) for group in groups])
        return rows, np.array([self.max_rank(group) for group in groups], dtype=np.int64)


FleetRule = Callable[[FleetTask, int], Groups | None]
"""Distributes all adapters over a number of GPUs; None: the rule itself says that they are too few."""

SlotRule = Callable[[FleetTask, Groups], list[int] | None]
"""Chooses the slots of each group; None: no slots do. Settings that the problem fixes come before any rule."""


def best_slots(task: FleetTask, groups: Groups) -> list[int] | None:
    """Let the surrogate choose, for systems whose papers do not say how many adapters a batch may mix."""
    choices = task.best_choice(groups)
    return [int(slots) for slots in choices.max_loras] if choices.feasible.all() else None


def one_slot_per_adapter(task: FleetTask, groups: Groups) -> list[int]:
    """Give every adapter a slot, also where memory does not allow it: such a GPU is refused."""
    del task
    return [len(group) for group in groups]


def one_slot_per_two_adapters(task: FleetTask, groups: Groups) -> list[int]:
    """Give two adapters one slot; rounded down, at least one."""
    del task
    return [max(len(group) // 2, 1) for group in groups]
