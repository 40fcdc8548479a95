"""Shares of an adapter's requests as the whole numbers that routers take, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from placer.plan_document import AdapterShare


def whole_weights(shares: Sequence[float], total: int) -> list[int]:
    """Return numbers >= 1 that are `total` in sum and as near to the shares as such numbers are.

    Parameters
    ----------
    shares
        In (0, 1]; not necessarily 1 in sum.
    total
        At least as large as there are shares.
    """
    ideal = [share * total / sum(shares) for share in shares]
    weights = [max(1, int(value)) for value in ideal]
    while missing := total - sum(weights):
        step = 1 if missing > 0 else -1
        open_ones = [index for index, weight in enumerate(weights) if weight + step >= 1]
        weights[max(open_ones, key=lambda index: step * (ideal[index] - weights[index]))] += step
    return weights


def shares_of_weights(
    weights: Mapping[str, int], noted: Mapping[str, AdapterShare | None], adapter: str
) -> dict[str, AdapterShare]:
    """Return an adapter's share on each of its replicas: what was noted, where the weights are those of what was noted.

    Parameters
    ----------
    weights, noted
        By replica. Weights that somebody changed count before what was noted.

    Returns
    -------
    dict
        Empty for an adapter on one replica that has no share noted.
    """
    known = [noted.get(replica) for replica in weights]
    given = [entry for entry in known if entry is not None]
    total = sum(weights.values())
    if len(given) == len(weights) and whole_weights([entry.share for entry in given], total) == list(weights.values()):
        return dict(zip(weights, given, strict=True))
    if len(weights) == 1:
        return {}
    return {
        replica: AdapterShare(adapter=adapter, share=weight / total, replica=number)
        for number, (replica, weight) in enumerate(weights.items(), start=1)
    }
