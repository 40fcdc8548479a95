"""Configuration models: what they say, how they are written and read, and which files are refused."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictors.configuration import ConfigurationModel, Tree, shipped_configuration_model
from predictors.configuration_features import FEATURE_NAMES, FEATURE_UNITS, FEATURE_WORDS, describe
from predictors.configuration_rules import number_text, path_lines, rule_lines
from predictors.scenarios import SLOT_GRID
from tests.predictors.configurations import handmade_model, rank_rules
from tests.predictors.populations import chat_adapters
from twin.engine import EngineConfig
from twin.errors import InputError, SurrogateError
from twin.hardware import GpuType, load_model
from twin.profile import load_profile, shipped_profiles
from twin.replica import Replica

PROFILE = load_profile("llama-3.1-8b-h100-64gb")


def _replica(rank: int = 8, *, memory_gib: float | None = None) -> Replica:
    engine = EngineConfig.model_validate({"max_num_seqs": 256, "max_lora_rank": rank, "max_model_len": 8192})
    gpu = GpuType(name=PROFILE.gpu, memory_gib=memory_gib or PROFILE.gpu_memory_gib)
    return Replica(load_model(PROFILE.model), gpu, engine, PROFILE)


def test_a_model_multiplies_what_arithmetic_says() -> None:
    """Adapters by a factor, slots by none; the rules halve the adapters and double the slots of a large rank."""
    adapters = chat_adapters(6, rate_rps=0.02, rank=16)
    prediction = handmade_model(PROFILE, adapters_factor=0.8).predict(adapters, _replica(16))
    capacity = prediction.capacity
    assert prediction.num_adapters == round(0.8 * capacity.num_adapters)
    assert prediction.max_loras == capacity.max_loras
    assert prediction.rule.num_adapters == round(0.5 * capacity.num_adapters)
    assert prediction.rule.max_loras == min(2 * capacity.max_loras, prediction.rule.num_adapters)
    assert prediction.rule.path == (0, 2)


@given(rate=st.floats(0.001, 3.0), count=st.integers(1, 30), factor=st.floats(0.2, 5.0))
def test_predictions_stay_in_range(rate: float, count: int, factor: float) -> None:
    """At least one adapter, at most as many as were tried, slots that start and none to spare."""
    prediction = handmade_model(PROFILE, adapters_factor=factor).predict(
        chat_adapters(count, rate_rps=rate), _replica()
    )
    assert 1 <= prediction.num_adapters <= 1_000
    assert 1 <= prediction.max_loras <= prediction.num_adapters
    assert prediction.max_loras in (*SLOT_GRID, prediction.num_adapters)


def test_the_law_counts_not_the_size_or_the_order() -> None:
    """Twice the same adapters, in another order, are the same population."""
    model = handmade_model(PROFILE)
    few = chat_adapters(5, rate_rps=0.1)
    many = tuple(adapter.model_copy(update={"name": f"again-{adapter.name}"}) for adapter in few) + few[::-1]
    first, second = model.predict(few, _replica()), model.predict(many, _replica())
    assert (first.num_adapters, first.max_loras) == (second.num_adapters, second.max_loras)
    assert first.features == pytest.approx(second.features, rel=1e-6)


def test_given_slots_are_kept() -> None:
    """A planner who fixes the slots is told how many adapters they serve."""
    prediction = handmade_model(PROFILE).predict(chat_adapters(5, rate_rps=1.0), _replica(), slot_options=(64,))
    assert prediction.max_loras == prediction.rule.max_loras == 64


def test_each_test_of_starvation_has_its_own_fit() -> None:
    """The papers' test rules out less."""
    model, adapters = handmade_model(PROFILE, adapters_factor=0.4), chat_adapters(5, rate_rps=0.2)
    strict, loose = (model.predict(adapters, _replica(), test=test) for test in ("adapter", "replica"))
    assert loose.num_adapters == pytest.approx(2 * strict.num_adapters, abs=1)


def test_features_are_named_and_described() -> None:
    """One value, unit and phrase per name; the values are those of the population."""
    assert len(FEATURE_NAMES) == len(FEATURE_UNITS) == len(FEATURE_WORDS)
    features = dict(
        zip(FEATURE_NAMES, describe(chat_adapters(5, rate_rps=0.2, rank=16), _replica(32)).features, strict=True)
    )
    assert features["adapter_rps"] == pytest.approx(0.2)
    assert features["adapter_tps"] == pytest.approx(0.2 * (features["prompt_tokens"] + features["output_tokens"]))
    assert (features["mean_rank"], features["max_lora_rank"]) == (16.0, 32.0)
    assert features["rate_variation"] == 0.0
    assert features["gap_variation"] == pytest.approx(1.0)


def test_a_gpu_that_does_not_start_is_an_input_error() -> None:
    """With one slot the weights do not fit: nothing can be predicted."""
    with pytest.raises(InputError, match="must start with 1 slot"):
        handmade_model(PROFILE).predict(chat_adapters(2, rate_rps=0.1), _replica(memory_gib=15.0))


def test_a_model_survives_its_file(tmp_path: Path) -> None:
    """What is read is what was written, byte for byte when written again."""
    model = handmade_model(PROFILE)
    first, second = tmp_path / "one.json", tmp_path / "two.json"
    model.save(first)
    read = ConfigurationModel.load(first)
    read.save(second)
    assert read == model
    assert first.read_bytes() == second.read_bytes()


# Node 0 is its own child.
ENDLESS = {
    "feature": [0, -1],
    "threshold": [1.0, 0.0],
    "left": [0, -1],
    "right": [1, -1],
    "value": [[0.0, 0.0], [0.0, 0.0]],
    "rows": [1, 1],
}


def _change(path: Path, change: dict[str, Any]) -> Path:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | change), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        pytest.param({"schema_version": 2}, "schema_version", id="version"),
        pytest.param({"fits": {}}, "one fit each", id="no fits"),
        pytest.param({"surprise": 1}, "surprise", id="unknown field"),
        pytest.param(
            {"features": {"version": 0, "names": [], "units": []}}, "features must be those of version", id="features"
        ),
        pytest.param(
            {"fits": {"adapter": {"ensembles": {}, "rules": ENDLESS}, "replica": {"ensembles": {}, "rules": ENDLESS}}},
            "children of node 0 must come after it",
            id="a tree without an end",
        ),
    ],
)
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, change: dict[str, Any], fragment: str) -> None:
    """With what is wrong, the file, and what to do."""
    path = tmp_path / "model.json"
    handmade_model(PROFILE).save(path)
    with pytest.raises(SurrogateError, match=fragment) as caught:
        ConfigurationModel.load(_change(path, change))
    assert caught.value.file == str(path)
    assert "placer train-configuration" in str(caught.value.hint)


def test_a_missing_or_damaged_file_is_refused(tmp_path: Path) -> None:
    """Both say which file."""
    with pytest.raises(SurrogateError, match="readable file"):
        ConfigurationModel.load(tmp_path / "none.json")
    broken = tmp_path / "broken.json"
    broken.write_text('{"schema_version": 1', encoding="utf-8")
    with pytest.raises(SurrogateError, match="must be a configuration model"):
        ConfigurationModel.load(broken)


def test_a_model_of_another_profile_is_refused() -> None:
    """By name and by numbers."""
    other = load_profile("qwen2.5-7b-h100-64gb")
    with pytest.raises(SurrogateError, match="made with the profile"):
        handmade_model(PROFILE).require_profile(other, file="model.json")
    refitted = PROFILE.model_copy(update={"gpu_memory_gib": 80.0})
    with pytest.raises(SurrogateError, match="made with the profile"):
        handmade_model(PROFILE).require_profile(refitted, file="model.json")
    handmade_model(PROFILE).require_profile(PROFILE, file="model.json")


def test_rules_are_printed_as_they_decide() -> None:
    """The whole tree, and the path of one population with its values."""
    rules = rank_rules()
    assert rule_lines(rules) == [
        "if rank of the slots <= 12.0:",
        "|   adapters = 1.00 x arithmetic, slots = 1.00 x arithmetic (4 populations)",
        "else, rank of the slots > 12.0:",
        "|   adapters = 0.50 x arithmetic, slots = 2.00 x arithmetic (2 populations)",
    ]
    features = np.zeros(len(FEATURE_NAMES))
    features[FEATURE_NAMES.index("max_lora_rank")] = 16.0
    assert path_lines(rules, rules.path(features), features) == [
        "rank of the slots = 16.0 > 12.0",
        "adapters = 0.50 x arithmetic, slots = 2.00 x arithmetic",
    ]


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.01234, "0.0123"), (1.0, "1.00"), (98.76, "98.8"), (12345.6, "12,346")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    """Enough to see on which side of a threshold they lie in nearly all cases."""
    assert number_text(value) == text


@st.composite
def _trees(draw: st.DrawFn) -> Tree:
    """Draw a complete tree of depth two over the first features."""
    feature = [draw(st.integers(0, len(FEATURE_NAMES) - 1)) for _ in range(3)] + [-1] * 4
    threshold = [draw(st.floats(-10, 10)) for _ in range(3)] + [0.0] * 4
    return Tree(
        feature=tuple(feature),
        threshold=tuple(threshold),
        left=(1, 3, 5, -1, -1, -1, -1),
        right=(2, 4, 6, -1, -1, -1, -1),
        value=tuple((float(node),) for node in range(7)),
        rows=(7,) * 7,
    )


@given(_trees(), st.lists(st.floats(-10, 10), min_size=len(FEATURE_NAMES), max_size=len(FEATURE_NAMES)))
def test_a_path_follows_every_condition(tree: Tree, values: list[float]) -> None:
    """From the root to a leaf, left exactly where the feature is not above the threshold."""
    features = np.array(values)
    path = tree.path(features)
    assert path[0] == 0
    assert tree.is_leaf(path[-1])
    for node, child in itertools.pairwise(path):
        assert (child == tree.left[node]) == (features[tree.feature[node]] <= tree.threshold[node])
    assert tree.predict(features) == (float(path[-1]),)


@pytest.mark.parametrize("name", shipped_profiles())
def test_the_shipped_models_are_those_of_the_shipped_profiles(name: str) -> None:
    """Readable, made with these very numbers, and small."""
    path = shipped_configuration_model(name)
    assert path is not None
    ConfigurationModel.load(path).require_profile(load_profile(name), file=str(path))
    assert path.stat().st_size < 500_000
