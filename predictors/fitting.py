"""Fit monotone gradient boosting to twin-labelled rows and put it, its physics and its metadata into one ONNX graph.

Needs the extra `train`; `predictors.training` is the way in.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import skl2onnx
import sklearn
from numpy.typing import NDArray
from onnx import TensorProto, helper
from skl2onnx.common.data_types import FloatTensorType
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from threadpoolctl import threadpool_limits

from predictors.derived import DERIVED_COLUMNS, DERIVED_NAMES, add_derived_columns, derived_model
from predictors.domain import Domain
from predictors.features import FEATURE_SCHEMA
from predictors.onnx_graph import ML_OPSET, OPSET, GraphBuilder, make_model
from predictors.onnx_surrogate import INPUT_NAME
from predictors.provenance import profile_fingerprint
from predictors.surrogate import OUTPUT_NAMES, SurrogateOutput
from twin.errors import SurrogateError
from twin.profile import PerformanceProfile

# Small, because solvers ask often: near the border, a hundred trees are no better than these on sets that were held
# out (two twin runs of one set with other traffic agree hardly more), and take four times as long.
_BOOSTING: dict[str, Any] = {
    "max_iter": 25,
    "learning_rate": 0.25,
    "max_leaf_nodes": 31,
    "min_samples_leaf": 20,
    "l2_regularization": 1.0,
    "early_stopping": False,
}
_LOAD_SIGNS = np.array([sign for _, sign in DERIVED_COLUMNS])
# Below the resolution of a step, and above what a simulation of some minutes can show.
_LATENCY_RANGE_S = (1e-3, 1e4)
# An exported tree may take another branch where a value lies within the rounding of a threshold: on few rows at most.
_PARITY_TOLERANCE = 1e-3
_PARITY_SHARE = 0.005


@dataclass(frozen=True)
class FittedModels:
    """The four boosters over the derived columns, and the calibration of the starvation score."""

    ratio: Any
    starvation: Any
    log_itl: Any
    log_ttft: Any
    calibration_slope: float
    calibration_offset: float

    def predict(self, derived: NDArray[np.float32], offered_tps: NDArray[np.float64]) -> SurrogateOutput:
        """Return scikit-learn's predictions: what the exported graph must reproduce."""
        ratio = np.clip(self.ratio.predict(derived), 0.0, 1.0)
        score = self.starvation.decision_function(derived)
        probability = 1.0 / (1.0 + np.exp(-(self.calibration_slope * score + self.calibration_offset)))
        itl, ttft = np.exp(self.log_itl.predict(derived)), np.exp(self.log_ttft.predict(derived))
        return SurrogateOutput(
            *(column.astype(np.float32) for column in (ratio, probability, ratio * offered_tps, itl, ttft))
        )


def derive(features: NDArray[np.float32], profile: PerformanceProfile) -> NDArray[np.float32]:
    """Return the derived columns of `features` [N, F], float32 [N, D], through the graph that is shipped."""
    session = onnxruntime.InferenceSession(
        derived_model(profile).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    derived: NDArray[np.float32] = session.run(None, {INPUT_NAME: features})[0]
    return derived


def fit_models(table: pd.DataFrame, derived: NDArray[np.float32], *, seed: int) -> FittedModels:
    """Fit the boosters to labelled rows; latencies only where something completed.

    More load never raises the ratio and never lowers the other three: constraints on every column that rises with
    the load.
    """
    # One thread: sums come out in the same order everywhere, and spinning threads are slow on busy machines.
    with threadpool_limits(limits=1):
        return _fit_models(table, derived, seed=seed)


def _fit_models(table: pd.DataFrame, derived: NDArray[np.float32], *, seed: int) -> FittedModels:
    starved = table["starved_share"].to_numpy() >= 0.5
    ratio = np.clip(table["throughput_ratio"].to_numpy(dtype=np.float64), 0.0, 1.0)
    settings = {**_BOOSTING, "random_state": seed}

    def fit_latency(column: str) -> Any:
        latency = np.clip(table[column].to_numpy(dtype=np.float64), *_LATENCY_RANGE_S)
        known = np.isfinite(latency)
        booster = HistGradientBoostingRegressor(**settings, monotonic_cst=_LOAD_SIGNS)
        return booster.fit(derived[known], np.log(latency[known]))

    slope, offset = _calibration(derived, starved, table["scenario"].to_numpy(), settings)
    return FittedModels(
        ratio=HistGradientBoostingRegressor(**settings, monotonic_cst=-_LOAD_SIGNS).fit(derived, ratio),
        starvation=_starvation_booster(settings).fit(derived, starved),
        log_itl=fit_latency("itl_p95_s"),
        log_ttft=fit_latency("ttft_p95_s"),
        calibration_slope=slope,
        calibration_offset=offset,
    )


def _starvation_booster(settings: dict[str, Any]) -> Any:
    return HistGradientBoostingClassifier(**settings, monotonic_cst=_LOAD_SIGNS)


def _calibration(
    derived: NDArray[np.float32],
    starved: NDArray[np.bool_],
    scenarios: NDArray[np.int32],
    settings: dict[str, Any],
) -> tuple[float, float]:
    """Return slope and offset that turn a score into log-odds, from scores of unseen scenarios (Platt scaling)."""
    num_folds = min(3, len(np.unique(scenarios)))
    if num_folds < 2 or starved.all() or not starved.any():
        return 1.0, 0.0
    scores = np.zeros(len(starved))
    for train, test in GroupKFold(n_splits=num_folds).split(derived, starved, scenarios):
        if starved[train].all() or not starved[train].any():
            return 1.0, 0.0
        scores[test] = (
            _starvation_booster(settings).fit(derived[train], starved[train]).decision_function(derived[test])
        )
    line = LogisticRegression().fit(scores[:, np.newaxis], starved)
    slope = float(line.coef_[0, 0])
    # A negative slope would turn the monotone constraints around; it can only come from a hopeless fit.
    return max(slope, 1e-3), float(line.intercept_[0])


def export_model(
    models: FittedModels,
    *,
    profile: PerformanceProfile,
    domain: Domain,
    training: dict[str, Any],
) -> onnx.ModelProto:
    """Return the graph from `features` to the five outputs, with its metadata."""
    builder = GraphBuilder()
    offered = builder.flatten(add_derived_columns(builder, profile, features=INPUT_NAME, output="derived"))
    ratio = builder.smallest(builder.largest(_add_booster(builder, models.ratio, "ratio"), 0.0), 1.0)
    score = _add_booster(builder, models.starvation, "starvation")
    log_odds = builder.add(builder.multiply(score, models.calibration_slope), models.calibration_offset)
    values = {
        "throughput_ratio": ratio,
        "starvation_probability": builder.node("Sigmoid", log_odds),
        "throughput_tps": builder.multiply(ratio, offered),
        "itl_s": builder.node("Exp", _add_booster(builder, models.log_itl, "itl")),
        "ttft_s": builder.node("Exp", _add_booster(builder, models.log_ttft, "ttft")),
    }
    for name in OUTPUT_NAMES:
        builder.nodes.append(helper.make_node("Identity", [values[name]], [name]))
    graph = helper.make_graph(
        builder.nodes,
        "placer_surrogate",
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, ["N", len(FEATURE_SCHEMA.names)])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in OUTPUT_NAMES],
        builder.initializers,
    )
    model = make_model(graph)
    outputs = {
        "throughput_ratio": "throughput / offered load",
        "starvation_probability": "probability that the replica or any adapter starves",
        "throughput_tps": "tokens/s of completed requests",
        "itl_s": "95th percentile of the inter-token latency, seconds",
        "ttft_s": "95th percentile of the time to first token, seconds",
    }
    producer = {
        "numpy": np.__version__,
        "onnx": onnx.__version__,
        "scikit-learn": sklearn.__version__,
        "skl2onnx": skl2onnx.__version__,
    }
    metadata = {
        "feature_schema": {**FEATURE_SCHEMA.as_json(), "outputs": outputs},
        "domain": domain.model_dump(mode="json"),
        "profile": {"name": profile.name, "fingerprint": profile_fingerprint(profile)},
        "training": training,
        "producer": producer,
    }
    helper.set_model_props(model, {key: json.dumps(value, sort_keys=True) for key, value in metadata.items()})
    return model


def _add_booster(builder: GraphBuilder, booster: Any, prefix: str) -> str:
    """Add a fitted booster over `derived` to the graph; return the name of its raw prediction, float32 [N]."""
    is_classifier = isinstance(booster, HistGradientBoostingClassifier)
    _round_thresholds(booster)
    with warnings.catch_warnings():
        # The converter hands NumPy booleans to protobuf, which will not take them for integers for ever.
        warnings.simplefilter("ignore", DeprecationWarning)
        converted = skl2onnx.convert_sklearn(
            booster,
            initial_types=[("derived", FloatTensorType([None, len(DERIVED_NAMES)]))],
            target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET},
            options={id(booster): {"zipmap": False, "raw_scores": True}} if is_classifier else None,
        )
    graph = onnx.compose.add_prefix_graph(converted.graph, prefix=f"{prefix}_", rename_inputs=False)
    for node in graph.node:
        # Features are finite, and looking for NaN costs time in every node of every tree.
        unused = [item for item in node.attribute if item.name == "nodes_missing_value_tracks_true"]
        for item in unused:
            node.attribute.remove(item)
    builder.nodes.extend(graph.node)
    builder.initializers.extend(graph.initializer)
    output = str(graph.output[-1].name)
    return builder.flatten(builder.columns(output, 1, 2) if is_classifier else output)


def _round_thresholds(booster: Any) -> None:
    """Round the thresholds of a fitted booster down to float32, in place.

    For inputs in float32, ``x <= threshold`` stays what it was, and the exported comparison in float32 becomes the
    same. Rows of one scenario often differ by one unit in the last place only; rounding to nearest would send such
    rows another way.
    """
    for trees in booster._predictors:  # noqa: SLF001 - scikit-learn has no public access to the nodes
        for tree in trees:
            exact = tree.nodes["num_threshold"]
            rounded = exact.astype(np.float32)
            below = np.nextafter(rounded, np.float32(-np.inf))
            tree.nodes["num_threshold"] = np.where(rounded > exact, below, rounded)


def check_parity(
    models: FittedModels, model: onnx.ModelProto, features: NDArray[np.float32], profile: PerformanceProfile
) -> dict[str, float]:
    """Compare the exported graph with scikit-learn on `features` [N, F].

    Returns
    -------
    Per output, the share of rows that differ by more than 0.1 % (0.001 for the ratio and the probability).

    Raises
    ------
    SurrogateError
        When more than 0.5 % of the rows do.
    """
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    actual = session.run(list(OUTPUT_NAMES), {INPUT_NAME: features})
    columns = [FEATURE_SCHEMA.index("sum_prompt_tps"), FEATURE_SCHEMA.index("sum_output_tps")]
    offered = features[:, columns].astype(np.float64).sum(axis=1)
    expected = models.predict(derive(features, profile), offered)
    shares = {}
    for name, values in zip(OUTPUT_NAMES, actual, strict=True):
        wanted = getattr(expected, name).astype(np.float64)
        scale = 1.0 if name in {"throughput_ratio", "starvation_probability"} else np.maximum(np.abs(wanted), 1e-6)
        shares[name] = float(np.mean(np.abs(values - wanted) > _PARITY_TOLERANCE * scale))
        if shares[name] > _PARITY_SHARE:
            raise SurrogateError(
                f"the exported model must agree with the fitted one. `{name}` differs on {shares[name]:.2%} of rows.",
                field=name,
                value=shares[name],
                hint="try other versions of scikit-learn and skl2onnx",
            )
    return shares
