"""Fit a configuration model to populations that the twin's search has labelled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.tree import DecisionTreeRegressor

from predictors.configuration import (
    OUTPUT_NAMES,
    ConfigurationModel,
    Ensemble,
    Fit,
    ProfileName,
    Tree,
)
from predictors.configuration_data import require_configurations
from predictors.configuration_features import FEATURE_NAMES
from predictors.dataset import load_dataset
from predictors.optimum import DEFAULT_SEARCH, STARVATION_TESTS, SearchSettings, StarvationTest
from predictors.selection import split_scenarios
from twin.errors import InputError, SurrogateError
from twin.profile import PerformanceProfile

LEAST_POPULATIONS = 60
# Deep enough to be worth reading, shallow enough to be read.
RULES_DEPTH = 4
_LEAST_LEAF_SHARE = 0.02
_BOOSTING = {
    "loss": "huber",
    "n_estimators": 200,
    "max_depth": 3,
    "learning_rate": 0.07,
    "subsample": 0.7,
    "min_samples_leaf": 8,
}
# Values are written with six decimals, and an ensemble adds a few hundred of them.
_PARITY = 1e-4
# Shares of predictions that may be too large, for which margins are given.
_RISKS = (0.5, 0.2, 0.1, 0.05)


def train_configuration_model(
    folder: str | Path, profile: PerformanceProfile, *, settings: SearchSettings = DEFAULT_SEARCH, seed: int = 0
) -> ConfigurationModel:
    """Fit a model to a folder of populations (`predictors.configuration_data.sample_populations`).

    Four fifths of the populations are fitted to, a tenth gives the margins and a tenth the reported errors.

    Parameters
    ----------
    folder
        Labelled with this profile.
    settings
        Under which it was labelled: their slots and most adapters.
    seed
        Of the split and the fits.

    Raises
    ------
    InputError
        When the folder holds something else, was labelled with another profile, or has too few populations.
    SurrogateError
        When what is written differs from what was fitted.
    """
    table, manifest = load_dataset(folder, with_unstartable=True)
    require_configurations(manifest, profile, str(folder))
    fitted = {test: _fit(table, test, folder=str(folder), seed=seed) for test in STARVATION_TESTS}
    return ConfigurationModel(
        profile=ProfileName.model_validate(manifest.settings.profile),
        most_adapters=settings.most_adapters,
        slot_options=settings.slot_options,
        fits={test: fit for test, (fit, _) in fitted.items()},
        training={
            "populations": len(table),
            "seed": seed,
            "dataset": manifest.settings.model_dump(mode="json"),
            "settings": _BOOSTING,
            "fits": {test: facts for test, (_, facts) in fitted.items()},
        },
    )


def _fit(table: pd.DataFrame, test: StarvationTest, *, folder: str, seed: int) -> tuple[Fit, dict[str, Any]]:
    """Fit both models to the best configurations by one test of starvation, and say how well they do."""
    served = table[table[f"best_adapters_{test}"] > 0].reset_index(drop=True)
    if len(served) < LEAST_POPULATIONS:
        raise InputError(
            f"a configuration model needs {LEAST_POPULATIONS} populations of which some adapter is served. "
            f"{folder} has {len(served)}.",
            field="populations",
            value=len(served),
            hint="label more with --populations",
        )
    features, targets = _columns(served, test)
    fitted, validation, tested = split_scenarios(served["scenario"].to_numpy(dtype=np.int64), seed=seed)
    boosters = {
        name: GradientBoostingRegressor(**_BOOSTING, random_state=seed).fit(features[fitted], targets[fitted, column])
        for column, name in enumerate(OUTPUT_NAMES)
    }
    rules = DecisionTreeRegressor(max_depth=RULES_DEPTH, min_samples_leaf=_LEAST_LEAF_SHARE, random_state=seed)
    rules.fit(features[fitted], targets[fitted])
    fit = Fit(ensembles={name: _ensemble(booster) for name, booster in boosters.items()}, rules=_tree(rules.tree_))
    by_model = np.array([fit.factors(row) for row in features])
    by_rules = np.array([fit.rules.predict(row) for row in features])
    _require_parity(by_model, np.column_stack([boosters[name].predict(features) for name in OUTPUT_NAMES]))
    _require_parity(by_rules, rules.predict(features))
    facts = {
        "fitted": int(fitted.sum()),
        "validated": int(validation.sum()),
        "tested": int(tested.sum()),
        "errors": {
            "model": _errors(by_model[tested], targets[tested]),
            "rules": _errors(by_rules[tested], targets[tested]),
            "arithmetic": _errors(np.zeros_like(targets[tested]), targets[tested]),
        },
        "margins": _margins(by_model[validation, 0] - targets[validation, 0]),
    }
    return fit, facts


def _columns(served: pd.DataFrame, test: StarvationTest) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the features [N, F] as a prediction has them, and the logarithms of the factors, [N, 2]."""
    features = served[list(FEATURE_NAMES)].to_numpy(dtype=np.float32).astype(np.float64)
    best = served[[f"best_adapters_{test}", f"best_slots_{test}"]].to_numpy(dtype=np.float64)
    arithmetic = served[["arithmetic_adapters", "arithmetic_slots"]].to_numpy(dtype=np.float64)
    return features, np.log(best / arithmetic)


def _tree(fitted: Any, *, scale: float = 1.0) -> Tree:
    """Return scikit-learn's arrays of a tree; its nodes are in depth-first order, parents first."""
    return Tree(
        feature=tuple(max(int(feature), -1) for feature in fitted.feature),
        threshold=tuple(
            float(threshold) if feature >= 0 else 0.0
            for feature, threshold in zip(fitted.feature, fitted.threshold, strict=True)
        ),
        left=tuple(map(int, fitted.children_left)),
        right=tuple(map(int, fitted.children_right)),
        value=tuple(tuple(round(scale * float(value), 6) for value in row[:, 0]) for row in fitted.value),
        rows=tuple(map(int, fitted.n_node_samples)),
    )


def _leaves_only(tree: Tree) -> Tree:
    """Return a tree without what only a reader asks of inner nodes: hundreds of them are read by nobody."""
    values = tuple(value if tree.is_leaf(node) else (0.0,) for node, value in enumerate(tree.value))
    return tree.model_copy(update={"value": values, "rows": (0,) * len(values)})


def _ensemble(booster: GradientBoostingRegressor) -> Ensemble:
    base = float(np.ravel(booster.init_.constant_)[0])
    trees = tuple(_leaves_only(_tree(stage[0].tree_, scale=booster.learning_rate)) for stage in booster.estimators_)
    return Ensemble(base=base, trees=trees)


def _require_parity(written: NDArray[np.float64], fitted: NDArray[np.float64]) -> None:
    difference = float(np.abs(written - fitted).max())
    if difference > _PARITY:
        raise SurrogateError(
            f"the written model must agree with the fitted one. They differ by {difference:.3g}.",
            field="ensembles",
            value=difference,
            hint="try another version of scikit-learn",
        )


def _errors(predicted: NDArray[np.float64], targets: NDArray[np.float64]) -> dict[str, dict[str, float]]:
    """Return the errors of adapters and slots in percent of the optimum: median, mean, and bias of the median."""
    percent = 100.0 * np.expm1(predicted - targets)
    return {
        name: {
            "median_percent": round(float(np.median(np.abs(percent[:, column]))), 2),
            "mean_percent": round(float(np.mean(np.abs(percent[:, column]))), 2),
            "bias_percent": round(float(np.median(percent[:, column])), 2),
        }
        for column, name in enumerate(("adapters", "slots"))
    }


def _margins(log_errors: NDArray[np.float64]) -> dict[str, float]:
    """Return by risk the factor by which the adapters are to be divided, so that at most that share is too many."""
    return {
        f"{risk:g}": round(float(np.exp(np.quantile(log_errors, 1.0 - risk, method="higher"))), 4) for risk in _RISKS
    }
