"""Planted instances: GPUs are filled until whoever judges takes no more, and their adapters are then shuffled.

The number of GPUs that were filled is enough by construction. Usually it is the fewest: a GPU holds adapters of one
rank, and it is filled until none of many others fits. It is no proof.

First the surrogate at hand fills the GPUs. Where the twin judges as well, what it does not take beside the others is
left out of the instance: a GPU that is full to a surrogate is often too full to the twin, and how many GPUs it would
take instead nobody knows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from placer.instances.instance import Instance, Judges, SurrogateSource, chat_adapters, make_problem
from placer.instances.synthetic import HIGH_RATES, LOW_RATES, generator_of
from placer.plan_document import Verification
from placer.searches import Search, assign, run_searches, shed
from placer.verify import TwinVerifier
from solvers.feasibility import FeasibilityModel
from solvers.placement import GpuAssignment
from solvers.problem import Problem
from twin.engine import LoraRank
from twin.errors import InputError

RANKS: tuple[LoraRank, ...] = (8, 16, 32)
RATES = {"hot": HIGH_RATES[1:], "cold": LOW_RATES, "mixed": HIGH_RATES[1:] + LOW_RATES}
# Adapters from which one GPU is filled: more than it holds. And those that are offered to it when it is nearly full.
POOL_SIZES = {"hot": 200, "cold": 1_000, "mixed": 500}
TOP_UP_SIZE = 60
TOP_UP_ROUNDS = 12


def planted_instance(name: str, judges: Judges, *, rates: str, num_gpus: int) -> Instance:
    """Return the adapters of `num_gpus` full GPUs, shuffled.

    Parameters
    ----------
    name
        Decides the draws.
    judges
        Those who say when a GPU is full.
    rates
        Of `RATES`.
    num_gpus
        GPUs to fill, >= 1.

    Raises
    ------
    InputError
        When the surrogate, or the twin, takes not even one of the adapters of a GPU.
    """
    generator = generator_of(name)
    planted = [
        _full_gpu(name, judges.surrogate_of, RANKS[gpu % len(RANKS)], rates, generator) for gpu in range(num_gpus)
    ]
    owner = np.repeat(np.arange(num_gpus), [len(chosen) for chosen in planted])
    order = generator.permutation(len(owner))
    owner = owner[order]
    adapters = chat_adapters([RANKS[int(gpu) % len(RANKS)] for gpu in owner], np.concatenate(planted)[order])
    if judges.twins:
        # Requests depend on an adapter's name: those that stay keep theirs.
        kept = _taken(name, make_problem(adapters), owner, judges)
        adapters, owner = [adapters[index] for index in kept], owner[kept]
    sets = tuple(tuple(int(index) for index in np.flatnonzero(owner == gpu)) for gpu in range(num_gpus))
    what = f"{rates} rates, the adapters of {num_gpus} full GPUs, rank 8, 16, 32"
    return Instance(name, "planted", what, make_problem(adapters), planted_gpus=num_gpus, planted=sets)


def _full_gpu(
    name: str, source: SurrogateSource, rank: LoraRank, rates: str, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Return the rates of adapters that fill one GPU."""
    size = POOL_SIZES[rates]
    pool = generator.choice(np.array(RATES[rates]), size=size)
    problem, surrogate = source(make_problem(chat_adapters([rank] * size, pool)))
    model = FeasibilityModel(problem, surrogate)
    rows = problem.aggregates

    def accepted(sums: NDArray[np.float64], members: list[tuple[int, ...]]) -> NDArray[np.bool_]:
        ranks = np.full(len(sums), rank, dtype=np.int64)
        return model.best_choice(sums, ranks, 0, members if model.uses_members else None).feasible

    prefixes = [tuple(range(count + 1)) for count in range(size)]
    fits = accepted(np.cumsum(rows, axis=0), prefixes)
    count = int(np.argmin(fits)) if not fits.all() else size
    if count == 0:
        raise InputError(
            f"the surrogate must accept an adapter alone to fill a GPU. It refuses {pool[0]:g} requests/s ({name}).",
            field="surrogate",
        )
    chosen = list(range(count))
    for _ in range(TOP_UP_ROUNDS):
        others = [index for index in range(size) if index not in set(chosen)][:TOP_UP_SIZE]
        if not others:
            break
        sums = rows[chosen].sum(axis=0) + rows[others]
        fits = accepted(sums, [tuple(sorted((*chosen, other))) for other in others])
        if not fits.any():
            break
        # The largest that fits fills fastest.
        best = max(np.flatnonzero(fits), key=lambda position: (pool[others[int(position)]], -int(position)))
        chosen.append(others[int(best)])
    return pool[chosen]


class _AllTraffics:
    """The twin under several traffics: it accepts what it accepts under each."""

    def __init__(self, problem: Problem, judges: Judges) -> None:
        self._verifiers = [TwinVerifier(problem, settings) for settings in judges.twins]

    def verify(self, assignments: Sequence[GpuAssignment]) -> tuple[Verification, ...]:
        """Return the first rejection of each GPU, or that it is accepted."""
        told: dict[GpuAssignment, Verification] = {}
        asked = tuple(assignments)
        for verifier in self._verifiers:
            told |= dict(zip(asked, verifier.verify(asked), strict=True))
            asked = tuple(gpu for gpu in asked if told[gpu].is_accepted)
        return tuple(told[gpu] for gpu in assignments)


def _taken(name: str, problem: Problem, owner: NDArray[np.int64], judges: Judges) -> NDArray[np.int64]:
    """Return the adapters that surrogate and twin take on their GPUs, ascending; `owner` is the GPU of each."""
    seen, surrogate = judges.surrogate_of(problem)
    model = FeasibilityModel(seen, surrogate)
    offered = [tuple(int(index) for index in np.flatnonzero(owner == gpu)) for gpu in range(int(owner.max()) + 1)]
    taken = run_searches(_AllTraffics(problem, judges), [_fill(model, members) for members in offered])
    if not all(taken):
        raise InputError(
            f"the twin must accept an adapter that the surrogate accepts alone to fill a GPU ({name}).",
            field="surrogate",
            hint="compare with `--no-verify`",
        )
    return np.sort(np.concatenate([np.array(members, dtype=np.int64) for members in taken]))


def _fill(model: FeasibilityModel, offered: Sequence[int]) -> Search[tuple[int, ...]]:
    """Return what a GPU takes of `offered`: those that do not starve on it, then the smallest of the others."""
    full = assign(model, 0, offered, must_fit=True)
    mended = None if full is None else (yield from shed(model, full))
    first = offered if mended is None or mended.assignment is None else mended.assignment.adapters
    kept = yield from _longest(model, (), first)
    adapters = model.problem.adapters
    others = sorted(set(offered) - set(kept), key=lambda index: (adapters[index].rate_rps, index))
    return (yield from _longest(model, kept, others))


def _longest(model: FeasibilityModel, kept: tuple[int, ...], offered: Sequence[int]) -> Search[tuple[int, ...]]:
    """Return `kept` with the longest start of `offered` that surrogate and twin accept beside it, by bisection."""
    low, high, count = 0, len(offered) + 1, len(offered)
    while high - low > 1:
        gpu = assign(model, 0, (*kept, *offered[:count]), must_fit=True)
        verdicts = () if gpu is None else (yield (gpu,))
        if any(verdict.is_accepted for verdict in verdicts):
            low = count
        else:
            high = count
        count = (low + high) // 2
    return (*kept, *offered[:low])
