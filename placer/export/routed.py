"""Replicas read back from routers: their adapters are those that have a route, their shares those of the weights."""

from __future__ import annotations

from collections.abc import Mapping

from placer.export.annotation import Annotation
from placer.export.placement import PlacedReplica
from placer.export.routing_weights import shares_of_weights
from placer.plan_document import AdapterShare
from twin.errors import InputError

Weights = Mapping[str, Mapping[str, int]]


def routed_replicas(annotations: Mapping[str, Annotation], weights: Weights) -> dict[str, PlacedReplica]:
    """Return replicas, with all settings from their annotations.

    Parameters
    ----------
    annotations
        By the name that routes have for a replica.
    weights
        By adapter, and by the same name.

    Raises
    ------
    InputError
        When a route is to a replica that there is not.
    """
    shares = routed_shares(annotations, weights)
    adapters: dict[str, list[str]] = {target: [] for target in annotations}
    for name, targets in weights.items():
        for target in targets:
            adapters[target].append(name)
    return {
        target: annotation.model_copy(update={"shares": shares[target]}).replica_with(
            adapters=tuple(adapters[target]), engine={}, where=target
        )
        for target, annotation in annotations.items()
    }


def routed_shares(annotations: Mapping[str, Annotation], weights: Weights) -> dict[str, tuple[AdapterShare, ...]]:
    """Return the shares of each replica that weights say; see `routed_replicas`."""
    shares: dict[str, list[AdapterShare]] = {target: [] for target in annotations}
    noted = {target: {entry.adapter: entry for entry in note.shares} for target, note in annotations.items()}
    for name, targets in weights.items():
        unknown = sorted(targets.keys() - annotations.keys())
        if unknown:
            raise InputError(
                f"every route must be to a replica of the export. That of {name!r} is to {unknown[0]!r}.", value=name
            )
        own = {target: noted[target].get(name) for target in targets}
        for target, entry in shares_of_weights(targets, own, name).items():
            shares[target].append(entry)
    return {target: tuple(entries) for target, entries in shares.items()}
