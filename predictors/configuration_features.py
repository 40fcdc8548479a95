"""What a configuration model sees of a population and a GPU: a dozen numbers that a person can read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from predictors.adapter_sequence import AdapterSequence
from predictors.capacity import LIMITS, Capacity, estimate_capacity, slots_that_start
from predictors.features import AGGREGATE_NAMES
from predictors.optimum import DEFAULT_SEARCH, SearchSettings
from twin.errors import InputError
from twin.replica import Replica
from twin.workload import Adapter

# Raised whenever a name, its meaning or the order changes.
FEATURES_VERSION = 1

# Name, unit, and what it is in words: rules are printed with them.
_FEATURES: tuple[tuple[str, str, str], ...] = (
    ("arithmetic_adapters", "adapters", "adapters by arithmetic"),
    ("arithmetic_slots", "slots", "slots by arithmetic"),
    *((f"demand_{limit.replace(' ', '_')}", "share", f"use of {limit} by arithmetic") for limit in LIMITS),
    ("adapter_tps", "tokens/s", "tokens/s per adapter"),
    ("adapter_rps", "requests/s", "requests/s per adapter"),
    ("prompt_tokens", "tokens", "prompt tokens per request"),
    ("output_tokens", "tokens", "output tokens per request"),
    ("prompt_spread", "ratio", "spread of prompt lengths"),
    ("rate_variation", "ratio", "variation of rates between adapters"),
    ("gap_variation", "ratio", "variation of gaps between requests"),
    ("mean_rank", "rank", "mean rank"),
    ("max_lora_rank", "rank", "rank of the slots"),
    ("max_num_seqs", "requests", "max_num_seqs"),
    ("max_num_batched_tokens", "tokens", "max_num_batched_tokens"),
    ("kv_tokens", "tokens", "KV tokens with slots by arithmetic"),
    ("reserves_full_sequence", "0 or 1", "scheduler_reserve_full_isl"),
)
FEATURE_NAMES: tuple[str, ...] = tuple(name for name, _, _ in _FEATURES)
FEATURE_UNITS: tuple[str, ...] = tuple(unit for _, unit, _ in _FEATURES)
FEATURE_WORDS: dict[str, str] = {name: words for name, _, words in _FEATURES}


@dataclass(frozen=True)
class Description:
    """A population and a GPU as a configuration model sees them.

    Attributes
    ----------
    features
        float64 [len(FEATURE_NAMES)].
    capacity
        What arithmetic says.
    slot_options
        Numbers of slots with which the replica starts, ascending.
    """

    features: NDArray[np.float64]
    capacity: Capacity
    slot_options: tuple[int, ...]


def describe(adapters: Sequence[Adapter], replica: Replica, settings: SearchSettings = DEFAULT_SEARCH) -> Description:
    """Return what a configuration model sees.

    Parameters
    ----------
    adapters
        The population; at least one adapter has a rate above 0.
    replica
        Model, GPU, profile, and all settings but slots and CPU cache.
    settings
        Their slots and most adapters.

    Raises
    ------
    InputError
        When the replica starts with none of the slots.
    """
    kv_tokens = slots_that_start(replica, settings.slot_options)
    if not kv_tokens:
        fewest = min(settings.slot_options)
        verdict = replica.memory()
        raise InputError(
            f"the replica must start with {fewest} slot(s) of rank {replica.engine.max_lora_rank} at least. "
            f"On {replica.gpu.name!r} it does not: {verdict.message}",
            field="max_loras",
            value=fewest,
            hint="use a larger GPU, a smaller rank, or a shorter max_model_len",
        )
    sequence = AdapterSequence(adapters)
    capacity = estimate_capacity(sequence, replica, kv_tokens=kv_tokens, most_adapters=settings.most_adapters)
    total = dict(zip(AGGREGATE_NAMES, sequence.aggregates(np.array([len(adapters)]))[0].tolist(), strict=True))
    count, rate, prompt = float(len(adapters)), total["sum_rate_rps"], total["sum_prompt_tps"]
    engine = replica.engine
    values = (
        capacity.num_adapters,
        capacity.max_loras,
        *(capacity.demands[limit] for limit in LIMITS),
        (prompt + total["sum_output_tps"]) / count,
        rate / count,
        prompt / rate,
        total["sum_output_tps"] / rate,
        total["sum_prompt_sq_tps"] * rate / prompt**2,
        # Rounded: equal rates have no variation, whatever the order in which they are summed.
        round(max(count * total["sum_rate_sq"] / rate**2 - 1.0, 0.0) ** 0.5, 6),
        (total["sum_rate_cv_sq"] / rate) ** 0.5,
        float(np.mean([adapter.rank for adapter in adapters])),
        engine.max_lora_rank,
        engine.max_num_seqs,
        engine.max_num_batched_tokens,
        capacity.kv_tokens,
        engine.scheduler_reserve_full_isl,
    )
    return Description(np.array(values, dtype=np.float64), capacity, tuple(sorted(kv_tokens)))
