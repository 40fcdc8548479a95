"""Model dimensions: read from config.json files, and what follows from them."""

import json
from pathlib import Path
from typing import Any

import pytest

from twin.errors import InputError
from twin.hardware import SHIPPED_MODELS, ModelArchitecture, load_model

LLAMA_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "rope_theta": 500000.0,
}
QWEN_CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "num_hidden_layers": 28,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
# Mistral-7B-v0.1 names no torch_dtype here and has null where a value follows from others.
MISTRAL_CONFIG: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": None,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
}


def write_config(folder: Path, config: dict[str, Any]) -> Path:
    """Write a config.json into a model's folder and return its path."""
    folder.mkdir(exist_ok=True)
    path = folder / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


@pytest.mark.parametrize(("name", "config"), [("llama-3.1-8b", LLAMA_CONFIG), ("qwen2.5-7b", QWEN_CONFIG)])
def test_config_of_a_shipped_model_equals_the_shipped_dimensions(
    tmp_path: Path, name: str, config: dict[str, Any]
) -> None:
    """The shipped dimensions are those of the published config.json files."""
    path = write_config(tmp_path / name, config)
    assert ModelArchitecture.from_config(path) == SHIPPED_MODELS[name]


def test_mistral_has_the_published_number_of_parameters(tmp_path: Path) -> None:
    """Mistral-7B-v0.1 has 7,241,732,096 parameters; head_dim follows from the others when it is null."""
    model = ModelArchitecture.from_config(write_config(tmp_path / "mistral-7b", MISTRAL_CONFIG))
    assert model.num_parameters == 7_241_732_096
    assert model.head_dim == 128
    assert model.dtype == "bfloat16"


@pytest.mark.parametrize(("name", "parameters"), [("llama-3.1-8b", 8_030_261_248), ("qwen2.5-7b", 7_615_616_512)])
def test_shipped_models_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    """Parameter counts are those on the models' cards, to the last one."""
    assert SHIPPED_MODELS[name].num_parameters == parameters


def test_tied_embeddings_are_counted_once(tmp_path: Path) -> None:
    """A tied LM head shares the embedding's weights."""
    untied = ModelArchitecture.from_config(write_config(tmp_path / "a", QWEN_CONFIG))
    tied = ModelArchitecture.from_config(write_config(tmp_path / "b", QWEN_CONFIG | {"tie_word_embeddings": True}))
    assert untied.num_parameters - tied.num_parameters == 152064 * 3584


def test_missing_kv_heads_mean_one_per_head(tmp_path: Path) -> None:
    """Old Llama configs have no grouped-query attention and no `num_key_value_heads`."""
    config = {key: value for key, value in LLAMA_CONFIG.items() if key != "num_key_value_heads"}
    model = ModelArchitecture.from_config(write_config(tmp_path / "old", config))
    assert model.num_kv_heads == 32


def test_load_model_reads_a_folder_or_a_file_relative_to_the_base_directory(tmp_path: Path) -> None:
    """A path may name the config.json or the folder that holds it, and starts at the problem file's folder."""
    write_config(tmp_path / "mine", LLAMA_CONFIG)
    by_folder = load_model("mine", base_directory=tmp_path)
    by_file = load_model("mine/config.json", base_directory=tmp_path)
    assert by_folder == by_file
    assert by_folder.name == "mine"


def test_load_model_prefers_the_shipped_name() -> None:
    """A shipped name needs no file."""
    assert load_model("qwen2.5-7b") == SHIPPED_MODELS["qwen2.5-7b"]


def test_unknown_model_is_refused_with_the_shipped_names() -> None:
    """The message lists what could have been meant."""
    with pytest.raises(InputError, match=r"llama-3\.1-8b, qwen2\.5-7b.*Got 'llama-4'") as caught:
        load_model("llama-4")
    assert caught.value.field == "model"
    assert caught.value.value == "llama-4"


def test_unsupported_architecture_is_refused(tmp_path: Path) -> None:
    """Formulas that do not hold for a family are not applied to it."""
    path = write_config(tmp_path / "moe", LLAMA_CONFIG | {"architectures": ["MixtralForCausalLM"]})
    with pytest.raises(InputError, match="Got 'MixtralForCausalLM'") as caught:
        ModelArchitecture.from_config(path)
    assert (caught.value.field, caught.value.file) == ("architectures", str(path))


@pytest.mark.parametrize(
    "field", ["num_attention_heads", "hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings"]
)
def test_missing_field_is_named(tmp_path: Path, field: str) -> None:
    """The message and the attribute name the field that is missing."""
    path = write_config(tmp_path / "broken", {key: value for key, value in LLAMA_CONFIG.items() if key != field})
    with pytest.raises(InputError, match=f"must have the field `{field}`") as caught:
        ModelArchitecture.from_config(path)
    assert caught.value.field == field


@pytest.mark.parametrize("value", [0, -32, "32", 32.5, True])
def test_size_that_is_no_positive_integer_is_refused(tmp_path: Path, value: object) -> None:
    """A dimension is a positive integer; nothing else is converted silently."""
    path = write_config(tmp_path / "broken", LLAMA_CONFIG | {"num_hidden_layers": value})
    with pytest.raises(InputError, match="`num_hidden_layers` must be a positive integer") as caught:
        ModelArchitecture.from_config(path)
    assert caught.value.value == value


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    """The number of bytes per weight is known for three types only."""
    path = write_config(tmp_path / "quantised", LLAMA_CONFIG | {"torch_dtype": "float8_e4m3fn"})
    with pytest.raises(InputError, match="Got 'float8_e4m3fn'") as caught:
        ModelArchitecture.from_config(path)
    assert caught.value.field == "torch_dtype"


def test_weights_quantised_beside_their_dtype_are_refused(tmp_path: Path) -> None:
    """GPTQ, AWQ and FP8 checkpoints name the dtype they compute in: by it their weights would count several times."""
    quantised = {"torch_dtype": "float16", "quantization_config": {"quant_method": "awq", "bits": 4}}
    path = write_config(tmp_path / "quantised", LLAMA_CONFIG | quantised)
    with pytest.raises(InputError, match="Got 'awq'") as caught:
        ModelArchitecture.from_config(path)
    assert caught.value.field == "quantization_config"


@pytest.mark.parametrize(("text", "message"), [("{", "valid JSON"), ("[1]", "must hold an object. Got list")])
def test_config_that_is_no_json_object_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """A truncated download, or another file of that name."""
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        load_model(str(path))
    assert caught.value.file == str(path)


def test_unreadable_config_is_refused(tmp_path: Path) -> None:
    """A path that is a folder cannot be read as a file."""
    folder = tmp_path / "config.json"
    folder.mkdir()
    with pytest.raises(InputError, match="must be readable"):
        ModelArchitecture.from_config(folder)
