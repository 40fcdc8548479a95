"""Sets of adapters to ask a surrogate about: light to hopeless, and where it has a domain, inside and outside of it."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from predictors.domain import Domain
from predictors.features import (
    AGGREGATE_NAMES,
    FEATURE_SCHEMA,
    adapter_aggregates,
    build_features,
    engine_row,
    inflate,
)
from twin.engine import SUPPORTED_RANKS, EngineConfig, LoraRank
from twin.lengths import LengthDistribution
from twin.workload import Adapter

_NUM_AGGREGATES = len(AGGREGATE_NAMES)
_NUM_ADAPTERS = FEATURE_SCHEMA.index("num_adapters")
# Rows that are far beyond anything a surrogate was fitted to have this many times the load of the others.
_HOPELESS_FACTOR = 30.0
_PROMPT_TOKENS = (100.0, 1200.0)
_OUTPUT_TOKENS = (50.0, 300.0)
_MOST_TOKENS = 1e6
# Bounds of a domain may be infinite; features are not.
_MOST = 1e12


def probe_features(
    num_rows: int = 24,
    *,
    seed: int = 0,
    prompt_tokens: tuple[float, float] = _PROMPT_TOKENS,
    output_tokens: tuple[float, float] = _OUTPUT_TOKENS,
    rank: LoraRank = 8,
) -> NDArray[np.float32]:
    """Return features of random adapter sets, light to overloaded, float32 [num_rows, F]; the last one is idle.

    Parameters
    ----------
    prompt_tokens, output_tokens
        Range of the mean lengths.
    rank
        Of all adapters and of the slots.
    """
    generator = np.random.default_rng(seed)
    rows = np.empty((num_rows, len(FEATURE_SCHEMA.names)), dtype=np.float32)
    for index in range(num_rows):
        count = int(generator.integers(1, 200))
        total_rps = float(np.exp(generator.uniform(np.log(0.1), np.log(60.0))))
        shares = generator.dirichlet(np.ones(count))
        prompt = LengthDistribution(mean=float(generator.uniform(*prompt_tokens)))
        output = LengthDistribution(mean=float(generator.uniform(*output_tokens)))
        adapters = [
            Adapter(name=str(i), rank=rank, rate_rps=total_rps * share, prompt_tokens=prompt, output_tokens=output)
            for i, share in enumerate(shares)
        ]
        aggregate = adapter_aggregates(adapters).sum(axis=0)
        slots = min(count, int(generator.choice([8, 16, 32, 64, 96])))
        engine = EngineConfig(max_loras=slots, max_lora_rank=rank, max_cpu_loras=count)
        rows[index] = build_features(aggregate, engine_row(engine, kv_tokens=250_000))[0]
    rows[-1:, 1 : AGGREGATE_NAMES.index("num_rank_8")] = 0.0
    return rows


def rows_inside(domain: Domain, num_rows: int, *, seed: int = 0) -> NDArray[np.float32]:
    """Return features of sets such as planners ask about that lie inside a domain, float32 [up to num_rows, F].

    Lengths and rank are taken from where the domain has them, settings are moved into their bounds, and sets that are
    too large are made of fewer adapters of the same kind. There may be no such set: then there are no rows.
    """
    ratios = {rule.name: (rule.min, rule.max) for rule in domain.ratios}
    rows = probe_features(
        num_rows,
        seed=seed,
        prompt_tokens=_common_range(_PROMPT_TOKENS, ratios.get("prompt_tokens_per_request")),
        output_tokens=_common_range(_OUTPUT_TOKENS, ratios.get("output_tokens_per_request")),
        rank=_rank_of(domain),
    )
    names = FEATURE_SCHEMA.names
    lower, upper = (np.array([domain.features[name][side] for name in names], dtype=np.float32) for side in (0, 1))
    engine = slice(_NUM_AGGREGATES, None)
    rows[:, engine] = np.clip(rows[:, engine], lower[engine], upper[engine])
    for row in rows:
        _shrink(row, upper[:_NUM_AGGREGATES])
    return rows[~domain.outside(rows, names)]


def rows_in_box(domain: Domain, num_rows: int, *, seed: int = 0) -> NDArray[np.float32]:
    """Return features drawn from the box of a domain, float32 [up to num_rows, F]: of no set that anybody has."""
    names = FEATURE_SCHEMA.names
    bounds = np.clip([domain.features[name] for name in names], -_MOST, _MOST)
    rows = np.random.default_rng(seed).uniform(bounds[:, 0], bounds[:, 1], size=(num_rows, len(names)))
    features = np.asarray(rows, dtype=np.float32)
    return features[~domain.outside(features, names)]


def rows_outside(domain: Domain, num_rows: int, *, seed: int = 0) -> NDArray[np.float32]:
    """Return features outside of a domain, float32 [up to num_rows, F]: hopeless loads, other sets and settings."""
    names = FEATURE_SCHEMA.names
    sets = probe_features(num_rows, seed=seed)
    corner = np.array([[2.0 * domain.features[name][1] + 1.0 for name in names]], dtype=np.float32)
    candidates = np.concatenate([corner, inflate(sets, _HOPELESS_FACTOR), sets])
    candidates = candidates[np.isfinite(candidates).all(axis=1)]
    outside: NDArray[np.float32] = candidates[domain.outside(candidates, names)]
    return outside[:num_rows]


def _shrink(row: NDArray[np.float32], upper: NDArray[np.float32]) -> None:
    """Keep as many adapters of a set, in place, as its additive aggregates may have; at least one."""
    aggregates = row[:_NUM_AGGREGATES]
    # Of a feature that the domain has only as zero, one adapter is too many, too.
    share = np.divide(aggregates, upper, out=np.full_like(aggregates, np.inf), where=upper > 0.0)
    excess = float(np.max(share, where=aggregates > 0.0, initial=1.0))
    if excess > 1.0:
        count = float(row[_NUM_ADAPTERS])
        aggregates *= np.float32(max(1.0, np.floor(count / excess)) / count)


def _rank_of(domain: Domain) -> LoraRank:
    """Return the supported rank of which the domain has most adapters, under slots that the domain has."""
    least, most = domain.features["max_lora_rank"]
    allowed = [rank for rank in SUPPORTED_RANKS if least <= rank <= most] or [SUPPORTED_RANKS[0]]
    return cast("LoraRank", max(allowed, key=lambda rank: (domain.features[f"num_rank_{rank}"][1], -rank)))


def _common_range(usual: tuple[float, float], fitted: tuple[float, float] | None) -> tuple[float, float]:
    """Return the part of the usual range that was fitted; all that was fitted where they have nothing in common."""
    if fitted is None:
        return usual
    least, most = (min(max(bound, 1.0), _MOST_TOKENS) for bound in fitted)
    lower, upper = max(usual[0], least), min(usual[1], most)
    return (lower, upper) if lower <= upper else (least, most)
