"""GPUs while they are being filled: who is on them, their aggregates, and how full they are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from solvers.feasibility import Choices, FeasibilityModel
from solvers.placement import GpuAssignment, Placement

# A GPU that refused an adapter is asked again, while it is unchanged, only for adapters with less than this share of
# that one's work.
RETRY_SHARE = 0.98


class OpenFleet:
    """A growing set of GPUs.

    Parameters
    ----------
    model
        Who is asked.
    work
        GPU-seconds per second of each adapter on each type, float64 [T, A]: the measure of how full a GPU is while the
        surrogate sees it far from every limit.

    Attributes
    ----------
    members
        Adapters of each GPU, in order of arrival.
    is_open
        bool [A], as every array here: there are never more GPUs than adapters.
    gpu_type, max_loras, max_lora_rank, max_rank
        int64 [A]; meaningless where nothing is open.
    rows
        Aggregates, float64 [A, K].
    load
        Summed work, float64 [A].
    fullness
        The larger of load and pressure at the last change, float64 [A].
    refused_work
        Work of the last adapter that was refused since the GPU changed, float64 [A]; infinite: none.
    """

    def __init__(self, model: FeasibilityModel, work: NDArray[np.float64]) -> None:
        self.model = model
        self.work = work
        self.members: list[list[int]] = []
        capacity = len(model.problem.adapters)
        self.is_open = np.zeros(capacity, dtype=np.bool_)
        self.gpu_type = np.zeros(capacity, dtype=np.int64)
        self.max_loras = np.zeros(capacity, dtype=np.int64)
        self.max_lora_rank = np.zeros(capacity, dtype=np.int64)
        self.max_rank = np.zeros(capacity, dtype=np.int64)
        self.rows = np.zeros((capacity, model.aggregates.shape[1]))
        self.load = np.zeros(capacity)
        self.fullness = np.zeros(capacity)
        self.refused_work = np.full(capacity, np.inf)

    @property
    def open_gpus(self) -> NDArray[np.int64]:
        """Indices of the GPUs that hold adapters, in order of opening, int64."""
        return np.flatnonzero(self.is_open)

    @property
    def num_open(self) -> int:
        """GPUs that hold adapters."""
        return int(np.count_nonzero(self.is_open))

    def copy(self) -> OpenFleet:
        """Return an independent copy that remembers no refusals."""
        other = OpenFleet(self.model, self.work)
        other.members = [list(members) for members in self.members]
        for name in ("is_open", "gpu_type", "max_loras", "max_lora_rank", "max_rank", "rows", "load", "fullness"):
            getattr(other, name)[:] = getattr(self, name)
        return other

    def count_of_type(self, gpu_type: int) -> int:
        """Return how many open GPUs are of a type."""
        return int(np.count_nonzero(self.gpu_type[self.is_open] == gpu_type))

    def may_hold(self, gpus: NDArray[np.int64], adapter: int) -> NDArray[np.int64]:
        """Return those of `gpus` that have not, unchanged since, refused an adapter with about as much work."""
        work = self.work[self.gpu_type[gpus], adapter]
        kept: NDArray[np.int64] = gpus[work < RETRY_SHARE * self.refused_work[gpus]]
        return kept

    def ask(self, gpus: NDArray[np.int64], adapter: int) -> Choices:
        """Ask what each of `gpus` would be with `adapter` added, in one batch; remember who refuses."""
        model = self.model
        rank = int(model.problem.ranks[adapter])
        members = None
        if model.uses_members:
            members = [tuple(sorted((*self.members[int(gpu)], adapter))) for gpu in gpus]
        choices = model.best_choice(
            self.rows[gpus] + model.aggregates[adapter],
            np.maximum(self.max_rank[gpus], rank),
            self.gpu_type[gpus],
            members,
        )
        refusing = gpus[~choices.feasible]
        self.refused_work[refusing] = self.work[self.gpu_type[refusing], adapter]
        return choices

    def fullness_with(self, gpus: NDArray[np.int64], adapter: int, choices: Choices) -> NDArray[np.float64]:
        """Return how full each of `gpus` would be with `adapter`, given what `ask` said, float64 [len(gpus)]."""
        load: NDArray[np.float64] = self.load[gpus] + self.work[self.gpu_type[gpus], adapter]
        return np.maximum(choices.pressure, load)

    def open(self, gpu_type: int, adapter: int) -> bool:
        """Open a GPU of a type with `adapter` on it; return False, and open nothing, when it does not fit alone."""
        model = self.model
        members = [(adapter,)]
        choices = model.best_choice(
            model.aggregates[[adapter]],
            model.problem.ranks[[adapter]],
            gpu_type,
            members if model.uses_members else None,
        )
        if not choices.feasible[0]:
            return False
        gpu = len(self.members)
        self.members.append([])
        self.is_open[gpu] = True
        self.gpu_type[gpu] = gpu_type
        self.add(gpu, adapter, choices, 0)
        return True

    def add(self, gpu: int, adapter: int, choices: Choices, position: int) -> None:
        """Put `adapter` on `gpu` with the slots of ``choices[position]``."""
        self.members[gpu].append(adapter)
        self.rows[gpu] += self.model.aggregates[adapter]
        self.max_rank[gpu] = max(int(self.max_rank[gpu]), int(self.model.problem.ranks[adapter]))
        self.load[gpu] += self.work[self.gpu_type[gpu], adapter]
        self.max_loras[gpu] = choices.max_loras[position]
        self.max_lora_rank[gpu] = choices.max_lora_rank[position]
        self.fullness[gpu] = max(float(choices.pressure[position]), float(self.load[gpu]))
        self.refused_work[gpu] = np.inf

    def load_placement(self, placement: Placement) -> None:
        """Take over the GPUs of a placement; the fleet must be empty."""
        assert not self.members
        for gpu, assignment in enumerate(placement.gpus):
            chosen = list(assignment.adapters)
            self.members.append(chosen)
            self.is_open[gpu] = True
            self.gpu_type[gpu] = assignment.gpu_type
            self.rows[gpu] = self.model.aggregates[chosen].sum(axis=0)
            self.max_rank[gpu] = self.model.problem.ranks[chosen].max()
            self.load[gpu] = self.work[assignment.gpu_type, chosen].sum()
            self.fullness[gpu] = self.load[gpu]
            self.max_loras[gpu] = assignment.max_loras
            self.max_lora_rank[gpu] = assignment.max_lora_rank

    def close(self, gpu: int) -> list[int]:
        """Take all adapters off a GPU, which closes it, and return them."""
        adapters, self.members[gpu] = self.members[gpu], []
        self.is_open[gpu] = False
        return adapters

    def placement(self) -> Placement:
        """Return the open GPUs as a placement."""
        return Placement(
            tuple(
                GpuAssignment(
                    gpu_type=int(self.gpu_type[gpu]),
                    adapters=tuple(sorted(members)),
                    max_loras=int(self.max_loras[gpu]),
                    max_lora_rank=int(self.max_lora_rank[gpu]),
                )
                for gpu, members in enumerate(self.members)
                if self.is_open[gpu]
            )
        )

    def set_type(self, gpus: NDArray[np.int64], positions: NDArray[np.int64], gpu_type: int, choices: Choices) -> None:
        """Change the type of ``gpus[positions]``, which keep their adapters, to what ``choices`` [len(gpus)] says."""
        for position in positions:
            gpu = int(gpus[position])
            self.gpu_type[gpu] = gpu_type
            self.max_loras[gpu] = choices.max_loras[position]
            self.max_lora_rank[gpu] = choices.max_lora_rank[position]
            self.load[gpu] = self.work[gpu_type, self.members[gpu]].sum()
            self.fullness[gpu] = max(float(choices.pressure[position]), float(self.load[gpu]))
