"""Kubernetes: a Deployment (apps/v1) and a Service (v1) for each replica, in a file of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from placer.export.annotation import ADAPTER_ANNOTATION, ANNOTATION, DOMAIN, Annotation, read_annotation
from placer.export.fleet_table import FleetTable, ReplicaRow
from placer.export.placement import PlacedReplica
from placer.export.target import Files, Imported, Target, imported, replica_of_arguments
from placer.export.yaml_text import from_yaml, to_yaml
from twin.errors import InputError

ANNOTATED = (
    "names of replicas and GPU types, shares (a Service has no weights), and settings that are no arguments of vLLM "
    f"are from the annotation `{ANNOTATION}` of each Deployment"
)
REPLICA_LABEL = f"{DOMAIN}/replica"
_IMAGES = {"0.32": "vllm/vllm-openai:v0.32.0", "0.8.5": "vllm/vllm-openai:v0.8.5"}
# vLLM loads weights and captures graphs before it answers.
_STARTUP_S = 1800
_PROBE_S = 10
# A server that is busy with requests answers late.
_ANSWER_S = 5


def common_labels(table: FleetTable) -> dict[str, str]:
    """Return the labels of every resource."""
    return {
        "app.kubernetes.io/name": "vllm",
        "app.kubernetes.io/managed-by": "placer",
        "app.kubernetes.io/part-of": table.options.name_prefix,
        **table.options.labels,
    }


def metadata(
    table: FleetTable, name: str, *, labels: Mapping[str, str], annotations: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the metadata of a resource."""
    return {
        "name": name,
        "namespace": table.options.namespace,
        "labels": {**common_labels(table), **labels},
        **({"annotations": dict(annotations)} if annotations else {}),
    }


def deployment(
    table: FleetTable,
    row: ReplicaRow,
    *,
    has_modules: bool = True,
    pod_labels: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the Deployment of a replica, one pod.

    Parameters
    ----------
    has_modules
        Whether the command loads the adapters; if not, somebody else may while it serves.
    pod_labels
        Further ones.
    """
    own = {REPLICA_LABEL: row.resource}
    labels = {**own, **(pod_labels or {})}
    selector = table.options.node_selectors.get(row.gpu_type)
    pod = {
        # Links put variables VLLM_... into pods beside a Service called vllm; vLLM takes some of them for its own.
        "enableServiceLinks": False,
        **({"nodeSelector": dict(selector)} if selector else {}),
        "containers": [_container(table, row, has_modules=has_modules)],
        "volumes": [{"name": "shared-memory", "emptyDir": {"medium": "Memory"}}, *_claims(table)],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(table, row.resource, labels=own, annotations={ANNOTATION: table.annotation(row).text()}),
        "spec": {
            "replicas": 1,
            # A second pod would need a second GPU for the time of an update.
            "strategy": {"type": "Recreate"},
            # Later than the probe gives up, which then says why.
            "progressDeadlineSeconds": _STARTUP_S + 600,
            "selector": {"matchLabels": own},
            "template": {"metadata": {"labels": {**common_labels(table), **labels}}, "spec": pod},
        },
    }


def service(table: FleetTable, row: ReplicaRow) -> dict[str, Any]:
    """Return the Service of a replica."""
    own = {REPLICA_LABEL: row.resource}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(table, row.resource, labels=own),
        "spec": {
            "selector": own,
            "ports": [{"name": "http", "port": table.options.port, "targetPort": "http", "protocol": "TCP"}],
        },
    }


def read_deployment(document: Mapping[str, Any], *, where: str) -> tuple[Annotation, PlacedReplica]:
    """Return the annotation of a Deployment, and its replica.

    Raises
    ------
    InputError
        When it is not one of an export.
    """
    try:
        container = document["spec"]["template"]["spec"]["containers"][0]
        command = [*container.get("command", ()), *container.get("args", ())]
        words = [expand(str(word)) for word in command]
        note = document["metadata"].get("annotations", {}).get(ANNOTATION)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise InputError(f"{where} must be a Deployment with a container. It lacks {error}.", file=where) from error
    if words[1:2] != ["serve"]:
        raise InputError(f"the container of a Deployment must run `vllm serve`. {where} does not.", file=where)
    annotation = read_annotation(note, where=where)
    return annotation, replica_of_arguments(words[2:], annotation, where=where)


def read_deployments(files: Files) -> tuple[dict[str, Annotation], dict[str, PlacedReplica]]:
    """Return annotation and replica of each Deployment in YAML files, by its name as a resource.

    Raises
    ------
    InputError
        See `read_deployment`.
    """
    found = {
        resource_name(document): read_deployment(document, where=where)
        for where, document in documents_in(files, "Deployment").items()
    }
    return {name: pair[0] for name, pair in found.items()}, {name: pair[1] for name, pair in found.items()}


def resource_name(document: Mapping[str, Any]) -> str:
    """Return the name of a resource; empty: it has none."""
    return str((document.get("metadata") or {}).get("name", ""))


def adapter_name(document: Mapping[str, Any], *, where: str) -> str:
    """Return the adapter that a resource is about.

    Raises
    ------
    InputError
        When it does not say so.
    """
    name = ((document.get("metadata") or {}).get("annotations") or {}).get(ADAPTER_ANNOTATION)
    if not isinstance(name, str):
        raise InputError(f"{where} must name its adapter in the annotation `{ADAPTER_ANNOTATION}`.", file=where)
    return name


def documents_in(files: Files, kind: str) -> dict[str, dict[str, Any]]:
    """Return the resources of a kind in YAML files, by file and name."""
    found = {}
    for path, text in files.items():
        for document in from_yaml(text, where=path):
            if document.get("kind") == kind:
                found[f"{path}: {kind} {resource_name(document)}"] = document
    return found


def escape(word: str) -> str:
    """Return a word of a command in which Kubernetes expands no variable."""
    return word.replace("$", "$$")


def expand(word: str) -> str:
    """Return what a container gets for a word of its command; variables, which exports do not have, stay."""
    return word.replace("$$", "$")


def _container(table: FleetTable, row: ReplicaRow, *, has_modules: bool) -> dict[str, Any]:
    options = table.options
    allows_loading = options.allow_runtime_loading or not has_modules
    variables: list[dict[str, Any]] = [
        {"name": name, "value": value} for name, value in table.environment(row, allows_loading=allows_loading).items()
    ]
    if options.hf_token_secret is not None:
        key = {"name": options.hf_token_secret, "key": "token"}
        variables.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": key}})
    arguments = table.serve_arguments(row, port=options.port, has_modules=has_modules)
    health = {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": _PROBE_S, "timeoutSeconds": _ANSWER_S}
    return {
        "name": "vllm",
        "image": options.image or _IMAGES[row.engine.vllm_version],
        "command": [escape(options.vllm), "serve"],
        "args": [escape(argument) for argument in arguments],
        "env": variables,
        "ports": [{"name": "http", "containerPort": options.port, "protocol": "TCP"}],
        "resources": {"limits": {options.gpu_resource: "1"}},
        "startupProbe": {**health, "failureThreshold": _STARTUP_S // _PROBE_S},
        "readinessProbe": {**health, "failureThreshold": 3},
        "livenessProbe": {**health, "failureThreshold": 6},
        "volumeMounts": [{"name": "shared-memory", "mountPath": "/dev/shm"}, *_mounts(table)],  # noqa: S108 - vLLM's  # nosec B108
    }


def _claims(table: FleetTable) -> list[dict[str, Any]]:
    claim = table.options.adapters_claim
    return [] if claim is None else [{"name": "adapters", "persistentVolumeClaim": {"claimName": claim}}]


def _mounts(table: FleetTable) -> list[dict[str, Any]]:
    if table.options.adapters_claim is None:
        return []
    return [{"name": "adapters", "mountPath": table.options.adapters_folder, "readOnly": True}]


def _write(table: FleetTable) -> dict[str, str]:
    return {f"{row.resource}.yaml": to_yaml([deployment(table, row), service(table, row)]) for row in table.rows}


def _read(files: Files) -> Imported:
    annotations, replicas = read_deployments(files)
    return imported(annotations, replicas, annotated=ANNOTATED)


TARGET = Target(name="kubernetes", write=_write, read=_read)
