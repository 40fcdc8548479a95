"""Bounds on the cost: in plans, in their text, and in comparisons."""

from pathlib import Path

import pytest

from placer.cli.tables import print_plan
from placer.comparison_document import BoundRecord, InstanceRecord, RunRecord
from placer.comparison_summary import best_cost_bound, cost_over_bound
from placer.planning import plan
from solvers.bounds import work_bound
from solvers.result import Bound
from tests.placer.small_fleets import PROFILE, fair_surrogate, small_problem

TYPES = [
    {"name": "dear", "memory_gib": 63.43, "cost_per_hour": 5.0, "profile": PROFILE},
    {"name": "cheap", "memory_gib": 63.43, "cost_per_hour": 3.0, "profile": PROFILE},
]


def _instance(bound: BoundRecord | None, least: float | None) -> InstanceRecord:
    return InstanceRecord(
        name="i",
        family="f",
        what="",
        num_adapters=1,
        fingerprint="",
        bound=bound,
        planted_gpus=None,
        cheapest_gpu_per_hour=3.0,
        least_cost_per_hour=least,
    )


def test_a_plan_of_least_cost_states_the_bound_on_it_and_the_gap(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The work bound's cost, which the plan keeps, and what is left between them; the text has both."""
    problem = small_problem(tmp_path, num_adapters=20, gpu_types=TYPES, objective="least_cost")
    result = plan(problem, solver="bfd", surrogate=fair_surrogate(), verify=False)
    bound = result.lower_bound
    assert bound is not None
    assert bound.cost_per_hour == work_bound(problem).cost_per_hour
    assert bound.cost_per_hour is not None
    assert 0.0 < bound.cost_per_hour <= result.cost_per_hour
    assert result.cost_gap == pytest.approx(1.0 - bound.cost_per_hour / result.cost_per_hour, abs=1e-6)
    print_plan(result)
    assert "lower bound on the cost: " in capsys.readouterr().out


def test_a_plan_of_fewest_gpus_has_no_gap_in_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The cost is not what was minimised."""
    result = plan(small_problem(tmp_path), solver="bfd", surrogate=fair_surrogate(), verify=False)
    assert result.cost_gap is None
    print_plan(result)
    assert "on the cost" not in capsys.readouterr().out


def test_a_record_keeps_what_was_proven_about_the_cost() -> None:
    """And where nothing was, a bound on GPUs is one on the cost of the cheapest."""
    record = BoundRecord.of(Bound(3, "cp-sat", "surrogate", cost_per_hour=11.0))
    assert record.cost_per_hour == 11.0
    plain = BoundRecord(value=3, proof="work", model="twin")
    assert best_cost_bound([None, plain, record], 3.0) == 11.0
    assert best_cost_bound([plain], 3.0) == 9.0
    assert best_cost_bound([None], 3.0) is None


def test_the_cost_is_compared_with_the_largest_bound_on_it() -> None:
    """Also of a comparison of an earlier version, which knows the number of GPUs only; never with nothing."""
    run = RunRecord(instance="i", solver="s", seed=0, status="placed", num_gpus=4, cost_per_hour=12.0)
    bound = BoundRecord(value=3, proof="work", model="twin")
    assert cost_over_bound(run, _instance(bound, 10.0)) == pytest.approx(0.2)
    assert cost_over_bound(run, _instance(bound, None)) == pytest.approx(12.0 / 9.0 - 1.0)
    assert cost_over_bound(run, _instance(None, None)) is None
    assert cost_over_bound(run, _instance(None, 0.0)) is None
