"""Scenarios that planners meet, drawn at random: a set of adapters and the replicas that it is tried on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictors.features import engine_row
from predictors.populations import MAX_ADAPTERS, MAX_RANK, RATE_LAWS, AdapterColumns, Population, draw_adapters
from predictors.slots import GRID
from twin.engine import EngineConfig
from twin.hardware import GpuType, ModelArchitecture
from twin.memory import check_memory
from twin.profile import PerformanceProfile
from twin.replica import Replica

# Kinds of scenarios and their shares. The first five are named after the law of the rates; `few` has at most eight
# adapters; `packed` has those that a packer would put on one GPU, which is what planners ask about most.
FAMILY_SHARES: Mapping[str, float] = {
    "discrete": 0.14,
    "zipf": 0.14,
    "log_uniform": 0.1,
    "dirichlet": 0.08,
    "equal": 0.06,
    "few": 0.08,
    "packed": 0.4,
}
FAMILIES: tuple[str, ...] = tuple(FAMILY_SHARES)
NUM_REPLICAS = 2

# Candidate slots of the published greedy (arXiv 2602.24044) and fewer; the number of adapters itself is added to them.
SLOT_GRID = (1, 2, 4, *GRID)
MAX_SLOTS = SLOT_GRID[-1]
NUM_SEQS = (32, 64, 128, 256, 512, 1024, 2048)
BATCHED_TOKENS = (512, 1024, 2048, 4096, 8192, 16384)
# Device memory that vLLM sees on GPUs that are rented, in GiB.
GPU_MEMORY_GIB = (24.0, 32.0, 40.0, 47.5, 63.43, 79.2, 94.5, 141.0)
# Limits of the context that planners set; a model's own asks for much memory.
_CONTEXTS = (4096, 8192, 16_384, 32_768, 65_536)
_MAX_FEW = 8
# About what one GPU serves in tokens/s: only how large a packer's adapters are.
_TYPICAL_TPS = 9_000.0
_MAX_PACKED_FROM = 5_000


@dataclass(frozen=True)
class EngineDraw:
    """Settings of an engine before its set of adapters is known.

    Attributes
    ----------
    settings
        All of an `EngineConfig` but the slots, their rank and the CPU cache.
    rank_factor
        Rank of the slots over the largest of the adapters.
    slot_position
        Which of the numbers of slots that start is taken, from the fewest (0) to the most (1).
    cpu_share
        Adapters that the CPU cache holds, as a share of the way from the slots (0) to all adapters (1).
    least_slots
        Fewest slots that are tried, if there are as many adapters.
    has_spare_slots
        Whether there may be more slots than adapters.
    """

    settings: Mapping[str, Any]
    rank_factor: int
    slot_position: float
    cpu_share: float
    least_slots: int
    has_spare_slots: bool


@dataclass(frozen=True)
class Scenario:
    """A set of adapters and the replicas that it is tried on.

    Attributes
    ----------
    family
        One of `FAMILIES`.
    population
        The set; of a packed scenario what the packer may add, in that order.
    replicas
        `NUM_REPLICAS` replicas that start.
    unstartable
        One that does not, or none: its verdict is arithmetic.
    """

    family: str
    population: Population
    replicas: tuple[Replica, ...]
    unstartable: Replica | None
    _draws: tuple[EngineDraw, ...]

    @property
    def is_packed(self) -> bool:
        """Whether the population is what a packer adds until the replica starves."""
        return self.family == "packed"

    def first(self, count: int) -> Scenario:
        """Return the scenario of the first `count` adapters, with no more slots than those need."""
        population = self.population.first(count)
        found = [
            _replica(replica.model, replica.gpu, replica.profile, population, draw)
            for replica, draw in zip(self.replicas, self._draws, strict=True)
        ]
        replicas = tuple(replica for replica, _ in found if replica is not None)
        # The fewest slots of the smallest rank are among the choices of any set.
        assert len(replicas) == len(found)
        refused = [unstartable for _, unstartable in found if unstartable is not None]
        unstartable = refused[0] if refused and self.unstartable is not None else None
        return replace(self, population=population, replicas=replicas, unstartable=unstartable)

    def engine_columns(self, replica: Replica) -> NDArray[np.float64]:
        """Return the engine columns of the features for a replica, float64 [E]; no KV tokens if it does not start."""
        return engine_row(replica.engine, kv_tokens=replica.memory().kv_tokens)


def draw_scenario(
    model: ModelArchitecture,
    gpu: GpuType,
    profile: PerformanceProfile,
    *,
    generator: np.random.Generator,
    families: Sequence[str] = FAMILIES,
) -> Scenario:
    """Draw a scenario: its family, memory, adapters, and engines that start with them.

    Parameters
    ----------
    gpu
        The profile's; some scenarios have another memory, under which only the KV cache changes.
    generator
        What all of it is drawn from.
    families
        Families to draw from, in proportion to their shares; at least one of `FAMILIES`.
    """
    shares = np.array([FAMILY_SHARES[family] for family in families])
    family = families[int(generator.choice(len(families), p=shares / shares.sum()))]
    while True:
        sized = gpu.model_copy(update={"memory_gib": _draw_memory(gpu.memory_gib, generator)})
        context = _draw_context(model, sized.memory_gib, generator)
        population = _draw_population(family, context or model.max_model_len, generator)
        draws = tuple(_draw_engine(context, generator) for _ in range(NUM_REPLICAS))
        found = [_replica(model, sized, profile, population, draw) for draw in draws]
        replicas = tuple(starting for starting, _ in found if starting is not None)
        refused = [unstartable for _, unstartable in found if unstartable is not None]
        # Most are of no interest: their memory is arithmetic.
        unstartable = refused[0] if refused and generator.random() < 0.3 else None
        if len(replicas) == NUM_REPLICAS:
            return Scenario(family, population, replicas, unstartable, draws)


def _draw_population(family: str, context: int, generator: np.random.Generator) -> Population:
    law = family if family in RATE_LAWS else RATE_LAWS[int(generator.integers(len(RATE_LAWS)))]
    if family == "packed":
        count = _log_integer(32, _MAX_PACKED_FROM, generator)
        columns = draw_adapters(count, law, max_tokens=context, generator=generator)
        # Fewer than there are, so that the packer fills the GPU before it runs out of adapters.
        per_gpu = _log_integer(3, min(MAX_ADAPTERS, count // 4), generator)
        scale = count * _TYPICAL_TPS / (per_gpu * float(columns.offered_tps.sum()))
        return columns.population(_packing_order(columns, generator), scale=scale)
    count = int(generator.integers(1, _MAX_FEW + 1)) if family == "few" else _log_integer(4, MAX_ADAPTERS, generator)
    return draw_adapters(count, law, max_tokens=context, generator=generator).population(np.arange(count))


def _packing_order(columns: AdapterColumns, generator: np.random.Generator) -> NDArray[np.int64]:
    """Return the adapters that come to one GPU of a packer, in the order in which it adds them.

    Best fit adds the largest first, most often rank by rank, and begins a GPU where the one before was full. With
    several GPUs open, each gets every so-manieth adapter. The published greedy takes largest and smallest in turn.
    """
    ranks = columns.ranks if generator.random() < 0.7 else np.zeros_like(columns.ranks)
    order = np.lexsort((-columns.offered_tps, -ranks))
    order = order[int(0.6 * len(order) * generator.random()) :]
    kind = generator.choice(["largest first", "several open", "greedy"], p=[0.6, 0.2, 0.2])
    if kind == "several open":
        order = order[:: int(generator.integers(2, 17))]
    elif kind == "greedy":
        ends = np.empty_like(order)
        ends[::2], ends[1::2] = order[: (len(order) + 1) // 2], order[::-1][: len(order) // 2]
        order = ends
    return np.asarray(order[:MAX_ADAPTERS])


def _draw_memory(own_gib: float, generator: np.random.Generator) -> float:
    """Return the profile's own memory, that of another GPU, or any between the smallest and the largest, in GiB."""
    kind = generator.choice(["own", "another", "any"], p=[0.6, 0.3, 0.1])
    if kind == "own":
        return own_gib
    if kind == "another":
        return float(generator.choice(GPU_MEMORY_GIB))
    return float(generator.uniform(GPU_MEMORY_GIB[0], GPU_MEMORY_GIB[-1]))


def _draw_context(model: ModelArchitecture, memory_gib: float, generator: np.random.Generator) -> int | None:
    """Return `max_model_len`; None, the model's own, is rarer where memory is scarce."""
    if generator.random() < (0.6 if memory_gib > 48.0 else 0.15):
        return None
    return min(int(generator.choice(_CONTEXTS)), model.max_model_len)


def _draw_engine(context: int | None, generator: np.random.Generator) -> EngineDraw:
    """Draw the settings that planners give: batch limits, memory share, rules; and how slots are to be chosen."""
    num_seqs = int(generator.choice(NUM_SEQS, p=[0.05, 0.1, 0.15, 0.35, 0.15, 0.1, 0.1]))
    batched_tokens = int(generator.choice(BATCHED_TOKENS, p=[0.05, 0.05, 0.5, 0.1, 0.2, 0.1]))
    settings = {
        "vllm_version": "0.32" if generator.random() < 0.75 else "0.8.5",
        "max_num_seqs": num_seqs,
        # vLLM demands at least as many tokens as sequences.
        "max_num_batched_tokens": max(batched_tokens, num_seqs),
        "max_model_len": context,
        "gpu_memory_utilization": float(generator.choice([0.85, 0.9, 0.92, 0.95], p=[0.1, 0.45, 0.35, 0.1])),
    }
    return EngineDraw(
        settings=settings,
        rank_factor=2 if generator.random() < 0.12 else 1,
        slot_position=1.0 if generator.random() < 0.4 else float(generator.random()),
        cpu_share=1.0 if generator.random() < 0.85 else float(generator.random()),
        least_slots=8 if generator.random() < 0.7 else 1,
        has_spare_slots=bool(generator.random() < 0.1),
    )


def _replica(
    model: ModelArchitecture, gpu: GpuType, profile: PerformanceProfile, population: Population, draw: EngineDraw
) -> tuple[Replica | None, Replica | None]:
    """Return a replica with the slots that `draw` chooses among those that start, and the smallest that does not."""
    count, max_rank = len(population.adapters), population.max_rank
    slot_rank = max_rank * draw.rank_factor if max_rank < MAX_RANK else max_rank
    replicas = [
        Replica(
            model=model,
            gpu=gpu,
            engine=EngineConfig.model_validate(
                {
                    **draw.settings,
                    "max_loras": slots,
                    "max_lora_rank": slot_rank,
                    "max_cpu_loras": slots + round(draw.cpu_share * max(count - slots, 0)),
                }
            ),
            profile=profile,
        )
        for slots in _slot_options(count, least=draw.least_slots, has_spare=draw.has_spare_slots)
    ]
    starts = [check_memory(model, gpu, replica.engine, profile).starts for replica in replicas]
    starting = [replica for replica, does_start in zip(replicas, starts, strict=True) if does_start]
    refused = [replica for replica, does_start in zip(replicas, starts, strict=True) if not does_start]
    chosen = starting[min(int(draw.slot_position * len(starting)), len(starting) - 1)] if starting else None
    return chosen, refused[0] if refused else None


def _slot_options(count: int, *, least: int, has_spare: bool) -> list[int]:
    """Return choices of slots for `count` adapters, ascending; at most `MAX_SLOTS`."""
    options = {*(slots for slots in SLOT_GRID if least <= slots < count), min(count, MAX_SLOTS)}
    if has_spare:
        options.add(min((slots for slots in SLOT_GRID if slots >= count), default=MAX_SLOTS))
    return sorted(options)


def _log_integer(least: int, most: int, generator: np.random.Generator) -> int:
    """Return an integer whose logarithm is uniform between those of `least` and `most`."""
    return round(float(np.exp(generator.uniform(np.log(least), np.log(most)))))
