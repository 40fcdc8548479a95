"""Make a tiny random Llama and random adapters: something real to serve where there is no GPU and no network.

Needs the extra ``measure`` (safetensors); PyTorch is not needed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twin.engine import SUPPORTED_RANKS
from twin.errors import InputError, TwinError

MODEL_FOLDER = "model"
ADAPTER_FOLDER = "adapters"
WORKLOAD_FILE = "workload.yaml"
WEIGHTS_FILE = "model.safetensors"
# The first line of the workload file, by which a demo is known.
HEADING = "# A tiny random model and random adapters: what they say has no meaning, how long it takes has."

NUM_LAYERS = 3
HIDDEN_SIZE = 128
INTERMEDIATE_SIZE = 256
NUM_HEADS = 4
NUM_KV_HEADS = 2
HEAD_DIM = HIDDEN_SIZE // NUM_HEADS
VOCAB_SIZE = 512
MAX_MODEL_LEN = 2048
UNKNOWN, BEGIN, END = 0, 1, 2
# Small enough that random layers neither blow up nor vanish.
WEIGHT_SCALE = 0.02

# Output and input width of each linear layer of a block, by the name that checkpoints give it.
LINEAR_LAYERS = {
    "self_attn.q_proj": (NUM_HEADS * HEAD_DIM, HIDDEN_SIZE),
    "self_attn.k_proj": (NUM_KV_HEADS * HEAD_DIM, HIDDEN_SIZE),
    "self_attn.v_proj": (NUM_KV_HEADS * HEAD_DIM, HIDDEN_SIZE),
    "self_attn.o_proj": (HIDDEN_SIZE, NUM_HEADS * HEAD_DIM),
    "mlp.gate_proj": (INTERMEDIATE_SIZE, HIDDEN_SIZE),
    "mlp.up_proj": (INTERMEDIATE_SIZE, HIDDEN_SIZE),
    "mlp.down_proj": (HIDDEN_SIZE, INTERMEDIATE_SIZE),
}

# vLLM would serve float32 as another type, and NumPy has no bfloat16.
Weights = dict[str, NDArray[np.float16]]


def make_demo(folder: Path, *, num_adapters: int, ranks: Sequence[int], rate_rps: float, seed: int) -> tuple[str, ...]:
    """Write ``model``, ``adapters/NAME`` and ``workload.yaml`` into a folder, and return the names of the adapters.

    The same arguments give the same bytes.

    Parameters
    ----------
    folder
        New or empty.
    num_adapters
        At least 1.
    ranks
        Given to the adapters in turn; of vLLM's.
    rate_rps
        Requests per second of all adapters together, in the workload file; > 0.
    seed
        Of the weights, >= 0.

    Raises
    ------
    InputError
        When an argument cannot be used, or the folder is not empty or not writable.
    TwinError
        When safetensors is not installed.
    """
    _require_ranks(ranks)
    names = tuple(f"demo-{index:03d}" for index in range(num_adapters))
    dealt = [ranks[index % len(ranks)] for index in range(num_adapters)]
    generators = np.random.default_rng(seed).spawn(num_adapters + 1)
    try:
        if folder.exists() and any(folder.iterdir()):
            raise InputError(
                f"a demo must be made in a new or an empty folder. {folder} holds files.",
                file=str(folder),
                field="demo",
                hint="give another folder, or empty this one",
            )
        _write_model(folder / MODEL_FOLDER, generators[0])
        for name, rank, generator in zip(names, dealt, generators[1:], strict=True):
            _write_adapter(folder / ADAPTER_FOLDER / name, rank, generator)
        _write_text(folder / WORKLOAD_FILE, _workload_text(names, dealt, rate_rps))
    except OSError as error:
        raise InputError(
            f"a demo must be made in a folder that can be written. {folder}: {error.strerror}.",
            file=str(folder),
            field="demo",
            hint="give another folder",
        ) from error
    return names


def is_demo(folder: Path) -> bool:
    """Return whether `make_demo` made a folder, whatever else has come into it since."""
    try:
        # It is written last: where it is, the adapters are.
        text = (folder / WORKLOAD_FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return text.startswith(HEADING) and (folder / MODEL_FOLDER / WEIGHTS_FILE).is_file()


def _require_ranks(ranks: Sequence[int]) -> None:
    for rank in ranks:
        if rank not in SUPPORTED_RANKS:
            raise InputError(
                f"`ranks` must be of {', '.join(map(str, SUPPORTED_RANKS))}. Got {rank}.", field="ranks", value=rank
            )


def _write_model(folder: Path, generator: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    _write_json(folder / "config.json", _model_config())
    _write_json(folder / "generation_config.json", {"bos_token_id": BEGIN, "eos_token_id": END})
    _write_json(folder / "tokenizer.json", _tokenizer())
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "<unk>",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "model_max_length": MAX_MODEL_LEN,
        },
    )
    _save_weights(_model_weights(generator), folder / WEIGHTS_FILE)


def _write_adapter(folder: Path, rank: int, generator: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(name.partition(".")[2] for name in LINEAR_LAYERS),
        "base_model_name_or_path": f"../../{MODEL_FOLDER}",
    }
    _write_json(folder / "adapter_config.json", config)
    weights: Weights = {}
    for layer in range(NUM_LAYERS):
        for name, (width_out, width_in) in LINEAR_LAYERS.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            weights[f"{prefix}.lora_A.weight"] = _random(generator, rank, width_in)
            weights[f"{prefix}.lora_B.weight"] = _random(generator, width_out, rank)
    _save_weights(weights, folder / "adapter_model.safetensors")


def _model_config() -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": INTERMEDIATE_SIZE,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": NUM_HEADS,
        "num_key_value_heads": NUM_KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": MAX_MODEL_LEN,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": BEGIN,
        "eos_token_id": END,
        "torch_dtype": "float16",
    }


def _model_weights(generator: np.random.Generator) -> Weights:
    ones = np.ones(HIDDEN_SIZE, dtype=np.float16)
    weights: Weights = {
        "model.embed_tokens.weight": _random(generator, VOCAB_SIZE, HIDDEN_SIZE),
        "model.norm.weight": ones,
        "lm_head.weight": _random(generator, VOCAB_SIZE, HIDDEN_SIZE),
    }
    for layer in range(NUM_LAYERS):
        prefix = f"model.layers.{layer}"
        weights[f"{prefix}.input_layernorm.weight"] = ones
        weights[f"{prefix}.post_attention_layernorm.weight"] = ones
        for name, (width_out, width_in) in LINEAR_LAYERS.items():
            weights[f"{prefix}.{name}.weight"] = _random(generator, width_out, width_in)
    return weights


def _random(generator: np.random.Generator, *shape: int) -> NDArray[np.float16]:
    return (generator.standard_normal(shape, dtype=np.float32) * np.float32(WEIGHT_SCALE)).astype(np.float16)


def _tokenizer() -> dict[str, Any]:
    """Return a tokenizer of one word per token (``t7``), so that every token has a text of its own."""
    special = ["<unk>", "<s>", "</s>"]
    words = [*special, *(f"t{index}" for index in range(len(special), VOCAB_SIZE))]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "added_tokens": [{"id": index, "content": word, **flags} for index, word in enumerate(special)],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {word: index for index, word in enumerate(words)},
            "unk_token": special[UNKNOWN],
        },
    }


def _workload_text(names: Sequence[str], ranks: Sequence[int], rate_rps: float) -> str:
    """Return a problem-like file: skewed rates, and settings with which slots and queue are exercised."""
    weights = 1.0 / np.arange(1, len(names) + 1)
    rates = rate_rps * weights / weights.sum()
    settings = "max_num_seqs: 32, max_num_batched_tokens: 512, gpu_memory_utilization: 0.1"
    lines = [
        HEADING,
        "schema_version: 1",
        f"model: {MODEL_FOLDER}",
        f"engine: {{max_loras: {min(len(names), 4)}, max_lora_rank: {max(ranks)}, max_model_len: {MAX_MODEL_LEN},",
        f"         {settings}}}",
        "adapters:",
    ]
    lengths = "prompt_tokens: {mean: 48, std: 24, max: 256}, output_tokens: {mean: 24, std: 12, max: 128}"
    lines += [
        f"  - {{name: {name}, rank: {rank}, rate_rps: {rate:.4f}, {lengths}}}"
        for name, rank, rate in zip(names, ranks, rates, strict=True)
    ]
    return "\n".join(lines) + "\n"


def _save_weights(weights: Weights, path: Path) -> None:
    try:
        from safetensors.numpy import save_file  # noqa: PLC0415 - an optional library, needed for a demo only
    except ImportError as error:
        raise TwinError(
            "safetensors must be installed to make a demo model. It is not.",
            field="safetensors",
            hint="install the extra: pip install 'lora-placer[measure]'",
        ) from error
    save_file(weights, path, metadata={"format": "pt"})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    _write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


def _write_text(path: Path, content: str) -> None:
    path.write_text(content, encoding="utf-8")
