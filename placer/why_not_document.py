"""The answer to "why not fewer GPUs?": what is printed, and written as JSON."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from placer.plan_document import InputFile, SurrogateDescription

AnswerName = Literal["impossible", "possible", "open"]
ModelName = Literal["surrogate", "twin"]


class _Document(BaseModel):
    """Part of an answer: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ProofRecord(_Document):
    """Why so many GPUs cannot be enough.

    Attributes
    ----------
    kind
        ``memory``, ``work``, ``alone``, ``farley``, ``enumeration``, ``cp-sat`` or another solver's.
    model, model_name
        Whose problem it is about: the twin's, with its profiles, or the surrogate's, with its name.
    lower_bound
        GPUs that are needed at least; ``None``: no number of those that may be used is enough.
    relies_on_monotonicity
        It is only as good as the surrogate's declaration that more load never helps.
    """

    kind: str
    model: ModelName
    model_name: str
    lower_bound: int | None
    relies_on_monotonicity: bool


class KnownBound(_Document):
    """The largest lower bound that is known."""

    value: int
    proof: str
    model: ModelName


class WorkPart(_Document):
    """Part of the unavoidable work, in GPUs, and as a share of all of it."""

    name: str
    gpus: float
    share: float


class StepNeed(_Document):
    """What the steps of all GPUs must hold per second, how much one holds at most, and what their fixed costs take."""

    limit: Literal["tokens", "sequences", "kv cache"]
    needed_per_s: float
    per_step: int
    steps_per_s: float
    gpus: float


class WorkRecord(_Document):
    """The work bound, taken apart; all of the twin's mean rates.

    Attributes
    ----------
    gpus
        GPU-seconds per second of unavoidable work.
    parts
        In proportion to tokens, requests and KV tokens read, and the fixed costs of steps; the largest first.
    steps
        What makes steps necessary; the fixed costs are those of `binding`.
    adapters, ranks
        Who brings it: the five adapters with the most work, and every rank; the largest first.
    """

    gpus: float
    binding: Literal["tokens", "sequences", "kv cache"]
    parts: tuple[WorkPart, ...]
    steps: tuple[StepNeed, ...]
    adapters: tuple[WorkPart, ...]
    ranks: tuple[WorkPart, ...]


class Unplaceable(_Document):
    """An adapter that no GPU holds alone; `share`: of its load that would fit; ``None``: it is a matter of memory."""

    name: str
    rank: int
    share: float | None


class AttemptRecord(_Document):
    """A step, and what it said; `extra`: what to install for it."""

    step: str
    outcome: str
    extra: str | None


class GpuRecord(_Document):
    """A GPU of a placement."""

    gpu_type: str
    adapters: tuple[str, ...]
    max_loras: int
    max_lora_rank: int


class CrowdedGpu(_Document):
    """A GPU that must take more than it can.

    Attributes
    ----------
    violations
        What it does not keep, as the surrogate predicts it, in words.
    demands
        By the profile's arithmetic, what it needs of each limit over what there is: above 1 is too much.
    binding
        The limit with the largest demand.
    """

    gpu: GpuRecord
    violations: tuple[str, ...]
    throughput_ratio: float
    starvation_probability: float
    demands: dict[str, float]
    binding: str


class Shortfall(_Document):
    """How far a search got with so many GPUs.

    Attributes
    ----------
    num_accepted, num_gpus
        GPUs that the surrogate accepts when all adapters are put on so many of them.
    worst
        The GPU that is furthest from being accepted.
    served_share
        Largest share of all rates, in whole percent, at which best fit places everything on so many GPUs; ``None``:
        none was found.
    """

    num_gpus: int
    num_accepted: int
    worst: CrowdedGpu | None
    served_share: float | None


class WhyNot(_Document):
    """Whether a number of GPUs is enough, and why not.

    Attributes
    ----------
    answer
        ``impossible``: proven; ``possible``: there is a placement; ``open``: neither, not proven.
    allowed_gpus
        GPUs that `max_count` allows; ``None``: any number.
    best_known_gpus
        Of the best placement that was found.
    placement
        Where the answer is ``possible``.
    shortfall
        Where it is ``open``, if there was anything to look at.
    margin, threshold
        With which the surrogate was asked.
    """

    schema_version: Literal[1] = 1
    num_gpus: int
    answer: AnswerName
    proof: ProofRecord | None
    lower_bound: KnownBound | None
    best_known_gpus: int | None
    allowed_gpus: int | None
    work: WorkRecord
    unplaceable: tuple[Unplaceable, ...]
    attempts: tuple[AttemptRecord, ...]
    shortfall: Shortfall | None
    placement: tuple[GpuRecord, ...]
    surrogate: SurrogateDescription
    profiles: tuple[str, ...]
    margin: float
    threshold: float
    budget_s: float | None
    max_evaluations: int | None
    num_evaluations: int
    seed: int
    is_interrupted: bool
    warnings: tuple[str, ...]
    inputs: tuple[InputFile, ...]


def why_not_schema() -> dict[str, Any]:
    """Return the JSON Schema of the answer to `--why-not`."""
    schema = WhyNot.model_json_schema(mode="serialization")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "placer why-not"
    return schema
