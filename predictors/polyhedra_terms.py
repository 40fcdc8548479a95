"""Terms of which planes are made: the aggregates alone, and as shares of what the settings allow."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import numpy as np
from numpy.typing import NDArray

from predictors.features import AGGREGATE_NAMES
from predictors.polyhedra import SETTING_NAMES
from twin.engine import SUPPORTED_RANKS

# What a load asks of a replica grows with the slots and their rank, and is a share of the batch, of the KV cache and of
# a step's tokens; adapters compete for the slots (see `predictors.derived`).
_GROWS_WITH: tuple[Mapping[str, float], ...] = (
    {},
    {"max_loras": 1.0},
    {"max_loras": 1.0, "max_lora_rank": 1.0},
    {"max_lora_rank": 1.0},
)
_SHARES = (
    ("sum_output_tps", "max_num_seqs"),
    ("sum_rate_rps", "max_num_seqs"),
    ("sum_kv_token_steps", "kv_tokens"),
    ("sum_prompt_tps", "kv_tokens"),
    ("sum_output_tps", "max_num_batched_tokens"),
    ("sum_prompt_tps", "max_num_batched_tokens"),
)
_ALONE: tuple[Mapping[str, float], ...] = (*_GROWS_WITH[:1], *_GROWS_WITH[2:], {"max_loras": -1.0})
_COMPETING = ("sum_rate_rps", "sum_rate_sq", "sum_rate_cv_sq", "active_10s", "active_40s")
_PER_SLOT: tuple[Mapping[str, float], ...] = (
    {"max_loras": -1.0, "max_lora_rank": 1.0},
    {"max_loras": -0.5},
)
# Ranks of which rows have adapters; a larger one counts as the largest of these.
LARGEST_RANK = 128


def physical_terms() -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the aggregate of each of T terms, int64 [T], and the powers of the settings, float64 [S, T]."""
    of_ranks = [f"num_rank_{rank}" for rank in SUPPORTED_RANKS if rank <= LARGEST_RANK]
    plain = [name for name in AGGREGATE_NAMES if not name.startswith("num_rank_")]
    terms = [*product([*plain, *of_ranks], _ALONE), *product(_COMPETING, _PER_SLOT)]
    terms += [(name, {limit: -1.0, **grows}) for (name, limit), grows in product(_SHARES, _GROWS_WITH)]
    powers = np.zeros((len(SETTING_NAMES), len(terms)))
    for index, (_, of_settings) in enumerate(terms):
        for name, power in of_settings.items():
            powers[SETTING_NAMES.index(name), index] = power
    return np.array([AGGREGATE_NAMES.index(name) for name, _ in terms]), powers
