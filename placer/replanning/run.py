"""Re-planning in one function: a plan near the one in place, and an ordered, safe way there, checked by the twin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from placer.events import PhaseStarted, PlanObserver, ignore
from placer.files import load_plan
from placer.plan_builder import PlanParts
from placer.plan_document import Plan, RepairSummary
from placer.planning import AUTO_BUDGET, DEFAULT_SOLVER, DEFAULT_SURROGATE, check_arguments
from placer.planning import plan as plan_anew
from placer.replan_document import Before, Candidate, Migration, Replan, ReplanLimits
from placer.replanning.anew import aligned, current_gpus, draft_of
from placer.replanning.drafts import Draft, changes_of, is_within, num_rejected, rank_of
from placer.replanning.migration import MigrationRules, as_migration, planned_migration
from placer.replanning.repairing import Repairing
from placer.replanning.running import RunningFleet, before_of, running_fleet, without_lost
from placer.replanning.stations import FleetTwin
from placer.replanning.step_times import StepTimes
from placer.replanning.target_plan import named, plan_of
from placer.replanning.words import message_of
from placer.sequences import common_max_num_seqs
from placer.surrogates import SurrogateChoice, careful
from placer.verify import TwinSettings
from predictors.surrogate import STARVED_PROBABILITY, Surrogate
from solvers.bounds import work_bound
from solvers.budget import Budget
from solvers.feasibility import FeasibilityModel
from solvers.problem import Problem
from twin.errors import InputError, NoSolutionError
from twin.judging_window import DEFAULT_HORIZON_S, DEFAULT_WARMUP_S
from twin.parallel import available_cores

__all__ = ["Replan", "replan"]

Strategy = Literal["near", "repair", "scratch"]
Method = Literal["repair", "reduce", "scratch"]
DEFAULT_HANDOVER_HORIZON_S = 120.0
# Of a start, and of a simulated handover: a day.
LONGEST_S = 86_400.0


@dataclass(frozen=True)
class _Search:
    """What the plan is looked for with."""

    running: RunningFleet
    before: Before
    twin: FleetTwin
    surrogate: Surrogate
    limits: ReplanLimits
    margin: float
    observer: PlanObserver

    @property
    def problem(self) -> Problem:
        """The problem, with the GPUs that are left."""
        return self.twin.problem


@dataclass(frozen=True)
class _Solving:
    """How a plan from scratch is made."""

    solver: str
    surrogate: str | Path | Surrogate
    budget: float | Literal["auto"] | None
    max_evaluations: int | None


def replan(
    plan: Plan | str | Path,
    problem: Problem,
    *,
    lose_gpus: Sequence[str] = (),
    max_moves: int | None = None,
    max_loads: int | None = None,
    max_restarts: int | None = None,
    spare_gpus: int = 1,
    restarts_at_once: int = 1,
    restart_s: float | None = None,
    handover_horizon_s: float = DEFAULT_HANDOVER_HORIZON_S,
    strategy: Strategy = "near",
    solver: str = DEFAULT_SOLVER,
    surrogate: str | Path | Surrogate = DEFAULT_SURROGATE,
    budget: float | Literal["auto"] | None = AUTO_BUDGET,
    max_evaluations: int | None = None,
    seed: int = 0,
    margin: float = 0.0,
    horizon_s: float = DEFAULT_HORIZON_S,
    warmup_s: float = DEFAULT_WARMUP_S,
    workers: int | None = None,
    observer: PlanObserver | None = None,
) -> Replan:
    """Return a plan for `problem` that is near `plan`, and the way there.

    Of the plans that serve everybody that with the fewest GPUs (by cost, where that is the objective), then the fewest
    moves, then the fewest restarts.

    Parameters
    ----------
    plan
        What is in place: a plan, or the path of a plan.json.
    problem
        The workload of now: rates may be others, adapters may have come and gone.
    lose_gpus
        Names of GPUs of the plan that serve no more; they count against `max_count`.
    max_moves, max_loads, max_restarts
        Limits; see `placer.replan_document.ReplanLimits`. ``None``: no limit.
    spare_gpus
        GPUs that may be used for a while, >= 0. As few as a safe order needs are taken.
    restarts_at_once
        Replicas that may restart together, >= 1.
    restart_s
        Seconds of a start, >= 0; ``None``: what the profile has measured for so many slots.
    handover_horizon_s
        Simulated seconds of the multi-replica twin for each change of the router, >= 0; 0: it is not asked, and the
        router has to change at once.
    strategy
        ``near``; ``repair``: what serves keeps everything, and nothing is emptied; ``scratch``: a new plan, whatever
        moves and restarts.
    solver, surrogate, budget, max_evaluations, seed, margin, horizon_s, warmup_s, workers, observer
        As `placer.plan` takes them.

    Returns
    -------
    Replan
        Also when limits leave adapters that starve or that nobody serves (`verdict` ``rejected``).

    Raises
    ------
    InputError
        When arguments do not hold, or plan and problem do not go together (`running_fleet`); when some adapter fits no
        GPU alone.
    SolverError, SurrogateError
        As `placer.plan`.
    NoSolutionError
        When the strategy is ``scratch`` and the solver has no plan within its budget.
    KeyboardInterrupt
        On Ctrl-C.
    """
    check_arguments(margin, None, 0)
    _check_numbers(spare_gpus, restarts_at_once, restart_s, handover_horizon_s, strategy)
    limits = _limits(max_moves, max_loads, max_restarts)
    tell = observer or ignore
    settings = TwinSettings(horizon_s=horizon_s, warmup_s=warmup_s, seed=seed, workers=workers)
    old = load_plan(plan) if isinstance(plan, str | Path) else plan
    running = running_fleet(old, problem, tuple(lose_gpus))
    problem = replace(without_lost(problem, running.lost_types), current=())
    # What is new runs as most of the others do.
    present = [station.engine.max_num_seqs for station in running.stations.values()]
    problem = problem.with_max_num_seqs(common_max_num_seqs(problem, present))
    twin = FleetTwin(problem, settings, observer=tell)
    tell(PhaseStarted("load", "surrogate"))
    made = SurrogateChoice(surrogate, seed=seed, workers=workers or available_cores()).of(problem)
    tell(PhaseStarted("verify", f"what is in place, GPUs: {len(running.stations)}"))
    search = _Search(running, before_of(running, twin), twin, made, limits, margin, tell)
    solving = _Solving(solver, surrogate, budget, max_evaluations)
    drafts = _drafts(search, solving, strategy)
    candidates = {method: _candidate(method, draft, search) for method, draft in drafts.items()}
    method = min(
        drafts,
        key=lambda name: (not candidates[name].is_within_limits, *rank_of(drafts[name], running, twin)),
    )
    draft = drafts[method]
    names = named(draft, running, twin)
    tell(PhaseStarted("verify", "the steps of the migration"))
    left = None if max_loads is None else max(0, max_loads - candidates[method].changes.num_loads)
    rules = MigrationRules(spare_gpus, restarts_at_once, left)
    times = StepTimes(problem, restart_s)
    planner = planned_migration(running, search.before, names, twin, rules=rules, times=times)
    planner.log.simulate_handovers(horizon_s=handover_horizon_s, workers=workers)
    migration = as_migration(planner)
    target = plan_of(names, draft, running, _parts(search, solving, method), twin)
    found = tuple(candidates.values())
    return Replan(
        verdict=_verdict(target, migration),
        method=method,
        message=message_of(candidates[method], found, limits, migration),
        before=search.before,
        changes=candidates[method].changes,
        limits=limits,
        candidates=found,
        unserved_adapters=tuple(problem.adapters[index].name for index in draft.unserved),
        plan=target,
        migration=migration,
        settings={
            "seed": seed,
            "spare_gpus": spare_gpus,
            "restarts_at_once": restarts_at_once,
            "restart_s": restart_s,
            "handover_horizon_s": handover_horizon_s,
        },
    )


def _drafts(search: _Search, solving: _Solving, strategy: Strategy) -> dict[Method, Draft]:
    """Return the plans that a strategy considers."""
    drafts: dict[Method, Draft] = {}
    model = FeasibilityModel(
        search.problem, careful(search.surrogate, search.problem, threshold=STARVED_PROBABILITY, margin=search.margin)
    )
    repairing = Repairing(search.running, search.twin, model, search.limits)
    least = work_bound(search.problem).value
    if strategy != "scratch":
        search.observer(PhaseStarted("repair", f"rejected GPUs, {len(search.before.rejected_gpus)}"))
        drafts["repair"] = repairing.repaired()
    if strategy == "near":
        search.observer(PhaseStarted("improve", "fewer GPUs"))
        drafts["reduce"] = _near(repairing.reduced(drafts["repair"], least=least), search, repairing)
    if strategy == "scratch" or (strategy == "near" and not _is_unbeatable(drafts["reduce"], least, search)):
        anew = _from_scratch(search, solving, is_near=strategy == "near")
        if anew.gpus:
            draft = draft_of(anew, search.running, search.twin, keeps_slots=strategy == "near")
            drafts["scratch"] = _near(draft, search, repairing) if strategy == "near" else draft
    if not drafts:
        raise NoSolutionError(
            "there must be a plan from scratch to take. The solver has none within its budget.",
            field="strategy",
            value=strategy,
            hint="give a larger --budget, or another --strategy",
        )
    return drafts


def _near(draft: Draft, search: _Search, repairing: Repairing) -> Draft:
    """Return the best of a plan, the same with its replicas aligned to those in place, and both with moves undone."""
    starts = dict.fromkeys([draft, aligned(draft, search.running, search.twin)])
    plans = [*starts, *(repairing.brought_home(start) for start in starts)]

    def standing(plan: Draft) -> tuple[float, ...]:
        changes = changes_of(plan, search.running)
        return (not is_within(changes, search.limits), *rank_of(plan, search.running, search.twin))

    return min(plans, key=standing)


def _is_unbeatable(draft: Draft, least: int, search: _Search) -> bool:
    """Return whether a plan has as few GPUs as are proven to be needed, and neither moves nor restarts."""
    changes = changes_of(draft, search.running)
    failures = len(draft.unserved) + num_rejected(draft, search.twin)
    is_small = search.problem.objective == "fewest_gpus" and len(draft.berths) <= least
    return is_small and not (failures or changes.num_moves or changes.num_restarts)


def _from_scratch(search: _Search, solving: _Solving, *, is_near: bool) -> Plan:
    """Return a new plan; with few moves, or with GPUs matched to those in place and nothing more."""
    made = plan_anew(
        search.problem,
        solver=solving.solver,
        surrogate=solving.surrogate,
        budget=solving.budget,
        max_evaluations=solving.max_evaluations,
        seed=search.twin.settings.seed,
        margin=search.margin,
        horizon_s=search.twin.settings.horizon_s,
        warmup_s=search.twin.settings.warmup_s,
        workers=search.twin.settings.workers,
        secondary=None if is_near else ["none"],
        current=current_gpus(search.running, search.twin),
        observer=search.observer,
    )
    if made.termination == "interrupted":
        raise KeyboardInterrupt
    return made


def _candidate(method: Method, draft: Draft, search: _Search) -> Candidate:
    changes = changes_of(draft, search.running)
    return Candidate(
        method=method,
        num_gpus=len(draft.berths),
        num_unserved=len(draft.unserved),
        num_rejected=num_rejected(draft, search.twin),
        changes=changes,
        is_within_limits=is_within(changes, search.limits),
    )


def _parts(search: _Search, solving: _Solving, method: Method) -> PlanParts:
    """Return what the plan is told with."""
    budget = Budget(None if solving.budget == "auto" else solving.budget, solving.max_evaluations)
    return PlanParts(
        problem=search.problem,
        surrogate=search.surrogate,
        solver=f"replan ({method})",
        budget=budget,
        margin=search.margin,
        risk=None,
        threshold=STARVED_PROBABILITY,
        settings=search.twin.settings,
        max_repair_rounds=0,
        is_improved=False,
        gpus=(),
        known=lambda _: None,
        repair=RepairSummary(twin_calls=search.twin.num_calls),
        solution="feasible",
        termination="completed",
        message="",
        bound=work_bound(search.problem),
        solver_evaluations=0,
        solver_calls=0,
    )


def _verdict(plan: Plan, migration: Migration) -> Literal["accepted", "rejected", "unsafe"]:
    if plan.verdict != "accepted":
        return "rejected"
    return "accepted" if migration.is_safe else "unsafe"


def _limits(max_moves: int | None, max_loads: int | None, max_restarts: int | None) -> ReplanLimits:
    given = {"max_moves": max_moves, "max_loads": max_loads, "max_restarts": max_restarts}
    for name, value in given.items():
        if value is not None and value < 0:
            raise InputError(f"`{name}` must be at least 0. Got {value}.", field=name, value=value)
    return ReplanLimits(max_moves=max_moves, max_loads=max_loads, max_restarts=max_restarts)


def _check_numbers(
    spare_gpus: int, restarts_at_once: int, restart_s: float | None, handover_horizon_s: float, strategy: str
) -> None:
    """Raise InputError unless what decides about the migration is in its ranges."""
    for name, value, least, most in (
        ("spare_gpus", spare_gpus, 0, math.inf),
        ("restarts_at_once", restarts_at_once, 1, math.inf),
        ("restart_s", restart_s or 0.0, 0, LONGEST_S),
        ("handover_horizon_s", handover_horizon_s, 0, LONGEST_S),
    ):
        # Not a number is not between anything.
        if not least <= value <= most:
            upper = "" if math.isinf(most) else f" and at most {most:,.0f}"
            raise InputError(f"`{name}` must be at least {least}{upper}. Got {value}.", field=name, value=value)
    if strategy not in get_args(Strategy):
        raise InputError(
            f"`strategy` must be one of {', '.join(get_args(Strategy))}. Got {strategy!r}.",
            field="strategy",
            value=strategy,
        )
