"""GPUs while they are being filled: who is on them, their aggregates, and how full they are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from solvers.choices import Choices
from solvers.feasibility import FeasibilityModel
from solvers.placement import GpuAssignment, Placement
from twin.engine import SUPPORTED_RANKS

# A GPU that refused an adapter is asked again, while it is unchanged, only for adapters with less than this share of
# that one's work.
RETRY_SHARE = 0.98
# GPUs for which there is room at first.
FIRST_CAPACITY = 64
# When a GPU is filled: numbers of adapters that are tried, and how many of them one question asks about.
GROWING_COUNTS = (1, 2, 3, 5, 9, 17, 33, 65, 129, 257)
POINTS_PER_QUESTION = 8

_ARRAYS = (
    "is_open",
    "gpu_type",
    "max_loras",
    "max_lora_rank",
    "max_rank",
    "rows",
    "load",
    "fullness",
    "refused_work",
)


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
        Adapters of each GPU, in order of arrival. A GPU that was closed has none, and is the next to be opened.
    is_open
        bool [G], as every array here, with at least as many entries as `members`.
    gpu_type, max_loras, max_lora_rank, max_rank
        int64 [G]; meaningless where nothing is open.
    rows
        Aggregates, float64 [G, K].
    load
        Summed work, float64 [G].
    fullness
        The larger of load and pressure at the last change, float64 [G].
    refused_work
        Work of the least adapter that was refused since the GPU changed, by the position in `SUPPORTED_RANKS` of the
        slots' rank with it, float64 [G, R]; a larger rank refuses no less. Infinite: none.
    """

    def __init__(self, model: FeasibilityModel, work: NDArray[np.float64], *, capacity: int = FIRST_CAPACITY) -> None:
        self.model = model
        self.work = work
        self.members: list[list[int]] = []
        self._closed: list[int] = []
        self.is_open = np.zeros(capacity, dtype=np.bool_)
        self.gpu_type = np.zeros(capacity, dtype=np.int64)
        self.max_loras = np.zeros(capacity, dtype=np.int64)
        self.max_lora_rank = np.zeros(capacity, dtype=np.int64)
        self.max_rank = np.zeros(capacity, dtype=np.int64)
        self.rows = np.zeros((capacity, model.aggregates.shape[1]))
        self.load = np.zeros(capacity)
        self.fullness = np.zeros(capacity)
        self.refused_work = np.full((capacity, len(SUPPORTED_RANKS)), np.inf)

    @property
    def open_gpus(self) -> NDArray[np.int64]:
        """Indices of the GPUs that hold adapters, in order of opening (one that was closed is used again), int64."""
        return np.flatnonzero(self.is_open[: len(self.members)])

    @property
    def num_open(self) -> int:
        """GPUs that hold adapters."""
        return int(np.count_nonzero(self.is_open))

    def copy(self, *, keeps_refusals: bool = False) -> OpenFleet:
        """Return an independent copy; whether it remembers who refused what is the caller's choice."""
        used = len(self.members)
        other = OpenFleet(self.model, self.work, capacity=max(len(self.is_open), 1))
        other.members = [list(members) for members in self.members]
        other._closed = list(self._closed)
        for name in _ARRAYS if keeps_refusals else _ARRAYS[:-1]:
            getattr(other, name)[:used] = getattr(self, name)[:used]
        return other

    def count_of_type(self, gpu_type: int) -> int:
        """Return how many open GPUs are of a type."""
        return int(np.count_nonzero(self.gpu_type[self.is_open] == gpu_type))

    def may_hold(self, gpus: NDArray[np.int64], adapter: int) -> NDArray[np.int64]:
        """Return those of `gpus` that have not, unchanged since, refused an adapter with about as much work."""
        work = self.work[self.gpu_type[gpus], adapter]
        refused = self.refused_work[gpus, self._rank_positions(gpus, adapter)]
        kept: NDArray[np.int64] = gpus[work < RETRY_SHARE * refused]
        allowed = self.model.allowed(self.rows[kept] + self.model.aggregates[adapter], self.gpu_type[kept])
        return kept if allowed is None else kept[allowed]

    def may_take(self, gpu: int, adapters: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return for each of `adapters` whether `gpu` has not, unchanged since, refused one with about as much work."""
        ranks = np.maximum(self.max_rank[gpu], self.model.problem.ranks[adapters])
        work = self.work[self.gpu_type[gpu], adapters]
        kept: NDArray[np.bool_] = work < RETRY_SHARE * self.refused_work[gpu, self._positions_of(ranks)]
        types = np.full(len(adapters), self.gpu_type[gpu])
        allowed = self.model.allowed(self.rows[gpu] + self.model.aggregates[adapters], types)
        return kept if allowed is None else kept & allowed

    def refuse(self, gpus: NDArray[np.int64], adapter: int) -> None:
        """Remember that each of `gpus` refused an adapter, if that says something about others with as much work."""
        gpus = self.refused_for_work(gpus, adapter)
        work = self.work[self.gpu_type[gpus], adapter]
        positions = self._rank_positions(gpus, adapter)
        is_larger = np.arange(len(SUPPORTED_RANKS)) >= positions[:, np.newaxis]
        refused = self.refused_work[gpus]
        self.refused_work[gpus] = np.where(is_larger, np.minimum(refused, work[:, np.newaxis]), refused)

    def learn_refusals(self, attempt: OpenFleet) -> None:
        """Take over what GPUs refused in a copy of this fleet to which adapters were only added.

        A GPU that took some is another one there: what it refused says nothing here.
        """
        same = [gpu for gpu in self.open_gpus.tolist() if len(attempt.members[gpu]) == len(self.members[gpu])]
        self.refused_work[same] = np.minimum(self.refused_work[same], attempt.refused_work[same])

    def refused_for_work(self, gpus: NDArray[np.int64], adapter: int, *, leaving: int = -1) -> NDArray[np.int64]:
        """Return those of `gpus` that cannot have refused an adapter for constraints, or limits, of its own.

        It would have come in place of `leaving`, or, below 0, of nobody.
        """
        table = self.model.problem.constraint_table
        if table is None:
            return gpus
        if table.has_own_limit[adapter]:
            return gpus[:0]
        rows = self.rows[gpus] + self.model.aggregates[adapter]
        if leaving >= 0:
            rows -= self.model.aggregates[leaving]
        return gpus[table.allows(rows, self.gpu_type[gpus])]

    def _rank_positions(self, gpus: NDArray[np.int64], adapter: int) -> NDArray[np.int64]:
        """Return the position in `SUPPORTED_RANKS` of the slots' rank of each of `gpus` with an adapter, int64 [N]."""
        return self._positions_of(np.maximum(self.max_rank[gpus], self.model.problem.ranks[adapter]))

    def _positions_of(self, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the position in `SUPPORTED_RANKS` of the rank of slots for these largest ranks, int64 [N]."""
        fixed = self.model.problem.fixed_max_lora_rank
        positions: NDArray[np.int64] = np.searchsorted(
            SUPPORTED_RANKS, ranks if fixed is None else np.full_like(ranks, fixed)
        )
        return positions

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
        self.refuse(gpus[~choices.feasible], adapter)
        return choices

    def fullness_with(self, gpus: NDArray[np.int64], adapter: int, choices: Choices) -> NDArray[np.float64]:
        """Return how full each of `gpus` would be with `adapter`, given what `ask` said, float64 [len(gpus)]."""
        load: NDArray[np.float64] = self.load[gpus] + self.work[self.gpu_type[gpus], adapter]
        return np.maximum(choices.pressure, load)

    def add_longest_prefix(self, gpu: int, adapters: NDArray[np.int64]) -> int:
        """Put the first of `adapters` on `gpu`, as many as it takes, and return how many; the next one is refused.

        Numbers of adapters are asked about in growing steps, then between the last accepted and the first refused: a
        few at once, or one by one if each may be a simulation.
        """
        num_points = 1 if self.model.uses_members else POINTS_PER_QUESTION
        sums = np.cumsum(self.model.aggregates[adapters], axis=0)
        ranks = np.maximum.accumulate(self.model.problem.ranks[adapters])
        low, high, best = 0, len(adapters) + 1, None
        while high - low > 1:
            if high > len(adapters):
                growing = [count for count in GROWING_COUNTS if low < count < len(adapters)]
                counts = np.array([*growing, len(adapters)][:num_points])
            else:
                counts = np.unique(np.linspace(low, high, num_points + 2)[1:-1].astype(np.int64))
                counts = counts[counts > low]
            choices = self._ask_prefixes(gpu, adapters, counts, sums, ranks)
            refused = np.flatnonzero(~choices.feasible)
            num_accepted = int(refused[0]) if len(refused) else len(counts)
            if len(refused):
                high = int(counts[num_accepted])
            if num_accepted:
                low, best = int(counts[num_accepted - 1]), (choices, num_accepted - 1)
        if best is not None:
            self._extend(gpu, adapters[:low], *best)
        if low < len(adapters):
            self.refuse(np.array([gpu]), int(adapters[low]))
        return low

    def _ask_prefixes(
        self,
        gpu: int,
        adapters: NDArray[np.int64],
        counts: NDArray[np.int64],
        sums: NDArray[np.float64],
        ranks: NDArray[np.int64],
    ) -> Choices:
        """Ask what `gpu` would be with the first `counts` of `adapters`, whose sums and largest ranks are given."""
        members = None
        if self.model.uses_members:
            own = self.members[gpu]
            members = [tuple(sorted((*own, *adapters[: int(count)].tolist()))) for count in counts]
        return self.model.best_choice(
            self.rows[gpu] + sums[counts - 1],
            np.maximum(self.max_rank[gpu], ranks[counts - 1]),
            int(self.gpu_type[gpu]),
            members,
        )

    def open(self, gpu_type: int, adapter: int) -> int | None:
        """Open a GPU of a type with `adapter` on it and return it; open nothing when it does not fit alone."""
        model = self.model
        members = [(adapter,)]
        choices = model.best_choice(
            model.aggregates[[adapter]],
            model.problem.ranks[[adapter]],
            gpu_type,
            members if model.uses_members else None,
        )
        if not choices.feasible[0]:
            return None
        gpu = self._closed.pop() if self._closed else self._append()
        self._clear(gpu)
        self.is_open[gpu] = True
        self.gpu_type[gpu] = gpu_type
        self.add(gpu, adapter, choices, 0)
        return gpu

    def add(self, gpu: int, adapter: int, choices: Choices, position: int) -> None:
        """Put `adapter` on `gpu` with the slots of ``choices[position]``."""
        self._extend(gpu, np.array([adapter], dtype=np.int64), choices, position)

    def _extend(self, gpu: int, adapters: NDArray[np.int64], choices: Choices, position: int) -> None:
        """Put `adapters` on `gpu` with the slots of ``choices[position]``."""
        self.members[gpu].extend(adapters.tolist())
        self.rows[gpu] += self.model.aggregates[adapters].sum(axis=0)
        self.max_rank[gpu] = max(int(self.max_rank[gpu]), int(self.model.problem.ranks[adapters].max()))
        self.load[gpu] += self.work[self.gpu_type[gpu], adapters].sum()
        self._set_choice(gpu, choices, position)
        self.refused_work[gpu] = np.inf

    def exchange(self, gpu: int, leaving: int | None, joining: int, choices: Choices, position: int) -> None:
        """Put `joining` on `gpu` in place of `leaving` (None: of nobody), with the slots of ``choices[position]``.

        What the GPU refuses is then less by the work that it got in addition.
        """
        model, gpu_type = self.model, self.gpu_type[gpu]
        gain = float(self.work[gpu_type, joining])
        if leaving is not None:
            self.members[gpu].remove(leaving)
            self.rows[gpu] -= model.aggregates[leaving]
            gain -= float(self.work[gpu_type, leaving])
        self.members[gpu].append(joining)
        self.rows[gpu] += model.aggregates[joining]
        self.max_rank[gpu] = model.problem.ranks[self.members[gpu]].max()
        self.load[gpu] += gain
        self._set_choice(gpu, choices, position)
        self.refused_work[gpu] = np.maximum(self.refused_work[gpu] - gain, 0.0)

    def _set_choice(self, gpu: int, choices: Choices, position: int) -> None:
        """Give `gpu` the slots of ``choices[position]``, and say how full it is now."""
        self.max_loras[gpu] = choices.max_loras[position]
        self.max_lora_rank[gpu] = choices.max_lora_rank[position]
        self.fullness[gpu] = max(float(choices.pressure[position]), float(self.load[gpu]))

    def load_placement(self, placement: Placement) -> None:
        """Take over the GPUs of a placement; the fleet must be empty."""
        assert not self.members
        for assignment in placement.gpus:
            chosen = list(assignment.adapters)
            gpu = self._append()
            self.members[gpu] = chosen
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
        self._closed.append(gpu)
        return adapters

    def _append(self) -> int:
        """Return a new GPU, not open yet; where the arrays are full, they become twice as long."""
        gpu = len(self.members)
        if gpu == len(self.is_open):
            for name in _ARRAYS:
                array = getattr(self, name)
                setattr(self, name, np.concatenate([array, np.zeros_like(array)]))
        self._clear(gpu)
        self.members.append([])
        return gpu

    def _clear(self, gpu: int) -> None:
        """Forget what a GPU held before."""
        self.rows[gpu] = 0.0
        self.max_rank[gpu] = 0
        self.load[gpu] = 0.0
        self.fullness[gpu] = 0.0
        self.refused_work[gpu] = np.inf

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
            self.load[gpu] = self.work[gpu_type, self.members[gpu]].sum()
            self._set_choice(gpu, choices, position)
