"""What `placer advise` says: throughput and latency over the batch size, the knee, the KV budget, replicas per GPU."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from placer.plan_document import InputFile
from twin.shared_gpu import SharedCase

KvReason = Literal["throughput", "longest request", "max_model_len", "everything"]
ReplicaAnswer = Literal["yes", "no", "cannot tell", "does not start", "above the limit"]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BatchPoint(_Document):
    """A saturated replica with one `max_num_seqs`.

    Attributes
    ----------
    kv_tokens
        KV capacity: larger batches need more memory for the sampler.
    throughput_tps
        Prompt + output tokens per second of completed requests.
    itl_mean_s, itl_p95_s
        Time between tokens, all requests' gaps; ``None``: no request got two tokens.
    is_within_limit
        Whether the p95 keeps the limit; True without a limit.
    """

    max_num_seqs: int
    kv_tokens: int
    throughput_tps: float
    itl_mean_s: float | None
    itl_p95_s: float | None
    running_mean: float
    running_max: int
    kv_usage_max: float
    num_preemptions: int
    is_within_limit: bool


class KvBudget(_Document):
    """The smallest KV cache that does with the advised `max_num_seqs`, and the memory that it leaves.

    Attributes
    ----------
    kv_tokens, kv_gib
        The budget.
    decided_by
        ``throughput``: with less, throughput or ITL miss what is asked. ``longest request``: with less, one of the
        simulated requests does not fit. ``max_model_len``: vLLM does not start with less, although `enough_tokens`
        would do. ``everything``: no smaller one was found.
    enough_tokens
        The smallest KV capacity that does for the simulated traffic.
    gpu_memory_utilization
        vLLM's setting that leaves this budget, by the memory formula.
    memory_gib, freed_gib
        What the replica takes then, and what it gives back of what its present setting takes.
    point
        The replica simulated with this budget.
    """

    kv_tokens: int
    kv_gib: float
    decided_by: KvReason
    enough_tokens: int
    gpu_memory_utilization: float
    memory_gib: float
    freed_gib: float
    point: BatchPoint


class SharedPoint(_Document):
    """The best batch size of replicas that share a GPU, by one case of `twin.shared_gpu`.

    Attributes
    ----------
    throughput_tps
        Of all replicas together, with `max_num_seqs` each; 0: no batch size keeps the limit.
    itl_p95_s
        Of the slowest replica.
    """

    case: SharedCase
    throughput_tps: float
    max_num_seqs: int | None
    itl_p95_s: float | None


class SharedReplicas(_Document):
    """Several replicas on the GPU, between which the adapters are divided.

    Attributes
    ----------
    adapters_each, max_loras_each
        Of the replica with the most. With fewer adapters than replicas, each serves all of them.
    gpu_memory_utilization
        Of each.
    message
        Why it does not start; else empty.
    cases
        From the least to the most sharing; empty when it does not start.
    serves_more
        Than one replica: ``yes`` in all cases, ``no`` in none, or ``cannot tell``. ``above the limit``: no batch size
        keeps the ITL limit, even in the case of least sharing.
    """

    num_replicas: int
    gpu_memory_utilization: float
    kv_tokens_each: int
    adapters_each: int
    max_loras_each: int
    message: str
    cases: tuple[SharedPoint, ...]
    serves_more: ReplicaAnswer


class Advice(_Document):
    """Advice on `max_num_seqs`, KV budget and replicas for one GPU, model and mix of traffic.

    Attributes
    ----------
    max_num_seqs, gpu_memory_utilization
        What the problem or plan says now.
    tolerance
        Share of the plateau's throughput that may be given up.
    itl_p95_limit_s
        ``None``: no limit.
    plateau_tps, reachable_tps
        The largest throughput of all points, and of those within the limit (``None``: there is none).
    points
        By `max_num_seqs`, ascending.
    knee
        The smallest `max_num_seqs` tried that is within the limit, and within the tolerance of `reachable_tps`;
        ``None``: none is within the limit, and there is no advice.
    assumption
        What the numbers of `replicas` rest on.
    """

    schema_version: Literal[1] = 1
    gpu: str
    gpu_memory_gib: float
    model: str
    profile: str
    num_adapters: int
    max_loras: int
    max_lora_rank: int
    max_num_seqs: int
    gpu_memory_utilization: float
    tolerance: float
    itl_p95_limit_s: float | None
    horizon_s: float
    warmup_s: float
    seed: int
    plateau_tps: float
    reachable_tps: float | None
    points: tuple[BatchPoint, ...]
    knee: BatchPoint | None
    kv_budget: KvBudget | None
    replicas: tuple[SharedReplicas, ...]
    assumption: str
    warnings: tuple[str, ...] = ()
    inputs: tuple[InputFile, ...] = ()


def advice_schema() -> dict[str, Any]:
    """Return the JSON Schema of the advice."""
    schema = Advice.model_json_schema(mode="serialization")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "placer advice"
    return schema
