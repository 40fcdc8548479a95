"""Exchanges between a pool of adapters and the GPUs: each makes a GPU fuller and the pool lighter.

What leaves a GPU joins the pool and may join another GPU in the next round, so that rounds make ejection chains: a
takes the place of b, b that of c, and so on.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from solvers.choices import Choices
from solvers.feasibility import NUM_ADAPTERS_COLUMN
from solvers.local_search.moves import NOBODY, GpuState, Pool, draw_exchanges, exchanged_rows
from solvers.open_fleet import OpenFleet
from solvers.run import SolverRun
from twin.engine import SUPPORTED_RANKS

# GPUs of one round, and exchanges that are tried with each.
ROUND_GPUS = 64
DRAWS_PER_GPU = 8
# A surrogate that looks at the members may simulate each set.
ROUND_GPUS_IF_SIMULATED = 4
DRAWS_PER_GPU_IF_SIMULATED = 2
MOST_ROUNDS = 12
# Rounds without success after which no further one is tried.
VAIN_ROUNDS = 2


class Exchange:
    """Makes GPUs fuller with adapters of a pool.

    Parameters
    ----------
    run
        Whose budget and whose questions these are.
    work
        Of each adapter, by which is judged who is larger, float64 [A].
    generator
        Draws what is tried.
    """

    def __init__(self, run: SolverRun, work: NDArray[np.float64], generator: np.random.Generator) -> None:
        self.run = run
        self.work = work
        self.generator = generator

    def apply(self, fleet: OpenFleet, pool: NDArray[np.int64]) -> NDArray[np.int64]:
        """Exchange adapters between the pool and GPUs, both changed, while that succeeds; return the new pool."""
        failures = 0
        for _ in range(MOST_ROUNDS):
            if self.run.exhausted() is not None or not len(pool) or failures == VAIN_ROUNDS:
                break
            pool, num_done = self._round(fleet, pool)
            failures = 0 if num_done else failures + 1
        return pool

    def _round(self, fleet: OpenFleet, pool: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
        """Ask about one batch of exchanges and make the best of each GPU; return the new pool and how many."""
        pool = pool[np.argsort(self.work[pool], kind="stable")]
        exchanges, gains = self._draw(fleet, pool)
        if not len(exchanges):
            return pool, 0
        choices = self._ask(fleet, exchanges)
        waiting = set(pool.tolist())
        changed: set[int] = set()
        added: list[int] = []
        for position in np.argsort(-gains, kind="stable"):
            gpu, leaving, joining = (int(value) for value in exchanges[position])
            if gpu in changed:
                continue
            if not choices.feasible[position]:
                if len(fleet.refused_for_work(np.array([gpu]), joining, leaving=leaving)):
                    self._remember(fleet, gpu, float(gains[position]))
            elif joining in waiting:
                fleet.exchange(gpu, None if leaving == NOBODY else leaving, joining, choices, int(position))
                waiting.remove(joining)
                changed.add(gpu)
                if leaving != NOBODY:
                    added.append(leaving)
        self.run.num_iterations += len(changed)
        return np.array([*sorted(waiting), *added], dtype=np.int64), len(changed)

    def _remember(self, fleet: OpenFleet, gpu: int, gain: float) -> None:
        """Remember that a GPU refused so much additional work at its rank."""
        refused = fleet.refused_work[gpu]
        position = int(np.searchsorted(SUPPORTED_RANKS, fleet.max_lora_rank[gpu]))
        refused[position:] = np.minimum(refused[position:], gain)

    def _draw(self, fleet: OpenFleet, pool: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return different exchanges, int64 [M, 3], and the work that each adds to its GPU, float64 [M]."""
        is_simulated = fleet.model.uses_members
        num_gpus = ROUND_GPUS_IF_SIMULATED if is_simulated else ROUND_GPUS
        draws = DRAWS_PER_GPU_IF_SIMULATED if is_simulated else DRAWS_PER_GPU
        open_gpus = fleet.open_gpus
        if len(open_gpus) > num_gpus:
            open_gpus = self.generator.choice(open_gpus, size=num_gpus, replace=False)
        exchanges = np.full((len(open_gpus) * draws, 3), NOBODY, dtype=np.int64)
        exchanges[:, 0] = np.repeat(open_gpus, draws)
        gains = np.empty(len(exchanges))
        drawn_from = Pool(pool, self.work[pool], self.work, fleet.model.problem.ranks)
        draw_exchanges(_state(fleet), drawn_from, self.generator.random((len(exchanges), 2)), exchanges, gains)
        kept = np.flatnonzero(exchanges[:, 2] != NOBODY)
        _, first = np.unique(exchanges[kept], axis=0, return_index=True)
        kept = kept[np.sort(first)]
        return exchanges[kept], gains[kept]

    def _ask(self, fleet: OpenFleet, exchanges: NDArray[np.int64]) -> Choices:
        """Ask what the GPUs would be after each exchange, with about the slots that they have."""
        model = fleet.model
        rows = np.empty((len(exchanges), fleet.rows.shape[1]))
        max_ranks = np.empty(len(exchanges), dtype=np.int64)
        exchanged_rows(fleet.rows, model.aggregates, exchanges, rows, max_ranks)
        gpus = exchanges[:, 0]
        max_loras = fleet.max_loras[gpus]
        if model.problem.fixed_max_loras is None:
            sizes = fleet.rows[gpus, NUM_ADAPTERS_COLUMN].astype(np.int64)
            grown = rows[:, NUM_ADAPTERS_COLUMN].astype(np.int64)
            # A GPU with a slot for each adapter keeps that.
            max_loras = np.where(max_loras >= sizes, grown, np.minimum(max_loras, grown))
        members = None
        if model.uses_members:
            members = [
                tuple(sorted((*(other for other in fleet.members[gpu] if other != leaving), joining)))
                for gpu, leaving, joining in exchanges.tolist()
            ]
        return model.choice_with_slots(rows, max_ranks, fleet.gpu_type[gpus], max_loras, members)


def _state(fleet: OpenFleet) -> GpuState:
    """Return what exchanges are drawn by."""
    offsets = np.zeros(len(fleet.members) + 1, dtype=np.int64)
    np.cumsum([len(members) for members in fleet.members], out=offsets[1:])
    members = np.array([adapter for members in fleet.members for adapter in members], dtype=np.int64)
    used = len(fleet.members)
    positions = np.minimum(np.searchsorted(SUPPORTED_RANKS, fleet.max_lora_rank[:used]), len(SUPPORTED_RANKS) - 1)
    room = fleet.refused_work[np.arange(used), positions]
    return GpuState(offsets, members, fleet.max_rank[:used], room)
