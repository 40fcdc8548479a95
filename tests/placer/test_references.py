"""The generated references in docs/ are what the commands print now."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize(
    ("file", "module", "maker"),
    [
        ("cli-reference.md", "placer.cli.reference", "cli_reference"),
        ("http-reference.md", "placer.service.published", "http_reference"),
    ],
)
def test_references_are_up_to_date(file: str, module: str, maker: str) -> None:
    """Whoever changes an option or a path makes the reference again: `python -m MODULE > docs/FILE`."""
    make: Callable[[], str] = getattr(importlib.import_module(module), maker)
    assert (DOCS / file).read_text(encoding="utf-8") == make()


def test_every_path_and_document_of_openapi_resolves() -> None:
    """Generators of clients follow every reference."""
    from placer.service.published import openapi_document

    document = openapi_document()
    text = json.dumps(document)
    references = {part.split('"')[0] for part in text.split('"$ref": "')[1:]}
    names = {reference.rpartition("/")[2] for reference in references}
    assert names <= document["components"]["schemas"].keys()
    assert {"/v1/solve", "/v1/replan", "/v1/verify", "/v1/whatif"} <= document["paths"].keys()
