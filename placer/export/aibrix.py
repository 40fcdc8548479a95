"""AIBrix: a Deployment for each replica, and a ModelAdapter (model.aibrix.ai/v1alpha1) for each adapter.

AIBrix's controller loads an adapter on the pods that its selector finds, under the name of the ModelAdapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from placer.export.annotation import ADAPTER_ANNOTATION, ANNOTATION
from placer.export.fleet_table import FleetTable, Route
from placer.export.kubernetes import (
    REPLICA_LABEL,
    adapter_name,
    deployment,
    documents_in,
    metadata,
    read_deployments,
    resource_name,
)
from placer.export.names import resource_names
from placer.export.target import Files, Imported, Target, imported
from placer.export.yaml_text import to_yaml
from twin.errors import InputError

ADAPTERS = "model-adapters.yaml"
ANNOTATED = (
    f"names of adapters are from the annotation `{ADAPTER_ANNOTATION}` of each ModelAdapter; names of replicas and GPU "
    "types, shares (AIBrix routes by its own policy), and settings that are no arguments of vLLM from "
    f"`{ANNOTATION}` of each Deployment"
)
_PREFIX = "model.aibrix.ai"
_HUGGING_FACE = "huggingface://"


def model_adapter(table: FleetTable, adapter: str, routes: tuple[Route, ...]) -> dict[str, Any]:
    """Return the ModelAdapter of an adapter, on exactly the pods of its replicas."""
    targets = [route.replica.resource for route in routes]
    own = {REPLICA_LABEL: targets[0]}
    among = {"key": REPLICA_LABEL, "operator": "In", "values": targets}
    source = routes[0].replica.adapters[adapter]
    return {
        "apiVersion": f"{_PREFIX}/v1alpha1",
        "kind": "ModelAdapter",
        "metadata": metadata(
            table,
            table.adapter_resources[adapter],
            labels={f"{_PREFIX}/name": table.adapter_resources[adapter], f"{_PREFIX}/port": str(table.options.port)},
            annotations={ADAPTER_ANNOTATION: adapter},
        ),
        "spec": {
            "baseModel": _base_model(table),
            "podSelector": {"matchLabels": own} if len(targets) == 1 else {"matchExpressions": [among]},
            "replicas": len(targets),
            "artifactURL": source if "://" in source or source.startswith("/") else f"{_HUGGING_FACE}{source}",
        },
    }


def _base_model(table: FleetTable) -> str:
    """Return the base model's name as the value of a label."""
    return next(iter(resource_names([table.base_name]).values()))


def _write(table: FleetTable) -> dict[str, str]:
    labels = {
        f"{_PREFIX}/name": _base_model(table),
        f"{_PREFIX}/port": str(table.options.port),
        "adapter.model.aibrix.ai/enabled": "true",
    }
    files = {
        f"{row.resource}.yaml": to_yaml([deployment(table, row, has_modules=False, pod_labels=labels)])
        for row in table.rows
    }
    adapters = (model_adapter(table, name, routes) for name, routes in table.routes().items())
    return files | {ADAPTERS: to_yaml(adapters)}


def _read(files: Files) -> Imported:
    annotations, replicas = read_deployments(files)
    on: dict[str, list[str]] = {name: [] for name in replicas}
    for where, document in documents_in(files, "ModelAdapter").items():
        name = adapter_name(document, where=where)
        targets = _targets(document, where=where)
        unknown = sorted(set(targets) - on.keys())
        if unknown:
            raise InputError(f"a ModelAdapter must select pods of the export. {where}: {unknown[0]!r}.", file=where)
        for target in targets:
            on[target].append(name)
    for name, replica in replicas.items():
        # The Deployment loads no adapters, so that none of its shares was kept.
        shares = tuple(entry for entry in annotations[name].shares if entry.adapter in on[name])
        replicas[name] = replica.model_copy(update={"adapters": tuple(on[name]), "shares": shares})
    return imported(annotations, replicas, annotated=ANNOTATED)


def _targets(document: Mapping[str, Any], *, where: str) -> list[str]:
    selector = (document.get("spec") or {}).get("podSelector") or {}
    labels = selector.get("matchLabels") or {}
    among = [
        entry.get("values", [])
        for entry in selector.get("matchExpressions") or []
        if entry.get("key") == REPLICA_LABEL and entry.get("operator") == "In"
    ]
    if REPLICA_LABEL not in labels and len(among) != 1:
        raise InputError(f"{where} must select pods by `{REPLICA_LABEL}`.", file=where, value=resource_name(document))
    return [labels[REPLICA_LABEL]] if REPLICA_LABEL in labels else list(among[0])


TARGET = Target(name="aibrix", write=_write, read=_read)
