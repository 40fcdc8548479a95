"""Resources for clusters and routers follow the published schemas (tests/data/schemas), and refer to what there is."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from jsonschema import Draft202012Validator

from placer.export.exporting import export_plan
from placer.export.options import ExportOptions
from placer.export.routing_table import RoutingTable, routing_table_schema
from placer.plan_document import Plan
from tests.placer.exported import divided_plan, plans

SCHEMAS = Path(__file__).parents[1] / "data" / "schemas"
RESOURCES = json.loads((SCHEMAS / "resources.json").read_text(encoding="utf-8"))
ENVOY = json.loads((SCHEMAS / "envoy.json").read_text(encoding="utf-8"))
FULL = ExportOptions(
    priority=1,
    labels={"team": "a"},
    adapters_claim="adapters",
    hf_token_secret="token",  # noqa: S106 - the name of a secret
    node_selectors={"h100-64gb": {"nvidia.com/gpu.product": "H100"}},
    in_cluster=True,
)
# What is looked at again with one change that the API refuses.
BROKEN: list[tuple[str, list[str | int], Any]] = [
    ("Deployment", ["spec", "replicas"], "1"),
    ("Deployment", ["spec", "template", "spec", "containers", 0, "arg"], []),
    ("Deployment", ["metadata", "name"], "Vllm"),
    ("Deployment", ["spec", "template", "spec", "containers", 0, "env", 0, "value"], True),
    ("Service", ["spec", "ports", 0, "port"], 0),
    ("ModelAdapter", ["spec", "artifactURL"], "relative"),
    ("ModelAdapter", ["spec", "podSelector"], {}),
    ("HTTPRoute", ["spec", "rules", 0, "backendRefs", 0, "weight"], 2_000_000),
    ("InferencePool", ["spec", "targetPortNumber"], 8000),
    ("InferenceObjective", ["spec", "poolRef", "kind"], "Service"),
]


def _problems(document: dict[str, Any]) -> list[str]:
    """Return what its schema says against a resource."""
    schema = {"$defs": RESOURCES["$defs"], "$ref": f"#/$defs/{document['kind']}"}
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema).iter_errors(document)]


def _resources(plan: Plan, target: str, options: ExportOptions = FULL) -> list[dict[str, Any]]:
    files = export_plan(plan, formats=[target], options=options)[target]
    return [document for text in files.values() for document in yaml.safe_load_all(text)]


@pytest.mark.parametrize("target", ["kubernetes", "aibrix", "gateway"])
@given(plan=plans())
@settings(max_examples=8)
def test_every_resource_follows_its_schema(target: str, plan: Plan) -> None:
    """Whatever GPUs and adapters are called; and no two of a kind have one name."""
    resources = _resources(plan, target)
    assert [problem for document in resources for problem in _problems(document)] == []
    names = [(document["kind"], document["metadata"]["name"]) for document in resources]
    assert len(set(names)) == len(names)


@given(plan=plans())
@settings(max_examples=8)
def test_envoys_bootstrap_follows_its_schema(plan: Plan) -> None:
    """And every route is to a cluster that there is."""
    (document,) = _resources(plan, "envoy")
    assert list(Draft202012Validator(ENVOY).iter_errors(document)) == []
    resources = document["static_resources"]
    clusters = {cluster["name"] for cluster in resources["clusters"]}
    for weighted in _values(resources["listeners"], "weighted_clusters"):
        assert {entry["name"] for entry in weighted["clusters"]} <= clusters
        assert sum(entry["weight"] for entry in weighted["clusters"]) == 1_000_000
    assert set(_values(resources["listeners"], "cluster")) <= clusters


@pytest.mark.parametrize(("kind", "path", "value"), BROKEN, ids=[f"{kind}-{path[-1]}" for kind, path, _ in BROKEN])
def test_the_schemas_refuse_what_the_apis_refuse(kind: str, path: list[str | int], value: object) -> None:
    """A schema that takes anything would check nothing."""
    target = {"Service": "kubernetes", "ModelAdapter": "aibrix"}.get(kind, "gateway")
    document = next(document for document in _resources(divided_plan(), target) if document["kind"] == kind)
    assert _problems(document) == []
    part: Any = document
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = value
    assert _problems(document) != []


def test_selectors_find_the_pods_that_the_plan_means() -> None:
    """One Deployment each for Services and pools; of a ModelAdapter, those of all replicas of its adapter."""
    for target, kind in (("kubernetes", "Service"), ("gateway", "InferencePool")):
        resources = _resources(divided_plan(), target)
        pods = [part["spec"]["template"]["metadata"]["labels"] for part in resources if part["kind"] == "Deployment"]
        for document in resources:
            if document["kind"] == kind:
                selector = document["spec"]["selector"]
                wanted = selector.get("matchLabels", selector).items()
                assert sum(wanted <= labels.items() for labels in pods) == 1
    adapters = {
        document["metadata"]["name"]: document["spec"]
        for document in _resources(divided_plan(), "aibrix")
        if document["kind"] == "ModelAdapter"
    }
    assert adapters["big"]["replicas"] == 2
    assert adapters["big"]["podSelector"]["matchExpressions"][0]["values"] == ["vllm-gpu-0", "vllm-gpu-1"]
    assert adapters["c"]["podSelector"] == {"matchLabels": {"lora-placer/replica": "vllm-gpu-2"}}


def test_the_routing_table_follows_the_schema_that_is_printed() -> None:
    """`placer schema routing-table` is about what is written."""
    text = export_plan(divided_plan(), formats=["routes"])["routes"]["routes.json"]
    assert list(Draft202012Validator(routing_table_schema()).iter_errors(json.loads(text))) == []
    assert RoutingTable.model_validate_json(text).adapters[0].name == "big"


def _values(data: Any, key: str) -> list[Any]:
    """Return the values of a key anywhere in plain data."""
    if isinstance(data, list):
        return [value for item in data for value in _values(item, key)]
    if not isinstance(data, dict):
        return []
    own = [data[key]] if key in data else []
    return own + [value for item in data.values() for value in _values(item, key)]
