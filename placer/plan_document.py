"""The plan: what is reported, written to plan.json and read back; everything in it says which model it comes from."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from predictors.surrogate import STARVED_PROBABILITY
from predictors.uncertainty import RateUncertainty
from solvers.constraints import UNCONSTRAINED, Constraints
from solvers.problem_file import LatencyMetric, Limits, ObjectiveName, SecondaryName
from solvers.rate_scenarios import RateScenarios
from solvers.replication import NOT_REPLICATED, Replication
from twin.engine import EngineConfig
from twin.stability_report import StabilityReport

Verdict = Literal["accepted", "rejected", "unverified", "none"]
SolutionName = Literal["none", "feasible", "optimal"]
LimitName = Literal["throughput", "queue", "KV cache", "slots", "latency"]
TerminationName = Literal["proven", "gap_reached", "time_limit", "iteration_limit", "interrupted", "error", "completed"]


class _Document(BaseModel):
    """Part of a plan: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RankCount(_Document):
    """How many adapters of a rank are on a GPU."""

    rank: int
    num_adapters: int


class Prediction(_Document):
    """What the surrogate predicts for a GPU; latencies in seconds.

    Attributes
    ----------
    throughput_ratio
        Throughput / offered load.
    starvation_probability
        That the replica or one of its adapters starves.
    is_outside_domain
        The surrogate was asked outside of what it was fitted on: only the simulation counts.
    """

    throughput_tps: float
    throughput_ratio: float
    starvation_probability: float
    itl_p95_s: float
    ttft_p95_s: float
    is_outside_domain: bool


class Stability(_Document):
    """Whether the verdict about a GPU is a matter of chance.

    Attributes
    ----------
    is_metastable, reasons
        Whether other seeds reject the GPU, or show it in another regime, and what differs.
    rejected_seeds
        Seeds with which the twin rejects it, of those in `report`.
    report
        What was simulated; ``None`` when the replica cannot take the requests of another seed.
    """

    is_metastable: bool
    reasons: tuple[str, ...]
    rejected_seeds: tuple[int, ...]
    report: StabilityReport | None


class Verification(_Document):
    """What the twin simulated for a GPU with exactly the adapters and settings of the plan.

    Attributes
    ----------
    engine
        Which engine of the twin.
    horizon_s, warmup_s
        Simulated seconds, and those at the start that are not measured.
    offered_tps, throughput_tps
        Prompt + output tokens per second that arrived, and of completed requests.
    itl_p95_s, ttft_p95_s
        ``None`` when nothing completed.
    kv_usage_max
        Largest share of the KV cache in use.
    verdict, reasons
        Accepted, or rejected for these reasons.
    near_limits
        What an accepted GPU is close to the limit of: the reason to simulate it with further seeds.
    stability
        What those said; ``None``: not asked.
    worst_service_ratio
        Smallest share of an adapter's offered tokens that is not left waiting; ``None`` in files from before.
    scenario
        Under which the numbers are: the worst of those under which the verdict is what it is; ``None``: the problem has
        no scenarios.
    rejected_scenarios
        Those under which the GPU is rejected; an accepted one has some where the scenarios' `risk` allows it.
    """

    engine: str
    horizon_s: float
    warmup_s: float
    seed: int
    offered_tps: float
    throughput_tps: float
    throughput_ratio: float
    starved_adapters: tuple[str, ...]
    itl_p95_s: float | None
    ttft_p95_s: float | None
    kv_usage_max: float
    verdict: Literal["accepted", "rejected"]
    reasons: tuple[str, ...]
    near_limits: tuple[LimitName, ...] = ()
    stability: Stability | None = None
    worst_service_ratio: float | None = None
    scenario: str | None = None
    rejected_scenarios: tuple[str, ...] = ()

    @property
    def is_accepted(self) -> bool:
        """Whether the twin accepts the GPU."""
        return self.verdict == "accepted"

    @property
    def is_metastable(self) -> bool:
        """Whether further seeds were asked, and say otherwise."""
        return self.stability is not None and self.stability.is_metastable


class AdapterShare(_Document):
    """Part of the traffic of an adapter that is on several GPUs.

    Attributes
    ----------
    adapter
        Its name.
    share
        Part of its requests that this GPU gets, in (0, 1): each of them with this probability, whatever came before.
    replica
        Which of the adapter's shares it is, from 1.
    """

    adapter: str
    share: float = Field(gt=0, le=1, allow_inf_nan=False)
    replica: int = Field(ge=1)


class PlannedGpu(_Document):
    """One GPU of a plan.

    Attributes
    ----------
    name
        Unique in the plan.
    adapters
        Names, in the order of the problem.
    shares
        Of those that are on other GPUs, too; all others are served here only.
    engine
        All of vLLM's settings for this GPU.
    offered_tps
        Mean prompt + output tokens per second of its adapters.
    headroom
        By how much all rates may grow before the surrogate refuses the GPU: 0.2 is 20 %. Negative: it refuses the GPU
        as it is. ``None``: not asked. Neither a margin nor a risk changes it.
    verification
        ``None``: not simulated.
    current
        GPU of the placement in place for which this one stands: its name, or ``#`` and its number; ``None``: none.
    """

    name: str
    gpu_type: str
    adapters: tuple[str, ...]
    # Plans of earlier versions lack it.
    shares: tuple[AdapterShare, ...] = ()
    ranks: tuple[RankCount, ...]
    engine: EngineConfig
    kv_tokens: int
    offered_tps: float
    predicted: Prediction
    headroom: float | None
    verification: Verification | None
    # Plans of earlier versions lack it.
    current: str | None = None


class PlanMoves(_Document):
    """What the plan changes about the placement that is in place.

    Attributes
    ----------
    num_gpus_before
        GPUs in place.
    num_placed, num_moved, share
        Adapters of the problem that are on one of them, those of these that change it, and their share; of an adapter
        on several GPUs each copy counts. GPUs stand for those in place of their type such that the moves are the
        fewest.
    num_new
        Adapters that are on no GPU yet, and further copies of those that are.
    loaded_mib
        Weights of the adapters that must be loaded, moved and new ones, in MiB.
    """

    num_gpus_before: int
    num_placed: int
    num_moved: int
    share: float
    num_new: int
    loaded_mib: float


class LowerBound(_Document):
    """The fewest GPUs of any plan: what proves it, and whose model it holds for.

    Attributes
    ----------
    cost_per_hour
        The least cost of any plan; ``None``: nothing was proven about it.
    """

    value: int
    proof: str
    model: Literal["surrogate", "twin"]
    # Plans of earlier versions lack it.
    cost_per_hour: float | None = None


class InputFile(_Document):
    """A file that the plan depends on, by content."""

    role: Literal["problem", "trace", "popularity", "profile", "surrogate", "current"]
    name: str
    sha256: str


class SurrogateDescription(_Document):
    """Who predicted: the name of the choice, and what it was distilled from."""

    name: str
    details: str


class PlanConfiguration(_Document):
    """The effective configuration: what was asked for, with every default filled in.

    Attributes
    ----------
    engine
        Settings that all GPUs share; `max_loras`, `max_lora_rank` and `max_cpu_loras` are each GPU's own, and
        `max_num_seqs` may be where there are options.
    max_num_seqs_options
        From which `max_num_seqs` was chosen; empty: it was given.
    margin
        By how much rates were inflated when the surrogate was asked to accept a GPU; 0: not at all.
    risk
        Share of just accepted GPUs that the twin was allowed to reject; ``None``: not given.
    threshold
        Probability of starvation below which the surrogate was taken to accept a GPU; smaller than 0.5 with a risk.
    budget_s, max_evaluations, max_improving_evaluations
        Limits of the solver: seconds, rows asked of the surrogate, and those once it had a placement; ``None``: no
        such limit.
    constraints
        That were in force, as the problem file has them.
    secondary
        What decided between placements with equal objectives.
    replication
        Which adapters might be on several GPUs: the problem file's rules, and one about all of them if replicas were
        asked for where needed. What came of it is in the `shares` of the GPUs.
    is_improved
        Whether GPUs were emptied into others after the repair, where the twin approved.
    """

    model: str
    gpu_types: tuple[str, ...]
    profiles: tuple[str, ...]
    engine: EngineConfig
    # Plans of earlier versions lack it.
    max_num_seqs_options: tuple[int, ...] = ()
    fixed_max_loras: int | None
    fixed_max_lora_rank: int | None
    objective: ObjectiveName
    limits: Limits
    latency_metric: LatencyMetric = "itl_p95_ms"
    uncertainty: RateUncertainty | None = None
    scenarios: RateScenarios | None = None
    # Plans of earlier versions lack it.
    constraints: Constraints = UNCONSTRAINED
    secondary: tuple[SecondaryName, ...] = ()
    # Plans of earlier versions lack it.
    replication: Replication = NOT_REPLICATED
    solver: str
    surrogate: SurrogateDescription
    margin: float
    # Plans of earlier versions lack both.
    risk: float | None = None
    threshold: float = STARVED_PROBABILITY
    budget_s: float | None
    max_evaluations: int | None
    # Plans of earlier versions lack it.
    max_improving_evaluations: int | None = None
    verification_engine: str
    horizon_s: float
    warmup_s: float
    max_repair_rounds: int
    is_improved: bool


class RepairSummary(_Document):
    """What happened after the solver's answer.

    Attributes
    ----------
    rounds
        Rounds in which rejected GPUs got other slots or gave back adapters.
    rejected_at_first
        GPUs of the solver's answer that the twin rejected.
    given_back
        Adapters that were taken off rejected GPUs.
    gpus_added, gpus_dissolved
        GPUs opened for adapters that were given back; GPUs emptied into others, or not opened in another repair.
    twin_calls
        GPUs simulated, over all phases.
    """

    rounds: int = 0
    rejected_at_first: int = 0
    given_back: int = 0
    gpus_added: int = 0
    gpus_dissolved: int = 0
    twin_calls: int = 0


class Timings(_Document):
    """Wall times in seconds; the only part of a plan that differs between equal runs."""

    load_s: float = 0.0
    solve_s: float = 0.0
    verify_s: float = 0.0
    repair_s: float = 0.0
    total_s: float = 0.0


class Plan(_Document):
    """A placement with its predictions, its simulations and its bound.

    Attributes
    ----------
    verdict
        ``accepted``: the twin simulated every GPU and accepts it; ``rejected``: it rejects some; ``unverified``: some
        were not simulated; ``none``: there is no placement.
    solution, termination
        What the solver has, and why the search stopped.
    message
        For the user; may be empty.
    surrogate_bound
        What the solver proved of the sets that the surrogate accepts, with the plan's margin and risk, where that is
        more than `lower_bound`: the twin may accept fewer GPUs. ``None``: nothing more, or numbers of replicas or of
        `max_num_seqs` were looked for.
    gap
        (GPUs - `lower_bound`) / GPUs; ``None`` without either.
    cost_gap
        (cost - bound on the cost) / cost, where the objective is the cost; ``None`` otherwise, or without either.
    moves
        What changes about the placement in place; ``None``: nothing is said to be in place.
    solver_evaluations, solver_calls
        Rows that the solver asked the surrogate for, and in how many batches.
    """

    schema_version: Literal[1] = 1
    verdict: Verdict
    solution: SolutionName
    termination: TerminationName
    message: str
    num_gpus: int
    cost_per_hour: float
    lower_bound: LowerBound | None
    # Plans of earlier versions lack it.
    surrogate_bound: LowerBound | None = None
    gap: float | None
    # Plans of earlier versions lack it.
    cost_gap: float | None = None
    gpus: tuple[PlannedGpu, ...]
    # Plans of earlier versions lack it.
    moves: PlanMoves | None = None
    repair: RepairSummary
    solver_evaluations: int
    # Plans of earlier versions lack it.
    solver_calls: int = 0
    warnings: tuple[str, ...]
    seed: int
    configuration: PlanConfiguration
    inputs: tuple[InputFile, ...]
    versions: dict[str, str] = Field(description="of placer, Python and the libraries that the numbers depend on")
    timings: Timings = Timings()

    def routes(self) -> dict[str, dict[str, float]]:
        """Return for each adapter, by name, the GPUs that serve it, and which part of its requests each of them gets.

        What a router has to know: 1 for the only GPU of an adapter, else shares that add up to 1.
        """
        routes: dict[str, dict[str, float]] = {}
        for gpu in self.gpus:
            shares = {entry.adapter: entry.share for entry in gpu.shares}
            for adapter in gpu.adapters:
                routes.setdefault(adapter, {})[gpu.name] = shares.get(adapter, 1.0)
        return routes

    def comparable(self) -> dict[str, Any]:
        """Return the plan as plain values without the timings: equal for equal problem, configuration and versions."""
        return self.model_dump(mode="json", exclude={"timings"})


def plan_schema() -> dict[str, Any]:
    """Return the JSON Schema of plan.json."""
    schema = Plan.model_json_schema(mode="serialization")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "placer plan"
    return schema
