"""A re-plan: what changes about a plan that is in place, in which order, and what the twin says of each step."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from placer.plan_document import Plan
from twin.engine import EngineConfig

ReplanVerdict = Literal["accepted", "rejected", "unsafe"]
StepKind = Literal["start", "load", "shift", "unload", "restart", "stop"]
CheckEngine = Literal["fast", "simpy"]


class _Document(BaseModel):
    """Part of a re-plan: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ReplanLimits(_Document):
    """What a migration may cost; ``None``: no such limit.

    Attributes
    ----------
    max_moves
        Adapters that are served now and change their replica.
    max_loads
        Adapters that are loaded on a replica that does not have them: those that move, those that are new or were on a
        lost GPU, and those that are elsewhere for the time of a restart.
    max_restarts
        Replicas that get other engine settings.
    """

    max_moves: int | None = Field(default=None, ge=0)
    max_loads: int | None = Field(default=None, ge=0)
    max_restarts: int | None = Field(default=None, ge=0)


class Before(_Document):
    """What is in place, under the rates of now.

    Attributes
    ----------
    num_gpus
        GPUs that still serve; without the lost ones.
    lost_gpus
        Names of those that do not.
    rejected_gpus
        Of those that serve, what the twin rejects.
    starved_adapters
        Whom the twin sees starve, and whom nobody serves: new ones and those of lost GPUs.
    gone_adapters
        That the workload does not have any more.
    """

    num_gpus: int
    lost_gpus: tuple[str, ...]
    rejected_gpus: tuple[str, ...]
    starved_adapters: tuple[str, ...]
    gone_adapters: tuple[str, ...]


class Changes(_Document):
    """What the new plan changes.

    Attributes
    ----------
    num_moves, num_orphans, num_new
        Adapters that change their replica, that were on a lost GPU, and that were nowhere.
    num_loads
        All of these; loads for the time of a restart are the migration's.
    num_restarts, num_starts, num_stops
        Replicas with other engine settings, on GPUs that are new, and that are given back.
    """

    num_moves: int
    num_orphans: int
    num_new: int
    num_loads: int
    num_restarts: int
    num_starts: int
    num_stops: int


class Candidate(_Document):
    """A plan that was considered.

    Attributes
    ----------
    method
        ``repair``: what still serves keeps everything; ``reduce``: then GPUs are emptied into others; ``scratch``: a
        new plan, its GPUs aligned with those in place and its moves taken back where the twin approves.
    num_unserved
        Adapters that no GPU serves, because a limit forbids to load them or no GPU is left.
    num_rejected
        GPUs that the twin rejects.
    is_within_limits
        Whether moves, loads and restarts are.
    """

    method: Literal["repair", "reduce", "scratch"]
    num_gpus: int
    num_unserved: int
    num_rejected: int
    changes: Changes
    is_within_limits: bool


class ReplicaCheck(_Document):
    """What the twin says of a replica in the state after a step, or while two replicas serve the adapters of a step.

    Attributes
    ----------
    engine
        ``fast``, of one replica and its requests; ``simpy``: of several behind a router.
    """

    replica: str
    engine: CheckEngine
    num_adapters: int
    is_accepted: bool
    throughput_ratio: float
    starved_adapters: tuple[str, ...]


class StepCheck(_Document):
    """Whether a step is safe.

    Attributes
    ----------
    basis
        ``simulated``: the twin simulated what the step changes; ``unchanged``: nobody gets other requests than before.
    replicas
        What was simulated for it.
    newly_starved
        Adapters that starve then and did not before the migration.
    reasons
        Why it is not safe.
    """

    basis: Literal["simulated", "unchanged"]
    is_safe: bool
    replicas: tuple[ReplicaCheck, ...] = ()
    newly_starved: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()


class Shift(_Document):
    """Traffic that goes to another replica; `source` ``None``: nobody has served these adapters so far."""

    source: str | None
    target: str
    adapters: tuple[str, ...]


class MigrationStep(_Document):
    """One step; each begins when the one before it is over, those of a `group` together.

    Attributes
    ----------
    kind
        ``start`` a replica and wait for it; ``load`` adapters on it; ``shift`` their requests to it; ``unload`` them
        elsewhere, when their last requests are done; ``restart`` a replica that serves nobody; ``stop`` one.
    replica
        Its name; ``NAME+next`` is the successor of NAME on another GPU, which takes over the name when NAME is stopped.
    adapters
        That are loaded, shifted or unloaded; of starts and restarts, those that are given with the command.
    shifts
        Of a ``shift``; all of them at the same moment.
    is_gradual
        Of a ``shift``: the twin approves of both replicas serving at a time. If not, the router must change at once.
    engine
        Of starts and restarts.
    seconds
        How long it takes; of loads by the profile's load times, of starts and restarts by its start-up time, where no
        other is given. The others take as long as their last requests.
    gpus_in_use
        After the step begins.
    """

    number: int
    kind: StepKind
    replica: str
    gpu_type: str
    adapters: tuple[str, ...] = ()
    shifts: tuple[Shift, ...] = ()
    is_gradual: bool | None = None
    engine: EngineConfig | None = None
    seconds: float
    group: int
    gpus_in_use: int
    check: StepCheck


class Migration(_Document):
    """The way from what is in place to the plan.

    Attributes
    ----------
    is_safe
        Every step is: no adapter starves on the way that did not before, and every replica that the twin rejects it
        rejected before.
    num_loads, num_temporary_loads
        Adapters loaded on replicas that did not have them, and those of them that go back after a restart.
    spare_gpus, peak_gpus
        GPUs that are needed for a while beyond those of before and after; and most GPUs in use at a time.
    total_s
        Of all steps.
    startup_source
        Where the time of a start comes from.
    """

    is_safe: bool
    steps: tuple[MigrationStep, ...]
    num_loads: int
    num_temporary_loads: int
    num_restarts: int
    spare_gpus: int
    peak_gpus: int
    total_s: float
    startup_source: str


class Replan(_Document):
    """A new plan near the one in place, and the way there.

    Attributes
    ----------
    verdict
        ``accepted``: the twin accepts every GPU of the plan and every step; ``rejected``: it rejects a GPU, or somebody
        is not served; ``unsafe``: only some step.
    method
        How the plan was made; see `Candidate`.
    message
        What a reader must know about limits and spare GPUs; may be empty.
    plan
        What is in place afterwards. Replicas that stay keep their names.
    unserved_adapters
        That no GPU of the plan serves.
    settings
        Seed, seconds and spare GPUs that were given, by name.
    """

    schema_version: Literal[1] = 1
    verdict: ReplanVerdict
    method: Literal["repair", "reduce", "scratch"]
    message: str
    before: Before
    changes: Changes
    limits: ReplanLimits
    candidates: tuple[Candidate, ...]
    unserved_adapters: tuple[str, ...]
    plan: Plan
    migration: Migration
    settings: dict[str, float | int | None]

    def comparable(self) -> dict[str, Any]:
        """Return the document as plain values without wall times: equal for equal inputs and versions."""
        return self.model_dump(mode="json", exclude={"plan": {"timings"}})


def replan_schema() -> dict[str, Any]:
    """Return the JSON Schema of what `placer replan --json` prints."""
    schema = Replan.model_json_schema(mode="serialization")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "placer replan"
    return schema
