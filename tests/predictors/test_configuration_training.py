"""Populations labelled with the twin's optimum, and the model fitted to them: repeatable, checked, as printed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from predictors.configuration import OUTPUT_NAMES, ConfigurationModel
from predictors.configuration_data import (
    CONFIGURATION_FAMILY,
    draw_population,
    label_population,
    sample_populations,
    search_settings,
)
from predictors.configuration_features import FEATURE_NAMES
from predictors.configuration_training import RULES_DEPTH, train_configuration_model
from predictors.dataset import load_dataset
from predictors.dataset_folder import check_folder
from predictors.optimum import SearchSettings, find_optimum
from twin.errors import InputError
from twin.profile import load_profile

PROFILE = load_profile("llama-3.1-8b-h100-64gb")
# Short simulations and few slots: the twin's verdicts are rough, and that is enough to fit a model to.
SETTINGS = SearchSettings(num_seeds=1, horizon_s=20.0, warmup_s=2.0, most_adapters=200, slot_options=(1, 4, 16, 64))
POPULATIONS = 88


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of a few dozen labelled populations."""
    path = tmp_path_factory.mktemp("populations") / "set"
    sample_populations(PROFILE, populations=POPULATIONS, output=path, settings=SETTINGS, workers=1)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> ConfigurationModel:
    """Return a model fitted to them."""
    return train_configuration_model(folder, PROFILE, settings=SETTINGS)


def test_a_row_is_what_the_search_says(folder: Path) -> None:
    """Drawn again from its number, a population has the features and the best configuration of its row."""
    table, _ = load_dataset(folder, with_unstartable=True)
    row = table.iloc[3]
    number = int(row["scenario"])
    again = label_population(PROFILE, SETTINGS, number)
    assert (again["best_adapters_adapter"], again["best_slots_replica"]) == (
        row["best_adapters_adapter"],
        row["best_slots_replica"],
    )
    assert [again[name] for name in FEATURE_NAMES] == pytest.approx(row[list(FEATURE_NAMES)].tolist())
    population = draw_population(PROFILE, number, seed=SETTINGS.seed)
    best = find_optimum(population.adapters, population.replica, search_settings(SETTINGS, number)).best
    assert (0 if best is None else best.num_adapters) == row["best_adapters_adapter"]


def test_populations_cover_decades() -> None:
    """A GPU serves a handful of some, and hundreds of others; rates are above 0."""
    populations = [draw_population(PROFILE, number, seed=1) for number in range(40)]
    loads = [np.mean([adapter.rate_rps for adapter in population.adapters]) for population in populations]
    assert min(loads) > 0.0
    assert max(loads) > 100.0 * min(loads)
    assert len({population.family for population in populations}) > 3


def test_a_folder_is_continued_and_proven(folder: Path, tmp_path: Path) -> None:
    """Other settings are refused; `placer dataset --check` knows the folder; nothing is labelled twice."""
    assert check_folder(folder).problems == ()
    before = (folder / "manifest.json").read_bytes()
    sample_populations(PROFILE, populations=POPULATIONS, output=folder, settings=SETTINGS, workers=1)
    assert (folder / "manifest.json").read_bytes() == before
    with pytest.raises(InputError, match="has `seed` 0, and 1 was asked for"):
        sample_populations(PROFILE, populations=8, output=folder, settings=replace(SETTINGS, seed=1))
    with pytest.raises(InputError, match="`rows` must be at least 1"):
        sample_populations(PROFILE, populations=0, output=tmp_path / "none", settings=SETTINGS)


def test_populations_are_no_rows_for_a_surrogate(folder: Path) -> None:
    """A folder of configurations is refused where loads are expected."""
    with pytest.raises(InputError, match=f"holds {CONFIGURATION_FAMILY}"):
        load_dataset(folder)


def test_training_is_repeatable_and_says_how_well_it_does(model: ConfigurationModel, folder: Path) -> None:
    """Same folder, same seed, same model; errors of the model, the rules and arithmetic; margins grow with caution."""
    assert train_configuration_model(folder, PROFILE, settings=SETTINGS) == model
    for facts in model.training["fits"].values():
        assert set(facts["errors"]) == {"model", "rules", "arithmetic"}
        margins = facts["margins"]
        assert margins["0.5"] <= margins["0.2"] <= margins["0.1"] <= margins["0.05"]


def test_the_model_corrects_arithmetic_on_what_it_was_fitted_to(model: ConfigurationModel, folder: Path) -> None:
    """The ensemble is closer to the labels than the rules, and they are closer than arithmetic."""
    table, _ = load_dataset(folder, with_unstartable=True)
    served = table[table["best_adapters_replica"] > 0]
    features = served[list(FEATURE_NAMES)].to_numpy(dtype=np.float32).astype(np.float64)
    wanted = np.log(served["best_adapters_replica"].to_numpy() / served["arithmetic_adapters"].to_numpy())
    fit = model.fits["replica"]
    by_model = np.array([fit.ensembles[OUTPUT_NAMES[0]].predict(row) for row in features])
    by_rules = np.array([fit.rules.predict(row)[0] for row in features])
    errors = [float(np.mean((values - wanted) ** 2)) for values in (by_model, by_rules, np.zeros(len(wanted)))]
    assert errors == sorted(errors)


def test_the_rules_are_shallow(model: ConfigurationModel) -> None:
    """No path asks more than four questions."""
    rules = model.fits["adapter"].rules
    depth = {0: 0}
    for node in range(len(rules.feature)):
        if not rules.is_leaf(node):
            depth[rules.left[node]] = depth[rules.right[node]] = depth[node] + 1
    assert max(depth.values()) <= RULES_DEPTH


def test_a_model_of_another_profile_or_too_few_populations_is_refused(folder: Path, tmp_path: Path) -> None:
    """Both say what was found."""
    with pytest.raises(InputError, match="labelled with the profile"):
        train_configuration_model(folder, load_profile("qwen2.5-7b-h100-64gb"), settings=SETTINGS)
    few = tmp_path / "few"
    sample_populations(PROFILE, populations=8, output=few, settings=SETTINGS, workers=1)
    with pytest.raises(InputError, match="needs 60 populations"):
        train_configuration_model(few, PROFILE, settings=SETTINGS)
