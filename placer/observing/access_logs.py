"""Read access logs of OpenAI-style servers and gateways: one JSON object per line, one line per request."""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from placer.observing.evidence import AdapterTraffic, Observation, Remarks
from placer.observing.variation import common_variation
from twin.derive import derive_workload
from twin.errors import InputError
from twin.lengths import LengthDistribution
from twin.popularity import assign_as_labelled
from twin.trace import LARGEST_TOKEN_COUNT, Trace, observed_duration_s

# Where each value may stand, the first that a line has counts; dots lead into nested objects.
FIELDS: dict[str, tuple[str, ...]] = {
    "time": ("timestamp", "time", "ts", "@timestamp", "created", "response.created"),
    "model": ("model", "adapter", "request.model", "body.model"),
    "prompt": ("usage.prompt_tokens", "prompt_tokens", "response.usage.prompt_tokens"),
    "output": ("usage.completion_tokens", "completion_tokens", "response.usage.completion_tokens"),
    "status": ("status", "status_code", "http_status"),
}
_FIRST_ERROR = 400
# Unix times beyond it are not in seconds.
LATEST_UNIX_S = 1e11
_MOST_BYTES_PER_LINE = 4 * 1024 * 1024
# A clock that is ahead of ours by more than that is worth a word.
_SKEW_S = 60.0


@dataclass(frozen=True)
class LogWindow:
    """Which requests count.

    Attributes
    ----------
    window_s
        Seconds before the end; ``None``: from the first request on.
    end_s
        Unix seconds; ``None``: the last request.
    """

    window_s: float | None = None
    end_s: float | None = None


@dataclass
class _Lines:
    """Requests of the files, as columns; lengths are 0 where a line has none."""

    time_s: list[float] = field(default_factory=list)
    model: list[str] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)
    output: list[int] = field(default_factory=list)
    num_unusable: int = 0
    first_problem: str = ""
    num_failed: int = 0
    num_naive: int = 0

    def reject(self, reason: str) -> None:
        self.num_unusable += 1
        self.first_problem = self.first_problem or reason


def read_access_logs(
    paths: Sequence[Path],
    *,
    fields: Mapping[str, str] | None = None,
    window: LogWindow | None = None,
    base_models: Collection[str] = (),
    now_s: float | None = None,
) -> Observation:
    """Read the requests of logs, such as those of several gateways.

    Parameters
    ----------
    fields
        Names of the values in a line by `FIELDS`' keys, dots for nested objects; others keep their usual names.
    window
        Which requests count; ``None``: all.
    base_models
        Names that are no adapters; requests for them are left out.
    now_s
        Our clock, unix seconds, to see lines from the future; ``None``: not looked at.

    Raises
    ------
    InputError
        When a file is unreadable, no line or fewer than half can be used, or the window has no request.
    """
    wanted = FIELDS | {role: (name,) for role, name in (fields or {}).items()}
    lines, remarks = _Lines(), Remarks()
    for path in paths:
        _read_file(path, wanted, lines)
    _check_lines(lines, paths, remarks)
    names = tuple(str(path) for path in paths)
    time_s, kept, begin_s, duration_s = _cut(lines, window or LogWindow(), names, remarks)
    if now_s is not None and max(lines.time_s) > now_s + _SKEW_S:
        remarks.warnings.append(
            f"the last request is {max(lines.time_s) - now_s:,.0f} s in the future: its clock or this one is wrong"
        )
    is_adapter = np.array([lines.model[index] not in base_models for index in kept], dtype=np.bool_)
    if not is_adapter.all():
        remarks.assumed.append(
            f"{int((~is_adapter).sum()):,} requests to the base model ({', '.join(sorted(base_models))}) are left out"
        )
    if not is_adapter.any():
        raise _nothing(names, "requests to adapters")
    kept, time_s = kept[is_adapter], time_s[is_adapter]
    if not base_models:
        remarks.assumed.append("every name of a model is an adapter (--base-model names those that are none)")
    adapters, prompts, outputs = _adapters(lines, kept, duration_s, remarks)
    remarks.known.insert(0, f"{len(kept):,} requests of {len(adapters)} adapters in {duration_s:,.0f} s, one by one")
    return Observation(
        kind="access log",
        names=names,
        window_s=duration_s,
        begin_s=begin_s,
        num_requests=float(len(kept)),
        adapters=adapters,
        basis="counted",
        prompt_tokens=prompts,
        output_tokens=outputs,
        common_cv=common_variation(time_s - begin_s, duration_s),
        known=tuple(remarks.known),
        unknown=tuple(remarks.unknown),
        assumed=tuple(remarks.assumed),
        warnings=tuple(remarks.warnings),
    )


def _read_file(path: Path, wanted: Mapping[str, tuple[str, ...]], lines: _Lines) -> None:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_MOST_BYTES_PER_LINE), b""), start=1):
                if line.strip():
                    _read_line(line, f"{path}:{number}", wanted, lines)
    except OSError as error:
        raise InputError(
            f"a log must be a readable file. {path}: {error.strerror}.", file=str(path), hint="check the path"
        ) from error


def _read_line(line: bytes, where: str, wanted: Mapping[str, tuple[str, ...]], lines: _Lines) -> None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        lines.reject(f"{where} is no JSON object")
        return
    values = {role: _first(record, names) for role, names in wanted.items()}
    status = _number(values["status"])
    if status is not None and status >= _FIRST_ERROR:
        lines.num_failed += 1
        return
    time_s = _unix_seconds(values["time"], lines)
    if time_s is None:
        lines.reject(f"{where} has no time in {' or '.join(wanted['time'])}")
        return
    if not isinstance(values["model"], str) or not values["model"]:
        lines.reject(f"{where} names no model in {' or '.join(wanted['model'])}")
        return
    if not values["model"].isprintable():
        # Whoever asks chooses the name: it goes into files and onto terminals.
        lines.reject(f"{where} names a model with characters that cannot be printed")
        return
    lines.time_s.append(time_s)
    lines.model.append(values["model"])
    lines.prompt.append(_tokens(values["prompt"]))
    lines.output.append(_tokens(values["output"]))


def _check_lines(lines: _Lines, paths: Sequence[Path], remarks: Remarks) -> None:
    num_usable = len(lines.time_s)
    if lines.num_unusable > num_usable:
        raise InputError(
            f"a log must have a JSON object per line with the time and the model of a request. "
            f"{lines.num_unusable} of {lines.num_unusable + num_usable} lines cannot be used: {lines.first_problem}.",
            file=str(paths[0]),
            field="line",
            value=lines.first_problem,
            hint="name the fields, such as --fields time=ts,model=request.model,prompt=usage.prompt_tokens",
        )
    if not num_usable:
        failed = f", beside {lines.num_failed} that failed" if lines.num_failed else ""
        raise InputError(
            f"a log must have a request that was answered. {', '.join(map(str, paths))}: none{failed}.",
            file=str(paths[0]),
            hint="give a log of a time with traffic",
        )
    if lines.num_unusable:
        remarks.warnings.append(f"{lines.num_unusable:,} lines are left out: {lines.first_problem}")
    if lines.num_failed:
        remarks.assumed.append(f"{lines.num_failed:,} requests with a status of {_FIRST_ERROR} or more are left out")
    if lines.num_naive:
        remarks.assumed.append("times without a zone are UTC")


def _cut(
    lines: _Lines, window: LogWindow, names: tuple[str, ...], remarks: Remarks
) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], np.ndarray[tuple[int], np.dtype[np.int64]], float, float]:
    """Return the times of the requests of the window, ascending, which lines they are, its begin and its seconds."""
    times = np.array(lines.time_s)
    order = np.argsort(times, kind="stable")
    ordered = times[order]
    end_s = float(ordered[-1]) if window.end_s is None else window.end_s
    begin_s = float(ordered[0]) if window.window_s is None else end_s - window.window_s
    # The last request of all belongs to a window that ends with it.
    inside = (ordered >= begin_s) & ((ordered < end_s) if window.end_s is not None else (ordered <= end_s))
    if not inside.any():
        raise _nothing(
            names,
            f"a request from {_date(begin_s)} to {_date(end_s)} (it has {_date(float(ordered[0]))} to "
            f"{_date(float(ordered[-1]))})",
        )
    kept = order[inside].astype(np.int64)
    if window.window_s is None and window.end_s is None:
        duration_s = observed_duration_s(ordered - ordered[0])
    else:
        duration_s = end_s - begin_s
        if float(ordered[0]) > begin_s + 0.1 * duration_s:
            remarks.warnings.append(
                f"the log begins {float(ordered[0]) - begin_s:,.0f} s after the window: nothing is taken to be before"
            )
        if float(ordered[-1]) < end_s - 0.1 * duration_s:
            remarks.warnings.append(
                f"the log ends {end_s - float(ordered[-1]):,.0f} s before the window does: nothing is taken to be after"
            )
    if duration_s <= 0.0:
        raise InputError(
            f"rates need a duration. All {len(kept)} requests of {', '.join(names)} arrive at one instant.",
            file=names[0],
            field="time",
            hint="give a longer log, or the seconds that it covers: --window",
        )
    return ordered[inside], kept, begin_s, duration_s


def _adapters(
    lines: _Lines,
    kept: np.ndarray[tuple[int], np.dtype[np.int64]],
    duration_s: float,
    remarks: Remarks,
) -> tuple[dict[str, AdapterTraffic], LengthDistribution | None, LengthDistribution | None]:
    """Return the adapters, and the lengths of all requests together."""
    models = np.array([lines.model[index] for index in kept], dtype=np.object_)
    prompt = np.array([lines.prompt[index] for index in kept], dtype=np.int64)
    output = np.array([lines.output[index] for index in kept], dtype=np.int64)
    names, counts = np.unique(models.astype(str), return_counts=True)
    has_lengths = (prompt >= 1) & (output >= 1)
    if not has_lengths.all():
        remarks.unknown.append(
            f"lengths of {int((~has_lengths).sum()):,} of {len(kept):,} requests: no usage in their lines"
        )
    own: dict[str, tuple[LengthDistribution, LengthDistribution]] = {}
    prompts = outputs = None
    if has_lengths.any():
        # Only the lengths are taken from it, for which times do not matter.
        trace = Trace(
            arrival_s=np.zeros(int(has_lengths.sum())),
            prompt_tokens=prompt[has_lengths],
            output_tokens=output[has_lengths],
            duration_s=duration_s,
            adapter=models[has_lengths],
        )
        assignment = assign_as_labelled(trace)
        workload = derive_workload(trace, assignment, [8] * len(assignment.names))
        own = {adapter.name: (adapter.prompt_tokens, adapter.output_tokens) for adapter in workload.adapters}
        prompts, outputs = (_lengths(tokens) for tokens in (trace.prompt_tokens, trace.output_tokens))
        remarks.known.append(
            f"lengths of {len(trace):,} requests; those of an adapter with few requests lean on those of all"
        )
    none = (None, None)
    adapters = {
        str(name): AdapterTraffic(float(count), float(count), *own.get(str(name), none))
        for name, count in zip(names, counts, strict=True)
    }
    return adapters, prompts, outputs


def _lengths(tokens: np.ndarray[tuple[int], np.dtype[np.int64]]) -> LengthDistribution:
    return LengthDistribution(mean=float(tokens.mean()), std=float(tokens.std()), max=int(tokens.max()))


def _first(record: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """Return the first value that is there; dots in a name lead into objects, unless a key has them."""
    return next((value for name in names for value in _at(record, name)), None)


def _at(record: Mapping[str, Any], name: str) -> Iterator[Any]:
    if record.get(name) is not None:
        yield record[name]
        return
    head, dot, rest = name.partition(".")
    if dot and isinstance(record.get(head), dict):
        yield from _at(record[head], rest)


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _tokens(value: Any) -> int:
    number = _number(value)
    return int(number) if number is not None and 1 <= number <= LARGEST_TOKEN_COUNT else 0


def _unix_seconds(value: Any, lines: _Lines) -> float | None:
    number = _number(value)
    if number is not None:
        while number > LATEST_UNIX_S:
            number /= 1000.0
        return number if number >= 0 else None
    try:
        date = dt.datetime.fromisoformat(str(value))
    except ValueError:
        return None
    if date.tzinfo is None:
        lines.num_naive += 1
        date = date.replace(tzinfo=dt.UTC)
    # Before 1970: some loggers write the year 1 where they have no time.
    return time_s if (time_s := date.timestamp()) >= 0 else None


def _date(time_s: float) -> str:
    return dt.datetime.fromtimestamp(time_s, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _nothing(names: tuple[str, ...], what: str) -> InputError:
    return InputError(
        f"the window must have requests. {', '.join(names)} has no {what}.".replace("no a ", "no "),
        file=names[0],
        field="window",
        hint="give another --window or --end",
    )
