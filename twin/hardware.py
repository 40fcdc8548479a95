"""GPU types and model architectures: the sizes from which memory and step time follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from twin.bounded_read import parse_json, read_bounded
from twin.errors import InputError

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}

# Architectures whose LoRA layers and KV layout follow the formulas in twin/memory.py, with the number of (vocab +
# hidden) rows that vLLM reserves per unit of rank for the embedding layers (reference: vllm/lora, checked to the byte
# for Llama and Qwen2).
SUPPORTED_ARCHITECTURES = {"LlamaForCausalLM": 2, "MistralForCausalLM": 2, "Qwen2ForCausalLM": 0}


# About a pebibyte: what is larger was given in another unit, and its bytes may not fit an int64.
MOST_GIB = 1e6
# Products of a few dimensions are bytes.
MOST_DIMENSION = 2**31 - 1


class GpuType(BaseModel):
    """A kind of GPU that can be rented.

    Attributes
    ----------
    name
        What plans call it.
    memory_gib
        Device memory that vLLM sees, in GiB.
    cost_per_hour
        Price of one GPU for one hour, in any currency, as long as it is the same for all types.
    profile
        Name of a shipped performance profile, or path of a profile JSON file; ``None``: chosen by model and GPU name.
    max_count
        Most GPUs of this type that a plan may use; ``None``: unlimited.
    cpu_memory_gib
        Memory of the host for the adapters of one GPU's replica, in GiB; ``None``: enough for all of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    memory_gib: float = Field(gt=0, le=MOST_GIB, allow_inf_nan=False)
    cost_per_hour: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    profile: str | None = None
    max_count: int | None = Field(default=None, ge=1)
    cpu_memory_gib: float | None = Field(default=None, gt=0, le=MOST_GIB, allow_inf_nan=False)


class ModelArchitecture(BaseModel):
    """The dimensions of a decoder-only model that decide its memory on a GPU.

    Attributes
    ----------
    name
        Shipped name, or the name given to a config.json.
    architecture
        Hugging Face class name, one of `SUPPORTED_ARCHITECTURES`.
    num_layers, hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim, vocab_size
        As in the model's config.json.
    max_model_len
        Longest sequence (prompt + output tokens) the model accepts.
    dtype
        Of weights, KV cache and adapters.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    architecture: str
    num_layers: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    num_kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    vocab_size: int = Field(gt=0)
    max_model_len: int = Field(gt=0)
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    dtype: str = "bfloat16"

    @property
    def dtype_bytes(self) -> int:
        """Bytes per element."""
        return DTYPE_BYTES[self.dtype]

    @property
    def query_size(self) -> int:
        """Width of the query projection: heads x head dimension."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of the key (or value) projection: KV heads x head dimension."""
        return self.num_kv_heads * self.head_dim

    @property
    def num_parameters(self) -> int:
        """Parameters of the base model (weights, norms, embeddings, attention biases where the family has them)."""
        hidden, inner, query, kv = self.hidden_size, self.intermediate_size, self.query_size, self.kv_size
        bias = query + 2 * kv if self.attention_bias else 0
        layer = hidden * (query + 2 * kv) + bias + query * hidden + 3 * hidden * inner + 2 * hidden
        embeddings = self.vocab_size * hidden * (1 if self.tie_word_embeddings else 2)
        return self.num_layers * layer + embeddings + hidden

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values per token over all layers."""
        return 2 * self.num_layers * self.kv_size * self.dtype_bytes

    @classmethod
    def from_config(cls, path: str | Path) -> ModelArchitecture:
        """Read a Hugging Face ``config.json`` (Llama, Mistral, Qwen2).

        Raises
        ------
        InputError
            When the file is missing, is not JSON, misses a field, or describes an architecture or quantised weights
            that the memory formulas do not cover.
        """
        source = Path(path)
        config = _read_json(source)
        names = config.get("architectures")
        architecture = str(names[0]) if isinstance(names, list) and names else "(none)"
        if architecture not in SUPPORTED_ARCHITECTURES:
            raise InputError(
                f"`architectures` must name one of {', '.join(SUPPORTED_ARCHITECTURES)}. "
                f"Got {architecture!r} ({source}).",
                file=str(source),
                field="architectures",
                value=architecture,
                hint="the memory and LoRA formulas are known for these families only",
            )
        _refuse_quantised(config, source)
        dtype = str(config.get("torch_dtype") or config.get("dtype") or "bfloat16")
        if dtype not in DTYPE_BYTES:
            raise InputError(
                f"`torch_dtype` must be one of {', '.join(DTYPE_BYTES)}. Got {dtype!r} ({source}).",
                file=str(source),
                field="torch_dtype",
                value=dtype,
                hint="the memory formulas do not cover quantised weights",
            )
        heads = _read_size(config, "num_attention_heads", source)
        hidden = _read_size(config, "hidden_size", source)
        return cls(
            name=source.parent.name or source.stem,
            architecture=architecture,
            num_layers=_read_size(config, "num_hidden_layers", source),
            hidden_size=hidden,
            intermediate_size=_read_size(config, "intermediate_size", source),
            num_heads=heads,
            num_kv_heads=_read_size(config, "num_key_value_heads", source, default=heads),
            head_dim=_read_size(config, "head_dim", source, default=hidden // heads),
            vocab_size=_read_size(config, "vocab_size", source),
            max_model_len=_read_size(config, "max_position_embeddings", source),
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            attention_bias=architecture == "Qwen2ForCausalLM" or bool(config.get("attention_bias", False)),
            dtype=dtype,
        )


def _refuse_quantised(config: dict[str, Any], source: Path) -> None:
    """Raise InputError for quantised weights; their `torch_dtype` is the one they are computed in."""
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise InputError(
            f"a model's weights must not be quantised: the memory formulas do not cover them. "
            f"Got {method!r} ({source}).",
            file=str(source),
            field="quantization_config",
            value=method,
            hint="give the config.json of the model that was quantised",
        )


def _read_size(config: dict[str, Any], field: str, source: Path, *, default: int | None = None) -> int:
    """Return a positive integer of a config.json, or `default` where the field is absent or null."""
    value = config.get(field)
    if value is None and default is not None:
        return default
    if value is None:
        raise InputError(
            f"a model's config.json must have the field `{field}`. It is missing in {source}.",
            file=str(source),
            field=field,
            hint="give the config.json that lies beside the model's weights",
        )
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= MOST_DIMENSION:
        raise InputError(
            f"`{field}` must be a positive integer of at most {MOST_DIMENSION:,}. Got {value!r} ({source}).",
            file=str(source),
            field=field,
            value=value,
            hint="give the config.json that lies beside the model's weights",
        )
    return value


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(read_bounded(path))
    except OSError as error:
        raise InputError(
            f"the model's config.json must be readable. {path}: {error.strerror}.", file=str(path)
        ) from error
    except ValueError as error:
        raise InputError(f"the model's config.json must be valid JSON. {path}: {error}.", file=str(path)) from error
    if not isinstance(content, dict):
        raise InputError(
            f"the model's config.json must hold an object. Got {type(content).__name__} ({path}).", file=str(path)
        )
    return content


SHIPPED_MODELS: dict[str, ModelArchitecture] = {
    "llama-3.1-8b": ModelArchitecture(
        name="llama-3.1-8b",
        architecture="LlamaForCausalLM",
        num_layers=32,
        hidden_size=4096,
        intermediate_size=14336,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        vocab_size=128256,
        max_model_len=131072,
    ),
    "qwen2.5-7b": ModelArchitecture(
        name="qwen2.5-7b",
        architecture="Qwen2ForCausalLM",
        num_layers=28,
        hidden_size=3584,
        intermediate_size=18944,
        num_heads=28,
        num_kv_heads=4,
        head_dim=128,
        vocab_size=152064,
        max_model_len=32768,
        attention_bias=True,
    ),
}


def load_model(name: str, *, base_directory: Path | None = None) -> ModelArchitecture:
    """Return a shipped model by name, or read the config.json at that path.

    Parameters
    ----------
    name
        ``llama-3.1-8b``, ``qwen2.5-7b``, or a path to a config.json or to the folder that holds it.
    base_directory
        Folder that relative paths start from; the current one by default.

    Raises
    ------
    InputError
        When the name is neither shipped nor a readable config.json.
    """
    if name in SHIPPED_MODELS:
        return SHIPPED_MODELS[name]
    path = (base_directory or Path()) / name
    if path.is_dir():
        path = path / "config.json"
    if not path.exists():
        raise InputError(
            f"`model` must be one of {', '.join(SHIPPED_MODELS)} or the path of a config.json. Got {name!r}.",
            field="model",
            value=name,
            hint="download the model's config.json and give its path",
        )
    return ModelArchitecture.from_config(path)
