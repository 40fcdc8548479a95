"""The phases of one plan: solve, simulate, repair, improve, and look twice; and what is known when Ctrl-C comes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from placer.agreement import require_agreement
from placer.events import (
    FleetChanged,
    IncumbentFound,
    Phase,
    PhaseStarted,
    PlanObserver,
    announce_compilation,
)
from placer.plan_bounds import better_bound, is_proven_infeasible, surrogate_bound
from placer.plan_builder import PlanParts, build_plan
from placer.plan_document import Plan, RepairSummary, SolutionName, TerminationName
from placer.recording import GpuRecorder
from placer.repacking import cautious_surrogates
from placer.repair import Fleet, Repair
from placer.replicas import Replicas
from placer.sequences import MOST_PLANS, Candidate, better_plan, candidates_of, quickest
from placer.settling import settle
from placer.stopwatch import Stopwatch
from placer.surrogates import SurrogateChoice, at_the_quantile, careful, threshold_for, uses_simulation
from placer.type_by_type import solve_each_type
from placer.verify import TwinSettings, TwinVerifier
from predictors.surrogate import STARVED_PROBABILITY, Surrogate
from solvers.alone import UnplaceableError
from solvers.bounds import work_bound
from solvers.budget import Budget
from solvers.feasibility import FeasibilityModel
from solvers.interface import Capability, Solver
from solvers.merging import merged_problem
from solvers.placement import GpuAssignment
from solvers.problem import Problem
from solvers.result import Bound, Incumbent, Solution, SolveResult, SolveStatistics, Termination
from solvers.secondary.search import fleet_value
from solvers.secondary.solver import secondary_of
from twin.parallel import available_cores


class Planning:
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
        is_confirmed: bool,
    ) -> None:
        self.told = problem
        self.solver = solver
        self.settings = settings
        self.budget = budget
        self.margin = margin
        self.risk = risk
        self.threshold = STARVED_PROBABILITY
        self.observer = observer
        self.recorder = recorder
        self.is_confirmed = is_confirmed
        self.verifiers: list[TwinVerifier] = []
        self.num_evaluations = 0
        self.num_solver_calls = 0
        self._start_with(problem)
        self.stopwatch = Stopwatch()

    def run(self, choice: str | Path | Surrogate, *, is_verified: bool, is_improved: bool, repair_rounds: int) -> Plan:
        """Go through the phases; see `plan`."""
        self._begin("load", "surrogate")
        workers = self.settings.workers or available_cores()
        surrogates = SurrogateChoice(choice, seed=self.settings.seed, workers=workers)
        surrogate = surrogates.of(self.told)
        if uses_simulation(surrogate):
            announce_compilation(self.observer)
        if self.risk is not None:
            self.threshold = threshold_for(surrogate, self.risk)
        replicas = Replicas(
            self.told,
            surrogate_of=lambda problem: self._careful(surrogates.of(problem), problem),
            verifier_of=self._new_verifier if is_verified else None,
        )
        if self.told.replication.automatic:
            self._begin("replicate", "adapters that no GPU serves alone")
            replicas.find()
        while True:
            divided = replicas.divided()
            try:
                return self._best_plan(
                    self._candidates(divided, surrogates),
                    is_verified=is_verified,
                    is_improved=is_improved,
                    repair_rounds=repair_rounds,
                )
            except UnplaceableError as error:
                if not replicas.find_more(error, divided):
                    raise

    def _candidates(self, problem: Problem, surrogates: SurrogateChoice) -> list[Candidate]:
        """Return a problem with each `max_num_seqs` that may be chosen, the most promising first."""
        if problem.max_num_seqs_options:
            self._begin("solve", f"max_num_seqs, {len(problem.max_num_seqs_options)} values")
        candidates = candidates_of(problem, surrogates.of, self._careful, budget=self.budget)
        for candidate in candidates:
            if candidate.statistics is not None:
                self._count(candidate.statistics)
        return candidates

    def _best_plan(
        self, candidates: list[Candidate], *, is_verified: bool, is_improved: bool, repair_rounds: int
    ) -> Plan:
        """Plan with one candidate after another, as long as the next may beat the best plan so far."""
        best: Plan | None = None
        refusal: UnplaceableError | None = None
        for candidate in candidates[:MOST_PLANS]:
            if best is not None and not candidate.may_beat(best):
                break
            self._start_with(candidate.problem)
            try:
                made = self._plan(
                    candidate.surrogate, is_verified=is_verified, is_improved=is_improved, repair_rounds=repair_rounds
                )
            except UnplaceableError as error:
                refusal = refusal or error
                continue
            except KeyboardInterrupt:
                if best is None:
                    raise
                best = best.model_copy(update={"termination": "interrupted"})
                break
            best = better_plan(best, made)
            if made.termination == "interrupted":
                best = best.model_copy(update={"termination": "interrupted"})
                break
        if best is None:
            assert refusal is not None
            raise refusal
        return best.model_copy(update=self._totals(best))

    def _count(self, statistics: SolveStatistics) -> None:
        """Count what a solver asked."""
        self.num_evaluations += statistics.num_evaluations
        self.num_solver_calls += statistics.num_calls

    def _totals(self, plan: Plan) -> dict[str, object]:
        """Return those fields of a plan that count what all plans took that were made."""
        num_calls = sum(verifier.num_calls for verifier in self.verifiers)
        return {
            "repair": plan.repair.model_copy(update={"twin_calls": num_calls}),
            "solver_evaluations": self.num_evaluations,
            "solver_calls": self.num_solver_calls,
            "timings": self.stopwatch.timings(),
        }

    def _new_verifier(self, problem: Problem) -> TwinVerifier:
        verifier = TwinVerifier(problem, self.settings, observer=self.observer, recorder=self.recorder)
        self.verifiers.append(verifier)
        return verifier

    def _start_with(self, problem: Problem) -> None:
        """Begin with nothing placed; groups that must share a GPU are one adapter each, until the plan is told."""
        self.problem = merged_problem(problem)
        self.verifier = self._new_verifier(self.problem)
        self.fleet = Fleet((), RepairSummary())

    def _plan(self, surrogate: Surrogate, *, is_verified: bool, is_improved: bool, repair_rounds: int) -> Plan:
        """Solve, verify, repair and improve for the numbers of replicas that there are now."""
        result: SolveResult | None = None
        is_interrupted = False
        bound: Bound | None = None
        if all(gpu_type.max_count is not None for gpu_type in self.problem.gpu_types):
            bound = work_bound(self.problem)
        if bound is None or not is_proven_infeasible(self.problem, bound):
            self._begin("solve", self.solver.name)
            try:
                result = self._solve(surrogate)
            except UnplaceableError as error:
                require_agreement(error, self.problem, surrogate, self.verifier, risk=self.risk)
                raise
            self._count(result.statistics)
            is_interrupted = result.termination is Termination.INTERRUPTED
            if is_interrupted and result.placement is None:
                raise KeyboardInterrupt
            if result.placement is not None:
                self.fleet.gpus = result.placement.gpus
        # Where nothing limits the GPUs, nobody has to wait for the bound before the solver runs.
        bound = bound or work_bound(self.problem)
        if self.fleet.gpus and is_verified and not is_interrupted:
            try:
                self._finish(self.fleet, surrogate, result, bound, repair_rounds, is_improved=is_improved)
                self._compare_with_own(surrogate, result, bound, repair_rounds, is_improved=is_improved)
                if self.is_confirmed:
                    self._begin("verify", "GPUs near a limit, with further seeds")
                    self.verifier.confirm(self.fleet.gpus)
            except KeyboardInterrupt:
                is_interrupted = True
        known = {self._told(gpu): self.verifier.known(gpu) for gpu in self.fleet.gpus}
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
                repair=self.fleet.summary,
                solution=self._solution(result, bound),
                termination=self._termination(result, is_interrupted=is_interrupted),
                message=self._message(result, bound),
                bound=better_bound(self.problem, bound, result),
                surrogate_bound=surrogate_bound(self.told, bound, result),
                solver_evaluations=self.num_evaluations,
                solver_calls=self.num_solver_calls,
            ),
            self.stopwatch.timings,
        )

    def _told(self, gpu: GpuAssignment) -> GpuAssignment:
        """Return a GPU with the adapters that the user knows."""
        return replace(gpu, adapters=self.problem.members_of(gpu.adapters))

    def _careful(self, surrogate: Surrogate, problem: Problem) -> Surrogate:
        return careful(surrogate, problem, threshold=self.threshold, margin=self.margin)

    def _cautious(self, surrogate: Surrogate) -> tuple[Surrogate, ...]:
        """Return surrogates that accept less than the careful one, each less than the one before."""
        steps = cautious_surrogates(surrogate, threshold=self.threshold, margin=self.margin)
        return tuple(at_the_quantile(step, self.problem) for step in steps)

    def _solve(self, surrogate: Surrogate) -> SolveResult:
        """Run the solver: on all GPU types if it can mix them, else on each of them."""
        problem = self.problem
        asked = self._careful(surrogate, problem)
        if len(problem.gpu_types) == 1 or Capability.MIXED_GPU_TYPES in self.solver.capabilities:
            return self._solve_one(problem, asked, self.budget)
        return solve_each_type(problem, asked, self.budget, self._solve_one)

    def _solve_one(self, problem: Problem, surrogate: Surrogate, budget: Budget) -> SolveResult:
        return self.solver.solve(
            problem, surrogate, budget=budget, seed=self.settings.seed, observer=self._on_incumbent
        )

    def _on_incumbent(self, incumbent: Incumbent) -> None:
        evaluation = incumbent.evaluation
        self.observer(IncumbentFound(evaluation.num_gpus, evaluation.cost_per_hour, incumbent.num_evaluations))

    def _finish(
        self,
        fleet: Fleet,
        surrogate: Surrogate,
        result: SolveResult | None,
        bound: Bound,
        repair_rounds: int,
        *,
        is_improved: bool,
    ) -> None:
        """Verify, repair and improve a fleet, then serve latencies and the secondary objectives again."""
        repair = self._verify_and_repair(fleet, surrogate, repair_rounds)
        if is_improved:
            self._improve(repair, bound)
        if self.problem.objective == "lowest_latency" and self.problem.max_num_seqs_options:
            self._begin("improve", "max_num_seqs of single GPUs")
            fleet.gpus = quickest(self.problem, self.verifier, fleet.gpus)
        self._settle(fleet, surrogate, result)

    def _compare_with_own(
        self,
        surrogate: Surrogate,
        result: SolveResult | None,
        bound: Bound,
        repair_rounds: int,
        *,
        is_improved: bool,
    ) -> None:
        """Finish the solver's own placement, too, and take it where the twin makes more of it than of the changed one.

        Repair and improvement look at GPUs one by one: what is equal to the surrogate need not be so afterwards.
        """
        if result is None or result.before_secondary is None or self.problem.objective == "lowest_latency":
            return
        may_empty = is_improved and len(self.fleet.gpus) > bound.value
        if not may_empty and self._standing(self.fleet.gpus) <= (
            0,
            *fleet_value(self.problem, result.before_secondary.gpus),
        ):
            return
        own = Fleet(result.before_secondary.gpus, RepairSummary())
        self._finish(own, surrogate, result, bound, repair_rounds, is_improved=is_improved)
        if self._standing(own.gpus) < self._standing(self.fleet.gpus):
            self.fleet = own

    def _standing(self, gpus: tuple[GpuAssignment, ...]) -> tuple[float, ...]:
        """Return how many GPUs the twin rejects, and what the objective says of their number or cost."""
        num_rejected = sum(1 for gpu in gpus if not self.verifier.accepts(gpu))
        return num_rejected, *fleet_value(self.problem, gpus)

    def _verify_and_repair(self, fleet: Fleet, surrogate: Surrogate, repair_rounds: int) -> Repair:
        self._begin("verify", f"all GPUs, {len(fleet.gpus)}")
        verdicts = self.verifier.verify(fleet.gpus)
        num_rejected = sum(1 for verdict in verdicts if not verdict.is_accepted)
        fleet.summary = fleet.summary.model_copy(update={"rejected_at_first": num_rejected})
        self.observer(FleetChanged(len(verdicts), len(verdicts) - num_rejected, "simulated the solver's placement"))
        model = FeasibilityModel(self.problem, self._careful(surrogate, self.problem))
        repair = Repair(model, self.verifier, fleet, observer=self.observer, cautious=self._cautious(surrogate))
        if num_rejected:
            self._begin("repair", f"rejected GPUs, {num_rejected}")
            repair.repair(repair_rounds)
        return repair

    def _improve(self, repair: Repair, bound: Bound) -> None:
        """Look for fewer GPUs, unless the bound is met or the twin rejects the plan anyway."""
        gpus = repair.fleet.gpus
        if len(gpus) > bound.value and all(self.verifier.accepts(gpu) for gpu in gpus):
            self._begin("improve", "fewer GPUs")
            repair.improve()

    def _settle(self, fleet: Fleet, surrogate: Surrogate, result: SolveResult | None) -> None:
        """Serve the secondary objectives again, where GPUs are others than the solver's."""
        is_changed = result is not None and result.placement is not None and fleet.gpus != result.placement.gpus
        if is_changed and secondary_of(self.problem) and self.problem.objective != "lowest_latency":
            self._begin("improve", ", ".join(secondary_of(self.problem)))
            surrogates = (self._careful(surrogate, self.problem), *self._cautious(surrogate))
            settle(self.problem, surrogates, self.verifier, fleet, budget=self.budget)

    def _begin(self, phase: Phase, detail: str) -> None:
        self.stopwatch.begin({"replicate": "solve", "improve": "repair"}.get(phase, phase))
        self.observer(PhaseStarted(phase, detail))

    def _solution(self, result: SolveResult | None, work: Bound) -> SolutionName:
        """Return what there is; a placement that repair has changed is no longer the one that was proven optimal.

        Where numbers of replicas or values of `max_num_seqs` are looked for, nothing but the work bound is about all of
        them.
        """
        if result is None or result.placement is None or result.evaluation is None:
            return "none"
        is_optimal = result.solution is Solution.OPTIMAL and self.fleet.gpus == result.placement.gpus
        if self.told.replication.automatic or self.told.max_num_seqs_options:
            is_optimal = is_optimal and work.proves(result.evaluation, self.problem.objective)
        return "optimal" if is_optimal else "feasible"

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
