"""What `placer routing` says: ways to give requests to GPUs, side by side."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from placer.plan_document import InputFile

PolicyName = Literal["planned", "least_loaded", "lora_affinity", "replicas"]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FleetRun(_Document):
    """A fleet simulated under a policy.

    Attributes
    ----------
    max_loras
        Slots of each GPU; ``None``: those of the plan.
    serves
        Neither the fleet nor any adapter starves: over all its requests, wherever they were served.
    gpu_loads_per_s, disk_loads_per_s
        Adapters copied into slots, and read from disk, per second of simulated time, on all GPUs together.
    ttft_p95_s, itl_p95_s
        Over all requests of the fleet; ``None``: there was nothing to measure.
    """

    num_gpus: int
    max_loras: int | None
    serves: bool
    throughput_ratio: float
    num_starved_adapters: int
    gpu_loads_per_s: float
    disk_loads_per_s: float
    ttft_p50_s: float | None
    ttft_p95_s: float | None
    itl_p95_s: float | None


class PolicyResult(_Document):
    """What a policy needs and gives.

    Attributes
    ----------
    replicas
        GPUs of each adapter; ``None``: all.
    fewest
        The fewest GPUs found that serve; ``None``: none up to the largest number tried does.
    at_plan
        With as many GPUs as the plan; ``None``: no setting tried starts.
    tried
        Every simulated fleet.
    """

    policy: PolicyName
    replicas: int | None
    fewest: FleetRun | None
    at_plan: FleetRun | None
    tried: tuple[FleetRun, ...]


class RoutingStudy(_Document):
    """Policies compared on the same requests.

    Attributes
    ----------
    most_gpus
        The largest number of GPUs that was tried.
    slots
        `max_loras` that were tried for fleets other than the plan's.
    """

    schema_version: Literal[1] = 1
    num_adapters: int
    num_requests: int
    offered_rps: float
    plan_gpus: int
    most_gpus: int
    slots: tuple[int, ...]
    horizon_s: float
    warmup_s: float
    seed: int
    starvation_tolerance: float
    policies: tuple[PolicyResult, ...]
    warnings: tuple[str, ...] = ()
    inputs: tuple[InputFile, ...] = ()


def routing_schema() -> dict[str, Any]:
    """Return the JSON Schema of the study."""
    schema = RoutingStudy.model_json_schema(mode="serialization")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "placer routing"
    return schema
