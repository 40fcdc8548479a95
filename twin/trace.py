"""A trace: the requests that a service once received, as columns, with windows, rate scaling and replication."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from twin.errors import InputError

LARGEST_TOKEN_COUNT = np.iinfo(np.int32).max


@dataclass(frozen=True, eq=False)
class Trace:
    """Requests in order of arrival, as columns of length N >= 1.

    Attributes
    ----------
    arrival_s
        float64, seconds from the start of the trace, non-decreasing, below `duration_s` unless that is unknown.
    prompt_tokens, output_tokens
        int64, >= 1.
    duration_s
        How long the service was watched, in seconds; rates are requests divided by it. 0: unknown.
    adapter
        Label of the adapter that each request asked for (object array of str); ``None``: the trace does not say.
    name
        Where the trace comes from, for messages and summaries.
    """

    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    duration_s: float
    adapter: NDArray[np.object_] | None = None
    name: str = "trace"

    def __post_init__(self) -> None:
        """Check the columns once, so that nothing after needs to."""
        lengths = {len(self.arrival_s), len(self.prompt_tokens), len(self.output_tokens)}
        if self.adapter is not None:
            lengths.add(len(self.adapter))
        if len(lengths) != 1:
            raise InputError(f"the columns of a trace must have one length. Got {sorted(lengths)}.", file=self.name)
        if len(self.arrival_s) == 0:
            raise InputError(f"a trace must hold at least one request. {self.name} holds none.", file=self.name)
        self._check_times()
        for field in ("prompt_tokens", "output_tokens"):
            values = getattr(self, field)
            outside = (values < 1) | (values > LARGEST_TOKEN_COUNT)
            if np.any(outside):
                row = int(np.argmax(outside))
                raise InputError(
                    f"`{field}` must lie between 1 and {LARGEST_TOKEN_COUNT}. Got {values[row]} (request {row + 1}). "
                    "Drop such requests.",
                    file=self.name,
                    field=field,
                    value=int(values[row]),
                )

    def _check_times(self) -> None:
        times = self.arrival_s
        if not np.all(np.isfinite(times)) or times[0] < 0 or np.any(np.diff(times) < 0):
            raise InputError(
                "`arrival_s` must be finite, not negative and sorted. Sort the requests by time.",
                file=self.name,
                field="arrival_s",
            )
        if not np.isfinite(self.duration_s) or self.duration_s < 0:
            raise InputError(
                f"`duration_s` must be finite and not negative. Got {self.duration_s}.",
                file=self.name,
                field="duration_s",
                value=self.duration_s,
            )
        if self.duration_s > 0 and times[-1] >= self.duration_s:
            raise InputError(
                f"`duration_s` must be above the last arrival ({times[-1]:g} s). Got {self.duration_s:g}.",
                file=self.name,
                field="duration_s",
                value=self.duration_s,
            )

    def __len__(self) -> int:
        """Return the number of requests."""
        return len(self.arrival_s)

    @property
    def rate_rps(self) -> float:
        """Requests per second; raises InputError when the duration is unknown."""
        return len(self) / self.known_duration_s

    @property
    def known_duration_s(self) -> float:
        """Duration in seconds; raises InputError when it is unknown (one request, or all at one instant)."""
        if self.duration_s <= 0:
            raise InputError(
                f"the rates of a trace need its duration. All {len(self)} requests of {self.name} arrive at one "
                "instant: give a longer trace.",
                file=self.name,
                field="duration_s",
                value=self.duration_s,
            )
        return self.duration_s

    def between(self, start_s: float, end_s: float) -> Trace:
        """Return the requests that arrive in ``[start_s, end_s)``, with time counted from `start_s`.

        Raises
        ------
        InputError
            When the window is empty, reaches outside the trace, or holds no request.
        """
        if not 0 <= start_s < end_s <= self.duration_s:
            raise InputError(
                f"a window must satisfy 0 <= start < end <= {self.duration_s:g} s (the trace's duration). "
                f"Got {start_s:g} to {end_s:g}.",
                file=self.name,
                field="window",
                value=(start_s, end_s),
            )
        inside = (self.arrival_s >= start_s) & (self.arrival_s < end_s)
        if not np.any(inside):
            raise InputError(
                f"a window must hold at least one request. {self.name} has none between {start_s:g} and {end_s:g} s.",
                file=self.name,
                field="window",
                value=(start_s, end_s),
            )
        # Subtracting can round an arrival up to the window's length.
        latest = np.nextafter(end_s - start_s, 0.0)
        return Trace(
            np.minimum(self.arrival_s[inside] - start_s, latest),
            self.prompt_tokens[inside],
            self.output_tokens[inside],
            end_s - start_s,
            None if self.adapter is None else self.adapter[inside],
            self.name,
        )

    def scale_rate(self, factor: float) -> Trace:
        """Return the same requests `factor` times as fast: times and duration are divided by it."""
        if not (np.isfinite(factor) and factor > 0):
            raise InputError(
                f"a rate factor must be finite and above 0. Got {factor}.", field="rate_factor", value=factor
            )
        duration_s = self.duration_s / factor
        times = self.arrival_s / factor
        if duration_s > 0:
            times = np.minimum(times, np.nextafter(duration_s, 0.0))
        return replace(self, arrival_s=times, duration_s=duration_s)


def observed_duration_s(arrival_s: NDArray[np.float64]) -> float:
    """Return how long `arrival_s` (float64 [N], sorted, from 0) was watched: the span plus one mean gap.

    N arrivals cover N - 1 gaps, so that N divided by the span alone would overstate the rate. 0 when there is no gap.
    """
    span_s = float(arrival_s[-1])
    return span_s * len(arrival_s) / (len(arrival_s) - 1) if len(arrival_s) > 1 else 0.0


def purpose_generator(purpose: str, seed: int) -> np.random.Generator:
    """Return the random generator for one `purpose` under `seed`, independent of those for other purposes."""
    if seed < 0:
        raise InputError(f"`seed` must not be negative. Got {seed}.", field="seed", value=seed)
    return np.random.default_rng(np.random.SeedSequence([seed, *purpose.encode()]))


def replicate(trace: Trace, *, copies: int, jitter_s: float = 5.0, seed: int = 0) -> Trace:
    """Return `trace` with every request repeated, each repetition shifted by a random time.

    The arrivals keep the trace's shape at `copies` times its rate (arXiv 2602.24044: arrivals replicated K times with
    +-5 s jitter). The first copy stays as it is. A shift that would leave the trace is reflected at its end, so that no
    requests pile up there.

    Parameters
    ----------
    trace
        What to repeat.
    copies
        How many times each request occurs in the result, >= 1; 1 returns the trace itself.
    jitter_s
        Shifts are uniform in ``[-jitter_s, jitter_s]``; seconds, >= 0.
    seed
        Of the shifts.
    """
    if copies < 1:
        raise InputError(f"`copies` must be at least 1. Got {copies}.", field="copies", value=copies)
    if not (np.isfinite(jitter_s) and jitter_s >= 0):
        raise InputError(
            f"`jitter_s` must be finite and not negative. Got {jitter_s}.", field="jitter_s", value=jitter_s
        )
    if copies == 1:
        return trace
    duration_s = trace.known_duration_s
    if jitter_s > duration_s:
        raise InputError(
            f"`jitter_s` must not exceed the trace's duration ({duration_s:g} s). Got {jitter_s:g}.",
            field="jitter_s",
            value=jitter_s,
        )
    shifts = purpose_generator("replicate", seed).uniform(-jitter_s, jitter_s, (copies, len(trace)))
    shifts[0] = 0.0
    shifted = np.abs(trace.arrival_s + shifts)
    shifted = np.where(shifted >= duration_s, 2 * duration_s - shifted, shifted)
    times = np.clip(shifted, 0.0, np.nextafter(duration_s, 0.0)).ravel()
    order = np.argsort(times, kind="stable")
    source = order % len(trace)
    return replace(
        trace,
        arrival_s=times[order],
        prompt_tokens=trace.prompt_tokens[source],
        output_tokens=trace.output_tokens[source],
        adapter=None if trace.adapter is None else trace.adapter[source],
    )
