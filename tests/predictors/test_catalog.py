"""Which surrogate is used, and what the shipped ones promise."""

import json
from pathlib import Path

import numpy as np
import pytest

from predictors.catalog import load_surrogate, shipped_surrogate
from predictors.contract import probe_features
from predictors.exact import ExactSurrogate
from predictors.features import FEATURE_SCHEMA, inflate
from predictors.onnx_surrogate import OnnxSurrogate
from predictors.provenance import profile_fingerprint
from predictors.surrogate import Surrogate
from tests.predictors.handmade import linear_model, save
from tests.predictors.populations import chat_adapters
from twin.engine import EngineConfig
from twin.errors import SurrogateError
from twin.hardware import GpuType, ModelArchitecture
from twin.profile import PerformanceProfile, load_profile, shipped_profiles
from twin.workload import Workload

SHIPPED = tuple(name for name in shipped_profiles() if shipped_surrogate(name) is not None)


@pytest.fixture
def parts(
    model: ModelArchitecture, gpu: GpuType, engine: EngineConfig, profile: PerformanceProfile
) -> dict[str, object]:
    """Return what a problem gives to the catalogue."""
    workload = Workload(adapters=chat_adapters(2, rate_rps=0.1))
    return {"workload": workload, "model": model, "gpu": gpu, "engine": engine, "profile": profile}


def load(choice: str, parts: dict[str, object], **changes: object) -> Surrogate:
    """Load a surrogate with some parts of the problem replaced."""
    return load_surrogate(choice, **{**parts, **changes})  # type: ignore[arg-type]


def test_the_llama_profile_has_a_surrogate() -> None:
    """The profile of the examples must not fall back on simulations."""
    assert "llama-3.1-8b-h100-64gb" in SHIPPED


def test_auto_takes_the_shipped_surrogate(parts: dict[str, object], profile: PerformanceProfile) -> None:
    """By default, planning is fast."""
    surrogate = load("auto", parts)
    assert isinstance(surrogate, OnnxSurrogate)
    assert surrogate.profile_name == profile.name


def test_auto_falls_back_on_the_twin(parts: dict[str, object], profile: PerformanceProfile) -> None:
    """A profile of the user's own has no shipped surrogate: exact, slower, right."""
    own = profile.model_copy(update={"name": "my-profile"})
    assert shipped_surrogate(own.name) is None
    assert isinstance(load("auto", parts, profile=own), ExactSurrogate)


def test_exact_is_the_twin(parts: dict[str, object]) -> None:
    """Asked for by name, also where a surrogate is shipped."""
    surrogate = load("exact", parts, horizon_s=33.0, warmup_s=3.0, seed=5)
    assert isinstance(surrogate, ExactSurrogate)
    assert (surrogate.horizon_s, surrogate.warmup_s, surrogate.seed) == (33.0, 3.0, 5)


def test_a_path_is_relative_to_the_problem(parts: dict[str, object], tmp_path: Path) -> None:
    """A file named in a problem lies beside it."""
    values = {
        "feature_schema": FEATURE_SCHEMA.as_json(),
        "domain": {"features": {name: [0.0, 1e6] for name in FEATURE_SCHEMA.names}, "ratios": []},
        "profile": {"name": "llama-3.1-8b-h100-64gb"},
        "training": {},
        "producer": {},
    }
    save(linear_model(), tmp_path / "mine.onnx", values)
    surrogate = load("mine.onnx", parts, base_directory=tmp_path)
    assert isinstance(surrogate, OnnxSurrogate)


def test_a_surrogate_of_another_profile_is_refused(parts: dict[str, object], tmp_path: Path) -> None:
    """Its numbers would be those of another GPU."""
    path = save(linear_model(), tmp_path / "other.onnx")
    with pytest.raises(SurrogateError) as caught:
        load(str(path), parts)
    assert (caught.value.field, caught.value.value) == ("profile", "handmade")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_surrogate_belongs_to_its_profile(name: str) -> None:
    """Whoever refits a profile has to retrain its surrogate: this is where it is noticed."""
    path = shipped_surrogate(name)
    assert path is not None
    surrogate = OnnxSurrogate.load(path)
    assert surrogate.profile_fingerprint == profile_fingerprint(load_profile(name))
    assert path.stat().st_size < 1_500_000


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_surrogate_knows_idle_from_hopeless(name: str) -> None:
    """A hundredth of a GPU's load is served, thirty times its load is not."""
    path = shipped_surrogate(name)
    assert path is not None
    surrogate = OnnxSurrogate.load(path)
    rows = probe_features(200, seed=3)
    tokens = rows[:, [FEATURE_SCHEMA.index("sum_prompt_tps"), FEATURE_SCHEMA.index("sum_output_tps")]].sum(axis=1)
    rows = rows[(tokens > 1000.0) & (tokens < 10_000.0)]
    assert len(rows) > 20
    light, heavy = surrogate.predict(inflate(rows, 0.02)), surrogate.predict(inflate(rows, 60.0))
    assert (light.starvation_probability < 0.5).all()
    assert (light.throughput_ratio > 0.9).all()
    assert (heavy.starvation_probability > 0.5).all()
    assert (heavy.throughput_ratio < 0.9).all()


@pytest.mark.parametrize("name", SHIPPED)
def test_the_card_of_a_shipped_surrogate_has_its_numbers(name: str) -> None:
    """The card and the metadata are written together; a card of another model would be a lie."""
    path = shipped_surrogate(name)
    assert path is not None
    training = json.loads(OnnxSurrogate.load(path).metadata["training"])
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    assert f"{training['rows']} rows of {training['scenarios']} sets of adapters" in card
    assert f"| 5% | {training['thresholds']['by_risk']['0.05']:.3g} |" in card
    assert f"{training['errors']['near_border']['starvation_f1']:.3f}" in card
    assert np.isfinite(list(training["errors"]["all"].values())).all()
