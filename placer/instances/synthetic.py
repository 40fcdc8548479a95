"""Instances drawn from rates and ranks: the papers' synthetic sets, sizes of two popularity laws, and traps."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from placer.instances.instance import Instance, chat_adapters, dealt_ranks, make_problem
from twin.engine import LoraRank
from twin.lengths import LengthDistribution
from twin.popularity import ZipfPopularity
from twin.workload import Adapter

# Requests per second of the papers' synthetic workloads (arXiv 2602.24044), halving from the largest to the smallest.
HIGH_RATES = (2.4, 1.2, 0.6, 0.3, 0.15)
LOW_RATES = (0.075, 0.0375, 0.01875, 0.009375, 0.0046875)
RATES = {"high": HIGH_RATES, "low": LOW_RATES, "mixed": HIGH_RATES + LOW_RATES}
RANKS: dict[str, tuple[LoraRank, ...]] = {"r8": (8,), "r32": (32,), "r8-16-32": (8, 16, 32)}
# Mean requests per second of an adapter of the sizes family, and the most of one.
MEAN_RATE_RPS = 0.12
LARGEST_RATE_RPS = 2.4
# Adapters beyond which no surrogate that comes with the package was fitted, and a prompt longer than those it knows.
MANY_ADAPTERS = 1_200
LONG_PROMPT = LengthDistribution(mean=9_500.0)


def generator_of(name: str) -> np.random.Generator:
    """Return the random generator of the instance called `name`."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def papers_instance(name: str, *, rates: str, ranks: str, num_adapters: int) -> Instance:
    """Return a synthetic set of the papers: `rates` of `RATES` and `ranks` of `RANKS`, dealt independently."""
    generator = generator_of(name)
    values = np.array(RATES[rates])
    dealt = values[generator.permutation(num_adapters) % len(values)]
    adapters = chat_adapters(dealt_ranks(RANKS[ranks], num_adapters, generator), dealt)
    what = f"{rates} rates {values[0]:g} .. {values[-1]:.2g} requests/s, rank {ranks[1:].replace('-', ', ')}"
    return Instance(name, "papers", what, make_problem(adapters))


def sizes_instance(name: str, *, law: str, num_adapters: int) -> Instance:
    """Return `num_adapters` adapters of three ranks: discrete rates, or rates that follow Zipf's law."""
    generator = generator_of(name)
    if law == "zipf":
        rates = ZipfPopularity(0.9).probabilities(num_adapters) * MEAN_RATE_RPS * num_adapters
        rates = generator.permutation(np.minimum(rates, LARGEST_RATE_RPS))
        what = f"Zipf 0.9, at most {LARGEST_RATE_RPS:g} requests/s, rank 8, 16, 32"
    else:
        levels = np.array([0.6, 0.3, 0.15, 0.075, 0.0375, 0.01875, 0.009375])
        rates = generator.choice(levels, size=num_adapters)
        what = f"rates {levels[0]:g} .. {levels[-1]:.2g} requests/s, rank 8, 16, 32"
    adapters = chat_adapters(dealt_ranks((8, 16, 32), num_adapters, generator), rates)
    return Instance(name, "sizes", what, make_problem(adapters))


def hot_and_cold(name: str, *, num_adapters: int) -> Instance:
    """Return a few hot adapters of rank 64 among many cold ones of rank 8: a slot costs what the hottest needs."""
    num_hot = num_adapters // 12
    ranks: list[LoraRank] = [64 if index < num_hot else 8 for index in range(num_adapters)]
    rates = np.where(np.arange(num_adapters) < num_hot, 1.2, 0.03)
    adapters = chat_adapters(ranks, rates)
    order = generator_of(name).permutation(num_adapters)
    what = f"{num_hot} of rank 64 at 1.2 requests/s, the others of rank 8 at 0.03"
    return Instance(name, "adversarial", what, make_problem([adapters[int(index)] for index in order]))


def beyond_domain(name: str, *, num_adapters: int = MANY_ADAPTERS) -> Instance:
    """Return adapters whose best GPUs lie beyond what learned surrogates were fitted on: very many, very long."""
    rates = np.full(num_adapters, 0.0012)
    adapters = chat_adapters(dealt_ranks((8,), num_adapters, generator_of(name)), rates)
    longer: list[Adapter] = [
        adapter.model_copy(update={"prompt_tokens": LONG_PROMPT, "rate_rps": 0.02}) if index % 100 == 0 else adapter
        for index, adapter in enumerate(adapters)
    ]
    what = "0.0012 requests/s each, one in a hundred with prompts of 9,500 tokens"
    return Instance(name, "adversarial", what, make_problem(longer))


def optimistic(name: str, *, num_adapters: int) -> Instance:
    """Return a mixed set of the papers with a surrogate that believes rates to be a fifth smaller than they are."""
    base = papers_instance(name, rates="mixed", ranks="r8-16-32", num_adapters=num_adapters)
    what = f"{base.what}; the surrogate sees 80 % of the rates"
    return Instance(name, "adversarial", what, base.problem, rate_belief=0.8)


def duplicates(name: str, *, num_adapters: int) -> Instance:
    """Return adapters that are all alike: every order is a tie."""
    ranks: Sequence[LoraRank] = [16] * num_adapters
    adapters = chat_adapters(ranks, np.full(num_adapters, 0.15))
    return Instance(name, "adversarial", "all alike: rank 16, 0.15 requests/s", make_problem(adapters))
