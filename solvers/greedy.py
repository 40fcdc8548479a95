"""The published greedy (arXiv 2602.24044, "Proposed"): grow one GPU at a time along a grid of adapter counts and slots.

The algorithm, as published (reference: the paper and the authors' code):

- Order: ranks descending; inside a rank the largest rate, the smallest, the second largest, the second smallest, ...
- GPUs are opened one at a time. Adapters are pulled until committed + pending reach the next value N of `GRID`; then a
  test. Candidates for the slots are the current ones and the next grid value that memory allows at the GPU's largest
  rank; without a candidate the test fails. The throughput model is asked for each; the current slots are kept only if
  strictly better. The starvation model is asked for the chosen slots.
- Starved: all pending adapters go back to the queue, and the GPU is closed for ever. Otherwise they are committed.
- A tail that does not reach a grid value is tested padded to it, with adapters of the mean rate and the smallest rank.
- No GPU left: an error.

Padding "as published" counts N minus the *pending* adapters, and so overstates the load of a GPU that already has
committed ones; "as intended" counts N minus committed and pending.

What is ours: the models are the common surrogate (throughput = `throughput_tps`; starved = the one acceptance rule,
which is starvation_probability >= 0.5 or throughput_ratio < 1 - tolerance, and the latency limits of problems that have
them). The mean of the padding is over the adapters of the GPU, lengths included. Where the published loop would open
GPUs for ever, because a GPU fails with nothing committed and the next would fail the same way, there is no answer. With
several GPU types, a fleet of each type alone is built, and the one that the objective prefers is returned.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from predictors.features import ACTIVE_WINDOWS_S, AGGREGATE_NAMES
from predictors.slots import GRID
from predictors.surrogate import Surrogate
from solvers import acceptance
from solvers.budget import Budget
from solvers.choices import Settings
from solvers.constrained_solve import constrained
from solvers.feasibility import FeasibilityModel
from solvers.interface import Capability, Observer
from solvers.placement import GpuAssignment, Placement
from solvers.problem import Problem
from solvers.result import SolveResult, Termination
from solvers.run import SolverRun

PaddingName = Literal["published", "intended"]


class GreedySolver:
    """The published greedy; `padding` says how a tail is padded."""

    capabilities: frozenset[Capability] = frozenset()

    def __init__(self, name: str = "greedy", *, padding: PaddingName = "published") -> None:
        self.name = name
        self.padding: PaddingName = padding

    @constrained
    def solve(
        self,
        problem: Problem,
        surrogate: Surrogate,
        *,
        budget: Budget,
        seed: int = 0,
        warm_start: Placement | None = None,
        observer: Observer | None = None,
    ) -> SolveResult:
        """Run the greedy; see `solvers.interface.Solver`. The answer does not depend on `seed`."""
        del seed
        run = SolverRun(problem, surrogate, budget, observer)
        if warm_start is not None:
            run.notes.append(f"The warm start was ignored: {self.name} cannot use one.")
        termination: Termination | None = None
        try:
            for gpu_type in range(len(problem.gpu_types)):
                built = GreedyConstruction(run, gpu_type, self.padding).build()
                if isinstance(built, Termination):
                    termination = built
                    break
                if built is not None and not run.record(built):
                    run.notes.append("The greedy's own tests passed, but the evaluated placement is not feasible.")
        except KeyboardInterrupt:
            termination = Termination.INTERRUPTED
        return run.result(termination or Termination.COMPLETED)


@dataclass
class _Gpu:
    """The open GPU: what is committed, and the slots of the last successful test (``None``: not tested yet)."""

    committed: list[int] = field(default_factory=list)
    max_loras: int | None = None
    max_lora_rank: int = 0


class GreedyConstruction:
    """One run of the greedy on GPUs of one type."""

    def __init__(self, run: SolverRun, gpu_type: int, padding: PaddingName) -> None:
        self.run = run
        self.model = run.model
        self.problem = run.problem
        self.gpu_type = gpu_type
        self.padding = padding

    def build(self) -> Placement | Termination | None:
        """Place all adapters; return why it was cut short, or None (with a note) when the greedy has no answer."""
        queue = alternating_order(self.problem)
        closed: list[_Gpu] = []
        limit = self.problem.gpu_types[self.gpu_type].max_count
        while queue:
            self.run.num_placed = max(self.run.num_placed, len(self.problem.adapters) - len(queue))
            if limit is not None and len(closed) >= limit:
                self.run.notes.append(f"No GPU is left: {limit} are full and {len(queue)} adapters are not placed.")
                return None
            gpu = _Gpu()
            ended = self._fill(gpu, queue)
            if ended is not None:
                return ended
            if not gpu.committed:
                self.run.notes.append(self._why_nothing_fits(queue))
                return None
            del queue[: len(gpu.committed)]
            closed.append(gpu)
        return Placement(tuple(self._assignment(gpu) for gpu in closed))

    def _fill(self, gpu: _Gpu, queue: list[int]) -> Termination | None:
        """Commit a prefix of `queue` to `gpu`, step by step along the grid, until a test fails or nothing is left."""
        for size in GRID:
            pending = queue[len(gpu.committed) : size]
            if not pending:
                return None
            if (ended := self.run.exhausted()) is not None:
                return ended
            self.run.num_iterations += 1
            slots = self._test(gpu, pending, size)
            if slots is None:
                return None
            gpu.committed += pending
            gpu.max_loras, gpu.max_lora_rank = slots
        return None

    def _test(self, gpu: _Gpu, pending: list[int], size: int) -> tuple[int, int] | None:
        """Return the slots, and their rank, with which committed + pending (padded to `size`) do not starve."""
        members = tuple(sorted(gpu.committed + pending))
        row = self.model.aggregates[list(members)].sum(axis=0)
        is_padded = len(members) < size
        if is_padded:
            already = len(pending) if self.padding == "published" else len(members)
            row = row + (size - already) * self._mean_adapter(members)
        max_rank = int(self.problem.ranks[list(members)].max())
        candidates = self._candidates(gpu, max_rank)
        if not candidates:
            return None
        rank = self.model.slots.rank_of_slots(max_rank)
        settings = _settings(self.model, self.gpu_type, candidates, rank)
        known = None if is_padded or not self.model.uses_members else [members] * len(candidates)
        output = self.model.predict(np.tile(row, (len(candidates), 1)), settings, members=known)
        # The current slots come first and are kept only if strictly better: a tie takes more slots.
        chosen = 0
        if len(candidates) == 2 and not output.throughput_tps[0] > output.throughput_tps[1]:
            chosen = 1
        is_starved = not acceptance.accepts(self.problem.limits, output)[chosen]
        return None if is_starved else (candidates[chosen], rank)

    def _candidates(self, gpu: _Gpu, max_rank: int) -> list[int]:
        """Return the current slots, if any, and the next grid value, if memory allows it; or the fixed slots."""
        limit = self.model.slots.limit(self.gpu_type, max_rank)
        if self.problem.fixed_max_loras is not None:
            return [self.problem.fixed_max_loras] if limit else []
        current = [] if gpu.max_loras is None else [gpu.max_loras]
        larger = [slots for slots in GRID if slots > (gpu.max_loras or 0)]
        return current + [slots for slots in larger[:1] if slots <= limit]

    def _mean_adapter(self, members: tuple[int, ...]) -> NDArray[np.float64]:
        """Return the aggregates of an adapter with the members' mean rate and lengths and their smallest rank."""
        chosen = list(members)
        row: NDArray[np.float64] = self.model.aggregates[chosen].mean(axis=0)
        rate = row[AGGREGATE_NAMES.index("sum_rate_rps")]
        row[AGGREGATE_NAMES.index("sum_rate_sq")] = rate * rate
        for window_s in ACTIVE_WINDOWS_S:
            row[AGGREGATE_NAMES.index(f"active_{window_s:g}s")] = -np.expm1(-window_s * rate)
        smallest = int(self.problem.ranks[chosen].min())
        for column, name in enumerate(AGGREGATE_NAMES):
            if name.startswith("num_rank_"):
                row[column] = 1.0 if name == f"num_rank_{smallest}" else 0.0
        return row

    def _why_nothing_fits(self, queue: list[int]) -> str:
        first = queue[: GRID[0]]
        load_tps = sum(self.problem.adapters[index].offered_tps for index in first)
        what = (
            f"the first {len(first)} adapters of the queue" if len(queue) >= GRID[0] else "the last adapters, padded,"
        )
        return (
            f"The greedy has no answer: {what} ({load_tps:,.0f} tokens/s, the first is "
            f"{self.problem.adapters[first[0]].name!r}) fail its smallest test of {GRID[0]} adapters on an empty "
            f"{self.problem.gpu_types[self.gpu_type].name!r}, and would on every further one."
        )

    def _assignment(self, gpu: _Gpu) -> GpuAssignment:
        assert gpu.max_loras is not None
        return GpuAssignment(self.gpu_type, tuple(sorted(gpu.committed)), gpu.max_loras, gpu.max_lora_rank)


def alternating_order(problem: Problem) -> list[int]:
    """Return adapter indices: ranks descending, inside a rank largest rate, smallest, second largest, ..."""
    order: list[int] = []
    rates = np.array([adapter.rate_rps for adapter in problem.adapters])
    for rank in np.unique(problem.ranks)[::-1]:
        group = np.flatnonzero(problem.ranks == rank)
        descending = [int(index) for index in group[np.argsort(-rates[group], kind="stable")]]
        for position in range(len(descending)):
            half = position // 2
            order.append(descending[half] if position % 2 == 0 else descending[-1 - half])
    return order


def _settings(model: FeasibilityModel, gpu_type: int, slots: list[int], rank: int) -> Settings:
    return Settings(
        gpu_type=np.full(len(slots), gpu_type, dtype=np.int64),
        max_loras=np.array(slots, dtype=np.int64),
        max_lora_rank=np.full(len(slots), rank, dtype=np.int64),
        kv_tokens=np.array([model.slots.kv_tokens(gpu_type, value, rank) for value in slots], dtype=np.int64),
    )
