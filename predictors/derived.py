"""Physics inside the model: what the features imply under a profile's step times, as nodes of an ONNX graph.

Trees split on one column at a time, so the columns they get decide how much data they need. These are the quantities
that decide whether a replica keeps up: the steps per second it needs when its batch is as large as it can be, the
share of a second that they take, and how many adapters compete for the slots. Each rises when all rates are scaled up,
which the monotone constraints of the fit rely on; an added adapter with short outputs may lower the slots' utilisation.

Only additions, subtractions, multiplications, divisions, minima and maxima are used: they round the same way in
every batch size, so a batch equals its rows one by one to the bit. The training data passes through the same graph,
so there is one definition.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from predictors.features import FEATURE_SCHEMA
from predictors.onnx_graph import GraphBuilder, make_model
from twin.profile import PerformanceProfile
from twin.step_time import (
    EXPAND_TILE_TOKENS,
    LARGE_BATCH_TOKENS,
    LARGE_SPLIT_SHARE,
    SHRINK_TILE_RANKS,
    SHRINK_TILE_TOKENS,
)

# Keeps quotients finite where a denominator is 0, as for adapters without traffic.
_TINY = 1e-9

# Derived columns in order, with the sign of their effect on the load: 1 where more is never better for a replica, 0
# where that depends. A planner that scales rates up raises the columns with 1 and leaves the others as they are.
DERIVED_COLUMNS: tuple[tuple[str, int], ...] = (
    ("required_steps_by_sequences", 1),
    ("required_steps_by_kv", 1),
    ("required_steps_by_tokens", 1),
    ("active_10s_per_slot", 1),
    ("active_40s_per_slot", 1),
    ("adapters_per_slot", 0),
    ("prompt_tokens_per_request", 0),
    ("output_tokens_per_request", 0),
    ("prompt_spread", 0),
    ("held_tokens_per_request", 0),
    ("required_steps_per_s", 1),
    ("saturated_utilisation", 1),
    ("token_utilisation", 1),
    ("step_s", 1),
    ("sequence_utilisation", 1),
    ("kv_utilisation", 1),
    ("budget_utilisation", 1),
    ("slot_utilisation", 1),
    ("rate_concentration", 0),
    ("gap_variation", 0),
    ("adapters_per_cpu_lora", 0),
    ("sum_rate_rps", 1),
    ("sum_output_tps", 1),
    ("num_adapters", 0),
    ("max_loras", 0),
    ("max_lora_rank", 0),
    ("max_num_seqs", 0),
    ("max_num_batched_tokens", 0),
    ("kv_tokens", 0),
    ("reserves_full_sequence", 0),
)
DERIVED_NAMES: tuple[str, ...] = tuple(name for name, _ in DERIVED_COLUMNS)
# The last of them are features as they are.
_UNCHANGED_NAMES = DERIVED_NAMES[DERIVED_NAMES.index("sum_rate_rps") :]

# The first ten derived columns, and three more values, are quotients of features; `tokens` is prompt + output tokens/s.
_QUOTIENTS: tuple[tuple[str, str], ...] = (
    ("sum_output_tps", "max_num_seqs"),
    ("sum_kv_token_steps", "kv_tokens"),
    ("tokens", "max_num_batched_tokens"),
    ("active_10s", "max_loras"),
    ("active_40s", "max_loras"),
    ("num_adapters", "max_loras"),
    ("sum_prompt_tps", "sum_rate_rps"),
    ("sum_output_tps", "sum_rate_rps"),
    ("sum_prompt_sq_tps", "sum_prompt_tps"),
    ("sum_kv_token_steps", "sum_output_tps"),
    ("sum_rate_sq", "sum_rate_rps"),
    ("sum_rate_cv_sq", "sum_rate_rps"),
    ("num_adapters", "max_cpu_loras"),
)


def add_derived_columns(builder: GraphBuilder, profile: PerformanceProfile, *, features: str, output: str) -> str:
    """Add the nodes that turn `features` [N, F] into `output`, float32 [N, len(DERIVED_NAMES)].

    Returns
    -------
    The name of the offered load in tokens/s, float32 [1, N].

    Notes
    -----
    With O output tokens/s, P prompt tokens/s and K KV token steps/s, a replica that runs B requests per step makes B
    tokens of output in it; on average they hold B*K/O KV tokens and bring B*P/O prompt tokens. B is limited by
    `max_num_seqs`, by the KV cache and by the token budget, so O/B >= max(O/max_num_seqs, K/kv_tokens,
    (O+P)/max_num_batched_tokens): the required steps per second. Their cost (twin/step_time.py, with half a tile of
    rounding) plus what is proportional to tokens, requests and context is the saturated utilisation; above 1 the
    replica falls behind. Below it, the step time is the fixed cost over what the proportional one leaves free.
    """
    column = {name: f"feature_{name}" for name in FEATURE_SCHEMA.names}
    builder.split(builder.transpose(features), list(column.values()))
    column["tokens"] = builder.add(column["sum_prompt_tps"], column["sum_output_tps"])
    above = builder.concat([column[above] for above, _ in _QUOTIENTS])
    below = builder.concat([column[below] for _, below in _QUOTIENTS])
    quotients = builder.divide(above, builder.largest(below, _TINY))
    required_by = builder.rows(quotients, 0, 3)
    required = builder.node("ReduceMax", required_by, axes=[0])
    cost = _costs(builder, profile, column)

    busy = builder.smallest(builder.concat([column["active_10s"], column["active_40s"]]), column["max_loras"])
    fixed_s = builder.add(builder.multiply(busy, cost.adapter_s), cost.fixed_s)
    lightly_s, fully_s = builder.split(fixed_s, ["lightly_s", "fully_s"])
    period_s = builder.divide(1.0, builder.largest(required, _TINY))
    saturated_step_s = builder.add(fully_s, _batch_costs(builder, profile, column, period_s))
    saturated = builder.add(cost.utilisation, builder.multiply(saturated_step_s, required))

    free_share = builder.largest(builder.node("Sub", 1.0, cost.utilisation), 0.05)
    short_step_s = builder.divide(lightly_s, free_share)
    longer_s = builder.add(lightly_s, _batch_costs(builder, profile, column, short_step_s))
    step_s = builder.smallest(builder.divide(longer_s, free_share), cost.longest_step_s)

    residence_s = builder.multiply(builder.rows(quotients, 7, 8), step_s)
    active = _active_adapters(builder, column, residence_s)
    ordered = [
        builder.rows(quotients, 0, 10),
        required,
        saturated,
        cost.utilisation,
        step_s,
        builder.multiply(required_by, step_s),
        builder.divide(active, column["max_loras"]),
        builder.divide(builder.rows(quotients, 10, 11), builder.largest(column["sum_rate_rps"], _TINY)),
        builder.rows(quotients, 11, 13),
        *(column[name] for name in _UNCHANGED_NAMES),
    ]
    builder.nodes.append(helper.make_node("Transpose", [builder.concat(ordered)], [output], perm=[1, 0]))
    return column["tokens"]


@dataclass(frozen=True)
class _Costs:
    """Names of what a step costs: fixed, per adapter, in proportion to the load; and of the longest step; seconds."""

    fixed_s: str
    adapter_s: str
    utilisation: str
    longest_step_s: str


def _costs(builder: GraphBuilder, profile: PerformanceProfile, column: dict[str, str]) -> _Costs:
    """Add what a step costs whatever its batch, and what the load costs whatever its steps."""
    c = profile.step_time
    # (whatever the rank of the slots, per tile of ranks), in milliseconds; batches of 128 tokens or more.
    by_rank = np.array(
        [
            (c.expand_tile_ms / EXPAND_TILE_TOKENS, LARGE_SPLIT_SHARE * c.shrink_tile_ms / SHRINK_TILE_TOKENS),
            (c.token_ms + c.lora_token_ms, 0.0),
            (c.request_ms + c.changed_request_ms, 0.0),
            (c.adapter_ms, LARGE_SPLIT_SHARE * c.adapter_shrink_ms),
        ]
    )
    # Ranks below a tile take a whole one; the larger ones that vLLM has are multiples of it.
    rank = builder.largest(column["max_lora_rank"], float(SHRINK_TILE_RANKS))
    scaled = builder.multiply(rank, builder.vector(by_rank[:, 1] / SHRINK_TILE_RANKS * 1e-3))
    costs = builder.add(scaled, builder.vector(by_rank[:, 0] * 1e-3))
    tile_s, flat_token_s, request_s, kernel_adapter_s = builder.split(
        costs, ["tile_s", "flat_token_s", "request_s", "kernel_adapter_s"]
    )
    cached = builder.smallest(column["num_adapters"], column["max_cpu_loras"])
    listed_s = builder.multiply(cached, c.cached_adapter_ms * 1e-3)
    adapter_s = builder.add(kernel_adapter_s, listed_s)
    grid = builder.add(column["max_loras"], 1.0)
    grid_token_s = builder.multiply(tile_s, grid)
    searched = builder.smallest(column["max_loras"], column["num_adapters"])
    lookup_s = builder.multiply(searched, c.slot_lookup_ms * 1e-3)
    token_s = builder.add(grid_token_s, flat_token_s, lookup_s)
    utilisation = builder.add(
        builder.multiply(column["tokens"], token_s),
        builder.multiply(column["sum_output_tps"], request_s),
        builder.multiply(column["sum_kv_token_steps"], (c.context_token_ms + c.mixed_context_token_ms) * 1e-3),
    )
    fixed_s = builder.add(
        builder.multiply(grid_token_s, 0.5 * EXPAND_TILE_TOKENS),
        (c.base_ms + c.lora_base_ms + c.lora_active_ms) * 1e-3,
    )
    full_budget_s = builder.multiply(column["max_num_batched_tokens"], token_s)
    longest_s = builder.add(full_budget_s, builder.multiply(column["max_loras"], adapter_s), 2.0 * c.base_ms * 1e-3)
    return _Costs(fixed_s, adapter_s, utilisation, longest_s)


def _batch_costs(builder: GraphBuilder, profile: PerformanceProfile, column: dict[str, str], step_s: str) -> str:
    """Return the seconds that a step of `step_s` takes longer for being large, and for adapters x requests."""
    c = profile.step_time
    step_tokens = builder.multiply(column["tokens"], step_s)
    excess = builder.multiply(builder.add(step_tokens, -0.5 * LARGE_BATCH_TOKENS), 1.0 / LARGE_BATCH_TOKENS)
    is_large = builder.smallest(builder.largest(excess, 0.0), 1.0)
    beyond = builder.largest(builder.add(step_tokens, -float(LARGE_BATCH_TOKENS)), 0.0)
    requests = builder.smallest(builder.multiply(column["sum_output_tps"], step_s), column["max_num_seqs"])
    adapters = builder.smallest(column["active_40s"], column["max_loras"])
    return builder.add(
        builder.multiply(is_large, c.large_batch_ms * 1e-3),
        builder.multiply(beyond, c.large_batch_token_ms * 1e-3),
        builder.multiply(builder.multiply(requests, adapters), c.adapter_request_ms * 1e-3),
    )


def _active_adapters(builder: GraphBuilder, column: dict[str, str], residence_s: str) -> str:
    """Return how many adapters have a request within the residence time.

    The inverse of that number is close to linear in the inverse of the time. It is interpolated between the known
    points: a slope of the total rate at 0 s, and the features' windows of 10 s and 40 s. Each weight is positive, so
    more load means more adapters.
    """
    inverse_s = builder.divide(1.0, builder.largest(residence_s, _TINY))
    early = builder.largest(builder.add(inverse_s, -0.1), 0.0)
    late = builder.smallest(
        builder.largest(builder.multiply(builder.node("Sub", 0.1, inverse_s), 1.0 / 0.075), 0.0), 1.0
    )
    terms = (
        builder.divide(early, builder.largest(column["sum_rate_rps"], _TINY)),
        builder.divide(builder.node("Sub", 1.0, late), builder.largest(column["active_10s"], _TINY)),
        builder.divide(late, builder.largest(column["active_40s"], _TINY)),
    )
    return builder.divide(1.0, builder.add(*terms))


def derived_model(profile: PerformanceProfile) -> onnx.ModelProto:
    """Return the derived columns alone, from `features` [N, F] to `derived` [N, D]: what the trees are fitted on."""
    builder = GraphBuilder()
    add_derived_columns(builder, profile, features="features", output="derived")
    graph = helper.make_graph(
        builder.nodes,
        "derived",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", len(FEATURE_SCHEMA.names)])],
        [helper.make_tensor_value_info("derived", TensorProto.FLOAT, ["N", len(DERIVED_NAMES)])],
        builder.initializers,
    )
    return make_model(graph)
