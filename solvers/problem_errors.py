"""One clear message about what is wrong with a problem file: field, value, adapter, line, what was probably meant."""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from twin.errors import InputError

Location = tuple[int | str, ...]

# What people write for our fields, and how to convert it.
FOREIGN_FIELDS: dict[str, tuple[str, str]] = {
    "rate": ("rate_rps", "in requests per second"),
    "rps": ("rate_rps", "in requests per second"),
    "qps": ("rate_rps", "in requests per second"),
    "rate_rpm": ("rate_rps", "in requests per second: divide requests per minute by 60"),
    "rate_per_minute": ("rate_rps", "in requests per second: divide requests per minute by 60"),
    "rate_rph": ("rate_rps", "in requests per second: divide requests per hour by 3600"),
    "rate_per_hour": ("rate_rps", "in requests per second: divide requests per hour by 3600"),
    "memory_gb": ("memory_gib", "in GiB: one GB is 0.931 GiB"),
    "memory_mib": ("memory_gib", "in GiB: divide MiB by 1024"),
    "memory": ("memory_gib", "in GiB"),
    "itl_p95_s": ("itl_p95_ms", "in milliseconds: multiply seconds by 1000"),
    "ttft_p95_s": ("ttft_p95_ms", "in milliseconds: multiply seconds by 1000"),
    "input_tokens": ("prompt_tokens", "in tokens per request"),
    "completion_tokens": ("output_tokens", "in tokens per request"),
    "std_dev": ("std", "in tokens"),
    "stdev": ("std", "in tokens"),
}

# Units of fields, for values that are not numbers.
UNITS = {
    "rate_rps": "requests per second, such as 0.42",
    "memory_gib": "GiB, such as 63.43",
    "cost_per_hour": "money per hour, such as 3.0",
    "itl_p95_ms": "milliseconds, such as 100",
    "ttft_p95_ms": "milliseconds, such as 2000",
    "start_s": "seconds, such as 3600",
    "starvation_tolerance": "a share, such as 0.1",
    "gpu_memory_utilization": "a share, such as 0.9",
    "mean": "tokens, such as 223",
    "std": "tokens, such as 247",
}
SHARES = {"starvation_tolerance", "gpu_memory_utilization", "watermark"}


@dataclass(frozen=True)
class ProblemSource:
    """Where a problem comes from: what messages need to point at the right place.

    Attributes
    ----------
    data
        The parsed file.
    file
        Its name, for messages; its lines are read only when an error must name one.
    """

    data: Any
    file: str

    def error(
        self, sentence: str, *, location: Location, value: object = None, hint: str | None = None, more: str = ""
    ) -> InputError:
        """Return an InputError: `sentence`, then the adapter and the line that `location` is about."""
        places = [place for place in (_subject(self.data, location), self._position(location)) if place]
        suffix = f" ({', '.join(places)})" if places else ""
        return InputError(
            f"{sentence.rstrip('.')}{suffix}.{more}",
            file=self.file,
            field=_dotted(location) or None,
            value=value,
            hint=hint,
        )

    def _position(self, location: Location) -> str:
        line = _line_of(self.file, location)
        return f"{self.file}:{line}" if line is not None else self.file


def translate(error: ValidationError, source: ProblemSource, schema: type[BaseModel]) -> InputError:
    """Return the first error of pydantic's `error` in our words, and how many more there are."""
    errors = error.errors(include_url=False)
    first = _root_cause(errors)
    location: Location = tuple(first["loc"])
    sentence, hint = _sentence(first, location, schema)
    value = None if first["type"] == "missing" or not location else first.get("input")
    others = len(errors) - 1
    more = f" And {others} more {'error' if others == 1 else 'errors'} in the file." if others else ""
    return source.error(sentence, location=location, value=value, hint=hint, more=more)


def _root_cause(errors: Sequence[Any]) -> Any:
    """Return the first error; or the unknown field, where a field beside it is missing: probably the same one."""
    first = errors[0]
    if first["type"] == "missing":
        for other in errors:
            if other["type"] == "extra_forbidden" and other["loc"][:-1] == first["loc"][:-1]:
                return other
    return first


def shown(value: object) -> str:
    """Return `value` as it is shown in a message: short."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} that is nested too deep"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _sentence(error: Mapping[str, Any], location: Location, schema: type[BaseModel]) -> tuple[str, str | None]:
    """Return what must hold and what was given, and a hint."""
    name = str(location[-1]) if location else "the problem"
    if isinstance(location[-1] if location else None, int):
        name = _dotted(location)
    value, kind, context = error.get("input"), str(error["type"]), error.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_field(name, location, schema)
    if kind == "missing":
        return f"`{name}` must be given. It is missing", None
    if kind == "value_error":
        text = str(context.get("error", error["msg"]))
        return (text if text.startswith(("`", "a ")) else f"`{name}`: {text}"), None
    rule = _rule(kind, name, context)
    hint = None
    if name in SHARES and isinstance(value, int | float) and 1 <= value <= 100:
        hint = f"a share, not a percentage: {value / 100:g}"
    if name in {"prompt_tokens", "output_tokens"} and isinstance(value, int | float):
        hint = f"write {{mean: {value}}} for requests of that length"
    return f"`{name}` must {rule}. Got {shown(value)}", hint


def _rule(kind: str, name: str, context: Mapping[str, Any]) -> str:
    """Return what must hold, as it follows "`name` must"."""
    if kind in {"float_parsing", "float_type", "int_parsing", "int_type", "int_from_float", "finite_number"}:
        noun = "a whole number" if kind.startswith("int") else "a finite number"
        return f"be {noun}" + (f" in {UNITS[name]}" if name in UNITS and not UNITS[name].startswith("a ") else "")
    if kind == "literal_error":
        options = str(context["expected"]).replace(" or ", ", ")
        return f"be {options}" if "," not in options else f"be one of {options}"
    rules = {
        "greater_than_equal": "be at least {ge:g}",
        "greater_than": "be above {gt:g}",
        "less_than_equal": "be at most {le:g}",
        "less_than": "be below {lt:g}",
        "too_short": "have at least {min_length} entry",
        "string_too_short": "not be empty",
        "string_type": "be text",
        "bool_parsing": "be true or false",
        "bool_type": "be true or false",
    }
    if kind in rules:
        return rules[kind].format(**context)
    if kind in {"model_type", "dict_type", "model_attributes_type"}:
        return "be a mapping of fields"
    if kind in {"tuple_type", "list_type"}:
        return "be a list"
    return f"be valid ({kind.replace('_', ' ')})"


def _unknown_field(name: str, location: Location, schema: type[BaseModel]) -> tuple[str, str | None]:
    owner = _model_at(schema, location[:-1])
    fields = list(owner.model_fields) if owner is not None else []
    of_what = f"`{_dotted(location[:-1])}`" if len(location) > 1 else "a problem"
    sentence = f"every field of {of_what} must be known. Got `{name}`"
    foreign = FOREIGN_FIELDS.get(name.lower())
    if foreign is not None and foreign[0] in fields:
        return sentence, f"did you mean `{foreign[0]}`, {foreign[1]}?"
    close = difflib.get_close_matches(name, fields, n=1, cutoff=0.6)
    if close:
        return sentence, f"did you mean `{close[0]}`?"
    return sentence, f"known fields: {', '.join(fields)}" if fields else None


def _model_at(schema: type[BaseModel], location: Sequence[int | str]) -> type[BaseModel] | None:
    """Return the model that describes what lies at `location`, or None."""
    current: Any = schema
    for part in location:
        current = _strip_optional(current)
        if isinstance(part, int):
            current = get_args(current)[0]
        elif isinstance(current, type) and issubclass(current, BaseModel) and part in current.model_fields:
            current = current.model_fields[part].annotation
        else:
            return None
    current = _strip_optional(current)
    return current if isinstance(current, type) and issubclass(current, BaseModel) else None


def _strip_optional(annotation: Any) -> Any:
    if get_origin(annotation) in {Union, types.UnionType}:
        return next(option for option in get_args(annotation) if option is not type(None))
    return annotation


def _dotted(location: Location) -> str:
    return ".".join(str(part) for part in location)


def _subject(data: Any, location: Location) -> str:
    """Return which adapter or GPU type `location` is about: ``adapter 'a7'``, by position when it has no name."""
    nouns = {"adapters": "adapter", "gpu_types": "GPU type", "phases": "phase"}
    if len(location) < 2 or location[0] not in nouns or not isinstance(location[1], int):
        return ""
    noun = nouns[str(location[0])]
    try:
        name = data[location[0]][location[1]]["name"]
    except (KeyError, TypeError, IndexError):
        return f"{noun} {location[1]}"
    return f"{noun} {name!r}"


def _line_of(file: str, location: Location) -> int | None:
    """Return the 1-based line of what lies at `location`, or around it; None when the file is no readable YAML."""
    try:
        text = Path(file).read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    if node is None:
        return None
    line: int = node.start_mark.line + 1
    for part in location:
        child = _child(node, part)
        if child is None:
            break
        line, node = child
    return line


def _child(node: yaml.Node, part: int | str) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        entry: yaml.Node = node.value[part]
        return entry.start_mark.line + 1, entry
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == str(part):
                return key.start_mark.line + 1, value
    return None
