"""How many slots memory allows on each GPU type of a problem, and the KV capacity they leave."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from predictors.slots import SlotOptions
from solvers.placement import GpuAssignment, replica_of_gpu
from solvers.problem import Problem


class SlotTables:
    """What memory allows on each GPU type of a problem."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._options: dict[int, SlotOptions] = {}

    def rank_of_slots(self, max_rank: int) -> int:
        """Return the `max_lora_rank` of a GPU whose largest adapter rank is `max_rank`."""
        return self.problem.fixed_max_lora_rank or max_rank

    def limit(self, gpu_type: int, max_rank: int) -> int:
        """Return the most slots with which a replica starts; 0: none.

        Not searched beyond the number of adapters (or 8). With fixed slots: those, or 0.
        """
        return self._of(gpu_type).limit(self.rank_of_slots(max_rank))

    def options(self, gpu_type: int, num_adapters: int, max_rank: int) -> tuple[int, ...]:
        """Return the slots to try for a set: the grid below its size, and its size; or the fixed ones."""
        _, slots, _ = self.all_options(gpu_type, max_rank, np.array([num_adapters]))
        return tuple(int(value) for value in slots)

    def all_options(
        self, gpu_type: int, max_rank: int, sizes: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return (position in `sizes`, slots, KV tokens) of every option of N sets with `sizes` int64 [N] adapters."""
        return self._of(gpu_type).all_options(self.rank_of_slots(max_rank), sizes)

    def kv_tokens(self, gpu_type: int, max_loras: int, max_lora_rank: int) -> int:
        """Return the KV capacity of a replica with these slots, in tokens; 0 when it does not start."""
        return self._of(gpu_type).kv_tokens(max_loras, max_lora_rank)

    def kv_tokens_of(self, gpu: GpuAssignment) -> int:
        """Return the KV capacity of a GPU of a placement, in tokens; 0 when it does not start."""
        if gpu.max_num_seqs in {None, self.problem.engine.max_num_seqs}:
            return self.kv_tokens(gpu.gpu_type, gpu.max_loras, gpu.max_lora_rank)
        return replica_of_gpu(self.problem, gpu).memory().kv_tokens

    def capacities(self, gpu_type: int, max_rank: int, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the KV capacity with each of `slots` for adapters up to a rank, int64 [N]; 0: does not start."""
        return self._of(gpu_type).capacities(self.rank_of_slots(max_rank), slots)

    def _of(self, gpu_type: int) -> SlotOptions:
        if gpu_type not in self._options:
            problem = self.problem

            def kv_tokens_of(slots: int, rank: int) -> int:
                return problem.replica(gpu_type, slots, rank, slots).memory().kv_tokens

            self._options[gpu_type] = SlotOptions(
                kv_tokens_of, num_adapters=len(problem.unmerged.adapters), fixed_max_loras=problem.fixed_max_loras
            )
        return self._options[gpu_type]
