"""Fill one GPU against a surrogate as solvers do: with each adapter, in turn, that is accepted with some slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from predictors.errors import is_feasible
from predictors.features import AGGREGATE_NAMES, adapter_aggregates, planned_features
from predictors.slots import SlotOptions, best_options
from predictors.surrogate import Surrogate
from twin.replica import Replica
from twin.workload import Adapter

# Adapters that are asked about in one batch: the next ones together, and the next ones each for itself.
_LEAST_RUN = 8
_LOOK_AHEAD = 64
_NUM_ADAPTERS = AGGREGATE_NAMES.index("num_adapters")


@dataclass(frozen=True)
class PackedGpu:
    """What a packer puts on one GPU: indices of the adapters in the order in which they came, and the slots chosen."""

    members: tuple[int, ...]
    max_loras: int
    max_lora_rank: int


class Packer:
    """Adapters in the order in which a packer takes them, and the GPU that it fills with them.

    Parameters
    ----------
    adapters
        A >= 1 adapters.
    replica
        Of the GPU; slots, their rank and the CPU cache are the packer's to choose, all else is taken as it is.
    """

    def __init__(self, adapters: Sequence[Adapter], replica: Replica) -> None:
        self.adapters = tuple(adapters)
        self._template = replica
        self._aggregates = adapter_aggregates(self.adapters)
        self._ranks = np.array([adapter.rank for adapter in self.adapters], dtype=np.int64)
        self._slots = SlotOptions(self._kv_tokens, num_adapters=len(self.adapters))

    def fill(self, surrogate: Surrogate) -> PackedGpu | None:
        """Return the GPU when no adapter that is left would be accepted on it; None: not one is accepted alone.

        An adapter that is refused is passed over, as first and best fit do: it goes to another GPU, and smaller ones
        that come later fill the gap. Of several numbers of slots the one is taken that planning takes
        (`predictors.slots.best_options`).
        """
        gpu = PackedGpu((), 0, 0)
        position = self._next_accepted(surrogate, gpu, 0)
        while position < len(self.adapters):
            gpu, position = self._add_run(surrogate, gpu, position)
            position = self._next_accepted(surrogate, gpu, position)
        return gpu if gpu.members else None

    def replica(self, gpu: PackedGpu) -> Replica:
        """Return the replica that serves a packed GPU."""
        return self._with_slots(gpu.max_loras, gpu.max_lora_rank, len(gpu.members))

    def _add_run(self, surrogate: Surrogate, gpu: PackedGpu, start: int) -> tuple[PackedGpu, int]:
        """Add adapters from `start` on up to the first that is refused; return also where to go on."""
        stop = min(start + max(_LEAST_RUN, 2 * len(gpu.members)), len(self.adapters))
        rows = self._sum_of(gpu) + np.cumsum(self._aggregates[start:stop], axis=0)
        ranks = np.maximum(np.maximum.accumulate(self._ranks[start:stop]), gpu.max_lora_rank)
        accepted, max_loras = self._ask(surrogate, rows, ranks)
        count = int(np.argmin(accepted)) if not accepted.all() else stop - start
        # The caller has asked about the first one.
        assert count, start
        members = (*gpu.members, *range(start, start + count))
        return PackedGpu(members, int(max_loras[count - 1]), int(ranks[count - 1])), start + count

    def _next_accepted(self, surrogate: Surrogate, gpu: PackedGpu, start: int) -> int:
        """Return the position of the next adapter that the GPU may have as well; the number of adapters: none."""
        for begin in range(start, len(self.adapters), _LOOK_AHEAD):
            chosen = slice(begin, begin + _LOOK_AHEAD)
            rows = self._sum_of(gpu) + self._aggregates[chosen]
            accepted, _ = self._ask(surrogate, rows, np.maximum(self._ranks[chosen], gpu.max_lora_rank))
            if accepted.any():
                return begin + int(np.argmax(accepted))
        return len(self.adapters)

    def _sum_of(self, gpu: PackedGpu) -> NDArray[np.float64]:
        total: NDArray[np.float64] = self._aggregates[list(gpu.members)].sum(axis=0)
        return total

    def _ask(
        self, surrogate: Surrogate, rows: NDArray[np.float64], ranks: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Return for N sets, with their aggregates and largest ranks, whether each is accepted and with which slots."""
        sizes = rows[:, _NUM_ADAPTERS].astype(np.int64)
        owners, slots, capacities = [], [], []
        for rank in np.unique(ranks):
            sets = np.flatnonzero(ranks == rank)
            owner, max_loras, kv_tokens = self._slots.all_options(int(rank), sizes[sets])
            owners.append(sets[owner])
            slots.append(max_loras)
            capacities.append(kv_tokens)
        owner, max_loras = np.concatenate(owners), np.concatenate(slots)
        features = planned_features(
            rows[owner],
            self._template.engine,
            max_loras=max_loras,
            max_lora_rank=ranks[owner],
            kv_tokens=np.concatenate(capacities),
        )
        output = surrogate.predict(features)
        feasible = is_feasible(output)
        best = best_options(owner, max_loras, feasible, output)
        accepted, chosen = np.zeros(len(rows), dtype=np.bool_), np.zeros(len(rows), dtype=np.int64)
        accepted[owner[best]], chosen[owner[best]] = feasible[best], max_loras[best]
        return accepted, chosen

    def _kv_tokens(self, slots: int, rank: int) -> int:
        return self._with_slots(slots, rank, slots).memory().kv_tokens

    def _with_slots(self, slots: int, rank: int, num_adapters: int) -> Replica:
        template = self._template
        engine = template.engine.with_slots(slots, max_lora_rank=rank, num_adapters=num_adapters)
        return Replica(model=template.model, gpu=template.gpu, engine=engine, profile=template.profile)
