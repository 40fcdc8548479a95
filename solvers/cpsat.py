"""CP-SAT on counts: fewer and fewer GPUs, until none are left to save or there is a proof.

The model (`solvers.cpsat_model`) knows which adapters there are, not what a GPU can hold. Its answers are shown to the
surrogate, GPU by GPU in one batch, and every refusal comes back as a cut (`solvers.refusals`) for all GPUs. When all
are accepted, they are a placement, and the next one must be better by one unit of the objective or of what breaks ties.
When CP-SAT refutes that, the best placement so far is optimal in the surrogate's problem: every cut is about something
that the surrogate refused, or that a monotone one must refuse.

Cuts about loads need a surrogate that declares itself monotone. Without, every refused set is excluded alone, which
proves little about more than a few adapters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from predictors.surrogate import Surrogate
from solvers.adapter_types import AdapterTypes, cluster_types, placement_of_patterns
from solvers.budget import Budget
from solvers.choices import Choices
from solvers.feasible_patterns import ask_patterns, interchangeable_types
from solvers.integer_objective import IntegerObjective, integer_objective
from solvers.interface import Capability
from solvers.native_call import stopped_early
from solvers.pattern_pool import patterns_of
from solvers.placement import Placement
from solvers.problem import Problem
from solvers.proven import NO_PLACEMENT, UNPLANNED_SLOTS, UNREPEATABLE
from solvers.refusals import Cut, Refusals
from solvers.result import Bound, Termination
from solvers.run import SolverRun
from solvers.seeding import SEEDED_CAPABILITIES, SeededSolver

if TYPE_CHECKING:
    from solvers.cpsat_model import CountModel, Effort

PROOF = "cp-sat"
# CP-SAT's work, in its deterministic seconds, for each evaluation that a budget allows, and without any limit.
DETERMINISTIC_S_PER_EVALUATION = 1e-4
DEFAULT_DETERMINISTIC_S = 0.3
# Counts (GPUs x adapter types) above which a model is not built.
MAX_COUNTS = 50_000
# Adapter types above which a refutation works with fewer, lighter ones.
MAX_REFUTED_TYPES = 150
REFUTATION_LEVELS = 40


class CpSatSolver(SeededSolver):
    """Counts of adapter types on each GPU, by OR-Tools CP-SAT, with cuts from what the surrogate refuses.

    Parameters
    ----------
    num_workers
        Threads of CP-SAT, at least 1. Only one repeats exactly.
    """

    name = "cpsat"
    capabilities = SEEDED_CAPABILITIES | {Capability.BOUND}

    def __init__(self, *, num_workers: int = 1) -> None:
        self.num_workers = num_workers

    def improve(self, run: SolverRun, generator: np.random.Generator) -> tuple[Termination, Bound | None]:
        """Record better placements until CP-SAT refutes another one; nothing is random."""
        del generator
        return _improve(run, self.num_workers)


@dataclass(frozen=True)
class Refutation:
    """A proof that the surrogate accepts no placement on a number of GPUs, or fewer.

    Attributes
    ----------
    bound
        What follows.
    num_rounds, num_cuts
        Questions to CP-SAT, and what they used.
    relies_on_monotonicity
        The proof is only as good as the surrogate's declaration that more load never helps.
    """

    bound: Bound
    num_rounds: int
    num_cuts: int
    relies_on_monotonicity: bool


def refute(problem: Problem, surrogate: Surrogate, num_gpus: int, *, budget: Budget) -> Refutation | None:
    """Prove that the surrogate accepts no placement on `num_gpus` GPUs, whatever they cost.

    For a monotone surrogate and many different adapters, lighter ones stand for those that are alike: what those
    cannot do, the real ones cannot.

    Parameters
    ----------
    problem, surrogate
        Whose GPUs, as many of each type as there are.
    num_gpus
        At least 1.
    budget
        When to give up.

    Returns
    -------
    The proof; ``None``: there is a placement, or none was excluded within the budget.

    Raises
    ------
    KeyboardInterrupt
        On Ctrl-C.
    """
    run = SolverRun(problem, surrogate, budget, None)
    types = interchangeable_types(run.model)
    if types.num_types > MAX_REFUTED_TYPES and run.model.is_monotone:
        types = cluster_types(problem, levels=REFUTATION_LEVELS, representative="lightest")
    if num_gpus * types.num_types > MAX_COUNTS:
        return None
    search = _Search(run, types, num_gpus=num_gpus, weights=[1] * len(problem.gpu_types), weight_limit=num_gpus)
    if search.until_accepted() is not Termination.PROVEN:
        return None
    return Refutation(
        bound=Bound(value=num_gpus + 1, proof=PROOF, model="surrogate"),
        num_rounds=run.num_iterations,
        num_cuts=len(search.cuts),
        relies_on_monotonicity=run.model.is_monotone,
    )


def _improve(run: SolverRun, num_workers: int) -> tuple[Termination, Bound | None]:
    """Record better placements until CP-SAT refutes another one; return why the search ended and what was proven."""
    types = interchangeable_types(run.model)
    objective = integer_objective(run.problem)
    num_gpus, limit = _room_for_improvement(run, objective)
    if num_gpus * types.num_types > MAX_COUNTS:
        run.notes.append(
            f"Nothing was proven: {num_gpus:,} GPUs x {types.num_types:,} different adapters are more than the "
            f"{MAX_COUNTS:,} counts that `cpsat` takes. This is what best fit finds."
        )
        return Termination.COMPLETED, None
    if num_gpus == 0:
        return Termination.PROVEN, objective.bound(limit + 1, PROOF)
    search = _Search(run, types, num_gpus=num_gpus, weights=objective.weights, weight_limit=limit)
    search.num_workers = num_workers
    search.hint_incumbent()
    while True:
        accepted = search.until_accepted()
        if accepted is Termination.PROVEN:
            return _conclusion(run, types, objective)
        if isinstance(accepted, Termination):
            return accepted, None
        if not run.record(accepted):
            run.notes.append(UNREPEATABLE)
            return Termination.COMPLETED, None
        search.model.limit_weight(objective.weight(accepted) - 1)


def _room_for_improvement(run: SolverRun, objective: IntegerObjective) -> tuple[int, int]:
    """Return how many GPUs a better placement may have, and its largest weight."""
    limits = [gpu_type.max_count for gpu_type in run.problem.gpu_types]
    most = len(run.problem.adapters)
    if all(limit is not None for limit in limits):
        most = min(most, sum(limit or 0 for limit in limits))
    if run.incumbent is None:
        return most, most * max(objective.weights)
    limit = objective.weight(run.incumbent.placement) - 1
    return min(most, limit // min(objective.weights)), limit


def _conclusion(run: SolverRun, types: AdapterTypes, objective: IntegerObjective) -> tuple[Termination, Bound | None]:
    """Return what follows when anything better than the incumbent is refuted."""
    if run.incumbent is None:
        run.notes.append(NO_PLACEMENT)
        return Termination.PROVEN, None
    gpus = patterns_of(run.incumbent.placement, types)
    if not ask_patterns(run.model, types, gpus.counts, gpus.gpu_type).feasible.all():
        run.notes.append(UNPLANNED_SLOTS)
        return Termination.COMPLETED, None
    return Termination.PROVEN, objective.bound(objective.weight(run.incumbent.placement), PROOF)


class _Search:
    """Rounds of CP-SAT and the surrogate."""

    def __init__(
        self, run: SolverRun, types: AdapterTypes, *, num_gpus: int, weights: list[int], weight_limit: int
    ) -> None:
        from solvers.cpsat_model import CountModel  # noqa: PLC0415 - loads OR-Tools, for this solver only

        self.run = run
        self.types = types
        self.refusals = Refusals(run.model, types)
        self.cuts: dict[Cut, None] = {}
        self.model: CountModel = CountModel(
            types,
            self.refusals.columns,
            num_gpus=num_gpus,
            weights=weights,
            weight_limit=weight_limit,
            max_counts=[gpu_type.max_count for gpu_type in run.problem.gpu_types],
        )
        self.deterministic_s = _deterministic_limit(run.budget.budget)
        self.num_workers = 1
        self._is_begun = False

    def hint_incumbent(self) -> None:
        """Suggest the best placement so far, but for its last GPUs."""
        if self.run.incumbent is not None:
            gpus = self.run.incumbent.placement.gpus
            counts = np.array([self.types.pattern_of(gpu.adapters) for gpu in gpus])
            self.model.hint(counts, np.array([gpu.gpu_type for gpu in gpus]))

    def until_accepted(self) -> Placement | Termination:
        """Return a placement that the surrogate accepts, PROVEN when there is none, or why there was no time."""
        from solvers.cpsat_model import Outcome  # noqa: PLC0415 - loads OR-Tools, for this solver only

        if not self._is_begun:
            self._is_begun = True
            self._add(list(self.refusals.first_cuts()))
        while True:
            if (ended := self.run.exhausted()) is not None:
                return ended
            self.run.num_iterations += 1
            answer = self.model.solve(self._effort())
            if self.deterministic_s is not None:
                self.deterministic_s = max(0.0, self.deterministic_s - answer.deterministic_s)
            if answer.outcome is Outcome.REFUTED:
                return Termination.PROVEN
            if answer.counts is None or answer.gpu_types is None:
                return stopped_early(self.run, "CP-SAT")
            choices = ask_patterns(self.run.model, self.types, answer.counts, answer.gpu_types)
            if choices.feasible.all():
                return _placement(self.types, answer.counts, answer.gpu_types, choices)
            refused = np.flatnonzero(~choices.feasible)
            self._add(self.refusals.cuts(answer.counts[refused], answer.gpu_types[refused]))
            self.model.hint(answer.counts, answer.gpu_types)

    def _add(self, cuts: list[Cut]) -> None:
        for cut in cuts:
            if cut not in self.cuts:
                self.cuts[cut] = None
                self.model.add(cut)

    def _effort(self) -> Effort:
        from solvers.cpsat_model import Effort  # noqa: PLC0415 - loads OR-Tools, for this solver only

        return Effort(self.deterministic_s, self.run.budget.remaining_s, self.num_workers)


def _deterministic_limit(budget: Budget) -> float | None:
    """Return how much work CP-SAT may do in its own deterministic seconds; ``None``: only the clock limits it."""
    if budget.max_evaluations is not None:
        return budget.max_evaluations * DETERMINISTIC_S_PER_EVALUATION
    return DEFAULT_DETERMINISTIC_S if budget.seconds is None else None


def _placement(
    types: AdapterTypes, counts: NDArray[np.int64], gpu_types: NDArray[np.int64], choices: Choices
) -> Placement:
    return placement_of_patterns(
        types, counts, gpu_types=gpu_types, max_loras=choices.max_loras, max_lora_ranks=choices.max_lora_rank
    )
