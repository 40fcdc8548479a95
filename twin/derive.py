"""From a trace to a workload: adapters with observed rates and lengths, or the requests themselves for replay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twin.engine import LoraRank
from twin.errors import InputError
from twin.lengths import LengthDistribution
from twin.popularity import (
    Assignment,
    CountedPopularity,
    Popularity,
    assign_as_labelled,
    assign_by_popularity,
    assign_ranks,
)
from twin.trace import Trace, replicate
from twin.workload import NANOSECONDS, Adapter, RequestTable, Workload

SIGNIFICANT_DIGITS = 6
DEFAULT_PRIOR_REQUESTS = 20.0


def derive_workload(
    trace: Trace, assignment: Assignment, ranks: Sequence[int], *, prior_requests: float = DEFAULT_PRIOR_REQUESTS
) -> Workload:
    """Return adapters with the rates and lengths that `trace` shows, for Poisson arrivals.

    An adapter's rate is its requests divided by the trace's duration. Its lengths are estimated from its own n requests
    and `prior_requests` that stand for all adapters: with ``w = n / (n + prior_requests)``, mean, mean square and
    maximum are ``w * own + (1 - w) * common``. So an adapter seen once gets about the common lengths, and one seen
    often keeps its own. The common mean and mean square are averages over the adapters weighted by ``n * (1 - w)``:
    with these weights what the adapters gain and lose cancels, and the offered tokens per second stay exactly the
    trace's, as does the mean square. The common maximum is the trace's.

    Parameters
    ----------
    trace
        Of known duration.
    assignment
        The adapter of each request.
    ranks
        Of the adapters, in the order of ``assignment.names``.
    prior_requests
        Strength of the smoothing, in requests, >= 0; 0 keeps each adapter's own figures (those without requests get the
        trace's).

    Raises
    ------
    InputError
        When the duration is unknown, or the assignment, the ranks and the trace do not go together.
    """
    _check_fit(trace, assignment, ranks)
    if not (np.isfinite(prior_requests) and prior_requests >= 0):
        raise InputError(
            f"`prior_requests` must be finite and not negative. Got {prior_requests}.",
            field="prior_requests",
            value=prior_requests,
        )
    counts = np.bincount(assignment.adapter, minlength=len(assignment.names))
    prompts = _smoothed_lengths(trace.prompt_tokens, assignment.adapter, counts, prior_requests)
    outputs = _smoothed_lengths(trace.output_tokens, assignment.adapter, counts, prior_requests)
    duration_s = trace.known_duration_s
    adapters = tuple(
        Adapter(
            name=name,
            rank=_as_rank(ranks[index]),
            rate_rps=float(counts[index]) / duration_s,
            prompt_tokens=prompts[index],
            output_tokens=outputs[index],
        )
        for index, name in enumerate(assignment.names)
    )
    return Workload(adapters)


def trace_workload(
    trace: Trace, assignment: Assignment, ranks: Sequence[int], *, prior_requests: float = DEFAULT_PRIOR_REQUESTS
) -> Workload:
    """Return the workload of `derive_workload` that replays the trace's own requests instead of drawing them."""
    workload = derive_workload(trace, assignment, ranks, prior_requests=prior_requests)
    table = RequestTable(
        arrival_ns=np.round(trace.arrival_s * NANOSECONDS).astype(np.int64),
        adapter=assignment.adapter.astype(np.int32),
        prompt_tokens=trace.prompt_tokens.astype(np.int32),
        output_tokens=trace.output_tokens.astype(np.int32),
    )
    return Workload(workload.adapters, trace=table, trace_duration_s=trace.known_duration_s)


def build_workload(
    trace: Trace,
    *,
    ranks: Sequence[int],
    popularity: Popularity | None,
    num_adapters: int | None = None,
    copies: int = 1,
    jitter_s: float = 5.0,
    seed: int = 0,
    is_replayed: bool = False,
) -> Workload:
    """Return a workload from `trace`: replicate it, give its requests to adapters, deal ranks, derive rates, lengths.

    Parameters
    ----------
    trace
        What was observed.
    ranks
        Dealt to the adapters in turn, then shuffled.
    popularity
        Spreads the requests over `num_adapters` adapters; ``None``: the trace's own labels name the adapters.
    num_adapters
        Needed with a popularity, except that a counted one has a number of its own; not allowed without.
    copies, jitter_s
        See `twin.trace.replicate`.
    seed
        Of jitter, popularity, assignment and ranks, which are drawn independently of each other.
    is_replayed
        Keep the requests themselves (`trace_workload`) instead of drawing new ones (`derive_workload`).
    """
    replicated = replicate(trace, copies=copies, jitter_s=jitter_s, seed=seed)
    if popularity is None:
        if num_adapters is not None:
            raise InputError(
                f"the number of adapters follows from the trace's own labels. Got {num_adapters}: leave it out, "
                "or give a popularity.",
                field="num_adapters",
                value=num_adapters,
            )
        assignment = assign_as_labelled(replicated)
    else:
        if num_adapters is None and isinstance(popularity, CountedPopularity):
            num_adapters = len(popularity.requests)
        if num_adapters is None:
            raise InputError(
                "a number of adapters must be given with this popularity. Got none.",
                field="num_adapters",
                hint="say over how many adapters the requests spread",
            )
        assignment = assign_by_popularity(replicated, num_adapters=num_adapters, popularity=popularity, seed=seed)
    dealt = assign_ranks(len(assignment.names), ranks, seed=seed)
    make = trace_workload if is_replayed else derive_workload
    return make(replicated, assignment, dealt)


def adapters_to_records(workload: Workload) -> list[dict[str, Any]]:
    """Return one plain dict per adapter, with the keys and the order of a problem file.

    Numbers are rounded to 6 significant digits; what has its default is left out.
    """
    return [_adapter_record(adapter) for adapter in workload.adapters]


def _adapter_record(adapter: Adapter) -> dict[str, Any]:
    record: dict[str, Any] = {
        "name": adapter.name,
        "rank": adapter.rank,
        "rate_rps": _rounded(adapter.rate_rps),
        "prompt_tokens": _length_record(adapter.prompt_tokens),
        "output_tokens": _length_record(adapter.output_tokens),
    }
    if adapter.gap_cv != 1.0:
        record["gap_cv"] = _rounded(adapter.gap_cv)
        record["gap_law"] = adapter.gap_law
    return record


def _length_record(lengths: LengthDistribution) -> dict[str, Any]:
    record: dict[str, Any] = {}
    if lengths.quantiles is not None:
        record["quantiles"] = [max(_rounded(value), 1.0) for value in lengths.quantiles]
    else:
        assert lengths.mean is not None
        # Rounding must not move the mean across a bound.
        upper = float(lengths.max) if lengths.max is not None else np.inf
        record["mean"] = min(max(_rounded(lengths.mean), float(lengths.min)), upper)
        if lengths.std > 0:
            record["std"] = _rounded(lengths.std)
    if lengths.min != 1:
        record["min"] = lengths.min
    if lengths.max is not None:
        record["max"] = lengths.max
    return record


def _rounded(value: float) -> float:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def _as_rank(rank: int) -> LoraRank:
    """Return `rank` as vLLM's type; the adapter's own validation refuses another value."""
    return rank  # type: ignore[return-value]  # checked by pydantic in Adapter


def _check_fit(trace: Trace, assignment: Assignment, ranks: Sequence[int]) -> None:
    if len(assignment.adapter) != len(trace):
        raise InputError(
            f"an assignment must name an adapter for each of the trace's {len(trace)} requests. "
            f"Got {len(assignment.adapter)}: assign the adapters after replicating or cutting the trace.",
            file=trace.name,
            field="assignment",
            value=len(assignment.adapter),
        )
    if len(ranks) != len(assignment.names):
        raise InputError(
            f"there must be one rank per adapter ({len(assignment.names)}). Got {len(ranks)}.",
            field="ranks",
            value=len(ranks),
        )
    smallest, largest = int(assignment.adapter.min()), int(assignment.adapter.max())
    if smallest < 0 or largest >= len(assignment.names):
        raise InputError(
            f"an assignment must number its adapters from 0 to {len(assignment.names) - 1}. "
            f"Got {smallest} to {largest}.",
            field="assignment",
            value=smallest if smallest < 0 else largest,
        )


def _smoothed_lengths(
    tokens: NDArray[np.int64], adapter: NDArray[np.int32], counts: NDArray[np.int64], prior_requests: float
) -> list[LengthDistribution]:
    """Return one distribution per adapter from the lengths of all requests; see `derive_workload`."""
    num_adapters = len(counts)
    values = tokens.astype(np.float64)
    served = np.maximum(counts, 1)
    own_mean = np.bincount(adapter, weights=values, minlength=num_adapters) / served
    own_square = np.bincount(adapter, weights=values**2, minlength=num_adapters) / served
    own_max = np.zeros(num_adapters)
    np.maximum.at(own_max, adapter, values)
    # An adapter without requests has no figures of its own, also when nothing is smoothed.
    own_weight = np.where(counts > 0, counts / np.maximum(counts + prior_requests, 1e-300), 0.0)
    lost = counts * (1.0 - own_weight)
    if lost.sum() > 0:
        common_mean, common_square = (lost @ own_mean) / lost.sum(), (lost @ own_square) / lost.sum()
    else:
        common_mean, common_square = values.mean(), np.mean(values**2)
    mean = own_weight * own_mean + (1.0 - own_weight) * common_mean
    square = own_weight * own_square + (1.0 - own_weight) * common_square
    upper = np.ceil(own_weight * own_max + (1.0 - own_weight) * values.max())
    std = np.sqrt(np.maximum(square - mean**2, 0.0))
    # Below this the spread is the rounding of the two moments' difference.
    std[std < 1e-6 * mean] = 0.0
    bounded_mean = np.clip(mean, 1.0, upper)
    return [
        LengthDistribution(mean=float(bounded_mean[i]), std=float(std[i]), max=int(upper[i]))
        for i in range(num_adapters)
    ]
