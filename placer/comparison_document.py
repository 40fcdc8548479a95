"""What a comparison of solvers says: one record per run, what is known of each instance, and a summary per solver."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from placer.plan_document import TerminationName
from solvers.placement import GpuAssignment, Placement
from solvers.result import Bound

RunStatus = Literal["placed", "no placement", "failed", "unavailable"]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PlacementRecord(_Document):
    """A placement that anybody can check.

    Attributes
    ----------
    gpus
        For each GPU the indices of its adapters, ascending.
    slots, max_lora_rank, gpu_type
        For each GPU `max_loras`, the rank at which slots are reserved, and the index of its type.
    """

    gpus: tuple[tuple[int, ...], ...]
    slots: tuple[int, ...]
    max_lora_rank: tuple[int, ...]
    gpu_type: tuple[int, ...]
    # Only where it was chosen for single GPUs; files of earlier versions lack it.
    max_num_seqs: tuple[int | None, ...] | None = None

    @classmethod
    def of(cls, gpus: tuple[GpuAssignment, ...]) -> PlacementRecord:
        """Return the record of a placement's GPUs."""
        return cls(
            gpus=tuple(gpu.adapters for gpu in gpus),
            slots=tuple(gpu.max_loras for gpu in gpus),
            max_lora_rank=tuple(gpu.max_lora_rank for gpu in gpus),
            gpu_type=tuple(gpu.gpu_type for gpu in gpus),
            max_num_seqs=tuple(gpu.max_num_seqs for gpu in gpus) if any(gpu.max_num_seqs for gpu in gpus) else None,
        )

    def placement(self) -> Placement:
        """Return the placement."""
        own = self.max_num_seqs or (None,) * len(self.gpus)
        columns = zip(self.gpu_type, self.gpus, self.slots, self.max_lora_rank, own, strict=True)
        return Placement(tuple(GpuAssignment(*column) for column in columns))


class IncumbentRecord(_Document):
    """A placement that a solver reported while it searched: when, after how many evaluations, and how good."""

    runtime_s: float
    num_evaluations: int
    num_gpus: int
    cost_per_hour: float


class BoundRecord(_Document):
    """A lower bound on the number of GPUs: what proves it, and for whose model.

    Attributes
    ----------
    cost_per_hour
        What was proven about the cost; ``None``: nothing but what follows from the number of GPUs.
    """

    value: int
    proof: str
    model: str
    cost_per_hour: float | None = None

    @classmethod
    def of(cls, bound: Bound) -> BoundRecord:
        """Return the record of a solver's bound."""
        return cls(value=bound.value, proof=bound.proof, model=bound.model, cost_per_hour=bound.cost_per_hour)


class TwinRecord(_Document):
    """What the twin said about a solver's placement, and what repair made of it.

    Attributes
    ----------
    rejected_gpus
        GPUs of the solver's placement that the twin rejects, before any repair.
    accepted_share
        Share of its GPUs that the twin accepts.
    worst_service_ratio
        Smallest served share of an adapter's offered tokens, over all GPUs of the solver's placement.
    num_gpus, cost_per_hour
        After repair; ``None``: repair did not end with GPUs that the twin all accepts.
    repair_rounds, twin_calls
        What that took.
    reason
        Why repair did not end well; empty: it did.
    """

    rejected_gpus: int
    accepted_share: float
    worst_service_ratio: float | None
    num_gpus: int | None
    cost_per_hour: float | None
    repair_rounds: int
    twin_calls: int
    reason: str = ""


class ReplayRecord(_Document):
    """What the twin says about the final placement under the traffic that came after the plan was made."""

    rejected_gpus: int
    accepted_share: float
    worst_service_ratio: float | None


class RunRecord(_Document):
    """One solver on one instance with one seed.

    Attributes
    ----------
    status, reason
        Whether there is a placement; if not, why, in words.
    num_gpus, cost_per_hour
        Of the solver's placement.
    bound
        What the solver proved.
    first_s, best_s, within_one_percent_s
        Seconds until the first placement, the best one, and one whose objective is within 1 % of the best one's.
    incumbents
        The placements it reported.
    twin, replay
        ``None``: not asked.
    moves
        Adapters that move, against the placement that was given as the previous one.
    placement, repaired
        The solver's, and what repair made of it where that is another one.
    """

    schema_version: Literal[1] = 1
    instance: str
    solver: str
    seed: int
    status: RunStatus
    reason: str = ""
    solution: str = "none"
    termination: TerminationName = "error"
    num_gpus: int | None = None
    cost_per_hour: float | None = None
    bound: BoundRecord | None = None
    runtime_s: float | None = None
    first_s: float | None = None
    best_s: float | None = None
    within_one_percent_s: float | None = None
    num_evaluations: int | None = None
    incumbents: tuple[IncumbentRecord, ...] = ()
    twin: TwinRecord | None = None
    replay: ReplayRecord | None = None
    moves: int | None = None
    placement: PlacementRecord | None = None
    repaired: PlacementRecord | None = None

    @property
    def key(self) -> tuple[str, str, int]:
        """Which run it is."""
        return self.instance, self.solver, self.seed

    @property
    def final_gpus(self) -> int | None:
        """GPUs of what one would deploy: after repair where the twin was asked; ``None``: nothing to deploy."""
        return self.num_gpus if self.twin is None else self.twin.num_gpus

    @property
    def final_cost_per_hour(self) -> float | None:
        """Cost of what one would deploy; ``None``: nothing to deploy."""
        return self.cost_per_hour if self.twin is None else self.twin.cost_per_hour


def run_name(record: RunRecord) -> str:
    """Return the name of a run's files, without a suffix; a solver ``folder/own.py:Solver`` is ``own.py-Solver``."""
    solver = record.solver.rpartition("/")[2].replace(":", "-")
    return f"{record.instance}--{solver}--seed{record.seed}"


class InstanceRecord(_Document):
    """An instance and what is known about it.

    Attributes
    ----------
    bound
        The largest lower bound that is known: that of the instance, the work bound, or what a solver proved.
    planted_gpus
        GPUs on which a placement is known.
    cheapest_gpu_per_hour
        So that a bound on GPUs is one on the cost.
    least_cost_per_hour
        The largest lower bound on the cost that is known; ``None``: no bound is known.
    """

    name: str
    family: str
    what: str
    num_adapters: int
    fingerprint: str
    bound: BoundRecord | None
    planted_gpus: int | None
    cheapest_gpu_per_hour: float
    # Comparisons of earlier versions lack it.
    least_cost_per_hour: float | None = None


class SolverSummary(_Document):
    """One solver over all its runs; means are over the runs that have the number, ``None``: none has.

    Attributes
    ----------
    num_runs, num_placed
        Runs, and those with something to deploy.
    gpus_over_bound, cost_over_bound
        Mean of (GPUs / bound - 1), and the same of costs.
    accepted_share
        GPUs that the twin accepts at first, over all GPUs.
    rejected_gpus
        GPUs that the twin rejects at first, in total.
    worst_service_ratio
        Smallest of all runs.
    wins, ties, losses
        Against the reference solver, instance by instance and seed by seed, by GPUs to deploy (or their cost);
        ``None`` for the reference itself.
    mean_saving
        Mean of (1 - GPUs / the reference's GPUs) where both have a placement.
    """

    solver: str
    num_runs: int
    num_placed: int
    num_failed: int
    mean_gpus: float | None
    gpus_over_bound: float | None
    cost_over_bound: float | None
    first_s: float | None
    best_s: float | None
    within_one_percent_s: float | None
    runtime_s: float | None
    num_evaluations: float | None
    accepted_share: float | None
    rejected_gpus: int | None
    worst_service_ratio: float | None
    replay_accepted_share: float | None
    mean_moves: float | None
    wins: int | None
    ties: int | None
    losses: int | None
    mean_saving: float | None


class Comparison(_Document):
    """Solvers compared on instances.

    Attributes
    ----------
    configuration
        What was asked for, as the folder keeps it.
    reference
        Solver that the others are compared with; ``None``: it was not among them.
    """

    schema_version: Literal[1] = 1
    configuration: dict[str, object]
    reference: str | None
    instances: tuple[InstanceRecord, ...]
    solvers: tuple[SolverSummary, ...]
    runs: tuple[RunRecord, ...]
    warnings: tuple[str, ...] = ()


def as_json(document: BaseModel) -> str:
    """Return a document as text with sorted keys, ending in a newline."""
    return json.dumps(document.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def comparison_schema() -> dict[str, Any]:
    """Return the JSON Schema of what `placer compare --json` prints."""
    schema = Comparison.model_json_schema(mode="serialization")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "placer comparison"
    return schema
