"""Ask before the work whether a command's outputs can be written, and whether one would replace what is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from placer.files import read_document
from twin.atomic_write import is_standard_output, require_writable
from twin.bounded_read import parse_json, read_bounded
from twin.errors import InputError

# A folder of measurements may hold what was made of them: these may be written again.
_REPORT_SUFFIXES = frozenset({".html", ".png"})
_PROFILE_KEYS = frozenset({"step_time", "load_times", "provenance"})


def check_outputs(
    outputs: Mapping[str, Path | None], *, inputs: Mapping[str, str | Path | None], prints_json: bool = False
) -> None:
    """Refuse outputs that cannot be written, that are each other, or that are an input.

    Files are compared by what they are, so that links and other ways to write a path do not hide that two are one.

    Parameters
    ----------
    outputs
        Files to write, by option; ``None``: the option was not given.
    inputs
        Files and folders that are read, by option or argument. What is no path of a file or folder, such as the name
        of something shipped, is no input here. A file in a folder must not be replaced either, unless it is a profile
        or a report.
    prints_json
        Whether ``--json`` puts a document on standard output, where no file may go then.

    Raises
    ------
    InputError
        With the option as `field`.
    """
    given = {"--json": Path("-")} if prints_json else {}
    given |= {option: path for option, path in outputs.items() if path is not None}
    for option, path in given.items():
        require_writable(path, option=option)
    options = list(given)
    for index, option in enumerate(options):
        for other in options[:index]:
            if _are_same(given[option], given[other]):
                raise _conflict(option, given[option], f"{other} writes it as well")
    for option, path in given.items():
        for name, source in inputs.items():
            if source is not None and not is_standard_output(path) and _is_read(path, Path(source)):
                raise _conflict(option, path, f"it would replace what is read from {name} ({source})")


def has_standard_output(*outputs: Path | None) -> bool:
    """Return whether one of the files goes to standard output, where nothing else may be then."""
    return any(path is not None and is_standard_output(path) for path in outputs)


def config_path(model: str) -> Path:
    """Return the file that `twin.hardware.load_model` reads for a model that is not shipped."""
    return Path(model) / "config.json" if Path(model).is_dir() else Path(model)


def problem_inputs(problem: Path, output: Path | None) -> dict[str, Path]:
    """Return the problem file and the files that it names, by what they are; see `check_outputs`.

    Raises
    ------
    InputError
        When the file is unreadable.
    """
    inputs = {"PROBLEM": problem}
    if output is None or not output.is_file():
        # What does not exist is no input: the problem need not be read for it.
        return inputs
    data, _ = read_document(problem)
    if not isinstance(data, dict):
        return inputs
    trace = _mapping(data.get("trace"))
    popularity = str(_mapping(trace.get("adapters")).get("popularity", ""))
    gpu_types = data.get("gpu_types")
    named = {"the trace": trace.get("file"), "the popularity file": popularity.removeprefix("file:")}
    for index, entry in enumerate(gpu_types if isinstance(gpu_types, list) else []):
        named[f"the profile of GPU type {index + 1}"] = _mapping(entry).get("profile")
    inputs |= {name: problem.parent / text for name, text in named.items() if text and isinstance(text, str)}
    inputs["the model"] = config_path(str(problem.parent / str(data.get("model", ""))))
    return inputs


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _are_same(one: Path, other: Path) -> bool:
    if is_standard_output(one) or is_standard_output(other):
        return is_standard_output(one) and is_standard_output(other)
    if one.exists() and other.exists():
        return one.samefile(other)
    return one.resolve() == other.resolve()


def _is_read(output: Path, source: Path) -> bool:
    """Return whether writing `output` would replace `source`, or a file of the folder that it is."""
    if not output.is_file():
        return False
    if source.is_dir():
        is_inside = output.resolve().is_relative_to(source.resolve())
        return is_inside and not _is_made_by_placer(output)
    return source.exists() and output.samefile(source)


def _is_made_by_placer(path: Path) -> bool:
    if path.suffix in _REPORT_SUFFIXES:
        return True
    try:
        content = parse_json(read_bounded(path)) if path.suffix == ".json" else None
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.keys() >= _PROFILE_KEYS


def _conflict(option: str, path: Path, reason: str) -> InputError:
    return InputError(
        f"`{option}` must name a file of its own. Got {path}: {reason}.",
        file=str(path),
        field=option.removeprefix("--").partition(" ")[0],
        value=str(path),
        hint="give another path",
    )
