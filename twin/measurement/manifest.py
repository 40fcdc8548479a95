"""The manifest of a measurement: what was run, with what, where, when, and whether it is complete."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from twin.engine import EngineConfig
from twin.latency_summary import LatencySummary
from twin.workload import Adapter

Clock = Literal["wall", "cpu", "steady"]
Status = Literal["running", "complete", "partial"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WorkloadFacts(_Part):
    """What was asked.

    Attributes
    ----------
    file, sha256
        Problem file that it was read from; ``None``: it was made in Python.
    adapters
        With their ranks, rates and lengths; `schedule.parquet` has the requests.
    num_requests
        In the schedule.
    horizon_s
        Requests arrive before it.
    seed
        Of arrivals, lengths and prompts.
    """

    file: str | None = None
    sha256: str | None = None
    adapters: tuple[Adapter, ...]
    num_requests: int
    horizon_s: float
    seed: int


class InProcessSettings(_Part):
    """How vLLM's engine is run in a process of its own.

    Attributes
    ----------
    model
        Folder of the model, or its name in the local Hugging Face cache.
    adapter_directory
        Holds a folder per adapter, named as it; ``None`` without adapters.
    engine
        Arguments for vLLM by their names; what is not here is vLLM's choice.
    environment
        Variables of the engine's process that this program sets.
    clock
        ``wall``: real time; ``cpu``: time passes only while the engine computes, by its CPU time; ``steady``: the same,
        corrected for how fast the processor is at the moment (`twin.measurement.speed_probe`).
    drain_s
        Seconds after the horizon for requests to finish.
    warmup_requests
        Served before the measurement begins, unrecorded; their adapters are removed again.
    """

    kind: Literal["in_process"] = "in_process"
    model: str
    adapter_directory: str | None = None
    engine: dict[str, Any] = {}
    environment: dict[str, str] = {}
    clock: Clock = "wall"
    drain_s: float = Field(default=60.0, ge=0, allow_inf_nan=False)
    warmup_requests: int = Field(default=4, ge=0)


class EndpointSettings(_Part):
    """How a server is asked over HTTP.

    Attributes
    ----------
    url
        Without ``/v1``.
    base_model
        Model of requests without an adapter; ``None``: the first that the server names.
    engine
        Settings that the server was started with, as the problem file has them: nobody can ask it for all of them.
    prompt
        ``tokens``: random token ids; ``text``: as many short words, for servers that take no ids.
    vocab_size
        Token ids are below it.
    has_standard_fields_only
        Leave out vLLM's ``ignore_eos`` and ``continuous_usage_stats``: output lengths are then the server's choice.
    drain_s
        Seconds after the horizon for requests to finish.
    timeout_s
        Of one attempt.
    retries
        Further attempts of a request that failed.
    wait_s
        How long to wait for a server that does not answer yet.
    give_up_s
        A server that does not answer for so long in the middle is gone.
    metrics_url, metrics_interval_s
        Page of metrics to record, and how often; 0: never.
    adapter_directory
        Load the adapters from there (a path of the server's) before, and unload them after; ``None``: they are there.
    """

    kind: Literal["endpoint"] = "endpoint"
    url: str
    base_model: str | None = None
    engine: dict[str, Any] = {}
    prompt: Literal["tokens", "text"] = "tokens"
    vocab_size: int = Field(default=1000, ge=2)
    has_standard_fields_only: bool = False
    drain_s: float = Field(default=60.0, ge=0, allow_inf_nan=False)
    timeout_s: float = Field(default=600.0, gt=0, allow_inf_nan=False)
    retries: int = Field(default=0, ge=0)
    wait_s: float = Field(default=30.0, ge=0, allow_inf_nan=False)
    give_up_s: float = Field(default=30.0, ge=0, allow_inf_nan=False)
    metrics_url: str
    metrics_interval_s: float = Field(default=5.0, ge=0, allow_inf_nan=False)
    adapter_directory: str | None = None


class ServerFacts(_Part):
    """What the engine or the server said about itself; ``None``: it did not.

    Attributes
    ----------
    engine
        Settings in the twin's terms, as vLLM resolved them in process, or as the server is declared and says.
    kv_tokens
        KV blocks x block size.
    details
        Whatever else it said, such as further settings or the names of models.
    """

    engine: EngineConfig | None = None
    kv_tokens: int | None = None
    details: dict[str, Any] = {}


class Segment(_Part):
    """One uninterrupted part of a measurement.

    Attributes
    ----------
    number
        From 1.
    start_s, end_s
        On the measurement's clock; a segment continues the schedule where the one before was cut off.
    started_at
        UTC, ISO 8601.
    reason
        Why it is partial.
    warnings
        What a reader of its records should know.
    """

    number: int
    start_s: float
    end_s: float | None = None
    started_at: str
    status: Status = "running"
    reason: str | None = None
    warnings: tuple[str, ...] = ()


class Lateness(_Part):
    """How much later than due the client sent, and how late its own timer was, in seconds."""

    p50_s: float | None = None
    p99_s: float | None = None
    max_s: float | None = None
    timer_max_s: float | None = None


class MeasurementSummary(_Part):
    """What a measurement amounts to.

    Attributes
    ----------
    measured_s
        Seconds before the horizon that were measured.
    requests
        By status of their last attempt; ``unsent`` are those of the schedule that no segment reached.
    failures
        Attempts that failed, by what happened.
    offered_tps, throughput_tps
        Prompt + output tokens per second that arrived, and of requests that finished, within `measured_s`.
    ttft, itl
        Of the requests that finished; inter-token latencies over tokens.
    num_steps, busy_s, num_preemptions, gpu_loads, disk_loads
        In process only.
    """

    measured_s: float
    requests: dict[str, int]
    failures: dict[str, int] = {}
    offered_tps: float
    throughput_tps: float
    ttft: LatencySummary
    itl: LatencySummary
    lateness: Lateness | None = None
    num_steps: int | None = None
    busy_s: float | None = None
    num_preemptions: int | None = None
    gpu_loads: int | None = None
    disk_loads: int | None = None


class Manifest(_Part):
    """Everything about a measurement that is no table.

    Attributes
    ----------
    status
        ``running`` in a folder that no process works on means that the process was killed: the measurement is partial,
        and its tables may not be made yet.
    reason
        Why it is partial.
    versions, machine
        Of software by name; of the machine that measured, and in process that served.
    tables
        Rows by table.
    warnings
        What a reader of the numbers should know, those of all segments included.
    """

    schema_version: Literal[1] = 1
    status: Status = "running"
    reason: str | None = None
    workload: WorkloadFacts
    settings: InProcessSettings | EndpointSettings = Field(discriminator="kind")
    server: ServerFacts = ServerFacts()
    versions: dict[str, str] = {}
    machine: dict[str, Any] = {}
    segments: tuple[Segment, ...] = ()
    tables: dict[str, int] = {}
    summary: MeasurementSummary | None = None
    warnings: tuple[str, ...] = ()

    @property
    def clock(self) -> Clock:
        """What its times are counted by."""
        return self.settings.clock if isinstance(self.settings, InProcessSettings) else "wall"


def manifest_to_json(manifest: Manifest) -> str:
    """Return a manifest as the text of manifest.json: sorted keys, ending in a newline."""
    return json.dumps(manifest.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def manifest_schema() -> dict[str, Any]:
    """Return the JSON Schema of a manifest."""
    schema = Manifest.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "placer measurement"
    return schema
