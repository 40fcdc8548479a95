"""Every family of models: fitted to rows whose truth is known, and exported to what was fitted."""

import sys
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest

from predictors import neural_training
from predictors.contract import check_surrogate
from predictors.domain import Domain
from predictors.export import check_parity, export_model, predict
from predictors.families import FAMILIES, derive
from predictors.features import inflate
from predictors.fitted_model import FittedModel, Raw, RawNames
from predictors.neural import ITL, STARVATION
from predictors.neural_fit import fit_network
from predictors.neural_training import NeuralSettings
from predictors.onnx_graph import GraphBuilder
from predictors.onnx_surrogate import OnnxSurrogate
from predictors.risk import Calibration
from predictors.selection import draw_settings, score_of, search_family, split_scenarios
from predictors.surrogate import OUTPUT_NAMES
from predictors.surrogate_file import OPTIONAL_OUTPUT_NAMES
from predictors.targets import KinRows, TrainingRows, columns_to_fit
from tests.predictors.made_up_rows import NEEDS_TORCH, SMALL, known_rows
from twin.errors import SurrogateError
from twin.profile import PerformanceProfile, load_profile

FAMILY_CASES = [pytest.param("neural", marks=NEEDS_TORCH), "boosting", "forest", "tree"]


@pytest.fixture(scope="module")
def shipped() -> PerformanceProfile:
    """Return a shipped profile."""
    return load_profile("llama-3.1-8b-h100-64gb")


@pytest.mark.parametrize("name", FAMILY_CASES)
def test_a_family_learns_and_its_export_is_what_was_fitted(name: str, shipped: PerformanceProfile) -> None:
    """Better than the mean on rows it has not seen, and the same numbers from ONNX Runtime, one by one or together."""
    model = FAMILIES[name].fit(known_rows(), shipped, SMALL[name], seed=0, time_limit_s=1e9)
    test = known_rows(300, seed=9)
    expected = predict(model, Calibration(1.3, -0.1), test.features)
    error = np.abs(expected.throughput_ratio - test.ratio).mean()
    assert error < 0.5 * np.abs(test.ratio - test.ratio.mean()).mean()
    exported = export_model(
        model,
        Calibration(1.3, -0.1),
        profile=shipped,
        domain=Domain.from_rows(test.features),
        training={"rows": 1},
        producer={"test": "1"},
    )
    assert max(check_parity(exported, expected, test.features).values()) <= 0.005
    session = onnxruntime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == [*OUTPUT_NAMES, *OPTIONAL_OUTPUT_NAMES]
    (itl_mean_s,) = session.run(["itl_mean_s"], {"features": test.features})
    assert np.mean(np.abs(itl_mean_s / np.exp(model.raw(test.features).log_itl_mean) - 1.0) > 1e-3) <= 0.005
    single = np.concatenate([session.run(["itl_s"], {"features": row[np.newaxis]})[0] for row in test.features[:20]])
    assert single == pytest.approx(expected.itl_s[:20], rel=1e-3)


@pytest.mark.parametrize("name", FAMILY_CASES)
def test_the_file_of_a_family_is_a_surrogate(
    name: str, shipped: PerformanceProfile, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The contract that every surrogate keeps."""
    rows = known_rows(400)
    model = FAMILIES[name].fit(rows, shipped, SMALL[name], seed=0, time_limit_s=30.0)
    exported = export_model(
        model, Calibration(), profile=shipped, domain=Domain.from_rows(rows.features), training={}, producer={}
    )
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    path.write_bytes(exported.SerializeToString())
    check_surrogate(OnnxSurrogate.load(path))


@pytest.mark.parametrize("name", FAMILY_CASES)
def test_the_same_seed_gives_the_same_model(name: str, shipped: PerformanceProfile) -> None:
    """To the bit."""
    rows = known_rows(300)
    one, other = (FAMILIES[name].fit(rows, shipped, SMALL[name], seed=3, time_limit_s=1e9) for _ in range(2))
    assert np.array_equal(one.raw(rows.features).log_odds, other.raw(rows.features).log_odds)


@pytest.mark.parametrize("name", FAMILY_CASES)
def test_rows_of_kin_are_fitted_to_like_its_own(name: str, shipped: PerformanceProfile) -> None:
    """Labelled under the same profile they are nothing but more rows."""
    own, kin = known_rows(200), known_rows(150, seed=4)
    # Teachers are asked at loads that are drawn for each profile.
    settings = SMALL[name] | ({"teachers": 0} if name == "neural" else {})
    _, together = columns_to_fit(derive, own, shipped, [KinRows(kin, shipped)])
    apart = FAMILIES[name].fit(own, shipped, settings, kin=[KinRows(kin, shipped)], seed=0, time_limit_s=1e9)
    joined = FAMILIES[name].fit(together, shipped, settings, seed=0, time_limit_s=1e9)
    # Physics is computed for each profile, and matrix products round differently in batches of different sizes.
    np.testing.assert_allclose(apart.raw(own.features).ratio, joined.raw(own.features).ratio, atol=1e-3)
    alone = FAMILIES[name].fit(own, shipped, settings, seed=0, time_limit_s=1e9)
    assert np.abs(apart.raw(own.features).ratio - alone.raw(own.features).ratio).max() > 2e-3


@NEEDS_TORCH
def test_a_student_is_between_its_teachers(shipped: PerformanceProfile) -> None:
    """It says about what they say together, and is repeatable like any network."""
    rows, asked = known_rows(600), known_rows(200, seed=8)
    settings = NeuralSettings(widths=(16,), epochs=40, batch_rows=64, teachers=2, teacher_widths=(16,))
    student, again = (fit_network(rows, shipped, settings=settings) for _ in range(2))
    assert np.array_equal(student.raw(asked.features), again.raw(asked.features))
    teachers = [fit_network(rows, shipped, settings=replace(settings, teachers=0, seed=seed)) for seed in (0, 1)]
    together = np.mean([teacher.raw(asked.features) for teacher in teachers], axis=0)
    apart = np.abs(teachers[0].raw(asked.features) - teachers[1].raw(asked.features))[:, ITL].mean()
    assert np.abs(student.raw(asked.features) - together)[:, ITL].mean() < apart + 0.02


@NEEDS_TORCH
def test_rows_of_another_window_teach_what_the_window_changes(shipped: PerformanceProfile) -> None:
    """Measured twice as long, all latencies are twice as large: the network says what holds for its own window."""
    few, many, asked = known_rows(100), known_rows(1500, seed=4), known_rows(300, seed=8)
    longer = replace(many, log_itl=many.log_itl + np.log(2.0))
    # A few rows of the same sets in its own window say what the window does.
    settings = NeuralSettings(widths=(16,), epochs=60, batch_rows=64, teachers=1, teacher_widths=(24,))
    errors = {}
    for window in (1.0, 2.0):
        network = fit_network(few, shipped, kin=[KinRows(longer, shipped, window)], settings=settings)
        errors[window] = float(np.mean(network.raw(asked.features)[:, ITL] - asked.log_itl))
    assert errors[1.0] > 0.4
    assert abs(errors[2.0]) < 0.1


def test_trees_pass_over_rows_of_another_window(shipped: PerformanceProfile) -> None:
    """They do not see how long the window was."""
    own, other = known_rows(200), known_rows(150, seed=4)
    alone, beside = (
        FAMILIES["tree"].fit(own, shipped, SMALL["tree"], kin=kin, seed=0, time_limit_s=1e9)
        for kin in ([], [KinRows(other, shipped, 3.0)])
    )
    assert np.array_equal(alone.raw(own.features).ratio, beside.raw(own.features).ratio)


@NEEDS_TORCH
def test_a_student_is_kept_from_saying_that_more_load_helps(
    shipped: PerformanceProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels that are mere chance teach such nonsense; pairs of loads are there to stop it."""
    rows = known_rows(300)
    chance = np.random.default_rng(0)
    rows = replace(rows, starved_share=chance.integers(2, size=300).astype(np.float64))
    settings = NeuralSettings(**SMALL["neural"])

    def relief() -> float:
        network = fit_network(rows, shipped, settings=settings)
        log_odds = np.stack([network.raw(inflate(rows.features, factor))[:, STARVATION] for factor in (1.0, 1.3, 1.7)])
        return float(np.maximum(-np.diff(log_odds, axis=0), 0.0).mean())

    with_pairs = relief()
    monkeypatch.setattr(neural_training, "_PAIR_WEIGHT", 0.0)
    assert with_pairs < 0.5 * relief()


def test_kin_are_seen_under_their_own_profile(shipped: PerformanceProfile) -> None:
    """The same load takes another share of a second under other step times."""
    rows, other = known_rows(50), load_profile("qwen2.5-7b-h100-64gb")
    columns, together = columns_to_fit(derive, rows, shipped, [KinRows(rows, other)])
    assert len(columns) == len(together) == 100
    assert np.array_equal(columns[:50], derive(rows.features, shipped))
    assert np.array_equal(columns[50:], derive(rows.features, other))
    assert not np.array_equal(columns[:50], columns[50:])


def test_a_model_that_its_export_does_not_give_is_refused(shipped: PerformanceProfile) -> None:
    """Whatever the reason: a surrogate that is not what was judged must not be written."""
    model = FAMILIES["tree"].fit(known_rows(300), shipped, SMALL["tree"], seed=0, time_limit_s=1.0)
    rows = known_rows(300, seed=5)
    exported = export_model(
        model, Calibration(), profile=shipped, domain=Domain.from_rows(rows.features), training={}, producer={}
    )
    with pytest.raises(SurrogateError, match="must agree with the fitted one"):
        check_parity(exported, predict(model, Calibration(offset=1.0), rows.features), rows.features)


def test_networks_need_pytorch(shipped: PerformanceProfile, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the extra."""
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SurrogateError) as caught:
        FAMILIES["neural"].fit(known_rows(50), shipped, {}, seed=0, time_limit_s=1.0)
    assert "lora-placer[neural]" in str(caught.value.hint)


def test_a_search_keeps_its_best_trial_and_its_limits(shipped: PerformanceProfile) -> None:
    """No setting twice, as many trials as allowed, one at least however short the time."""
    family = FAMILIES["tree"]
    settings = list(draw_settings(family, seed=0))
    assert len({tuple(one.items()) for one in settings}) == len(settings) == 9
    assert settings[0] == {"max_depth": 10, "min_samples_leaf": 20}
    rows, validation = known_rows(600), known_rows(200, seed=1)
    found = search_family(family, rows, validation, shipped, seed=0, time_limit_s=100.0, max_trials=4)
    assert len(found.trials) == 4
    assert found.best.score == min(trial.score for trial in found.trials)
    raw = found.model.raw(validation.features)
    assert score_of(raw, found.calibration, validation) == pytest.approx(found.best.score)
    short = search_family(family, rows, validation, shipped, seed=0, time_limit_s=0.0, max_trials=4)
    assert len(short.trials) == 1


class _Constant:
    """A model that says the same of everything."""

    def raw(self, features: np.ndarray) -> Raw:
        count = len(features)
        return Raw(np.full(count, 0.8), *(np.zeros(count) for _ in range(4)))

    def add_to(self, builder: GraphBuilder, calibration: Calibration, *, features: str) -> RawNames:
        raise NotImplementedError


def test_packed_sets_count_as_much_as_all_others() -> None:
    """Ten rows near the border, one of them packed: its error is half of the score."""
    model: FittedModel = _Constant()
    rows = known_rows(10)
    rows = TrainingRows(
        **{
            **{name: getattr(rows, name) for name in rows.__dataclass_fields__},
            "completed_ratio": np.array([0.3] + [0.8] * 9),
            "starved_share": np.full(10, 0.5),
            "log_border": np.zeros(10),
            "family": np.array(["packed"] + ["zipf"] * 9),
        }
    )
    assert score_of(model.raw(rows.features), Calibration(), rows) == pytest.approx(0.5 * 0.5)


def test_scenarios_are_split_whole() -> None:
    """Rows of one scenario are alike: a model tested on them would be tested on what it has seen."""
    scenarios = np.repeat(np.arange(50), 12)
    parts = split_scenarios(scenarios, seed=0)
    assert np.array_equal(np.sum(parts, axis=0), np.ones(600))
    assert [len(np.unique(scenarios[part])) for part in parts] == [40, 5, 5]
    assert np.array_equal(parts[2], split_scenarios(scenarios, seed=0)[2])
