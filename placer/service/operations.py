"""Do what a request asks: from its plain values to the document that answers it, in a worker process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from placer.events import PlanObserver
from placer.files import ProblemFromFile, plan_to_json, problem_of_document
from placer.plan_document import Plan
from placer.planned_shares import as_planned
from placer.planning import plan
from placer.recheck import recheck_with
from placer.replanning.run import replan
from placer.service.documents import (
    Operation,
    PlanningOptions,
    ReplanRequest,
    SolveRequest,
    VerifyRequest,
    WhatIfRequest,
)
from placer.service.event_records import scenario_record
from placer.whatif.cell import PlanSettings
from placer.whatif.risk import RiskSettings
from placer.whatif.study import Study, run_study
from solvers.budget import AUTOMATIC_SECONDS, Budget

# As plans and messages name the problem of a request.
PROBLEM_NAME = "problem"


@dataclass(frozen=True)
class Work:
    """What a job is done with.

    Attributes
    ----------
    request
        Plain values of the request, which was validated.
    folder
        Empty, the current one, and of this job alone: the files that came with the request go there.
    threads
        Of simulations.
    solver_s
        Most seconds for the solver, whatever the request says; ``None``: as it says.
    observer, tell
        Told what happens: events of planning, and records of others.
    """

    request: dict[str, Any]
    folder: Path
    threads: int
    solver_s: float | None
    observer: PlanObserver
    tell: Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Outcome:
    """A document as it is kept, the exit code that it stands for, and whether an interrupt cut it short."""

    text: str
    exit_code: int
    is_interrupted: bool = False


def perform(operation: Operation, work: Work) -> Outcome:
    """Return what answers a request.

    Raises
    ------
    PlacerError
        As the command of the same name.
    KeyboardInterrupt
        When interrupted before there is anything to answer.
    """
    return _PERFORM[operation](work)


def _solve(work: Work) -> Outcome:
    request = SolveRequest.model_validate(work.request)
    options, problem = request.options, _problem(work)
    made = plan(
        problem,
        solver=options.solver,
        surrogate=options.surrogate,
        budget=_budget(options, len(problem.adapters), work.solver_s),
        seed=options.seed,
        verify=options.verify,
        improve=options.improve,
        confirm=options.confirm,
        margin=options.margin,
        risk=options.risk,
        replicas=options.replicas,
        horizon_s=options.horizon_s,
        warmup_s=options.warmup_s,
        workers=work.threads,
        secondary=options.secondary,
        current=options.current,
        observer=work.observer,
    )
    return Outcome(plan_to_json(made), _exit_code_of_plan(made), made.termination == "interrupted")


def _replan(work: Work) -> Outcome:
    request = ReplanRequest.model_validate(work.request)
    options = request.options
    made = replan(
        request.plan,
        _problem(work),
        lose_gpus=options.lose_gpus,
        moves_per_gpu=options.moves_per_gpu,
        max_moves=options.max_moves,
        max_loads=options.max_loads,
        max_restarts=options.max_restarts,
        spare_gpus=options.spare_gpus,
        restarts_at_once=options.restarts_at_once,
        restart_s=options.restart_s,
        handover_horizon_s=options.handover_horizon_s,
        strategy=options.strategy,
        solver=options.solver,
        surrogate=options.surrogate,
        budget=_seconds(options, work.solver_s),
        max_evaluations=options.max_evaluations,
        seed=options.seed,
        margin=options.margin,
        horizon_s=options.horizon_s,
        warmup_s=options.warmup_s,
        workers=work.threads,
        observer=work.observer,
    )
    if made.plan.termination == "interrupted":
        return Outcome(_as_json(made), 130, is_interrupted=True)
    failed = 4 if made.unserved_adapters else 5
    return Outcome(_as_json(made), 0 if made.verdict == "accepted" else failed)


def _verify(work: Work) -> Outcome:
    request = VerifyRequest.model_validate(work.request)
    options = request.options
    compares = options.engine != "fast" if options.compare is None else options.compare
    made = recheck_with(
        request.plan,
        as_planned(_problem(work), request.plan),
        names=options.gpus,
        engine=options.engine,
        horizon_s=options.horizon_s,
        seed=options.seed,
        workers=work.threads,
        compares=compares and options.engine != "fast",
        observer=work.observer,
    )
    differs = any(gpu.agreement is not None and not gpu.agreement.is_same for gpu in made.gpus)
    return Outcome(_as_json(made), 5 if made.verdict == "rejected" or differs else 0)


def _whatif(work: Work) -> Outcome:
    request = WhatIfRequest.model_validate(work.request)
    options = request.options
    scenarios = request.scenarios
    settings = PlanSettings(
        solver=options.solver,
        surrogate=options.surrogate,
        budget_s=None if options.budget_s is None else options.budget_s,
        max_evaluations=options.max_evaluations,
        seed=options.seed,
        margin=options.margin,
        risk=options.risk,
        replicas=options.replicas,
        is_verified=options.verify,
        is_improved=options.improve,
        horizon_s=options.horizon_s,
        warmup_s=options.warmup_s,
        twin_workers=work.threads,
    )
    made = run_study(
        _problem(work),
        Study(
            name=options.study,
            scenarios=(*scenarios.grid.scenarios(), *scenarios.cases),
            risk=RiskSettings(options.rate_cv, options.common_cv, options.draws, options.twin_error, options.seed),
            probabilities=options.probabilities,
            num_candidates=options.candidates,
        ),
        settings=settings,
        folder=work.folder,
        observer=lambda progress: work.tell(scenario_record(progress)),
    )
    return Outcome(_as_json(made), 0 if any(cell.has_plan for cell in made.cells) else 4)


_PERFORM: dict[Operation, Callable[[Work], Outcome]] = {
    "solve": _solve,
    "replan": _replan,
    "verify": _verify,
    "whatif": _whatif,
}


def _problem(work: Work) -> ProblemFromFile:
    """Write the files of a request, and return its problem."""
    for name, text in work.request.get("files", {}).items():
        (work.folder / name).write_text(text, encoding="utf-8")
    data = work.request["problem"]
    content = json.dumps(data, sort_keys=True).encode("ascii")
    return problem_of_document(data, content, name=PROBLEM_NAME, told_name=PROBLEM_NAME, folder=work.folder)


def _budget(options: PlanningOptions, num_adapters: int, solver_s: float | None) -> Budget:
    """Return the solver's budget as `placer.plan` would choose it, within the seconds that the deadline leaves."""
    most_s = float("inf") if solver_s is None else solver_s
    if options.budget_s is not None:
        return Budget(min(options.budget_s, most_s), options.max_evaluations)
    if options.max_evaluations is not None:
        return Budget(solver_s, options.max_evaluations)
    return replace(Budget.automatic(num_adapters), seconds=min(AUTOMATIC_SECONDS, most_s))


def _seconds(options: PlanningOptions, solver_s: float | None) -> Any:
    """Return the seconds for a solver that is only one part of the work."""
    if options.budget_s is None:
        return solver_s if solver_s is not None and solver_s < AUTOMATIC_SECONDS else "auto"
    return options.budget_s if solver_s is None else min(options.budget_s, solver_s)


def _exit_code_of_plan(made: Plan) -> int:
    if made.termination == "interrupted":
        return 130
    if made.verdict == "none":
        return {"proven": 3, "error": 6}.get(made.termination, 4)
    return 5 if made.verdict == "rejected" else 0


def _as_json(document: BaseModel) -> str:
    return json.dumps(document.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
