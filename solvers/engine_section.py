"""The `engine` of a problem file: vLLM's arguments, of which `max_num_seqs` may be left to the planner."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field, model_validator

from twin.engine import EngineConfig

AUTO = "auto"
# What `auto` stands for, as far as a step has the tokens for so many sequences: powers of two from where a GPU is badly
# used to where its KV cache ends first. The shipped surrogates were fitted on these values.
AUTOMATIC_MAX_NUM_SEQS = (32, 64, 128, 256, 512, 1024, 2048)
_DEFAULTS = EngineConfig.model_fields


def _schema_of_options(schema: dict[str, Any]) -> None:
    """Say in a JSON Schema which values a file may give; what is made of them is no field of the file."""
    properties = schema["properties"]
    options = properties.pop("max_num_seqs_options")
    properties["max_num_seqs"] = {
        "anyOf": [
            {"minimum": 1, "type": "integer"},
            {"const": AUTO, "type": "string"},
            {"items": {"minimum": 1, "type": "integer"}, "minItems": 1, "type": "array", "uniqueItems": True},
        ],
        "default": _DEFAULTS["max_num_seqs"].default,
        "description": options["description"],
        "title": "Max Num Seqs",
    }


class EngineSection(EngineConfig):
    """vLLM's arguments as a problem file gives them.

    Attributes
    ----------
    max_num_seqs_options
        Ascending values of `max_num_seqs` to choose from; empty: it is given. A file writes them as `max_num_seqs`:
        ``auto`` for those of `AUTOMATIC_MAX_NUM_SEQS` that `max_num_batched_tokens` allows, or a list. `max_num_seqs`
        itself, which counts until one is chosen, is then vLLM's default if it is one of them, else the largest below
        that, else the smallest.
    """

    model_config = ConfigDict(json_schema_extra=_schema_of_options)

    max_num_seqs_options: tuple[int, ...] = Field(
        default=(), description="A number; auto, or a list of numbers: the planner chooses one of them for every GPU."
    )

    @model_validator(mode="before")
    @classmethod
    def _read_options(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if "max_num_seqs_options" in data:
            raise ValueError("`max_num_seqs_options` is no field of a file. Give the options as `max_num_seqs`.")
        given = data.get("max_num_seqs")
        if isinstance(given, str) and given == AUTO:
            options = _automatic(data)
        elif isinstance(given, list | tuple):
            options = _listed(given)
        else:
            return data
        default = _DEFAULTS["max_num_seqs"].default
        first = max((value for value in options if value <= default), default=options[0])
        return {**data, "max_num_seqs": first, "max_num_seqs_options": options}

    @model_validator(mode="after")
    def _check_options(self) -> EngineSection:
        if self.max_num_seqs_options and self.max_num_seqs_options[-1] > self.max_num_batched_tokens:
            raise ValueError(
                f"`max_num_seqs` must be at most `max_num_batched_tokens` ({self.max_num_batched_tokens}), as vLLM "
                f"demands. Got {self.max_num_seqs_options[-1]} in the list. Raise the one or leave out the other."
            )
        return self

    def template(self) -> EngineConfig:
        """Return the settings without the options."""
        return EngineConfig(**self.model_dump(exclude={"max_num_seqs_options"}))


def _automatic(data: dict[str, Any]) -> tuple[int, ...]:
    """Return what `auto` stands for; the smallest also where no step has the tokens: the check of both refuses it."""
    tokens = data.get("max_num_batched_tokens", _DEFAULTS["max_num_batched_tokens"].default)
    most = tokens if isinstance(tokens, int) else AUTOMATIC_MAX_NUM_SEQS[-1]
    return tuple(value for value in AUTOMATIC_MAX_NUM_SEQS if value <= most) or (max(1, most),)


def _listed(given: list[Any] | tuple[Any, ...]) -> tuple[int, ...]:
    for value in given:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(
                f"`max_num_seqs` must be a whole number of at least 1, {AUTO}, or a list of such numbers. Got a list "
                f"with {value!r}."
            )
    if not given or len(set(given)) < len(given):
        raise ValueError(f"`max_num_seqs` must list at least one number, and each once. Got {list(given)}.")
    return tuple(sorted(given))
