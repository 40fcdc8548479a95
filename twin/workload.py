"""What is asked of a replica: adapters with their traffic, and the requests drawn from it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from twin.engine import LoraRank
from twin.errors import InputError
from twin.lengths import LengthDistribution

NANOSECONDS = 1_000_000_000
# Gaps that vary less are regular to the nanosecond; their laws' parameters would overflow.
LEAST_DRAWN_CV = 1e-9
_NO_TIMES = np.empty(0, dtype=np.float64)


class Adapter(BaseModel):
    """A LoRA adapter with its traffic.

    Attributes
    ----------
    name
        Unique in a workload.
    rank
        LoRA rank, one of vLLM's.
    rate_rps
        Mean requests per second, finite and >= 0.
    prompt_tokens, output_tokens
        Length distributions, in tokens.
    gap_cv
        Coefficient of variation of the time between requests; 1 is Poisson.
    gap_law
        Law of the gaps when `gap_cv` is not 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    rank: LoraRank
    rate_rps: float = Field(ge=0, allow_inf_nan=False)
    prompt_tokens: LengthDistribution
    output_tokens: LengthDistribution
    gap_cv: float = Field(default=1.0, ge=0, le=20, allow_inf_nan=False)
    gap_law: Literal["gamma", "lognormal"] = "gamma"

    @property
    def offered_tps(self) -> float:
        """Offered load in prompt + output tokens per second."""
        return self.rate_rps * (self.prompt_tokens.effective_mean + self.output_tokens.effective_mean)


class Phase(BaseModel):
    """From `start_s` on, all rates are the adapters' own times `rate_scale`, until the next phase."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    start_s: float = Field(ge=0, allow_inf_nan=False)
    rate_scale: float = Field(ge=0, allow_inf_nan=False)


@dataclass(frozen=True)
class RequestTable:
    """Requests in order of arrival, as columns of length N.

    Attributes
    ----------
    arrival_ns
        int64, nanoseconds from the start, non-decreasing, >= 0.
    adapter
        int32, index into the workload's adapters; -1 asks the base model.
    prompt_tokens, output_tokens
        int32, >= 1.
    """

    arrival_ns: NDArray[np.int64]
    adapter: NDArray[np.int32]
    prompt_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]

    def __post_init__(self) -> None:
        """Check the columns once, so that engines need not."""
        lengths = {len(self.arrival_ns), len(self.adapter), len(self.prompt_tokens), len(self.output_tokens)}
        if len(lengths) != 1:
            raise InputError(f"the columns of a request table must have one length. Got {sorted(lengths)}.")
        if len(self.arrival_ns) == 0:
            return
        if self.arrival_ns[0] < 0 or np.any(np.diff(self.arrival_ns) < 0):
            raise InputError("arrivals must be sorted and not negative. Sort the requests by time.", field="arrival_ns")
        if int(self.adapter.min()) < -1:
            row = int(self.adapter.argmin())
            raise InputError(
                f"`adapter` must be at least -1. Got {self.adapter[row]} (request {row}). Number adapters from 0.",
                field="adapter",
                value=int(self.adapter[row]),
            )
        for field in ("prompt_tokens", "output_tokens"):
            smallest = int(getattr(self, field).min())
            if smallest < 1:
                row = int(getattr(self, field).argmin())
                raise InputError(
                    f"`{field}` must be at least 1. Got {smallest} (request {row}). "
                    "Drop such requests or give them one token.",
                    field=field,
                    value=smallest,
                )

    def __len__(self) -> int:
        """Return the number of requests."""
        return len(self.arrival_ns)

    def select(self, mask: NDArray[np.bool_]) -> RequestTable:
        """Return the requests where `mask` (bool [N]) holds."""
        return RequestTable(
            self.arrival_ns[mask], self.adapter[mask], self.prompt_tokens[mask], self.output_tokens[mask]
        )

    def until(self, horizon_s: float) -> RequestTable:
        """Return the requests that arrive before `horizon_s`."""
        return self.select(self.arrival_ns < round(horizon_s * NANOSECONDS))

    @classmethod
    def empty(cls) -> RequestTable:
        """Return a table without requests."""
        return cls(np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.int32))


@dataclass(frozen=True)
class Workload:
    """Adapters and how their requests arrive: drawn from their rates, or replayed from a trace.

    Attributes
    ----------
    adapters
        At least one; names are unique.
    phases
        Rate scales over time, sorted by start; empty: constant rates. Ignored for a trace.
    trace
        The requests to replay; ``None``: draw them from the adapters' rates.
    trace_duration_s
        How long the trace was watched, in seconds; ``None``: until its last request.
    """

    adapters: tuple[Adapter, ...]
    phases: tuple[Phase, ...] = ()
    trace: RequestTable | None = None
    trace_duration_s: float | None = None

    def __post_init__(self) -> None:
        """Check what no single adapter can check."""
        if not self.adapters:
            raise InputError("a workload must have at least one adapter. Got none.", field="adapters")
        seen: dict[str, int] = {}
        for position, adapter in enumerate(self.adapters):
            if adapter.name in seen:
                raise InputError(
                    f"adapter names must be unique. {adapter.name!r} is the name of adapters {seen[adapter.name]} "
                    f"and {position}.",
                    field=f"adapters.{position}.name",
                    value=adapter.name,
                    hint="rename or remove one of them",
                )
            seen[adapter.name] = position
        starts = [phase.start_s for phase in self.phases]
        if starts != sorted(set(starts)):
            raise InputError(
                f"phases must have strictly increasing start_s. Got {starts}.", field="phases", value=starts
            )
        if self.trace is not None and len(self.trace) and int(self.trace.adapter.max()) >= len(self.adapters):
            raise InputError(
                "the trace must name adapters of the workload only. Got an index beyond them.", field="trace"
            )

    @property
    def longest_horizon_s(self) -> float:
        """Seconds for which the workload can be simulated: beyond the end of a trace, queues would drain unseen."""
        if self.trace is None:
            return float("inf")
        if self.trace_duration_s is not None:
            return self.trace_duration_s
        return float(self.trace.arrival_ns[-1]) / NANOSECONDS if len(self.trace) else 0.0

    def subset(self, indices: list[int] | NDArray[np.int64]) -> Workload:
        """Return the workload of the adapters at `indices` (in that order) with their requests."""
        chosen = tuple(self.adapters[int(index)] for index in indices)
        if self.trace is None:
            return replace(self, adapters=chosen)
        renumber = np.full(len(self.adapters), -1, dtype=np.int32)
        renumber[np.asarray(indices, dtype=np.int64)] = np.arange(len(chosen), dtype=np.int32)
        kept = self.trace.select((self.trace.adapter >= 0) & (renumber[self.trace.adapter] >= 0))
        renumbered = replace(kept, adapter=renumber[kept.adapter])
        # The others' requests told how long the trace was watched.
        return replace(self, adapters=chosen, trace=renumbered, trace_duration_s=self.longest_horizon_s)

    def scaled(self, factor: float) -> Workload:
        """Return the same workload with every rate times `factor` (> 0); a trace is replayed that much faster."""
        if factor == 1.0:
            return self
        adapters = tuple(
            adapter.model_copy(update={"rate_rps": adapter.rate_rps * factor}) for adapter in self.adapters
        )
        trace, duration_s = self.trace, self.trace_duration_s
        if trace is not None:
            duration_s = self.longest_horizon_s / factor
            trace = replace(trace, arrival_ns=np.round(trace.arrival_ns / factor).astype(np.int64))
        return replace(self, adapters=adapters, trace=trace, trace_duration_s=duration_s)

    def requests(self, *, horizon_s: float, seed: int = 0) -> RequestTable:
        """Return the requests that arrive in ``[0, horizon_s)``.

        An adapter's requests depend on its name and `seed` only, not on the other adapters: placements are compared on
        the same traffic.
        """
        if self.trace is not None:
            return self.trace.until(horizon_s)
        return merge_streams([draw_stream(adapter, self.phases, horizon_s, seed) for adapter in self.adapters])


@dataclass(frozen=True)
class AdapterStream:
    """The requests of one adapter, in order of arrival; columns as those of `RequestTable`."""

    arrival_ns: NDArray[np.int64]
    prompt_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]


def draw_stream(adapter: Adapter, phases: tuple[Phase, ...], horizon_s: float, seed: int) -> AdapterStream:
    """Draw the requests of an adapter that arrive in ``[0, horizon_s)``."""
    generator = adapter_generator(adapter.name, seed)
    times = _arrival_times(adapter, phases, horizon_s, generator)
    return AdapterStream(
        # Rounding up could move the last request to the horizon.
        np.floor(times * NANOSECONDS).astype(np.int64),
        adapter.prompt_tokens.sample(len(times), generator),
        adapter.output_tokens.sample(len(times), generator),
    )


def merge_streams(streams: Sequence[AdapterStream]) -> RequestTable:
    """Return the requests of adapters 0, 1, ... in order of arrival; at one time, the first one's first."""
    arrival = np.concatenate([stream.arrival_ns for stream in streams])
    counts = [len(stream.arrival_ns) for stream in streams]
    order = np.argsort(arrival, kind="stable")
    return RequestTable(
        arrival[order],
        np.repeat(np.arange(len(streams), dtype=np.int32), counts)[order],
        np.concatenate([stream.prompt_tokens for stream in streams])[order],
        np.concatenate([stream.output_tokens for stream in streams])[order],
    )


def adapter_generator(name: str, seed: int) -> np.random.Generator:
    """Return the random generator of one adapter's traffic under `seed`."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return np.random.default_rng(np.random.SeedSequence([seed, int.from_bytes(digest, "little")]))


def _arrival_times(
    adapter: Adapter, phases: tuple[Phase, ...], horizon_s: float, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Draw sorted arrival times in ``[0, horizon_s)``.

    A renewal process in time counted in expected requests, mapped back to seconds through the phases.
    """
    if not phases:
        total = horizon_s * adapter.rate_rps
        return _renewal_points(adapter, total, generator) * (horizon_s / total) if total > 0.0 else _NO_TIMES
    starts = np.array([0.0, *[phase.start_s for phase in phases], np.inf])
    scales = np.array([1.0, *[phase.rate_scale for phase in phases]])
    edges = np.minimum(starts, horizon_s)
    expected = np.concatenate([[0.0], np.cumsum(np.diff(edges) * scales)]) * adapter.rate_rps
    total = float(expected[-1])
    if total <= 0.0:
        return _NO_TIMES
    points = _renewal_points(adapter, total, generator)
    times: NDArray[np.float64] = np.interp(points, expected, edges)
    return times


def _renewal_points(adapter: Adapter, total: float, generator: np.random.Generator) -> NDArray[np.float64]:
    """Draw points of a stationary renewal process with unit mean gap in ``[0, total)``.

    Time 0 falls into the middle of a gap, as it does for whoever starts to watch: the expected number of points is then
    exactly `total`. (With an arrival at 0 it would be ``(cv^2 - 1) / 2`` more or fewer.)
    """
    if adapter.gap_cv == 1.0:
        return np.sort(generator.random(generator.poisson(total)) * total)
    if adapter.gap_cv < LEAST_DRAWN_CV:
        return np.arange(generator.random(), total, 1.0)
    # A gap is met in proportion to its length, and anywhere within it.
    reached = generator.random() * float(draw_gaps(adapter, 1, generator, is_length_biased=True)[0])
    chunks: list[NDArray[np.float64]] = [np.array([reached])]
    while reached < total:
        points = reached + np.cumsum(draw_gaps(adapter, int(total - reached) + 16, generator))
        chunks.append(points)
        reached = float(points[-1])
    everything = np.concatenate(chunks)
    return everything[everything < total]


def draw_gaps(
    adapter: Adapter, count: int, generator: np.random.Generator, *, is_length_biased: bool = False
) -> NDArray[np.float64]:
    """Draw gaps of unit mean by the adapter's law, or by its length-biased law (density times gap).

    Parameters
    ----------
    adapter
        Its `gap_cv` (at least `LEAST_DRAWN_CV`) and `gap_law` count.
    count
        How many, >= 0.

    Returns
    -------
    float64 [count]: times between requests, in mean gaps.
    """
    if adapter.gap_law == "gamma":
        shape = 1.0 / adapter.gap_cv**2
        return generator.gamma(shape + 1.0 if is_length_biased else shape, 1.0 / shape, count)
    variance = math.log1p(adapter.gap_cv**2)
    location = 0.5 * variance if is_length_biased else -0.5 * variance
    return generator.lognormal(location, math.sqrt(variance), count)
