"""Problem and plan files: read with messages that name file and line, written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Hashable
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from placer.garbage import without_collection
from placer.plan_document import InputFile, Plan
from solvers.problem import Problem, parse_problem
from twin.atomic_write import require_writable, write_atomically
from twin.errors import InputError
from twin.profile import shipped_profiles

__all__ = [
    "ProblemFromFile",
    "load_plan",
    "load_problem",
    "plan_to_json",
    "problem_of_document",
    "read_document",
    "require_writable",
    "save_plan",
    "sha256_of",
    "write_atomically",
]

# The C parser is ten times faster; PyYAML is also built without it.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MERGE_TAG = "tag:yaml.org,2002:merge"


@dataclass(frozen=True)
class ProblemFromFile(Problem):
    """A problem that knows which files it was read from.

    Attributes
    ----------
    inputs
        The problem file, and the trace and popularity files that it names.
    """

    inputs: tuple[InputFile, ...] = ()

    @cached_property
    def told_positions(self) -> dict[str, int]:
        """Where each adapter that users know is among them, by name."""
        return {adapter.name: position for position, adapter in enumerate(self.told.adapters)}


class _UniqueKeyLoader(_Loader):  # type: ignore[misc]  # the loader is chosen at run time
    """PyYAML's safe loader, except that a repeated key is an error instead of a silent loss.

    Each scalar is constructed once: thousands of adapters share keys and most values.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._scalars: dict[tuple[str, str], Any] = {}

    def construct_object(self, node: yaml.Node, *, deep: bool = False) -> Any:
        """Build the value of `node`; scalars are immutable, so that those of one tag and text may be one object."""
        if type(node) is not yaml.ScalarNode:
            return super().construct_object(node, deep=deep)
        key = node.tag, node.value
        if key not in self._scalars:
            self._scalars[key] = super().construct_object(node, deep=deep)
        return self._scalars[key]

    def construct_mapping(self, node: yaml.MappingNode, *, deep: bool = False) -> dict[Hashable, Any]:
        """Build the mapping of `node` after looking for keys that stand in it twice."""
        first_line: dict[object, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == _MERGE_TAG:
                continue
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else id(key_node)
            line = key_node.start_mark.line + 1
            if key in first_line:
                raise _DuplicateKeyError(str(key), line, first_line[key])
            first_line[key] = line
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return mapping


class _DuplicateKeyError(Exception):
    """A key stands twice in one mapping; lines count from 1, 0 is unknown."""

    def __init__(self, key: str, line: int, first_line: int) -> None:
        super().__init__(key)
        self.key = key
        self.line = line
        self.first_line = first_line


def load_problem(path: str | Path, *, profile: str | None = None) -> ProblemFromFile:
    """Read a problem from a YAML or JSON file.

    Parameters
    ----------
    path
        The file; relative paths in it start from its folder.
    profile
        Performance profile of every GPU type instead of those in the file: a shipped name, or a path.

    Raises
    ------
    InputError
        When the file is unreadable, is no YAML or JSON, repeats a key, or is no valid problem; with file, line, field
        and value.
    ProfileError
        When a profile is unreadable, or of another model or GPU.
    """
    file = Path(path)
    data, content = read_document(file)
    if profile is not None and isinstance(data, dict):
        data = _with_profile(data, profile)
    return problem_of_document(data, content, name=str(file), told_name=str(path), folder=file.parent)


def problem_of_document(data: Any, content: bytes, *, name: str, told_name: str, folder: Path) -> ProblemFromFile:
    """Return the problem of a document that was read.

    Parameters
    ----------
    data, content
        Its plain values, and the bytes that stand for it in plans.
    name, told_name
        Where it was read from, for messages; and as plans name it.
    folder
        That relative paths in it start from.

    Raises
    ------
    InputError, ProfileError
        As `load_problem`.
    """
    with without_collection():
        problem = parse_problem(data, file=name, base_directory=folder)
    inputs = (_input_file("problem", told_name, content), *_trace_inputs(data, folder))
    return ProblemFromFile(**{field.name: getattr(problem, field.name) for field in fields(problem)}, inputs=inputs)


def read_document(file: Path) -> tuple[Any, bytes]:
    """Return the plain values of a problem file that are not yet looked at, and its bytes.

    Raises
    ------
    InputError
        When the file is unreadable, is no YAML or JSON, is empty, or repeats a key.
    """
    content = _read_bytes(file, "a problem file")
    with without_collection():
        data = _parse(content, file)
    if data is None:
        raise InputError(
            f"a problem file must hold a problem. {file} is empty.", file=str(file), hint="see `placer schema`"
        )
    return data, content


def load_plan(path: str | Path) -> Plan:
    """Read a plan.json.

    Raises
    ------
    InputError
        When the file is unreadable, truncated, no JSON, or no plan of this version.
    """
    file = Path(path)
    content = _read_bytes(file, "a plan")
    right = "give a plan.json, which `placer solve PROBLEM --output plan.json` writes"
    again = "make the plan again: `placer solve PROBLEM --output plan.json` writes it whole or not at all"
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        if content.strip() and not content.lstrip().startswith((b"{", b"[")):
            raise InputError(f"a plan must be JSON. {file} is another document.", file=str(file), hint=right) from error
        raise InputError(
            f"a plan must be complete JSON. {file} is empty, cut off or damaged: {error}.", file=str(file), hint=again
        ) from error
    if not isinstance(data, dict) or not {"configuration", "gpus", "verdict"} & data.keys():
        raise InputError(
            f"a plan must have `configuration`, `gpus` and `verdict`. {file} is another document.",
            file=str(file),
            hint=right,
        )
    try:
        return Plan.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        others = error.error_count() - 1
        more = f" And {others} more." if others else ""
        raise InputError(
            f"a plan must follow its schema. `{field or 'the file'}`: {first['msg']} ({file}).{more}",
            file=str(file),
            field=field or None,
            value=None if first["type"] == "missing" else first.get("input"),
            hint=f"see `placer schema plan`, or {again}",
        ) from error


def plan_to_json(plan: Plan) -> str:
    """Return a plan as the text of plan.json: sorted keys, ending in a newline."""
    return json.dumps(plan.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def save_plan(plan: Plan, path: str | Path) -> None:
    """Write a plan as JSON, whole or not at all (InputError when the path is not writable)."""
    write_atomically(path, plan_to_json(plan))


def sha256_of(content: bytes) -> str:
    """Return the SHA-256 of `content` in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _read_bytes(file: Path, what: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(
            f"{what} must be a readable file. {file}: {error.strerror}.", file=str(file), hint="check the path"
        ) from error


def _parse(content: bytes, file: Path) -> Any:
    """Return the plain values of a YAML or JSON file."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"a problem file must be UTF-8 text. {file} is not, from byte {error.start} on.",
            file=str(file),
            hint="save it as UTF-8",
        ) from error
    try:
        return _parse_json(text) if file.suffix == ".json" else _parse_yaml(text)
    except _DuplicateKeyError as error:
        where = f"{file}:{error.line}" if error.line else str(file)
        first = f" It is given in line {error.first_line} already." if error.first_line else ""
        raise InputError(
            f"a key must be given once. Got `{error.key}` again ({where}).{first}",
            file=str(file),
            field=error.key,
            hint="remove or rename one of them",
        ) from error
    except json.JSONDecodeError as error:
        raise _syntax_error("JSON", file, error.lineno, error.msg) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 1
        raise _syntax_error("YAML", file, line, getattr(error, "problem", None) or str(error)) from error
    except RecursionError as error:
        raise _syntax_error("YAML" if file.suffix != ".json" else "JSON", file, 1, "it is nested too deep") from error


def _syntax_error(language: str, file: Path, line: int, problem: str) -> InputError:
    return InputError(
        f"a problem file must be valid {language}. {file}:{line}: {problem}.",
        file=str(file),
        value=line,
        hint=f"look at line {line}, and at the one before it",
    )


def _parse_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 - a subclass of the safe loader


def _parse_json(text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = dict(pairs)
        if len(mapping) < len(pairs):
            keys = [key for key, _ in pairs]
            raise _DuplicateKeyError(next(key for key in keys if keys.count(key) > 1), 0, 0)
        return mapping

    try:
        return json.loads(text, object_pairs_hook=unique)
    except _DuplicateKeyError:
        # JSON's reader knows no lines; JSON is YAML as well, up to oddities such as tabs.
        with contextlib.suppress(yaml.YAMLError):
            _parse_yaml(text)
        raise


def _with_profile(data: dict[str, Any], profile: str) -> dict[str, Any]:
    """Return the problem with the profile of every GPU type replaced; a path starts from the current folder."""
    gpu_types = data.get("gpu_types")
    if not isinstance(gpu_types, list):
        return data
    name = profile if profile in shipped_profiles() else str(Path(profile).absolute())
    replaced = [{**entry, "profile": name} if isinstance(entry, dict) else entry for entry in gpu_types]
    return {**data, "gpu_types": replaced}


def _trace_inputs(data: dict[str, Any], folder: Path) -> tuple[InputFile, ...]:
    """Return the files that a problem's trace section names."""
    trace = data.get("trace")
    if not trace:
        return ()
    file = str(trace["file"])
    inputs = [_input_file("trace", file, _read_bytes(folder / file, "a trace"))]
    popularity = str((trace.get("adapters") or {}).get("popularity", ""))
    if popularity.startswith("file:"):
        name = popularity.removeprefix("file:")
        inputs.append(_input_file("popularity", name, _read_bytes(folder / name, "a popularity file")))
    return tuple(inputs)


def _input_file(role: Any, name: str, content: bytes) -> InputFile:
    return InputFile(role=role, name=name, sha256=sha256_of(content))
