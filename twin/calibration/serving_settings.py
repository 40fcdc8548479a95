"""What metrics and benchmark results do not say about a server: its engine's settings and its adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from twin.engine import SUPPORTED_RANKS, EngineConfig
from twin.errors import InputError

# Where the settings may stand, for messages.
WHERE = "a YAML file with `engine:` and `adapters:`, such as a workload file, by --settings or as settings.yaml beside"

MOST_ADAPTERS = 1_000_000


@dataclass(frozen=True)
class ServingSettings:
    """What is known of a server besides its measurements.

    Attributes
    ----------
    engine
        Its settings; those that are not in `given` are defaults of `EngineConfig`.
    given
        Names of the settings that somebody stated.
    shares
        Shares of the adapters in the requests; empty: unknown. They add up to 1.
    ranks
        Of the adapters, as many as `shares`; empty: unknown.
    file
        Where it stands; ``None``: nowhere.
    """

    engine: EngineConfig = field(default_factory=EngineConfig)
    given: frozenset[str] = frozenset()
    shares: tuple[float, ...] = ()
    ranks: tuple[int, ...] = ()
    file: str | None = None

    @property
    def has_no_lora(self) -> bool:
        """Whether it is stated that the server has no LoRA."""
        return "enable_lora" in self.given and not self.engine.enable_lora

    def require(self, *names: str, why: str) -> None:
        """Raise InputError unless the settings are given."""
        for name in names:
            if name not in self.given:
                raise InputError(
                    f"`{name}` of the server must be given, because {why}. "
                    f"{self.file or 'No file of settings'} {'does not have it' if self.file else 'was given'}.",
                    file=self.file,
                    field=f"engine.{name}",
                    hint=f"give {WHERE} the measurements",
                )

    def updated(self, changes: Mapping[str, Any], *, file: str) -> ServingSettings:
        """Return the settings with values that a measurement's own file states (InputError for a bad value)."""
        known = {name: value for name, value in changes.items() if name in EngineConfig.model_fields}
        if not known:
            return self
        stated = {name: getattr(self.engine, name) for name in self.given}
        return replace(
            self, engine=parse_engine({**stated, **known}, file=file), given=self.given | frozenset(known), file=file
        )


def parse_settings(content: object, *, file: str) -> ServingSettings:
    """Return the settings that plain values state: `engine`, and `adapters`, a number or a list.

    Other keys are those of a workload file and not read. Entries of the list have `rank` and `rate_rps`.

    Raises
    ------
    InputError
        When neither is there, or a value cannot be used.
    """
    if not isinstance(content, dict) or not ({"engine", "adapters"} & set(content)):
        raise InputError(
            f"a file of settings must have `engine` or `adapters`. {file} has neither.",
            file=file,
            field="engine",
            hint="write the `engine` section of a workload file into it, such as `engine: {max_loras: 8}`",
        )
    engine = content.get("engine") or {}
    if not isinstance(engine, dict):
        raise InputError(
            f"`engine` must hold settings by name. Got {engine!r} ({file}).", file=file, field="engine", value=engine
        )
    shares, ranks = _parse_adapters(content.get("adapters"), file)
    given = {str(name): value for name, value in engine.items()}
    return ServingSettings(parse_engine(given, file=file), frozenset(given), shares, ranks, file)


def parse_engine(values: Mapping[str, Any], *, file: str) -> EngineConfig:
    """Return an engine's settings (InputError with file, field and value)."""
    try:
        return EngineConfig.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(("engine", *(str(part) for part in first["loc"])))
        value = None if first["type"] == "missing" else first.get("input")
        raise InputError(
            f"the server's settings must be vLLM's. `{name}`: {str(first['msg']).removeprefix('Value error, ')}. "
            f"Got {value!r} ({file}).",
            file=file,
            field=name,
            value=value,
            hint="correct the setting; the names are those of `vllm serve`",
        ) from error


def expected_adapters(shares: Sequence[float], num_requests: float) -> float:
    """Return how many distinct adapters so many requests have in the mean, if they are drawn independently."""
    missing: NDArray[np.float64] = (1.0 - np.asarray(shares, dtype=np.float64)) ** max(num_requests, 0.0)
    return float((1.0 - missing).sum())


def _parse_adapters(content: object, file: str) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Return shares and ranks; no ranks where only a number is given."""
    if content is None:
        return (), ()
    if isinstance(content, int) and not isinstance(content, bool) and 1 <= content <= MOST_ADAPTERS:
        return (1.0 / content,) * content, ()
    if not isinstance(content, list) or not content:
        raise InputError(
            f"`adapters` must be how many there are, up to {MOST_ADAPTERS:,}, or a list of them with `rank` and "
            f"`rate_rps`. Got {content!r} ({file}).",
            file=file,
            field="adapters",
            value=content,
            hint="write `adapters: 16`, or take the list of a workload file",
        )
    entries = [entry if isinstance(entry, dict) else {} for entry in content]
    rates = [_number(entry, "rate_rps", index, file) for index, entry in enumerate(entries)]
    ranks = [int(_number(entry, "rank", index, file)) for index, entry in enumerate(entries)]
    for index, rank in enumerate(ranks):
        if rank not in SUPPORTED_RANKS:
            raise _bad_entry("rank", index, rank, file, f"must be one of {', '.join(map(str, SUPPORTED_RANKS))}")
    total = sum(rates)
    if total <= 0:
        raise _bad_entry("rate_rps", 0, rates[0], file, "must be greater than 0 for some adapter")
    return tuple(rate / total for rate in rates), tuple(ranks)


def _number(entry: Mapping[str, Any], name: str, index: int, file: str) -> float:
    value = entry.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value) or value < 0:
        raise _bad_entry(name, index, value, file, "must be a number of at least 0")
    return float(value)


def _bad_entry(name: str, index: int, value: object, file: str, demand: str) -> InputError:
    return InputError(
        f"`{name}` {demand}. Got {value!r} (adapters.{index}, {file}).",
        file=file,
        field=f"adapters.{index}.{name}",
        value=value,
        hint="correct the entry, or write how many adapters there are: `adapters: 16`",
    )
