"""First and best fit: quality, emptying, warm starts, GPU types, and adapters that fit nowhere."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from solvers.alone import feasible_alone, largest_share
from solvers.bounds import adapter_work, unavoidable_costs
from solvers.budget import Budget
from solvers.feasibility import FeasibilityModel
from solvers.objective import evaluate
from solvers.open_fleet import OpenFleet
from solvers.packing import FRESH_ATTEMPTS, Packing, PackingName, PackingSolver
from solvers.placement import GpuAssignment, Placement
from solvers.problem import Limits, ObjectiveName, Problem
from solvers.result import Incumbent, Solution, SolveResult, Termination
from solvers.run import SolverRun
from solvers.surrogate_per_gpu_type import SurrogatePerGpuType
from tests.solvers.analytic import AnalyticSurrogate
from tests.solvers.oracle import least_objective
from tests.solvers.problems import GPU, make_adapter, make_problem, random_problem, with_objective
from twin.errors import InputError

BOTH: list[PackingName] = ["ffd", "bfd"]
OBJECTIVES: list[ObjectiveName] = ["fewest_gpus", "least_cost"]


def pack(problem: Problem, name: PackingName = "bfd", *, warm_start: Placement | None = None) -> SolveResult:
    """Pack without a limit."""
    return PackingSolver(name).solve(problem, AnalyticSurrogate(), budget=Budget(), warm_start=warm_start)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("seed", range(8))
def test_it_is_within_one_gpu_of_the_optimum_of_small_problems(name: PackingName, seed: int) -> None:
    """Fit decreasing is good when few adapters are large."""
    problem = random_problem(100 + seed, 8, load_gpus=1.7)
    optimum = least_objective(problem, AnalyticSurrogate(), max_gpus=4)
    result = pack(problem, name)
    assert result.evaluation is not None
    assert optimum is not None
    assert optimum <= result.evaluation.num_gpus <= optimum + 1


@pytest.mark.parametrize("name", BOTH)
def test_gpus_are_full(name: PackingName) -> None:
    """Of many adapters, two GPUs that could be one are not left."""
    problem = random_problem(1, 200, load_gpus=5.0)
    result = pack(problem, name)
    assert result.placement is not None
    gpus = result.placement.gpus
    model = FeasibilityModel(problem, AnalyticSurrogate())
    pairs = [sorted(a.adapters + b.adapters) for i, a in enumerate(gpus) for b in gpus[:i]]
    rows = np.array([problem.aggregates[members].sum(axis=0) for members in pairs])
    ranks = np.array([problem.ranks[members].max() for members in pairs])
    assert not model.best_choice(rows, ranks, 0).feasible.any()


def test_large_ranks_are_kept_together() -> None:
    """One adapter of a large rank makes every slot of its GPU large: few GPUs should have any."""
    adapters = [make_adapter(f"a{i}", rank=128 if i % 10 == 0 else 8, rate_rps=0.12) for i in range(300)]
    result = pack(make_problem(adapters))
    assert result.placement is not None
    large = [gpu for gpu in result.placement.gpus if gpu.max_lora_rank == 128]
    assert result.placement.num_gpus > 2
    assert len(large) == 1


def test_an_adapter_that_fits_no_gpu_is_named_with_the_share_that_fits() -> None:
    """The user is told which adapter, how much of it fits, and what to do."""
    adapters = [make_adapter("light", rate_rps=0.1), make_adapter("heavy", rate_rps=30.0)]
    problem = make_problem(adapters)
    with pytest.raises(InputError) as caught:
        pack(problem)
    share = largest_share(FeasibilityModel(problem, AnalyticSurrogate()), 1)
    message = str(caught.value)
    assert "1 of 2 does not: 'heavy' (rank 16, 30 requests/s, 12,600 tokens/s)" in message
    assert f"at most {share:.0%} of it fits, replicate it at least {int(np.ceil(1 / share))} times" in message
    assert "Replicate such an adapter" in message
    assert "exclude it" in message
    assert (caught.value.field, caught.value.value) == ("adapters.1.rate_rps", 30.0)


def test_the_share_that_is_named_fits_and_more_does_not() -> None:
    """The advice must work: the share fits alone, one percent more does not."""
    problem = make_problem([make_adapter("heavy", rate_rps=30.0)])
    share = largest_share(FeasibilityModel(problem, AnalyticSurrogate()), 0)
    for factor, expected in ((share, True), (share + 0.01, False)):
        scaled = make_problem([make_adapter("heavy", rate_rps=30.0 * factor)])
        model = FeasibilityModel(scaled, AnalyticSurrogate())
        choices = model.best_choice(model.aggregates, scaled.ranks, 0)
        assert bool(choices.feasible[0]) is expected


def test_when_no_share_fits_the_message_says_that() -> None:
    """Limits that no load can keep are not a matter of replicating."""
    problem = make_problem([make_adapter("a")], limits=Limits(itl_p95_ms=15.0))
    with pytest.raises(InputError, match=r"no share of it fits, also not 1 %.*relax `limits`"):
        pack(problem)


def test_many_adapters_that_fit_nowhere_are_counted() -> None:
    """Ten are named, the others counted."""
    problem = make_problem([make_adapter(f"a{index}", rate_rps=50.0) for index in range(13)])
    with pytest.raises(InputError, match=r"13 of 13 do not: .*'a9'.*; and 3 more\."):
        pack(problem)


@pytest.mark.parametrize("name", BOTH)
def test_a_better_warm_start_is_returned(name: PackingName) -> None:
    """What the solver cannot find itself it must not lose."""
    problem = random_problem(1, 200, load_gpus=5.0)
    best = pack(problem, name)
    assert best.placement is not None
    seen: list[Incumbent] = []
    again = PackingSolver(name).solve(
        problem, AnalyticSurrogate(), budget=Budget(), warm_start=best.placement, observer=seen.append
    )
    assert again.evaluation is not None
    assert again.evaluation.num_gpus <= best.placement.num_gpus
    assert seen[0].placement == best.placement


def test_a_loose_warm_start_is_improved_by_emptying() -> None:
    """Every adapter alone is feasible; the last pass alone packs it, before anything is built."""
    problem = random_problem(1, 40, load_gpus=1.0)
    loose = Placement(
        tuple(GpuAssignment(0, (index,), 1, adapter.rank) for index, adapter in enumerate(problem.adapters))
    )
    seen: list[Incumbent] = []
    PackingSolver("bfd").solve(problem, AnalyticSurrogate(), budget=Budget(), warm_start=loose, observer=seen.append)
    counts = [incumbent.evaluation.num_gpus for incumbent in seen]
    assert counts[0] == 40
    assert counts[1] == 39
    assert counts == sorted(counts, reverse=True)


def test_an_infeasible_warm_start_is_ignored_and_that_is_said() -> None:
    """A plan of yesterday may not keep today's limits."""
    problem = random_problem(1, 40, load_gpus=2.5)
    everything = Placement((GpuAssignment(0, tuple(range(40)), 8, 32),))
    result = pack(problem, warm_start=everything)
    assert result.solution is Solution.FEASIBLE
    assert result.message == "The warm start is not feasible and was ignored."


def test_a_warm_start_of_another_problem_is_an_error() -> None:
    """Indices that do not exist are bad input, not an infeasible start."""
    with pytest.raises(InputError, match="indices below 40"):
        pack(random_problem(1, 40, load_gpus=1.0), warm_start=Placement((GpuAssignment(0, (99,), 8, 32),)))


def test_with_equal_capacity_the_cheaper_type_serves_all() -> None:
    """Nothing speaks for the dearer one."""
    types = (GPU, GPU.model_copy(update={"name": "cheap", "cost_per_hour": 1.0}))
    problem = with_objective(random_problem(1, 60, load_gpus=2.5), "least_cost", types)
    result = pack(problem)
    assert result.placement is not None
    assert {gpu.gpu_type for gpu in result.placement.gpus} == {1}


def test_a_scarce_cheap_type_is_used_up_and_the_rest_is_mixed() -> None:
    """`max_count` makes a mixed fleet necessary: both types are in it."""
    types = (GPU, GPU.model_copy(update={"name": "cheap", "cost_per_hour": 1.0, "max_count": 1}))
    problem = with_objective(random_problem(1, 60, load_gpus=2.5), "least_cost", types)
    result = pack(problem)
    assert result.placement is not None
    assert sorted({gpu.gpu_type for gpu in result.placement.gpus}) == [0, 1]
    assert sum(1 for gpu in result.placement.gpus if gpu.gpu_type == 1) == 1


def test_a_full_gpu_type_does_not_end_in_an_exception() -> None:
    """Too few GPUs is a result with a reason."""
    problem = with_objective(
        random_problem(1, 60, load_gpus=2.5), "fewest_gpus", (GPU.model_copy(update={"max_count": 1}),)
    )
    result = pack(problem)
    assert (result.solution, result.termination) == (Solution.NONE, Termination.COMPLETED)
    assert "All GPUs that `max_count` allows were filled" in result.message


def test_idle_adapters_are_placed_too() -> None:
    """An adapter without traffic needs a place, not work."""
    problem = make_problem([make_adapter(f"a{index}", rate_rps=0.0 if index else 1.0) for index in range(20)])
    result = pack(problem)
    assert result.placement is not None
    assert result.placement.num_gpus == 1


def test_the_objective_decides_between_fleets() -> None:
    """Fewest GPUs takes the fast type at any price; least cost takes the slow one where speed costs too much."""
    types = (
        GPU.model_copy(update={"cost_per_hour": 1.0}),
        GPU.model_copy(update={"name": "fast", "cost_per_hour": 100.0}),
    )
    base = random_problem(1, 60, load_gpus=2.5)
    surrogate = SurrogatePerGpuType((AnalyticSurrogate(), AnalyticSurrogate(speed=3.0)))
    fewest, cheapest = (
        PackingSolver("bfd").solve(with_objective(base, objective, types), surrogate, budget=Budget()).placement
        for objective in OBJECTIVES
    )
    assert fewest is not None
    assert cheapest is not None
    assert fewest.num_gpus < cheapest.num_gpus
    assert {gpu.gpu_type for gpu in cheapest.gpus} == {0}


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000))
@example(seed=448)
def test_a_fleet_keeps_its_books(seed: int) -> None:
    """Aggregates, ranks and loads that are updated step by step are those of the members."""
    generator = np.random.default_rng(seed)
    problem = random_problem(seed, 30, load_gpus=2.0)
    model = FeasibilityModel(problem, AnalyticSurrogate())
    work = adapter_work(problem, unavoidable_costs(problem, 0))[None, :]
    fleet = OpenFleet(model, work)
    for adapter in generator.permutation(30):
        gpus = fleet.open_gpus
        choices = fleet.ask(gpus, int(adapter))
        accepting = np.flatnonzero(choices.feasible)
        if len(accepting):
            position = int(generator.choice(accepting))
            fleet.add(int(gpus[position]), int(adapter), choices, position)
        else:
            assert fleet.open(0, int(adapter)) is not None
    placement = fleet.placement()
    for gpu, assignment in zip(fleet.open_gpus, placement.gpus, strict=True):
        members = list(assignment.adapters)
        np.testing.assert_array_equal(fleet.rows[gpu], problem.aggregates[members].sum(axis=0))
        assert fleet.max_rank[gpu] == problem.ranks[members].max()
        assert fleet.load[gpu] == pytest.approx(work[0, members].sum())
    assert evaluate(problem, placement, AnalyticSurrogate()).is_feasible
    restored = OpenFleet(model, work)
    restored.load_placement(placement)
    assert restored.placement() == placement


def test_a_refusal_is_remembered_until_the_gpu_changes() -> None:
    """Equal adapters are not asked again of a GPU that refused one; a copy forgets."""
    problem = make_problem([make_adapter(f"a{index}", rate_rps=9.0) for index in range(3)])
    model = FeasibilityModel(problem, AnalyticSurrogate())
    fleet = OpenFleet(model, adapter_work(problem, unavoidable_costs(problem, 0))[None, :])
    assert fleet.open(0, 0) == 0
    assert not fleet.ask(fleet.open_gpus, 1).feasible[0]
    assert fleet.may_hold(fleet.open_gpus, 2).tolist() == []
    assert fleet.copy().may_hold(fleet.open_gpus, 2).tolist() == [0]


def test_what_others_refused_is_learned_where_they_are_unchanged() -> None:
    """A copy to which adapters were added says nothing about the GPUs that took them."""
    problem = make_problem([make_adapter(f"a{index}", rate_rps=rate) for index, rate in enumerate((9, 9, 9, 0.1, 9))])
    model = FeasibilityModel(problem, AnalyticSurrogate())
    fleet = OpenFleet(model, adapter_work(problem, unavoidable_costs(problem, 0))[None, :])
    for adapter in range(3):
        assert fleet.open(0, adapter) == adapter
    attempt = fleet.copy()
    adapters = attempt.close(2)
    choices = attempt.ask(np.array([1]), 3)
    attempt.add(1, 3, choices, 0)
    assert not attempt.ask(attempt.open_gpus, adapters[0]).feasible.any()
    fleet.learn_refusals(attempt)
    # GPU 0 refused and is the same; GPU 1 had one more; GPU 2 was not asked.
    assert fleet.may_hold(fleet.open_gpus, 4).tolist() == [1, 2]
    # What was known is not forgotten.
    fleet.learn_refusals(fleet.copy())
    assert fleet.may_hold(fleet.open_gpus, 4).tolist() == [1, 2]


def test_emptying_in_vain_asks_each_gpu_a_few_times_only() -> None:
    """Where nothing fits anywhere, the attempts after the first ones know it without a question."""
    num_gpus = 4 * FRESH_ATTEMPTS
    problem = make_problem([make_adapter(f"a{index}", rate_rps=9.0) for index in range(num_gpus)])
    run = SolverRun(problem, AnalyticSurrogate(), Budget(), None)
    full = Placement(tuple(GpuAssignment(0, (index,), 1, 16) for index in range(num_gpus)))
    packing = Packing(run, is_best_fit=True)
    fleet = OpenFleet(run.model, packing.work)
    fleet.load_placement(full)
    packing.improve(fleet)
    assert fleet.placement() == full
    # A set of two has two options, 1 and 2 slots.
    assert 0 < run.model.num_evaluations <= FRESH_ATTEMPTS * (num_gpus - 1) * 2 + 2 * num_gpus


def test_every_type_is_asked_for_adapters_alone() -> None:
    """An adapter needs one type that takes it, not all."""
    problem = with_objective(make_problem([make_adapter("a")]), "fewest_gpus", (GPU, GPU))
    assert feasible_alone(FeasibilityModel(problem, AnalyticSurrogate())).tolist() == [[True], [True]]
