"""The settings of a replica as arguments of ``vllm serve``, and back.

The names are those of vLLM 0.32 (vllm/engine/arg_utils.py, vllm/entrypoints/launchers/cli_args.py) and of 0.8.5; a test
gives them to vLLM's own parser.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from twin.engine import EngineConfig
from twin.errors import InputError
from twin.measurement.preparation import ENGINE_ARGUMENTS

# Settings that are said or denied, those with a value, and those of either that vLLM 0.8.5 does not have.
_SWITCHES = ("enable_lora", "scheduler_reserve_full_isl", "async_scheduling")
_VALUES = tuple(name for name in ENGINE_ARGUMENTS if name not in _SWITCHES)
_NOT_IN_0_8_5 = frozenset({"watermark", "scheduler_reserve_full_isl", "async_scheduling"})
# Long, or short as `-O3`; `-1` is a value.
_OPTION = re.compile(r"--|-[A-Za-z]")
_OF_LORA = frozenset({"max_loras", "max_lora_rank", "max_cpu_loras"})
# The twin has no prefix caching: a server with it would be another one than the plan is about.
_PREFIX_CACHING = "--no-enable-prefix-caching"
# What an export writes itself, beside the settings.
_OWN = ("--model", "--served-model-name", "--host", "--port", "--lora-modules")


@dataclass(frozen=True)
class ServeArguments:
    """What a replica's arguments say.

    Attributes
    ----------
    model
        Path or id.
    engine
        Settings by name, as far as arguments have them.
    modules
        Path of each adapter, by name, in their order.
    others
        Arguments that are none of the plan's.
    """

    model: str
    engine: dict[str, Any]
    modules: dict[str, str]
    others: tuple[str, ...]


def carried_settings(engine: EngineConfig) -> frozenset[str]:
    """Return the settings that arguments of this engine's version of vLLM can say."""
    names = frozenset((*_VALUES, *_SWITCHES))
    if engine.vllm_version == "0.8.5":
        names -= _NOT_IN_0_8_5
    return names if engine.enable_lora else names - _OF_LORA


def engine_arguments(engine: EngineConfig) -> list[str]:
    """Return the settings as arguments; those that are ``None`` are left to vLLM."""
    carried = carried_settings(engine)
    arguments = []
    for name in _SWITCHES:
        if name in carried:
            is_on = bool(getattr(engine, name))
            arguments += [_flag(name)] if is_on else [] if name == "enable_lora" else [_flag(f"no_{name}")]
    for name in _VALUES:
        value = getattr(engine, name)
        if name in carried and value is not None:
            arguments += [_flag(name), str(value)]
    return [*arguments, _PREFIX_CACHING]


def module_arguments(modules: Mapping[str, str]) -> list[str]:
    """Return the adapters as ``--lora-modules`` in vLLM's JSON form, which takes any name."""
    if not modules:
        return []
    return ["--lora-modules", *(json.dumps({"name": name, "path": path}) for name, path in modules.items())]


def engine_environment(engine: EngineConfig) -> dict[str, str]:
    """Return the environment variables that decide which of vLLM's engines runs."""
    if engine.vllm_version == "0.8.5":
        return {"VLLM_USE_V1": "1"}
    return {"VLLM_USE_V2_MODEL_RUNNER": str(int(engine.use_v2_model_runner))}


def check_further(arguments: Sequence[str]) -> None:
    """Refuse further arguments that would change what the plan decides.

    Raises
    ------
    InputError
        When one of them is a setting of the plan, in any of its spellings, or no option.
    """
    refused = {_flag(name) for name in (*_VALUES, *_SWITCHES)} | {_flag(f"no_{name}") for name in _SWITCHES} | {*_OWN}
    for position, argument in enumerate(arguments):
        name = argument.partition("=")[0].replace("_", "-")
        is_short_form = name.startswith("--") and any(flag.startswith(name) and name != flag for flag in refused)
        if name in refused or is_short_form or (position == 0 and not name.startswith("-")) or "\0" in argument:
            raise InputError(
                f"further arguments of vLLM must be none of those that the plan decides. Got {argument!r}.",
                field="vllm_arguments",
                value=argument,
                hint="change the problem's `engine` and plan anew, or leave the argument out",
            )


def read_arguments(arguments: Sequence[str], *, where: str) -> ServeArguments:
    """Return what the arguments after ``vllm serve`` say.

    Raises
    ------
    InputError
        When there is no model, or a value is not what vLLM takes.
    """
    model, others = "", list[str]()
    engine: dict[str, Any] = {"enable_lora": False}
    modules: dict[str, str] = {}
    values = {_flag(name): name for name in _VALUES}
    switches = {_flag(name): (name, True) for name in _SWITCHES} | {
        _flag(f"no_{name}"): (name, False) for name in _SWITCHES
    }
    try:
        for option, given in _options(arguments):
            if option in {"", "--model"}:
                model = given[0]
            elif option in values:
                engine[values[option]] = json.loads(given[0])
            elif option in switches:
                name, is_on = switches[option]
                engine[name] = is_on
            elif option == "--lora-modules":
                modules |= dict(_module(item) for item in given)
            elif option not in (*_OWN, _PREFIX_CACHING):
                others += [option, *given]
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise InputError(
            f"arguments of `vllm serve` must be what vLLM takes. {where}: {error!r}.", file=where
        ) from error
    if not model:
        raise InputError(f"`vllm serve` must have a model. {where} has none.", file=where)
    return ServeArguments(model=model, engine=engine, modules=modules, others=tuple(others))


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each option with its values; values before the first option with an empty name."""
    option, given = "", list[str]()
    for argument in arguments:
        if not _OPTION.match(argument):
            given.append(argument)
            continue
        if option or given:
            yield option, given
        name, has_value, value = argument.partition("=")
        option, given = name.replace("_", "-"), [value] if has_value else []
    if option or given:
        yield option, given


def _module(item: str) -> tuple[str, str]:
    if "=" in item and "," not in item:
        name, _, path = item.partition("=")
        return name, path
    data = json.loads(item)
    return str(data["name"]), str(data["path"])


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
