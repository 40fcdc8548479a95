"""A scenario as data: what is another way than in the problem file; and the file that lists scenarios."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails

from placer.files import read_document
from placer.whatif.ranges import expanded
from solvers.problem_errors import ProblemSource, translate
from twin.hardware import GpuType

# Marks of alternatives in pydantic's locations.
SCALAR, MAPPING = "<scalar>", "<mapping>"
Factor = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _shape(value: object) -> str:
    """Return which of two types a value is to be: a message then says what is wrong with that one."""
    return MAPPING if isinstance(value, Mapping | BaseModel) else SCALAR


Prices = Annotated[Annotated[Price, Tag(SCALAR)] | Annotated[dict[str, Price], Tag(MAPPING)], Discriminator(_shape)]
Counts = Annotated[Annotated[Count, Tag(SCALAR)] | Annotated[dict[str, Count], Tag(MAPPING)], Discriminator(_shape)]
TypeChoice = Annotated[Annotated[str, Tag(SCALAR)] | Annotated[GpuType, Tag(MAPPING)], Discriminator(_shape)]
GapCv = Annotated[float, Field(ge=0, le=20, allow_inf_nan=False)]
Tolerance = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0.5, lt=1, allow_inf_nan=False)]


class Scenario(BaseModel):
    """Changes to a problem; what is not given stays as it is.

    Attributes
    ----------
    name
        What tables call it; ``None``: its changes.
    scale_rates
        Factor on all rates.
    add_adapters
        So many more adapters, each a copy of one that is drawn, with replacement, from those that there are.
    drop_adapters
        Names or patterns, as in `constraints`, of adapters that are gone.
    gpu_type
        The only type of GPU: the name of one in the problem, or another one in full.
    price
        `cost_per_hour` of the only GPU type, or of each type by name.
    model, profile
        Another base model, and the performance profile of its GPUs: a shipped name or a path; ``None``: the shipped one
        of the model.
    burstiness
        `gap_cv` of all adapters: 1 is Poisson.
    lengths, prompt_lengths, output_lengths
        Factors on all lengths, on those of prompts, and on those of answers.
    lose_gpus
        GPUs that are gone, of the only type or of each type by name: of `max_count`, or, where a type has none, of the
        GPUs that the plan without the loss has.
    itl_p95_ms, ttft_p95_ms, starvation_tolerance
        Limits instead of the problem's.
    relax
        A limit or constraint that is left out; see `placer.whatif.relaxing`.
    rate_cv, common_cv, probability
        Uncertain rates, as in the problem's `uncertainty`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = Field(default=None, min_length=1)
    scale_rates: Factor | None = None
    add_adapters: Count | None = None
    drop_adapters: tuple[str, ...] | None = Field(default=None, min_length=1)
    gpu_type: TypeChoice | None = None
    price: Prices | None = None
    model: str | None = Field(default=None, min_length=1)
    profile: str | None = Field(default=None, min_length=1)
    burstiness: GapCv | None = None
    lengths: Factor | None = None
    prompt_lengths: Factor | None = None
    output_lengths: Factor | None = None
    lose_gpus: Counts | None = None
    itl_p95_ms: Milliseconds | None = None
    ttft_p95_ms: Milliseconds | None = None
    starvation_tolerance: Tolerance | None = None
    relax: str | None = Field(default=None, min_length=1)
    rate_cv: float | None = Field(default=None, ge=0, le=10, allow_inf_nan=False)
    common_cv: float | None = Field(default=None, ge=0, le=10, allow_inf_nan=False)
    probability: Probability | None = None

    @property
    def changes(self) -> dict[str, Any]:
        """What is another way, as plain values by name; factors of 1 and nothing added or lost are no changes."""
        given = self.model_dump(mode="json", exclude={"name"}, exclude_none=True)
        return {name: value for name, value in given.items() if value != _NO_CHANGE.get(name)}

    @property
    def label(self) -> str:
        """Name, or the changes in words."""
        if self.name is not None:
            return self.name
        return ", ".join(f"{name} {shown_value(value)}" for name, value in self.changes.items()) or AS_IT_IS


AS_IT_IS = "as it is"
_NO_CHANGE = {
    "scale_rates": 1.0, "add_adapters": 0, "lengths": 1.0, "prompt_lengths": 1.0, "output_lengths": 1.0, "lose_gpus": 0,
}  # fmt: skip


def shown_value(value: object) -> str:
    """Return the value of a change as labels and tables have it."""
    if isinstance(value, dict):
        return str(value["name"]) if "name" in value else " ".join(f"{name}={entry}" for name, entry in value.items())
    if isinstance(value, list):
        return " ".join(str(entry) for entry in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _axis(value: Any) -> Any:
    return expanded(value) if isinstance(value, str) else value


_Factors = Annotated[tuple[Factor, ...], BeforeValidator(_axis), Field(min_length=1)]
_Limits = Annotated[tuple[Milliseconds, ...], BeforeValidator(_axis), Field(min_length=1)]
_Names = Annotated[tuple[str, ...], Field(min_length=1)]


class Grid(BaseModel):
    """Values of changes: every combination is a scenario. Numbers also as a range in text, ``"0.5:3:0.25"``.

    The changes are those of `Scenario`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale_rates: _Factors | None = None
    add_adapters: Annotated[tuple[Count, ...], BeforeValidator(_axis), Field(min_length=1)] | None = None
    gpu_type: Annotated[tuple[TypeChoice, ...], Field(min_length=1)] | None = None
    price: Annotated[tuple[Prices, ...], BeforeValidator(_axis), Field(min_length=1)] | None = None
    model: _Names | None = None
    profile: _Names | None = None
    burstiness: Annotated[tuple[GapCv, ...], BeforeValidator(_axis), Field(min_length=1)] | None = None
    lengths: _Factors | None = None
    prompt_lengths: _Factors | None = None
    output_lengths: _Factors | None = None
    lose_gpus: Annotated[tuple[Counts, ...], BeforeValidator(_axis), Field(min_length=1)] | None = None
    itl_p95_ms: _Limits | None = None
    ttft_p95_ms: _Limits | None = None
    starvation_tolerance: Annotated[tuple[Tolerance, ...], BeforeValidator(_axis), Field(min_length=1)] | None = None

    def scenarios(self) -> Iterator[Scenario]:
        """Yield one scenario for each combination; nothing without any values."""
        axes = {name: values for name in type(self).model_fields if (values := getattr(self, name)) is not None}
        if not axes:
            return
        for combination in itertools.product(*axes.values()):
            yield Scenario(**dict(zip(axes, combination, strict=True)))


class ScenarioFile(BaseModel):
    """A file of scenarios.

    Attributes
    ----------
    grid
        Every combination of these values.
    cases
        Further scenarios, each with a name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    grid: Grid = Grid()
    cases: tuple[Scenario, ...] = ()

    @model_validator(mode="after")
    def _check_names(self) -> ScenarioFile:
        names = [case.name for case in self.cases]
        for name in names:
            if name is None:
                raise ValueError("a case must have a `name`. One has none.")
            if names.count(name) > 1:
                raise ValueError(f"`name` must be unique among cases. Two are called {name!r}.")
        return self


def with_base(scenarios: list[Scenario]) -> list[Scenario]:
    """Return scenarios without repetition, with the problem as it is: first, unless it has its place among them."""
    unique = {(scenario.name, repr(scenario.changes)): scenario for scenario in scenarios}
    has_base = any(not scenario.changes for scenario in unique.values())
    return [*(() if has_base else (Scenario(),)), *unique.values()]


def read_scenarios(file: Path) -> ScenarioFile:
    """Read a file of scenarios, YAML or JSON.

    Raises
    ------
    InputError
        When it is unreadable, repeats a key, or holds what cannot be; with file, line, field and value.
    """
    data, _ = read_document(file)
    return parse_scenarios(data, str(file))


def parse_scenarios(data: Any, file: str) -> ScenarioFile:
    """Return the scenarios of a file's plain values; see `read_scenarios`."""
    source = ProblemSource(data, file)
    try:
        return ScenarioFile.model_validate(data)
    except ValidationError as error:
        raise translate(_without_marks(error), source, ScenarioFile) from error


def _without_marks(error: ValidationError) -> ValidationError:
    """Return an error whose locations are those of the file."""
    details: list[InitErrorDetails] = [
        {
            "type": entry["type"],
            "loc": tuple(part for part in entry["loc"] if part not in {SCALAR, MAPPING}),
            "input": entry["input"],
            "ctx": entry.get("ctx", {}),
        }
        for entry in error.errors(include_url=False)
    ]
    return ValidationError.from_exception_data(error.title, details)


def scenarios_schema() -> dict[str, Any]:
    """Return the JSON Schema of a file of scenarios."""
    schema = ScenarioFile.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "placer what-if scenarios"
    return schema
