"""Problem and plan files: read with messages that name file and line, written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from placer.garbage import without_collection
from placer.plan_document import InputFile, Plan
from placer.yaml_reader import DocumentError, DuplicateKeyError, inner_values, parse_yaml, require_values
from solvers.problem import Problem, parse_problem
from twin.atomic_write import require_writable, write_atomically
from twin.bounded_read import read_bounded
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
        return read_bounded(file)
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
    language = "JSON" if file.suffix == ".json" else "YAML"
    try:
        return _parse_json(text) if file.suffix == ".json" else parse_yaml(text)
    except DuplicateKeyError as error:
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
    except DocumentError as error:
        raise _syntax_error(language, file, error.line, error.problem) from error
    except (RecursionError, ValueError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise _syntax_error(language, file, 1, reason) from error


def _syntax_error(language: str, file: Path, line: int, problem: str) -> InputError:
    return InputError(
        f"a problem file must be valid {language}. {file}:{line}: {problem}.",
        file=str(file),
        value=line,
        hint=f"look at line {line}, and at the one before it",
    )


def _parse_json(text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = dict(pairs)
        if len(mapping) < len(pairs):
            keys = [key for key, _ in pairs]
            raise DuplicateKeyError(next(key for key in keys if keys.count(key) > 1), 0, 0)
        return mapping

    try:
        data = json.loads(text, object_pairs_hook=unique)
    except DuplicateKeyError:
        # JSON's reader knows no lines; JSON is YAML as well, up to oddities such as tabs.
        with contextlib.suppress(yaml.YAMLError, DocumentError):
            parse_yaml(text)
        raise
    require_values(data, inner_values, most=len(text) + 1)
    return data


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
