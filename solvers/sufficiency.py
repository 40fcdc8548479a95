"""Whether a number of GPUs is enough: what can be proven, in order of cost, and otherwise what a search finds.

First the twin's own arithmetic: adapters that fit no GPU's memory, and the work bound. Then the surrogate's problem:
adapters that it refuses alone, best fit, patterns with their certified bound, enumeration, CP-SAT, local search. The
first step that knows the answer is the last. A step that cannot run, or proves nothing, says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Literal

import numpy as np

from predictors.aggregate_oracle import AggregateOracle
from predictors.surrogate import Surrogate
from solvers.alone import fits_alone
from solvers.bounds import work_bound
from solvers.budget import Budget, RunningBudget
from solvers.cpsat import refute
from solvers.exhaustive import MAX_SETS, ExhaustiveSolver
from solvers.feasibility import FeasibilityModel
from solvers.feasible_patterns import interchangeable_types, num_sets
from solvers.interface import Solver
from solvers.local_search.solver import LocalSearchSolver
from solvers.objective import Evaluation
from solvers.packing import PackingSolver
from solvers.placement import Placement
from solvers.problem import Problem
from solvers.registry import solver_entries
from solvers.result import Bound, Incumbent, Solution, SolveResult, Termination
from twin.errors import InputError, SolverError

# Shares of what is left of the budget when a step begins.
PATTERNS_SHARE = 0.4
ENUMERATION_SHARE = 0.5
REFUTATION_SHARE = 0.6

Step = Literal["memory", "work", "alone", "best fit", "patterns", "enumeration", "cp-sat", "local search"]


class Answer(Enum):
    """Whether the GPUs are enough."""

    IMPOSSIBLE = "impossible"
    """Proven, in the model of the proof: no placement on so many GPUs exists."""
    POSSIBLE = "possible"
    """There is a placement that the surrogate accepts."""
    OPEN = "open"
    """Neither was found."""


@dataclass(frozen=True)
class Proof:
    """Why so many GPUs cannot be enough.

    Attributes
    ----------
    kind
        ``memory``, ``work``, ``alone``, or the proof of the bound: ``farley``, ``enumeration``, ``cp-sat``.
    model
        Whose problem it is about.
    lower_bound
        GPUs that are needed at least; ``None``: no number of those that may be used is enough.
    relies_on_monotonicity
        The proof is only as good as the surrogate's declaration that more load never helps.
    """

    kind: str
    model: Literal["surrogate", "twin"]
    lower_bound: int | None
    relies_on_monotonicity: bool = False


@dataclass(frozen=True)
class Attempt:
    """A step, and what it said in words; `extra` brings what it lacked."""

    step: Step
    outcome: str
    extra: str | None = None


@dataclass
class Findings:
    """What is known so far; steps add to it.

    Attributes
    ----------
    bound
        The largest bound; of the surrogate's problem if one is at least as large as the twin's.
    unplaceable
        Adapters that no GPU holds alone.
    placement, evaluation
        The best that was found, on any number of GPUs.
    """

    num_gpus: int
    answer: Answer = Answer.OPEN
    proof: Proof | None = None
    bound: Bound | None = None
    unplaceable: tuple[int, ...] = ()
    placement: Placement | None = None
    evaluation: Evaluation | None = None
    attempts: list[Attempt] = field(default_factory=list)
    num_evaluations: int = 0
    is_interrupted: bool = False


def is_enough(
    problem: Problem,
    surrogate: Surrogate,
    num_gpus: int,
    *,
    budget: RunningBudget,
    seed: int = 0,
    announce: Callable[[str], None] = lambda _: None,
    observer: Callable[[Incumbent], None] = lambda _: None,
) -> Findings:
    """Say whether `num_gpus` GPUs are enough, whatever they cost.

    Parameters
    ----------
    problem, surrogate
        What is placed, on as many GPUs of each type as there are; and who is asked.
    num_gpus
        At least 1.
    budget
        When to give up.
    seed
        Of the searches.
    announce, observer
        Told what is done next, and about each better placement.

    Returns
    -------
    Also on Ctrl-C, with what is known by then and `is_interrupted`.
    """
    counted = replace(problem, objective="fewest_gpus")
    ladder = _Ladder(counted, surrogate, Findings(num_gpus), budget, seed=seed, announce=announce, observer=observer)
    try:
        ladder.climb()
    except KeyboardInterrupt:
        ladder.findings.is_interrupted = True
    return ladder.findings


class _EnoughError(Exception):
    """A search has found what was asked for."""


class _Ladder:
    """The steps."""

    def __init__(
        self,
        problem: Problem,
        surrogate: Surrogate,
        findings: Findings,
        budget: RunningBudget,
        *,
        seed: int,
        announce: Callable[[str], None],
        observer: Callable[[Incumbent], None],
    ) -> None:
        self.problem = problem
        self.surrogate = surrogate
        self.findings = findings
        self.budget = budget
        self.seed = seed
        self.announce = announce
        self.observer = observer
        self.model = FeasibilityModel(problem, surrogate)

    def climb(self) -> None:
        """Take the steps until one knows the answer."""
        steps: tuple[tuple[Step, Callable[[], None]], ...] = (
            ("memory", self._memory),
            ("work", self._work),
            ("alone", self._alone),
            ("best fit", self._best_fit),
            ("patterns", self._patterns),
            ("enumeration", self._enumeration),
            ("cp-sat", self._refutation),
            ("local search", self._local_search),
        )
        for name, step in steps:
            if self.findings.answer is not Answer.OPEN or (self.findings.unplaceable and name != "alone"):
                return
            if name not in {"memory", "work"} and self.budget.exhausted(self.findings.num_evaluations) is not None:
                self._note(name, "not begun: the budget was spent")
                continue
            self.announce(name)
            step()

    def _memory(self) -> None:
        """Look for adapters with which no GPU starts."""
        if isinstance(self.surrogate, AggregateOracle):
            return
        types = range(len(self.problem.gpu_types))
        limits = {
            int(rank): max(self.model.slots.limit(gpu_type, int(rank)) for gpu_type in types)
            for rank in np.unique(self.problem.ranks)
        }
        without = [index for index, rank in enumerate(self.problem.ranks) if not limits[int(rank)]]
        if without:
            self.findings.unplaceable = tuple(without)
            self._prove(Proof("memory", "twin", None))
            self._note("memory", f"no GPU starts with {_adapters(len(without))}")
            return
        self._note("memory", "each adapter fits some GPU")

    def _work(self) -> None:
        """Ask the work bound, which is about the twin."""
        if isinstance(self.surrogate, AggregateOracle):
            self._note("work", "not asked: the surrogate is none of the twin")
            return
        bound = work_bound(self.problem)
        self._learn(bound)
        self._note("work", f"at least {_gpus(bound.value)}")

    def _alone(self) -> None:
        """Look for adapters that the surrogate refuses on a GPU of their own."""
        model = self.model
        fits = fits_alone(model, range(len(self.problem.adapters)))
        self.findings.num_evaluations += model.num_evaluations
        without = np.flatnonzero(~fits.any(axis=0))
        if not len(without):
            self._note("alone", "each adapter is accepted on a GPU of its own")
            return
        self.findings.unplaceable = tuple(int(index) for index in without)
        refused = f"{_adapters(len(without))} refused on a GPU of its own"
        if model.is_monotone:
            self._prove(Proof("alone", "surrogate", None, relies_on_monotonicity=True))
            self._note("alone", refused)
        else:
            self._note("alone", f"{refused}; the surrogate does not declare that company would not help")

    def _best_fit(self) -> None:
        self._search("best fit", PackingSolver("bfd"), self._left())

    def _patterns(self) -> None:
        """Generate patterns: a certified bound where the surrogate has certificates, a search in any case."""
        entry = next(entry for entry in solver_entries() if entry.name == "patterns")
        if not entry.availability().is_available:
            self._note("patterns", "skipped: needs an extra", entry.extra)
            return
        bound = self._search("patterns", entry.make(), self._left(PATTERNS_SHARE))
        if self.findings.answer is Answer.OPEN:
            certified = bound is not None and bound.model == "surrogate"
            self._note(
                "patterns",
                f"certified: at least {_gpus(bound.value)}"
                if bound is not None and certified
                else "no certified bound: the surrogate has no certificates, or there was no time",
            )

    def _enumeration(self) -> None:
        """Ask about every set, where there are few."""
        sets = num_sets(interchangeable_types(self.model))
        if sets > MAX_SETS:
            self._note("enumeration", f"not for so many: more than {MAX_SETS:,} sets of these adapters")
            return
        bound = self._search("enumeration", ExhaustiveSolver(), self._left(ENUMERATION_SHARE))
        if self.findings.answer is Answer.OPEN and bound is None:
            self._note("enumeration", "not finished")

    def _refutation(self) -> None:
        """Let CP-SAT refute a placement."""
        if not self.model.is_monotone:
            self._note("cp-sat", "not for this surrogate: it does not declare that more load never helps")
            return
        entry = next(entry for entry in solver_entries() if entry.name == "cpsat")
        if not entry.availability().is_available:
            self._note("cp-sat", "skipped: needs an extra", entry.extra)
            return
        budget = self._left(REFUTATION_SHARE)
        try:
            refutation = refute(self.problem, self.surrogate, self.findings.num_gpus, budget=budget)
        except SolverError as error:
            self._note("cp-sat", f"failed: {error.message}")
            return
        # What a refutation asked is not known: all that it was allowed to.
        self.findings.num_evaluations += budget.max_evaluations or 0
        if refutation is None:
            self._note("cp-sat", "nothing refuted within its share of the budget")
            return
        self._learn(refutation.bound, relies_on_monotonicity=refutation.relies_on_monotonicity)
        self._note("cp-sat", f"refuted, with {refutation.num_cuts:,} cuts in {refutation.num_rounds:,} rounds")

    def _local_search(self) -> None:
        if self.findings.placement is None:
            self._note("local search", "not begun: there is no placement on more GPUs to start from")
            return
        self._search("local search", LocalSearchSolver(builds_first=False), self._left())

    def _search(self, step: Step, solver: Solver, budget: Budget) -> Bound | None:
        """Run a solver until it has the GPUs that were asked for; return what it proved."""
        findings = self.findings
        before = findings.num_evaluations

        def observe(incumbent: Incumbent) -> None:
            findings.num_evaluations = before + incumbent.num_evaluations
            if findings.evaluation is None or incumbent.evaluation.num_gpus < findings.evaluation.num_gpus:
                findings.placement, findings.evaluation = incumbent.placement, incumbent.evaluation
                self.observer(incumbent)
            if incumbent.evaluation.num_gpus <= findings.num_gpus:
                raise _EnoughError

        try:
            result = solver.solve(
                self.problem,
                self.surrogate,
                budget=budget,
                seed=self.seed,
                warm_start=findings.placement,
                observer=observe,
            )
        except _EnoughError:
            self._find(step)
            return None
        except (InputError, SolverError) as error:
            self._note(step, f"failed: {error.message}")
            return None
        findings.num_evaluations = before + result.statistics.num_evaluations
        if result.termination is Termination.INTERRUPTED:
            raise KeyboardInterrupt
        self._take_over(step, result)
        return result.bound

    def _take_over(self, step: Step, result: SolveResult) -> None:
        """Keep what a solver returned."""
        if result.solution is Solution.NONE:
            is_proven = result.termination is Termination.PROVEN
            if is_proven:
                self._prove(Proof(step, "surrogate", None))
            self._note(step, "no placement exists" if is_proven else f"no placement. {result.message}".strip())
            return
        assert result.evaluation is not None
        self._note(step, f"found {_gpus(result.evaluation.num_gpus)}")
        if result.bound is not None:
            self._learn(result.bound)

    def _find(self, step: Step) -> None:
        assert self.findings.evaluation is not None
        self.findings.answer = Answer.POSSIBLE
        self._note(step, f"found {_gpus(self.findings.evaluation.num_gpus)}")

    def _learn(self, bound: Bound, *, relies_on_monotonicity: bool = False) -> None:
        """Keep a bound if it is the largest, and the answer if it is one."""
        known = self.findings.bound
        if known is None or bound.value > known.value or (bound.value == known.value and bound.model == "surrogate"):
            self.findings.bound = bound
        if bound.value > self.findings.num_gpus and self.findings.answer is Answer.OPEN:
            # Certificates of a declared monotony rest on it as much as cuts do.
            relies = relies_on_monotonicity or (bound.proof == "farley" and self.model.is_monotone)
            self._prove(Proof(bound.proof, bound.model, bound.value, relies))

    def _prove(self, proof: Proof) -> None:
        self.findings.answer, self.findings.proof = Answer.IMPOSSIBLE, proof

    def _note(self, step: Step, outcome: str, extra: str | None = None) -> None:
        self.findings.attempts.append(Attempt(step, outcome, extra))

    def _left(self, share: float = 1.0) -> Budget:
        return self.budget.remaining(self.findings.num_evaluations).share(share)


def _gpus(count: int) -> str:
    return f"{count:,} GPU" if count == 1 else f"{count:,} GPUs"


def _adapters(count: int) -> str:
    return f"{count:,} adapter" if count == 1 else f"{count:,} adapters"
