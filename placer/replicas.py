"""How many replicas adapters get whose number is left open: the fewest equal shares that surrogate and twin accept.

An adapter that a GPU serves alone stays whole. Any other is divided into as many shares as its unavoidable work says,
or one more at a time, until a share is accepted on a GPU of its own: by the surrogate with the caution that solvers ask
it with, and by the twin, each share with the traffic that it would have. Nothing is said about other numbers: a plan
with more replicas of the same adapter may need fewer GPUs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from placer.verify import TwinVerifier
from placer.wording import counted
from predictors.surrogate import Surrogate
from solvers.alone import UnplaceableError, fits_alone, largest_share
from solvers.bounds import least_work
from solvers.feasibility import FeasibilityModel
from solvers.placement import GpuAssignment
from solvers.problem import Problem
from solvers.replication import AutomaticRule, given_replicas, most_replicas
from solvers.shares import divided_problem, equal_shares
from twin.errors import InputError
from twin.workload import Adapter

ReplicasChoice = Literal["given", "auto"]


def with_replicas(problem: Problem, choice: str) -> Problem:
    """Return a problem that asks for what its file asks for (``given``), or for replicas where needed (``auto``).

    Raises
    ------
    InputError
        When the choice is neither.
    """
    if choice not in get_args(ReplicasChoice):
        raise InputError(
            f"`replicas` must be {' or '.join(get_args(ReplicasChoice))}. Got {choice!r}.",
            field="replicas",
            value=choice,
            hint="numbers stand in the section `replication` of the problem file",
        )
    if choice == "auto":
        automatic = (*problem.replication.automatic, AutomaticRule())
        problem = replace(problem, replication=problem.replication.model_copy(update={"automatic": automatic}))
    return problem


class Replicas:
    """The numbers of replicas of a problem: those that are given, and those that are found.

    Parameters
    ----------
    problem
        Whose `replication` is asked for; neither merged nor divided.
    surrogate_of
        Returns who is asked about the adapters of a problem, with margin and threshold.
    verifier_of
        Returns the twin as the judge of a problem's GPUs; ``None``: it is not asked.

    Attributes
    ----------
    counts
        Of each adapter.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        surrogate_of: Callable[[Problem], Surrogate],
        verifier_of: Callable[[Problem], TwinVerifier] | None,
    ) -> None:
        self.problem = problem
        self.counts = given_replicas(problem.replication, [adapter.name for adapter in problem.adapters])
        self._surrogate_of = surrogate_of
        self._verifier_of = verifier_of
        self._most = _open_numbers(problem)
        self._least_work = least_work(problem).total if self._most else np.zeros(0)

    def found(self) -> list[tuple[Adapter, int]]:
        """Return the adapters that were divided because no GPU serves them alone, and into how many shares."""
        return [(self.problem.adapters[index], self.counts[index]) for index in self._most if self.counts[index] > 1]

    def divided(self) -> Problem:
        """Return the problem of placing the shares; the problem itself where no replicas are asked for."""
        if not self.problem.replication.is_asked:
            return self.problem
        return divided_problem(self.problem, equal_shares(self.counts))

    def find(self) -> None:
        """Look for the numbers that are left open.

        Raises
        ------
        UnplaceableError
            When the shares of an adapter are refused whatever their number.
        """
        candidates = list(self._most)
        if not candidates:
            return
        whole = replace(self.problem, workload=self.problem.workload.subset(candidates))
        fits = fits_alone(FeasibilityModel(whole, self._surrogate_of(whole)), range(len(candidates)))
        self._raise({candidates[index]: 2 for index in np.flatnonzero(~fits.any(axis=0)).tolist()})

    def find_more(self, error: UnplaceableError, divided: Problem) -> bool:
        """Look for larger numbers for adapters of whose shares one does not fit a GPU; return whether they may grow.

        Parameters
        ----------
        error, divided
            What was said about the shares of the divided problem.

        Raises
        ------
        UnplaceableError
            See `find`.
        """
        if divided.shares is None:
            return False
        adapters = {int(divided.shares.adapter_of[share]) for share in error.adapters}
        if not adapters <= set(self._most):
            return False
        self._raise({adapter: self.counts[adapter] + 1 for adapter in sorted(adapters)})
        return True

    def _raise(self, least: Mapping[int, int]) -> None:
        """Give adapters the fewest replicas, of at least so many, with which their shares are accepted.

        Those for which there are none are named when all others have theirs.
        """
        tried = {adapter: max(count, math.ceil(self._least_work[adapter])) for adapter, count in least.items()}
        hopeless: list[int] = []
        while True:
            hopeless += [adapter for adapter, count in tried.items() if count > self._most[adapter]]
            tried = {adapter: count for adapter, count in tried.items() if count <= self._most[adapter]}
            if not tried:
                break
            probe = self._probe(tried)
            assert probe.shares is not None
            accepted = self._accepted(probe)
            for position, adapter in enumerate(tuple(tried)):
                if accepted[list(probe.shares.indices_of(position))].all():
                    self.counts[adapter] = tried.pop(adapter)
                else:
                    tried[adapter] += 1
        if hopeless:
            raise self._unplaceable(sorted(hopeless))

    def _probe(self, counts: Mapping[int, int]) -> Problem:
        """Return the problem of some adapters only, divided into so many shares each."""
        some = replace(self.problem, workload=self.problem.workload.subset(list(counts)))
        return divided_problem(some, equal_shares(tuple(counts.values())))

    def _accepted(self, probe: Problem) -> NDArray[np.bool_]:
        """Return which shares of a problem are accepted on some GPU of their own, bool [S]."""
        assert probe.shares is not None
        # Drawn traffic of equal shares has equal features; a trace's does not come into them.
        first = probe.shares.first.tolist()
        fits = fits_alone(FeasibilityModel(probe, self._surrogate_of(probe)), first)[:, probe.shares.adapter_of]
        if self._verifier_of is None:
            return np.asarray(fits.any(axis=0))
        alone = [
            GpuAssignment(
                gpu_type=int(gpu_type),
                adapters=(int(share),),
                max_loras=probe.fixed_max_loras or 1,
                max_lora_rank=probe.fixed_max_lora_rank or probe.adapters[share].rank,
            )
            for gpu_type, share in np.argwhere(fits)
        ]
        accepted = np.zeros(len(probe.adapters), dtype=np.bool_)
        for gpu, verdict in zip(alone, self._verifier_of(probe).verify(alone), strict=True):
            accepted[gpu.adapters[0]] |= verdict.is_accepted
        return accepted

    def _unplaceable(self, adapters: list[int]) -> UnplaceableError:
        """Return the error about adapters that cannot be divided into so many shares that each fits a GPU."""
        adapter = adapters[0]
        problem, most = self.problem, self._most[adapter]
        subject = problem.adapters[adapter]
        whole = replace(problem, workload=problem.workload.subset([adapter]))
        share = largest_share(FeasibilityModel(whole, self._surrogate_of(whole)), 0)
        fits = f"at most {share:.0%} of it fits" if share else "no share of it fits, also not 1 %"
        names = ", ".join(repr(problem.adapters[other].name) for other in adapters[1:4])
        others = f" So it is with {counted(len(adapters) - 1, 'other adapter')}: {names}." if names else ""
        return UnplaceableError(
            f"every share of an adapter must fit a GPU alone. {subject.name!r} (rank {subject.rank}, "
            f"{subject.rate_rps:g} requests/s, {subject.offered_tps:,.0f} tokens/s) needs more than {most}, the most "
            f"replicas that it may have: {fits}.{others} Allow more (`max_replicas`, and `max_count` of the GPU "
            "types), relax `limits`, or exclude it.",
            problem=problem,
            adapters=adapters,
            hint="is the rate in requests per second? If so, raise `max_replicas` of its rule in `replication`",
        )


def _open_numbers(problem: Problem) -> dict[int, int]:
    """Return the most replicas of each adapter whose number is to be found, as far as there are GPUs for them."""
    most = most_replicas(problem.replication, [adapter.name for adapter in problem.adapters])
    table = problem.constraint_table
    for group in () if table is None else table.together:
        for adapter in group:
            # A group is on one GPU, and so is each of its members.
            most.pop(adapter, None)
    for adapter, count in most.items():
        gpus = problem.gpus_for(adapter)
        most[adapter] = count if gpus is None else min(count, gpus)
    return most
