"""What a source says about the traffic of a fleet: the form that every reader returns, and the builder takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from twin.lengths import LengthDistribution

SourceKind = Literal["access log", "metrics", "benchmark"]
RateBasis = Literal["counted", "presence", "shared evenly"]


@dataclass(frozen=True)
class AdapterTraffic:
    """What is known about the requests of one adapter in a window.

    Attributes
    ----------
    num_requests
        Counted or estimated, >= 0.
    variance
        Of `num_requests` around what is expected of such a window, >= 0; that of a Poisson count is the count.
    prompt_tokens, output_tokens
        Its own lengths; ``None``: not told apart from those of the others.
    """

    num_requests: float
    variance: float
    prompt_tokens: LengthDistribution | None = None
    output_tokens: LengthDistribution | None = None


@dataclass(frozen=True)
class Observation:
    """What one source shows.

    Attributes
    ----------
    kind, names
        What was read: the kind of the source, and its files or addresses.
    window_s
        Seconds that were watched, > 0.
    begin_s
        Unix seconds of the start; ``None``: the source has no clock.
    num_requests
        Of all adapters in the window.
    adapters
        By name; empty: the source does not tell adapters apart.
    basis
        How the requests of an adapter were found.
    prompt_tokens, output_tokens
        Lengths of all requests; ``None``: not known.
    common_cv
        By how much the load of parts of the window differs beyond chance, relative to its mean; ``None``: not known.
    known, unknown, assumed, warnings
        Sentences for the user.
    """

    kind: SourceKind
    names: tuple[str, ...]
    window_s: float
    begin_s: float | None
    num_requests: float
    adapters: Mapping[str, AdapterTraffic]
    basis: RateBasis
    prompt_tokens: LengthDistribution | None
    output_tokens: LengthDistribution | None
    common_cv: float | None = None
    known: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass
class Remarks:
    """Sentences that a reader gathers on its way; see `Observation`."""

    known: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
