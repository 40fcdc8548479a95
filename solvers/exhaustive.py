"""The optimum of tiny problems: every set is asked about, and the best division into sets follows exactly.

Nothing is assumed about the surrogate; in particular, it may accept a set and refuse part of it. The optimum is that of
the surrogate's problem with the slots that planning tries (`solvers.slots`).

Divisions are built set by set. A state is what has been placed, as counts per adapter type; the next set must hold an
adapter of the first type that is not complete, so no division is seen in two orders. Where GPU types are scarce, a
state remembers the best way for each number of them that was used.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solvers.adapter_types import AdapterTypes, placement_of_patterns
from solvers.feasible_patterns import Patterns, feasible_patterns, interchangeable_types, num_sets
from solvers.integer_objective import integer_objective
from solvers.interface import Capability
from solvers.proven import NO_PLACEMENT, proven
from solvers.result import Bound, Termination
from solvers.run import SolverRun
from solvers.seeding import SEEDED_CAPABILITIES, SeededSolver

# Different sets of adapters, the empty one included: all of 12 adapters of which no two are alike.
MAX_SETS = 4096
PROOF = "enumeration"

# GPUs used so far of each scarce type.
_Usage = tuple[int, ...]


class ExhaustiveSolver(SeededSolver):
    """Exact for tiny problems, by asking about every set; above `MAX_SETS` sets, best fit's answer without a proof."""

    name = "exact"
    capabilities = SEEDED_CAPABILITIES | {Capability.BOUND}

    def improve(self, run: SolverRun, generator: np.random.Generator) -> tuple[Termination, Bound | None]:
        """Record and prove the optimum; nothing is random."""
        del generator
        types = interchangeable_types(run.model)
        if num_sets(types) > MAX_SETS:
            run.notes.append(
                f"Nothing was proven: there are {num_sets(types):,} sets of these adapters, and `exact` asks about at "
                f"most {MAX_SETS:,}. This is what best fit finds; take `cpsat` or `patterns` for a better answer."
            )
            return Termination.COMPLETED, None
        patterns = feasible_patterns(run, types)
        if isinstance(patterns, Termination):
            return patterns, None
        division = _Divisions(run, types, patterns).best()
        if isinstance(division, Termination):
            return division, None
        if division is None:
            run.notes.append(NO_PLACEMENT)
            return Termination.PROVEN, None
        placement = placement_of_patterns(
            types,
            patterns.counts[division],
            gpu_types=patterns.gpu_type[division],
            max_loras=patterns.max_loras[division],
            max_lora_ranks=patterns.max_lora_rank[division],
        )
        return proven(run, placement, PROOF)


@dataclass(frozen=True)
class _Label:
    """The best known way to place a state's adapters: its weight, the last pattern, and where it came from."""

    weight: int
    pattern: int
    previous: tuple[int, _Usage] | None


class _Divisions:
    """Divisions of all adapters into patterns; see the module."""

    def __init__(self, run: SolverRun, types: AdapterTypes, patterns: Patterns) -> None:
        self.run = run
        self.types = types
        self.patterns = patterns
        self.weights = integer_objective(run.problem).weights
        self.shape = tuple(int(count) + 1 for count in types.counts)
        self.codes: NDArray[np.int64] = np.ravel_multi_index(tuple(patterns.counts.T), self.shape).astype(np.int64)
        first = np.argmax(patterns.counts > 0, axis=1)
        self.with_first = [np.flatnonzero(first == index) for index in range(types.num_types)]
        limits = [gpu_type.max_count for gpu_type in run.problem.gpu_types]
        num_adapters = len(run.problem.adapters)
        # Position in a usage of each scarce GPU type, and how many there are of it.
        scarce = [index for index, limit in enumerate(limits) if limit is not None and limit < num_adapters]
        self.position = {gpu_type: position for position, gpu_type in enumerate(scarce)}
        self.limit = [limits[gpu_type] or 0 for gpu_type in scarce]

    def best(self) -> list[int] | Termination | None:
        """Return the patterns of the best division, None when there is none, or why there was no time to find it."""
        everything = int(np.prod(self.shape)) - 1
        nothing: _Usage = (0,) * len(self.limit)
        labels: dict[int, dict[_Usage, _Label]] = {0: {nothing: _Label(0, -1, None)}}
        for state in range(everything):
            if state not in labels:
                continue
            if (ended := self.run.exhausted()) is not None:
                return ended
            self.run.num_iterations += 1
            for pattern in self._following(state):
                target = labels.setdefault(state + int(self.codes[pattern]), {})
                self._extend(labels[state], state, pattern, target)
        if not labels.get(everything):
            return None
        key = (everything, min(labels[everything], key=lambda usage: (labels[everything][usage].weight, usage)))
        return self._trace(labels, key)

    def _following(self, state: int) -> list[int]:
        """Return the patterns that may come next: within what is left, with its first type."""
        placed = np.array(np.unravel_index(state, self.shape), dtype=np.int64)
        left = self.types.counts - placed
        candidates = self.with_first[int(np.argmax(left > 0))]
        fitting = candidates[(self.patterns.counts[candidates] <= left).all(axis=1)]
        return [int(pattern) for pattern in fitting]

    def _extend(self, ways: dict[_Usage, _Label], state: int, pattern: int, target: dict[_Usage, _Label]) -> None:
        """Add `pattern` to every way of reaching `state`, where there is a GPU of its type left."""
        gpu_type = int(self.patterns.gpu_type[pattern])
        position = self.position.get(gpu_type)
        for usage, label in ways.items():
            used = usage
            if position is not None:
                if usage[position] == self.limit[position]:
                    continue
                used = (*usage[:position], usage[position] + 1, *usage[position + 1 :])
            weight = label.weight + self.weights[gpu_type]
            if used not in target or weight < target[used].weight:
                target[used] = _Label(weight, pattern, (state, usage))

    def _trace(self, labels: dict[int, dict[_Usage, _Label]], key: tuple[int, _Usage]) -> list[int]:
        division: list[int] = []
        label = labels[key[0]][key[1]]
        while label.previous is not None:
            division.append(label.pattern)
            state, usage = label.previous
            label = labels[state][usage]
        return division[::-1]
