"""The published greedy, step by step: order, grid, slots, failures and both paddings."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from predictors.features import FEATURE_SCHEMA, FeatureSchema
from predictors.slots import GRID
from predictors.surrogate import SurrogateOutput
from solvers.budget import Budget
from solvers.greedy import GreedySolver, PaddingName, alternating_order
from solvers.problem import Problem
from solvers.result import Solution, SolveResult, Termination
from solvers.slots import SlotTables
from tests.solvers.problems import GPU, make_adapter, make_problem, with_objective
from twin.engine import LoraRank

Rule = Callable[[dict[str, float]], tuple[float, bool]]


class ScriptedSurrogate:
    """A surrogate that follows a rule from named features to (throughput, starved), and remembers the questions."""

    schema: FeatureSchema = FEATURE_SCHEMA

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.asked: list[dict[str, float]] = []

    def predict(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Apply the rule to each row."""
        rows = [dict(zip(FEATURE_SCHEMA.names, map(float, row), strict=True)) for row in features]
        self.asked += rows
        answers = [self.rule(row) for row in rows]
        throughput = np.array([answer[0] for answer in answers], dtype=np.float32)
        starved = np.array([answer[1] for answer in answers], dtype=np.float32)
        one = np.ones(len(rows), dtype=np.float32)
        return SurrogateOutput(one, starved, throughput, one, one)

    def questions(self) -> list[tuple[int, int]]:
        """Return (number of adapters, slots) of every question."""
        return [(round(row["num_adapters"]), round(row["max_loras"])) for row in self.asked]


def run(problem: Problem, surrogate: ScriptedSurrogate, padding: PaddingName = "published") -> SolveResult:
    """Run the greedy without a limit."""
    return GreedySolver(padding=padding).solve(problem, surrogate, budget=Budget())


def uniform_problem(count: int, rank: LoraRank = 16) -> Problem:
    """Return a problem of `count` equal adapters."""
    return make_problem([make_adapter(f"a{index}", rank=rank, rate_rps=0.5) for index in range(count)])


def more_slots_are_better(row: dict[str, float]) -> tuple[float, bool]:
    """Never starve, and prefer slots."""
    return row["max_loras"], False


def test_the_order_alternates_between_large_and_small_within_a_rank() -> None:
    """Ranks descending; in a rank largest, smallest, second largest, second smallest, ..."""
    rates: list[tuple[LoraRank, float]] = [(8, 1.0), (32, 2.0), (8, 5.0), (32, 4.0), (8, 3.0), (32, 3.0), (8, 4.0)]
    problem = make_problem([make_adapter(f"a{i}", rank=rank, rate_rps=rate) for i, (rank, rate) in enumerate(rates)])
    assert [rates[index] for index in alternating_order(problem)] == [
        (32, 4.0),
        (32, 2.0),
        (32, 3.0),
        (8, 5.0),
        (8, 1.0),
        (8, 4.0),
        (8, 3.0),
    ]


def test_it_tests_at_the_grid_with_the_current_and_the_next_slots() -> None:
    """At each grid value two candidates are asked; the first test has only the smallest."""
    surrogate = ScriptedSurrogate(more_slots_are_better)
    result = run(uniform_problem(32), surrogate)
    evaluated = (32, 32)
    assert surrogate.questions() == [(8, 8), (16, 8), (16, 16), (32, 16), (32, 32), evaluated]
    assert result.placement is not None
    assert [(len(gpu.adapters), gpu.max_loras) for gpu in result.placement.gpus] == [(32, 32)]


def test_a_tie_takes_more_slots_and_only_a_strict_gain_keeps_the_current_ones() -> None:
    """The published comparison is strict."""
    tied = run(uniform_problem(16), ScriptedSurrogate(lambda row: (1.0, row["num_adapters"] > 16)))
    fewer = run(uniform_problem(16), ScriptedSurrogate(lambda row: (-row["max_loras"], row["num_adapters"] > 16)))
    assert tied.placement is not None
    assert fewer.placement is not None
    assert (tied.placement.gpus[0].max_loras, fewer.placement.gpus[0].max_loras) == (16, 8)


def test_only_the_chosen_slots_are_asked_for_starvation() -> None:
    """The slots are chosen by throughput alone, even when the other candidate would not starve."""
    surrogate = ScriptedSurrogate(lambda row: (row["max_loras"], row["max_loras"] == 16))
    result = run(uniform_problem(16), surrogate)
    assert result.placement is not None
    assert [(len(gpu.adapters), gpu.max_loras) for gpu in result.placement.gpus] == [(8, 8), (8, 8)]


def test_a_failure_gives_the_pending_back_and_closes_the_gpu() -> None:
    """A GPU that takes 16 but not 32 stays with 16, whatever would still fit."""
    surrogate = ScriptedSurrogate(lambda row: (row["max_loras"], row["num_adapters"] > 20))
    result = run(uniform_problem(48), surrogate)
    assert result.placement is not None
    assert [len(gpu.adapters) for gpu in result.placement.gpus] == [16, 16, 16]


def test_memory_limits_the_next_slots() -> None:
    """Slots stop growing where memory ends; the adapters go on."""
    surrogate = ScriptedSurrogate(more_slots_are_better)
    result = run(uniform_problem(160, rank=64), surrogate)
    assert result.placement is not None
    limit = SlotTables(uniform_problem(160, rank=64)).limit(0, 64)
    largest = max(slots for slots in GRID if slots <= limit)
    assert largest < 160
    assert [(len(gpu.adapters), gpu.max_loras) for gpu in result.placement.gpus] == [(160, largest)]


def test_a_gpu_takes_no_more_adapters_than_the_grid_has() -> None:
    """The grid ends at 576 adapters."""
    result = run(uniform_problem(600, rank=8), ScriptedSurrogate(more_slots_are_better))
    assert result.placement is not None
    assert [len(gpu.adapters) for gpu in result.placement.gpus] == [576, 24]


@pytest.mark.parametrize(("padding", "expected"), [("published", [8, 24]), ("intended", [8, 16])])
def test_the_tail_is_padded_as_published_or_as_intended(padding: PaddingName, expected: list[int]) -> None:
    """With 8 committed and 4 pending, N = 16: published pads 16 - 4 = 12 (24 in all), intended pads 16 - 12 = 4."""
    surrogate = ScriptedSurrogate(more_slots_are_better)
    run(uniform_problem(12), surrogate, padding)
    evaluated = 12
    assert sorted({size for size, _ in surrogate.questions()} - {evaluated}) == expected


@pytest.mark.parametrize("padding", ["published", "intended"])
def test_a_short_queue_is_padded_the_same_way_by_both(padding: PaddingName) -> None:
    """Without committed adapters there is no difference: 3 pending are padded to 8."""
    surrogate = ScriptedSurrogate(more_slots_are_better)
    result = run(uniform_problem(3), surrogate, padding)
    # One question while searching, one by the evaluator, which knows no padding.
    assert surrogate.questions() == [(8, 8), (3, 8)]
    assert result.placement is not None
    assert result.placement.gpus[0].adapters == (0, 1, 2)


def test_the_padding_has_the_mean_rate_and_the_smallest_rank() -> None:
    """Four adapters of two ranks are padded with four of the mean rate and the smaller rank."""
    traffic: list[tuple[LoraRank, float]] = [(32, 4.0), (32, 2.0), (8, 1.0), (8, 1.0)]
    adapters = [make_adapter(f"a{i}", rank=rank, rate_rps=rate) for i, (rank, rate) in enumerate(traffic)]
    surrogate = ScriptedSurrogate(more_slots_are_better)
    run(make_problem(adapters), surrogate)
    asked = surrogate.asked[0]
    assert (asked["num_rank_32"], asked["num_rank_8"]) == (2.0, 6.0)
    assert asked["sum_rate_rps"] == pytest.approx(16.0)
    assert asked["sum_rate_sq"] == pytest.approx(16 + 4 + 1 + 1 + 4 * 2.0**2)
    assert asked["sum_prompt_tps"] == pytest.approx(16.0 * 220)


def test_where_the_first_test_fails_there_is_no_answer() -> None:
    """The next GPU would fail the same way for ever; the message says which adapters."""
    result = run(uniform_problem(40), ScriptedSurrogate(lambda _: (1.0, True)))
    assert (result.solution, result.termination) == (Solution.NONE, Termination.COMPLETED)
    assert "The greedy has no answer: the first 8 adapters of the queue" in result.message
    assert "'a0'" in result.message


def test_a_tail_that_fails_alone_has_no_answer() -> None:
    """The padding can fail where the adapters themselves would fit."""
    result = run(uniform_problem(4), ScriptedSurrogate(lambda row: (1.0, row["num_adapters"] > 4)))
    assert "the last adapters, padded, " in result.message


def test_no_gpu_left_is_no_answer() -> None:
    """`max_count` is the number of GPUs that the paper is given."""
    one_gpu = (GPU.model_copy(update={"max_count": 1}),)
    problem = with_objective(uniform_problem(24), "fewest_gpus", one_gpu)
    result = run(problem, ScriptedSurrogate(lambda row: (1.0, row["num_adapters"] > 8)))
    assert result.solution is Solution.NONE
    assert result.message == "No GPU is left: 1 are full and 16 adapters are not placed."


def test_fixed_slots_are_the_only_candidate() -> None:
    """What the user fixes is not searched."""
    adapters = [make_adapter(f"a{index}") for index in range(16)]
    surrogate = ScriptedSurrogate(more_slots_are_better)
    run(make_problem(adapters, fixed_max_loras=12), surrogate)
    assert {slots for _, slots in surrogate.questions()} == {12}


def test_the_tests_passing_is_not_the_evaluation_passing() -> None:
    """A surrogate that rejects the tail itself, but not its padded test, must not get a feasible answer out of it."""
    result = run(uniform_problem(4), ScriptedSurrogate(lambda row: (1.0, row["num_adapters"] < 8)))
    assert result.solution is Solution.NONE
    assert "the evaluated placement is not feasible" in result.message


def test_without_memory_for_the_smallest_slots_there_is_no_answer() -> None:
    """Eight slots of a large rank may not start; then no test has a candidate."""
    problem = uniform_problem(8, rank=512)
    small = replace(problem, engine=problem.engine.model_copy(update={"gpu_memory_utilization": 0.6}))
    surrogate = ScriptedSurrogate(more_slots_are_better)
    result = run(small, surrogate)
    assert surrogate.asked == []
    assert result.solution is Solution.NONE
    assert "The greedy has no answer" in result.message
