"""What a surrogate sees: additive statistics of an adapter set, and the engine settings it would run under.

A set's aggregate is the sum of its adapters' contributions, so adding, removing or swapping an adapter is one vector
addition. Means and standard deviations follow from the sums and are left to the model. A change of names, order or
meaning is a new version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twin.engine import SUPPORTED_RANKS, EngineConfig
from twin.lengths import LengthDistribution
from twin.workload import Adapter

# Windows in which an adapter counts as active when at least one of its requests arrives (Poisson): about the time
# that a request stays in a lightly and in a heavily loaded replica; the sums tell how many adapters compete for the
# slots.
ACTIVE_WINDOWS_S = (10.0, 40.0)

_AGGREGATES: tuple[tuple[str, str], ...] = (
    ("num_adapters", "adapters"),
    ("sum_rate_rps", "requests/s"),
    ("sum_rate_sq", "requests^2/s^2"),
    ("sum_prompt_tps", "tokens/s"),
    ("sum_output_tps", "tokens/s"),
    ("sum_kv_token_steps", "token steps/s"),
    ("sum_prompt_sq_tps", "tokens^2/s"),
    ("sum_rate_cv_sq", "requests/s"),
    ("active_10s", "adapters"),
    ("active_40s", "adapters"),
    *((f"num_rank_{rank}", "adapters") for rank in SUPPORTED_RANKS),
)
_ENGINE: tuple[tuple[str, str], ...] = (
    ("max_loras", "slots"),
    ("max_lora_rank", "rank"),
    ("max_num_seqs", "requests"),
    ("max_num_batched_tokens", "tokens"),
    ("kv_tokens", "tokens"),
    ("max_cpu_loras", "adapters"),
    ("reserves_full_sequence", "0 or 1"),
)

AGGREGATE_NAMES: tuple[str, ...] = tuple(name for name, _ in _AGGREGATES)
ENGINE_NAMES: tuple[str, ...] = tuple(name for name, _ in _ENGINE)


@dataclass(frozen=True)
class FeatureSchema:
    """Names, units and order of a model's input columns; two schemas are the same only if all of it agrees."""

    version: int
    names: tuple[str, ...]
    units: tuple[str, ...]

    def index(self, name: str) -> int:
        """Return the column of `name`."""
        return self.names.index(name)

    def as_json(self) -> dict[str, Any]:
        """Return the schema as it stands in a model's metadata."""
        return {"version": self.version, "names": list(self.names), "units": list(self.units)}


FEATURE_SCHEMA = FeatureSchema(
    version=2, names=AGGREGATE_NAMES + ENGINE_NAMES, units=tuple(unit for _, unit in _AGGREGATES + _ENGINE)
)

# Aggregates that grow in proportion to the rates.
RATE_LINEAR_NAMES: tuple[str, ...] = (
    "sum_rate_rps",
    "sum_prompt_tps",
    "sum_output_tps",
    "sum_kv_token_steps",
    "sum_prompt_sq_tps",
    "sum_rate_cv_sq",
)
_RATE_LINEAR_COLUMNS = [FEATURE_SCHEMA.index(name) for name in RATE_LINEAR_NAMES]
_RATE_SQUARE_COLUMN = FEATURE_SCHEMA.index("sum_rate_sq")
_ACTIVE_COLUMNS = [FEATURE_SCHEMA.index("active_10s"), FEATURE_SCHEMA.index("active_40s")]
_NUM_ADAPTERS_COLUMN = FEATURE_SCHEMA.index("num_adapters")
_OFFERED_COLUMNS = [FEATURE_SCHEMA.index("sum_prompt_tps"), FEATURE_SCHEMA.index("sum_output_tps")]


def adapter_aggregates(adapters: Sequence[Adapter]) -> NDArray[np.float64]:
    """Return each adapter's contribution to the aggregate of the set it is in.

    Parameters
    ----------
    adapters
        A adapters, in the order of the rows returned.

    Returns
    -------
    float64 [A, len(AGGREGATE_NAMES)], in the units of `FEATURE_SCHEMA`; the aggregate of a set is the sum of its
    rows.

    Notes
    -----
    A request of p prompt and o output tokens holds p, p + 1, ..., p + o KV tokens over its o decode steps, about
    p*o + o^2/2 token steps; times the step time and the rate this is the mean KV use. Prompt and output lengths are
    drawn independently. `sum_rate_cv_sq` weighs each adapter's squared coefficient of variation of the gaps between its
    requests with its rate: the burstiness, which equals the sum of the rates where all arrivals are Poisson.
    """
    moments: dict[LengthDistribution, tuple[float, float]] = {}

    def moments_of(lengths: LengthDistribution) -> tuple[float, float]:
        if lengths not in moments:
            moments[lengths] = (lengths.effective_mean, lengths.effective_second_moment)
        return moments[lengths]

    rows = np.zeros((len(adapters), len(AGGREGATE_NAMES)), dtype=np.float64)
    rank_column = {rank: AGGREGATE_NAMES.index(f"num_rank_{rank}") for rank in SUPPORTED_RANKS}
    for row, adapter in zip(rows, adapters, strict=True):
        rate = adapter.rate_rps
        prompt, prompt_sq = moments_of(adapter.prompt_tokens)
        output, output_sq = moments_of(adapter.output_tokens)
        row[:10] = (
            1.0,
            rate,
            rate * rate,
            rate * prompt,
            rate * output,
            rate * (prompt * output + 0.5 * output_sq),
            rate * prompt_sq,
            rate * adapter.gap_cv**2,
            -np.expm1(-ACTIVE_WINDOWS_S[0] * rate),
            -np.expm1(-ACTIVE_WINDOWS_S[1] * rate),
        )
        row[rank_column[adapter.rank]] = 1.0
    return rows


def engine_row(engine: EngineConfig, *, kv_tokens: int) -> NDArray[np.float64]:
    """Return the engine columns, float64 [len(ENGINE_NAMES)]; `kv_tokens` is what `twin.memory.check_memory` says.

    `reserves_full_sequence` is vLLM's `scheduler_reserve_full_isl`, which tells its rule versions apart.
    """
    settings = (
        engine.num_slots,
        engine.max_lora_rank,
        engine.max_num_seqs,
        engine.max_num_batched_tokens,
        kv_tokens,
        engine.cpu_capacity if engine.enable_lora else 0,
        engine.scheduler_reserve_full_isl,
    )
    return np.array(settings, dtype=np.float64)


def build_features(aggregates: NDArray[np.float64], engine_rows: NDArray[np.float64]) -> NDArray[np.float32]:
    """Join aggregates [N, K] and engine columns [N, E] (or [E], for all rows) into features, float32 [N, K + E]."""
    rows = np.atleast_2d(aggregates)
    engines = np.broadcast_to(engine_rows, (len(rows), len(ENGINE_NAMES)))
    assert rows.shape[1] == len(AGGREGATE_NAMES), rows.shape
    return np.concatenate([rows, engines], axis=1).astype(np.float32)


def planned_features(
    aggregates: NDArray[np.float64],
    engine: EngineConfig,
    *,
    max_loras: NDArray[np.int64],
    max_lora_rank: NDArray[np.int64],
    kv_tokens: NDArray[np.int64],
    max_num_seqs: NDArray[np.int64] | None = None,
    most_cpu_loras: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """Return the features of sets on GPUs as plans have them: all adapters of a GPU stay in CPU memory, if they may.

    Parameters
    ----------
    aggregates
        Of N sets, float64 [N, K].
    engine
        Template of the settings; `EngineConfig.with_slots` makes the engine of a planned GPU from it.
    max_loras, max_lora_rank, kv_tokens, max_num_seqs
        Of each GPU, int64 [N]; ``None``: all have the template's.
    most_cpu_loras
        Adapters that each GPU can keep in CPU memory at most, int64 [N]; ``None``: all.

    Returns
    -------
    float32 [N, K + E].
    """
    num_adapters = aggregates[:, AGGREGATE_NAMES.index("num_adapters")].astype(np.int64)
    cpu_loras = np.maximum(num_adapters, max_loras)
    if most_cpu_loras is not None:
        cpu_loras = np.minimum(cpu_loras, most_cpu_loras)
    columns: dict[str, NDArray[np.int64] | int] = {
        "max_loras": max_loras,
        "max_lora_rank": max_lora_rank,
        "max_num_seqs": engine.max_num_seqs if max_num_seqs is None else max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "kv_tokens": kv_tokens,
        "max_cpu_loras": cpu_loras,
        "reserves_full_sequence": int(engine.scheduler_reserve_full_isl),
    }
    features = np.empty((len(aggregates), len(AGGREGATE_NAMES) + len(ENGINE_NAMES)), dtype=np.float32)
    features[:, : len(AGGREGATE_NAMES)] = aggregates
    for column, name in enumerate(ENGINE_NAMES, start=len(AGGREGATE_NAMES)):
        features[:, column] = columns[name]
    return features


def inflate(features: NDArray[np.float32], factor: float | NDArray[np.float64]) -> NDArray[np.float32]:
    """Return `features` [N, F] as if every adapter's rate were `factor` (>= 0; or [N], by row) times as large.

    Rate-linear sums grow by the factor and the sum of squared rates by its square. The active adapters grow by the
    factor at most, up to all of them: exact for rare requests, otherwise an upper bound for factors above 1 and a lower
    one below.
    """
    assert np.min(factor) >= 0, factor
    exact = np.asarray(factor, dtype=np.float64).reshape(-1, 1)
    factors = exact.astype(np.float32)
    inflated = np.array(features, dtype=np.float32, copy=True)
    inflated[:, _RATE_LINEAR_COLUMNS] *= factors
    inflated[:, [_RATE_SQUARE_COLUMN]] *= (exact * exact).astype(np.float32)
    cap = inflated[:, [_NUM_ADAPTERS_COLUMN]]
    inflated[:, _ACTIVE_COLUMNS] = np.minimum(inflated[:, _ACTIVE_COLUMNS] * factors, cap)
    return inflated


def offered_tps(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the offered load of each row of `features` [N, F] in prompt + output tokens/s, float32 [N]."""
    offered: NDArray[np.float32] = features[:, _OFFERED_COLUMNS].sum(axis=1, dtype=np.float32)
    return offered


def describe_row(row: NDArray[np.float32]) -> str:
    """Return in words which set, under which slots, a row of features [F] is about."""
    value = dict(zip(FEATURE_SCHEMA.names, row.tolist(), strict=True))
    return (
        f"{value['num_adapters']:g} adapters with {value['sum_rate_rps']:.4g} requests/s "
        f"({value['sum_prompt_tps'] + value['sum_output_tps']:.4g} tokens/s) on {value['max_loras']:g} slots of rank "
        f"{value['max_lora_rank']:g}"
    )
