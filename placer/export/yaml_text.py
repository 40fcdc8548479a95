"""Cluster resources as YAML that every parser reads as the same: strings that could be anything else are quoted."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import yaml

from twin.errors import InputError

# Parsers of YAML 1.1 and 1.2 differ in which other words are numbers, truth values or dates.
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null", "inf", "nan"})


# The C parser is ten times faster; PyYAML is also built without it.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper with double quotes, without references to parts that are equal."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal parts out: not every reader of resources follows references."""
        del data
        return True

    def represent_string(self, data: str) -> yaml.Node:
        """Return a plain scalar where nobody can take it for something else, and a quoted one elsewhere."""
        is_plain = _PLAIN.fullmatch(data) is not None and data.lower() not in _WORDS
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if is_plain else '"')


_Dumper.add_representer(str, _Dumper.represent_string)


def to_yaml(documents: Iterable[dict[str, Any]]) -> str:
    """Return documents as one file, with their keys in the order that they have."""
    # Lines are not folded: whoever looks for a name with a tool finds it whole.
    text = yaml.dump_all(
        documents, Dumper=_Dumper, sort_keys=False, explicit_start=True, width=10**9, allow_unicode=False
    )
    return str(text)


def from_yaml(text: str, *, where: str) -> list[dict[str, Any]]:
    """Return the documents of a file.

    Raises
    ------
    InputError
        When it is no YAML of mappings.
    """
    try:
        documents = [document for document in yaml.load_all(text, Loader=_Loader) if document is not None]
    except yaml.YAMLError as error:
        raise InputError(f"{where} must be YAML. {error}.", file=where) from error
    if not all(isinstance(document, dict) for document in documents):
        raise InputError(f"{where} must hold resources.", file=where)
    return documents
