"""From the solver's placement to one that the twin accepts: repack or mend rejected GPUs, place the rest, tidy up."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from placer.events import FleetChanged, PlanObserver, RepairRound
from placer.plan_document import RepairSummary
from placer.repacking import LEAST_REJECTED, MOST_LOAD_LEFT, STEPS_TRIED, Repacked, repack
from placer.searches import Filled, Mended, Search, assign, fill, mend, run_searches, shed
from placer.surrogates import inflated
from placer.verify import TwinVerifier
from predictors.surrogate import Surrogate
from solvers.alone import UnplaceableError
from solvers.feasibility import FeasibilityModel
from solvers.placement import GpuAssignment
from solvers.problem import Problem
from solvers.secondary.search import fleet_value

Gpus = tuple[GpuAssignment, ...]

DEFAULT_REPAIR_ROUNDS = 8
# When GPUs are emptied into others, the surrogate is asked as if rates were this share of themselves: it may be
# pessimistic, and the twin decides.
OPTIMISM = 0.93
# GPUs that are tried to be emptied in a row without success, and what the twin may be asked for that, per GPU.
DISSOLVE_ATTEMPTS = 2
DISSOLVE_CALLS_PER_GPU = 6
# Rejected GPUs of the first placement that are looked at once more where repair has opened others: each costs 10 to 30
# simulations. With more of them, a GPU is a small part of the plan.
MOST_REGAINED = 40


@dataclass
class Fleet:
    """The placement in progress. It is complete at any time: each adapter is on exactly one GPU.

    Attributes
    ----------
    gpus
        The GPUs of the last complete placement.
    summary
        What was done so far.
    """

    gpus: Gpus
    summary: RepairSummary


class Repair:
    """Repairs and improves a fleet with the twin's approval.

    Parameters
    ----------
    model
        Whom to ask first: the surrogate with its margin and threshold.
    verifier
        The twin, who decides.
    fleet
        Changed step by step; whenever Ctrl-C comes, it holds the best complete placement so far.
    observer
        Told about rounds and about every new complete placement.
    cautious
        Surrogates that accept less than `model`, each less than the one before: many rejected GPUs are packed anew with
        the first, those of them that are still rejected with the next.
    """

    def __init__(
        self,
        model: FeasibilityModel,
        verifier: TwinVerifier,
        fleet: Fleet,
        *,
        observer: PlanObserver,
        cautious: Sequence[Surrogate] = (),
    ) -> None:
        self.problem: Problem = model.problem
        self.model = model
        self.verifier = verifier
        self.fleet = fleet
        self._observer = observer
        self._cautious = list(cautious)
        self._has_repacked = False
        self._packed = fleet.gpus

    def repair(self, max_rounds: int) -> None:
        """Repack or mend rejected GPUs until there are none, no round changes anything, or the rounds are over.

        Raises
        ------
        UnplaceableError
            When the twin rejects an adapter that is alone on a GPU.
        """
        for number in range(1, max_rounds + 1):
            rejected = [gpu for gpu in self.fleet.gpus if not self.verifier.accepts(gpu)]
            if not rejected:
                return
            self._observer(RepairRound(number, len(rejected)))
            before = self.fleet.gpus
            if not self._repack(rejected):
                self._round(rejected)
            if self.fleet.gpus == before:
                return

    def improve(self) -> None:
        """Empty the least loaded GPUs into the others while the twin approves, within a number of its calls.

        Where that does not make up for the GPUs that repair has opened, `regain` them.
        """
        calls_left = DISSOLVE_CALLS_PER_GPU * len(self.fleet.gpus)
        failures = 0
        while failures < min(DISSOLVE_ATTEMPTS, len(self.fleet.gpus)) and len(self.fleet.gpus) > 1 and calls_left > 0:
            calls_before = self.verifier.num_calls
            by_load = sorted(self.fleet.gpus, key=lambda gpu: (self._offered_tps(gpu.adapters), gpu.adapters))
            emptied = by_load[failures]
            others = tuple(gpu for gpu in self.fleet.gpus if gpu is not emptied)
            gpus = self._dissolve(others, emptied)
            calls_left -= self.verifier.num_calls - calls_before
            if gpus is None:
                failures += 1
                continue
            failures = 0
            self._commit(gpus, "emptied a GPU into the others", gpus_dissolved=1)
        self.regain()

    def regain(self) -> None:
        """Where repair has opened GPUs, look for a way without: from the first placement, only who starves leaves."""
        before = self.fleet.gpus
        is_worse = fleet_value(self.problem, before) > fleet_value(self.problem, self._packed)
        if not (is_worse and all(self.verifier.accepts(gpu) for gpu in before)):
            return
        rejected = [gpu for gpu in self._packed if not self.verifier.accepts(gpu)]
        if len(rejected) > MOST_REGAINED:
            return
        mended = run_searches(self.verifier, [shed(self.model, gpu) for gpu in rejected])
        gpus, given_back = _with_mended(self._packed, rejected, mended)
        gpus, left_over = self._absorb(gpus, given_back, self.model)
        if left_over:
            gpus, left_over = self._squeeze(gpus, left_over)
        if not left_over and fleet_value(self.problem, gpus) < fleet_value(self.problem, before):
            self._commit(
                gpus,
                f"placed {len(given_back)} adapters of the first placement anew",
                given_back=len(given_back),
                gpus_dissolved=max(0, len(before) - len(gpus)),
            )

    def _repack(self, rejected: Sequence[GpuAssignment]) -> bool:
        """Pack many rejected GPUs anew with surrogates that accept less; return whether that helped."""
        least = 1 if self._has_repacked else LEAST_REJECTED
        if len(rejected) < least:
            return False
        for _ in range(min(STEPS_TRIED, len(self._cautious))):
            repacked = repack(self.problem, self._cautious.pop(0), self.fleet.gpus, rejected)
            if repacked is not None and self._helps(repacked, rejected):
                self._has_repacked = True
                self._commit(
                    repacked.gpus,
                    f"packed {repacked.num_moved} adapters anew, more carefully",
                    given_back=repacked.num_moved,
                    gpus_added=max(0, len(repacked.gpus) - len(self.fleet.gpus)),
                    rounds=1,
                )
                return True
        # Caution of that kind does not help: each GPU is looked at for itself.
        self._cautious.clear()
        return False

    def _helps(self, repacked: Repacked, rejected: Sequence[GpuAssignment]) -> bool:
        """Return whether the twin rejects clearly less load than before."""
        verdicts = self.verifier.verify(repacked.gpus)
        left = [gpu for gpu, verdict in zip(repacked.gpus, verdicts, strict=True) if not verdict.is_accepted]
        return self._load_of(left) <= MOST_LOAD_LEFT * self._load_of(rejected)

    def _round(self, rejected: Sequence[GpuAssignment]) -> None:
        """Mend all rejected GPUs, then place what they gave back."""
        mended = run_searches(self.verifier, [mend(self.model, gpu) for gpu in rejected])
        gpus, given_back = _with_mended(self.fleet.gpus, rejected, mended)
        num_before = len(gpus)
        # What had to give back is full.
        full = {result.assignment for result in mended if result.given_back}
        gpus, left_over = self._absorb(gpus, given_back, self.model, closed=full)
        while left_over:
            opened, left_over = self._open(gpus, left_over)
            if opened is None:
                gpus = self._force(gpus, left_over, rejected)
                break
            # The others refused already.
            gpus, left_over = self._absorb((*gpus, opened), left_over, self.model, closed=gpus)
        self._commit(
            gpus,
            f"placed {len(given_back)} adapters anew" if given_back else "changed slots",
            given_back=len(given_back),
            gpus_added=max(0, len(gpus) - num_before),
            rounds=1,
        )

    def _absorb(
        self,
        gpus: Gpus,
        adapters: Sequence[int],
        model: FeasibilityModel,
        *,
        closed: Collection[GpuAssignment | None] = (),
    ) -> tuple[Gpus, list[int]]:
        """Put adapters on GPUs where surrogate and twin see room; return the GPUs and what found no room."""
        fleet = list(gpus)
        waiting = self._by_load(adapters)
        open_gpus = [index for index, gpu in enumerate(fleet) if self.verifier.accepts(gpu) and gpu not in closed]
        while waiting and open_gpus:
            offers, without = self._propose(fleet, open_gpus, waiting, model)
            if not offers:
                break
            searches: list[Search[Filled]] = [
                fill(model, fleet[index], fleet[index].gpu_type, offer) for index, offer in offers.items()
            ]
            refused: list[int] = []
            for index, filled in zip(offers, run_searches(self.verifier, searches), strict=True):
                assert filled.assignment is not None
                fleet[index] = filled.assignment
                refused += filled.refused
                if filled.refused:
                    open_gpus.remove(index)
            waiting = self._by_load([*without, *refused])
        return tuple(fleet), waiting

    def _propose(
        self, fleet: Sequence[GpuAssignment], open_gpus: Sequence[int], adapters: Sequence[int], model: FeasibilityModel
    ) -> tuple[dict[int, list[int]], list[int]]:
        """Give each adapter to the GPU where the surrogate sees most room; return the offers, and who got none."""
        problem = self.problem
        members = [list(fleet[index].adapters) for index in open_gpus]
        rows = np.array([problem.aggregates[chosen].sum(axis=0) for chosen in members])
        ranks = np.array([problem.ranks[chosen].max() for chosen in members], dtype=np.int64)
        types = np.array([fleet[index].gpu_type for index in open_gpus], dtype=np.int64)
        loads = np.array([self._offered_tps(chosen) for chosen in members])
        offers: dict[int, list[int]] = {}
        without: list[int] = []
        for adapter in adapters:
            sets = [tuple(sorted((*chosen, adapter))) for chosen in members] if model.uses_members else None
            choices = model.best_choice(
                rows + problem.aggregates[adapter], np.maximum(ranks, problem.ranks[adapter]), types, sets
            )
            if not choices.feasible.any():
                without.append(adapter)
                continue
            pressure = np.where(choices.feasible, choices.pressure, np.inf)
            position = int(np.lexsort((loads, pressure))[0])
            members[position].append(adapter)
            loads[position] += problem.adapters[adapter].offered_tps
            rows[position] += problem.aggregates[adapter]
            ranks[position] = max(ranks[position], problem.ranks[adapter])
            offers.setdefault(open_gpus[position], []).append(adapter)
        return offers, without

    def _open(self, gpus: Gpus, adapters: Sequence[int]) -> tuple[GpuAssignment | None, list[int]]:
        """Open a GPU with as many of `adapters` (by load, descending) as surrogate and twin accept.

        Returns ``None`` when every type is used up.

        Raises
        ------
        InputError
            When the twin rejects the first adapter alone on every type.
        """
        available = [index for index in self._types_in_order() if self._has_left(gpus, index)]
        for gpu_type in available:
            offered = list(adapters[: self._predicted_prefix(gpu_type, adapters)])
            (filled,) = run_searches(self.verifier, [fill(self.model, None, gpu_type, offered)])
            if filled.assignment is not None:
                return filled.assignment, [*filled.refused, *adapters[len(offered) :]]
        if len(available) == len(self.problem.gpu_types):
            raise unplaceable(self.problem, adapters[0], self.verifier)
        return None, list(adapters)

    def _predicted_prefix(self, gpu_type: int, adapters: Sequence[int]) -> int:
        """Return how many of `adapters` the surrogate accepts together on an empty GPU, at least 1."""
        problem = self.problem
        chosen = list(adapters)
        members = [tuple(sorted(chosen[: count + 1])) for count in range(len(chosen))]
        choices = self.model.best_choice(
            np.cumsum(problem.aggregates[chosen], axis=0),
            np.maximum.accumulate(problem.ranks[chosen]),
            gpu_type,
            members if self.model.uses_members else None,
        )
        refused = np.flatnonzero(~choices.feasible)
        return max(1, int(refused[0])) if len(refused) else len(chosen)

    def _dissolve(self, others: Gpus, emptied: GpuAssignment) -> Gpus | None:
        """Return `others` with all adapters of `emptied`, or None."""
        gpus, left_over = self._squeeze(others, self._by_load(emptied.adapters))
        return None if left_over else gpus

    def _squeeze(self, gpus: Gpus, adapters: Sequence[int]) -> tuple[Gpus, list[int]]:
        """Put adapters (by load, descending) where an optimist sees room, if for all; return as `_absorb` does."""
        relaxed = FeasibilityModel(self.problem, inflated(self.model.surrogate, OPTIMISM))
        accepting = [index for index, gpu in enumerate(gpus) if self.verifier.accepts(gpu)]
        if not accepting:
            return gpus, list(adapters)
        # One look before the twin is asked: it is not worth its time when the surrogate sees no way at all.
        _, without = self._propose(gpus, accepting, adapters, relaxed)
        return (gpus, list(adapters)) if without else self._absorb(gpus, adapters, relaxed)

    def _force(self, gpus: Gpus, adapters: Sequence[int], rejected: Sequence[GpuAssignment]) -> Gpus:
        """Put adapters that fit nowhere on the emptiest GPU, simulated: a complete plan that says that it fails."""
        if not gpus:
            return tuple(rejected)
        order = sorted(range(len(gpus)), key=lambda index: self._offered_tps(gpus[index].adapters))
        fleet = list(gpus)
        for index in order:
            overloaded = assign(self.model, gpus[index].gpu_type, (*gpus[index].adapters, *adapters))
            if overloaded is not None:
                fleet[index] = overloaded
                self.verifier.verify([overloaded])
                return tuple(fleet)
        return self.fleet.gpus

    def _commit(self, gpus: Gpus, detail: str, **counts: int) -> None:
        """Make `gpus` the fleet; add `counts` to the summary and tell the observer."""
        summary = self.fleet.summary
        increased = {name: getattr(summary, name) + count for name, count in counts.items()}
        self.fleet.gpus = gpus
        self.fleet.summary = summary.model_copy(update=increased)
        accepted = sum(1 for gpu in gpus if self.verifier.accepts(gpu))
        self._observer(FleetChanged(len(gpus), accepted, detail))

    def _types_in_order(self) -> list[int]:
        """Return the GPU types in the order in which new GPUs are tried: cheapest first, or largest first."""
        types = self.problem.gpu_types
        if self.problem.objective == "least_cost":
            return sorted(range(len(types)), key=lambda index: (types[index].cost_per_hour, index))
        return sorted(
            range(len(types)), key=lambda index: (-types[index].memory_gib, types[index].cost_per_hour, index)
        )

    def _has_left(self, gpus: Gpus, gpu_type: int) -> bool:
        limit = self.problem.gpu_types[gpu_type].max_count
        return limit is None or sum(1 for gpu in gpus if gpu.gpu_type == gpu_type) < limit

    def _load_of(self, gpus: Sequence[GpuAssignment]) -> float:
        """Return the tokens/s that are offered to `gpus`."""
        return sum(self._offered_tps(gpu.adapters) for gpu in gpus)

    def _offered_tps(self, adapters: Sequence[int]) -> float:
        return sum(self.problem.adapters[index].offered_tps for index in adapters)

    def _by_load(self, adapters: Sequence[int]) -> list[int]:
        return sorted(adapters, key=lambda index: (-self.problem.adapters[index].offered_tps, index))


def _with_mended(gpus: Gpus, rejected: Sequence[GpuAssignment], mended: Sequence[Mended]) -> tuple[Gpus, list[int]]:
    """Return `gpus` with what became of the rejected ones, and the adapters that those gave back."""
    kept = {gpu: result.assignment for gpu, result in zip(rejected, mended, strict=True)}
    left = tuple(after for before in gpus if (after := kept.get(before, before)) is not None)
    return left, [adapter for result in mended for adapter in result.given_back]


def unplaceable(problem: Problem, adapter: int, verifier: TwinVerifier) -> UnplaceableError:
    """Return the error about an adapter that the twin rejects alone on a GPU of every type: which, and what to do."""
    subject = problem.adapters[adapter]
    texts = []
    for index, gpu_type in enumerate(problem.gpu_types):
        if not problem.may_serve(index, adapter):
            continue
        rank = problem.fixed_max_lora_rank or subject.rank
        alone = GpuAssignment(index, (adapter,), problem.fixed_max_loras or 1, rank)
        (verdict,) = verifier.verify([alone])
        texts.append(
            f"alone on {gpu_type.name!r}, the twin serves {verdict.throughput_tps:,.0f} of "
            f"{verdict.offered_tps:,.0f} tokens/s: {'; '.join(verdict.reasons) or 'accepted'}"
        )
    return UnplaceableError(
        f"every adapter must fit a GPU alone. {subject.name!r} (rank {subject.rank}, {subject.rate_rps:g} requests/s, "
        f"{subject.offered_tps:,.0f} tokens/s) does not: {'; '.join(texts)}. Replicate it (its requests then go to "
        "several GPUs), relax `limits`, or exclude it.",
        problem=problem,
        adapters=[adapter],
    )
