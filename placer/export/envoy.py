"""Envoy: a bootstrap file with a listener, a route for each adapter by the header that names it, and the clusters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from placer.export.annotation import DOMAIN, read_annotation
from placer.export.fleet_table import FleetTable, ReplicaRow, Route
from placer.export.header_value import adapter_of, header_value
from placer.export.routed import routed_replicas
from placer.export.routing_weights import whole_weights
from placer.export.target import Files, Imported, Target, imported
from placer.export.yaml_text import from_yaml, to_yaml
from twin.errors import InputError

FILE_NAME = "envoy.yaml"
ANNOTATED = (
    "names of replicas and GPU types, all settings, and shares beyond six decimals are from the metadata "
    f"`{DOMAIN}` of each cluster"
)
_TYPES = "type.googleapis.com/envoy.extensions"
_MANAGER = "filters.network.http_connection_manager.v3.HttpConnectionManager"
_MILLION = 1_000_000


def route_configuration(table: FleetTable) -> dict[str, Any]:
    """Return the routes (config.route.v3.RouteConfiguration): who names no adapter of the plan gets status 404."""
    header = table.options.header
    refusal = f"no replica serves the adapter that the header {header} names"
    return {
        "name": table.options.name_prefix,
        "virtual_hosts": [
            {
                "name": table.options.name_prefix,
                "domains": ["*"],
                "routes": [
                    *(_route(header, name, routes) for name, routes in table.routes().items()),
                    {"match": {"prefix": "/"}, "direct_response": {"status": 404, "body": {"inline_string": refusal}}},
                ],
            }
        ],
    }


def _route(header: str, adapter: str, routes: tuple[Route, ...]) -> dict[str, Any]:
    value = {"name": header.lower(), "string_match": {"exact": header_value(adapter)}}
    # Answers end when the model does, and one that is not streamed is silent until then.
    action: dict[str, Any] = {"timeout": "0s", "idle_timeout": "3600s"}
    if len(routes) == 1:
        action["cluster"] = routes[0].replica.resource
    else:
        weights = whole_weights([route.share for route in routes], _MILLION)
        clusters = [
            {"name": route.replica.resource, "weight": weight} for route, weight in zip(routes, weights, strict=True)
        ]
        action["weighted_clusters"] = {"clusters": clusters}
    return {"match": {"prefix": "/", "headers": [value]}, "route": action}


def _cluster(table: FleetTable, row: ReplicaRow) -> dict[str, Any]:
    address = {"socket_address": {"address": row.host, "port_value": row.port}}
    return {
        "name": row.resource,
        "type": "STRICT_DNS",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": row.resource,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
        "metadata": {"filter_metadata": {DOMAIN: {"plan": table.whole_annotation(row).text()}}},
    }


def _write(table: FleetTable) -> dict[str, str]:
    router = {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{_TYPES}.filters.http.router.v3.Router"}}
    manager = {
        "@type": f"{_TYPES}.{_MANAGER}",
        "stat_prefix": table.options.name_prefix,
        "route_config": route_configuration(table),
        "http_filters": [router],
    }
    address = {"socket_address": {"address": "0.0.0.0", "port_value": table.options.router_port}}  # noqa: S104 - a router  # nosec B104
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    listener = {"name": table.options.name_prefix, "address": address, "filter_chains": [{"filters": filters}]}
    resources = {"listeners": [listener], "clusters": [_cluster(table, row) for row in table.rows]}
    return {FILE_NAME: to_yaml([{"static_resources": resources}])}


def _read(files: Files) -> Imported:
    if FILE_NAME not in files:
        raise InputError(f"an export for Envoy must have {FILE_NAME}. It has {', '.join(files) or 'nothing'}.")
    try:
        resources = from_yaml(files[FILE_NAME], where=FILE_NAME)[0]["static_resources"]
        notes = {cluster["name"]: _note(cluster) for cluster in resources["clusters"]}
        manager = resources["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
        routes = manager["route_config"]["virtual_hosts"][0]["routes"]
        weights = dict(_weights(route) for route in routes if "route" in route)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(
            f"{FILE_NAME} must be as `placer export` wrote it. It lacks {error}.", file=FILE_NAME
        ) from error
    annotations = {name: read_annotation(note, where=f"{FILE_NAME}: {name}") for name, note in notes.items()}
    return imported(annotations, routed_replicas(annotations, weights), annotated=ANNOTATED)


def _note(cluster: Mapping[str, Any]) -> str | None:
    noted = cluster.get("metadata", {}).get("filter_metadata", {}).get(DOMAIN, {}).get("plan")
    return noted if noted is None else str(noted)


def _weights(route: Mapping[str, Any]) -> tuple[str, dict[str, int]]:
    name = adapter_of(route["match"]["headers"][0]["string_match"]["exact"])
    action = route["route"]
    if "cluster" in action:
        return name, {action["cluster"]: 1}
    return name, {entry["name"]: int(entry["weight"]) for entry in action["weighted_clusters"]["clusters"]}


TARGET = Target(name="envoy", write=_write, read=_read)
