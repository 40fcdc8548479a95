"""Gateway API with its inference extension, as llm-d uses it: pools, and routes by the name of the adapter.

Each replica is an InferencePool (inference.networking.k8s.io/v1) of its own, and each adapter an HTTPRoute to its pools
with its shares as weights. The extension's body-based router copies `model` of a request's body into the header that
the routes look at. An InferenceObjective (inference.networking.x-k8s.io/v1alpha2) says how urgent its requests are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from placer.export.annotation import ADAPTER_ANNOTATION, ANNOTATION
from placer.export.fleet_table import FleetTable, ReplicaRow, Route
from placer.export.header_value import header_value
from placer.export.kubernetes import (
    REPLICA_LABEL,
    adapter_name,
    deployment,
    documents_in,
    metadata,
    read_deployments,
    resource_name,
)
from placer.export.routed import routed_shares
from placer.export.routing_weights import whole_weights
from placer.export.target import Files, Imported, Target, imported
from placer.export.yaml_text import to_yaml
from twin.errors import InputError

ROUTES = "http-routes.yaml"
ANNOTATED = (
    f"names of adapters are from the annotation `{ADAPTER_ANNOTATION}` of each HTTPRoute; names of replicas and GPU "
    "types, shares beyond six decimals, and settings that are no arguments of vLLM from "
    f"`{ANNOTATION}` of each Deployment"
)
_POOLS = "inference.networking.k8s.io"
_EXPERIMENTS = "inference.networking.x-k8s.io"
_ROUTES = "gateway.networking.k8s.io"
# The largest weight of a backend is a million.
_MILLION = 1_000_000
_PICKER_PORT = 9002


def inference_pool(table: FleetTable, row: ReplicaRow) -> dict[str, Any]:
    """Return the pool of a replica, its only pod."""
    own = {REPLICA_LABEL: row.resource}
    picker = table.options.endpoint_picker.replace("{name}", row.resource)
    return {
        "apiVersion": f"{_POOLS}/v1",
        "kind": "InferencePool",
        "metadata": metadata(table, row.resource, labels=own),
        "spec": {
            "selector": {"matchLabels": own},
            "targetPorts": [{"number": table.options.port}],
            "endpointPickerRef": {"name": picker, "port": {"number": _PICKER_PORT}},
        },
    }


def inference_objective(table: FleetTable, row: ReplicaRow, *, priority: int) -> dict[str, Any]:
    """Return the objective of a replica's pool."""
    return {
        "apiVersion": f"{_EXPERIMENTS}/v1alpha2",
        "kind": "InferenceObjective",
        "metadata": metadata(table, row.resource, labels={REPLICA_LABEL: row.resource}),
        "spec": {
            "priority": priority,
            "poolRef": {"group": _POOLS, "kind": "InferencePool", "name": row.resource},
        },
    }


def http_route(table: FleetTable, adapter: str, routes: tuple[Route, ...]) -> dict[str, Any]:
    """Return the route of an adapter; its backends' weights are a million in sum."""
    weights = whole_weights([route.share for route in routes], _MILLION)
    header = {"type": "Exact", "name": table.options.model_header, "value": model_value(adapter)}
    return {
        "apiVersion": f"{_ROUTES}/v1",
        "kind": "HTTPRoute",
        "metadata": metadata(
            table, table.adapter_resources[adapter], labels={}, annotations={ADAPTER_ANNOTATION: adapter}
        ),
        "spec": {
            "parentRefs": [{"group": _ROUTES, "kind": "Gateway", "name": table.options.gateway}],
            "rules": [
                {
                    # Answers end when the model does.
                    "timeouts": {"request": "0s", "backendRequest": "0s"},
                    "matches": [{"path": {"type": "PathPrefix", "value": "/"}, "headers": [header]}],
                    "backendRefs": [
                        {"group": _POOLS, "kind": "InferencePool", "name": route.replica.resource, "weight": weight}
                        for route, weight in zip(routes, weights, strict=True)
                    ],
                }
            ],
        },
    }


def model_value(adapter: str) -> str:
    """Return the header's value for an adapter: its name as it is in the body, where a header can have it."""
    is_possible = adapter.isascii() and adapter.isprintable() and adapter == adapter.strip()
    return adapter if is_possible else header_value(adapter)


def _write(table: FleetTable) -> dict[str, str]:
    routes = table.routes()
    values: dict[str, str] = {}
    for name in routes:
        other = values.setdefault(model_value(name), name)
        if other != name:
            raise InputError(
                f"adapters must have different names in a header. {name!r} and {other!r} have not.", value=name
            )
    files = {f"{row.resource}.yaml": to_yaml(_of_replica(table, row)) for row in table.rows}
    return files | {ROUTES: to_yaml(http_route(table, name, own) for name, own in routes.items())}


def _of_replica(table: FleetTable, row: ReplicaRow) -> list[dict[str, Any]]:
    priority = table.options.priority
    objective = [] if priority is None else [inference_objective(table, row, priority=priority)]
    return [deployment(table, row), inference_pool(table, row), *objective]


def _read(files: Files) -> Imported:
    annotations, replicas = read_deployments(files)
    pods = {
        resource_name(document): _pod_of(document, where=where)
        for where, document in documents_in(files, "InferencePool").items()
    }
    weights = {}
    for where, document in documents_in(files, "HTTPRoute").items():
        name = adapter_name(document, where=where)
        weights[name] = _weights(document, pods, where=where)
        for target in weights[name].keys() & replicas.keys():
            if name not in replicas[target].adapters:
                raise InputError(f"a route must be to replicas that load the adapter. {where}: {target}.", file=where)
    shares = routed_shares(annotations, weights)
    for target, replica in replicas.items():
        lost = [name for name in replica.adapters if target not in weights.get(name, {})]
        if lost:
            raise InputError(
                f"adapters that {target} loads must have a route to it. {lost[0]!r} has none.", value=target
            )
        replicas[target] = replica.model_copy(update={"shares": shares[target]})
    return imported(annotations, replicas, annotated=ANNOTATED)


def _pod_of(document: Mapping[str, Any], *, where: str) -> str:
    try:
        return str(document["spec"]["selector"]["matchLabels"][REPLICA_LABEL])
    except (KeyError, TypeError) as error:
        raise InputError(f"{where} must select pods by `{REPLICA_LABEL}`.", file=where) from error


def _weights(document: Mapping[str, Any], pods: Mapping[str, str], *, where: str) -> dict[str, int]:
    try:
        backends = document["spec"]["rules"][0]["backendRefs"]
        # The default weight of a backend is 1.
        return {pods[entry["name"]]: int(entry.get("weight", 1)) for entry in backends}
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"{where} must have backends that are pools of the export. {error!r}.", file=where) from error


TARGET = Target(name="gateway", write=_write, read=_read)
