"""ONNX files made by hand: small enough to see that they are right, and every way in which one can be wrong."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

from predictors.features import FEATURE_SCHEMA
from predictors.surrogate import OUTPUT_NAMES
from tests.predictors.capacity import CAPACITY_TPS

NUM_FEATURES = len(FEATURE_SCHEMA.names)


def metadata() -> dict[str, Any]:
    """Return metadata that is complete and right."""
    return {
        "feature_schema": FEATURE_SCHEMA.as_json(),
        "domain": {"features": {name: [0.0, 1e6] for name in FEATURE_SCHEMA.names}, "ratios": []},
        "profile": {"name": "handmade"},
        "training": {"rows": 0},
        "producer": {"by": "hand"},
    }


def linear_model(
    *,
    columns: dict[str, str] | None = None,
    scales: dict[str, float] | None = None,
    output_rank: int = 1,
    input_name: str = "features",
    num_features: int = NUM_FEATURES,
    batch: str | int = "N",
    output_names: tuple[str, ...] = OUTPUT_NAMES,
    log_outputs: tuple[str, ...] = (),
) -> ModelProto:
    """Return a model in which each output is one feature times a scale.

    Parameters
    ----------
    columns, scales
        Feature and scale per output; `num_adapters` and 1.0 by default.
    output_rank
        1: outputs [N], as the contract wants; 2: outputs [N, 1].
    log_outputs
        Outputs that are the logarithm of that, so that a zero gives minus infinity and a negative number NaN.
    """
    nodes, initializers, outputs = [], [], []
    for name in output_names:
        column = FEATURE_SCHEMA.index((columns or {}).get(name, "num_adapters"))
        index = np.array(column if output_rank == 1 else [column], dtype=np.int64)
        scale = np.array((scales or {}).get(name, 1.0), dtype=np.float32)
        initializers += [numpy_helper.from_array(index, f"{name}_i"), numpy_helper.from_array(scale, f"{name}_s")]
        nodes.append(helper.make_node("Gather", [input_name, f"{name}_i"], [f"{name}_c"], axis=1))
        product = f"{name}_p" if name in log_outputs else name
        nodes.append(helper.make_node("Mul", [f"{name}_c", f"{name}_s"], [product]))
        if name in log_outputs:
            nodes.append(helper.make_node("Log", [product], [name]))
        shape: list[str | int] = [batch] if output_rank == 1 else [batch, 1]
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    inputs = [helper.make_tensor_value_info(input_name, TensorProto.FLOAT, [batch, num_features])]
    graph = helper.make_graph(nodes, "handmade", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    return model


def save(model: ModelProto, path: Path, values: dict[str, Any] | None = None) -> Path:
    """Write `model` with its metadata (`metadata()` by default; texts are written as they are) and return the path."""
    chosen = metadata() if values is None else values
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in chosen.items()}
    helper.set_model_props(model, texts)
    path.write_bytes(model.SerializeToString())
    return path


# A replica with a fixed capacity, in ONNX: the statement that makes each output, from `offered` and `rate` [N].
_CAPACITY: dict[str, str] = {
    "throughput_ratio": """
        floor = Max (offered, one)
        served = Div (capacity, floor)
        throughput_ratio = Min (one, served)""",
    "starvation_probability": """
        used = Div (offered, capacity)
        above = Sub (used, one)
        log_odds = Mul (above, ten)
        starvation_probability = Sigmoid (log_odds)""",
    "throughput_tps": "throughput_tps = Min (offered, capacity)",
    "itl_s": """
        step = Div (offered, million)
        itl_s = Add (step, hundredth)""",
    "ttft_s": "ttft_s = Add (step, one)",
}


def capacity_model(
    *,
    statements: dict[str, str] | None = None,
    declared: dict[str, str] | None = None,
    inputs: str = f"float[N, {NUM_FEATURES}] features",
) -> ModelProto:
    """Return a model that is right about a replica of `CAPACITY_TPS`, but for what is replaced.

    Parameters
    ----------
    statements
        By output, what makes it instead, in the textual syntax of ONNX. There are `features`, `offered` [N] in
        tokens/s, `rate` [N] in requests/s, the numbers `zero`, `one`, `ten`, `hundredth`, `million`, and `capacity`.
    declared
        By output, its declared type and shape instead of ``float[N]``.
    inputs
        The declared inputs.
    """
    weights = {
        "tokens": ("sum_prompt_tps", "sum_output_tps"),
        "requests": ("sum_rate_rps",),
    }
    vectors = ", ".join(
        f"float[{NUM_FEATURES}] {vector} = {{{', '.join(str(float(n in names)) for n in FEATURE_SCHEMA.names)}}}"
        for vector, names in weights.items()
    )
    numbers = {"zero": 0.0, "one": 1.0, "ten": 10.0, "hundredth": 0.01, "million": 1e6, "capacity": CAPACITY_TPS}
    scalars = ", ".join(f"float {name} = {{{value}}}" for name, value in numbers.items())
    made = {**_CAPACITY, **(statements or {})}
    types = {**dict.fromkeys(OUTPUT_NAMES, "float[N]"), **(declared or {})}
    return parser.parse_model(f"""
        <ir_version: 9, opset_import: ["": 18]>
        capacity ({inputs}) => ({", ".join(f"{types[name]} {name}" for name in OUTPUT_NAMES)})
        <{vectors}, {scalars}>
        {{
            offered = MatMul (features, tokens)
            rate = MatMul (features, requests)
            {chr(10).join(made[name] for name in OUTPUT_NAMES)}
        }}
    """)
