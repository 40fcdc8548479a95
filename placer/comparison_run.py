"""One run of a comparison: a solver on an instance, then the twin on what it found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

import numpy as np

from placer.comparison_document import (
    BoundRecord,
    IncumbentRecord,
    PlacementRecord,
    ReplayRecord,
    RunRecord,
    TwinRecord,
)
from placer.events import ignore
from placer.foreign_surrogate import load_object, without_physics
from placer.instances.instance import Instance
from placer.plan_document import RepairSummary, TerminationName, Verification
from placer.repacking import cautious_surrogates
from placer.repair import Fleet, Repair
from placer.surrogates import (
    EXACT_HORIZON_S,
    EXACT_WARMUP_S,
    at_the_quantile,
    inflated,
    surrogate_for,
    threshold_for,
    with_threshold,
)
from placer.verify import TwinSettings, TwinVerifier
from predictors.aggregate_oracle import AggregateOracle
from predictors.features import adapter_aggregates
from predictors.surrogate import STARVED_PROBABILITY, Surrogate
from solvers.budget import Budget
from solvers.feasibility import FeasibilityModel
from solvers.moves import count_moves
from solvers.named_object import names_object
from solvers.objective import objective_value
from solvers.placement import GpuAssignment
from solvers.problem import Problem
from solvers.registry import get_solver
from solvers.result import Incumbent, SolveResult, Termination
from twin.errors import InputError, PlacerError
from twin.parallel import available_cores

# A placement whose objective is at most this many times the best one's is good enough for most.
NEARLY_BEST = 1.01


@dataclass(frozen=True)
class RunSettings:
    """What all runs of a comparison have in common.

    Attributes
    ----------
    surrogate
        ``auto``, ``exact``, an ONNX file, or ``module:object``.
    budget
        The same for every solver.
    margin, risk
        As for plans; see `placer.planning.plan`.
    is_verified
        Whether the twin is asked about the placements.
    horizon_s, warmup_s
        Of its simulations, in seconds.
    repair_rounds
        Most rounds of repair.
    is_regaining
        Whether a way is looked for without the GPUs that repair opened, as plans do when they are improved.
    twin_workers
        Threads for the simulations of one run; ``None``: one per core.
    """

    surrogate: str = "auto"
    budget: Budget = field(default_factory=Budget)
    margin: float = 0.0
    risk: float | None = None
    is_verified: bool = True
    horizon_s: float = 1800.0
    warmup_s: float = 300.0
    repair_rounds: int = 8
    is_regaining: bool = False
    twin_workers: int | None = None


@dataclass(frozen=True)
class Run:
    """A run to do.

    Attributes
    ----------
    previous
        For each GPU of the placement before the adapters on it, by index; ``None``: there was none.
    """

    instance: Instance
    solver: str
    seed: int
    settings: RunSettings
    previous: tuple[tuple[int, ...], ...] | None = None

    @property
    def key(self) -> tuple[str, str, int]:
        """Which run it is."""
        return self.instance.name, self.solver, self.seed


@dataclass(frozen=True)
class _Asked:
    """Who is asked about an instance.

    Attributes
    ----------
    problem
        As the surrogate sees it.
    surrogate
        With the margin or threshold of the settings, and as it believes the instance's rates to be.
    cautious
        The same one with more and more caution, for what the twin rejects.
    """

    problem: Problem
    surrogate: Surrogate
    cautious: tuple[Surrogate, ...]


def problem_and_surrogate(problem: Problem, settings: RunSettings, *, seed: int = 0) -> tuple[Problem, Surrogate]:
    """Return the problem as the surrogate sees it, and the surrogate with its margin, or with its threshold for a risk.

    Raises
    ------
    SurrogateError
        When the surrogate cannot be loaded, or knows no threshold for the risk.
    InputError
        When a function that says yes or no would have to keep a risk, or to serve uncertain rates.
    """
    seen, surrogate = _loaded(problem, settings, seed=seed)
    return seen, _careful(seen, surrogate, settings)


def _asked(instance: Instance, settings: RunSettings, *, seed: int) -> _Asked:
    """Return who is asked about an instance; see `problem_and_surrogate`, also for the errors raised."""
    problem, surrogate = _loaded(instance.problem, settings, seed=seed)
    steps = cautious_surrogates(surrogate, threshold=_threshold(surrogate, settings), margin=settings.margin)
    return _Asked(
        problem,
        inflated(_careful(problem, surrogate, settings), instance.rate_belief),
        tuple(inflated(at_the_quantile(step, problem), instance.rate_belief) for step in steps),
    )


def _careful(problem: Problem, surrogate: Surrogate, settings: RunSettings) -> Surrogate:
    """Return the surrogate with the threshold and the margin of the settings, and the problem's uncertain rates."""
    believed = with_threshold(surrogate, _threshold(surrogate, settings))
    return at_the_quantile(inflated(believed, 1.0 + settings.margin), problem)


def _threshold(surrogate: Surrogate, settings: RunSettings) -> float:
    return STARVED_PROBABILITY if settings.risk is None else threshold_for(surrogate, settings.risk)


def _loaded(problem: Problem, settings: RunSettings, *, seed: int) -> tuple[Problem, Surrogate]:
    """Return the problem as the surrogate sees it, and the surrogate as its file or its object is."""
    if names_object(settings.surrogate):
        surrogate = load_object(settings.surrogate)
        if isinstance(surrogate, AggregateOracle):
            _require_certain(problem, settings)
            return without_physics(problem), surrogate
        return problem, surrogate
    return problem, surrogate_for(
        problem,
        settings.surrogate,
        horizon_s=EXACT_HORIZON_S,
        warmup_s=EXACT_WARMUP_S,
        seed=seed,
        workers=settings.twin_workers or available_cores(),
    )


def _require_certain(problem: Problem, settings: RunSettings) -> None:
    """Raise InputError when a function that says yes or no is asked for what only probabilities can give."""
    if problem.uncertainty is not None:
        raise InputError(
            "uncertain rates must be for a surrogate that gives predictions. This one says yes or no.",
            field="uncertainty",
            value=problem.uncertainty.model_dump(),
            hint="give a margin on the rates instead",
        )
    if settings.risk is not None:
        raise InputError(
            "a risk must be for a surrogate that gives probabilities. This one says yes or no.",
            field="risk",
            value=settings.risk,
            hint="give a margin on the rates instead",
        )


def do_run(run: Run) -> RunRecord:
    """Solve, verify, repair and replay; a solver that fails is a record with the reason.

    Raises
    ------
    KeyboardInterrupt
        On Ctrl-C, also where the solver returned what it had.
    """
    instance, settings = run.instance, run.settings
    name, solver_name, seed = run.key
    failed = RunRecord(instance=name, solver=solver_name, seed=seed, status="failed")
    seen: list[Incumbent] = []
    try:
        asked = _asked(instance, settings, seed=seed)
        result = get_solver(solver_name).solve(
            asked.problem, asked.surrogate, budget=settings.budget, seed=seed, observer=seen.append
        )
    except PlacerError as error:
        return failed.model_copy(update={"reason": error.message})
    except Exception as error:  # noqa: BLE001 - a solver or a surrogate of somebody else's: the others go on
        return failed.model_copy(update={"reason": f"{type(error).__name__}: {error}"})
    if result.termination is Termination.INTERRUPTED:
        raise KeyboardInterrupt
    record = _solved(run, asked.problem, result, seen)
    if isinstance(asked.surrogate, AggregateOracle):
        record = _checked_by_oracle(record, asked.problem, asked.surrogate)
    if record.status != "placed":
        return record
    try:
        return _judged(run, record, asked)
    except PlacerError as error:
        return record.model_copy(update={"status": "failed", "reason": error.message})


def _judged(run: Run, record: RunRecord, asked: _Asked) -> RunRecord:
    """Return the record with what the twin says, if it is asked, and with the moves."""
    assert record.placement is not None
    placed = record.placement.placement().gpus
    final = placed
    updates: dict[str, object] = {}
    if run.settings.is_verified:
        twin, final = _ask_twin(run, placed, asked)
        updates["twin"] = twin
        if final != placed:
            updates["repaired"] = PlacementRecord.of(final)
        replay = run.instance.replay
        if replay is not None and twin.num_gpus is not None:
            updates["replay"] = _replay(replay, final, twin_settings(run.settings, run.seed))
    if run.previous is not None:
        updates["moves"] = count_moves(run.previous, [gpu.adapters for gpu in final])
    return record.model_copy(update=updates)


def _checked_by_oracle(record: RunRecord, problem: Problem, oracle: AggregateOracle) -> RunRecord:
    """Return the record with the oracle's own slots, for sums that are added up anew and not rounded in any way."""
    if record.placement is None:
        return record
    gpus = record.placement.gpus
    exact = adapter_aggregates(problem.adapters)
    rows = np.array([exact[list(adapters)].sum(axis=0) for adapters in gpus])
    feasible, slots = oracle.decide(rows, np.array(record.placement.max_lora_rank, dtype=np.int64))
    if not feasible.all():
        refused = ", ".join(str(gpu) for gpu in np.flatnonzero(~feasible))
        reason = f"the surrogate refuses GPU {refused} of the placement when its sums are added up anew"
        return record.model_copy(update={"status": "failed", "reason": reason, "num_gpus": None})
    placement = record.placement.model_copy(update={"slots": tuple(int(count) for count in slots)})
    return record.model_copy(update={"placement": placement})


def _solved(run: Run, problem: Problem, result: SolveResult, seen: Sequence[Incumbent]) -> RunRecord:
    """Return what the solver says about itself."""
    name, solver, seed = run.key
    bound = result.bound
    record = RunRecord(
        instance=name,
        solver=solver,
        seed=seed,
        status="no placement",
        reason=result.message,
        solution=result.solution.value,
        termination=_termination(result.termination),
        bound=None if bound is None else BoundRecord.of(bound),
        runtime_s=result.statistics.runtime_s,
        num_evaluations=result.statistics.num_evaluations,
    )
    if result.placement is None or result.evaluation is None:
        return record
    evaluation = result.evaluation
    best = objective_value(problem, evaluation)
    incumbents = [
        (objective_value(problem, incumbent.evaluation), incumbent.runtime_s)
        for incumbent in seen
        if objective_value(problem, incumbent.evaluation) >= best
    ]
    # What is returned without having been reported was there when the solver ended.
    incumbents.append((best, result.statistics.runtime_s))
    return record.model_copy(
        update={
            "status": "placed",
            "num_gpus": evaluation.num_gpus,
            "cost_per_hour": evaluation.cost_per_hour,
            "first_s": incumbents[0][1],
            "best_s": next(time_s for value, time_s in incumbents if value <= best),
            "within_one_percent_s": next(time_s for value, time_s in incumbents if value[0] <= NEARLY_BEST * best[0]),
            "incumbents": tuple(
                IncumbentRecord(
                    runtime_s=incumbent.runtime_s,
                    num_evaluations=incumbent.num_evaluations,
                    num_gpus=incumbent.evaluation.num_gpus,
                    cost_per_hour=incumbent.evaluation.cost_per_hour,
                )
                for incumbent in seen
            ),
            "placement": PlacementRecord.of(result.placement.gpus),
        }
    )


def _termination(termination: Termination) -> TerminationName:
    known: dict[str, TerminationName] = {name: name for name in get_args(TerminationName)}
    return known[termination.value]


def twin_settings(settings: RunSettings, seed: int) -> TwinSettings:
    """Return how the twin judges the runs with a seed."""
    return TwinSettings(
        horizon_s=settings.horizon_s, warmup_s=settings.warmup_s, seed=seed, workers=settings.twin_workers
    )


def _ask_twin(
    run: Run, placed: tuple[GpuAssignment, ...], asked: _Asked
) -> tuple[TwinRecord, tuple[GpuAssignment, ...]]:
    """Simulate the solver's placement, repair it, and return what came out with the final GPUs."""
    real = run.instance.problem
    verifier = TwinVerifier(real, twin_settings(run.settings, run.seed))
    fleet = Fleet(placed, RepairSummary())
    verdicts = verifier.verify(fleet.gpus)
    num_rejected = sum(1 for verdict in verdicts if not verdict.is_accepted)
    reason = ""
    if num_rejected:
        model = FeasibilityModel(asked.problem, asked.surrogate)
        repair = Repair(model, verifier, fleet, observer=ignore, cautious=asked.cautious)
        try:
            repair.repair(run.settings.repair_rounds)
            if run.settings.is_regaining:
                repair.regain()
        except InputError as error:
            # An adapter that the twin rejects alone: there is nothing to repair.
            reason = error.message
    is_accepted = all(verifier.accepts(gpu) for gpu in fleet.gpus)
    if not (is_accepted or reason):
        reason = f"the twin still rejects GPUs after {fleet.summary.rounds} rounds of repair"
    costs = [real.gpu_types[gpu.gpu_type].cost_per_hour for gpu in fleet.gpus]
    twin = TwinRecord(
        rejected_gpus=num_rejected,
        accepted_share=1.0 - num_rejected / len(verdicts),
        worst_service_ratio=_worst(verdicts),
        num_gpus=len(fleet.gpus) if is_accepted else None,
        cost_per_hour=sum(costs) if is_accepted else None,
        repair_rounds=fleet.summary.rounds,
        twin_calls=verifier.num_calls,
        reason=reason,
    )
    return twin, fleet.gpus


def _replay(problem: Problem, gpus: Sequence[GpuAssignment], settings: TwinSettings) -> ReplayRecord:
    verdicts = TwinVerifier(problem, settings).verify(gpus)
    num_rejected = sum(1 for verdict in verdicts if not verdict.is_accepted)
    return ReplayRecord(
        rejected_gpus=num_rejected,
        accepted_share=1.0 - num_rejected / len(verdicts),
        worst_service_ratio=_worst(verdicts),
    )


def _worst(verdicts: Sequence[Verification]) -> float | None:
    ratios = [verdict.worst_service_ratio for verdict in verdicts if verdict.worst_service_ratio is not None]
    return min(ratios, default=None)
