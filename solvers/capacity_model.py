"""A capacity model for small problems: how much work a GPU can take, piecewise linear in its number of adapters.

Sets that the surrogate accepts, drawn at random and as full as they get, show how much work goes on a GPU with so many
adapters; the concave hull of those points, raised a little, is the capacity. The model gives every adapter to a GPU
within it. Sets that the surrogate then refuses are forbidden, with everything that includes them, for all GPUs of the
type, and the model is solved again. The capacity is no bound: the model finds placements and proves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from solvers.adapter_types import AdapterTypes, placement_of_patterns, single_types
from solvers.bounds import adapter_work, unavoidable_costs
from solvers.feasible_patterns import Patterns, ask_patterns
from solvers.integer_objective import integer_objective
from solvers.interface import Capability
from solvers.milp import ask_back_end
from solvers.native_call import stopped_early
from solvers.pattern_pool import pattern_pool
from solvers.result import Bound, Termination
from solvers.run import SolverRun
from solvers.seeding import SEEDED_CAPABILITIES, SeededSolver

if TYPE_CHECKING:
    from solvers.milp_native import Program

# Adapters times GPUs above which the model is not built.
MAX_VARIABLES = 300
# Times that the model is solved again after refusals.
MAX_ROUNDS = 40
# By how much the capacity is raised above what was seen: no sample has the fullest set.
OPTIMISM = 1.05


class CapacityModelSolver(SeededSolver):
    """Adapters on GPUs by HiGHS, within a piecewise-linear capacity, with cuts from what the surrogate refuses."""

    name = "milp-capacity"
    capabilities = SEEDED_CAPABILITIES | {Capability.RANDOMISED}

    def improve(self, run: SolverRun, generator: np.random.Generator) -> tuple[Termination, Bound | None]:
        """Record better placements while the model finds them."""
        return _improve(run, generator), None


@dataclass(frozen=True)
class _Slots:
    """The GPUs of the model.

    Attributes
    ----------
    gpu_type, weight
        int64 [G].
    work
        Of each adapter on each GPU, float64 [G, A].
    segments
        Of each GPU's capacity: work <= slope * number of adapters + offset.
    """

    gpu_type: NDArray[np.int64]
    weight: NDArray[np.int64]
    work: NDArray[np.float64]
    segments: list[list[tuple[float, float]]]


def _improve(run: SolverRun, generator: np.random.Generator) -> Termination:
    """Record better placements until the model has none; return why the search ended."""
    from solvers.milp_native import Outcome  # noqa: PLC0415 - loads PuLP and HiGHS, for this solver only

    objective = integer_objective(run.problem)
    types = single_types(run.problem)
    if run.incumbent is None or run.incumbent.placement.num_gpus * types.num_types > MAX_VARIABLES:
        run.notes.append(f"The capacity model takes at most {MAX_VARIABLES:,} adapters x GPUs of a first placement.")
        return Termination.COMPLETED
    pool = pattern_pool(run, types, generator)
    if isinstance(pool, Termination):
        return pool
    slots = _slots(run, types, pool)
    refused: list[tuple[int, NDArray[np.int64]]] = []
    for _ in range(MAX_ROUNDS):
        if (ended := run.exhausted()) is not None:
            return ended
        limit = objective.weight(run.incumbent.placement) - 1
        answer = ask_back_end(run, _program(slots, refused, limit), "highs")
        if answer.outcome is Outcome.INFEASIBLE:
            return Termination.COMPLETED
        if answer.values is None:
            return stopped_early(run, "HiGHS")
        num_gpus, num_adapters = slots.work.shape
        counts = np.array(answer.values[num_gpus:], dtype=np.int64).reshape(num_gpus, num_adapters)
        used = np.flatnonzero(counts.any(axis=1))
        counts, gpu_type = counts[used], slots.gpu_type[used]
        choices = ask_patterns(run.model, types, counts, gpu_type)
        refused += [(int(gpu_type[row]), np.flatnonzero(counts[row])) for row in np.flatnonzero(~choices.feasible)]
        if choices.feasible.all():
            placement = placement_of_patterns(
                types, counts, gpu_types=gpu_type, max_loras=choices.max_loras, max_lora_ranks=choices.max_lora_rank
            )
            if not run.record(placement):
                break
    return Termination.COMPLETED


def _slots(run: SolverRun, types: AdapterTypes, pool: Patterns) -> _Slots:
    """Return as many GPUs of each type as a better placement may have."""
    assert run.incumbent is not None
    problem = run.problem
    objective = integer_objective(problem)
    weights = objective.weights
    limit = objective.weight(run.incumbent.placement) - 1
    gpu_types: list[int] = []
    work_of_type: list[NDArray[np.float64]] = []
    segments_of_type: list[list[tuple[float, float]]] = []
    order = [members[0] for members in types.members]
    for index, gpu_type in enumerate(problem.gpu_types):
        most = min(limit // weights[index], run.incumbent.placement.num_gpus)
        gpu_types += [index] * (most if gpu_type.max_count is None else min(most, gpu_type.max_count))
        work = adapter_work(problem, unavoidable_costs(problem, index))[order]
        mine = pool.counts[pool.gpu_type == index]
        work_of_type.append(work)
        segments_of_type.append(concave_hull(mine.sum(axis=1).astype(np.float64), mine @ work) if len(mine) else [])
    return _Slots(
        gpu_type=np.array(gpu_types, dtype=np.int64),
        weight=np.array([weights[index] for index in gpu_types], dtype=np.int64),
        work=np.array([work_of_type[index] for index in gpu_types]).reshape(len(gpu_types), types.num_types),
        segments=[segments_of_type[index] for index in gpu_types],
    )


def concave_hull(x: NDArray[np.float64], y: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Return (slope, offset) of lines whose minimum is the smallest concave function above some points (x, y).

    There is at least one point; all lines are at or below the highest.
    """
    order = np.lexsort((-y, x))
    hull: list[tuple[float, float]] = []
    for point in zip(x[order].tolist(), y[order].tolist(), strict=True):
        if hull and point[0] == hull[-1][0]:
            continue
        while len(hull) > 1 and _is_below(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    highest = max(value for _, value in hull)
    lines = [(0.0, highest)]
    for (left, low), (right, high) in pairwise(hull):
        slope = (high - low) / (right - left)
        lines.append((slope, low - slope * left))
    return lines


def _is_below(first: tuple[float, float], middle: tuple[float, float], last: tuple[float, float]) -> bool:
    """Return whether `middle` is at or below the line from `first` to `last`."""
    run = (last[0] - first[0]) * (middle[1] - first[1])
    return run <= (last[1] - first[1]) * (middle[0] - first[0])


def _program(slots: _Slots, refused: list[tuple[int, NDArray[np.int64]]], weight_limit: int) -> Program:
    """Return the model: variables are whether each GPU is used, then whether each adapter is on each GPU."""
    from solvers.milp_native import Program  # noqa: PLC0415 - loads PuLP and HiGHS, for this solver only

    num_gpus, num_adapters = len(slots.gpu_type), int(slots.work.shape[1])

    def variable(gpu: int, adapter: int) -> int:
        """Return the number of the variable that says whether an adapter is on a GPU."""
        return num_gpus + gpu * num_adapters + adapter

    rows: list[tuple[dict[int, float], float | None, float | None]] = [
        ({variable(gpu, adapter): 1.0 for gpu in range(num_gpus)}, 1.0, 1.0) for adapter in range(num_adapters)
    ]
    rows.append(({gpu: float(weight) for gpu, weight in enumerate(slots.weight)}, None, float(weight_limit)))
    for gpu in range(num_gpus):
        rows += [({variable(gpu, adapter): 1.0, gpu: -1.0}, None, 0.0) for adapter in range(num_adapters)]
        for slope, offset in slots.segments[gpu]:
            above = slots.work[gpu] - OPTIMISM * slope
            row = {variable(gpu, adapter): float(above[adapter]) for adapter in range(num_adapters)}
            rows.append(({**row, gpu: -OPTIMISM * offset}, None, 0.0))
        for gpu_type, adapters in refused:
            if gpu_type == slots.gpu_type[gpu]:
                together = {variable(gpu, int(adapter)): 1.0 for adapter in adapters}
                rows.append((together, None, float(len(adapters) - 1)))
        if gpu + 1 < num_gpus and slots.gpu_type[gpu] == slots.gpu_type[gpu + 1]:
            rows.append(({gpu: 1.0, gpu + 1: -1.0}, 0.0, None))
    return Program(
        costs=[*(int(weight) for weight in slots.weight), *[0] * (num_gpus * num_adapters)],
        upper=[1] * (num_gpus + num_gpus * num_adapters),
        rows=rows,
    )
