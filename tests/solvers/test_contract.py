"""What every solver of the registry must keep; a deviation is declared in its capabilities."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from predictors.exact import ExactSurrogate
from predictors.features import FeatureSchema
from predictors.surrogate import SurrogateOutput
from solvers.budget import Budget
from solvers.interface import Capability
from solvers.objective import evaluate, objective_value
from solvers.placement import GpuAssignment, Placement, validate_placement
from solvers.problem import Limits, Problem
from solvers.registry import get_solver, solver_names
from solvers.replication import ReplicasRule, Replication
from solvers.result import COST_TOLERANCE, Incumbent, Solution, SolveResult, Termination
from solvers.shares import divided_problem, equal_shares
from tests.solvers.analytic import AnalyticSurrogate
from tests.solvers.constrained_problems import broken_rules, constrained_optimum, constrained_problem
from tests.solvers.oracle import least_objective
from tests.solvers.problems import GPU, make_adapter, make_problem, random_problem, with_objective
from twin.errors import SolverError

# Counting covered lines takes long in thousands of searches, and each solver's own tests run the same lines.
pytestmark = [pytest.mark.no_cover, pytest.mark.parametrize("name", solver_names())]

# Small enough for brute force, and around one to three GPUs.
SMALL = [(seed, 8, load) for seed in range(6) for load in (0.6, 1.2, 1.9)]
# Many light adapters: the published greedy has answers here.
LARGE = [(seed, 120, 2.5) for seed in range(2)]
UNLIMITED = Budget()
# Solvers that may find nothing where others have an answer, and why; what they do find is held to the same rules.
MAY_FIND_NOTHING = {
    "max_backbone": "it fills GPUs by a published number and has no second try when the surrogate refuses that",
    "max_backbone_half": "it fills GPUs by a published number and has no second try when the surrogate refuses that",
}


class InterruptedSurrogate:
    """A surrogate during whose n-th call the user presses Ctrl-C."""

    def __init__(self, inner: AnalyticSurrogate, *, call: int) -> None:
        self.inner = inner
        self.calls_left = call

    @property
    def schema(self) -> FeatureSchema:
        """Columns that `predict` takes."""
        return self.inner.schema

    def predict(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Predict, or be interrupted."""
        self.calls_left -= 1
        if self.calls_left == 0:
            raise KeyboardInterrupt
        return self.inner.predict(features)


def solve(name: str, problem: Problem, *, budget: Budget = UNLIMITED) -> SolveResult:
    """Solve with the analytic surrogate."""
    return get_solver(name).solve(problem, AnalyticSurrogate(), budget=budget)


@cache
def solved(name: str, seed: int, num_adapters: int, load: float) -> tuple[Problem, SolveResult]:
    """Return a random problem and the answer to it without a limit; several tests look at the same answers."""
    problem = random_problem(seed, num_adapters, load_gpus=load)
    return problem, solve(name, problem)


def is_declared_none(name: str, result: SolveResult) -> bool:
    """Return whether there is no answer, a reason is given for that, and the solver is one of those that may do so."""
    return result.placement is None and bool(result.message) and name in MAY_FIND_NOTHING


def one_gpu_each(problem: Problem) -> Placement:
    """Return the placement that gives every adapter its own GPU."""
    return Placement(
        tuple(
            GpuAssignment(gpu_type=0, adapters=(index,), max_loras=1, max_lora_rank=adapter.rank)
            for index, adapter in enumerate(problem.adapters)
        )
    )


@pytest.mark.parametrize(("seed", "num_adapters", "load"), SMALL + LARGE)
def test_an_answer_is_a_valid_feasible_placement_or_an_honest_none(
    name: str, seed: int, num_adapters: int, load: float
) -> None:
    """What is returned can be started and keeps the limits; what is not returned is explained."""
    problem, result = solved(name, seed, num_adapters, load)
    if result.placement is None:
        assert result.solution is Solution.NONE
        assert result.message
    else:
        validate_placement(problem, result.placement)
        assert evaluate(problem, result.placement, AnalyticSurrogate()).is_feasible


@pytest.mark.parametrize(("seed", "num_adapters", "load"), SMALL + LARGE)
def test_the_reported_evaluation_is_the_recomputed_one(name: str, seed: int, num_adapters: int, load: float) -> None:
    """Solvers do not grade themselves: there is one evaluator, and it repeats to the bit."""
    problem, result = solved(name, seed, num_adapters, load)
    if result.placement is not None:
        assert result.evaluation == evaluate(problem, result.placement, AnalyticSurrogate())


@pytest.mark.parametrize(("seed", "num_adapters", "load"), SMALL)
def test_no_answer_beats_brute_force(name: str, seed: int, num_adapters: int, load: float) -> None:
    """An answer below the optimum means that something infeasible was accepted; "optimal" means the optimum."""
    problem, result = solved(name, seed, num_adapters, load)
    optimum = least_objective(problem, AnalyticSurrogate())
    if result.evaluation is not None:
        assert optimum is None or objective_value(problem, result.evaluation)[0] >= optimum
    if result.solution is Solution.OPTIMAL:
        assert result.evaluation is not None
        assert objective_value(problem, result.evaluation)[0] == optimum
    if result.bound is not None and result.bound.model == "surrogate" and optimum is not None:
        assert result.bound.value <= optimum


@pytest.mark.parametrize(("seed", "num_adapters", "load"), SMALL[:6] + LARGE)
def test_the_same_question_gets_the_same_answer(name: str, seed: int, num_adapters: int, load: float) -> None:
    """Same seed and budget, same answer and same amount of work; only the wall time may differ."""
    problem = random_problem(seed, num_adapters, load_gpus=load)
    first, second = (
        get_solver(name).solve(problem, AnalyticSurrogate(), budget=Budget(max_evaluations=2000), seed=3)
        for _ in range(2)
    )
    assert without_time(first) == without_time(second)


def without_time(result: SolveResult) -> SolveResult:
    """Return the comparable part of a result."""
    return replace(result, statistics=replace(result.statistics, runtime_s=0.0))


def test_optimal_is_never_said_without_a_proof(name: str) -> None:
    """A heuristic never says optimal; who says it shows the bound that equals the answer."""
    for seed, num_adapters, load in SMALL:
        _, result = solved(name, seed, num_adapters, load)
        if result.solution is Solution.OPTIMAL:
            assert Capability.BOUND in get_solver(name).capabilities
            assert result.bound is not None
            assert result.evaluation is not None
            assert result.bound.value == result.evaluation.num_gpus


@pytest.mark.parametrize("max_evaluations", [0, 50, 400])
def test_the_evaluation_budget_ends_the_search(name: str, max_evaluations: int) -> None:
    """The deterministic limit holds but for the batch that crosses it, and the termination says so."""
    problem, full = solved(name, 5, 120, 2.5)
    result = solve(name, problem, budget=Budget(max_evaluations=max_evaluations))
    if full.statistics.num_evaluations > max_evaluations:
        assert result.termination is Termination.ITERATION_LIMIT
    # One batch: at most every adapter alone, or a batch of GPUs, with all their slot options.
    assert result.statistics.num_evaluations <= max_evaluations + 1000
    assert result.statistics.num_evaluations <= full.statistics.num_evaluations


def test_rows_and_calls_are_counted(name: str) -> None:
    """Questions go in batches, and both numbers are reported; the evaluator's own questions come on top."""
    surrogate = AnalyticSurrogate()
    result = get_solver(name).solve(random_problem(5, 120, load_gpus=2.5), surrogate, budget=UNLIMITED)
    statistics = result.statistics
    assert 0 < statistics.num_calls <= surrogate.num_calls
    assert statistics.num_calls < statistics.num_evaluations


def test_no_time_means_no_answer_and_says_so(name: str) -> None:
    """A construction that was cut short is no placement, and is not passed off as one."""
    result = solve(name, random_problem(5, 120, load_gpus=2.5), budget=Budget(seconds=0.0))
    assert (result.solution, result.termination) == (Solution.NONE, Termination.TIME_LIMIT)
    assert "of 120 adapters placed" in result.message


@pytest.mark.parametrize("call", [1, 2, 5, 20])
def test_ctrl_c_is_a_result(name: str, call: int) -> None:
    """Ctrl-C at any call of the surrogate ends the search with the best placement so far, or an honest none."""
    problem = random_problem(5, 120, load_gpus=2.5)
    surrogate = InterruptedSurrogate(AnalyticSurrogate(), call=call)
    result = get_solver(name).solve(problem, surrogate, budget=UNLIMITED)
    if surrogate.calls_left <= 0:
        assert result.termination is Termination.INTERRUPTED
    else:
        assert result.termination in {Termination.COMPLETED, Termination.PROVEN}
    if result.placement is None:
        assert result.message
    else:
        validate_placement(problem, result.placement)


def test_ctrl_c_after_an_incumbent_returns_it(name: str) -> None:
    """What was found before Ctrl-C is not lost."""
    problem = random_problem(5, 120, load_gpus=2.5)
    seen: list[Incumbent] = []

    def press(incumbent: Incumbent) -> None:
        seen.append(incumbent)
        raise KeyboardInterrupt

    result = get_solver(name).solve(problem, AnalyticSurrogate(), budget=UNLIMITED, observer=press)
    if seen:
        assert result.termination is Termination.INTERRUPTED
        assert result.placement == seen[0].placement


def test_incumbents_improve_and_the_last_one_is_the_answer(name: str) -> None:
    """Observers can rely on what they see."""
    problem = random_problem(5, 120, load_gpus=2.5)
    seen: list[Incumbent] = []
    result = get_solver(name).solve(problem, AnalyticSurrogate(), budget=UNLIMITED, observer=seen.append)
    values = [objective_value(problem, incumbent.evaluation) for incumbent in seen]
    assert values == sorted(set(values), reverse=True)
    assert result.placement == (seen[-1].placement if seen else None)


@pytest.mark.parametrize("budget", [UNLIMITED, Budget(max_evaluations=0)])
def test_a_warm_start_is_used_or_declared_unused(name: str, budget: Budget) -> None:
    """With the capability the answer is never worse than the warm start; without it, it is as if there were none."""
    problem = random_problem(5, 60, load_gpus=1.5)
    warm_start = one_gpu_each(problem)
    solver = get_solver(name)
    result = solver.solve(problem, AnalyticSurrogate(), budget=budget, warm_start=warm_start)
    if Capability.WARM_START in solver.capabilities:
        assert result.evaluation is not None
        assert result.evaluation.num_gpus <= 60
    else:
        assert result.placement == solve(name, problem, budget=budget).placement
        assert "warm start was ignored" in result.message


def test_fixed_settings_are_kept(name: str) -> None:
    """Slots and rank that the user fixes are the same on every GPU."""
    problem = replace(random_problem(7, 60, load_gpus=0.8), fixed_max_loras=32, fixed_max_lora_rank=32)
    result = solve(name, problem)
    if is_declared_none(name, result):
        return
    assert result.placement is not None
    assert {(gpu.max_loras, gpu.max_lora_rank) for gpu in result.placement.gpus} == {(32, 32)}


def test_latency_limits_are_kept(name: str) -> None:
    """A limit that binds costs GPUs, never the limit."""
    problem = random_problem(7, 200, load_gpus=1.2)
    limited = replace(problem, limits=Limits(itl_p95_ms=31.0))
    result, free = solve(name, limited), solve(name, problem)
    if is_declared_none(name, result):
        return
    assert result.evaluation is not None
    assert free.evaluation is not None
    assert max(gpu.itl_s for gpu in result.evaluation.gpus) <= 0.031
    assert result.evaluation.num_gpus > free.evaluation.num_gpus


def test_no_more_gpus_are_used_than_there_are(name: str) -> None:
    """`max_count` is kept; when the GPUs are used up there is no answer, and it says so."""
    problem = random_problem(5, 120, load_gpus=2.5)
    scarce = with_objective(problem, "fewest_gpus", (GPU.model_copy(update={"max_count": 1}),))
    result = solve(name, scarce)
    assert (result.solution, result.placement) == (Solution.NONE, None)
    assert "GPU" in result.message


def test_costs_are_never_below_brute_force(name: str) -> None:
    """With two GPU types and costs the objective is the cost."""
    types = (GPU, GPU.model_copy(update={"name": "other", "cost_per_hour": 2.0}))
    for seed, num_adapters, load in SMALL[:6]:
        problem = with_objective(random_problem(seed, num_adapters, load_gpus=load), "least_cost", types)
        result = solve(name, problem)
        optimum = least_objective(problem, AnalyticSurrogate())
        if result.evaluation is not None and optimum is not None:
            assert result.evaluation.cost_per_hour >= optimum
            assert result.bound is None or (result.bound.cost_per_hour or 0.0) <= optimum + COST_TOLERANCE


def test_constraints_are_kept_or_refused(name: str) -> None:
    """With the capability the answer keeps every rule and is no better than the constrained optimum."""
    solver = get_solver(name)
    for seed in range(3):
        problem = constrained_problem(seed, 5)
        if Capability.CONSTRAINTS not in solver.capabilities:
            with pytest.raises(SolverError, match="needs a solver that keeps them"):
                solver.solve(problem, AnalyticSurrogate(), budget=UNLIMITED)
            continue
        result = solver.solve(problem, AnalyticSurrogate(), budget=Budget(max_evaluations=1000))
        optimum = constrained_optimum(problem, AnalyticSurrogate())
        assert result.placement is not None
        assert result.evaluation is not None
        assert optimum is not None
        assert broken_rules(problem, result.placement) == []
        assert objective_value(problem, result.evaluation) >= optimum


def test_replicas_are_kept_apart_or_refused(name: str) -> None:
    """Who keeps constraints places each share on a GPU of its own; nobody puts all of the adapter on one."""
    solver = get_solver(name)
    rules = Replication(given=(ReplicasRule(adapters=("hot",), replicas=2),))
    adapters = [make_adapter("hot", rate_rps=20.0), make_adapter("a1", rate_rps=3.0), make_adapter("a2", rate_rps=1.0)]
    problem = divided_problem(replace(make_problem(adapters), replication=rules), equal_shares([2, 1, 1]))
    if Capability.CONSTRAINTS not in solver.capabilities:
        with pytest.raises(SolverError, match="`replication` needs a solver that keeps them"):
            solver.solve(problem, AnalyticSurrogate(), budget=UNLIMITED)
        return
    result = solver.solve(problem, AnalyticSurrogate(), budget=Budget(max_evaluations=1000))
    assert result.placement is not None
    assert result.evaluation is not None
    assert result.evaluation == evaluate(problem, result.placement, AnalyticSurrogate())
    assert result.evaluation.num_gpus == 2
    assert all(len({0, 1} & set(gpu.adapters)) == 1 for gpu in result.placement.gpus)


def test_the_twin_as_surrogate(name: str) -> None:
    """The exact surrogate, which looks at the members, goes through the same code."""
    problem = make_problem([make_adapter(f"a{index}", rate_rps=1.5) for index in range(4)])
    exact = ExactSurrogate(
        problem.workload, problem.model, GPU, problem.engine, problem.profiles[0], horizon_s=60.0, warmup_s=20.0
    )
    result = get_solver(name).solve(problem, exact, budget=UNLIMITED)
    if is_declared_none(name, result):
        return
    assert result.evaluation is not None
    assert result.evaluation.num_gpus == least_objective(problem, exact)
