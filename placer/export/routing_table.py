"""The routing table as JSON: which replicas serve each adapter, where they are, and which part each gets."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from placer.export.annotation import Annotation
from placer.export.fleet_table import FleetTable
from placer.export.header_value import header_value
from placer.export.placement import PlacedReplica
from placer.export.target import Files, Imported, Target, imported
from placer.plan_document import AdapterShare
from twin.engine import EngineConfig
from twin.errors import InputError

FILE_NAME = "routes.json"
ANNOTATED = "nothing is from an annotation: the table is placer's own, and has a field for everything"


class _Document(BaseModel):
    """Part of a routing table: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TableReplica(_Document):
    """A replica.

    Attributes
    ----------
    resource
        Its name in units, resources, clusters and upstreams.
    url
        Where requests go, without a path.
    """

    name: str
    resource: str
    gpu_type: str
    url: str
    engine: EngineConfig


class TableRoute(_Document):
    """Part of an adapter's requests.

    Attributes
    ----------
    replica, url
        Who gets it.
    share
        In (0, 1]; those of an adapter are 1 in sum.
    number
        Which of the adapter's shares it is, from 1; ``None``: the adapter is not divided.
    """

    replica: str
    url: str
    share: float = Field(gt=0, le=1, allow_inf_nan=False)
    number: int | None = Field(default=None, ge=1)


class TableAdapter(_Document):
    """An adapter: what the routers' header says for it, where its weights are, and its routes."""

    name: str
    header_value: str
    source: str
    routes: tuple[TableRoute, ...] = Field(min_length=1)


class RoutingTable(_Document):
    """What a router has to know.

    Attributes
    ----------
    model, base_name
        The plan's name of the model, and that of the base model in requests.
    header
        That names the adapter for routers which do not read bodies.
    replicas, adapters
        In the plan's order.
    """

    schema_version: Literal[1] = 1
    model: str
    base_name: str
    header: str
    replicas: tuple[TableReplica, ...]
    adapters: tuple[TableAdapter, ...]


def routing_table(table: FleetTable) -> RoutingTable:
    """Return the routing table of a plan."""
    sources = {name: source for row in table.rows for name, source in row.adapters.items()}
    return RoutingTable(
        model=table.model,
        base_name=table.base_name,
        header=table.options.header,
        replicas=tuple(
            TableReplica(name=row.name, resource=row.resource, gpu_type=row.gpu_type, url=row.url, engine=row.engine)
            for row in table.rows
        ),
        adapters=tuple(
            TableAdapter(
                name=name,
                header_value=header_value(name),
                source=sources[name],
                routes=tuple(
                    TableRoute(
                        replica=route.replica.name,
                        url=route.replica.url,
                        share=route.share,
                        number=next((entry.replica for entry in route.replica.shares if entry.adapter == name), None),
                    )
                    for route in routes
                ),
            )
            for name, routes in table.routes().items()
        ),
    )


def routing_table_schema() -> dict[str, Any]:
    """Return the JSON Schema of the routing table."""
    schema = RoutingTable.model_json_schema(mode="serialization")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "placer routing table"
    return schema


def _write(table: FleetTable) -> dict[str, str]:
    data = routing_table(table).model_dump(mode="json")
    return {FILE_NAME: json.dumps(data, indent=2, sort_keys=True) + "\n"}


def _read(files: Files) -> Imported:
    annotations: dict[str, Annotation] = {}
    replicas: dict[str, PlacedReplica] = {}
    for path, text in files.items():
        try:
            table = RoutingTable.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise InputError(f"{path} must be a routing table. {first['loc']}: {first['msg']}.", file=path) from error
        known = {replica.name for replica in table.replicas}
        for adapter in table.adapters:
            unknown = sorted({route.replica for route in adapter.routes} - known)
            if unknown:
                raise InputError(f"routes must be to replicas of the table. {path}: {unknown[0]!r} is none.", file=path)
        for replica in table.replicas:
            where = f"{path}: {replica.name}"
            annotations[where] = Annotation(model=table.model, replica=replica.name, gpu_type=replica.gpu_type)
            replicas[where] = _placed(table, replica)
    return imported(annotations, replicas, annotated=ANNOTATED)


def _placed(table: RoutingTable, replica: TableReplica) -> PlacedReplica:
    own = [
        (adapter.name, route) for adapter in table.adapters for route in adapter.routes if route.replica == replica.name
    ]
    return PlacedReplica(
        name=replica.name,
        gpu_type=replica.gpu_type,
        adapters=tuple(name for name, _ in own),
        shares=tuple(
            AdapterShare(adapter=name, share=route.share, replica=route.number)
            for name, route in own
            if route.number is not None
        ),
        engine=replica.engine,
    )


TARGET = Target(name="routes", write=_write, read=_read)
