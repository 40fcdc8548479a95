"""Families of models: what each is, what its search may choose, and how it goes into an ONNX graph.

All are fitted to the same rows and predict the same five quantities; what they see differs. Trees split on one column
at a time and get the quotients of `predictors.derived`; networks get the logarithms of `predictors.physics`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime
import skl2onnx
from numpy.typing import NDArray
from skl2onnx.common.data_types import FloatTensorType
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.tree import DecisionTreeRegressor
from threadpoolctl import threadpool_limits

from predictors.derived import DERIVED_COLUMNS, DERIVED_NAMES, add_derived_columns, derived_model
from predictors.features import FEATURE_SCHEMA
from predictors.fitted_model import FittedModel, Raw, RawNames
from predictors.neural import MOST, NeuralNetwork
from predictors.neural_fit import fit_network
from predictors.neural_training import NeuralSettings
from predictors.onnx_graph import ML_OPSET, OPSET, GraphBuilder
from predictors.onnx_surrogate import INPUT_NAME
from predictors.polyhedra_model import CHOICES as POLYHEDRA_CHOICES
from predictors.polyhedra_model import fit_polyhedra_model
from predictors.risk import Calibration
from predictors.targets import KinRows, TrainingRows, columns_to_fit
from twin.profile import PerformanceProfile

# A share of 0 or 1 among few seeds is no certainty.
_LEAST_SHARE = 1e-3
# The offered load in tokens/s, as a product with the features.
_OFFERED = np.isin(FEATURE_SCHEMA.names, ("sum_prompt_tps", "sum_output_tps")).astype(np.float32)
_LOAD_SIGNS = np.array([sign for _, sign in DERIVED_COLUMNS])

Settings = Mapping[str, Any]


class Fit(Protocol):
    """Fits a family."""

    def __call__(
        self,
        rows: TrainingRows,
        profile: PerformanceProfile,
        settings: Settings,
        *,
        kin: Sequence[KinRows] = (),
        seed: int,
        time_limit_s: float,
    ) -> FittedModel:
        """Return a model fitted to `rows` and `kin`; iterative ones end within `time_limit_s` seconds."""
        ...


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes
    ----------
    name, what
        Short name, and what it is.
    fit
        Fits one.
    choices
        Values that a search may choose for each setting; the first ones are tried first.
    """

    name: str
    what: str
    fit: Fit
    choices: Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True)
class TreeModels:
    """Five tree ensembles over the derived columns; that of starvation predicts log-odds, or the share itself."""

    ratio: Any
    starvation: Any
    log_itl: Any
    log_ttft: Any
    log_itl_mean: Any
    profile: PerformanceProfile

    def raw(self, features: NDArray[np.float32]) -> Raw:
        """Return what they say about `features`, float32 [N, F]."""
        derived = derive(features, self.profile)
        if isinstance(self.starvation, HistGradientBoostingClassifier):
            log_odds = self.starvation.decision_function(derived)
        else:
            share = np.clip(self.starvation.predict(derived), _LEAST_SHARE, 1.0 - _LEAST_SHARE)
            log_odds = np.log(share) - np.log(1.0 - share)
        ratio = np.clip(self.ratio.predict(derived), 0.0, 1.0)
        latencies = (model.predict(derived) for model in (self.log_itl, self.log_ttft, self.log_itl_mean))
        return Raw(ratio, log_odds, *latencies)

    def add_to(self, builder: GraphBuilder, calibration: Calibration, *, features: str) -> RawNames:
        """Add derived columns and trees to an ONNX graph."""
        add_derived_columns(builder, self.profile, features=features, output="derived")
        ratio = builder.smallest(builder.largest(_add_trees(builder, self.ratio, "ratio"), 0.0), 1.0)
        log_odds = _add_trees(builder, self.starvation, "starvation")
        if not isinstance(self.starvation, HistGradientBoostingClassifier):
            share = builder.smallest(builder.largest(log_odds, _LEAST_SHARE), 1.0 - _LEAST_SHARE)
            rest = builder.node("Sub", 1.0, share)
            log_odds = builder.node("Sub", builder.node("Log", share), builder.node("Log", rest))
        log_odds = builder.add(builder.multiply(log_odds, calibration.slope), calibration.offset)
        return RawNames(
            builder.matrix_product(features, _OFFERED),
            ratio,
            log_odds,
            itl_s=builder.node("Exp", _add_trees(builder, self.log_itl, "itl")),
            ttft_s=builder.node("Exp", _add_trees(builder, self.log_ttft, "ttft")),
            itl_mean_s=builder.node("Exp", _add_trees(builder, self.log_itl_mean, "itl_mean")),
        )


def derive(features: NDArray[np.float32], profile: PerformanceProfile) -> NDArray[np.float32]:
    """Return the derived columns of `features` [N, F], float32 [N, D], through the graph that is shipped."""
    session = onnxruntime.InferenceSession(
        derived_model(profile).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    derived: NDArray[np.float32] = session.run(None, {INPUT_NAME: features})[0]
    return derived


def _fit_boosting(
    rows: TrainingRows,
    profile: PerformanceProfile,
    settings: Settings,
    *,
    kin: Sequence[KinRows] = (),
    seed: int,
    time_limit_s: float,
) -> FittedModel:
    """Fit gradient boosting whose ratio never rises with the load, and whose other outputs never fall."""
    del time_limit_s
    options = {"min_samples_leaf": 20, "early_stopping": False, "random_state": seed, **settings}

    def regressor(sign: int) -> Any:
        return HistGradientBoostingRegressor(**options, monotonic_cst=sign * _LOAD_SIGNS)

    derived, rows = columns_to_fit(derive, rows, profile, _of_own_window(kin))
    # Once as starved, with the share as weight, and once as healthy.
    share = np.concatenate([rows.starved_share, 1.0 - rows.starved_share]) * np.tile(rows.weight, 2)
    is_starved = np.repeat([True, False], len(rows))
    counts = share > 0.0
    with threadpool_limits(limits=1):
        classifier = HistGradientBoostingClassifier(**options, monotonic_cst=_LOAD_SIGNS)
        classifier.fit(np.tile(derived, (2, 1))[counts], is_starved[counts], sample_weight=share[counts])
        ratio = regressor(-1).fit(derived, rows.completed_ratio, sample_weight=rows.weight)
        log_itl, log_ttft, log_itl_mean = _fit_latencies(lambda: regressor(1), derived, rows)
    return TreeModels(ratio, classifier, log_itl, log_ttft, log_itl_mean, profile)


def _fit_forest(
    rows: TrainingRows,
    profile: PerformanceProfile,
    settings: Settings,
    *,
    kin: Sequence[KinRows] = (),
    seed: int,
    time_limit_s: float,
) -> FittedModel:
    """Fit random forests, as the published surrogates are."""
    del time_limit_s
    return _fit_plain(lambda: RandomForestRegressor(random_state=seed, n_jobs=1, **settings), rows, profile, kin)


def _fit_tree(
    rows: TrainingRows,
    profile: PerformanceProfile,
    settings: Settings,
    *,
    kin: Sequence[KinRows] = (),
    seed: int,
    time_limit_s: float,
) -> FittedModel:
    """Fit one small tree per quantity, as the published compiled ones are."""
    del time_limit_s
    return _fit_plain(lambda: DecisionTreeRegressor(random_state=seed, **settings), rows, profile, kin)


def _fit_plain(
    make: Callable[[], Any], rows: TrainingRows, profile: PerformanceProfile, kin: Sequence[KinRows]
) -> FittedModel:
    derived, rows = columns_to_fit(derive, rows, profile, _of_own_window(kin))
    with threadpool_limits(limits=1):
        ratio = make().fit(derived, rows.completed_ratio, sample_weight=rows.weight)
        starvation = make().fit(derived, rows.starved_share, sample_weight=rows.weight)
        log_itl, log_ttft, log_itl_mean = _fit_latencies(make, derived, rows)
    return TreeModels(ratio, starvation, log_itl, log_ttft, log_itl_mean, profile)


def _of_own_window(kin: Sequence[KinRows]) -> list[KinRows]:
    """Return the rows that were measured as long as the surrogate's own: trees do not see the window."""
    return [part for part in kin if part.window == 1.0]


def _fit_latencies(make: Callable[[], Any], derived: NDArray[np.float32], rows: TrainingRows) -> list[Any]:
    models = []
    for target in (rows.log_itl, rows.log_ttft, rows.log_itl_mean):
        known = np.isfinite(target)
        models.append(make().fit(derived[known], target[known], sample_weight=rows.weight[known]))
    return models


@dataclass(frozen=True)
class _NetworkModel:
    """A network as a fitted model: its ratio is a logarithm, of up to as much as arrives."""

    network: Any

    def raw(self, features: NDArray[np.float32]) -> Raw:
        outputs = np.minimum(self.network.raw(features), np.log(MOST.astype(np.float64)))
        return Raw(np.exp(outputs[:, 0]), *outputs[:, 1:].T)

    def add_to(self, builder: GraphBuilder, calibration: Calibration, *, features: str) -> RawNames:
        # The calibration goes into the weights: two nodes less.
        calibrated = self.network.calibrated(calibration.slope, calibration.offset)
        outputs, offered = calibrated.add_to(builder, features=features)
        return RawNames(offered, *outputs)


def _fit_neural(
    rows: TrainingRows,
    profile: PerformanceProfile,
    settings: Settings,
    *,
    kin: Sequence[KinRows] = (),
    seed: int,
    time_limit_s: float,
    start: NeuralNetwork | None = None,
) -> FittedModel:
    """Fit a small neural network behind the physics of the step time."""
    options = NeuralSettings(**settings, seed=seed)
    network = fit_network(rows, profile, kin=kin, start=start, settings=options, time_limit_s=time_limit_s)
    return _NetworkModel(network)


def continued_family(name: str, start: NeuralNetwork) -> Family:
    """Return a family that begins with a network that was fitted before.

    Networks begin as it and stay near it; polyhedra learn from it as it is.
    """
    if name == "polyhedra":
        return Family(name, FAMILIES[name].what, partial(fit_polyhedra_model, start=start), POLYHEDRA_CHOICES)
    choices = {"learning_rate": (1e-3, 5e-4, 2e-4), "epochs": (20, 10), "teachers": (2, 0)}
    return Family("neural", "network that goes on from another", partial(_fit_neural, start=start), choices)


def _add_trees(builder: GraphBuilder, model: Any, prefix: str) -> str:
    """Add fitted trees over `derived` to the graph; return the name of their raw prediction, float32 [N]."""
    is_classifier = isinstance(model, HistGradientBoostingClassifier)
    if isinstance(model, HistGradientBoostingClassifier | HistGradientBoostingRegressor):
        _round_thresholds(model)
    with warnings.catch_warnings():
        # The converter hands NumPy booleans to protobuf, which will not take them for integers for ever.
        warnings.simplefilter("ignore", DeprecationWarning)
        converted = skl2onnx.convert_sklearn(
            model,
            initial_types=[("derived", FloatTensorType([None, len(DERIVED_NAMES)]))],
            target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET},
            options={id(model): {"zipmap": False, "raw_scores": True}} if is_classifier else None,
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


FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family(
            "neural",
            "network behind the physics",
            _fit_neural,
            {
                "widths": ((96, 96), (128, 128), (192, 192), (128, 64)),
                "weight_decay": (1e-2, 1e-3, 1e-1),
                "learning_rate": (4e-3, 2e-3, 8e-3),
                "epochs": (25, 50),
                "teachers": (5, 0),
            },
        ),
        Family(
            "boosting",
            "gradient boosting with monotone constraints",
            _fit_boosting,
            {
                "max_iter": (60, 25, 120),
                "learning_rate": (0.15, 0.25, 0.08),
                "max_leaf_nodes": (31, 15, 63),
                "l2_regularization": (1.0, 10.0),
            },
        ),
        Family(
            "forest",
            "random forest",
            _fit_forest,
            {
                "n_estimators": (50, 100),
                "max_depth": (12, 8, 16),
                "min_samples_leaf": (10, 5, 30),
                "max_features": (0.4, 0.7, 1.0),
            },
        ),
        Family("tree", "one small tree", _fit_tree, {"max_depth": (10, 8, 12), "min_samples_leaf": (20, 10, 50)}),
        Family("polyhedra", "polyhedra in the sums, for proofs", fit_polyhedra_model, POLYHEDRA_CHOICES),
    )
}
