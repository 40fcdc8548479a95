"""Adapter sets and engine settings such as a planner meets, drawn at random: what a surrogate is fitted on."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from predictors.features import ACTIVE_WINDOWS_S, AGGREGATE_NAMES, adapter_aggregates, engine_row
from twin.engine import EngineConfig
from twin.hardware import GpuType, ModelArchitecture
from twin.lengths import LengthDistribution
from twin.memory import check_memory
from twin.profile import PerformanceProfile
from twin.replica import Replica
from twin.workload import NANOSECONDS, Adapter, RequestTable, Workload

# Candidate slots of the published greedy (arXiv 2602.24044); the number of adapters itself is added to them.
SLOT_GRID = (8, 16, 32, 64, 96, 128, 160, 192, 256, 320, 384, 448, 512, 576)
MAX_ADAPTERS = 600
MAX_PROMPT_TOKENS = 12_000
MAX_OUTPUT_TOKENS = 2_000

# Rates of the published synthetic workloads, in requests per second; only their proportions matter here.
_HIGH_RATES = (2.4, 1.2, 0.6, 0.3, 0.15)
_LOW_RATES = (0.075, 0.0375, 0.01875, 0.009375, 0.0046875)
_RANK_SETS: tuple[tuple[int, ...], ...] = (
    (8,),
    (16,),
    (32,),
    (64,),
    (8, 16),
    (8, 32),
    (16, 32),
    (8, 16, 32),
    (8, 16, 32),
    (8, 16, 32),
    (8, 16, 32, 64),
    (16, 64),
    (8, 128),
)
# (prompt mean, prompt std / mean, output mean, output std / mean): ShareGPT-like chat as in the published runs, and
# the conversation and code traces of the Azure LLM inference data set.
_LENGTH_ARCHETYPES = ((223.0, 1.1, 197.0, 1.06), (1150.0, 1.0, 210.0, 0.85), (2050.0, 0.95, 30.0, 1.2))


@dataclass(frozen=True)
class Population:
    """Adapters whose rates sum to one request per second; a load is this times a scale.

    Attributes
    ----------
    adapters
        With their share of the requests as rate.
    length_class
        int64 [A], index into `lengths`.
    lengths
        Pairs of prompt and output length distributions.
    """

    adapters: tuple[Adapter, ...]
    length_class: NDArray[np.int64]
    lengths: tuple[tuple[LengthDistribution, LengthDistribution], ...]
    _aggregates: NDArray[np.float64] = field(repr=False)
    _shares: NDArray[np.float64] = field(repr=False)

    @property
    def max_rank(self) -> int:
        """Largest rank."""
        return max(adapter.rank for adapter in self.adapters)

    def aggregate(self, total_rps: float) -> NDArray[np.float64]:
        """Return the aggregate of the set when it gets `total_rps` requests per second, float64 [K]."""
        value = dict(zip(AGGREGATE_NAMES, self._aggregates.sum(axis=0).tolist(), strict=True))
        for name in ("sum_rate_rps", "sum_prompt_tps", "sum_output_tps", "sum_kv_token_steps", "sum_prompt_sq_tps"):
            value[name] *= total_rps
        value["sum_rate_sq"] *= total_rps**2
        for name, window_s in zip(("active_10s", "active_40s"), ACTIVE_WINDOWS_S, strict=True):
            value[name] = float(-np.expm1(-window_s * total_rps * self._shares).sum())
        return np.array([value[name] for name in AGGREGATE_NAMES])

    def workload(self, total_rps: float, *, horizon_s: float, generator: np.random.Generator) -> Workload:
        """Return the set with Poisson traffic of `total_rps` requests per second over `horizon_s` seconds.

        The requests are drawn together, which for 600 adapters is a hundred times faster than adapter by adapter.
        """
        count = int(generator.poisson(total_rps * horizon_s))
        arrival = np.sort(generator.random(count)) * horizon_s
        adapter = generator.choice(len(self.adapters), size=count, p=self._shares)
        prompts = np.ones(count, dtype=np.int32)
        outputs = np.ones(count, dtype=np.int32)
        for index, (prompt, output) in enumerate(self.lengths):
            mask = self.length_class[adapter] == index
            prompts[mask] = prompt.sample(int(mask.sum()), generator)
            outputs[mask] = output.sample(int(mask.sum()), generator)
        requests = RequestTable(
            arrival_ns=np.floor(arrival * NANOSECONDS).astype(np.int64),
            adapter=adapter.astype(np.int32),
            prompt_tokens=prompts,
            output_tokens=outputs,
        )
        return Workload(adapters=self.adapters, trace=requests)


@dataclass(frozen=True)
class Scenario:
    """A population and the replicas that it is tried on; all of them start."""

    population: Population
    replicas: tuple[Replica, ...]

    def engine_columns(self, index: int) -> NDArray[np.float64]:
        """Return the engine columns of the features for the replica at `index`, float64 [E]."""
        replica = self.replicas[index]
        return engine_row(replica.engine, kv_tokens=replica.memory().kv_tokens)


def draw_scenario(
    model: ModelArchitecture,
    gpu: GpuType,
    profile: PerformanceProfile,
    *,
    generator: np.random.Generator,
    num_replicas: int = 2,
) -> Scenario:
    """Draw a population and `num_replicas` engines that start with it, again until they all do."""
    while True:
        population = draw_population(generator)
        replicas = [
            _draw_replica(model, gpu, profile, population, generator, has_most_slots=i == 0)
            for i in range(num_replicas)
        ]
        if None not in replicas:
            return Scenario(population, tuple(replica for replica in replicas if replica is not None))


def _draw_replica(
    model: ModelArchitecture,
    gpu: GpuType,
    profile: PerformanceProfile,
    population: Population,
    generator: np.random.Generator,
    *,
    has_most_slots: bool,
) -> Replica | None:
    """Draw an engine with the most slots that start, as planners like them, or any number; None if nothing starts."""
    count = len(population.adapters)
    template = _draw_engine(model, generator).model_dump()
    template["max_lora_rank"] = _draw_slot_rank(population.max_rank, generator)
    engines = [
        EngineConfig.model_validate(template | {"max_loras": slots, "max_cpu_loras": max(count, slots)})
        for slots in _slot_options(count, generator)
    ]
    starting = [engine for engine in engines if check_memory(model, gpu, engine, profile).starts]
    if not starting:
        return None
    engine = starting[-1] if has_most_slots else starting[int(generator.integers(len(starting)))]
    return Replica(model=model, gpu=gpu, engine=engine, profile=profile)


def draw_population(generator: np.random.Generator) -> Population:
    """Draw 1 to `MAX_ADAPTERS` adapters: their shares of the load, ranks and lengths."""
    if generator.random() < 0.15:
        count = int(generator.integers(1, 9))
    else:
        count = round(float(np.exp(generator.uniform(np.log(4), np.log(MAX_ADAPTERS)))))
    shares = _draw_shares(count, generator)
    rank_set = _RANK_SETS[int(generator.integers(len(_RANK_SETS)))]
    ranks = generator.choice(rank_set, size=count, p=generator.dirichlet(np.full(len(rank_set), 2.0)))
    num_classes = 1 if generator.random() < 0.6 else int(generator.integers(2, 4))
    lengths = tuple(_draw_lengths(generator) for _ in range(num_classes))
    length_class = generator.integers(num_classes, size=count)
    adapters = tuple(
        Adapter.model_validate(
            {
                "name": f"adapter-{i}",
                "rank": int(ranks[i]),
                "rate_rps": float(shares[i]),
                "prompt_tokens": lengths[length_class[i]][0],
                "output_tokens": lengths[length_class[i]][1],
            }
        )
        for i in range(count)
    )
    return Population(adapters, length_class, lengths, adapter_aggregates(adapters), shares)


def _draw_shares(count: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Draw shares of the load, float64 [count], sum 1: discrete levels, Zipf, log-uniform, Dirichlet, or equal."""
    law = generator.choice(["discrete", "zipf", "log_uniform", "dirichlet", "equal"], p=[0.3, 0.3, 0.2, 0.1, 0.1])
    if law == "discrete":
        levels = (_HIGH_RATES, _LOW_RATES, _HIGH_RATES + _LOW_RATES)[int(generator.integers(3))]
        chosen = generator.choice(levels, size=min(len(levels), int(generator.integers(2, 6))), replace=False)
        weights = generator.choice(chosen, size=count)
    elif law == "zipf":
        weights = np.arange(1, count + 1, dtype=np.float64) ** -generator.uniform(0.4, 1.4)
        generator.shuffle(weights)
    elif law == "log_uniform":
        weights = 10.0 ** generator.uniform(0.0, generator.uniform(0.3, 3.0), size=count)
    elif law == "dirichlet":
        weights = np.maximum(generator.dirichlet(np.full(count, 0.5)), 1e-5)
    else:
        weights = np.ones(count)
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def _draw_lengths(generator: np.random.Generator) -> tuple[LengthDistribution, LengthDistribution]:
    """Draw prompt and output lengths: near an archetype, or anywhere between 40 and 3,000 / 10 and 600 tokens."""
    if generator.random() < 0.6:
        prompt, prompt_cv, output, output_cv = _LENGTH_ARCHETYPES[int(generator.integers(3))]
        prompt, output = (mean * float(np.exp(generator.normal(0.0, 0.15))) for mean in (prompt, output))
    else:
        prompt = float(np.exp(generator.uniform(np.log(40), np.log(3000))))
        output = float(np.exp(generator.uniform(np.log(10), np.log(600))))
        prompt_cv, output_cv = (float(cv) for cv in generator.uniform(0.0, 1.2, size=2))
        if generator.random() < 0.15:
            prompt_cv = output_cv = 0.0
    return (
        LengthDistribution(mean=prompt, std=prompt_cv * prompt, max=MAX_PROMPT_TOKENS),
        LengthDistribution(mean=output, std=output_cv * output, max=MAX_OUTPUT_TOKENS),
    )


def _draw_engine(model: ModelArchitecture, generator: np.random.Generator) -> EngineConfig:
    """Draw the settings that planners give: batch limits, memory share, and sometimes a shorter context."""
    num_seqs = int(generator.choice([64, 128, 256, 512, 1024, 2048], p=[0.1, 0.15, 0.35, 0.15, 0.1, 0.15]))
    batched_tokens = int(generator.choice([2048, 8192], p=[0.65, 0.35]))
    max_model_len = None
    if generator.random() < 0.25:
        max_model_len = min(int(generator.choice([16_384, 32_768, 65_536])), model.max_model_len)
    return EngineConfig(
        vllm_version="0.32" if generator.random() < 0.8 else "0.8.5",
        max_num_seqs=num_seqs,
        max_num_batched_tokens=batched_tokens,
        max_model_len=max_model_len,
        gpu_memory_utilization=float(generator.choice([0.88, 0.9, 0.92, 0.95], p=[0.1, 0.45, 0.35, 0.1])),
    )


def _slot_options(count: int, generator: np.random.Generator) -> list[int]:
    """Return choices of slots for `count` adapters, ascending; now and then more of them than adapters."""
    options = {*(slots for slots in SLOT_GRID if slots < count), count}
    if generator.random() < 0.1:
        options.add(min(slots for slots in (*SLOT_GRID, MAX_ADAPTERS) if slots >= count))
    return sorted(options)


def _draw_slot_rank(max_rank: int, generator: np.random.Generator) -> int:
    """Return the rank of the slots: the largest of the set, sometimes the next one above."""
    if max_rank < 64 and generator.random() < 0.15:
        return 2 * max_rank
    return max_rank
