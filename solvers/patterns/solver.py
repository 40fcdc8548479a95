"""The solver `patterns`: best fit first, then column generation over patterns, then dives for whole GPUs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from predictors.surrogate import Surrogate
from solvers.adapter_types import RATE_LEVELS, SHAPE_LEVELS, AdapterTypes, cluster_types, exact_types
from solvers.alone import feasible_alone
from solvers.bounds import work_bound
from solvers.budget import Budget
from solvers.constrained_solve import constrained
from solvers.interface import Capability, Observer
from solvers.objective import objective_value
from solvers.open_fleet import OpenFleet
from solvers.packing import Packing
from solvers.patterns.dive import Patterns, dive
from solvers.patterns.farley import certificates_of, farley_bound
from solvers.patterns.generation import INTEGER_TOLERANCE, Demand, Generated, generate, whole
from solvers.patterns.linear_prices import linear_prices
from solvers.patterns.master import Column, Master
from solvers.patterns.pricing import Pricer
from solvers.patterns.questions import BudgetSpentError, PatternModel
from solvers.patterns.relaxation import MOST_COLUMNS
from solvers.patterns.repair import accepted_part
from solvers.placement import Placement, validate_placement
from solvers.problem import Problem
from solvers.result import Solution, SolveResult, Termination
from solvers.run import SolverRun
from twin.errors import SolverError

# Types up to which adapters are not clustered, and which clusters are not made coarser.
MOST_TYPES = 150
# Dives, the first without randomness, while they may still gain a GPU.
NUM_DIVES = 4
# How hard pricing tries at the root before generation is called complete.
NUM_SHAKES = 3
# How close to the best values so far it looks for patterns.
SMOOTHING = 0.6
# Boxes for a certified bound: at most, and of a small problem, of which whole counts make the gap that is left.
MOST_BOXES = 12_000
BOXES_PER_ADAPTER = 25
# Boxes times exact types: a box takes time in proportion to them.
MOST_BOX_TYPES = 4_000_000
# Values of a generation that was cut short prove enough when they may prove this many times what is needed.
PROOF_SLACK = 1.01
# Of the time that is left when the dives are done, that a bound may take.
PROOF_SHARE = 0.5
# Values that are linear in the aggregates prove more as soon as they are worth this share of what the best ones are.
LINEAR_SHARE = 0.98
# A cost that is lower by less than this share is not lower.
COST_TOLERANCE = 1e-9


class PatternsSolver:
    """Column generation over patterns of adapter types, seeded by best fit, with dives for whole GPUs.

    The answer is never worse than that of ``bfd`` with the same budget, which runs first.

    Parameters
    ----------
    num_dives
        At most; each makes one fleet from the mixture of patterns.
    builds_first
        Whether best fit builds a fleet also where there is a feasible warm start. Without it the answer is only never
        worse than the warm start.
    most_boxes
        Boxes to look at for a certified bound, fewer for few adapters, where there are certificates
        (`solvers.patterns.box_bounds`).
    rate_levels
        Of clusters, at most, where types are too many. More take longer, and values of finer types prove more.
    """

    name = "patterns"
    capabilities = frozenset(
        {
            Capability.ANYTIME,
            Capability.WARM_START,
            Capability.MIXED_GPU_TYPES,
            Capability.RANDOMISED,
            Capability.BOUND,
            Capability.CONSTRAINTS,
        }
    )

    def __init__(
        self,
        *,
        num_dives: int = NUM_DIVES,
        builds_first: bool = True,
        most_boxes: int = MOST_BOXES,
        rate_levels: int = RATE_LEVELS,
    ) -> None:
        self._num_dives = num_dives
        self._rate_levels = rate_levels
        self._builds_first = builds_first
        self._most_boxes = most_boxes

    @constrained
    def solve(
        self,
        problem: Problem,
        surrogate: Surrogate,
        *,
        budget: Budget,
        seed: int = 0,
        warm_start: Placement | None = None,
        observer: Observer | None = None,
    ) -> SolveResult:
        """Look for a placement; see `solvers.interface.Solver`.

        Raises
        ------
        InputError
            When some adapter fits no GPU alone, or the warm start is not a placement of this problem.
        """
        run = SolverRun(problem, surrogate, budget, observer)
        search = _Search(run, np.random.default_rng(seed), self._rate_levels)
        try:
            termination = search.search(
                warm_start,
                num_dives=self._num_dives,
                builds_first=self._builds_first,
                most_boxes=self._most_boxes,
            )
        except BudgetSpentError as spent:
            termination = spent.termination
        except KeyboardInterrupt:
            termination = Termination.INTERRUPTED
        except SolverError as error:
            run.notes.append(f"Generation ended early. {error.message}")
            termination = Termination.ERROR
        result = run.result(termination, search.bound)
        if result.solution is Solution.OPTIMAL and search.bound.model == "twin":
            # The placement is one of the surrogate's problem: what bounds the twin's does not make it optimal.
            return replace(result, solution=Solution.FEASIBLE)
        return result


@dataclass(frozen=True)
class _Generation:
    """What the dives of one search share."""

    types: AdapterTypes
    model: PatternModel
    master: Master
    pricers: list[Pricer]
    demand: Demand


class _Search:
    """One search; what it finds is recorded in its run."""

    def __init__(self, run: SolverRun, generator: np.random.Generator, rate_levels: int) -> None:
        self.run = run
        self.rate_levels = rate_levels
        self.problem = run.problem
        self.generator = generator
        self.packing = Packing(run, is_best_fit=True)
        self.bound = work_bound(self.problem)

    def search(
        self, warm_start: Placement | None, *, num_dives: int, builds_first: bool, most_boxes: int
    ) -> Termination:
        """Pack by best fit, generate columns, prove a bound, dive; return why the search ended.

        Raises
        ------
        BudgetSpentError
            When the budget ends while patterns are asked about.
        """
        ended = self._start(warm_start, builds_first=builds_first)
        if ended is not Termination.COMPLETED:
            return ended
        if self.run.model.uses_members:
            self.run.notes.append("No patterns were made: this surrogate tells sets apart by their members.")
            return self.run.exhausted() or Termination.COMPLETED
        generation = self._generation(warm_start)
        generated = self._generate(generation)
        try:
            self._dive(generation, generated, num_dives)
        except BudgetSpentError:
            # Certificates that ask nothing may be had without rows, too.
            self._prove(generation, generated, most_boxes)
            raise
        self._prove(generation, generated, most_boxes)
        if self._is_proven():
            return Termination.PROVEN
        return self.run.exhausted() or Termination.COMPLETED

    def _dive(self, generation: _Generation, generated: Generated, num_dives: int) -> None:
        """Build fleets from the mixture of patterns while they may be better than the incumbent."""
        for index in range(num_dives):
            if not self._may_gain(generated):
                break
            generator = self.generator if index else None
            for patterns in dive(generation.master, generation.pricers, generation.demand, generator):
                self._build(generation.types, patterns, generated)
                if not self._may_gain(generated):
                    break

    def _start(self, warm_start: Placement | None, *, builds_first: bool) -> Termination:
        """Record a first placement; return COMPLETED, or why the search ended."""
        if warm_start is None or builds_first:
            return self.packing.search(warm_start)
        validate_placement(self.problem, warm_start)
        if not self.run.record(warm_start):
            return self.packing.search(warm_start)
        self.packing.best_fit.fits_alone = feasible_alone(self.run.model)
        return self.run.exhausted() or Termination.COMPLETED

    def _prove(self, generation: _Generation, generated: Generated, most_boxes: int) -> None:
        """Replace the work bound, which is the twin's, by Farley's of the surrogate, where there are certificates."""
        if certificates_of(self.run.model) is None:
            return
        generated = self._completed(generation, generated)
        value, goal = generated.solution.value, self._goal(generated)
        if goal <= 0.0:
            return
        prices = generated.prices
        worth, linear = linear_prices(generation.master.columns, generation.master.costs, generation.types)
        if worth >= LINEAR_SHARE * value:
            prices = linear
        bound = farley_bound(
            generation.model,
            prices,
            costs=self._costs(),
            goal=goal,
            most_boxes=min(most_boxes, self._affordable_boxes()),
            time_share=PROOF_SHARE,
            is_least_cost=self._is_least_cost(),
        )
        # Both hold; a larger one says more, of whichever model. Only this one is about costs.
        if bound is not None and (self._is_least_cost() or bound.value >= self.bound.value):
            self.bound = bound

    def _goal(self, generated: Generated) -> float:
        """Return what the dual values can prove at most, rounded up."""
        value = generated.solution.value
        return value if self._is_least_cost() else (whole(value) - 1.0) * (1.0 + INTEGER_TOLERANCE)

    def _completed(self, generation: _Generation, generated: Generated) -> Generated:
        """Return what generation ends with if it goes on where it was cut short: values that prove most.

        A fleet is looked for until none can be better; that none is may take the best values there are.
        """
        if not generated.is_cut_short or generated.estimate > PROOF_SLACK * self._goal(generated):
            return generated
        smoothing = self._smoothing(generation)
        try:
            return generate(generation.master, generation.pricers, generation.demand, smoothing=smoothing)
        except BudgetSpentError:
            return generated

    def _affordable_boxes(self) -> int:
        """Return how many boxes are worth their while: few for few adapters, and few where each takes long."""
        num_types = min(exact_types(self.problem).num_types, MOST_COLUMNS)
        return min(BOXES_PER_ADAPTER * len(self.problem.adapters), MOST_BOX_TYPES // num_types)

    def _is_proven(self) -> bool:
        incumbent = self.run.incumbent
        if incumbent is None or self.bound.model == "twin":
            return False
        return self.bound.proves(incumbent.evaluation, self.problem.objective)

    def _generation(self, warm_start: Placement | None) -> _Generation:
        """Return types, a master with the patterns of the known placements, and pricers."""
        problem = self.problem
        types = _types(problem, self.rate_levels)
        limits = np.array([np.inf if kind.max_count is None else float(kind.max_count) for kind in problem.gpu_types])
        master = Master(self._costs(), limits, types.num_types)
        model = PatternModel(self.run, types)
        for gpu_type, fits in enumerate(self.packing.best_fit.fits_alone):
            for index, members in enumerate(types.members):
                if fits[members[0]]:
                    master.add(Column(np.eye(types.num_types, dtype=np.int64)[index], gpu_type))
        for placement in (warm_start, self.run.incumbent.placement if self.run.incumbent else None):
            for gpu in placement.gpus if placement else ():
                master.add(Column(types.pattern_of(gpu.adapters), gpu.gpu_type))
        seeds = self.generator.spawn(len(problem.gpu_types))
        pricers = [Pricer(model, gpu_type, seed) for gpu_type, seed in enumerate(seeds)]
        return _Generation(types, model, master, pricers, Demand(types.counts, limits))

    def _generate(self, generation: _Generation) -> Generated:
        master, demand = generation.master, generation.demand
        solution = master.solve(demand.adapters, demand.gpus)
        num_gpus = float(solution.amounts.sum())
        if num_gpus > 0.0:
            for pricer in generation.pricers:
                pricer.learn_mixture(demand.adapters / num_gpus)
        target, smoothing = self._less_than_incumbent(), self._smoothing(generation)
        return generate(master, generation.pricers, demand, num_shakes=NUM_SHAKES, target=target, smoothing=smoothing)

    def _smoothing(self, generation: _Generation) -> float:
        """Return how close to the best values patterns are looked for; several GPU types have no center for that."""
        return SMOOTHING if len(generation.pricers) == 1 else 0.0

    def _less_than_incumbent(self) -> float:
        """Return what the master must not exceed to be of use: 0 without an incumbent."""
        value = self._incumbent_value()
        if not np.isfinite(value):
            return 0.0
        return value * (1.0 - COST_TOLERANCE) if self._is_least_cost() else value - 1.0

    def _may_gain(self, generated: Generated) -> bool:
        """Return whether a fleet like the mixture of patterns would be better than the incumbent."""
        value = generated.solution.value
        least = value * (1.0 + COST_TOLERANCE) if self._is_least_cost() else whole(value)
        return least < self._incumbent_value()

    def _build(self, types: AdapterTypes, patterns: Patterns, generated: Generated) -> None:
        """Make a fleet of patterns: place what they leave by best fit, record it, and try to empty GPUs."""
        part, left = accepted_part(self.run, types, patterns)
        fleet = OpenFleet(self.run.model, self.packing.work)
        fleet.load_placement(part)
        costs = self._costs()
        preferred = int(np.argmin(costs))
        order = left[np.lexsort((-self.packing.work[preferred, left], -self.problem.ranks[left]))]
        by_cost = [int(index) for index in np.argsort(costs, kind="stable")]
        if self.packing.best_fit.insert(fleet, order, types=by_cost) < len(order):
            if (ended := self.run.exhausted()) is not None:
                raise BudgetSpentError(ended)
            return
        self.run.record(fleet.placement())
        if self._may_gain(generated) and not patterns.left.any():
            self.packing.improve(fleet)

    def _costs(self) -> NDArray[np.float64]:
        """Return what a GPU of each type counts in the objective, float64 [G], > 0."""
        if not self._is_least_cost():
            return np.ones(len(self.problem.gpu_types))
        costs = np.array([kind.cost_per_hour for kind in self.problem.gpu_types])
        # A free GPU still costs a little, so that there are not more of them than needed.
        return np.asarray(np.maximum(costs, max(float(costs.max()), 1.0) * 1e-6), dtype=np.float64)

    def _is_least_cost(self) -> bool:
        return self.problem.objective == "least_cost"

    def _incumbent_value(self) -> float:
        incumbent = self.run.incumbent
        return np.inf if incumbent is None else objective_value(self.problem, incumbent.evaluation)[0]


def _types(problem: Problem, levels: int) -> AdapterTypes:
    """Return the exact types, or, where they are too many, clusters as fine as possible."""
    types = exact_types(problem)
    shape_levels = SHAPE_LEVELS
    while types.num_types > MOST_TYPES and levels > 1:
        types = cluster_types(problem, levels=levels, shape_levels=shape_levels)
        if shape_levels > 1:
            shape_levels -= 1
        else:
            levels = max(1, levels // 2)
    return types
