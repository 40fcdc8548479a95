"""The product in one function: solve with a surrogate, simulate every GPU with the twin, repair, improve, report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from placer.current_plan import CurrentChoice, with_secondary
from placer.events import PlanObserver, ignore
from placer.plan_document import Plan
from placer.plan_phases import Planning
from placer.recording import recorder_for
from placer.repair import DEFAULT_REPAIR_ROUNDS
from placer.replicas import with_replicas
from placer.verify import TwinSettings
from predictors.surrogate import Surrogate
from solvers.budget import Budget
from solvers.constrained_solve import require_kept
from solvers.problem import Problem
from solvers.registry import get_solver
from twin.errors import InputError
from twin.judging_window import DEFAULT_HORIZON_S, DEFAULT_WARMUP_S
from twin.simulate import EngineName

__all__ = ["Plan", "plan"]

DEFAULT_SOLVER = "portfolio"
DEFAULT_SURROGATE = "auto"
AUTO_BUDGET: Literal["auto"] = "auto"


def plan(
    problem: Problem,
    *,
    solver: str = DEFAULT_SOLVER,
    surrogate: str | Path | Surrogate = DEFAULT_SURROGATE,
    budget: float | Literal["auto"] | Budget | None = AUTO_BUDGET,
    max_evaluations: int | None = None,
    seed: int = 0,
    verify: bool = True,
    improve: bool = True,
    confirm: bool = True,
    margin: float = 0.0,
    risk: float | None = None,
    replicas: str = "given",
    engine: EngineName = "fast",
    horizon_s: float = DEFAULT_HORIZON_S,
    warmup_s: float = DEFAULT_WARMUP_S,
    repair_rounds: int = DEFAULT_REPAIR_ROUNDS,
    workers: int | None = None,
    record_rejections: str | Path | None = None,
    secondary: Sequence[str] | None = None,
    current: CurrentChoice | None = None,
    observer: PlanObserver | None = None,
) -> Plan:
    """Return a plan for `problem`: every GPU of it simulated with exactly its adapters and settings.

    Parameters
    ----------
    problem
        See `placer.load_problem`.
    solver
        Name in the registry of solvers.
    surrogate
        ``auto``, ``exact``, the path of an ONNX file, or a surrogate.
    budget
        Seconds for the solver; ``None``: unlimited. ``auto``: unlimited if `max_evaluations` is given, else what
        `solvers.budget.Budget.automatic` says: once there is a placement, 250 rows for each adapter, and 60 s. Or all
        limits at once, in place of `max_evaluations`.
        Verification and repair are bounded by numbers of simulations.
    max_evaluations
        Rows that the solver may ask the surrogate for: a limit that is the same on every machine.
    seed
        Of the solver and of the simulated traffic.
    verify
        Simulate the GPUs, and repair those that the twin rejects.
    improve
        Afterwards, empty GPUs into others where the twin approves; not with a `risk`, which its verdict about one
        traffic would pass over, nor for `lowest_latency`, which does not want fewer GPUs.
    confirm
        In the end, look twice at the GPUs near a limit: with further seeds and after a backlog. The verdicts stay what
        they are; it says which of them are a matter of chance, and takes longer than all other simulations.
    margin
        Ask the surrogate to accept a GPU as if all rates were larger by this share, > -1.
    risk
        At most this share, in (0, 1), of GPUs that are packed to the brim may be rejected by the twin: a GPU is only
        accepted below the probability of starvation at which the surrogate was found to keep that. With several GPU
        types, below the smallest of theirs. Not together with `margin`.
    replicas
        ``given``: what the problem's `replication` says; ``auto``: beyond that, every adapter that no GPU serves alone
        is divided into the fewest equal shares that surrogate and twin accept on a GPU each.
    engine, horizon_s, warmup_s, workers
        Of the simulations; see `placer.verify.TwinSettings`.
    repair_rounds
        Most rounds of repair, >= 0.
    record_rejections
        Folder that keeps every GPU that the twin is asked about, rejected or accepted: what surrogates are trained with
        next (`predictors.training.train_surrogate`).
    secondary
        What decides between placements with equal objectives, the most important first: ``moves``, ``headroom``;
        ``None``: what the problem says.
    current
        What is in place: a plan or the path of a plan.json, or GPUs with their adapters; ``None``: what the problem
        says.
    observer
        Told what happens; see `placer.events`. Ctrl-C, also when raised by it, ends planning with the best plan so
        far and `termination` ``interrupted``.

    Returns
    -------
    Plan
        Also when there is no placement (`verdict` ``none``), or the twin rejects one (``rejected``).

    Raises
    ------
    InputError
        When the arguments do not hold, or some adapter, or share of one, fits no GPU alone.
    SolverError, SurrogateError
        When a solver or surrogate is unknown, unavailable or refused, the solver does not keep the problem's
        constraints, or the surrogate knows no threshold for the risk.
    KeyboardInterrupt
        On Ctrl-C while there is no placement yet.
    """
    check_arguments(margin, risk, repair_rounds)
    problem = with_replicas(with_secondary(problem, secondary, current), replicas)
    settings = TwinSettings(engine=engine, horizon_s=horizon_s, warmup_s=warmup_s, seed=seed, workers=workers)
    chosen = get_solver(solver)
    require_kept(chosen, problem)
    recorder = recorder_for(record_rejections, problem.workload, is_verified=verify)
    planning = Planning(
        problem,
        solver=chosen,
        settings=settings,
        budget=_budget(problem, budget, max_evaluations),
        margin=margin,
        risk=risk,
        observer=observer or ignore,
        recorder=recorder,
        is_confirmed=confirm,
    )
    is_improved = improve and risk is None and problem.objective != "lowest_latency"
    made = planning.run(surrogate, is_verified=verify, is_improved=is_improved, repair_rounds=repair_rounds)
    return made if recorder is None else made.model_copy(update={"warnings": (*made.warnings, *recorder.warnings())})


def _budget(problem: Problem, budget: float | Literal["auto"] | Budget | None, max_evaluations: int | None) -> Budget:
    if isinstance(budget, Budget):
        return budget
    if budget != "auto":
        return Budget(budget, max_evaluations)
    return Budget.automatic(len(problem.adapters)) if max_evaluations is None else Budget(None, max_evaluations)


def check_arguments(margin: float, risk: float | None, repair_rounds: int) -> None:
    """Raise InputError unless margin, risk and rounds of repair are in their ranges and go together."""
    if not -1.0 < margin < 10.0:
        raise InputError(
            f"the margin must be a share of the rates such as 0.05. Got {margin}.", field="margin", value=margin
        )
    if risk is not None and not 0.0 < risk < 1.0:
        raise InputError(f"the risk must be a share such as 0.05. Got {risk}.", field="risk", value=risk)
    if risk is not None and margin:
        raise InputError(
            f"either the margin or the risk can be given. Got {margin} and {risk}.", field="risk", value=risk
        )
    if repair_rounds < 0:
        raise InputError(
            f"repair rounds must be at least 0. Got {repair_rounds}.", field="repair_rounds", value=repair_rounds
        )
