"""Rates of adapters from whether they have a request when the server is looked at, where nothing counts them.

vLLM counts requests for a server, not for an adapter; ``vllm:lora_requests_info`` only lists the adapters that have
one. If requests of an adapter arrive at the rate r (Poisson) and stay for W seconds in the mean, none is there with the
probability ``exp(-r W)`` (M/G/infinity; Little). So ``r W = -ln(1 - p)`` for an adapter that is listed at a share p of
the looks; with one W for all adapters, these are the shares of what the server counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Looks closer together than this many mean stays see the same requests.
STAYS_BETWEEN_LOOKS = 2.0


@dataclass(frozen=True)
class PresenceShares:
    """Shares of a server's requests.

    Attributes
    ----------
    shares
        By adapter; they add up to 1.
    variation
        Relative standard deviation of each share before the sum is known.
    num_looks
        Looks that count as independent.
    """

    shares: Mapping[str, float]
    variation: Mapping[str, float]
    num_looks: float


def shares_from_presence(looks: Sequence[frozenset[str]], *, span_s: float, stay_s: float | None) -> PresenceShares:
    """Return the shares of adapters in a server's requests.

    Parameters
    ----------
    looks
        The adapters with requests, at each scrape.
    span_s
        From the first look to the last, seconds.
    stay_s
        Mean time of a request in the server, seconds; ``None``: not known, and every look counts as independent.

    Returns
    -------
    Empty shares where no look showed an adapter.
    """
    names = sorted(frozenset().union(*looks))
    if not names:
        return PresenceShares({}, {}, 0.0)
    independent = float(len(looks))
    if stay_s:
        independent = min(independent, 1.0 + span_s / (STAYS_BETWEEN_LOOKS * stay_s))
    loads, variation = {}, {}
    for name in names:
        # Half a look more on either side: an adapter that was always there has no finite estimate.
        p = (sum(name in look for look in looks) + 0.5) / (len(looks) + 1.0)
        loads[name] = -math.log1p(-p)
        variation[name] = math.sqrt(p / ((1.0 - p) * independent)) / loads[name]
    total = sum(loads.values())
    return PresenceShares({name: load / total for name, load in loads.items()}, variation, independent)
