"""Put a fitted model, its calibration and its metadata into one ONNX file, and check that nothing was lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from predictors.domain import Domain
from predictors.features import FEATURE_SCHEMA, offered_tps
from predictors.fitted_model import FittedModel, HasMetadata
from predictors.onnx_graph import GraphBuilder, make_model
from predictors.risk import Calibration
from predictors.surrogate import OUTPUT_NAMES, SurrogateOutput
from predictors.surrogate_file import INPUT_NAME, surrogate_metadata
from twin.errors import SurrogateError
from twin.profile import PerformanceProfile

# An exported tree may take another branch where a value lies within the rounding of a threshold: on few rows at most.
PARITY_TOLERANCE = 1e-3
PARITY_SHARE = 0.005


def predict(model: FittedModel, calibration: Calibration, features: NDArray[np.float32]) -> SurrogateOutput:
    """Return what a fitted model predicts for `features` [N, F]: what its ONNX file must reproduce."""
    raw = model.raw(features)
    columns = (
        raw.ratio,
        calibration.probability(raw.log_odds),
        raw.ratio * offered_tps(features),
        np.exp(raw.log_itl),
        np.exp(raw.log_ttft),
    )
    return SurrogateOutput(*(column.astype(np.float32) for column in columns))


def export_model(
    model: FittedModel,
    calibration: Calibration,
    *,
    profile: PerformanceProfile,
    domain: Domain,
    training: dict[str, Any],
    producer: dict[str, str],
) -> onnx.ModelProto:
    """Return the graph from `features` to the outputs, with its metadata."""
    builder = GraphBuilder()
    raw = model.add_to(builder, calibration, features=INPUT_NAME)
    values = {
        "throughput_ratio": raw.ratio,
        "starvation_probability": builder.node("Sigmoid", raw.log_odds),
        "throughput_tps": builder.multiply(raw.ratio, raw.offered_tps),
        "itl_s": raw.itl_s,
        "ttft_s": raw.ttft_s,
        "itl_mean_s": raw.itl_mean_s,
    }
    builder.rename(values)
    graph = helper.make_graph(
        builder.nodes,
        "placer_surrogate",
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, ["N", len(FEATURE_SCHEMA.names)])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in values],
        builder.initializers,
    )
    exported = make_model(graph)
    metadata = surrogate_metadata(profile, domain, training=training, producer=producer)
    if isinstance(model, HasMetadata):
        metadata.update(model.metadata(calibration))
    helper.set_model_props(exported, metadata)
    return exported


def check_parity(
    exported: onnx.ModelProto, expected: SurrogateOutput, features: NDArray[np.float32]
) -> dict[str, float]:
    """Compare an exported graph with what the fitted model predicts for `features` [N, F].

    Returns
    -------
    Per output, the share of rows that differ by more than 0.1 % (0.001 for the ratio and the probability).

    Raises
    ------
    SurrogateError
        When more than 0.5 % of the rows do.
    """
    session = onnxruntime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    shares = {}
    for name, values in zip(OUTPUT_NAMES, session.run(list(OUTPUT_NAMES), {INPUT_NAME: features}), strict=True):
        wanted = getattr(expected, name).astype(np.float64)
        scale = 1.0 if name in {"throughput_ratio", "starvation_probability"} else np.maximum(np.abs(wanted), 1e-6)
        shares[name] = float(np.mean(np.abs(values - wanted) > PARITY_TOLERANCE * scale))
        if shares[name] > PARITY_SHARE:
            raise SurrogateError(
                f"the exported model must agree with the fitted one. `{name}` differs on {shares[name]:.2%} of rows.",
                field=name,
                value=shares[name],
                hint="try other versions of scikit-learn and skl2onnx",
            )
    return shares
