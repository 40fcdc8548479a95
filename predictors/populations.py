"""Sets of adapters such as planners have, drawn at random: rates, ranks, lengths and burstiness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from predictors.features import ACTIVE_WINDOWS_S, AGGREGATE_NAMES, RATE_LINEAR_NAMES, adapter_aggregates
from predictors.traffic import Traffic
from twin.lengths import LengthDistribution
from twin.popularity import DirichletPopularity, UniformPopularity, ZipfPopularity
from twin.workload import Adapter, RequestTable

MAX_ADAPTERS = 1_000
MAX_PROMPT_TOKENS = 12_000
MAX_OUTPUT_TOKENS = 2_000
MAX_GAP_CV = 4.0
MAX_RANK = 128

RATE_LAWS: tuple[str, ...] = ("discrete", "zipf", "log_uniform", "dirichlet", "equal")

# Rates of the published synthetic workloads, in requests per second; only their proportions matter here.
_HIGH_RATES = (2.4, 1.2, 0.6, 0.3, 0.15)
_LOW_RATES = (0.075, 0.0375, 0.01875, 0.009375, 0.0046875)
_RANK_SETS: tuple[tuple[int, ...], ...] = (
    (8,),
    (16,),
    (32,),
    (64,),
    (128,),
    (8, 16),
    (8, 32),
    (16, 32),
    (8, 16, 32),
    (8, 16, 32),
    (8, 16, 32),
    (8, 16, 32, 64),
    (16, 64),
    (8, 128),
    (8, 16, 32, 64, 128),
)
# (prompt mean, prompt std / mean, output mean, output std / mean): ShareGPT-like chat as in the published runs, the
# conversation and code traces of the Azure LLM inference data set, and summaries of documents of two sizes.
_LENGTH_ARCHETYPES = (
    (223.0, 1.1, 197.0, 1.06),
    (1150.0, 1.0, 210.0, 0.85),
    (2050.0, 0.95, 30.0, 1.2),
    (4500.0, 0.5, 280.0, 0.6),
    (8500.0, 0.3, 450.0, 0.5),
)
_ARCHETYPE_SHARES = (0.36, 0.24, 0.2, 0.12, 0.08)


@dataclass(frozen=True)
class Population:
    """Adapters with their rates, and what follows from both; make it with `of`.

    Attributes
    ----------
    adapters
        A >= 1 adapters.
    traffic
        What their requests are drawn from.
    """

    adapters: tuple[Adapter, ...]
    traffic: Traffic
    _aggregates: NDArray[np.float64] = field(repr=False)

    @classmethod
    def of(cls, adapters: Sequence[Adapter]) -> Population:
        """Return the population of `adapters`, at least one of which has a rate above 0."""
        return cls(tuple(adapters), Traffic.of(adapters), adapter_aggregates(adapters))

    @property
    def total_rps(self) -> float:
        """Requests per second of all adapters together, at their own rates."""
        return float(self.traffic.rates_rps.sum())

    @property
    def tokens_per_request(self) -> float:
        """Mean prompt + output tokens of a request."""
        columns = [AGGREGATE_NAMES.index(name) for name in ("sum_prompt_tps", "sum_output_tps")]
        return float(self._aggregates[:, columns].sum()) / self.total_rps

    @property
    def max_rank(self) -> int:
        """Largest rank."""
        return max(adapter.rank for adapter in self.adapters)

    def first(self, count: int) -> Population:
        """Return the first `count` adapters."""
        return Population.of(self.adapters[:count])

    def aggregate(self, load_rps: float) -> NDArray[np.float64]:
        """Return the aggregate of the set at a total of `load_rps` requests per second, float64 [K]."""
        scale = load_rps / self.total_rps
        value = dict(zip(AGGREGATE_NAMES, self._aggregates.sum(axis=0).tolist(), strict=True))
        for name in RATE_LINEAR_NAMES:
            value[name] *= scale
        value["sum_rate_sq"] *= scale**2
        for name, window_s in zip(("active_10s", "active_40s"), ACTIVE_WINDOWS_S, strict=True):
            value[name] = float(-np.expm1(-window_s * scale * self.traffic.rates_rps).sum())
        return np.array([value[name] for name in AGGREGATE_NAMES])

    def requests(self, load_rps: float, *, horizon_s: float, generator: np.random.Generator) -> RequestTable:
        """Draw the requests of `horizon_s` seconds at a total of `load_rps` requests per second."""
        return self.traffic.draw(scale=load_rps / self.total_rps, horizon_s=horizon_s, generator=generator)


@dataclass(frozen=True)
class AdapterColumns:
    """N adapters as columns, before they become objects: rates in requests/s, ranks, and indices into `lengths`."""

    rates_rps: NDArray[np.float64]
    ranks: NDArray[np.int64]
    length_class: NDArray[np.int64]
    lengths: tuple[tuple[LengthDistribution, LengthDistribution], ...]
    gap_cv: NDArray[np.float64]
    gap_law: str

    @property
    def offered_tps(self) -> NDArray[np.float64]:
        """Prompt + output tokens per second of each, float64 [N]."""
        means = np.array([prompt.effective_mean + output.effective_mean for prompt, output in self.lengths])
        offered: NDArray[np.float64] = self.rates_rps * means[self.length_class]
        return offered

    def population(self, order: NDArray[np.int64], *, scale: float = 1.0) -> Population:
        """Return the adapters at `order`, in that order, with `scale` times their rates."""
        return Population.of(
            tuple(
                Adapter.model_validate(
                    {
                        "name": f"adapter-{index}",
                        "rank": int(self.ranks[index]),
                        "rate_rps": float(self.rates_rps[index]) * scale,
                        "prompt_tokens": self.lengths[self.length_class[index]][0],
                        "output_tokens": self.lengths[self.length_class[index]][1],
                        "gap_cv": float(self.gap_cv[index]),
                        "gap_law": self.gap_law,
                    }
                )
                for index in order.tolist()
            )
        )


def draw_adapters(count: int, law: str, *, max_tokens: int, generator: np.random.Generator) -> AdapterColumns:
    """Draw `count` adapters whose rates sum to one request per second.

    Parameters
    ----------
    law
        Of the rates, one of `RATE_LAWS`.
    max_tokens
        Most tokens of a prompt and its output, which the replica's context must hold; >= 1024.
    """
    rates = _draw_shares(count, law, generator)
    rank_set = _RANK_SETS[int(generator.integers(len(_RANK_SETS)))]
    ranks = generator.choice(rank_set, size=count, p=generator.dirichlet(np.full(len(rank_set), 2.0)))
    num_classes = 1 if generator.random() < 0.6 else int(generator.integers(2, 4))
    lengths = tuple(_draw_lengths(max_tokens, generator) for _ in range(num_classes))
    length_class = generator.integers(num_classes, size=count)
    gap_cv, gap_law = _draw_gaps(count, generator)
    return AdapterColumns(rates, ranks, length_class, lengths, gap_cv, gap_law)


def _draw_shares(count: int, law: str, generator: np.random.Generator) -> NDArray[np.float64]:
    """Draw shares of the load, float64 [count], all above 0, sum 1."""
    if law == "discrete":
        levels = (_HIGH_RATES, _LOW_RATES, _HIGH_RATES + _LOW_RATES)[int(generator.integers(3))]
        chosen = generator.choice(levels, size=min(len(levels), int(generator.integers(2, 6))), replace=False)
        weights = generator.choice(chosen, size=count)
    elif law == "zipf":
        weights = ZipfPopularity(float(generator.uniform(0.4, 1.4))).probabilities(count)
        generator.shuffle(weights)
    elif law == "log_uniform":
        weights = 10.0 ** generator.uniform(0.0, generator.uniform(0.3, 3.0), size=count)
    elif law == "dirichlet":
        drawn = DirichletPopularity(0.5).probabilities(count, seed=int(generator.integers(2**31)))
        weights = np.maximum(drawn, 1e-5)
        generator.shuffle(weights)
    else:
        assert law == "equal", law
        weights = UniformPopularity().probabilities(count)
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def _draw_lengths(max_tokens: int, generator: np.random.Generator) -> tuple[LengthDistribution, LengthDistribution]:
    """Draw prompt and output lengths: near an archetype, or anywhere from 40 to 9,000 and 10 to 1,000; or constant."""
    longest_prompt = min(MAX_PROMPT_TOKENS, 3 * max_tokens // 4)
    longest_output = min(MAX_OUTPUT_TOKENS, max_tokens // 4)
    if generator.random() < 0.65:
        archetype = int(generator.choice(len(_LENGTH_ARCHETYPES), p=_ARCHETYPE_SHARES))
        prompt, prompt_cv, output, output_cv = _LENGTH_ARCHETYPES[archetype]
        prompt, output = (mean * float(np.exp(generator.normal(0.0, 0.15))) for mean in (prompt, output))
    else:
        prompt = float(np.exp(generator.uniform(np.log(40), np.log(9000))))
        output = float(np.exp(generator.uniform(np.log(10), np.log(1000))))
        prompt_cv, output_cv = (float(cv) for cv in generator.uniform(0.0, 1.2, size=2))
    # A mean at the very bound would be a constant length in disguise.
    prompt, output = min(prompt, 0.7 * longest_prompt), min(output, 0.7 * longest_output)
    if generator.random() < 0.1:
        return LengthDistribution.constant(round(prompt)), LengthDistribution.constant(round(output))
    return (
        LengthDistribution(mean=prompt, std=prompt_cv * prompt, max=longest_prompt),
        LengthDistribution(mean=output, std=output_cv * output, max=longest_output),
    )


def _draw_gaps(count: int, generator: np.random.Generator) -> tuple[NDArray[np.float64], str]:
    """Draw the variation of the gaps between requests, float64 [count], and their law: mostly Poisson."""
    kind = generator.choice(["poisson", "all", "some"], p=[0.7, 0.2, 0.1])
    # Regular to bursty; as many below 1 as above 2.
    gap_cv = float(generator.choice([0.0, 0.5, 2.0, generator.uniform(0.0, MAX_GAP_CV), MAX_GAP_CV]))
    law = "gamma" if generator.random() < 0.7 else "lognormal"
    if kind == "poisson":
        return np.ones(count), law
    share = 1.0 if kind == "all" else float(generator.uniform(0.1, 0.6))
    return np.where(generator.random(count) < share, gap_cv, 1.0), law
