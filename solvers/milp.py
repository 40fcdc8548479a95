"""The pattern master: which sets of adapters, of those that a GPU can hold, cover all adapters at the least cost.

With few different sets, every one is asked about, and the master over all that are accepted is the problem itself: its
optimum is the optimum, whatever the surrogate. With more, the master chooses from a pool, and its answer is a
placement without a proof. Adapters that a choice from the pool covers twice are taken off one GPU, and what is left of
it is asked about again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from solvers.adapter_types import AdapterTypes, placement_of_patterns
from solvers.feasible_patterns import Patterns, ask_patterns, feasible_patterns, interchangeable_types, num_sets
from solvers.integer_objective import integer_objective
from solvers.interface import Capability
from solvers.native_call import stopped_early
from solvers.pattern_pool import pattern_pool
from solvers.placement import Placement
from solvers.problem import Problem
from solvers.proven import NO_PLACEMENT, proven
from solvers.result import Bound, Termination
from solvers.run import SolverRun
from solvers.seeding import SEEDED_CAPABILITIES, SeededSolver

if TYPE_CHECKING:
    from solvers.milp_native import Answer, BackEnd, Program

# Different sets of adapters, the empty one included, up to which every one is asked about.
MAX_SETS = 4096
# Nodes of the native search: where a budget counts evaluations, one for so many; and without any limit.
EVALUATIONS_PER_NODE = 10
DEFAULT_NODES = 300
PROOF = "pattern master"

MilpName = Literal["milp", "milp-cbc"]
_BACK_ENDS: dict[MilpName, BackEnd] = {"milp": "highs", "milp-cbc": "cbc"}


class MilpSolver(SeededSolver):
    """The pattern master by HiGHS (``milp``) or CBC (``milp-cbc``)."""

    capabilities = SEEDED_CAPABILITIES | {Capability.RANDOMISED, Capability.BOUND}

    def __init__(self, name: MilpName) -> None:
        self.name = name
        self._back_end = _BACK_ENDS[name]

    def improve(self, run: SolverRun, generator: np.random.Generator) -> tuple[Termination, Bound | None]:
        """Solve the master over all accepted sets if they can be listed, else over a pool."""
        types = interchangeable_types(run.model)
        if num_sets(types) <= MAX_SETS:
            patterns = feasible_patterns(run, types)
            if isinstance(patterns, Termination):
                return patterns, None
            return self._solve_complete(run, types, patterns)
        pool = pattern_pool(run, types, generator)
        if isinstance(pool, Termination):
            return pool, None
        return self._solve_pool(run, types, pool), None

    def _solve_complete(
        self, run: SolverRun, types: AdapterTypes, patterns: Patterns
    ) -> tuple[Termination, Bound | None]:
        """Solve the master over all accepted patterns: first for the objective, then for what breaks ties."""
        from solvers.milp_native import Outcome  # noqa: PLC0415 - loads PuLP and HiGHS, for this solver only

        objective = integer_objective(run.problem)
        primary, secondary = (costs[patterns.gpu_type] for costs in (objective.primary, objective.secondary))
        answer = self._answer(run, _master(run.problem, types, patterns, primary, is_partition=True))
        if answer.outcome is Outcome.INFEASIBLE:
            run.notes.append(NO_PLACEMENT)
            return Termination.PROVEN, None
        if answer.values is None:
            return stopped_early(run, self.name), None
        if answer.outcome is Outcome.OPTIMAL and len(run.problem.gpu_types) > 1:
            least = int(np.dot(primary, answer.values))
            second = _master(run.problem, types, patterns, secondary, is_partition=True)
            second.rows.append(({index: float(cost) for index, cost in enumerate(primary)}, None, least))
            refined = self._answer(run, second)
            answer = refined if refined.outcome is Outcome.OPTIMAL else answer
        placement = _placement(types, patterns.take(_chosen(answer)))
        if answer.outcome is Outcome.OPTIMAL:
            return proven(run, placement, PROOF)
        run.record(placement)
        return stopped_early(run, self.name), None

    def _solve_pool(self, run: SolverRun, types: AdapterTypes, pool: Patterns) -> Termination:
        """Choose from a pool something better than the best so far; record the placement if there is one."""
        from solvers.milp_native import Outcome  # noqa: PLC0415 - loads PuLP and HiGHS, for this solver only

        objective = integer_objective(run.problem)
        costs = np.array(objective.weights, dtype=np.int64)[pool.gpu_type]
        master = _master(run.problem, types, pool, costs, is_partition=False)
        if run.incumbent is not None:
            limit = objective.weight(run.incumbent.placement) - 1
            master.rows.append(({index: float(cost) for index, cost in enumerate(costs)}, None, float(limit)))
        answer = self._answer(run, master)
        if answer.outcome is Outcome.INFEASIBLE:
            return Termination.COMPLETED
        if answer.values is None:
            return stopped_early(run, self.name)
        chosen = pool.take(_chosen(answer))
        counts = _without_surplus(chosen.counts, types.counts)
        used = counts.any(axis=1)
        counts, gpu_type = counts[used], chosen.gpu_type[used]
        choices = ask_patterns(run.model, types, counts, gpu_type)
        if choices.feasible.all():
            run.record(_placement(types, Patterns(counts, gpu_type, choices.max_loras, choices.max_lora_rank)))
        return run.exhausted() or Termination.COMPLETED

    def _answer(self, run: SolverRun, program: Program) -> Answer:
        return ask_back_end(run, program, self._back_end)


def ask_back_end(run: SolverRun, program: Program, back_end: BackEnd) -> Answer:
    """Let a back end solve a program within what is left of the run's budget, or within the default effort."""
    from solvers.milp_native import solve_program  # noqa: PLC0415 - loads PuLP and HiGHS, for this solver only

    run.num_iterations += 1
    budget = run.budget.budget
    nodes = DEFAULT_NODES if budget.seconds is None else None
    if budget.max_evaluations is not None:
        nodes = 1 + budget.max_evaluations // EVALUATIONS_PER_NODE
    return solve_program(program, back_end, seconds=run.budget.remaining_s, max_nodes=nodes)


def _master(
    problem: Problem, types: AdapterTypes, patterns: Patterns, costs: NDArray[np.int64], *, is_partition: bool
) -> Program:
    """Return the master: how often each pattern is used, so that every adapter is covered (exactly once, or more)."""
    from solvers.milp_native import Program  # noqa: PLC0415 - loads PuLP and HiGHS, for this solver only

    rows: list[tuple[dict[int, float], float | None, float | None]] = []
    for index, demand in enumerate(types.counts):
        with_type = np.flatnonzero(patterns.counts[:, index])
        coefficients = {int(pattern): float(patterns.counts[pattern, index]) for pattern in with_type}
        rows.append((coefficients, float(demand), float(demand) if is_partition else None))
    for index, gpu_type in enumerate(problem.gpu_types):
        of_type = np.flatnonzero(patterns.gpu_type == index)
        if gpu_type.max_count is not None and len(of_type):
            rows.append(({int(pattern): 1.0 for pattern in of_type}, None, float(gpu_type.max_count)))
    return Program(costs=[int(cost) for cost in costs], upper=[None] * len(patterns), rows=rows)


def _chosen(answer: Answer) -> NDArray[np.int64]:
    """Return the patterns that an answer uses, each as often as it does."""
    assert answer.values is not None
    return np.repeat(np.arange(len(answer.values)), answer.values)


def _without_surplus(counts: NDArray[np.int64], demand: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return patterns, int64 [G, T], without what more than covers the demand: the last GPUs lose it."""
    placed = np.cumsum(counts, axis=0)
    return np.asarray(np.clip(demand - (placed - counts), 0, counts), dtype=np.int64)


def _placement(types: AdapterTypes, gpus: Patterns) -> Placement:
    return placement_of_patterns(
        types, gpus.counts, gpu_types=gpus.gpu_type, max_loras=gpus.max_loras, max_lora_ranks=gpus.max_lora_rank
    )
