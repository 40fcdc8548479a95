"""What a what-if study says: one cell for each scenario, as it is kept, written and printed."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from placer.plan_document import SolutionName, TerminationName

CellStatus = Literal["accepted", "rejected", "unverified", "none", "failed"]
StudyName = Literal["sweep", "risk", "break-even", "sensitivity"]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RiskRecord(_Document):
    """How often a fleet starves when rates are drawn, and the twin itself may be wrong.

    Attributes
    ----------
    num_draws, num_starved
        Draws of all rates, and those under which the twin rejects some GPU.
    probability, low, high
        Of such a draw, with Wilson's interval of 95 %.
    gpu_share
        Mean share of the GPUs that are rejected.
    worst_gpu, worst_gpu_starved
        The GPU that is rejected most often, and in how many draws.
    mean_load
        Mean of the drawn loads over the planned one, with the error of the twin.
    """

    num_draws: int
    num_starved: int
    probability: float
    low: float
    high: float
    gpu_share: float
    worst_gpu: str
    worst_gpu_starved: int
    mean_load: float


class LossRecord(_Document):
    """What is left when GPUs are lost.

    Attributes
    ----------
    gpus_before, gpus_lost
        Numbers of GPUs by type.
    starved_adapters
        Those that the twin sees starve when all adapters are on the GPUs that are left; none where the plan holds.
    worst_service_ratio
        Smallest share of an adapter's offered tokens that is not left waiting then.
    """

    gpus_before: dict[str, int]
    gpus_lost: dict[str, int]
    starved_adapters: tuple[str, ...] = ()
    worst_service_ratio: float | None = None


class Cell(_Document):
    """One scenario, and the plan for it.

    Attributes
    ----------
    index, label, changes
        Which scenario; its name or changes in words; its changes by name.
    status
        The plan's verdict; ``none``: there is no placement; ``failed``: there is no plan, for the `reason`.
    num_adapters, offered_rps, offered_tps
        Of the problem of the scenario; ``None``: there is none.
    gpus_by_type
        Numbers of GPUs.
    lower_bound, bound_proof, cost_bound_per_hour
        As in the plan.
    worst_service_ratio, itl_p95_ms, ttft_p95_ms
        The worst of all GPUs, as simulated.
    num_metastable
        GPUs whose verdict is a matter of chance.
    is_transient
        It failed for something else than the scenario, such as a library that is missing: it is not kept, and the same
        command tries again.
    seconds
        Wall time of the cell; not comparable.
    """

    schema_version: Literal[1] = 1
    index: int
    label: str
    changes: dict[str, Any]
    status: CellStatus
    reason: str = ""
    num_adapters: int | None = None
    offered_rps: float | None = None
    offered_tps: float | None = None
    num_gpus: int | None = None
    gpus_by_type: dict[str, int] = {}
    cost_per_hour: float | None = None
    lower_bound: int | None = None
    bound_proof: str | None = None
    cost_bound_per_hour: float | None = None
    solution: SolutionName = "none"
    termination: TerminationName = "error"
    worst_service_ratio: float | None = None
    itl_p95_ms: float | None = None
    ttft_p95_ms: float | None = None
    num_metastable: int | None = None
    twin_calls: int | None = None
    risk: RiskRecord | None = None
    loss: LossRecord | None = None
    is_transient: bool = False
    seconds: float = 0.0

    @property
    def has_plan(self) -> bool:
        """Whether there is a fleet that one would deploy: accepted, or not simulated because that was asked for."""
        return self.status in {"accepted", "unverified"}


class BreakEvenRecord(_Document):
    """At which price one GPU type becomes as cheap as another for the same traffic.

    Attributes
    ----------
    scenario
        Its changes besides the GPU type.
    gpu_type, other
        Two types, each in a fleet of its own.
    num_gpus, num_other
        GPUs of those fleets.
    price, other_price
        That the problem gives, per hour.
    break_even_price
        Of `gpu_type`, while the other costs `other_price`: below it, its fleet is the cheaper one.
    price_ratio
        Price of `gpu_type` over that of `other` at which both fleets cost the same: `num_other` / `num_gpus`.
    cheaper
        At the given prices; ``None``: equal.
    """

    scenario: dict[str, Any]
    gpu_type: str
    other: str
    num_gpus: int
    num_other: int
    price: float
    other_price: float
    break_even_price: float
    price_ratio: float
    cheaper: str | None


class SavingRecord(_Document):
    """What a cell needs less, or more, than the problem as it is.

    Attributes
    ----------
    gpus, cost_per_hour
        Saved; negative: needed in addition.
    is_within_bound
        Whether the problem as it is might be served with as few GPUs, for all that its lower bound says: the saving is
        then what this search found, and not proven to come from the change.
    """

    label: str
    gpus: int
    cost_per_hour: float
    is_within_bound: bool


class WhatIf(_Document):
    """A study: its cells in the order of the scenarios, and what follows from them.

    Attributes
    ----------
    configuration
        What was asked for, as the folder keeps it.
    """

    schema_version: Literal[1] = 1
    study: StudyName
    configuration: dict[str, Any]
    cells: tuple[Cell, ...]
    break_even: tuple[BreakEvenRecord, ...] = ()
    savings: tuple[SavingRecord, ...] = ()
    warnings: tuple[str, ...] = ()


def cell_name(cell: Cell) -> str:
    """Return the name of a cell's file, without a suffix."""
    return f"cell-{cell.index:05d}"


def whatif_schema() -> dict[str, Any]:
    """Return the JSON Schema of what `placer whatif --json` prints."""
    schema = WhatIf.model_json_schema(mode="serialization")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "placer what-if study"
    return schema
