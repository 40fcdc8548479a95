"""One cell of a study: the problem of a scenario, its plan, and what is asked about the plan."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from placer.files import ProblemFromFile
from placer.plan_document import Plan, Verification
from placer.planning import DEFAULT_SOLVER, DEFAULT_SURROGATE, plan
from placer.repair import DEFAULT_REPAIR_ROUNDS
from placer.surrogates import at_the_quantile, surrogate_for
from placer.verify import TwinSettings, TwinVerifier
from placer.whatif.changing import changed, fewer_of_each, lost_gpus
from placer.whatif.document import Cell, LossRecord
from placer.whatif.risk import RiskSettings, risk_of
from placer.whatif.scenario import Scenario
from solvers.budget import Budget
from solvers.crowding import crowd
from solvers.feasibility import FeasibilityModel
from twin.errors import InputError, PlacerError, ProfileError
from twin.judging_window import DEFAULT_HORIZON_S, DEFAULT_WARMUP_S
from twin.parallel import available_cores

# Rows that the search for the least crowded fleet may ask for.
CROWD_EVALUATIONS = 20_000


@dataclass(frozen=True)
class PlanSettings:
    """How every cell is planned; see `placer.planning.plan`.

    Attributes
    ----------
    twin_workers
        Threads for the simulations of one cell; ``None``: one per core. The answers do not depend on it.
    """

    solver: str = DEFAULT_SOLVER
    surrogate: str = DEFAULT_SURROGATE
    budget_s: float | None = None
    max_evaluations: int | None = None
    seed: int = 0
    margin: float = 0.0
    risk: float | None = None
    replicas: str = "given"
    is_verified: bool = True
    is_improved: bool = True
    horizon_s: float = DEFAULT_HORIZON_S
    warmup_s: float = DEFAULT_WARMUP_S
    repair_rounds: int = DEFAULT_REPAIR_ROUNDS
    twin_workers: int | None = None

    def as_configuration(self) -> dict[str, Any]:
        """Return what decides the answers, as plain values."""
        values = asdict(self)
        del values["twin_workers"]
        return values

    def planned(self, problem: ProblemFromFile) -> Plan:
        """Return the plan of a problem; see `placer.planning.plan`, also for the errors raised."""
        return plan(
            problem,
            solver=self.solver,
            surrogate=self.surrogate,
            budget="auto" if self.budget_s is None else self.budget_s,
            max_evaluations=self.max_evaluations,
            seed=self.seed,
            verify=self.is_verified,
            improve=self.is_improved,
            margin=self.margin,
            risk=self.risk,
            replicas=self.replicas,
            horizon_s=self.horizon_s,
            warmup_s=self.warmup_s,
            repair_rounds=self.repair_rounds,
            workers=self.twin_workers,
        )

    def twin(self) -> TwinSettings:
        """Return how the twin simulates."""
        return TwinSettings(horizon_s=self.horizon_s, warmup_s=self.warmup_s, seed=self.seed, workers=self.twin_workers)


@dataclass(frozen=True)
class CellTask:
    """A cell to do.

    Attributes
    ----------
    folder
        That relative paths of the scenario start from.
    risk
        What to draw for the fleet; ``None``: nothing is drawn.
    """

    index: int
    scenario: Scenario
    problem: ProblemFromFile
    settings: PlanSettings
    folder: Path
    risk: RiskSettings | None = None


def do_cell(task: CellTask) -> Cell:
    """Plan the problem of a scenario.

    Returns
    -------
    Also where there is no plan: with the reason.

    Raises
    ------
    KeyboardInterrupt
        On Ctrl-C, also where planning has a placement by then.
    """
    started_s = time.perf_counter()
    cell = Cell(index=task.index, label=task.scenario.label, changes=task.scenario.changes, status="failed")
    try:
        problem = changed(task.problem, task.scenario, seed=task.settings.seed, folder=task.folder)
        # Known also where the planning fails.
        cell = _asked(cell, problem)
        cell = _planned(cell, problem, task)
    except (InputError, ProfileError) as error:
        cell = cell.model_copy(update={"reason": error.message})
    except PlacerError as error:
        cell = cell.model_copy(update={"reason": error.message, "is_transient": True})
    return cell.model_copy(update={"seconds": time.perf_counter() - started_s})


def _asked(cell: Cell, problem: ProblemFromFile) -> Cell:
    """Return a cell with what its problem asks for."""
    adapters = problem.adapters
    return cell.model_copy(
        update={
            "num_adapters": len(adapters),
            "offered_rps": sum(adapter.rate_rps for adapter in adapters),
            "offered_tps": sum(adapter.offered_tps for adapter in adapters),
        }
    )


def _planned(cell: Cell, problem: ProblemFromFile, task: CellTask) -> Cell:
    settings = task.settings
    lost = lost_gpus(problem, task.scenario) if task.scenario.lose_gpus else {}
    loss: LossRecord | None = None
    if lost and any(gpu_type.max_count is None for gpu_type in problem.gpu_types):
        whole = _finished(settings.planned(problem))
        before = dict(Counter(gpu.gpu_type for gpu in whole.gpus))
        problem = fewer_of_each(problem, lost, before)
        loss = LossRecord(gpus_before=before, gpus_lost=lost)
    made = _finished(settings.planned(problem))
    if loss is not None and made.verdict in {"none", "rejected"}:
        loss = _crowded(problem, loss, settings)
    return _described(cell, made, problem, task, loss)


def _finished(made: Plan) -> Plan:
    """Return a plan that was not cut short: a cell that was would not be the same again."""
    if made.termination == "interrupted":
        raise KeyboardInterrupt
    return made


def _described(cell: Cell, made: Plan, problem: ProblemFromFile, task: CellTask, loss: LossRecord | None) -> Cell:
    seen = [gpu.verification for gpu in made.gpus if gpu.verification is not None]
    bound = made.lower_bound
    is_judged = task.risk is not None and made.gpus and made.verdict in {"accepted", "unverified"}
    return cell.model_copy(
        update={
            "status": made.verdict,
            "reason": made.message or _first_reason(seen),
            "num_gpus": made.num_gpus if made.gpus else None,
            "gpus_by_type": dict(Counter(gpu.gpu_type for gpu in made.gpus)),
            "cost_per_hour": made.cost_per_hour if made.gpus else None,
            "lower_bound": None if bound is None else bound.value,
            "bound_proof": None if bound is None else f"{bound.proof}, {bound.model}",
            "cost_bound_per_hour": None if bound is None else bound.cost_per_hour,
            "solution": made.solution,
            "termination": made.termination,
            "worst_service_ratio": _least([entry.worst_service_ratio for entry in seen]),
            "itl_p95_ms": _largest_ms([entry.itl_p95_s for entry in seen]),
            "ttft_p95_ms": _largest_ms([entry.ttft_p95_s for entry in seen]),
            "num_metastable": sum(entry.is_metastable for entry in seen) if seen else None,
            "twin_calls": made.repair.twin_calls,
            "risk": risk_of(made, problem, task.risk, task.settings.twin()) if task.risk and is_judged else None,
            "loss": loss,
        }
    )


def _crowded(problem: ProblemFromFile, loss: LossRecord, settings: PlanSettings) -> LossRecord:
    """Put all adapters on the GPUs that are left, and let the twin say who starves."""
    if problem.replication.is_asked or problem.constraints.are_given:
        return loss
    num_left = sum(loss.gpus_before.values()) - sum(loss.gpus_lost.values())
    surrogate = surrogate_for(
        problem,
        settings.surrogate,
        horizon_s=settings.horizon_s,
        warmup_s=settings.warmup_s,
        seed=settings.seed,
        workers=settings.twin_workers or available_cores(),
    )
    model = FeasibilityModel(problem, at_the_quantile(surrogate, problem))
    crowded = crowd(model, num_left, placement=None, budget=Budget(None, CROWD_EVALUATIONS).start())
    if crowded is None:
        return loss
    verdicts = TwinVerifier(problem, settings.twin()).verify(crowded.placement.gpus)
    starved = {name for verdict in verdicts for name in verdict.starved_adapters}
    return loss.model_copy(
        update={
            "starved_adapters": tuple(adapter.name for adapter in problem.adapters if adapter.name in starved),
            "worst_service_ratio": _least([verdict.worst_service_ratio for verdict in verdicts]),
        }
    )


def _first_reason(verdicts: list[Verification]) -> str:
    return next((reason for verdict in verdicts for reason in verdict.reasons), "")


def _least(values: list[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


def _largest_ms(values_s: list[float | None]) -> float | None:
    return max((1000.0 * value for value in values_s if value is not None), default=None)


def alone(task: CellTask) -> CellTask:
    """Return a task whose simulations do not start threads: one of several that share the cores."""
    return replace(task, settings=replace(task.settings, twin_workers=1))
