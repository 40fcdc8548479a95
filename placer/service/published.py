"""What the service publishes about itself: its OpenAPI document, and docs/http-reference.md made of it.

Usage: ``python -m placer.service.published > docs/http-reference.md``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from placer.service.settings import ServiceSettings
from twin.errors import SolverError

_NEEDED = ("fastapi", "uvicorn", "prometheus_client")
_HEAD = """# HTTP reference

Every path of `placer serve`, and the documents that are its own. Made by `python -m placer.service.published`; do not
edit it. The whole OpenAPI document, with the documents of files, is at `/openapi.json` of a running service, and
`placer schema openapi` prints it. [service.md](service.md) says how to run and use the service.
"""
# Documents of the service; those of files are described by `placer schema`.
_OWN = (
    "SolveRequest",
    "SolveOptions",
    "ReplanRequest",
    "ReplanOptions",
    "VerifyRequest",
    "VerifyOptions",
    "WhatIfRequest",
    "WhatIfOptions",
    "Job",
    "IncumbentSeen",
    "JobList",
    "ErrorDetails",
    "Health",
)


def require_extra() -> None:
    """Raise SolverError, which names the extra, unless everything is installed that serves HTTP."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise SolverError(
            f"the HTTP service must have the libraries of the extra `serve`. Not installed: {', '.join(missing)}.",
            field="extra",
            hint="pip install 'lora-placer[serve]'",
        )


def openapi_document() -> dict[str, Any]:
    """Return the OpenAPI document of the service (SolverError without the extra)."""
    require_extra()
    from placer.service.app import make_app  # noqa: PLC0415 - the extra may be missing
    from placer.service.service import Service  # noqa: PLC0415

    return make_app(Service(ServiceSettings(Path()))).openapi()


def http_reference() -> str:
    """Return the document for people."""
    document = openapi_document()
    parts = [_HEAD, "## Paths\n"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts.append("\n".join(_operation(method, path, operation)))
    parts.append("## Documents\n")
    for name in _OWN:
        # Where reading and writing differ, requests are read.
        schemas = document["components"]["schemas"]
        schema = schemas.get(name) or schemas[f"{name}-Input"]
        parts.append("\n".join(_document(name, schema)))
    return "\n".join(parts)


def _operation(method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"### {method.upper()} {path}\n"
    yield f"{operation['description']}\n"
    if "requestBody" in operation:
        (content,) = operation["requestBody"]["content"].values()
        yield f"Body: {_type(content['schema'])}.\n"
    for parameter in operation.get("parameters", ()):
        schema = parameter["schema"]
        default = f", default {schema['default']}" if "default" in schema else ""
        about = parameter.get("description", "")
        yield f"- {parameter['in']} `{parameter['name']}`: {_type(schema)}{default}. {about}".rstrip()
    if operation.get("parameters"):
        yield ""
    yield "| status | answer | when |\n|---|---|---|"
    for status, answer in sorted(operation["responses"].items()):
        kinds = [_type(content.get("schema", {})) or kind for kind, content in answer.get("content", {}).items()]
        yield f"| {status} | {', '.join(kinds)} | {_when(answer)} |"
    yield ""


def _when(answer: dict[str, Any]) -> str:
    text = str(answer["description"])
    return "It is done." if text == "Successful Response" else text


def _document(name: str, schema: dict[str, Any]) -> Iterator[str]:
    yield f"### {name}\n"
    yield f"{schema.get('description', '').partition('Attributes')[0].strip()}\n"
    yield "| field | type | default |\n|---|---|---|"
    required = set(schema.get("required", ()))
    for field, entry in schema["properties"].items():
        default = "required" if field in required else _default(entry.get("default"))
        yield f"| `{field}` | {_type(entry)} | {default} |"
    yield ""


def _default(value: Any) -> str:
    return "" if value is None or isinstance(value, dict) else f"`{value}`"


def _type(schema: dict[str, Any]) -> str:
    """Return the type of a value in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2].removesuffix("-Input").removesuffix("-Output")
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(_type(option) for option in schema[key]))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type", "any" if schema == {} else "")).replace("object", "mapping")


if __name__ == "__main__":
    sys.stdout.write(http_reference())
