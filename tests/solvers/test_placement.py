"""Placements: what makes one valid, and the one evaluator."""

import numpy as np
import pytest

from solvers.objective import evaluate, objective_value
from solvers.placement import GpuAssignment, Placement, validate_placement
from solvers.problem import Limits, Problem
from tests.solvers.analytic import AnalyticSurrogate
from tests.solvers.problems import GPU, make_adapter, make_problem, with_objective
from twin.errors import InputError


def problem_of_three() -> Problem:
    """Return three adapters of ranks 8, 16 and 32."""
    return make_problem([make_adapter("a", rank=8), make_adapter("b", rank=16), make_adapter("c", rank=32)])


def test_a_valid_placement_passes() -> None:
    """Two GPUs, every adapter once, ranks within the slots."""
    validate_placement(problem_of_three(), Placement((GpuAssignment(0, (0, 1), 2, 16), GpuAssignment(0, (2,), 1, 32))))


@pytest.mark.parametrize(
    ("gpus", "message", "field"),
    [
        ([(0, (0, 1), 2, 16)], "every adapter must be placed. 1 are not, the first is 'c'", "gpus"),
        ([], "every adapter must be placed. 3 are not", "gpus"),
        ([(0, (0, 1, 2), 3, 32), (0, (1,), 1, 16)], "'b' is on GPU 0 and on GPU 1", "gpus.1.adapters"),
        ([(0, (0, 1, 2, 3), 3, 32)], "must be indices below 3. Got 3", "gpus.0.adapters"),
        ([(0, (-1, 0, 1), 3, 32)], "must be indices below 3. Got -1", "gpus.0.adapters"),
        ([(0, (0, 1, 2), 3, 16)], "Got 16 for 'c' of rank 32", "gpus.0.max_lora_rank"),
        ([(0, (0, 1, 2), 3, 24)], "`max_lora_rank` of GPU 0 must be one of 8, 16", "gpus.0.max_lora_rank"),
        ([(0, (0, 1, 2), 0, 32)], "`max_loras` of GPU 0 must be at least 1. Got 0", "gpus.0.max_loras"),
        ([(1, (0, 1, 2), 3, 32)], "`gpu_type` of GPU 0 must be in 0..0. Got 1", "gpus.0.gpu_type"),
        ([(0, (2, 0, 1), 3, 32)], "must be in ascending order", "gpus.0.adapters"),
        ([(0, (0, 1, 2), 3, 32), (0, (), 1, 8)], "`adapters` of GPU 1 must be at least one", "gpus.1.adapters"),
        ([(0, (0, 1, 2), 900, 32)], "every replica must start. GPU 0 does not: ", "gpus.0.max_loras"),
    ],
)
def test_an_invalid_placement_is_told_why(
    gpus: list[tuple[int, tuple[int, ...], int, int]], message: str, field: str
) -> None:
    """Each rule has its message, with the field of a plan file."""
    with pytest.raises(InputError) as caught:
        validate_placement(problem_of_three(), Placement(tuple(GpuAssignment(*gpu) for gpu in gpus)))
    assert message in str(caught.value)
    assert caught.value.field == field


def test_settings_that_the_problem_fixes_are_checked() -> None:
    """A plan with other slots than the fixed ones is not a plan of this problem."""
    problem = make_problem([make_adapter("a")], fixed_max_loras=4)
    with pytest.raises(InputError, match=r"`max_loras` of GPU 0 must be 4, as the problem fixes it. Got 8"):
        validate_placement(problem, Placement((GpuAssignment(0, (0,), 8, 16),)))


def test_more_gpus_than_there_are_is_invalid() -> None:
    """`max_count` is what can be rented."""
    problem = with_objective(problem_of_three(), "fewest_gpus", (GPU.model_copy(update={"max_count": 1}),))
    two = Placement((GpuAssignment(0, (0, 1), 2, 16), GpuAssignment(0, (2,), 1, 32)))
    with pytest.raises(InputError, match=r"at most 1 GPUs of type 'h100-64gb' may be used. The placement uses 2"):
        validate_placement(problem, two)


def test_the_evaluation_has_costs_loads_and_predictions() -> None:
    """Counts, costs and loads follow from the problem; the rest is what the surrogate says."""
    problem = problem_of_three()
    evaluation = evaluate(
        problem, Placement((GpuAssignment(0, (0, 1), 2, 16), GpuAssignment(0, (2,), 1, 32))), AnalyticSurrogate()
    )
    assert (evaluation.num_gpus, evaluation.cost_per_hour, evaluation.is_feasible) == (2, 6.0, True)
    assert [gpu.num_adapters for gpu in evaluation.gpus] == [2, 1]
    assert [gpu.offered_tps for gpu in evaluation.gpus] == pytest.approx([420.0, 210.0])
    assert evaluation.gpus[0].kv_tokens == problem.replica(0, 2, 16, 2).memory().kv_tokens
    assert [gpu.violations for gpu in evaluation.gpus] == [(), ()]


def test_what_is_not_kept_is_told_per_gpu() -> None:
    """An overloaded GPU makes the placement infeasible and says why."""
    problem = make_problem(
        [make_adapter("a", rate_rps=60.0), make_adapter("b", rate_rps=0.1)], limits=Limits(ttft_p95_ms=500.0)
    )
    evaluation = evaluate(
        problem, Placement((GpuAssignment(0, (0,), 1, 16), GpuAssignment(0, (1,), 1, 16))), AnalyticSurrogate()
    )
    assert not evaluation.is_feasible
    assert [len(gpu.violations) for gpu in evaluation.gpus] == [3, 0]
    assert evaluation.gpus[0].violations[2].startswith("TTFT p95 ")


def test_the_objective_orders_by_number_or_by_cost() -> None:
    """The other of the two breaks ties."""
    problem = problem_of_three()
    placement = Placement((GpuAssignment(0, (0, 1, 2), 3, 32),))
    evaluation = evaluate(problem, placement, AnalyticSurrogate())
    assert objective_value(problem, evaluation) == (1.0, 3.0)
    assert objective_value(with_objective(problem, "least_cost", (GPU,)), evaluation) == (3.0, 1.0)


def test_one_call_evaluates_all_gpus() -> None:
    """The evaluator is called after every improvement, so it must be one batch."""
    problem = make_problem([make_adapter(f"a{index}") for index in range(50)])
    surrogate = AnalyticSurrogate()
    evaluate(problem, Placement(tuple(GpuAssignment(0, (index,), 1, 16) for index in range(50))), surrogate)
    assert surrogate.num_calls == 1
    assert np.isfinite(problem.aggregates).all()
