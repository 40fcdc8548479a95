"""How many adapters of a population one GPU can serve by arithmetic: an estimate from a profile's step times alone.

For any number of adapters and slots the physics of a step (`predictors.physics`) says which share of a second a
saturated replica needs for a second's load, and how long a request stays; the estimate is the most adapters for which
that share is below 1 and those that have a request at a time find a slot. The twin decides: this is what a model of
its optimum starts from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from predictors.adapter_sequence import AdapterSequence
from predictors.features import ACTIVE_WINDOWS_S, AGGREGATE_NAMES, build_features, engine_row
from predictors.physics import PhysicsLayer, physics_layer
from twin.engine import EngineConfig
from twin.memory import check_memory
from twin.replica import Replica

# What holds back another adapter: the sequences of a batch, the KV cache, the tokens of a step, or the slots.
Limit = Literal["sequences", "kv cache", "tokens", "slots"]
LIMITS: tuple[Limit, ...] = get_args(Limit)

# Numbers of slots whose estimates differ by less than this share are equally good: the fewest win.
_TIE = 0.01
# Numbers of adapters at which the estimate is looked for.
_NUM_POINTS = 160
_NAMES_OF_LIMITS = ("sequences", "kv", "tokens")
_COLUMN = {name: index for index, name in enumerate(AGGREGATE_NAMES)}
# A step is never so short that a batch of one request keeps up with a load that takes this share of it.
_LEAST_FREE_SHARE = 0.05
# Keeps quotients finite for adapters without traffic.
_TINY = 1e-9


@dataclass(frozen=True)
class Capacity:
    """What arithmetic says about a GPU and a population.

    Attributes
    ----------
    num_adapters, max_loras
        The estimated best configuration; at least one adapter.
    limit
        What holds back another adapter there.
    demands
        For what each limit names, over what there is of it: 1 is all of it.
    kv_tokens
        With these slots.
    by_slots
        Adapters for each number of slots that starts.
    """

    num_adapters: int
    max_loras: int
    limit: Limit
    demands: dict[Limit, float]
    kv_tokens: int
    by_slots: dict[int, int]


def slots_that_start(replica: Replica, options: Sequence[int]) -> dict[int, int]:
    """Return the KV tokens of each number of slots with which the replica starts."""
    verdicts = {
        slots: check_memory(replica.model, replica.gpu, with_slots(replica, slots, slots), replica.profile)
        for slots in options
    }
    return {slots: verdict.kv_tokens for slots, verdict in verdicts.items() if verdict.starts}


def with_slots(replica: Replica, max_loras: int, num_adapters: int) -> EngineConfig:
    """Return the replica's settings with so many slots, and with room for all adapters in CPU memory."""
    return replica.engine.model_copy(update={"max_loras": max_loras, "max_cpu_loras": max(max_loras, num_adapters)})


def estimate_capacity(
    sequence: AdapterSequence, replica: Replica, *, kv_tokens: dict[int, int], most_adapters: int
) -> Capacity:
    """Estimate the best configuration.

    Parameters
    ----------
    sequence
        The population.
    replica
        Its slots and CPU cache do not matter.
    kv_tokens
        By number of slots (`slots_that_start`), at least one.
    most_adapters
        No more are considered.
    """
    counts = np.unique(np.round(np.geomspace(1, most_adapters, _NUM_POINTS)).astype(np.int64))
    aggregates = sequence.aggregates(counts)
    layer = physics_layer(replica.profile)
    tables = {
        slots: _demand(aggregates, layer, engine_row(with_slots(replica, slots, most_adapters), kv_tokens=tokens))
        for slots, tokens in sorted(kv_tokens.items())
    }
    last = {slots: _last_served(table) for slots, table in tables.items()}
    by_slots = {slots: int(counts[index]) for slots, index in last.items()}
    enough = (1.0 - _TIE) * max(by_slots.values())
    slots = min(slots for slots, count in by_slots.items() if count >= enough)
    index = last[slots]
    following = tables[slots][:, min(index + 1, len(counts) - 1)]
    return Capacity(
        num_adapters=int(counts[index]),
        # More slots than adapters are spare, unless they are given.
        max_loras=slots if len(kv_tokens) == 1 else min(slots, int(counts[index])),
        limit=LIMITS[int(np.argmax(following))],
        demands=dict(zip(LIMITS, tables[slots][:, index].tolist(), strict=True)),
        kv_tokens=kv_tokens[slots],
        by_slots=by_slots,
    )


def gpu_demands(aggregates: NDArray[np.float64], replica: Replica, *, kv_tokens: int) -> dict[Limit, float]:
    """Return what a set of adapters, given its aggregates [K], asks of each limit of a replica: 1 is all there is."""
    layer = physics_layer(replica.profile)
    demand = _demand(aggregates[np.newaxis], layer, engine_row(replica.engine, kv_tokens=kv_tokens))
    return dict(zip(LIMITS, demand[:, 0].tolist(), strict=True))


def _last_served(table: NDArray[np.float64]) -> int:
    """Return the last column, at least the first, up to which all demands are met."""
    is_beyond = np.flatnonzero((table > 1.0).any(axis=0))
    return max(int(is_beyond[0]) if len(is_beyond) else table.shape[1], 1) - 1


def _demand(aggregates: NDArray[np.float64], layer: PhysicsLayer, engine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the demand for what each of `LIMITS` names, over what there is of it, float64 [len(LIMITS), N].

    Notes
    -----
    The utilisations are those of `predictors.physics`, for the smaller of the batches that hold as many adapters as
    there are slots, or as are active. A request stays for its output tokens times the step time: the fixed cost of a
    step over the share of a second that the load leaves free.
    """
    rows = build_features(aggregates, engine)
    columns = dict(zip(layer.names, np.exp(layer.columns(rows).astype(np.float64)).T, strict=True))
    utilisations = [
        np.minimum(columns[f"saturated_by_{name}_slots"], columns[f"saturated_by_{name}_active"])
        for name in _NAMES_OF_LIMITS
    ]
    step_s = np.minimum(columns["step_s_slots"], columns["step_s_active"])
    step_s = step_s / np.maximum(1.0 - columns["load_utilisation"], _LEAST_FREE_SHARE)
    rates = np.maximum(aggregates[:, _COLUMN["sum_rate_rps"]], _TINY)
    stay_s = aggregates[:, _COLUMN["sum_output_tps"]] / rates * step_s
    return np.vstack([*utilisations, _active(aggregates, rates, stay_s) / columns["max_loras"]])


def _active(
    aggregates: NDArray[np.float64], rates_rps: NDArray[np.float64], window_s: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return how many adapters have a request within a window, float64 [N].

    The inverse of that number is nearly linear in the inverse of the window: drawn through the two windows of the
    features, and through the total rate for short ones.
    """
    short_s, long_s = ACTIVE_WINDOWS_S
    short, long = (np.maximum(aggregates[:, _COLUMN[f"active_{window:g}s"]], _TINY) for window in ACTIVE_WINDOWS_S)
    inverse = 1.0 / np.maximum(window_s, _TINY)
    at_once = np.maximum(inverse - 1.0 / short_s, 0.0) / rates_rps + 1.0 / short
    weight = np.clip((inverse - 1.0 / long_s) / (1.0 / short_s - 1.0 / long_s), 0.0, 1.0)
    return np.asarray(1.0 / np.where(window_s < short_s, at_once, weight / short + (1.0 - weight) / long))
