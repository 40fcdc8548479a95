"""From patterns to GPUs: real adapters for counted ones, and fewer of them where the surrogate refuses."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from solvers.adapter_types import AdapterTypes, expand_patterns
from solvers.choices import Choices
from solvers.patterns.dive import Patterns
from solvers.patterns.questions import BATCH_PATTERNS, BudgetSpentError
from solvers.placement import GpuAssignment, Placement
from solvers.run import SolverRun


def accepted_part(run: SolverRun, types: AdapterTypes, patterns: Patterns) -> tuple[Placement, NDArray[np.int64]]:
    """Return GPUs that the surrogate accepts, with the adapters of `patterns`, and the adapters that are on none.

    From a GPU that is refused, the adapter with the least work is taken whose absence is enough; where none alone is
    enough, the one with most work, and then another.

    Raises
    ------
    BudgetSpentError
        When the budget ends.
    """
    *members, left = map(list, expand_patterns(types, np.vstack([patterns.counts, patterns.left])))
    gpus: dict[int, GpuAssignment] = {}
    removed = left
    pending = np.arange(len(members))
    while len(pending):
        choices = _ask(run, [members[gpu] for gpu in pending], patterns.gpu_types[pending])
        for position, gpu in enumerate(pending):
            if choices.feasible[position]:
                gpus[int(gpu)] = GpuAssignment(
                    gpu_type=int(patterns.gpu_types[gpu]),
                    adapters=tuple(sorted(members[gpu])),
                    max_loras=int(choices.max_loras[position]),
                    max_lora_rank=int(choices.max_lora_rank[position]),
                )
        pending = pending[~choices.feasible]
        for gpu, leaver in zip(pending, _leavers(run, types, members, patterns.gpu_types, pending), strict=True):
            members[gpu].remove(leaver)
            removed.append(leaver)
        pending = np.array([gpu for gpu in pending if members[gpu]], dtype=np.int64)
    return Placement(tuple(gpus[gpu] for gpu in sorted(gpus))), np.array(sorted(removed), dtype=np.int64)


def _leavers(
    run: SolverRun,
    types: AdapterTypes,
    members: list[list[int]],
    gpu_types: NDArray[np.int64],
    pending: NDArray[np.int64],
) -> list[int]:
    """Return for each of the `pending` GPUs the adapter to take from it; bisected by work for all of them together."""
    by_work = [sorted(members[gpu], key=lambda adapter: (types.work[adapter], adapter)) for gpu in pending]
    low = np.zeros(len(pending), dtype=np.int64)
    high = np.array([len(chosen) - 1 for chosen in by_work], dtype=np.int64)
    while (low < high).any():
        middle = (low + high) // 2
        open_gpus = np.flatnonzero(low < high)
        rests = [[*by_work[row][: middle[row]], *by_work[row][middle[row] + 1 :]] for row in open_gpus]
        is_enough = _ask(run, rests, gpu_types[pending[open_gpus]]).feasible
        high[open_gpus] = np.where(is_enough, middle[open_gpus], high[open_gpus])
        low[open_gpus] = np.where(is_enough, low[open_gpus], middle[open_gpus] + 1)
    return [chosen[position] for chosen, position in zip(by_work, low, strict=True)]


def _ask(run: SolverRun, sets: list[list[int]], gpu_types: NDArray[np.int64]) -> Choices:
    """Ask about sets of adapters, none of them empty, in batches that respect the budget."""
    problem, model = run.problem, run.model
    answers = []
    for start in range(0, len(sets), BATCH_PATTERNS):
        if (ended := run.exhausted()) is not None:
            raise BudgetSpentError(ended)
        batch = sets[start : start + BATCH_PATTERNS]
        rows = np.array([problem.aggregates[chosen].sum(axis=0) for chosen in batch])
        ranks = np.array([problem.ranks[chosen].max() for chosen in batch], dtype=np.int64)
        asked = [tuple(sorted(chosen)) for chosen in batch] if model.uses_members else None
        answers.append(model.best_choice(rows, ranks, gpu_types[start : start + BATCH_PATTERNS], asked))
    return _joined(answers)


def _joined(parts: list[Choices]) -> Choices:
    return Choices(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in Choices.__dataclass_fields__}
    )
