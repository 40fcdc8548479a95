"""A population as an endless sequence of adapters, and requests that do not depend on how many of them are served."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from predictors.features import AGGREGATE_NAMES, adapter_aggregates
from predictors.traffic import Traffic
from twin.workload import Adapter, RequestTable

_LOAD_COLUMNS = [AGGREGATE_NAMES.index(name) for name in ("sum_prompt_tps", "sum_output_tps")]


class AdapterSequence:
    """A population as an endless sequence of adapters, whose beginnings resemble the whole.

    Adapters come in the order of their load, visited at equal distances (van der Corput), the middle one first. Once
    all of them were there, they come again as copies with names of their own.

    Parameters
    ----------
    adapters
        A >= 1 adapters, at least one with a rate above 0; their order does not matter.
    """

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        assert adapters
        by_load = sorted(adapters, key=lambda adapter: (-_offered_tps(adapter), -adapter.rank, adapter.name))
        self._adapters = tuple(by_load[position] for position in _spread(len(by_load)))
        self._aggregates = adapter_aggregates(self._adapters)
        self._sums = np.concatenate([np.zeros((1, len(AGGREGATE_NAMES))), np.cumsum(self._aggregates, axis=0)])

    def __len__(self) -> int:
        """Return how many adapters there are before the first copy."""
        return len(self._adapters)

    @property
    def max_rank(self) -> int:
        """Largest rank."""
        return max(adapter.rank for adapter in self._adapters)

    def aggregates(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the aggregate of the first n adapters for each n of `counts`, float64 [N, K]."""
        rounds, rest = np.divmod(counts, len(self._adapters))
        sums: NDArray[np.float64] = rounds[:, np.newaxis] * self._sums[-1] + self._sums[rest]
        return sums

    def offered_tps(self, count: int) -> float:
        """Return the prompt + output tokens/s of the first `count` adapters."""
        return float(self.aggregates(np.array([count]))[0, _LOAD_COLUMNS].sum())

    def between(self, first: int, last: int) -> tuple[Adapter, ...]:
        """Return the adapters `first` up to before `last`, counted from 0."""
        return tuple(self._adapter(index) for index in range(first, last))

    def _adapter(self, index: int) -> Adapter:
        copy, position = divmod(index, len(self._adapters))
        adapter = self._adapters[position]
        return adapter if copy == 0 else adapter.model_copy(update={"name": f"{adapter.name}#{copy + 1}"})


class NestedTraffic:
    """Requests of the first n adapters of a sequence, for any n: an adapter has the same ones whoever else is served.

    Verdicts on more and more adapters then differ by those adapters alone, not by chance.

    Parameters
    ----------
    horizon_s
        Requests arrive in ``[0, horizon_s)``.
    seed, index
        Of the requests: those of two indices are independent.
    """

    def __init__(self, sequence: AdapterSequence, *, horizon_s: float, seed: int, index: int) -> None:
        self._sequence = sequence
        self._horizon_s = horizon_s
        self._seed = seed
        self._index = index
        self._blocks: list[RequestTable] = []
        self._starts = [0]

    def requests(self, count: int) -> RequestTable:
        """Return the requests of the first `count` >= 1 adapters in order of arrival."""
        while self._starts[-1] < count:
            self._draw_block()
        used = [block for block, start in zip(self._blocks, self._starts, strict=False) if start < count]
        adapter = np.concatenate([block.adapter for block in used])
        arrival_ns = np.concatenate([block.arrival_ns for block in used])
        served = np.flatnonzero(adapter < count)
        order = served[np.argsort(arrival_ns[served], kind="stable")]
        return RequestTable(
            arrival_ns=arrival_ns[order],
            adapter=adapter[order],
            prompt_tokens=np.concatenate([block.prompt_tokens for block in used])[order],
            output_tokens=np.concatenate([block.output_tokens for block in used])[order],
        )

    def _draw_block(self) -> None:
        """Draw the next adapters: a quarter more each time, so that few are drawn in vain."""
        number, first = len(self._blocks), self._starts[-1]
        last = first + max(1, first // 4)
        seeds = np.random.SeedSequence(self._seed, spawn_key=(self._index, number))
        traffic = Traffic.of(self._sequence.between(first, last))
        drawn = traffic.draw(scale=1.0, horizon_s=self._horizon_s, generator=np.random.default_rng(seeds))
        owners = (drawn.adapter + first).astype(np.int32)
        self._blocks.append(RequestTable(drawn.arrival_ns, owners, drawn.prompt_tokens, drawn.output_tokens))
        self._starts.append(last)


def _spread(count: int) -> list[int]:
    """Return 0 to `count` - 1 in the order of their reversed binary digits, from the middle on."""
    width = max(count - 1, 0).bit_length()
    reversed_digits = [int(f"{number:0{width}b}"[::-1], 2) if width else 0 for number in range(1 << width)]
    middle = (1 << width) // 2
    return [position for digits in reversed_digits if (position := digits ^ middle) < count]


def _offered_tps(adapter: Adapter) -> float:
    return adapter.rate_rps * (adapter.prompt_tokens.effective_mean + adapter.output_tokens.effective_mean)
