"""The repaired greedy: never worse than the published one, and each of its weaknesses mended."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from predictors.features import FEATURE_SCHEMA
from predictors.surrogate import SurrogateOutput
from solvers.budget import Budget
from solvers.greedy import GreedySolver
from solvers.greedy_repaired import RepairedGreedySolver
from solvers.interface import Solver
from solvers.objective import objective_value
from solvers.problem import Problem
from solvers.result import Solution, SolveResult
from solvers.surrogate_per_gpu_type import SurrogatePerGpuType
from tests.solvers.analytic import AnalyticSurrogate
from tests.solvers.problems import GPU, make_adapter, make_problem, random_problem, with_objective
from twin.errors import InputError


def run(solver: Solver, problem: Problem, *, speed: float = 1.0) -> SolveResult:
    """Solve without a limit."""
    return solver.solve(problem, AnalyticSurrogate(speed=speed), budget=Budget())


def sizes(result: SolveResult) -> list[int]:
    """Return the numbers of adapters of the GPUs."""
    assert result.placement is not None
    return [len(gpu.adapters) for gpu in result.placement.gpus]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), num_adapters=st.integers(1, 150), load=st.floats(0.1, 5.0))
def test_it_is_never_worse_than_either_published_variant(seed: int, num_adapters: int, load: float) -> None:
    """Both run first, and the better placement is kept; where they have no answer it has one."""
    problem = random_problem(seed, num_adapters, load_gpus=load)
    repaired = run(RepairedGreedySolver(), problem)
    assert repaired.evaluation is not None
    for published in (GreedySolver(), GreedySolver(padding="intended")):
        evaluation = run(published, problem).evaluation
        if evaluation is not None:
            assert objective_value(problem, repaired.evaluation) <= objective_value(problem, evaluation)


@pytest.mark.parametrize("seed", range(4))
def test_it_is_better_on_dense_problems(seed: int) -> None:
    """Batches that are thrown back whole cost the published greedy GPUs."""
    problem = random_problem(seed, 150, load_gpus=5.0)
    published, repaired = run(GreedySolver(), problem), run(RepairedGreedySolver(), problem)
    assert published.evaluation is not None
    assert repaired.evaluation is not None
    assert repaired.evaluation.num_gpus < published.evaluation.num_gpus


def test_where_eight_adapters_are_too_many_there_is_an_answer() -> None:
    """The published first test has eight adapters; a GPU may serve fewer."""
    problem = make_problem([make_adapter(f"a{index}", rate_rps=5.0) for index in range(9)])
    assert run(GreedySolver(), problem).placement is None
    assert run(RepairedGreedySolver(), problem).solution is Solution.FEASIBLE


def test_only_what_does_not_fit_is_given_back() -> None:
    """A GPU that holds 14 equal adapters, but not 16, gets 14."""
    problem = make_problem([make_adapter(f"a{index}", rate_rps=1.0) for index in range(28)])
    assert sizes(run(RepairedGreedySolver(), problem)) == [14, 14]
    assert sizes(run(GreedySolver(), problem)) == [8, 8, 8, 4]


def test_closed_gpus_are_visited_again() -> None:
    """A gap of a fifth on the first GPU is filled by an adapter that the second one refuses."""
    heavy = make_adapter("heavy", rank=64, rate_rps=12.0)
    medium = [make_adapter(f"medium{index}", rank=32, rate_rps=4.4) for index in range(7)]
    light = make_adapter("light", rank=8, rate_rps=2.2)
    result = run(RepairedGreedySolver(), make_problem([heavy, *medium, light]))
    assert result.placement is not None
    assert sizes(result) == [2, 3, 3, 1]
    assert result.placement.gpus[0].adapters == (0, 8)


class FewSlotsSurrogate(AnalyticSurrogate):
    """A replica that serves anything with at most three slots, and nothing with more."""

    def predict(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Starve beyond three slots."""
        is_starved = features[:, FEATURE_SCHEMA.index("max_loras")] > 3
        one = np.ones(len(features), dtype=np.float32)
        return SurrogateOutput(one, is_starved.astype(np.float32), one, one, one)


def test_slots_below_the_published_eight_are_found() -> None:
    """The published greedy starts with eight slots; a set of three adapters may have three."""
    problem = make_problem([make_adapter(f"a{index}") for index in range(6)])
    surrogate = FewSlotsSurrogate()
    assert GreedySolver().solve(problem, surrogate, budget=Budget()).placement is None
    assert sizes(RepairedGreedySolver().solve(problem, surrogate, budget=Budget())) == [3, 3]


def test_a_gpu_takes_more_than_576_adapters() -> None:
    """The grid goes on as long as adapters fit."""
    problem = make_problem([make_adapter(f"a{index}", rank=8, rate_rps=0.0001) for index in range(700)])
    assert sizes(run(GreedySolver(), problem)) == [576, 124]
    assert sizes(run(RepairedGreedySolver(), problem)) == [700]


def test_the_last_gpus_are_dissolved_into_others() -> None:
    """Of many adapters no two GPUs are left that could be one with the last."""
    for seed in range(5):
        problem = random_problem(seed, 60, load_gpus=2.2)
        result = run(RepairedGreedySolver(), problem)
        assert result.evaluation is not None
        # The work alone needs three GPUs.
        assert result.evaluation.num_gpus <= 4


def test_an_adapter_that_fits_nowhere_is_bad_input() -> None:
    """As for the other solvers that look before they pack."""
    with pytest.raises(InputError, match="'heavy'"):
        run(RepairedGreedySolver(), make_problem([make_adapter("heavy", rate_rps=30.0)]))


def test_a_type_that_cannot_hold_an_adapter_is_left_out_and_said() -> None:
    """Other types go on."""
    types = (GPU, GPU.model_copy(update={"name": "fast", "cost_per_hour": 9.0}))
    problem = with_objective(make_problem([make_adapter("heavy", rate_rps=20.0)]), "least_cost", types)
    surrogate = SurrogatePerGpuType((AnalyticSurrogate(), AnalyticSurrogate(speed=3.0)))
    result = RepairedGreedySolver().solve(problem, surrogate, budget=Budget())
    assert result.placement is not None
    assert [gpu.gpu_type for gpu in result.placement.gpus] == [1]
    assert "Some adapter fits no GPU of type 'h100-64gb' alone." in result.message


class FickleSurrogate(AnalyticSurrogate):
    """A surrogate that refuses everything from its n-th answer on."""

    def __init__(self, *, answers: int) -> None:
        super().__init__()
        self.answers_left = answers

    def predict(self, features: NDArray[np.float32]) -> SurrogateOutput:
        """Answer as the formula, or refuse."""
        self.answers_left -= 1
        output = super().predict(features)
        if self.answers_left >= 0:
            return output
        one = np.ones(len(features), dtype=np.float32)
        return SurrogateOutput(0 * one, one, output.throughput_tps, one, one)


def test_a_surrogate_that_changes_its_mind_gets_no_placement() -> None:
    """What fitted alone and does not when asked again ends in a sentence, not in an incomplete placement."""
    problem = make_problem([make_adapter(f"a{index}", rate_rps=5.0) for index in range(9)])
    # One failed test of each published variant, and the adapters alone.
    result = RepairedGreedySolver().solve(problem, FickleSurrogate(answers=3), budget=Budget())
    assert result.placement is None
    assert "fitted a GPU alone, and did not when asked again" in result.message
