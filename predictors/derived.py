"""Physics inside the model: what the features imply under a profile's step times, as nodes of an ONNX graph.

Trees split on one column at a time, so the columns they get decide how much data they need. These are the quantities
that decide whether a replica keeps up: the steps per second it needs when its batch is as large as it can be, the
share of a second that they take, and how many adapters compete for the slots. Each rises with the load, which the
monotone constraints of the fit rely on.

Only additions, subtractions, multiplications, divisions, minima and maxima are used: they round the same way in
every batch size, so a batch equals its rows one by one to the bit. The training data passes through the same graph,
so there is one definition.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from predictors.features import FEATURE_SCHEMA
from twin.profile import PerformanceProfile
from twin.step_time import LARGE_BATCH_TOKENS, RANK_UNIT, TILE_TOKENS

# Derived columns in order, with the sign of their effect on the load: 1 where more is never better for a replica, 0
# where that depends. A planner that scales rates up raises the columns with 1 and leaves the others as they are.
DERIVED_COLUMNS: tuple[tuple[str, int], ...] = (
    ("saturated_utilisation", 1),
    ("token_utilisation", 1),
    ("required_steps_per_s", 1),
    ("step_s", 1),
    ("batch_utilisation", 1),
    ("kv_utilisation", 1),
    ("slot_utilisation", 1),
    ("active_10s_per_slot", 1),
    ("active_40s_per_slot", 1),
    ("load_utilisation", 1),
    ("sum_rate_rps", 1),
    ("sum_output_tps", 1),
    ("num_adapters", 0),
    ("adapters_per_slot", 0),
    ("slots", 0),
    ("max_lora_rank", 0),
    ("max_num_seqs", 0),
    ("max_num_batched_tokens", 0),
    ("kv_tokens", 0),
    ("prompt_tokens_per_request", 0),
    ("output_tokens_per_request", 0),
    ("prompt_spread", 0),
    ("held_tokens_per_request", 0),
    ("rate_concentration", 0),
)
DERIVED_NAMES: tuple[str, ...] = tuple(name for name, _ in DERIVED_COLUMNS)


@dataclass
class GraphBuilder:
    """An ONNX graph under construction; values are names of float32 [N, 1] tensors, or numbers."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    _constants: dict[float, str] = field(default_factory=dict)

    def constant(self, value: float) -> str:
        """Return the name of the scalar constant `value`, adding it once."""
        if value not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._constants[value] = name
            self.initializers.append(numpy_helper.from_array(np.array([value], dtype=np.float32), name))
        return self._constants[value]

    def node(self, operator: str, *inputs: str | float, output: str | None = None) -> str:
        """Add a node with one output and return the output's name."""
        name = output or f"{operator.lower()}_{len(self.nodes)}"
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        self.nodes.append(helper.make_node(operator, names, [name]))
        return name

    def add(self, *terms: str | float) -> str:
        """Return the sum of `terms`, left to right."""
        total = terms[0]
        for term in terms[1:]:
            total = self.node("Add", total, term)
        assert isinstance(total, str)
        return total

    def multiply(self, left: str | float, right: str | float) -> str:
        """Return the product."""
        return self.node("Mul", left, right)

    def divide(self, above: str | float, below: str | float) -> str:
        """Return the quotient."""
        return self.node("Div", above, below)

    def largest(self, *values: str | float) -> str:
        """Return the elementwise maximum."""
        return self.node("Max", *values)

    def smallest(self, *values: str | float) -> str:
        """Return the elementwise minimum."""
        return self.node("Min", *values)


def add_derived_columns(builder: GraphBuilder, profile: PerformanceProfile, *, features: str, output: str) -> None:
    """Add the nodes that turn `features` [N, F] into `output`, float32 [N, len(DERIVED_NAMES)].

    Notes
    -----
    With O output tokens/s, P prompt tokens/s and K KV token steps/s, a replica that runs B requests per step makes B
    tokens of output in it; on average they hold B*K/O KV tokens and bring B*P/O prompt tokens. B is limited by
    `max_num_seqs`, by the KV cache and by the token budget, so O/B >= max(O/max_num_seqs, K/kv_tokens,
    (O+P)/max_num_batched_tokens): the required steps per second. Their cost (twin/step_time.py, without its rounding
    to tiles) plus what is proportional to tokens, requests and context is the saturated utilisation; above 1 the
    replica falls behind. Below it, the step time is the fixed cost over what the proportional one leaves free.
    """
    column = {name: f"feature_{name}" for name in FEATURE_SCHEMA.names}
    builder.nodes.append(helper.make_node("Split", [features], list(column.values()), axis=1, num_outputs=len(column)))
    prompt, out, held = column["sum_prompt_tps"], column["sum_output_tps"], column["sum_kv_token_steps"]
    slots, count, rate = column["max_loras"], column["num_adapters"], column["sum_rate_rps"]
    tokens = builder.add(prompt, out)
    fixed_s, per_adapter_s, token_utilisation = _costs(builder, profile, column, tokens)

    required = builder.largest(
        builder.divide(out, column["max_num_seqs"]),
        builder.divide(held, builder.largest(column["kv_tokens"], 1.0)),
        builder.divide(tokens, column["max_num_batched_tokens"]),
    )
    busy_adapters = builder.smallest(column["active_40s"], slots)
    saturated_s = builder.add(fixed_s, builder.multiply(per_adapter_s, busy_adapters))
    saturated = builder.add(token_utilisation, builder.multiply(saturated_s, required))

    free_share = builder.largest(builder.node("Sub", 1.0, token_utilisation), 0.05)
    few_adapters = builder.smallest(column["active_10s"], slots)
    step_s = builder.divide(builder.add(fixed_s, builder.multiply(per_adapter_s, few_adapters)), free_share)

    positive_rate = builder.largest(rate, 1e-9)
    output_per_request = builder.divide(out, positive_rate)
    active = _active_adapters(builder, column, builder.multiply(output_per_request, step_s))
    absent = builder.largest(builder.node("Sub", 1.0, builder.divide(slots, builder.largest(active, 1e-9))), 0.0)
    load_s = float(np.mean([entry.cpu_to_gpu_ms for entry in profile.load_times])) * 1e-3
    positive_slots = builder.largest(slots, 1.0)
    columns = {
        "saturated_utilisation": saturated,
        "token_utilisation": token_utilisation,
        "required_steps_per_s": required,
        "step_s": step_s,
        "batch_utilisation": builder.multiply(required, step_s),
        "kv_utilisation": builder.divide(builder.multiply(held, step_s), builder.largest(column["kv_tokens"], 1.0)),
        "slot_utilisation": builder.divide(active, positive_slots),
        "active_10s_per_slot": builder.divide(column["active_10s"], positive_slots),
        "active_40s_per_slot": builder.divide(column["active_40s"], positive_slots),
        "load_utilisation": builder.multiply(builder.multiply(rate, load_s), absent),
        "sum_rate_rps": rate,
        "sum_output_tps": out,
        "num_adapters": count,
        "adapters_per_slot": builder.divide(count, positive_slots),
        "slots": slots,
        "max_lora_rank": column["max_lora_rank"],
        "max_num_seqs": column["max_num_seqs"],
        "max_num_batched_tokens": column["max_num_batched_tokens"],
        "kv_tokens": column["kv_tokens"],
        "prompt_tokens_per_request": builder.divide(prompt, positive_rate),
        "output_tokens_per_request": output_per_request,
        "prompt_spread": builder.divide(column["sum_prompt_sq_tps"], builder.largest(prompt, 1e-9)),
        "held_tokens_per_request": builder.divide(held, builder.largest(out, 1e-9)),
        "rate_concentration": builder.divide(
            builder.multiply(column["sum_rate_sq"], count), builder.multiply(positive_rate, positive_rate)
        ),
    }
    ordered = [columns[name] for name in DERIVED_NAMES]
    builder.nodes.append(helper.make_node("Concat", ordered, [output], axis=1))


def _costs(
    builder: GraphBuilder, profile: PerformanceProfile, column: dict[str, str], tokens: str
) -> tuple[str, str, str]:
    """Return (fixed seconds per step, seconds per step and adapter, share of time proportional to the load)."""
    c = profile.step_time
    second = 1e-3
    rank_excess = builder.multiply(
        builder.largest(builder.node("Sub", column["max_lora_rank"], RANK_UNIT), 0.0), 1.0 / RANK_UNIT
    )
    grid = builder.add(column["max_loras"], 1.0)

    def with_rank(base_ms: float, rank_ms: float) -> str:
        return builder.add(builder.multiply(rank_excess, rank_ms * second), base_ms * second)

    tile_s = builder.multiply(builder.multiply(with_rank(c.slot_tile_ms, c.slot_tile_rank_ms), grid), 1.0 / TILE_TOKENS)
    token_s = builder.add(tile_s, with_rank(c.token_ms + c.lora_token_ms, c.lora_token_rank_ms))
    request_s = with_rank(c.request_ms, c.lora_request_rank_ms)
    context_s = (c.context_token_ms + c.mixed_context_token_ms) * second
    utilisation = builder.add(
        builder.multiply(tokens, token_s),
        builder.multiply(column["sum_output_tps"], request_s),
        builder.multiply(column["sum_kv_token_steps"], context_s),
    )
    # The step without a CUDA graph is phased in with the tokens that a full batch of this engine can have.
    large = builder.smallest(builder.multiply(column["max_num_seqs"], 1.0 / LARGE_BATCH_TOKENS), 1.0)
    fixed_s = builder.add(
        builder.multiply(grid, c.slot_ms * second),
        builder.multiply(large, (c.large_batch_ms + c.lora_large_batch_ms) * second),
        (c.base_ms + c.mixed_step_ms + c.lora_base_ms) * second,
    )
    return fixed_s, with_rank(c.adapter_ms, c.adapter_rank_ms), utilisation


def _active_adapters(builder: GraphBuilder, column: dict[str, str], residence_s: str) -> str:
    """Return how many adapters have a request within the residence time, linear between the features' windows."""
    first, second = column["active_10s"], column["active_40s"]
    below = builder.multiply(first, builder.smallest(builder.multiply(residence_s, 0.1), 1.0))
    beyond = builder.largest(builder.multiply(builder.node("Sub", residence_s, 10.0), 1.0 / 30.0), 0.0)
    growth = builder.multiply(builder.node("Sub", second, first), beyond)
    return builder.smallest(builder.add(below, growth), column["num_adapters"])


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


def make_model(graph: onnx.GraphProto) -> onnx.ModelProto:
    """Return a checked model with the operator sets that the graphs here are written for."""
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, producer_name="placer")
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model)
    return model


# Old enough for every ONNX Runtime that the project supports (1.20), new enough for Split with `num_outputs`.
OPSET = 18
ML_OPSET = 3
IR_VERSION = 9
