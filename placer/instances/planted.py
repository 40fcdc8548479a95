"""Planted instances: GPUs are filled until the surrogate at hand takes no more, and their adapters are then shuffled.

The number of GPUs that were filled is enough by construction. Usually it is the fewest: a GPU holds adapters of one
rank, and it is filled until none of many others fits. It is no proof.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from placer.instances.instance import Instance, SurrogateSource, chat_adapters, make_problem
from placer.instances.synthetic import HIGH_RATES, LOW_RATES, generator_of
from solvers.feasibility import FeasibilityModel
from twin.engine import LoraRank
from twin.errors import InputError

RANKS: tuple[LoraRank, ...] = (8, 16, 32)
RATES = {"hot": HIGH_RATES[1:], "cold": LOW_RATES, "mixed": HIGH_RATES[1:] + LOW_RATES}
# Adapters from which one GPU is filled: more than it holds. And those that are offered to it when it is nearly full.
POOL_SIZES = {"hot": 200, "cold": 1_000, "mixed": 500}
TOP_UP_SIZE = 60
TOP_UP_ROUNDS = 12


def planted_instance(name: str, source: SurrogateSource, *, rates: str, num_gpus: int) -> Instance:
    """Return the adapters of `num_gpus` full GPUs, shuffled.

    Parameters
    ----------
    name
        Decides the draws.
    source
        The surrogate that says when a GPU is full.
    rates
        Of `RATES`.
    num_gpus
        GPUs to fill, >= 1.

    Raises
    ------
    InputError
        When the surrogate takes not even one of the adapters.
    """
    generator = generator_of(name)
    planted = [_full_gpu(name, source, RANKS[gpu % len(RANKS)], rates, generator) for gpu in range(num_gpus)]
    owner = np.repeat(np.arange(num_gpus), [len(chosen) for chosen in planted])
    order = generator.permutation(len(owner))
    owner = owner[order]
    adapters = chat_adapters([RANKS[int(gpu) % len(RANKS)] for gpu in owner], np.concatenate(planted)[order])
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
