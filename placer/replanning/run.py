"""Re-planning in one function: a plan near the one in place, and an ordered, safe way there, checked by the twin."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from placer.events import PhaseStarted, PlanObserver, ignore
from placer.files import load_plan
from placer.plan_builder import PlanParts
from placer.plan_document import Plan, RepairSummary
from placer.planned_shares import as_planned, broken_replication
from placer.planning import AUTO_BUDGET, DEFAULT_SOLVER, DEFAULT_SURROGATE, check_arguments
from placer.planning import plan as plan_anew
from placer.replan_document import Before, Candidate, Migration, Replan, ReplanLimits
from placer.replanning.anew import aligned, current_gpus, draft_of
from placer.replanning.arguments import Strategy, check_numbers, check_worth, limits_of
from placer.replanning.drafts import Draft, changes_of, is_within, num_rejected, rank_of, with_shares_at_home
from placer.replanning.emptying import Emptying
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

Method = Literal["repair", "reduce", "scratch"]
DEFAULT_HANDOVER_HORIZON_S = 120.0


@dataclass(frozen=True)
class _Search:
    """What the plan is looked for with."""

    running: RunningFleet
    before: Before
    twin: FleetTwin
    surrogate: Surrogate
    limits: ReplanLimits
    moves_per_gpu: float
    margin: float
    observer: PlanObserver

    def standing(self, draft: Draft) -> tuple[float, ...]:
        """Return how good a plan is, smaller is better: limits first."""
        is_beyond = not is_within(changes_of(draft, self.running), self.limits)
        return (is_beyond, *rank_of(draft, self.running, self.twin, moves_per_gpu=self.moves_per_gpu))

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
    moves_per_gpu: float | Literal["auto"] = "auto",
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

    Of the plans that serve everybody that with the fewest GPUs (by cost, where that is the objective) and moves, a GPU
    being worth `moves_per_gpu` of these; then the fewest restarts.

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
    moves_per_gpu
        Moves that one GPU fewer is worth, > 0; infinite: any number, the fewest GPUs come first. ``auto``: as many as a
        GPU in place serves adapters, in the mean.
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
        On Ctrl-C before there is a plan, and while the way there is looked for. In between, the search ends with the
        best plan so far, whose `termination` is ``interrupted``.
    """
    check_arguments(margin, None, 0)
    check_numbers(spare_gpus, restarts_at_once, restart_s, handover_horizon_s, strategy)
    check_worth(moves_per_gpu)
    limits = limits_of(max_moves, max_loads, max_restarts)
    tell = observer or ignore
    settings = TwinSettings(horizon_s=horizon_s, warmup_s=warmup_s, seed=seed, workers=workers)
    old = load_plan(plan) if isinstance(plan, str | Path) else plan
    problem = _as_divided(problem, old, strategy)
    running = running_fleet(old, problem, tuple(lose_gpus))
    problem = replace(without_lost(problem, running.lost_types), current=())
    # What is new runs as most of the others do.
    present = [station.engine.max_num_seqs for station in running.stations.values()]
    problem = problem.with_max_num_seqs(common_max_num_seqs(problem, present))
    twin = FleetTwin(problem, settings, observer=tell)
    tell(PhaseStarted("load", "surrogate"))
    made = SurrogateChoice(surrogate, seed=seed, workers=workers or available_cores()).of(problem)
    tell(PhaseStarted("verify", f"what is in place, GPUs: {len(running.stations)}"))
    price = _worth_of_a_gpu(running) if moves_per_gpu == "auto" else moves_per_gpu
    search = _Search(running, before_of(running, twin), twin, made, limits, price, margin, tell)
    solving = _Solving(solver, surrogate, budget, max_evaluations)
    drafts, is_interrupted = _drafts(search, solving, strategy)
    candidates = {method: _candidate(method, draft, search) for method, draft in drafts.items()}
    method = min(drafts, key=lambda name: search.standing(drafts[name]))
    draft = drafts[method]
    names = named(draft, running, twin)
    tell(PhaseStarted("verify", "the steps of the migration"))
    left = None if max_loads is None else max(0, max_loads - candidates[method].changes.num_loads)
    rules = MigrationRules(spare_gpus, restarts_at_once, left)
    times = StepTimes(problem, restart_s)
    planner = planned_migration(running, search.before, names, twin, rules=rules, times=times)
    planner.log.simulate_handovers(horizon_s=handover_horizon_s, workers=workers)
    migration = as_migration(planner)
    tell(PhaseStarted("verify", "GPUs near a limit, with further seeds"))
    twin.confirm([berth.station for berth in names.values()])
    target = plan_of(names, draft, running, _parts(search, solving, method, is_interrupted=is_interrupted), twin)
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
            "moves_per_gpu": None if math.isinf(price) else price,
            "spare_gpus": spare_gpus,
            "restarts_at_once": restarts_at_once,
            "restart_s": restart_s,
            "handover_horizon_s": handover_horizon_s,
        },
    )


def _drafts(search: _Search, solving: _Solving, strategy: Strategy) -> tuple[dict[Method, Draft], bool]:
    """Return the plans that a strategy considers, and whether Ctrl-C has ended that: what was found by then counts."""
    drafts: dict[Method, Draft] = {}
    is_interrupted = False
    try:
        for method, draft in _considered(search, solving, strategy):
            # What was found stays when the next one is interrupted. Traffic of equal shares differs by chance alone.
            homely = with_shares_at_home(draft, search.running, search.problem)
            drafts[method] = min(homely, draft, key=search.standing)
    except KeyboardInterrupt:
        if not drafts:
            raise
        is_interrupted = True
    if not drafts:
        raise NoSolutionError(
            "there must be a plan from scratch to take. The solver has none within its budget.",
            field="strategy",
            value=strategy,
            hint="give a larger --budget, or another --strategy",
        )
    return drafts, is_interrupted


def _considered(search: _Search, solving: _Solving, strategy: Strategy) -> Iterator[tuple[Method, Draft]]:
    """Yield one plan after the other."""
    model = FeasibilityModel(
        search.problem, careful(search.surrogate, search.problem, threshold=STARVED_PROBABILITY, margin=search.margin)
    )
    running, twin, is_near = search.running, search.twin, strategy == "near"
    repairing = Repairing(running, twin, model, limits=search.limits, moves_per_gpu=search.moves_per_gpu)
    least = work_bound(search.problem).value
    if strategy != "scratch":
        search.observer(PhaseStarted("repair", f"rejected GPUs, {len(search.before.rejected_gpus)}"))
        repaired = repairing.repaired()
        yield "repair", repaired
    if is_near:
        search.observer(PhaseStarted("improve", "fewer GPUs"))
        emptying = Emptying(repairing, undo=lambda plan: _near(plan, search, repairing))
        reduced = _near(emptying.reduced(repaired, least=least), search, repairing)
        yield "reduce", reduced
    if strategy == "repair" or (
        is_near and (search.problem.shares is not None or _is_unbeatable(reduced, least, search))
    ):
        return
    anew = _from_scratch(search, solving, is_near=is_near)
    if anew.gpus:
        draft = draft_of(anew, running, twin, keeps_slots=is_near)
        yield "scratch", _near(draft, search, repairing) if is_near else draft


def _near(draft: Draft, search: _Search, repairing: Repairing) -> Draft:
    """Return the best of a plan, the same with its replicas aligned to those in place, and both with moves undone."""
    starts = dict.fromkeys([draft, aligned(draft, search.running, search.twin)])
    plans = [*starts, *(repairing.brought_home(start) for start in starts)]
    return min(plans, key=search.standing)


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


def _parts(search: _Search, solving: _Solving, method: Method, *, is_interrupted: bool) -> PlanParts:
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
        termination="interrupted" if is_interrupted else "completed",
        message="",
        bound=work_bound(search.problem),
        solver_evaluations=0,
        solver_calls=0,
    )


def _as_divided(problem: Problem, plan: Plan, strategy: Strategy) -> Problem:
    """Return the problem of placing the shares that a plan has; the problem itself where none is divided.

    Raises
    ------
    InputError
        When the plan divides adapters otherwise than the problem asks for, or is to be made anew.
    """
    divided = as_planned(problem, plan)
    if divided.shares is None:
        return problem
    broken = broken_replication(plan, divided)
    if broken or strategy == "scratch":
        message = broken[0] if broken else "shares stay what they are when a plan is changed. Got strategy `scratch`."
        raise InputError(
            message, field="replication", hint="use `placer solve --current PLAN`, which divides adapters anew"
        )
    return divided


def _worth_of_a_gpu(running: RunningFleet) -> float:
    """Return the moves that a GPU fewer is worth by default: the mean number of adapters of those in place."""
    return max(1.0, len(running.home) / max(1, len(running.stations)))


def _verdict(plan: Plan, migration: Migration) -> Literal["accepted", "rejected", "unsafe"]:
    if plan.verdict != "accepted":
        return "rejected"
    return "accepted" if migration.is_safe else "unsafe"
