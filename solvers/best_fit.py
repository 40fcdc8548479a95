"""Insert adapters into a fleet one after the other, into the first or the fullest GPU that takes them.

Consecutive adapters of one rank and about equal work form a run, and a run is asked about in few questions: a GPU that
takes its first adapter is asked how many of the next ones it takes too, in one batch of growing sets. For identical
adapters the answer is that of placing them singly, because best fit stays with the GPU that it has just made fuller
until that one refuses; a run of merely similar ones is placed as if they were equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from solvers.open_fleet import RETRY_SHARE, OpenFleet
from solvers.run import SolverRun

# GPUs that are asked about in one batch: few at first, so that the fullest are tried first, then more, to amortise the
# calls. A surrogate that looks at the members may simulate each of them: it is always asked about few.
FIRST_BATCH_GPUS = 32
BATCH_GROWTH = 4
LARGEST_BATCH_GPUS = 512
# Adapters of a run that a GPU is offered at once.
LARGEST_CHUNK = 512


class BestFit:
    """Inserts adapters into fleets.

    Parameters
    ----------
    run
        Whose budget and whose questions these are.
    fits_alone
        Whether each adapter fits an empty GPU of each type, bool [T, A].
    is_best_fit
        The fullest GPU that accepts; otherwise the first one.
    """

    def __init__(self, run: SolverRun, fits_alone: NDArray[np.bool_], *, is_best_fit: bool = True) -> None:
        self.run = run
        self.problem = run.problem
        self.fits_alone = fits_alone
        self.is_best_fit = is_best_fit

    def insert(self, fleet: OpenFleet, order: NDArray[np.int64], *, types: Sequence[int] = ()) -> int:
        """Insert the adapters in this order; return how many are placed: the first ones, all of them if it equals.

        Parameters
        ----------
        fleet
            Changed, also when not all adapters find a place.
        order
            Adapters that are not in the fleet, int64 [N].
        types
            GPU types to open for an adapter that no open GPU takes, in the order in which they are tried.
        """
        placed = 0
        for run_of_equals in self._runs(fleet, order):
            taken = self._insert_run(fleet, run_of_equals, types)
            placed += taken
            self.run.num_placed = max(self.run.num_placed, placed)
            if taken < len(run_of_equals):
                break
        return placed

    def _runs(self, fleet: OpenFleet, order: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Yield stretches of about equal adapters, which are also equal in all constraints."""
        table = self.problem.constraint_table
        for run_of_equals in runs(self.problem.ranks, fleet.work, order):
            if table is None:
                yield run_of_equals
            else:
                own = table.columns[run_of_equals]
                differs = (own[1:] != own[:-1]).any(axis=1)
                yield from np.split(run_of_equals, np.flatnonzero(differs) + 1)

    def _insert_run(self, fleet: OpenFleet, adapters: NDArray[np.int64], types: Sequence[int]) -> int:
        """Insert adapters of one run; return how many are placed."""
        placed = self._insert_into_open(fleet, adapters)
        while placed < len(adapters) and self.run.exhausted() is None:
            gpu = self._open(fleet, int(adapters[placed]), types)
            if gpu is None:
                break
            self._count(1)
            placed += 1 + self._fill(fleet, gpu, adapters[placed + 1 :])
        return placed

    def _insert_into_open(self, fleet: OpenFleet, adapters: NDArray[np.int64]) -> int:
        """Insert adapters of one run into open GPUs until none takes the next; return how many are placed."""
        placed = 0
        for batch in self._batches(fleet, int(adapters[0])):
            if self.run.exhausted() is not None:
                break
            asked = int(adapters[placed])
            choices = fleet.ask(batch, asked)
            accepting = np.flatnonzero(choices.feasible)
            if self.is_best_fit:
                fullness = fleet.fullness_with(batch, asked, choices)[accepting]
                accepting = accepting[np.argsort(-fullness, kind="stable")]
            for number, position in enumerate(accepting):
                gpu = int(batch[position])
                if number == 0:
                    fleet.add(gpu, asked, choices, int(position))
                    self._count(1)
                    placed += 1
                placed += self._fill(fleet, gpu, adapters[placed:])
                if placed == len(adapters):
                    return placed
                if self.run.exhausted() is not None:
                    break
        return placed

    def _batches(self, fleet: OpenFleet, adapter: int) -> Iterator[NDArray[np.int64]]:
        """Yield the open GPUs that may hold `adapter`, in the order in which they are tried."""
        gpus = fleet.may_hold(fleet.open_gpus, adapter)
        if self.is_best_fit:
            gpus = gpus[np.argsort(-fleet.fullness[gpus], kind="stable")]
        start, size = 0, FIRST_BATCH_GPUS
        while start < len(gpus):
            yield gpus[start : start + size]
            start += size
            if not fleet.model.uses_members:
                size = min(size * BATCH_GROWTH, LARGEST_BATCH_GPUS)

    def _fill(self, fleet: OpenFleet, gpu: int, adapters: NDArray[np.int64]) -> int:
        """Add adapters to one GPU until it refuses one; return how many it took."""
        taken = 0
        while taken < len(adapters) and self.run.exhausted() is None:
            chunk = adapters[taken : taken + LARGEST_CHUNK]
            accepted = fleet.add_longest_prefix(gpu, chunk)
            self._count(accepted)
            taken += accepted
            if accepted < len(chunk):
                break
        return taken

    def _open(self, fleet: OpenFleet, adapter: int, types: Sequence[int]) -> int | None:
        """Open a GPU with `adapter` on it; return which, or None where no type has one left that takes it."""
        for gpu_type in types:
            limit = self.problem.gpu_types[gpu_type].max_count
            has_left = limit is None or fleet.count_of_type(gpu_type) < limit
            if has_left and self.fits_alone[gpu_type, adapter]:
                gpu = fleet.open(gpu_type, adapter)
                if gpu is not None:
                    return gpu
        return None

    def _count(self, num_placed: int) -> None:
        self.run.num_iterations += num_placed


def runs(ranks: NDArray[np.int64], work: NDArray[np.float64], order: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield the longest stretches of `order` of one rank whose work, on every type, is within a share of the first's.

    Parameters
    ----------
    ranks, work
        Of all adapters: int64 [A], float64 [T, A].
    order
        Adapters, int64 [N].
    """
    ordered_ranks, ordered_work = ranks[order], work[:, order]
    # A run ends at latest where the rank changes; inside, it is found by doubling.
    borders = [*(np.flatnonzero(np.diff(ordered_ranks)) + 1), len(order)]
    start = 0
    for border in borders:
        while start < border:
            end = start + 1
            size = 16
            while end < border:
                ahead = ordered_work[:, end : min(end + size, border)]
                first = ordered_work[:, start : start + 1]
                is_equal = ((ahead >= RETRY_SHARE * first) & (ahead * RETRY_SHARE <= first)).all(axis=0)
                if not is_equal.all():
                    end += int(np.argmin(is_equal))
                    break
                end += ahead.shape[1]
                size *= 2
            yield order[start:end]
            start = end
