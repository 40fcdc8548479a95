"""Secondary objectives: few moves and much headroom among placements with equal objectives, against brute force."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictors.surrogate import Surrogate, SurrogateOutput
from solvers.budget import Budget
from solvers.current import CurrentGpu, moves_of
from solvers.feasibility import FeasibilityModel
from solvers.headroom import FINE_FACTORS, headrooms
from solvers.moves import count_moves
from solvers.objective import evaluate, objective_value
from solvers.placement import GpuAssignment, Placement, validate_placement
from solvers.problem import Problem
from solvers.problem_file import ObjectiveName, SecondaryName
from solvers.registry import get_solver, solver_names
from solvers.result import COST_TOLERANCE, Incumbent, SolveResult, Termination
from solvers.secondary.solver import secondary_of
from tests.solvers.analytic import AnalyticSurrogate
from tests.solvers.constrained_problems import broken_rules, constrained_problem
from tests.solvers.problems import GPU, make_adapter, make_problem, random_problem, with_objective
from tests.solvers.small_problems import TYPES, FickleSurrogate, divisions, small_problem
from twin.errors import InputError

Division = tuple[tuple[int, tuple[int, ...]], ...]
ORDERS: tuple[tuple[SecondaryName, ...], ...] = (
    ("moves",),
    ("headroom",),
    ("moves", "headroom"),
    ("headroom", "moves"),
)


def in_place(problem: Problem, seed: int, num_gpus: int = 3) -> Problem:
    """Return the problem with a random current placement, which a few adapters are not part of."""
    generator = np.random.default_rng(seed)
    homes = generator.integers(-1, num_gpus, size=len(problem.adapters))
    types = [problem.gpu_types[int(generator.integers(len(problem.gpu_types)))].name for _ in range(num_gpus)]
    current = tuple(
        CurrentGpu(
            gpu_type=types[gpu],
            adapters=tuple(problem.adapters[int(index)].name for index in np.flatnonzero(homes == gpu)),
        )
        for gpu in range(num_gpus)
    )
    return replace(problem, current=current)


def solve(problem: Problem, surrogate: Surrogate | None = None, *, solver: str = "bfd", seed: int = 0) -> SolveResult:
    """Solve without a limit."""
    return get_solver(solver).solve(problem, surrogate or AnalyticSurrogate(), budget=Budget(), seed=seed)


def best_divisions(problem: Problem, surrogate: Surrogate) -> Iterator[Division]:
    """Yield the divisions into accepted sets on GPU types that the objective likes best, all of them."""
    model = FeasibilityModel(problem, surrogate)
    prices = [gpu_type.cost_per_hour for gpu_type in problem.gpu_types]
    hosts: dict[tuple[int, ...], list[int]] = {}
    found: list[tuple[tuple[float, float], Division]] = []
    for division in divisions(tuple(range(len(problem.adapters)))):
        for block in division:
            if block not in hosts:
                row, rank = problem.aggregates[list(block)].sum(axis=0)[None], problem.ranks[list(block)].max()[None]
                types = range(len(prices))
                hosts[block] = [kind for kind in types if model.best_choice(row, rank, kind, [block]).feasible[0]]
        for chosen in product(*(hosts[block] for block in division)):
            limits = [gpu_type.max_count for gpu_type in problem.gpu_types]
            if any(limit is not None and chosen.count(kind) > limit for kind, limit in enumerate(limits)):
                continue
            cost, count = sum(prices[kind] for kind in chosen), float(len(chosen))
            value = (cost, count) if problem.objective == "least_cost" else (count, cost)
            found.append((value, tuple(zip(chosen, division, strict=True))))
    least = min((value for value, _ in found), default=None)
    yield from (division for value, division in found if value == least)


def moves_by_naming(problem: Problem, division: Division) -> int:
    """Return the fewest moves over all ways in which GPUs may stand for those in place, one by one."""
    types = [gpu_type.name for gpu_type in problem.gpu_types]
    home = {name: gpu for gpu, placed in enumerate(problem.current) for name in placed.adapters}
    names = [adapter.name for adapter in problem.adapters]
    placed = sum(name in home for name in names)
    stand_ins = [*range(len(problem.current)), *([None] * len(division))]
    most = 0
    for chosen in set(permutations(stand_ins, len(division))):
        stays = 0
        for gpu, (kind, block) in zip(chosen, division, strict=True):
            if gpu is not None and problem.current[gpu].gpu_type == types[kind]:
                stays += sum(home.get(names[index]) == gpu for index in block)
        most = max(most, stays)
    return placed - most


def least_headroom(problem: Problem, surrogate: Surrogate, division: Division) -> float:
    """Return the smallest headroom of the GPUs of a division, each with the slots that give it the most."""
    model = FeasibilityModel(problem, surrogate)
    rooms = []
    for kind, block in division:
        rank = int(problem.ranks[list(block)].max())
        gpus = [
            GpuAssignment(kind, block, slots, model.slots.rank_of_slots(rank))
            for slots in model.slot_options(kind, len(block), rank)
        ]
        own = headrooms(model, gpus, FINE_FACTORS[FINE_FACTORS >= 1.0])
        rooms.append(max(room for room in own if room is not None))
    return min(rooms)


def num_moves(problem: Problem, placement: Placement) -> int:
    """Return the moves of a placement, counted by every naming of its GPUs."""
    return moves_by_naming(problem, tuple((gpu.gpu_type, gpu.adapters) for gpu in placement.gpus))


def smallest(problem: Problem, placement: Placement, surrogate: Surrogate) -> float:
    """Return the smallest headroom of a placement's GPUs."""
    rooms = headrooms(FeasibilityModel(problem, surrogate), placement.gpus, FINE_FACTORS[FINE_FACTORS >= 1.0])
    return min(-1.0 if room is None else room for room in rooms)


@pytest.mark.parametrize("seed", range(8))
def test_moves_are_the_fewest_of_all_optimal_placements(seed: int) -> None:
    """Small problems on one GPU type or two, by number or by cost: no optimal placement moves fewer adapters."""
    problem = replace(in_place(small_problem(seed), seed), secondary=("moves",))
    surrogate = AnalyticSurrogate()
    fewest = min((moves_by_naming(problem, it) for it in best_divisions(problem, surrogate)), default=None)
    result = solve(problem, surrogate, solver="exact")
    if fewest is None:
        assert result.placement is None
        return
    assert result.placement is not None
    assert num_moves(problem, result.placement) == fewest
    assert moves_of(problem, result.placement.gpus).num_moved == fewest


@pytest.mark.parametrize("seed", range(5))
def test_the_smallest_headroom_is_the_largest_of_all_optimal_placements(seed: int) -> None:
    """Small problems, slots included: no optimal placement has more room on its fullest GPU."""
    problem = replace(small_problem(seed), secondary=("headroom",))
    surrogate = AnalyticSurrogate()
    most = max((least_headroom(problem, surrogate, it) for it in best_divisions(problem, surrogate)), default=None)
    result = solve(problem, surrogate, solver="exact")
    assert (result.placement is None) == (most is None)
    if result.placement is not None:
        assert smallest(problem, result.placement, surrogate) == most


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    secondary=st.sampled_from(ORDERS),
    objective=st.sampled_from(["fewest_gpus", "least_cost", "lowest_latency"]),
    surrogate=st.sampled_from([AnalyticSurrogate(), FickleSurrogate()]),
)
def test_the_objective_never_worsens_and_the_first_secondary_value_neither(
    seed: int, secondary: tuple[SecondaryName, ...], objective: ObjectiveName, surrogate: AnalyticSurrogate
) -> None:
    """On two GPU types, one of them scarce, with any objective, also with a surrogate that is not monotone."""
    types = (GPU.model_copy(update={"max_count": 4}), TYPES[1].model_copy(update={"max_count": 2}))
    problem = in_place(with_objective(random_problem(seed, 9, load_gpus=1.5), "least_cost", types), seed)
    problem = replace(problem, objective=objective)
    budget = Budget(max_evaluations=4000)
    plain = get_solver("bfd").inner.solve(problem, surrogate, budget=budget)
    asked = replace(problem, secondary=secondary)
    result = get_solver("bfd").solve(asked, surrogate, budget=budget)
    assert (result.placement is None) == (plain.placement is None)
    if result.placement is None or plain.placement is None:
        return
    assert result.evaluation is not None
    assert plain.evaluation is not None
    validate_placement(problem, result.placement)
    assert result.evaluation == evaluate(problem, result.placement, surrogate)
    assert result.evaluation.is_feasible
    before, after = (objective_value(problem, it) for it in (plain.evaluation, result.evaluation))
    assert after <= (before[0] + COST_TOLERANCE, before[1] + COST_TOLERANCE)
    if after[0] >= before[0] - COST_TOLERANCE and objective != "lowest_latency" and after[1] >= before[1]:
        if secondary[0] == "moves":
            assert num_moves(problem, result.placement) <= num_moves(problem, plain.placement)
        else:
            assert smallest(problem, result.placement, surrogate) >= smallest(problem, plain.placement, surrogate)


@pytest.mark.parametrize("name", solver_names())
def test_every_solver_takes_them(name: str) -> None:
    """Whatever placed the adapters: no more GPUs, no more moves, and the same answer when asked again."""
    problem = in_place(random_problem(3, 10, load_gpus=1.6), 3)
    budget = Budget(max_evaluations=1500)
    plain = get_solver(name).inner.solve(problem, AnalyticSurrogate(), budget=budget)
    results = [get_solver(name).solve(problem, AnalyticSurrogate(), budget=budget, seed=2) for _ in range(2)]
    assert results[0].placement == results[1].placement
    if plain.placement is None:
        assert results[0].placement is None
        return
    assert results[0].placement is not None
    assert results[0].placement.num_gpus <= plain.placement.num_gpus
    if results[0].placement.num_gpus == plain.placement.num_gpus:
        assert num_moves(problem, results[0].placement) <= num_moves(problem, plain.placement)


def placed_by(name: str, problem: Problem) -> tuple[Placement, tuple[CurrentGpu, ...]]:
    """Return a solver's placement, and the same as what is in place."""
    placement = solve(problem, solver=name).placement
    assert placement is not None
    names = [adapter.name for adapter in problem.adapters]
    types = [gpu_type.name for gpu_type in problem.gpu_types]
    current = tuple(
        CurrentGpu(gpu_type=types[gpu.gpu_type], adapters=tuple(names[index] for index in gpu.adapters))
        for gpu in placement.gpus
    )
    return placement, current


def test_nothing_moves_where_nothing_must() -> None:
    """What is in place is kept when no solver finds a better one, also where another solver would place all anew."""
    problem = random_problem(5, 24, load_gpus=2.5)
    placement, current = placed_by("bfd", replace(problem, secondary=("headroom",)))
    again = replace(problem, current=current)
    free, kept = (solve(replace(again, secondary=names)).placement for names in ((), ("moves",)))
    assert free is not None
    assert kept is not None
    assert free.num_gpus == placement.num_gpus
    assert moves_of(again, free.gpus).num_moved > 0
    assert moves_of(again, kept.gpus).num_moved == 0


def test_a_new_adapter_moves_few_others() -> None:
    """One adapter more among sixty: best fit alone would move many."""
    problem = random_problem(5, 60, load_gpus=2.5)
    _, current = placed_by("bfd", problem)
    grown = make_problem([make_adapter("new", rank=32, rate_rps=0.2), *problem.adapters])
    grown = replace(grown, current=current)
    plain, settled = (solve(replace(grown, secondary=names)) for names in ((), ("moves",)))
    assert plain.placement is not None
    assert settled.placement is not None
    assert settled.placement.num_gpus <= plain.placement.num_gpus
    assert moves_of(grown, settled.placement.gpus).num_new == 1
    before, after = (moves_of(grown, it.gpus).num_moved for it in (plain.placement, settled.placement))
    assert before >= 5
    assert after <= 1


@pytest.mark.parametrize("seed", range(3))
def test_constraints_are_kept(seed: int) -> None:
    """Groups that share a GPU move together, and every rule holds."""
    problem = in_place(constrained_problem(seed, 8), seed)
    plain = get_solver("bfd").inner.solve(problem, AnalyticSurrogate(), budget=Budget())
    result = solve(replace(problem, secondary=("moves", "headroom")))
    assert plain.placement is not None
    assert result.placement is not None
    assert broken_rules(problem, result.placement) == []
    assert result.placement.num_gpus <= plain.placement.num_gpus
    if result.placement.num_gpus == plain.placement.num_gpus:
        assert num_moves(problem, result.placement) <= num_moves(problem, plain.placement)


@pytest.mark.parametrize("max_evaluations", [0, 300, 2000])
def test_the_budget_covers_them(max_evaluations: int) -> None:
    """Rows asked for after the solver's are counted, and end the search."""
    problem = replace(in_place(random_problem(5, 40, load_gpus=2.5), 5), secondary=("headroom", "moves"))
    result = get_solver("bfd").solve(
        problem, AnalyticSurrogate(), budget=Budget(max_evaluations=max_evaluations), seed=1
    )
    assert result.statistics.num_evaluations <= max_evaluations + 1000
    if max_evaluations == 2000:
        assert result.placement is not None
        assert result.termination is Termination.ITERATION_LIMIT


class InterruptedSurrogate(AnalyticSurrogate):
    """A surrogate during whose n-th call the user presses Ctrl-C."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.calls_left = call

    def predict(self, features: np.ndarray) -> SurrogateOutput:
        """Predict, or be interrupted."""
        self.calls_left -= 1
        if self.calls_left == 0:
            raise KeyboardInterrupt
        return super().predict(features)


@pytest.mark.parametrize("later", [5, 12, 40])
def test_ctrl_c_keeps_what_there_is(later: int) -> None:
    """In the middle of the search for fewer moves, the best placement so far is the answer."""
    problem = replace(in_place(random_problem(5, 40, load_gpus=2.5), 5), secondary=("moves", "headroom"))
    counting = AnalyticSurrogate()
    plain = get_solver("bfd").inner.solve(problem, counting, budget=Budget())
    assert plain.evaluation is not None
    result = solve(problem, InterruptedSurrogate(counting.num_calls + later))
    assert result.termination is Termination.INTERRUPTED
    assert result.evaluation is not None
    assert result.evaluation.num_gpus <= plain.evaluation.num_gpus


def test_the_last_incumbent_is_the_answer() -> None:
    """Observers see what the secondary objectives made of the solver's placement."""
    problem = in_place(random_problem(3, 12, load_gpus=1.6), 3)
    seen: list[Incumbent] = []
    result = get_solver("bfd").solve(problem, AnalyticSurrogate(), budget=Budget(), observer=seen.append)
    assert result.placement == seen[-1].placement


def test_without_a_current_placement_moves_cannot_be_few() -> None:
    """With one they are few unless something else is said; with neither nothing is changed."""
    problem = random_problem(3, 10, load_gpus=1.6)
    assert secondary_of(problem) == ()
    assert secondary_of(in_place(problem, 0)) == ("moves",)
    assert secondary_of(replace(in_place(problem, 0), secondary=())) == ()
    with pytest.raises(InputError, match="needs to know what is in place") as raised:
        solve(replace(problem, secondary=("moves",)))
    assert raised.value.field == "secondary"


def test_without_scipy_a_current_placement_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is named before a budget is spent; without a current placement nothing is missing."""
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    problem, surrogate = random_problem(3, 10, load_gpus=1.6), AnalyticSurrogate()
    with pytest.raises(InputError, match="extra `train`"):
        solve(in_place(problem, 0), surrogate)
    assert surrogate.num_calls == 0
    assert solve(replace(problem, secondary=("headroom",))).placement is not None


def test_gpus_stand_for_those_of_their_type_only() -> None:
    """The same adapters on a GPU of another type have moved; those of a type that is gone, too."""
    problem = with_objective(random_problem(0, 4, load_gpus=0.3), "fewest_gpus", TYPES)
    names = [adapter.name for adapter in problem.adapters]
    gpus = (GpuAssignment(1, (0, 1, 2, 3), 4, 32),)
    moved = {
        kind: moves_of(replace(problem, current=(CurrentGpu(gpu_type=kind, adapters=tuple(names)),)), gpus)
        for kind in ("small", "h100-64gb", "gone")
    }
    assert [moved[kind].num_moved for kind in ("small", "h100-64gb", "gone")] == [0, 4, 4]
    assert [moved[kind].matched for kind in ("small", "h100-64gb", "gone")] == [(0,), (None,), (None,)]
    assert moved["small"].loaded_bytes == 0
    assert moved["gone"].loaded_bytes > 0


@given(before=st.lists(st.integers(0, 3), min_size=1, max_size=9), data=st.data())
def test_both_ways_of_counting_moves_agree(before: list[int], data: st.DataObject) -> None:
    """On one GPU type, what plans and comparisons count is the same."""
    after = data.draw(st.lists(st.integers(0, 3), min_size=len(before), max_size=len(before)))

    def grouped(homes: Sequence[int]) -> list[tuple[int, ...]]:
        groups = (tuple(index for index, home in enumerate(homes) if home == gpu) for gpu in range(4))
        return [group for group in groups if group]

    problem = make_problem([make_adapter(f"a{index}") for index in range(len(before))])
    named: Callable[[tuple[int, ...]], tuple[str, ...]] = lambda group: tuple(f"a{index}" for index in group)  # noqa: E731
    current = tuple(CurrentGpu(gpu_type=GPU.name, adapters=named(group)) for group in grouped(before))
    gpus = tuple(GpuAssignment(0, group, 1, 16) for group in grouped(after))
    counted = moves_of(replace(problem, current=current), gpus).num_moved
    assert counted == count_moves(grouped(before), grouped(after))
    assert counted == moves_by_naming(replace(problem, current=current), tuple((0, group) for group in grouped(after)))
