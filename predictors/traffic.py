"""Requests of many adapters drawn together: the law of `twin.workload.Workload.requests` in a fraction of its time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twin.lengths import LengthDistribution
from twin.workload import LEAST_DRAWN_CV, NANOSECONDS, Adapter, RequestTable, draw_gaps

_Points = tuple[NDArray[np.float64], NDArray[np.int64]]


@dataclass(frozen=True)
class Traffic:
    """What the requests of A adapters are drawn from; make it with `of`.

    Attributes
    ----------
    rates_rps
        float64 [A], requests per second.
    arrival_law, arrival_laws
        int64 [A], index into adapters that stand for one law of the gaps each.
    length_class, lengths
        int64 [A], index into pairs of prompt and output lengths.
    """

    rates_rps: NDArray[np.float64]
    arrival_law: NDArray[np.int64]
    arrival_laws: tuple[Adapter, ...]
    length_class: NDArray[np.int64]
    lengths: tuple[tuple[LengthDistribution, LengthDistribution], ...]

    @classmethod
    def of(cls, adapters: Sequence[Adapter]) -> Traffic:
        """Return the traffic of `adapters`, those with the same laws grouped."""
        laws: dict[tuple[float, str], int] = {}
        arrival_laws: list[Adapter] = []
        lengths: dict[tuple[LengthDistribution, LengthDistribution], int] = {}
        arrival_law = np.empty(len(adapters), dtype=np.int64)
        length_class = np.empty(len(adapters), dtype=np.int64)
        for index, adapter in enumerate(adapters):
            # All Poisson arrivals are alike, whatever the law of other gaps would be.
            law = (adapter.gap_cv, adapter.gap_law if adapter.gap_cv != 1.0 else "")
            if law not in laws:
                arrival_laws.append(adapter)
            arrival_law[index] = laws.setdefault(law, len(laws))
            length_class[index] = lengths.setdefault((adapter.prompt_tokens, adapter.output_tokens), len(lengths))
        rates = np.array([adapter.rate_rps for adapter in adapters], dtype=np.float64)
        return cls(rates, arrival_law, tuple(arrival_laws), length_class, tuple(lengths))

    def draw(self, *, scale: float, horizon_s: float, generator: np.random.Generator) -> RequestTable:
        """Return the requests in ``[0, horizon_s)`` when every rate is `scale` times as large.

        The same random process as that of `Workload.requests`, adapter by adapter independent, but not the same
        requests.
        """
        drawn = [
            self._arrivals(law, scale=scale, horizon_s=horizon_s, generator=generator)
            for law in range(len(self.arrival_laws))
        ]
        arrival_s = np.concatenate([times for times, _ in drawn])
        adapter = np.concatenate([owner for _, owner in drawn])
        if len(drawn) > 1 or self.arrival_laws[0].gap_cv != 1.0:
            order = np.argsort(arrival_s, kind="stable")
            arrival_s, adapter = arrival_s[order], adapter[order]
        prompts, outputs = self._draw_lengths(adapter, generator)
        return RequestTable(
            arrival_ns=np.floor(arrival_s * NANOSECONDS).astype(np.int64),
            adapter=adapter.astype(np.int32),
            prompt_tokens=prompts,
            output_tokens=outputs,
        )

    def _arrivals(self, law: int, *, scale: float, horizon_s: float, generator: np.random.Generator) -> _Points:
        """Return arrival times in seconds, and whose they are, of all adapters with one law of the gaps."""
        members = np.flatnonzero((self.arrival_law == law) & (self.rates_rps > 0.0))
        expected = self.rates_rps[members] * scale * horizon_s
        if self.arrival_laws[law].gap_cv == 1.0:
            return _poisson_arrivals(members, expected, horizon_s, generator)
        points, owner = _renewal_points(self.arrival_laws[law], expected, generator)
        return points / expected[owner] * horizon_s, members[owner]

    def _draw_lengths(
        self, adapter: NDArray[np.int64], generator: np.random.Generator
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return prompt and output tokens of requests for `adapter`, int64 [N]."""
        if len(self.lengths) == 1:
            prompt, output = self.lengths[0]
            return prompt.sample(len(adapter), generator), output.sample(len(adapter), generator)
        prompts = np.empty(len(adapter), dtype=np.int32)
        outputs = np.empty(len(adapter), dtype=np.int32)
        classes = self.length_class[adapter]
        for index, (prompt, output) in enumerate(self.lengths):
            chosen = np.flatnonzero(classes == index)
            prompts[chosen] = prompt.sample(len(chosen), generator)
            outputs[chosen] = output.sample(len(chosen), generator)
        return prompts, outputs


def _poisson_arrivals(
    members: NDArray[np.int64], expected: NDArray[np.float64], horizon_s: float, generator: np.random.Generator
) -> _Points:
    """Return sorted arrival times and owners of independent Poisson processes: one of their sum, split at random."""
    total = float(expected.sum())
    count = int(generator.poisson(total))
    if count == 0:
        return np.empty(0), np.empty(0, dtype=np.int64)
    # Uniform order statistics are partial sums of exponential gaps over the sum of one gap more.
    sums = np.cumsum(generator.standard_exponential(count + 1))
    edges = np.cumsum(expected) / total
    owner = np.searchsorted(edges[:-1], generator.random(count), side="right")
    return sums[:-1] / sums[-1] * horizon_s, members[owner]


def _renewal_points(law: Adapter, expected: NDArray[np.float64], generator: np.random.Generator) -> _Points:
    """Return points of stationary renewal processes with unit mean gap, in ``[0, expected)`` each, and whose they are.

    As `twin.workload` draws one process, for M of them at once; `expected` is float64 [M].
    """
    if law.gap_cv < LEAST_DRAWN_CV:
        first = generator.random(len(expected))
        counts = np.maximum(np.ceil(expected - first), 0.0).astype(np.int64)
        owner = np.repeat(np.arange(len(expected)), counts)
        return first[owner] + _positions(counts), owner
    # A gap is met in proportion to its length, and anywhere within it.
    reached = generator.random(len(expected)) * draw_gaps(law, len(expected), generator, is_length_biased=True)
    open_ones = np.flatnonzero(reached < expected)
    points, owners = [reached[open_ones]], [open_ones]
    while len(open_ones):
        counts = (expected[open_ones] - reached[open_ones]).astype(np.int64) + 16
        sums = np.cumsum(draw_gaps(law, int(counts.sum()), generator))
        ends = np.cumsum(counts) - 1
        before = np.concatenate([[0.0], sums[ends[:-1]]])
        owner = np.repeat(open_ones, counts)
        drawn = sums + np.repeat(reached[open_ones] - before, counts)
        is_inside = drawn < expected[owner]
        points.append(drawn[is_inside])
        owners.append(owner[is_inside])
        reached[open_ones] = drawn[ends]
        open_ones = open_ones[reached[open_ones] < expected[open_ones]]
    everything, owner = np.concatenate(points), np.concatenate(owners)
    return everything, owner


def _positions(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return 0, 1, ... up to below each count, one after the other."""
    ends = np.cumsum(counts)
    positions: NDArray[np.int64] = np.arange(int(counts.sum())) - np.repeat(ends - counts, counts)
    return positions
