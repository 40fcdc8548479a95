"""dLoRA's reactive placement (OSDI'24): an integer program that evens out the engines.

dLoRA decides which requests go to which engine (x_ij) and which adapters must be there (y_kj), so that the slowest
engine is as fast as possible:

    min max_j ( execution_j + MOVE_COST_S * moved_j + overflow_j / bandwidth )

Here an adapter has one replica, so that all its requests go where it is and x follows from y. Over an interval of
`INTERVAL_S` seconds an adapter's execution is the GPU time that its expected requests need at least
(`solvers.bounds.adapter_work`); moved are adapters that the proactive placement (`solvers.baselines.dlora`) has
elsewhere; overflow is by how much the adapters' weights and the KV tokens of their running requests pass the memory
beside the model, and it is swapped over PCIe. An adapter's running requests are its output tokens/s times the step time
of a saturated GPU (`solvers.baselines.operating_point`).

PuLP with HiGHS (extra ``milp``): one thread, `RELATIVE_GAP`, `MAX_NODES` nodes, and what is left of a budget's
seconds. Beyond `MAX_BINARIES` adapters x engines, the program takes the slowest engine and the fastest ones, with so
many of their largest adapters, and is solved again until the slowest engine gets no faster. Nothing is believed of a
status: the adapters' engines are read and their seconds computed, and what is no better is dropped. It ignores slots
and what mixing ranks and adapters costs a step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solvers.baselines import dlora
from solvers.baselines.fleet import FleetTask, Groups
from solvers.baselines.operating_point import saturated_step
from twin.memory import slot_bytes

INTERVAL_S = 60.0
MOVE_COST_S = 0.05
# PCIe 4.0 x16 as it is measured.
SWAP_BYTES_PER_S = 25e9
RELATIVE_GAP = 0.02
MAX_NODES = 20
MAX_BINARIES = 60
NEIGHBOURHOOD_ENGINES = 3


@dataclass(frozen=True)
class EngineProgram:
    """The numbers of the integer program.

    Attributes
    ----------
    execution_s, memory_bytes
        Of each adapter over the interval, float64 [A].
    capacity_bytes
        Memory of an engine beside the model.
    engine_now
        Where each adapter is, int64 [A].
    num_engines
        Engines.
    """

    execution_s: NDArray[np.float64]
    memory_bytes: NDArray[np.float64]
    capacity_bytes: float
    engine_now: NDArray[np.int64]
    num_engines: int

    def seconds(self, engine_of: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return how long each engine takes under an assignment int64 [A], in seconds, float64 [G]."""

        def per_engine(weights: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.bincount(engine_of, weights=weights, minlength=self.num_engines).astype(np.float64)

        overflow = np.maximum(per_engine(self.memory_bytes) - self.capacity_bytes, 0.0)
        moved = per_engine((engine_of != self.engine_now).astype(np.float64))
        return per_engine(self.execution_s) + MOVE_COST_S * moved + overflow / SWAP_BYTES_PER_S


def place(task: FleetTask, num_gpus: int) -> Groups:
    """Improve the proactive placement by the integer program."""
    groups = dlora.place(task, num_gpus)
    if num_gpus == 1:
        return groups

    def before_each() -> float | None:
        task.require_budget()
        return task.remaining_s

    engine_of = improve(make_program(task, groups), before_each=before_each)
    return [[int(adapter) for adapter in np.flatnonzero(engine_of == engine)] for engine in range(num_gpus)]


def make_program(task: FleetTask, groups: Groups) -> EngineProgram:
    """Return the program that starts from a placement."""
    problem = task.problem
    engine_now = np.empty(task.num_adapters, dtype=np.int64)
    for engine, group in enumerate(groups):
        engine_now[group] = engine
    step_s = saturated_step(problem, task.gpu_type, int(problem.ranks.min())).duration_s
    weights = np.array([slot_bytes(problem.model, int(rank)) for rank in problem.ranks], dtype=np.float64)
    kv_bytes = problem.model.kv_bytes_per_token
    smallest = int(np.argmin(problem.ranks))
    return EngineProgram(
        execution_s=task.work * INTERVAL_S,
        memory_bytes=weights + task.column("sum_kv_token_steps") * step_s * kv_bytes,
        capacity_bytes=task.free_kv_tokens([smallest]) * kv_bytes + weights[smallest],
        engine_now=engine_now,
        num_engines=len(groups),
    )


def improve(program: EngineProgram, *, before_each: Callable[[], float | None]) -> NDArray[np.int64]:
    """Return the engine of each adapter, int64 [A], never slower than where they are.

    Parameters
    ----------
    before_each
        Called before each call of the library; it returns the limit in seconds, ``None``: no limit.
    """
    num_adapters, num_engines = len(program.execution_s), program.num_engines
    engine_of = program.engine_now
    if num_adapters * num_engines <= MAX_BINARIES:
        return reassigned(program, engine_of, np.arange(num_adapters), np.arange(num_engines), before_each())
    while True:
        seconds = program.seconds(engine_of)
        fastest = np.argsort(seconds, kind="stable")[: NEIGHBOURHOOD_ENGINES - 1]
        engines = np.unique([int(np.argmax(seconds)), *fastest])
        there = np.flatnonzero(np.isin(engine_of, engines))
        largest = there[np.argsort(-program.execution_s[there], kind="stable")][: MAX_BINARIES // len(engines)]
        better = reassigned(program, engine_of, np.sort(largest), engines, before_each())
        if program.seconds(better).max() >= seconds.max():
            return engine_of
        engine_of = better


def reassigned(
    program: EngineProgram,
    engine_of: NDArray[np.int64],
    adapters: NDArray[np.int64],
    engines: NDArray[np.int64],
    seconds: float | None,
) -> NDArray[np.int64]:
    """Return `engine_of` int64 [A] with `adapters` distributed anew over `engines`, if the program finds it faster."""
    import pulp  # noqa: PLC0415 - an optional library, for this rule only

    fixed = np.isin(engine_of, engines)
    fixed[adapters] = False
    model = pulp.LpProblem("engines", pulp.LpMinimize)
    slowest = model.add_variable("slowest_s", lowBound=0.0)
    model += slowest
    is_on = [
        [model.add_variable(f"y_{adapter}_{engine}", cat=pulp.LpBinary) for engine in engines] for adapter in adapters
    ]
    for row in is_on:
        model += pulp.lpSum(row) == 1
    for position, engine in enumerate(engines):
        here = [row[position] for row in is_on]
        stay = np.flatnonzero(fixed & (engine_of == engine))
        cost_s = program.execution_s + MOVE_COST_S * (program.engine_now != engine)
        swap_s = model.add_variable(f"swap_s_{engine}", lowBound=0.0)
        memory_s = program.memory_bytes / SWAP_BYTES_PER_S
        free_s = program.capacity_bytes / SWAP_BYTES_PER_S - float(memory_s[stay].sum())
        model += swap_s >= pulp.lpDot(memory_s[adapters].tolist(), here) - free_s
        model += slowest >= swap_s + pulp.lpDot(cost_s[adapters].tolist(), here) + float(cost_s[stay].sum())
    values = _solved(model, [variable for row in is_on for variable in row], seconds)
    if values is None:
        return engine_of
    chosen = np.reshape(values, (len(adapters), len(engines))) > 0.5
    if not (chosen.sum(axis=1) == 1).all():
        return engine_of
    result = engine_of.copy()
    result[adapters] = engines[chosen.argmax(axis=1)]
    return result if program.seconds(result).max() < program.seconds(engine_of).max() else engine_of


def _solved(model: Any, variables: list[Any], seconds: float | None) -> NDArray[np.float64] | None:
    """Solve with HiGHS; return the values of `variables`, float64 [N], or None when it has no solution."""
    import pulp  # noqa: PLC0415 - an optional library, for this rule only

    solver = pulp.HiGHS(
        msg=False, threads=1, gapRel=RELATIVE_GAP, timeLimit=seconds, mip_max_nodes=MAX_NODES, random_seed=0
    )
    # The parts of PuLP's solve without its translation of statuses, which has no word for HiGHS's node limit.
    solver.createAndConfigureSolver(model)
    solver.buildSolverModel(model)
    solver.callSolver(model)
    solution = model.solverModel.getSolution()
    if not solution.value_valid:
        return None
    return np.array([solution.col_value[variable.index] for variable in variables])
