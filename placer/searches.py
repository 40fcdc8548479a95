"""Searches that ask the twin: written one by one as generators, run together so that each round is one parallel batch.

A search yields the GPUs it wants to have simulated and is sent their verdicts. All searches assume what holds up to
chance: taking an adapter off a GPU makes it no worse. Whatever they return has been simulated and accepted.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np

from placer.plan_document import Verification
from solvers.feasibility import FeasibilityModel
from solvers.placement import GpuAssignment, replica_of_gpu
from solvers.problem import Problem

Question = tuple[GpuAssignment, ...]
Verdicts = tuple[Verification, ...]

# Slot options of a rejected GPU that the twin is asked about.
SLOT_TRIALS = 6
# How often adapters that starve may leave a rejected GPU. When a larger share of them starves at once, it is not those
# few that are too much.
STARVING_ROUNDS = 12
MOST_STARVING = 1 / 3
# Output tokens of the answer whose time decides between numbers of slots that the twin accepts: few slots make steps
# short and waiting long.
ANSWER_TOKENS = 200


@dataclass(frozen=True)
class Mended:
    """What became of a rejected GPU.

    Attributes
    ----------
    assignment
        Accepted by the twin; ``None``: it accepts none of the adapters, not even alone.
    given_back
        Adapters that have to go elsewhere.
    """

    assignment: GpuAssignment | None
    given_back: tuple[int, ...]


@dataclass(frozen=True)
class Filled:
    """What became of a GPU that was offered adapters: the accepted GPU (if any), and the adapters that stay over."""

    assignment: GpuAssignment | None
    refused: tuple[int, ...]


R = TypeVar("R")
Search = Generator[Question, Verdicts, R]


class Verifier(Protocol):
    """Whoever says which GPUs are accepted, such as `placer.verify.TwinVerifier`."""

    def verify(self, assignments: Sequence[GpuAssignment]) -> tuple[Verification, ...]:
        """Return the verdict of each."""


def run_searches(verifier: Verifier, searches: Sequence[Search[R]]) -> list[R]:
    """Advance all searches in lock-step until each has returned; what they ask in a round is one parallel batch."""
    results: dict[int, R] = {}
    waiting: dict[int, Question] = {}

    def advance(index: int, answer: Verdicts | None) -> None:
        try:
            waiting[index] = next(searches[index]) if answer is None else searches[index].send(answer)
        except StopIteration as stop:
            waiting.pop(index, None)
            results[index] = stop.value

    for index in range(len(searches)):
        advance(index, None)
    while waiting:
        asked = dict(waiting)
        verdicts = iter(verifier.verify([gpu for question in asked.values() for gpu in question]))
        for index, question in asked.items():
            advance(index, tuple(next(verdicts) for _ in question))
    return [results[index] for index in range(len(searches))]


def mend(model: FeasibilityModel, gpu: GpuAssignment) -> Search[Mended]:
    """Make a rejected GPU acceptable: with other slots, else with the fewest adapters given back.

    The twin chooses the slots, and where that does not help and it may be chosen, `max_num_seqs`. Then the k adapters
    of largest load leave, with the smallest k that helps, the slots being chosen anew for each k: those that serve most
    of an overload are rarely those that serve all of what remains. In place of the last that leaves, the one of
    smallest load leaves that helps as well.
    """
    options = _slot_options(model, gpu)
    if options:
        verdicts = yield options
        best = _best(options, verdicts)
        if best is not None:
            return Mended(best, ())
        gpu = _least_bad(options, verdicts)
    others = other_sequences(model.problem, gpu)
    if others:
        verdicts = yield (gpu, *others)
        best = _best((gpu, *others), verdicts)
        if best is not None:
            return Mended(best, ())
        gpu = _least_bad((gpu, *others), verdicts)
    order = _by_load(model, gpu.adapters)
    # Giving back `low` does not help; giving back `high` does, or is all. Doubling first: a GPU that a solver packed is
    # rarely off by more than an adapter or two.
    low, high, accepted = 0, len(order), None
    while high - low > 1:
        count = min(2 * low + 1, len(order) - 1) if high == len(order) else (low + high) // 2
        candidates = _mended_candidates(model, gpu, order[count:])
        verdicts = yield candidates
        best = _best(candidates, verdicts)
        if best is not None:
            high, accepted = count, best
        else:
            low = count
    if accepted is None:
        return Mended(None, gpu.adapters)
    # The last one that leaves, and those that may leave in its place, by load: the first position is known to help.
    remaining = order[high - 1 :]
    low, beyond = 0, len(remaining)
    while beyond - low > 1:
        middle = (low + beyond) // 2
        candidates = _mended_candidates(model, gpu, [adapter for adapter in remaining if adapter != remaining[middle]])
        verdicts = yield candidates
        best = _best(candidates, verdicts)
        if best is not None:
            low, accepted = middle, best
        else:
            beyond = middle
    return Mended(accepted, (*order[: high - 1], remaining[low]))


def shed(model: FeasibilityModel, gpu: GpuAssignment) -> Search[Mended]:
    """Make a rejected GPU acceptable: those that starve on it leave, as often as that takes, under its settings.

    On a GPU that serves nearly all of its load these are a few adapters with few requests; without them it is as full
    as it can be. Where a larger share than `MOST_STARVING` starves, or nobody does, it is mended (`mend`).
    """
    names = {model.problem.adapters[index].name: index for index in gpu.adapters}
    kept = gpu
    for _ in range(STARVING_ROUNDS):
        (verdict,) = yield (kept,)
        if verdict.is_accepted:
            return Mended(kept, tuple(sorted(set(gpu.adapters) - set(kept.adapters))))
        starved = {names[name] for name in verdict.starved_adapters if name in names}
        if not 0 < len(starved) <= MOST_STARVING * len(kept.adapters):
            break
        kept = reassign(model, kept, [index for index in kept.adapters if index not in starved])
    return (yield from mend(model, gpu))


def fill(model: FeasibilityModel, base: GpuAssignment | None, gpu_type: int, offered: Sequence[int]) -> Search[Filled]:
    """Put as many of `offered` (by load, descending) as the twin accepts on a GPU: all, else the longest prefix.

    Parameters
    ----------
    model
        Chooses the slots.
    base
        An accepted GPU; ``None``: an empty one.
    gpu_type
        Of the GPU.
    offered
        At least one adapter.
    """
    low, high, accepted = 0, len(offered) + 1, base
    count = len(offered)
    while high - low > 1:
        adapters = (*(base.adapters if base else ()), *offered[:count])
        candidates = _slot_candidates(model, base, gpu_type, adapters)
        verdicts = yield candidates
        best = _best(candidates, verdicts)
        if best is not None:
            low, accepted = count, best
        else:
            high = count
        count = (low + high) // 2
    return Filled(accepted, tuple(offered[low:]))


def other_sequences(problem: Problem, gpu: GpuAssignment) -> tuple[GpuAssignment, ...]:
    """Return a GPU with each other value of `max_num_seqs` that may be chosen and with which it starts."""
    own = problem.engine.max_num_seqs
    others = (
        replace(gpu, max_num_seqs=None if value == own else value)
        for value in problem.max_num_seqs_options
        if value != (gpu.max_num_seqs or own)
    )
    return tuple(other for other in others if replica_of_gpu(problem, other).memory().starts)


def assign(
    model: FeasibilityModel, gpu_type: int, adapters: Sequence[int], *, must_fit: bool = False
) -> GpuAssignment | None:
    """Return a GPU with `adapters` and the slots that the surrogate likes best; ``None``: none are allowed.

    Also ``None`` where it `must_fit`, and the surrogate accepts no slots.
    """
    members = tuple(sorted(adapters))
    chosen = list(members)
    max_rank = model.problem.ranks[chosen].max()
    choices = model.best_choice(
        model.aggregates[chosen].sum(axis=0)[np.newaxis],
        np.array([max_rank], dtype=np.int64),
        gpu_type,
        [members] if model.uses_members else None,
    )
    if choices.max_loras[0] == 0 or (must_fit and not choices.feasible[0]):
        return None
    return GpuAssignment(gpu_type, members, int(choices.max_loras[0]), int(choices.max_lora_rank[0]))


def reassign(model: FeasibilityModel, gpu: GpuAssignment, adapters: Sequence[int]) -> GpuAssignment:
    """Return `gpu` with a subset of its adapters, and no more slots and rank than those need."""
    members = tuple(sorted(adapters))
    slots = model.problem.fixed_max_loras or min(gpu.max_loras, len(model.problem.members_of(members)))
    rank = model.slots.rank_of_slots(int(model.problem.ranks[list(members)].max()))
    return replace(gpu, adapters=members, max_loras=slots, max_lora_rank=rank)


def _slot_options(model: FeasibilityModel, gpu: GpuAssignment) -> tuple[GpuAssignment, ...]:
    """Return `gpu` with its own and other numbers of slots: a few, spread from the fewest to the most."""
    if model.problem.fixed_max_loras is not None:
        return ()
    max_rank = int(model.problem.ranks[list(gpu.adapters)].max())
    num_adapters = len(model.problem.members_of(gpu.adapters))
    slots = sorted({gpu.max_loras, *model.slot_options(gpu.gpu_type, num_adapters, max_rank)})
    if len(slots) == 1:
        return ()
    own = slots.index(gpu.max_loras)
    # The nearest ones first: the surrogate is more likely to be wrong by a little.
    nearest = sorted(range(len(slots)), key=lambda position: (abs(position - own), position))[:SLOT_TRIALS]
    chosen = sorted({*nearest, len(slots) - 1})
    return tuple(replace(gpu, max_loras=slots[index]) for index in chosen)


def _mended_candidates(
    model: FeasibilityModel, gpu: GpuAssignment, adapters: Sequence[int]
) -> tuple[GpuAssignment, ...]:
    """Return `gpu` with a subset of its adapters under its slots, those that the surrogate likes, and the most."""
    kept = reassign(model, gpu, adapters)
    if model.problem.fixed_max_loras is not None:
        return (kept,)
    liked = assign(model, gpu.gpu_type, adapters)
    slots = model.slot_options(gpu.gpu_type, len(model.problem.members_of(kept.adapters)), kept.max_lora_rank)
    most = [replace(kept, max_loras=count) for count in slots[-1:]]
    return tuple(dict.fromkeys([kept, *most] if liked is None else [kept, liked, *most]))


def _slot_candidates(
    model: FeasibilityModel, base: GpuAssignment | None, gpu_type: int, adapters: Sequence[int]
) -> tuple[GpuAssignment, ...]:
    """Return a GPU with `adapters` under the slots that the surrogate likes, and under the settings of `base`.

    An adapter that is the first on its GPU must fit somewhere: there, with every `max_num_seqs` that may be chosen.
    """
    candidates = [assign(model, gpu_type, adapters)]
    if candidates[0] is not None and base is None and len(adapters) == 1:
        candidates += other_sequences(model.problem, candidates[0])
    if candidates[0] is not None and base is not None and base.max_num_seqs is not None:
        candidates.append(replace(candidates[0], max_num_seqs=base.max_num_seqs))
    if candidates[0] is not None and base is not None and model.problem.fixed_max_loras is None:
        members = tuple(sorted(adapters))
        rank = model.slots.rank_of_slots(int(model.problem.ranks[list(members)].max()))
        slots = min(base.max_loras, model.slots.limit(gpu_type, rank))
        kept = GpuAssignment(gpu_type, members, slots, rank, base.max_num_seqs)
        candidates.append(kept if slots else None)
    return tuple(dict.fromkeys(candidate for candidate in candidates if candidate is not None))


def _best(candidates: Sequence[GpuAssignment], verdicts: Sequence[Verification]) -> GpuAssignment | None:
    """Return the accepted candidate that answers soonest; ties: the fewest slots."""
    accepted = [
        (_answer_s(verdict), gpu.max_loras, gpu)
        for gpu, verdict in zip(candidates, verdicts, strict=True)
        if verdict.is_accepted
    ]
    return min(accepted, key=lambda entry: entry[:2])[2] if accepted else None


def _answer_s(verdict: Verification) -> float:
    """Return about how long an answer takes, in seconds, from the 95th percentiles; 0 when nothing was asked."""
    return (verdict.ttft_p95_s or 0.0) + ANSWER_TOKENS * (verdict.itl_p95_s or 0.0)


def _least_bad(candidates: Sequence[GpuAssignment], verdicts: Sequence[Verification]) -> GpuAssignment:
    """Return the rejected candidate that serves most; ties: the fewest starved adapters, then the fewest slots."""

    def badness(entry: tuple[GpuAssignment, Verification]) -> tuple[float, int, int]:
        gpu, verdict = entry
        return (-round(verdict.throughput_ratio, 2), len(verdict.starved_adapters), gpu.max_loras)

    return min(zip(candidates, verdicts, strict=True), key=badness)[0]


def _by_load(model: FeasibilityModel, adapters: Sequence[int]) -> tuple[int, ...]:
    """Return `adapters` by offered load, descending."""
    return tuple(sorted(adapters, key=lambda index: (-model.problem.adapters[index].offered_tps, index)))
