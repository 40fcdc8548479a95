"""dLoRA's reactive placement (OSDI'24, section 5.2): an integer program that evens out the engines.

dLoRA decides which requests go to which engine (x_ij) and which adapters must be there (y_kj), so that the slowest
engine is as fast as possible:

    min max_j ( execution_j + MOVE_COST_S * moved_j + overflow_j / bandwidth )

Here an adapter has one replica, so that all its requests go where it is and x follows from y. Over an interval of
`INTERVAL_S` seconds an adapter's execution is the GPU time that its expected requests need at least
(`solvers.bounds.adapter_work`); moved are adapters that the proactive placement (`solvers.baselines.dlora`) has
elsewhere; overflow is by how much the adapters' weights and the KV tokens of their running requests pass the memory
beside the model, and it is swapped over PCIe. An adapter's running requests are its output tokens/s times the step time
of a saturated GPU (`solvers.baselines.operating_point`).

PuLP with HiGHS (extra ``milp``): one thread, `RELATIVE_GAP`, `MAX_NODES` nodes, and what is left of a budget in seconds.
Nothing is believed of its status: the adapters' engines are read, and the proactive placement stays where they are
incomplete or no better. It ignores slots and what mixing ranks and adapters costs a step.
"""

from __future__ import annotations

from dataclasses import dataclass

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

    def slowest_s(self, engine_of: NDArray[np.int64]) -> float:
        """Return the objective of an assignment int64 [A], in seconds."""

        def per_engine(weights: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.bincount(engine_of, weights=weights, minlength=self.num_engines)

        overflow = np.maximum(per_engine(self.memory_bytes) - self.capacity_bytes, 0.0)
        moved = per_engine((engine_of != self.engine_now).astype(np.float64))
        seconds = per_engine(self.execution_s) + MOVE_COST_S * moved + overflow / SWAP_BYTES_PER_S
        return float(seconds.max())


def place(task: FleetTask, num_gpus: int) -> Groups:
    """Improve the proactive placement by the integer program."""
    groups = dlora.place(task, num_gpus)
    if num_gpus == 1:
        return groups
    program = make_program(task, groups)
    engine_of = solve_program(program, seconds=task.remaining_s)
    if engine_of is None or program.slowest_s(engine_of) > program.slowest_s(program.engine_now):
        return groups
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


def solve_program(program: EngineProgram, *, seconds: float | None = None) -> NDArray[np.int64] | None:
    """Return the engine of each adapter, int64 [A], or None when the library has no complete assignment."""
    import pulp  # noqa: PLC0415 - an optional library, for this rule only

    num_adapters, num_engines = len(program.execution_s), program.num_engines
    model = pulp.LpProblem("engines", pulp.LpMinimize)
    slowest = pulp.LpVariable("slowest_s", lowBound=float(program.execution_s.max()))
    is_on = [
        [pulp.LpVariable(f"y_{adapter}_{engine}", cat=pulp.LpBinary) for engine in range(num_engines)]
        for adapter in range(num_adapters)
    ]
    model += slowest
    for adapter in range(num_adapters):
        model += pulp.lpSum(is_on[adapter]) == 1
    for engine in range(num_engines):
        swap_s = pulp.LpVariable(f"swap_s_{engine}", lowBound=0.0)
        memory_s = program.memory_bytes / SWAP_BYTES_PER_S
        used_s = pulp.lpSum(memory_s[adapter] * is_on[adapter][engine] for adapter in range(num_adapters))
        model += swap_s >= used_s - program.capacity_bytes / SWAP_BYTES_PER_S
        cost_s = program.execution_s + MOVE_COST_S * (program.engine_now != engine)
        model += slowest >= swap_s + pulp.lpSum(
            cost_s[adapter] * is_on[adapter][engine] for adapter in range(num_adapters)
        )
    # The parts of PuLP's solve without its translation of statuses, which has no word for HiGHS's node limit.
    solver = pulp.HiGHS(
        msg=False, threads=1, gapRel=RELATIVE_GAP, timeLimit=seconds, mip_max_nodes=MAX_NODES, random_seed=0
    )
    solver.createAndConfigureSolver(model)
    solver.buildSolverModel(model)
    solver.callSolver(model)
    solution = model.solverModel.getSolution()
    if not solution.value_valid:
        return None
    values = np.array([[solution.col_value[variable.index] for variable in row] for row in is_on])
    if not ((values > 0.5).sum(axis=1) == 1).all():
        return None
    return np.asarray(values.argmax(axis=1), dtype=np.int64)
