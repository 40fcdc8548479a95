"""What was observed, as a document: the rates with how they are known, and what could not be known."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from placer.observing.evidence import SourceKind

RateSource = Literal["counted", "presence", "shares of the problem", "not seen", "problem"]
LengthSource = Literal["own requests", "all requests", "problem", "problem, scaled to all requests"]
RankSource = Literal["problem", "adapter_config.json", "--rank"]


class _Document(BaseModel):
    """Part of the document: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ObservedSource(_Document):
    """What was read.

    Attributes
    ----------
    kind, names
        Of the source, and its files or addresses.
    begin_s, window_s
        Unix seconds of the start (``None``: no clock), and seconds that were watched.
    num_requests
        In the window.
    """

    kind: SourceKind
    names: tuple[str, ...]
    begin_s: float | None
    window_s: float
    num_requests: float


class ObservedAdapter(_Document):
    """An adapter as it was observed.

    Attributes
    ----------
    rate_rps, low_rps, high_rps
        Requests per second, and a 95 % interval by chance alone, in which the rate was in the window.
    num_requests
        Behind the rate.
    rate_from, lengths_from, rank_from
        How each is known.
    prompt_tokens, output_tokens
        Mean lengths.
    before_rps
        Rate in the problem that was given; ``None``: it is not in it.
    """

    name: str
    rank: int
    rate_rps: float
    low_rps: float
    high_rps: float
    num_requests: float
    prompt_tokens: float
    output_tokens: float
    rate_from: RateSource
    lengths_from: LengthSource
    rank_from: RankSource
    before_rps: float | None = None


class ObservedWorkload(_Document):
    """What runs today.

    Attributes
    ----------
    adapters
        Of the problem that was written, in its order.
    rate_rps, offered_tps
        Of all adapters: requests, and prompt + output tokens, per second.
    rate_cv
        Relative standard deviation of the rates, as `uncertainty.rate_cv` of a problem has it: with it the sum of the
        rates varies as the counts let it.
    common_cv
        By how much the load of parts of the window differs beyond chance; ``None``: not known.
    known, unknown, assumed, warnings
        Sentences.
    """

    schema_version: Literal[1] = 1
    sources: tuple[ObservedSource, ...]
    adapters: tuple[ObservedAdapter, ...]
    rate_rps: float
    offered_tps: float
    rate_cv: float
    common_cv: float | None
    known: tuple[str, ...]
    unknown: tuple[str, ...]
    assumed: tuple[str, ...]
    warnings: tuple[str, ...]


def observation_schema() -> dict[str, Any]:
    """Return the JSON Schema of what `placer observe --json` prints."""
    schema = ObservedWorkload.model_json_schema(mode="serialization")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "placer observation"
    return schema
