"""Small constrained problems, and the rules checked one by one on adapters and GPUs, without the compiled table."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from predictors.surrogate import Surrogate
from solvers.constraints import ApartRule, Constraints, GpuTypeRule, LimitsRule, TogetherRule, matching_adapters
from solvers.feasibility import FeasibilityModel
from solvers.objective import evaluate
from solvers.placement import GpuAssignment, Placement
from solvers.problem import Limits, Problem
from tests.solvers.problems import random_problem, with_objective
from tests.solvers.small_problems import TYPES, at_most_one_gpu, divisions


def constrained_problem(
    seed: int, num_adapters: int, *, load_gpus: float = 1.6, num_types: int = 1, shares_gpus: bool = True
) -> Problem:
    """Return a random problem with rules of several kinds that do not contradict each other."""
    generator = np.random.default_rng(1000 + seed)
    problem = random_problem(seed, num_adapters, load_gpus=load_gpus)
    workload = replace(problem.workload, adapters=tuple(at_most_one_gpu(adapter) for adapter in problem.adapters))
    problem = replace(problem, workload=workload)
    if num_types > 1:
        problem = with_objective(problem, "least_cost" if seed % 4 == 1 else "fewest_gpus", TYPES)
    names = [adapter.name for adapter in problem.adapters]
    # Light ones, so that groups fit a GPU.
    by_load = sorted(range(num_adapters), key=lambda index: problem.adapters[index].offered_tps)
    light = [names[index] for index in by_load]
    together = (TogetherRule(adapters=tuple(light[:2])), TogetherRule(adapters=(light[1],))) if shares_gpus else ()
    apart = (
        ApartRule(adapters=tuple(generator.permutation(light[2:])[:3])),
        ApartRule(adapters=(light[0], *light[3:]), at_most=2),
    )
    pinned = [GpuTypeRule(adapters=(light[-1], light[0]), types=(TYPES[int(generator.integers(2))].name,))]
    limits = LimitsRule(
        adapters=(light[2],), itl_p95_ms=float(generator.uniform(30.0, 36.0)), starvation_tolerance=0.05
    )
    constraints = Constraints(
        gpu_type=tuple(pinned if num_types > 1 else ()), together=together, apart=apart, limits=(limits,)
    )
    return replace(problem, constraints=constraints)


def broken_rules(problem: Problem, placement: Placement) -> list[str]:
    """Return which rules a placement breaks, rule by rule, as a reader of the problem file would check them."""
    constraints, names = problem.constraints, [adapter.name for adapter in problem.adapters]
    sets = [set(gpu.adapters) for gpu in placement.gpus]
    kinds = [problem.gpu_types[gpu.gpu_type].name for gpu in placement.gpus]
    broken = []
    for pinned in constraints.gpu_type:
        mine = set(matching_adapters(pinned.adapters, names))
        broken += [
            f"{pinned}" for served, kind in zip(sets, kinds, strict=True) if served & mine and kind not in pinned.types
        ]
    for together in constraints.together:
        mine = set(matching_adapters(together.adapters, names))
        broken += [f"{together}" for served in sets if served & mine and not mine <= served]
    for apart in constraints.apart:
        mine = set(matching_adapters(apart.adapters, names))
        broken += [f"{apart}" for served in sets if len(served & mine) > apart.at_most]
    return broken


def strictest(problem: Problem, adapters: Sequence[int]) -> Limits:
    """Return the limits of a GPU that serves `adapters`, rule by rule."""
    names = [adapter.name for adapter in problem.adapters]
    limits = problem.limits.model_dump()
    for rule in problem.constraints.limits:
        if set(matching_adapters(rule.adapters, names)) & set(adapters):
            for field in limits:
                own = getattr(rule, field)
                if own is not None:
                    limits[field] = own if limits[field] is None else min(own, limits[field])
    return Limits(**limits)


def constrained_optimum(problem: Problem, surrogate: Surrogate) -> tuple[float, float] | None:
    """Return the best (objective, tie-break) over all divisions and GPU types that keep the rules, if any does."""
    free = replace(problem, constraints=Constraints())
    models: dict[str, FeasibilityModel] = {}
    known: dict[tuple[int, ...], list[int]] = {}

    def hosts(block: tuple[int, ...]) -> list[int]:
        if block not in known:
            limits = strictest(problem, block)
            model = models.setdefault(repr(limits), FeasibilityModel(replace(free, limits=limits), surrogate))
            rows = free.aggregates[list(block)].sum(axis=0)[None]
            ranks = free.ranks[list(block)].max()[None]
            types = range(len(problem.gpu_types))
            known[block] = [index for index in types if model.best_choice(rows, ranks, index, [block]).feasible[0]]
        return known[block]

    best: tuple[float, float] | None = None
    for division in divisions(tuple(range(len(problem.adapters)))):
        for chosen in product(*(hosts(block) for block in division)):
            gpus = tuple(GpuAssignment(kind, block, 1, 32) for kind, block in zip(chosen, division, strict=True))
            if broken_rules(problem, Placement(gpus)):
                continue
            cost = sum(problem.gpu_types[index].cost_per_hour for index in chosen)
            value = (cost, float(len(gpus))) if problem.objective == "least_cost" else (float(len(gpus)), cost)
            best = value if best is None else min(best, value)
    return best


def keeps_limits(problem: Problem, placement: Placement, surrogate: Surrogate) -> bool:
    """Return whether each GPU keeps the strictest limits of its adapters, asked with each one's limits for all."""
    for position, gpu in enumerate(placement.gpus):
        alone = replace(problem, constraints=Constraints(), limits=strictest(problem, gpu.adapters))
        if not evaluate(alone, placement, surrogate).gpus[position].violations:
            continue
        return False
    return True
