"""One adapter's traffic divided among replicas by a router that draws one for each request, whatever came before.

A replica that gets the share p of a renewal process sees one as well (the thinning of renewal processes): between two
of its requests lie N gaps of the whole, where N is geometric with the mean 1 / p. With the gap's mean m and its
coefficient of variation c, the sum of N of them has the mean m / p and the variance
E[N] m^2 c^2 + Var[N] m^2 = m^2 c^2 / p + m^2 (1 - p) / p^2, so its squared coefficient of variation is

    1 + p * (c^2 - 1)

which is that of a Poisson process if the whole is one, and nearer to it otherwise. Mean and variance are exact; that
the gaps are drawn by the adapter's own law with them is an approximation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from twin.workload import Adapter, RequestTable, Workload, adapter_generator

# Of the choices that are made for the requests of a trace, which itself knows no seed.
ROUTER_SEED = 0


def share_name(adapter: str, number: int, count: int) -> str:
    """Return what the `number`-th (from 1) of `count` shares of an adapter is called; an only one is the adapter."""
    return adapter if count == 1 else f"{adapter} [{number}/{count}]"


def thinned_gap_cv(gap_cv: float, share: float) -> float:
    """Return the coefficient of variation of the gaps that a share, in (0, 1], of the requests has; see the module."""
    return math.sqrt(1.0 + share * (gap_cv * gap_cv - 1.0))


def thinned_adapter(adapter: Adapter, share: float, *, name: str) -> Adapter:
    """Return an adapter of that name with a share, in (0, 1], of the requests of another; itself where it is all."""
    if share == 1.0:
        return adapter
    changes = {"name": name, "rate_rps": adapter.rate_rps * share, "gap_cv": thinned_gap_cv(adapter.gap_cv, share)}
    return adapter.model_copy(update=changes)


def divided_workload(workload: Workload, shares: Sequence[Sequence[float]]) -> Workload:
    """Return the workload in which each adapter is as many as it has shares, one after the other.

    Each share draws its own requests. Those of a trace are given out at random, the same way each time.

    Parameters
    ----------
    shares
        Of each adapter: at least one, each in (0, 1], 1 in sum.

    Raises
    ------
    InputError
        When a share has the name of another adapter.
    """
    divided = tuple(
        thinned_adapter(adapter, share, name=share_name(adapter.name, number, len(own)))
        for adapter, own in zip(workload.adapters, shares, strict=True)
        for number, share in enumerate(own, start=1)
    )
    trace = None if workload.trace is None else _routed(workload.trace, workload.adapters, shares)
    return replace(workload, adapters=divided, trace=trace)


def _routed(trace: RequestTable, adapters: Sequence[Adapter], shares: Sequence[Sequence[float]]) -> RequestTable:
    """Return the requests with the shares that a router draws for them instead of the adapters."""
    counts = np.array([len(own) for own in shares])
    first = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int32)
    chosen = np.where(trace.adapter >= 0, first[trace.adapter], trace.adapter).astype(np.int32)
    for index in np.flatnonzero(counts > 1).tolist():
        mine = np.flatnonzero(trace.adapter == index)
        draws = adapter_generator(adapters[index].name, ROUTER_SEED).random(len(mine))
        # The last share takes what rounding leaves.
        chosen[mine] += np.searchsorted(np.cumsum(shares[index])[:-1], draws, side="right").astype(np.int32)
    return replace(trace, adapter=chosen)
