"""The CP-SAT model: how many adapters of each type are on each GPU. The one module that knows OR-Tools.

Variables, for GPU k of K, type t of T, GPU type g:

- x[k, t], how many adapters of type t are on GPU k; y[k, g], whether GPU k is used, and is of type g;
- load[k, d], what GPU k has in dimension d, in the parts of `solvers.load_columns`.

Constraints: every adapter is placed; adapters are on used GPUs only, and a used GPU has one; no more GPUs of a type
than there are; the weights of the used GPUs (`solvers.integer_objective`) are at most a limit. GPUs are alike until
they are used, so they are numbered by load, the heaviest first. What GPUs can hold is not in the model but comes in
cuts.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray
from ortools.sat.python import cp_model

from solvers.adapter_types import AdapterTypes
from solvers.load_columns import LoadColumns
from solvers.native_call import call_interruptibly
from solvers.refusals import Cut, LoadCut, SetCut
from twin.errors import SolverError


class Outcome(Enum):
    """What CP-SAT said."""

    SOLUTION = "solution"
    """Values that keep every constraint."""
    REFUTED = "refuted"
    """There are none."""
    UNKNOWN = "unknown"
    """Its limits came first."""


_OUTCOMES = {
    cp_model.OPTIMAL: Outcome.SOLUTION,
    cp_model.FEASIBLE: Outcome.SOLUTION,
    cp_model.INFEASIBLE: Outcome.REFUTED,
    cp_model.UNKNOWN: Outcome.UNKNOWN,
}


@dataclass(frozen=True)
class Effort:
    """Limits of one call; ``None``: unlimited.

    Attributes
    ----------
    deterministic_s
        CP-SAT's own measure of work, about seconds, the same on every machine.
    seconds
        Wall time.
    num_workers
        Threads.
    """

    deterministic_s: float | None
    seconds: float | None
    num_workers: int = 1


@dataclass(frozen=True)
class Answer:
    """What one call of CP-SAT found.

    Attributes
    ----------
    counts, gpu_types
        Of the used GPUs, int64 [G, T] and [G]; ``None`` unless there is a solution.
    deterministic_s
        Work that it took.
    """

    outcome: Outcome
    counts: NDArray[np.int64] | None
    gpu_types: NDArray[np.int64] | None
    deterministic_s: float


def configured_solver(effort: Effort) -> cp_model.CpSolver:
    """Return CP-SAT with these limits, which leaves Ctrl-C to its caller."""
    solver = cp_model.CpSolver()
    parameters = solver.parameters
    # One worker repeats exactly, with the same deterministic limit.
    parameters.num_workers = effort.num_workers
    parameters.random_seed = 0
    parameters.catch_sigint_signal = False
    if effort.deterministic_s is not None:
        parameters.max_deterministic_time = effort.deterministic_s
    if effort.seconds is not None:
        parameters.max_time_in_seconds = effort.seconds
    return solver


class CountModel:
    """The model of one problem for at most a number of GPUs, to which cuts are added between calls.

    Parameters
    ----------
    types, columns
        Which adapters there are, and in which numbers their loads are counted.
    num_gpus
        K.
    weights, weight_limit
        Of a used GPU of each type, and of all together.
    max_counts
        GPUs of each type that there are; ``None``: any number.
    """

    def __init__(
        self,
        types: AdapterTypes,
        columns: LoadColumns,
        *,
        num_gpus: int,
        weights: list[int],
        weight_limit: int,
        max_counts: list[int | None],
    ) -> None:
        self.types = types
        self.columns = columns
        self.model = cp_model.CpModel()
        gpus, gpu_types = range(num_gpus), range(len(weights))
        self.x = [
            [self.model.new_int_var(0, int(count), f"x[{gpu},{index}]") for index, count in enumerate(types.counts)]
            for gpu in gpus
        ]
        self.y = [[self.model.new_bool_var(f"y[{gpu},{kind}]") for kind in gpu_types] for gpu in gpus]
        totals = types.counts @ columns.units
        self.load = [
            [self.model.new_int_var(0, int(total), f"load[{gpu},{index}]") for index, total in enumerate(totals)]
            for gpu in gpus
        ]
        # Few GPUs have the same load in the first aggregate, if there is one.
        self._ordering = min(1, len(totals) - 1)
        self._below: dict[tuple[int, int, int], cp_model.IntVar] = {}
        self._differs: dict[tuple[int, int, int, bool], cp_model.IntVar] = {}
        self._place_all()
        self._use_gpus(max_counts)
        self._order_gpus()
        self._weight = sum(weights[kind] * self.y[gpu][kind] for gpu in gpus for kind in gpu_types)
        self.limit_weight(weight_limit)

    def limit_weight(self, limit: int) -> None:
        """Allow no more than this weight from now on."""
        self.model.add(self._weight <= limit)

    def add(self, cut: Cut) -> None:
        """Add a cut for every GPU."""
        for gpu in range(len(self.x)):
            literals = self._below_in(gpu, cut.at_most) if isinstance(cut, LoadCut) else self._other_than(gpu, cut)
            self.model.add_bool_or([*literals, ~self.y[gpu][cut.gpu_type]])

    def hint(self, counts: NDArray[np.int64], gpu_types: NDArray[np.int64]) -> None:
        """Suggest to start the search at these GPUs, int64 [G, T] and [G]; those beyond the model's are left out."""
        order = np.argsort(-(counts @ self.columns.units)[:, self._ordering], kind="stable")[: len(self.x)]
        self.model.clear_hints()  # type: ignore[no-untyped-call]
        for gpu, mine in enumerate(self.x):
            used = gpu < len(order)
            for index, variable in enumerate(mine):
                self.model.add_hint(variable, int(counts[order[gpu], index]) if used else 0)
            for kind, variable in enumerate(self.y[gpu]):
                self.model.add_hint(variable, int(used and int(gpu_types[order[gpu]]) == kind))

    def solve(self, effort: Effort) -> Answer:
        """Look for values that keep all constraints and cuts so far; Ctrl-C ends it.

        Raises
        ------
        SolverError
            When CP-SAT refuses the model, which is an error of this module or of the library.
        """
        solver = configured_solver(effort)
        status = call_interruptibly(lambda: solver.solve(self.model), stop=solver.stop_search)
        if status == cp_model.MODEL_INVALID:
            raise SolverError(f"CP-SAT must accept the model. It says: {self.model.validate()}", field="solver")
        outcome = _OUTCOMES.get(status, Outcome.UNKNOWN)
        if outcome is not Outcome.SOLUTION:
            return Answer(outcome, None, None, solver.deterministic_time)
        counts = np.array([[solver.value(variable) for variable in mine] for mine in self.x], dtype=np.int64)
        kinds = np.array([[solver.value(variable) for variable in mine] for mine in self.y], dtype=np.int64)
        used = np.flatnonzero(kinds.any(axis=1))
        return Answer(outcome, counts[used], np.argmax(kinds[used], axis=1), solver.deterministic_time)

    def _place_all(self) -> None:
        for index, count in enumerate(self.types.counts):
            self.model.add(sum(mine[index] for mine in self.x) == int(count))
        for mine, load in zip(self.x, self.load, strict=True):
            for dimension, variable in enumerate(load):
                units = self.columns.units[:, dimension]
                self.model.add(
                    variable == sum(int(unit) * count for unit, count in zip(units, mine, strict=True) if unit)
                )

    def _use_gpus(self, max_counts: list[int | None]) -> None:
        for mine, kinds, load in zip(self.x, self.y, self.load, strict=True):
            self.model.add_at_most_one(kinds)
            used = sum(kinds)
            self.model.add(load[0] >= used)
            for variable, count in zip(mine, self.types.counts, strict=True):
                self.model.add(variable <= int(count) * used)
        for kind, limit in enumerate(max_counts):
            if limit is not None and limit < len(self.y):
                self.model.add(sum(kinds[kind] for kinds in self.y) <= limit)

    def _order_gpus(self) -> None:
        for heavier, lighter, kinds, next_kinds in zip(self.load, self.load[1:], self.y, self.y[1:], strict=False):
            self.model.add(heavier[self._ordering] >= lighter[self._ordering])
            self.model.add(sum(kinds) >= sum(next_kinds))

    def _below_in(self, gpu: int, at_most: tuple[tuple[int, int], ...]) -> list[cp_model.IntVar]:
        """Return literals of which one being true puts the load at or below a threshold in its dimension."""
        literals = []
        for dimension, most in at_most:
            key = (gpu, dimension, most)
            if key not in self._below:
                literal = self.model.new_bool_var(f"below{key}")
                self.model.add(self.load[gpu][dimension] <= most).only_enforce_if(literal)
                self._below[key] = literal
            literals.append(self._below[key])
        return literals

    def _other_than(self, gpu: int, cut: SetCut) -> list[cp_model.IntVar]:
        """Return literals of which one being true makes a count differ from the cut's: less, or (if allowed) more."""
        literals = []
        for index, count in enumerate(cut.counts):
            for is_more in (False, True):
                possible = count < int(self.types.counts[index]) and not cut.with_more if is_more else count > 0
                if not possible:
                    continue
                key = (gpu, index, count, is_more)
                if key not in self._differs:
                    literal = self.model.new_bool_var(f"differs{key}")
                    variable = self.x[gpu][index]
                    differs = variable >= count + 1 if is_more else variable <= count - 1
                    self.model.add(differs).only_enforce_if(literal)
                    self._differs[key] = literal
                literals.append(self._differs[key])
        return literals
