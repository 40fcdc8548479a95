"""The product in one function: solve with a surrogate, simulate every GPU with the twin, repair, improve, report."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from placer.current_plan import CurrentChoice, with_secondary
from placer.events import FleetChanged, IncumbentFound, PhaseStarted, PlanObserver, announce_compilation, ignore
from placer.plan_builder import PlanParts, build_plan
from placer.plan_document import Plan, RepairSummary, SolutionName, TerminationName
from placer.recording import GpuRecorder, recorder_for
from placer.repacking import cautious_surrogates
from placer.repair import DEFAULT_REPAIR_ROUNDS, Fleet, Repair
from placer.settling import settle
from placer.stopwatch import Stopwatch
from placer.surrogates import at_the_quantile, inflated, surrogate_for, threshold_for, uses_simulation, with_threshold
from placer.verify import TwinSettings, TwinVerifier
from predictors.surrogate import STARVED_PROBABILITY, Surrogate
from solvers.bounds import adapter_work, unavoidable_costs, work_bound
from solvers.budget import Budget
from solvers.constrained_solve import require_kept
from solvers.feasibility import FeasibilityModel
from solvers.interface import Capability, Solver
from solvers.merging import merged_problem
from solvers.objective import objective_value
from solvers.placement import GpuAssignment, Placement
from solvers.problem import Problem
from solvers.registry import get_solver
from solvers.result import Bound, Incumbent, Solution, SolveResult, Termination
from solvers.secondary.solver import secondary_of
from solvers.surrogate_per_gpu_type import SurrogatePerGpuType
from twin.errors import InputError, SurrogateError
from twin.judging_window import DEFAULT_HORIZON_S, DEFAULT_WARMUP_S
from twin.parallel import available_cores
from twin.simulate import EngineName

__all__ = ["Plan", "plan"]

DEFAULT_SOLVER = "portfolio"
DEFAULT_SURROGATE = "auto"
AUTO_BUDGET: Literal["auto"] = "auto"
# Horizon of the exact surrogate: shorter than the verification's, because it is asked very often.
EXACT_HORIZON_S = 900.0
EXACT_WARMUP_S = 150.0
# Unavoidable work of one adapter, in GPUs, about which the twin is not asked: its verdict is clear.
HOPELESS_GPUS = 2.0
ASK_THE_TWIN_HINT = "ask the twin itself, with the surrogate `exact`"
LARGER_RISK_HINT = f"allow a larger risk, or {ASK_THE_TWIN_HINT}"
# The twin disagrees with itself over another horizon.
NEAR_A_LIMIT_HINT = (
    "alone on a GPU it is at a limit, where the margin and the simulated time decide: lower the margin or its rate, "
    "give it a larger GPU, or loosen the limits"
)


def plan(
    problem: Problem,
    *,
    solver: str = DEFAULT_SOLVER,
    surrogate: str | Path | Surrogate = DEFAULT_SURROGATE,
    budget: float | Literal["auto"] | None = AUTO_BUDGET,
    max_evaluations: int | None = None,
    seed: int = 0,
    verify: bool = True,
    improve: bool = True,
    margin: float = 0.0,
    risk: float | None = None,
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
        `solvers.budget.Budget.automatic` says: once there is a placement, 250 rows for each adapter, and 60 s.
        Verification and repair are bounded by numbers of simulations.
    max_evaluations
        Rows that the solver may ask the surrogate for: a limit that is the same on every machine.
    seed
        Of the solver and of the simulated traffic.
    verify
        Simulate the GPUs, repair those that the twin rejects, and look twice at those near a limit.
    improve
        Afterwards, empty GPUs into others where the twin approves; not with a `risk`, which its verdict about one
        traffic would pass over, nor for `lowest_latency`, which does not want fewer GPUs.
    margin
        Ask the surrogate to accept a GPU as if all rates were larger by this share, > -1.
    risk
        At most this share, in (0, 1), of GPUs that are packed to the brim may be rejected by the twin: a GPU is only
        accepted below the probability of starvation at which the surrogate was found to keep that. With several GPU
        types, below the smallest of theirs. Not together with `margin`.
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
        When the arguments do not hold, or some adapter fits no GPU alone.
    SolverError, SurrogateError
        When a solver or surrogate is unknown, unavailable or refused, the solver does not keep the problem's
        constraints, or the surrogate knows no threshold for the risk.
    KeyboardInterrupt
        On Ctrl-C while there is no placement yet.
    """
    check_arguments(margin, risk, repair_rounds)
    problem = with_secondary(problem, secondary, current)
    settings = TwinSettings(engine=engine, horizon_s=horizon_s, warmup_s=warmup_s, seed=seed, workers=workers)
    chosen = get_solver(solver)
    require_kept(chosen, problem)
    recorder = recorder_for(record_rejections, problem.workload, is_verified=verify)
    planning = _Planning(
        problem,
        solver=chosen,
        settings=settings,
        budget=_budget(problem, budget, max_evaluations),
        margin=margin,
        risk=risk,
        observer=observer or ignore,
        recorder=recorder,
    )
    is_improved = improve and risk is None and problem.objective != "lowest_latency"
    made = planning.run(surrogate, is_verified=verify, is_improved=is_improved, repair_rounds=repair_rounds)
    return made if recorder is None else made.model_copy(update={"warnings": (*made.warnings, *recorder.warnings())})


def _budget(problem: Problem, budget: float | Literal["auto"] | None, max_evaluations: int | None) -> Budget:
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


class _Planning:
    """One call of `plan`: its phases, and what is known so far when Ctrl-C comes."""

    def __init__(
        self,
        problem: Problem,
        *,
        solver: Solver,
        settings: TwinSettings,
        budget: Budget,
        margin: float,
        risk: float | None,
        observer: PlanObserver,
        recorder: GpuRecorder | None,
    ) -> None:
        # Groups that must share a GPU are one adapter each, until the plan is told.
        self.problem = merged_problem(problem)
        self.solver = solver
        self.settings = settings
        self.budget = budget
        self.margin = margin
        self.risk = risk
        self.threshold = STARVED_PROBABILITY
        self.observer = observer
        self.verifier = TwinVerifier(self.problem, settings, observer=observer, recorder=recorder)
        self.fleet = Fleet((), RepairSummary())
        self.stopwatch = Stopwatch()

    def run(self, choice: str | Path | Surrogate, *, is_verified: bool, is_improved: bool, repair_rounds: int) -> Plan:
        """Go through the phases; see `plan`."""
        self._begin("load", "surrogate")
        surrogate = self._surrogate(choice)
        if self.risk is not None:
            self.threshold = threshold_for(surrogate, self.risk)
        result: SolveResult | None = None
        is_interrupted = False
        bound: Bound | None = None
        if all(gpu_type.max_count is not None for gpu_type in self.problem.gpu_types):
            bound = work_bound(self.problem)
        if bound is None or not _is_proven_infeasible(self.problem, bound):
            self._begin("solve", self.solver.name)
            try:
                result = self._solve(surrogate)
            except InputError as error:
                self._require_agreement(error, surrogate)
                raise
            is_interrupted = result.termination is Termination.INTERRUPTED
            if is_interrupted and result.placement is None:
                raise KeyboardInterrupt
            if result.placement is not None:
                self.fleet.gpus = result.placement.gpus
        # Where nothing limits the GPUs, nobody has to wait for the bound before the solver runs.
        bound = bound or work_bound(self.problem)
        if self.fleet.gpus and is_verified and not is_interrupted:
            try:
                repair = self._verify_and_repair(surrogate, repair_rounds)
                if is_improved:
                    self._improve(repair, bound)
                self._settle(surrogate, result)
                self._begin("verify", "GPUs near a limit, with further seeds")
                self.verifier.confirm(self.fleet.gpus)
            except KeyboardInterrupt:
                is_interrupted = True
        known = {self._told(gpu): self.verifier.known(gpu) for gpu in self.fleet.gpus}
        summary = self.fleet.summary.model_copy(update={"twin_calls": self.verifier.num_calls})
        return build_plan(
            PlanParts(
                problem=self.problem.unmerged,
                surrogate=surrogate,
                solver=self.solver.name,
                budget=self.budget,
                margin=self.margin,
                risk=self.risk,
                threshold=self.threshold,
                settings=self.settings,
                max_repair_rounds=repair_rounds,
                is_improved=is_improved,
                gpus=tuple(known),
                known=known.get,
                repair=summary,
                solution=self._solution(result),
                termination=self._termination(result, is_interrupted=is_interrupted),
                message=self._message(result, bound),
                bound=_better_bound(self.problem, bound, result),
                solver_evaluations=0 if result is None else result.statistics.num_evaluations,
                solver_calls=0 if result is None else result.statistics.num_calls,
            ),
            self.stopwatch.timings,
        )

    def _told(self, gpu: GpuAssignment) -> GpuAssignment:
        """Return a GPU with the adapters that the user knows."""
        return replace(gpu, adapters=self.problem.members_of(gpu.adapters))

    def _surrogate(self, choice: str | Path | Surrogate) -> Surrogate:
        if not isinstance(choice, str | Path):
            return choice
        surrogate = surrogate_for(
            self.problem.unmerged,
            str(choice),
            horizon_s=EXACT_HORIZON_S,
            warmup_s=EXACT_WARMUP_S,
            seed=self.settings.seed,
            workers=self.settings.workers or available_cores(),
        )
        if uses_simulation(surrogate):
            announce_compilation(self.observer)
        return surrogate

    def _careful(self, surrogate: Surrogate) -> Surrogate:
        """Return the surrogate as solver and repair ask it: with the margin, the threshold, and the uncertain rates."""
        careful = inflated(with_threshold(surrogate, self.threshold), 1.0 + self.margin)
        return at_the_quantile(careful, self.problem)

    def _solve(self, surrogate: Surrogate) -> SolveResult:
        """Run the solver: on all GPU types if it can mix them, else on each of them."""
        asked = self._careful(surrogate)
        problem = self.problem
        if len(problem.gpu_types) == 1 or Capability.MIXED_GPU_TYPES in self.solver.capabilities:
            return self._solve_one(problem, asked, self.budget)
        results: list[SolveResult | InputError] = []
        for index in range(len(problem.gpu_types)):
            result = self._solve_type(asked, index)
            results.append(result)
            if isinstance(result, SolveResult) and result.termination is Termination.INTERRUPTED:
                return replace(_best_of(problem, results), termination=Termination.INTERRUPTED)
        return _best_of(problem, results)

    def _require_agreement(self, error: InputError, surrogate: Surrogate) -> None:
        """Raise SurrogateError if `error` is about an adapter that the surrogate rejects alone and the twin accepts."""
        match = re.fullmatch(r"adapters\.(\d+)\.rate_rps", error.field or "")
        if match is None:
            return
        problem, adapter = self.problem, int(match[1])
        if problem.merging is not None:
            adapter = int(problem.merging.item_of[adapter])
        if _is_beyond_doubt(problem, adapter):
            return
        rank = problem.fixed_max_lora_rank or problem.adapters[adapter].rank
        alone = [
            GpuAssignment(gpu_type, (adapter,), problem.fixed_max_loras or 1, rank)
            for gpu_type in range(len(problem.gpu_types))
            if problem.may_serve(gpu_type, adapter)
        ]
        if any(verdict.is_accepted for verdict in self.verifier.verify(alone)):
            raise SurrogateError(
                f"the surrogate must agree with the twin about an adapter that is alone on a GPU. It rejects "
                f"{problem.adapters[adapter].name!r}, which the twin accepts: {error.message}",
                field=error.field,
                value=error.value,
                hint=self._hint_about_disagreement(surrogate),
            ) from error

    def _hint_about_disagreement(self, surrogate: Surrogate) -> str:
        if uses_simulation(surrogate):
            return NEAR_A_LIMIT_HINT
        return ASK_THE_TWIN_HINT if self.risk is None else LARGER_RISK_HINT

    def _solve_type(self, surrogate: Surrogate, gpu_type: int) -> SolveResult | InputError:
        """Solve with GPUs of one type only; an error when some adapter fits no GPU of that type."""
        problem = self.problem
        gpu_types, profiles = (problem.gpu_types[gpu_type],), (problem.profiles[gpu_type],)
        only = merged_problem(replace(problem.unmerged, gpu_types=gpu_types, profiles=profiles))
        own = surrogate.for_gpu_type(gpu_type) if isinstance(surrogate, SurrogatePerGpuType) else surrogate
        try:
            result = self._solve_one(only, own, self.budget.share(1.0 / len(problem.gpu_types)))
        except InputError as error:
            return error
        if result.placement is None:
            return result
        gpus = tuple(replace(gpu, gpu_type=gpu_type) for gpu in result.placement.gpus)
        return replace(result, placement=Placement(gpus))

    def _solve_one(self, problem: Problem, surrogate: Surrogate, budget: Budget) -> SolveResult:
        return self.solver.solve(
            problem, surrogate, budget=budget, seed=self.settings.seed, observer=self._on_incumbent
        )

    def _on_incumbent(self, incumbent: Incumbent) -> None:
        evaluation = incumbent.evaluation
        self.observer(IncumbentFound(evaluation.num_gpus, evaluation.cost_per_hour, incumbent.num_evaluations))

    def _verify_and_repair(self, surrogate: Surrogate, repair_rounds: int) -> Repair:
        self._begin("verify", f"all GPUs, {len(self.fleet.gpus)}")
        verdicts = self.verifier.verify(self.fleet.gpus)
        num_rejected = sum(1 for verdict in verdicts if not verdict.is_accepted)
        self.fleet.summary = self.fleet.summary.model_copy(update={"rejected_at_first": num_rejected})
        self.observer(FleetChanged(len(verdicts), len(verdicts) - num_rejected, "simulated the solver's placement"))
        model = FeasibilityModel(self.problem, self._careful(surrogate))
        steps = cautious_surrogates(surrogate, threshold=self.threshold, margin=self.margin)
        cautious = tuple(at_the_quantile(step, self.problem) for step in steps)
        repair = Repair(model, self.verifier, self.fleet, observer=self.observer, cautious=cautious)
        if num_rejected:
            self._begin("repair", f"rejected GPUs, {num_rejected}")
            repair.repair(repair_rounds)
        return repair

    def _improve(self, repair: Repair, bound: Bound) -> None:
        """Look for fewer GPUs, unless the bound is met or the twin rejects the plan anyway."""
        gpus = self.fleet.gpus
        if len(gpus) > bound.value and all(self.verifier.accepts(gpu) for gpu in gpus):
            self._begin("improve", "fewer GPUs")
            repair.improve()

    def _settle(self, surrogate: Surrogate, result: SolveResult | None) -> None:
        """Serve the secondary objectives again, where GPUs are others than the solver's."""
        is_changed = result is not None and result.placement is not None and self.fleet.gpus != result.placement.gpus
        if is_changed and secondary_of(self.problem) and self.problem.objective != "lowest_latency":
            self._begin("improve", ", ".join(secondary_of(self.problem)))
            settle(self.problem, self._careful(surrogate), self.verifier, self.fleet, budget=self.budget)

    def _begin(self, phase: Literal["load", "solve", "verify", "repair", "improve"], detail: str) -> None:
        self.stopwatch.begin("repair" if phase == "improve" else phase)
        self.observer(PhaseStarted(phase, detail))

    def _solution(self, result: SolveResult | None) -> SolutionName:
        """Return what there is; a placement that repair has changed is no longer the one that was proven optimal."""
        if result is None or result.placement is None:
            return "none"
        is_unchanged = self.fleet.gpus == result.placement.gpus
        return "optimal" if result.solution is Solution.OPTIMAL and is_unchanged else "feasible"

    def _termination(self, result: SolveResult | None, *, is_interrupted: bool) -> TerminationName:
        if is_interrupted:
            return "interrupted"
        return "proven" if result is None else result.termination.value

    def _message(self, result: SolveResult | None, bound: Bound) -> str:
        if result is None:
            allowed = sum(gpu_type.max_count or 0 for gpu_type in self.problem.gpu_types)
            return (
                f"At least {bound.value} GPUs are needed (lower bound: {bound.proof}), and `max_count` allows "
                f"{allowed}. Allow more GPUs, or place fewer adapters."
            )
        return result.message


def _is_proven_infeasible(problem: Problem, bound: Bound) -> bool:
    """Return whether the bound is above all GPUs that may be used."""
    counts = [gpu_type.max_count for gpu_type in problem.gpu_types]
    return all(count is not None for count in counts) and bound.value > sum(count or 0 for count in counts)


def _is_beyond_doubt(problem: Problem, adapter: int) -> bool:
    """Return whether an adapter is so far above one GPU that the twin must reject it: simulating it would take long."""
    if problem.workload.phases:
        return False
    types = range(len(problem.gpu_types))
    work = min(float(adapter_work(problem, unavoidable_costs(problem, index))[adapter]) for index in types)
    return work * (1.0 - problem.limits.starvation_tolerance) > HOPELESS_GPUS


def _better_bound(problem: Problem, work: Bound, result: SolveResult | None) -> Bound:
    """Return the larger bound of those that hold for the twin; a bound on the surrogate's problem says less."""
    own = None if result is None else result.bound
    if own is None or own.model != "twin":
        return work
    if problem.objective == "least_cost":
        return max(work, own, key=lambda bound: bound.cost_per_hour or 0.0)
    return max(work, own, key=lambda bound: bound.value)


def _best_of(problem: Problem, results: list[SolveResult | InputError]) -> SolveResult:
    """Return the result that the objective prefers; raise the first error when no GPU type can hold all adapters."""
    solved = [result for result in results if isinstance(result, SolveResult)]
    placed = [result for result in solved if result.evaluation is not None]
    if placed:
        return min(
            placed,
            key=lambda result: (
                objective_value(problem, result.evaluation) if result.evaluation is not None else (math.inf, math.inf)
            ),
        )
    if solved:
        return solved[0]
    raise next(result for result in results if isinstance(result, InputError))
