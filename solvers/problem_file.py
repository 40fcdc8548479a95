"""The schema of a problem file: what a user types, with vLLM's names and units in every field's name."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from predictors.uncertainty import RateUncertainty
from solvers.constraints import Constraints
from solvers.current import CurrentGpu, check_current
from solvers.engine_section import EngineSection
from solvers.limits import Limits
from solvers.rate_scenarios import RateScenarios
from solvers.replication import Replication
from twin.engine import LoraRank
from twin.hardware import GpuType
from twin.workload import Adapter, Phase

__all__ = [
    "LatencyMetric",
    "Limits",
    "ObjectiveName",
    "ProblemFile",
    "SecondaryName",
    "TraceAdaptersSection",
    "TraceSection",
    "problem_schema",
]

ObjectiveName = Literal["fewest_gpus", "least_cost", "lowest_latency"]
# What decides between placements with equal objectives.
SecondaryName = Literal["moves", "headroom"]
# What `lowest_latency` makes small, by the name of its limit.
LatencyMetric = Literal["itl_p95_ms", "ttft_p95_ms"]


class TraceColumnsSection(BaseModel):
    """Names of a trace file's columns, for the formats that do not name their own (csv, jsonl, parquet)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    time: str | None = None
    prompt: str | None = None
    output: str | None = None
    adapter: str | None = None
    time_unit: Literal["s", "ms", "us", "ns"] = "s"


class TraceAdaptersSection(BaseModel):
    """Which adapters the requests of a trace ask for, and their ranks.

    Attributes
    ----------
    count
        Adapters to spread the requests over; left out when the trace names them.
    popularity
        ``given`` (the trace's adapter column), ``uniform``, ``zipf:EXPONENT``, ``dirichlet:CONCENTRATION``, or
        ``file:PATH`` of a CSV with the column `requests` and one row per adapter.
    ranks
        Given to the adapters in turn, shuffled by `seed`.
    seed
        Of the assignment.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int | None = Field(default=None, ge=1)
    popularity: str = Field(default="zipf:0.9", min_length=1)
    ranks: tuple[LoraRank, ...] = Field(default=(16,), min_length=1)
    seed: int = Field(default=0, ge=0)


class TraceSection(BaseModel):
    """A trace from which adapters, rates and lengths are derived.

    Attributes
    ----------
    file
        Relative to the problem file.
    format
        ``None``: recognised by suffix and column names.
    sort, drop_empty
        Sort requests, and leave out those without tokens, instead of refusing them.
    copies
        Replicate every request that many times, jittered: the same shape at a higher load.
    replay
        Simulate the trace's own requests instead of Poisson arrivals with its rates and lengths.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str = Field(min_length=1)
    format: Literal["azure", "mooncake", "csv", "jsonl", "parquet"] | None = None
    columns: TraceColumnsSection | None = None
    sort: bool = False
    drop_empty: bool = False
    copies: int = Field(default=1, ge=1)
    replay: bool = False
    adapters: TraceAdaptersSection = TraceAdaptersSection()


class ProblemFile(BaseModel):
    """A placement problem as it stands in a YAML or JSON file.

    Attributes
    ----------
    model
        A shipped model's name, or the path of a Hugging Face config.json.
    gpu_types
        What can be rented.
    engine
        vLLM's arguments; `max_loras` and `max_lora_rank` are chosen per GPU unless they are given here, and
        `max_num_seqs` where it is ``auto`` or a list.
    objective
        ``fewest_gpus``, ``least_cost`` (by `cost_per_hour`), or ``lowest_latency``: as many of the GPUs that
        `max_count` allows (every GPU type must then have it) as make the slowest of them as fast as can be.
    latency_metric
        Of which 95th percentile ``lowest_latency`` makes the largest of all GPUs small.
    secondary
        What decides between placements with equal objectives, the most important first: ``moves`` (as few adapters as
        possible on another GPU than in `current`), ``headroom`` (as much room as possible on the GPU that has the
        least). ``None``: ``moves`` where there is a current placement, otherwise nothing.
    current
        The GPUs that serve adapters now.
    limits
        What the placement must keep.
    constraints
        Which adapters may be where, with whom, without whom, and under which limits of their own.
    replication
        Which adapters may be on several GPUs, each with a share of their traffic.
    adapters, trace
        Exactly one of the two: adapters with their rates, or a trace from which to derive them.
    phases
        Rate scales over time, for the simulation.
    uncertainty
        How far the rates may be from what is given; ``None``: they are what is given.
    scenarios
        Sets of rates under each of which the placement must do; ``None``: those that are given only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    model: str = Field(min_length=1)
    gpu_types: tuple[GpuType, ...] = Field(min_length=1)
    engine: EngineSection = EngineSection()
    objective: ObjectiveName = "fewest_gpus"
    latency_metric: LatencyMetric = "itl_p95_ms"
    secondary: tuple[SecondaryName, ...] | None = None
    current: tuple[CurrentGpu, ...] = ()
    limits: Limits = Limits()
    constraints: Constraints = Constraints()
    replication: Replication = Replication()
    adapters: tuple[Adapter, ...] | None = Field(default=None, min_length=1)
    phases: tuple[Phase, ...] = ()
    uncertainty: RateUncertainty | None = None
    scenarios: RateScenarios | None = None
    trace: TraceSection | None = None

    @model_validator(mode="after")
    def _check_source(self) -> ProblemFile:
        if (self.adapters is None) == (self.trace is None):
            given = "neither" if self.adapters is None else "both"
            raise ValueError(f"a problem must have exactly one of `adapters` and `trace`. It has {given}.")
        if self.secondary is not None and len(set(self.secondary)) < len(self.secondary):
            raise ValueError(f"`secondary` must name each objective once. Got {', '.join(self.secondary)}.")
        check_current(self.current)
        return self


def problem_schema() -> dict[str, Any]:
    """Return the JSON Schema of a problem file."""
    schema = ProblemFile.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "placer problem"
    return schema
