"""Read what ``vllm bench serve --save-result`` writes (vllm/benchmarks/serve.py, 0.8.5 to 0.32).

A file holds one result, or with ``--append-result`` one after the other. ``--save-detailed`` adds a list per request.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, field_validator, model_validator

from twin.bounded_read import MOST_MEASUREMENT_BYTES, read_bounded_text
from twin.errors import InputError

# By these a result is known.
BENCH_KEYS = frozenset({"duration", "completed", "total_input_tokens", "total_output_tokens", "request_throughput"})
DETAIL_KEYS = ("input_lens", "output_lens", "ttfts", "itls")
# Integers up to it are exact as floats.
MOST_COUNTED = 2**53

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class BenchResult(BaseModel):
    """One result; keys that a calibration does not read are kept as they are, such as those of ``--metadata``.

    Attributes
    ----------
    model_id
        As the server calls the model.
    request_rate
        Requests per second; infinite: all at once, or as `max_concurrency` allows.
    burstiness
        Shape of the gamma distribution of the gaps between requests; 1: Poisson.
    max_concurrency
        Most requests at a time; ``None``: no limit.
    ramp_up_strategy
        How the rate changes; ``None``: it does not.
    duration
        Seconds, to the end of the last request.
    completed, failed
        Requests.
    total_input_tokens, total_output_tokens
        Of the requests that completed.
    mean_tpot_ms, mean_itl_ms
        Mean over requests of (latency - time to first token) / (output tokens - 1); and over all gaps between chunks.
    input_lens, output_lens
        Tokens per request; a failed one has no output.
    ttfts, itls
        Seconds to the first chunk, and between the chunks of each request.
    start_times
        Seconds on any clock at which each request was sent; not in older files.
    """

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=True)

    model_id: str = ""
    request_rate: float = Field(default=float("inf"), gt=0)
    burstiness: float = Field(default=1.0, gt=0)
    max_concurrency: int | None = Field(default=None, ge=1)
    ramp_up_strategy: str | None = None
    duration: float = Field(gt=0, allow_inf_nan=False)
    completed: int = Field(ge=0, le=MOST_COUNTED)
    failed: int = Field(default=0, ge=0, le=MOST_COUNTED)
    total_input_tokens: int = Field(ge=0, le=MOST_COUNTED)
    total_output_tokens: int = Field(ge=0, le=MOST_COUNTED)
    mean_tpot_ms: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    mean_itl_ms: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    input_lens: tuple[int, ...] = ()
    output_lens: tuple[int, ...] = ()
    ttfts: tuple[Seconds, ...] = ()
    itls: tuple[tuple[Seconds, ...], ...] = ()
    start_times: tuple[FiniteFloat, ...] = ()

    @field_validator("output_lens", mode="before")
    @classmethod
    def _count_missing(cls, value: Any) -> Any:
        return [0 if length is None else length for length in value] if isinstance(value, list) else value

    @model_validator(mode="after")
    def _check_lists(self) -> BenchResult:
        lengths = {name: len(getattr(self, name)) for name in (*DETAIL_KEYS, "start_times")}
        given = {name: length for name, length in lengths.items() if length}
        if len(set(given.values())) > 1:
            raise ValueError(f"the lists must have an entry per request each. They have {given}")
        return self

    @property
    def has_details(self) -> bool:
        """Whether every request's times are known."""
        return bool(self.start_times) and all(getattr(self, name) for name in DETAIL_KEYS)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Keys that are none of the attributes."""
        return self.model_extra or {}


def is_bench_result(content: object) -> bool:
    """Return whether parsed JSON is a result of a benchmark of generation."""
    return isinstance(content, dict) and set(content) >= BENCH_KEYS


def parse_results(contents: list[Any], *, file: str) -> tuple[BenchResult, ...]:
    """Return the results that a file's JSON values are; none if the first is something else.

    Raises
    ------
    InputError
        When one of several results is none, or a value cannot be used.
    """
    if not is_bench_result(contents[0]):
        return ()
    return tuple(_parse(content, file, index, len(contents)) for index, content in enumerate(contents))


def read_json_values(path: Path) -> list[Any]:
    """Return the JSON values of a file, one after the other (InputError: unreadable, damaged, or cut off)."""
    try:
        text = read_bounded_text(path, most_bytes=MOST_MEASUREMENT_BYTES).strip()
    except OSError as error:
        raise InputError(
            f"measurements must be readable. {path}: {error.strerror}.", file=str(path), hint="check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"JSON must be UTF-8 text. {path}: {error}.", file=str(path), hint="save it again, or remove it"
        ) from error
    decoder = json.JSONDecoder()
    values, position = [], 0
    try:
        while position < len(text):
            value, position = decoder.raw_decode(text, position)
            values.append(value)
            while position < len(text) and text[position].isspace():
                position += 1
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"a file of JSON must be whole and valid. {path}, after {len(values)} values: {error}.",
            file=str(path),
            hint="save it again (it may be cut off), or remove it",
        ) from error
    return values


def _parse(content: object, file: str, index: int, number: int) -> BenchResult:
    where = file if number == 1 else f"{file}, result {index + 1}"
    if not is_bench_result(content):
        raise InputError(
            f"a file of results must hold nothing else. {where} is none of `vllm bench serve`.",
            file=file,
            value=index + 1,
            hint="remove it from the file",
        )
    try:
        return BenchResult.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "input_lens"
        value = repr(first.get("input"))[:80] if first["loc"] else None
        raise InputError(
            f"a benchmark's result must be as vLLM writes it. `{field}`: "
            f"{str(first['msg']).removeprefix('Value error, ')}. Got {value} ({where}).",
            file=file,
            field=field,
            value=value,
            hint="run `vllm bench serve --save-result` again, or leave the file out",
        ) from error
